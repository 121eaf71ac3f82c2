"""What can be refused before the first stage: a study against its bases, its questions and the first record of its data.

A mistake that a stage would find after hours of others is found here in a moment. Nothing here imports torch or loads weights:
bases are known by config.json, tokenizer.json and the headers of their safetensors files. What cannot be known so is left to
the stages, which check again. What belongs to one method or evaluation stands in the `check` of its row.
"""

import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path

from paretune.errors import NeedsError, SpecError
from paretune.pipeline.config_json import num_positions
from paretune.pipeline.lock import Lock, LockedBase
from paretune.pipeline.machine import has, way_to
from paretune.pipeline.resources import weight_shapes
from paretune.study.registry import Evaluation, Method, load_function
from paretune.study.study import Study

_VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken")


@dataclass(frozen=True)
class Setting:
    """What an entry of a study is checked against."""

    where: str
    """The entry, as messages name it: `evaluate.qa`."""
    study: Study
    lock: Lock
    folder: Path
    """Of the study file; relative paths start here."""


def check_study(study: Study, lock: Lock, folder: Path) -> None:
    """Raises SpecError, DataError or NeedsError for what no run of `study` could do; relative paths start at `folder`."""
    for name, base in lock.bases.items():
        positions = num_positions(base.config)
        if positions is not None and study.train.max_length > positions:
            raise SpecError(
                f"train.max_length: {study.train.max_length} is longer than base `{name}` reaches ({positions} positions); "
                f"write at most {positions}"
            )
    _check_needs(study, lock.device)
    check_dataset = load_function("paretune.data.checks:check_dataset")
    for name, dataset in study.data.items():
        check_dataset(dataset, Setting(f"data.{name}", study, lock, folder))
    for name, base in lock.bases.items():
        check_files(base, f"bases.{name}")
    for name, variant in study.variants.items():
        for base_name, chain in itertools.product(variant.bases or study.bases, variant.chains):
            locked = lock.bases[base_name]
            for index, use in enumerate(chain):
                if use.row.check:
                    check = load_function(use.row.check)
                    config = check(use.config, f"variants.{name}[{index}].{use.name}", base_name, locked)
                    locked = replace(locked, config=config)
    if study.safety is not None:
        load_function("paretune.data.checks:check_safety")(study.safety, Setting("safety", study, lock, folder))
    for name, entry in study.evaluate.items():
        if entry.row.check:
            load_function(entry.row.check)(entry.config, Setting(f"evaluate.{name}", study, lock, folder))


def _check_needs(study: Study, device: str) -> None:
    users: list[tuple[str, Method | Evaluation]] = []
    for name, variant in study.variants.items():
        users += [(f"variants.{name}: `{method.name}`", method.row) for method in variant.methods]
    users += [(f"evaluate.{name}: `{use.kind}`", use.row) for name, use in study.evaluate.items()]
    for user, row in users:
        for need in row.needs:
            if not has(need, device):
                raise NeedsError(f"{user} needs {way_to(need, device)}; or take it out of the study")
        module = row.body.partition(":")[0]
        if not has(module, device):
            raise NeedsError(f"{user}: its code, the module `{module}`, is not installed; repair the package that brings it")


def check_files(model: LockedBase, where: str) -> None:
    """NeedsError where the weights of a model are not whole, or it has no tokenizer; as far as its files are here."""
    directory = model.resource.directory()
    if directory is None:
        return
    weight_shapes(directory)
    if not any(file for pattern in _VOCABULARIES for file in directory.glob(pattern)):
        raise NeedsError(f"{where}: `{directory}` holds no tokenizer ({', '.join(_VOCABULARIES)}); copy it beside the model")
    file = directory / "tokenizer.json"
    try:
        json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    except (OSError, ValueError) as error:
        raise NeedsError(f"{where}: `{file}` cannot be read as JSON ({error}); copy it again") from None

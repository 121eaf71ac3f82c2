"""What can be refused before the first stage: a study against its bases, its questions and the first record of its data.

A mistake that a stage would find after hours of others is found here in a moment. Nothing here imports torch or loads weights:
bases are known by config.json, tokenizer.json and the headers of their safetensors files. What cannot be known so is left to
the stages, which check again. What belongs to one method or evaluation stands in the `check` of its row.
"""

import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paretune.errors import NeedsError, SpecError
from paretune.pipeline.config_json import num_positions, vocabulary_size
from paretune.pipeline.lock import Lock, LockedBase
from paretune.pipeline.machine import has, total_memory, way_to
from paretune.pipeline.resources import count_weights, read_tokenizer, weight_shapes
from paretune.study.grid import grid_of
from paretune.study.registry import Evaluation, Method, evaluations, load_function, metric_of
from paretune.study.study import Study

_SHORTEST_STEP = 1e-4
"""Seconds that the step of the smallest model takes at least."""
_YEAR = 365 * 24 * 3600.0
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
    _check_time(study)
    _check_limits(study)
    _check_needs(study, lock.device)
    check_dataset = load_function("paretune.data.checks:check_dataset")
    for name, dataset in study.data.items():
        check_dataset(dataset, Setting(f"data.{name}", study, lock, folder))
    for name, base in lock.bases.items():
        check_files(base, f"bases.{name}")
        _check_vocabulary(base, f"bases.{name}", chats=any(dataset.ready is not None for dataset in study.data.values()))
    for name, variant in study.variants.items():
        for base_name, chain in itertools.product(variant.bases or study.bases, variant.chains):
            locked = lock.bases[base_name]
            for index, use in enumerate(chain):
                if use.row.check:
                    check = load_function(use.row.check)
                    config = check(use.config, f"variants.{name}[{index}].{use.name}", base_name, locked)
                    locked = replace(locked, config=config)
    _check_memory(study, lock)
    _check_teachers(study, lock)
    if study.safety is not None:
        load_function("paretune.data.checks:check_safety")(study.safety, Setting("safety", study, lock, folder))
    for name, entry in study.evaluate.items():
        if entry.row.check:
            load_function(entry.row.check)(entry.config, Setting(f"evaluate.{name}", study, lock, folder))


def _check_limits(study: Study) -> None:
    """SpecError for a limit on a metric that nothing in the study measures: no variant could be shown to keep to it."""
    uses = {name: use for dataset in study.data for name, use in study.evaluations_of(dataset).items()}
    if any(use.row.measures is None for use in uses.values()):  # what its tasks measure is known once they have run
        return
    measured = {metric for use in uses.values() if use.row.measures for metric in use.row.measures(use.config, study)}
    for index, bounds in enumerate(study.compare.require):
        for metric in bounds:
            row = metric_of(metric)
            of_every_variant = row.cost and not (row.of_machine and not row.of_training)
            if metric in measured or row.name in measured or of_every_variant:
                continue
            others = sorted(
                each.name
                for each in evaluations().values()
                if each.measures and row.name in each.measures(each.config.model_construct(), study)
            )
            way_out = f"add {' or '.join(f'`{name}`' for name in others)} to `evaluate`" if others else "ask a task for it"
            raise SpecError(
                f"compare.require[{index}].{metric}: nothing in the study measures `{metric}`; {way_out}, or take it out"
            )


def _check_time(study: Study) -> None:
    """SpecError for a training that nobody lives to see the end of."""
    field = "max_steps" if study.train.max_steps else "epochs"
    steps = study.train.max_steps or study.train.num_epochs or 0  # an epoch has a step at least
    if steps * _SHORTEST_STEP > _YEAR:
        raise SpecError(
            f"train.{field}: {steps:,} would take {steps * _SHORTEST_STEP / _YEAR:,.0f} years at least, if a step took no more "
            f"than {1000 * _SHORTEST_STEP:g} ms; write fewer"
        )


def _check_memory(study: Study, lock: Lock) -> None:
    """SpecError for a training whose weights alone are more than the memory of the device, as far as the files are here.

    Of trained weights there are the gradient and two moments besides, in float32; frozen ones take two bytes at least. What a
    pass takes besides is made to fit.
    """
    there = total_memory(lock.device)
    for name, variant in study.variants.items():
        for base, chain in itertools.product(variant.bases or study.bases, variant.chains):
            directory = lock.bases[base].resource.directory()
            if directory is None or not chain or not chain[0].row.trains:  # another method first may make the model smaller
                continue
            weights = count_weights(directory)
            needed = weights * (16 if chain[0].row.trains_all(chain[0].config) else 2)
            if needed > there:
                raise SpecError(
                    f"variants.{name}[0].{chain[0].name}: the {weights:,} weights of base `{base}` take {needed / 1e9:,.1f} GB "
                    f"in training, and this machine has {there / 1e9:,.1f} GB; take `train.lora`, a smaller base or another "
                    "machine"
                )


def _check_teachers(study: Study, lock: Lock) -> None:
    """SpecError for a teacher with other tokens than its student, as far as files are here; the stages compare again."""
    for name, variant in study.variants.items():
        for base, (index, use) in itertools.product(variant.bases or study.bases, enumerate(variant.methods)):
            teacher = use.row.teacher(use.config)
            if teacher is None or teacher.writing or teacher.name in study.variants or teacher.name not in study.bases:
                continue
            pair = lock.bases[base], lock.bases[teacher.name]
            files = [directory / "tokenizer.json" for each in pair if (directory := each.resource.directory())]
            if pair[0].tokenizer_digest == pair[1].tokenizer_digest or len(files) < 2 or not all(map(Path.is_file, files)):
                continue
            own, other = (read_tokenizer(file).get_vocab() for file in files)
            if own != other:
                token = min(own.items() ^ other.items(), key=lambda pair: pair[1])[0]
                places = (f"token {ids[token]}" if token in ids else "no token" for ids in (other, own))
                raise SpecError(
                    f"variants.{grid_of(name)}[{index}].{use.name}.teacher: base `{teacher.name}` has other tokens than base "
                    f"`{base}`: `{token}` is {' and '.join(places)} of them; name a teacher with the same tokenizer"
                )


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


def _check_vocabulary(base: LockedBase, where: str, *, chats: bool) -> None:
    """NeedsError for tokens that texts hold and the embedding has no row for, as far as the files are here.

    A special token beyond it is left to the stages, which refuse a text that holds it; that of padding stands under a mask.
    """
    directory, rows = base.resource.directory(), vocabulary_size(base.config)
    if directory is None or rows is None or not (directory / "tokenizer.json").is_file():
        return
    tokenizer = _read_json(directory / "tokenizer.json", where)
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    ids = dict(vocabulary) if isinstance(vocabulary, dict) else {entry[0]: index for index, entry in enumerate(vocabulary)}
    added = {token["content"]: token for token in tokenizer.get("added_tokens") or []}
    ids |= {name: token["id"] for name, token in added.items()}
    file, template = directory / "tokenizer_config.json", directory / "chat_template.jinja"
    said = _read_json(file, where) if file.is_file() else {}
    text = template.read_text(encoding="utf-8") if template.is_file() else json.dumps(said.get("chat_template") or "")
    named = (said.get(f"{role}_token") for role in ("bos", "eos"))
    always = {token["content"] if isinstance(token, dict) else token for token in named if token}
    for name in {**ids, **dict.fromkeys(always - ids.keys(), len(ids))}:
        token = ids.get(name, len(ids))
        special = name in added and added[name].get("special")
        if token >= rows and (name in always or not special or (chats and name in text)):
            raise NeedsError(
                f"{where}: its tokenizer has {max(*ids.values(), token) + 1} tokens, its embedding {rows} rows: `{name}` is "
                f"token {token}, which the model cannot read; take the tokenizer that belongs to it, or resize its "
                "embedding and save it"
            )


def check_files(model: LockedBase, where: str) -> None:
    """NeedsError where the weights of a model are not whole, or it has no tokenizer; as far as its files are here."""
    directory = model.resource.directory()
    if directory is None:
        return
    weight_shapes(directory)
    if not any(file for pattern in _VOCABULARIES for file in directory.glob(pattern)):
        raise NeedsError(f"{where}: `{directory}` holds no tokenizer ({', '.join(_VOCABULARIES)}); copy it beside the model")
    if (directory / "tokenizer.json").exists():
        _read_json(directory / "tokenizer.json", where)


def _read_json(file: Path, where: str) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NeedsError(f"{where}: `{file}` cannot be read as JSON ({error}); copy it again") from None

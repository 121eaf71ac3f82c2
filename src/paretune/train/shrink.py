"""Progressive removal: one block goes, what is left is healed and measured on validation, then the next, as a bound allows.

A stop is a stage of its own, so a run that was killed goes on at the stop that it was in, and in its training at a checkpoint.
Once a stop was beyond the bound, those after it hand on the last model that was within it.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from paretune.data.examples import examples_of
from paretune.data.tokens import read_tokens
from paretune.data.windows import window_examples
from paretune.model.adapters import count_parameters
from paretune.model.blocks import block_list
from paretune.model.forward import score
from paretune.model.load import ADAPTER, LoadedModel, load_model, merged
from paretune.pipeline.stage import Artifact, StageContext
from paretune.pipeline.stage_configs import MethodConfig, TrainConfig
from paretune.study.methods import PruneBlocks, Shrink, TrainFull, TrainLora
from paretune.train.last_blocks import last_blocks
from paretune.train.stages import adapters, all_weights, train
from paretune.variants.choose import choose_measured
from paretune.variants.proof import prune_blocks

VALIDATION = "validation.parquet"
"""Of each validation text `document`, `bytes`, and nats of the model that is shrunk (`start`) and of what is left (`nats`)."""
_CURVES = "curves.jsonl"


def shrink(context: StageContext) -> dict[str, Any]:
    """Stage body: one stop. The artifact is a model directory: without one more block, or, where that is beyond the bound or an
    earlier stop was, the model that was given.

    Of the record: `removed_blocks` by their index in the model that was given, `blocks_before` and `blocks_left` of what was
    tried, `parameters_left` of it, `bits_per_byte_start` and `bits_per_byte` on validation, `beyond` the bound or not; after a
    stop that was, `handed_on` alone.
    """
    config = context.parse(TrainConfig[Shrink])
    method, given = config.method, context.inputs.get("model")
    is_stop = given is not None and given.record.config.get("method") == context.config["method"]
    if given is not None and is_stop and (given.record.metrics.get("beyond") or given.record.metrics.get("handed_on")):
        _hand_on(given.path, context.draft)
        return {"handed_on": True}
    pruned = context.resume / "pruned"
    removed = _remove(context, config, pruned)
    inner = replace(context, inputs={**context.inputs, "model": replace(context.inputs["tokens"], path=pruned, inputs={})})
    settings = config.train
    if method.heal.max_steps:
        settings = settings.model_copy(update={"max_steps": method.heal.max_steps, "epochs": None})
    healing = method.heal.method
    if isinstance(healing, TrainLora):
        trained = adapters(inner, healing, config.seed)
    elif isinstance(healing, TrainFull):
        trained = all_weights(inner)
    else:
        trained = last_blocks(inner, healing, config.precision)
    numbers = train(inner, config.model_copy(update={"train": settings}), healing.learning_rate, trained)
    healed = load_model(inner, torch.float32)
    if isinstance(healing, TrainLora):
        healed = replace(healed, model=merged(healed.model, context.draft / ADAPTER))
        shutil.rmtree(context.draft / ADAPTER)
        healed.model.save_pretrained(context.draft)
        healed.tokenizer.hf.save_pretrained(context.draft)
    else:
        saved = replace(context.inputs["tokens"], path=context.draft, inputs={})
        healed = load_model(replace(context, inputs={"model": saved}), torch.float32)
    table = _measure(context, healed, config.train.max_length, given if is_stop else None)
    table.to_parquet(context.draft / VALIDATION)
    start, now = (float(table[name].sum() / table["bytes"].sum()) / math.log(2) for name in ("start", "nats"))
    beyond = method.stop is not None and now - start > method.stop.bits_per_byte
    if beyond:
        _give_back(context, given)
    removed = {**removed, "parameters_left": count_parameters(healed.model)[0]}
    return numbers | removed | {"bits_per_byte_start": start, "bits_per_byte": now, "beyond": beyond}


def _remove(context: StageContext, config: TrainConfig[Shrink], pruned: Path) -> Mapping[str, Any]:
    """The model without the block that costs least, in the directory `pruned`, and what the record says of it."""
    note = pruned / "removed.json"
    if note.exists():  # by an attempt that was killed
        kept: Mapping[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        return kept
    shutil.rmtree(pruned, ignore_errors=True)
    pruned.mkdir(parents=True)
    method = config.method
    asked = MethodConfig(
        base=config.base,
        method=PruneBlocks(count=1, choose=method.choose, calibration=method.calibration),
        max_length=config.train.max_length,
        precision="float32",
        device=config.device,
    )
    choosing = replace(context, config=asked.model_dump(mode="json"), draft=pruned)
    drop, measured = choose_measured(choosing, asked)
    loaded = load_model(context, torch.float32)
    before = len(block_list(loaded.model)[1])
    prune_blocks(loaded.model, drop, pruned, base_fingerprint=config.base.digest)
    removed = {"removed_blocks": sorted(drop), "blocks_before": before, "blocks_left": before - len(drop)}
    removed |= {name: value for name, value in measured.items() if name in ("choice_seconds", "calibration_tokens")}
    note.write_text(json.dumps(removed), encoding="utf-8")
    return removed


def _measure(context: StageContext, healed: LoadedModel, length: int, previous: Artifact | None) -> pd.DataFrame:
    """Nats of every validation text, read in windows of `length`, by the model that is shrunk and by what is left of it."""
    rows = read_tokens(context.inputs["tokens"].path, "validation")
    rows = rows.where(rows.lengths("completion" if rows.has_tasks else "ids") > 0)
    if rows.has_tasks:
        examples, counts = examples_of(rows, healed.tokenizer, length, end=False), [1] * len(rows)
    else:
        texts = [rows.ids_of("ids", n) for n in range(len(rows))]
        examples, counts = window_examples(texts, healed.tokenizer, length, length // 2)
    firsts = np.cumsum([0, *counts[:-1]])

    def nats_of(loaded: LoadedModel, part: str) -> np.ndarray:
        emit = partial(context.emit, part=part)
        scores = score(loaded.packed, examples, forward_tokens=context.options.forward_tokens, emit=emit)
        return np.add.reduceat([each.nats.sum() for each in scores], firsts)

    table = pd.DataFrame({"document": rows.column("document").to_pylist(), "bytes": rows.column("bytes").to_pylist()})
    if previous is not None:
        table["start"] = pd.read_parquet(previous.path / VALIDATION)["start"]
    else:
        table["start"] = nats_of(load_model(context, torch.float32), "validation of the model that is shrunk")
    table["nats"] = nats_of(healed, "validation of what is left")
    return table


def _give_back(context: StageContext, given: Artifact | None) -> None:
    """The model that was given, in the place of what is left; its curves and scores stay."""
    for file in context.draft.iterdir():
        if file.name not in (VALIDATION, _CURVES):
            file.unlink()
    if given is not None and (given.path / VALIDATION).exists():
        _hand_on(given.path, context.draft)
    else:
        loaded = load_model(context, torch.float32)
        loaded.model.save_pretrained(context.draft)
        loaded.tokenizer.hf.save_pretrained(context.draft)


def _hand_on(source: Path, draft: Path) -> None:
    """Every file of an artifact that `draft` does not have, without a copy where the file system allows it."""
    for file in source.iterdir():
        if file.name != "record.json" and not (draft / file.name).exists():
            try:
                os.link(file, draft / file.name)
            except OSError:
                shutil.copyfile(file, draft / file.name)

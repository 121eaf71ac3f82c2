"""What a run would take, before it runs: optimizer steps, tokens, peak memory and disk, by arithmetic on configs and files.

Token counts are exact once the tokenize stage has run, and estimated from the data file (`~`) before. Memory and disk are
always estimates: weights, gradients and moments are counted; activations and the libraries' memory are rules of thumb.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from paretune.pipeline.lock import Lock
from paretune.pipeline.plan import Plan
from paretune.pipeline.reasons import PlannedStage, review
from paretune.pipeline.stage import RunOptions, Stage
from paretune.pipeline.store import Store
from paretune.spec.study import Study

_LIBRARIES = 700e6
"""Resident memory of a worker with torch and transformers imported."""
_ACTIVATIONS = 40
"""Bytes kept for the backward pass by token, block and unit of width."""
_SAMPLE = 200_000
"""Bytes of a data file that are tokenized to find its tokens per byte."""


@dataclass(frozen=True)
class Cost:
    """Of one stage; None where it does not apply or is not known."""

    steps: int | None = None
    tokens: int | None = None
    exact: bool = True
    memory: float | None = None
    disk: float | None = None


def describe_plan(study: Study, lock: Lock, plan: Plan, store: Store) -> str:
    """The plan as a table: each stage with status, reason, users and costs, and what a run would add."""
    reviewed = review(plan, store)
    costs = {one.stage: _cost(one.stage, study, lock, plan, store) for one in reviewed}
    rows: list[tuple[str, ...]] = [("stage", "status", "steps", "tokens", "memory", "disk", "for / because")]
    rows += [_row(one, costs[one.stage], plan) for one in reviewed]
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[6]]) for row in rows]
    new = [costs[one.stage] for one in reviewed if one.status == "new"]
    steps, tokens = (sum(getattr(cost, name) or 0 for cost in new) for name in ("steps", "tokens"))
    summary = (
        f"{len(rows) - 1} stages: {len(rows) - 1 - len(new)} reused, {len(new)} new; to run: "
        f"{steps:,} optimizer steps, {tokens:,} tokens to train on, "
        f"peak memory about {_bytes(max((cost.memory or 0 for cost in new), default=0))}, "
        f"disk about {_bytes(sum(cost.disk or 0 for cost in new))}"
    )
    places = f"device {lock.device}, training in {lock.compute}, measuring in {lock.evaluate}, store {store.root}"
    return "\n".join([*lines, "", summary, places])


def count_weights(directory: Path) -> int:
    """Parameters in the safetensors files of a directory, read from their headers alone."""
    total = 0
    for file in directory.glob("*.safetensors"):
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header: Mapping[str, Any] = json.loads(stream.read(length))
        total += sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return total


def _row(one: PlannedStage, cost: Cost, plan: Plan) -> tuple[str, ...]:
    mark = "" if cost.exact else "~"
    steps = "" if cost.steps is None else f"{mark}{cost.steps:,}"
    tokens = "" if cost.tokens is None else f"{mark}{cost.tokens:,}"
    sizes = [_bytes(cost.memory), _bytes(cost.disk)]
    users = plan.uses(one.stage)
    uses = f"{users[0]}{f' and {len(users) - 1} more' if len(users) > 1 else ''}" if users else ""
    return one.stage.name, one.status, steps, tokens, *sizes, "; ".join(filter(None, (uses, one.reason)))


def _cost(stage: Stage, study: Study, lock: Lock, plan: Plan, store: Store) -> Cost:
    if "base" not in stage.resources or stage.kind == "tokenize":
        return Cost()
    directory = Path(stage.resources["base"])
    weights = count_weights(directory) if directory.is_dir() else None
    config = next(base.config for base in lock.bases.values() if base.resource == stage.resources["base"])
    if "train" not in stage.config:
        memory = weights and _LIBRARIES + 8 * weights
        return Cost(memory=memory, disk=4 * weights if weights and stage.kind.startswith("prune") else None)
    windows, tokens, exact = _amount(stage.inputs["tokens"], study, plan, store)
    epochs = study.train.num_epochs
    per_epoch = math.ceil(windows / study.train.batch_size)
    steps = study.train.max_steps or per_epoch * (epochs or 0)
    memory, disk = _training_memory(stage, weights, config)
    return Cost(steps, round(tokens * steps / max(per_epoch, 1)), exact, memory, disk)


def _training_memory(stage: Stage, weights: int | None, config: Mapping[str, Any]) -> tuple[float | None, float | None]:
    if weights is None:
        return None, None
    width = config.get("hidden_size") or config.get("n_embd") or 0
    blocks = config.get("num_hidden_layers") or config.get("n_layer") or 0
    activations = RunOptions().forward_tokens * blocks * width * _ACTIVATIONS
    if stage.kind == "train.full":
        return _LIBRARIES + 16 * weights + activations, 4 * weights
    adapter = 2 * stage.config["method"].get("r", 0) * width * blocks * 4
    return _LIBRARIES + 4 * weights + 16 * adapter + activations, 4 * adapter


def _amount(tokens: Stage, study: Study, plan: Plan, store: Store) -> tuple[int, int, bool]:
    """Windows and tokens of the training split, and whether they are counted or estimated."""
    record = store.find(tokens)
    if record:
        return record.metrics["windows_train"], record.metrics["tokens_train"], True
    dataset = next(name for (_, name), stage in plan.tokens.items() if stage == tokens)
    sources = tokens.inputs["data"].resources
    alone = "source.train" in sources
    file = Path(sources["source.train" if alone else "source"])
    if not file.is_file():
        return 0, 0, False
    share = 1.0 if alone else study.data[dataset].split.train
    estimated = round(file.stat().st_size * share * _tokens_per_byte(file, Path(tokens.resources["base"])))
    return math.ceil(estimated / study.train.max_length), estimated, False


def _tokens_per_byte(file: Path, base: Path) -> float:
    with file.open("rb") as stream:
        sample = stream.read(_SAMPLE).decode("utf-8", errors="ignore")
    definition = base / "tokenizer.json"
    if not sample or not definition.is_file():
        return 0.25
    return len(Tokenizer.from_file(str(definition)).encode(sample).ids) / len(sample.encode())


def _bytes(size: float | None) -> str:
    if not size:
        return ""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"

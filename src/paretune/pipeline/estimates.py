"""What a run would take, before it runs: optimizer steps, tokens, peak memory and disk, by arithmetic on configs and files.

Steps and tokens are exact once the tokenize stage has run, and estimated from a sample of the data (`~`) before. Memory and
disk are always estimates: weights, gradients and moments are counted; activations and the libraries' memory are rules of thumb.
"""

import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from paretune.pipeline import hub
from paretune.pipeline.downloads import pending
from paretune.pipeline.lock import Lock
from paretune.pipeline.machine import fingerprint
from paretune.pipeline.plan import Plan
from paretune.pipeline.reasons import PlannedStage, review
from paretune.pipeline.records import Record
from paretune.pipeline.results import small_splits
from paretune.pipeline.stage import RunOptions, Stage
from paretune.pipeline.store import Store
from paretune.pipeline.tuning import describe_tunings
from paretune.pipeline.weights import weight_shapes
from paretune.study.data import Dataset, Source
from paretune.study.registry import load_function
from paretune.study.study import Study

_LIBRARIES = 430e6
"""Resident memory of a worker with torch and transformers imported; on CUDA only the device's memory counts."""
_LOADING = 8
"""Bytes of a weight while it is loaded: it is in memory as in the file and as it is used."""
_ACTIVATIONS = {"train.full": 96, "train.lora": 112}
"""Bytes kept for the backward pass by token, block and unit of width, in float32."""
_ATTENTION = 8
"""Bytes kept for the backward pass by token, block, head and position of a row."""
_SCORING = ("evaluate.perplexity", "evaluate.qa", "evaluate.forgetting")
_STATES = 512 * 2**20
"""Hidden states that a choice of blocks by loss holds: `paretune.variants.choose.STATE_BYTES`."""
_HEAD = 16 * 1024
"""Bytes by word of the vocabulary: a chunk of logits with its gradient."""
_LONG = ("jsonl", "csv", "parquet")
"""Formats that are read record by record; of such a file the first records are enough for an estimate."""
_ROWS = 5_000
_SAMPLE = 300
"""Of the records that were read, evenly, so many are tokenized."""
_SPEED = "train_tokens_per_second"
_SHORTEST = 64
"""Tokens of a pass at least: `paretune.data.trees.ROUND_TO`."""
_TRANSIENT = 1.5
"""What a pass takes beside what it keeps: `paretune.model.memory`."""
_DEFAULTS = RunOptions()
_TOKENS_PER_BYTE = 0.25
"""Where the tokenizer is not at hand."""


@dataclass(frozen=True)
class Cost:
    """Of one stage; None where it does not apply or is not known."""

    steps: int | None = None
    tokens: int | None = None
    exact: bool = True
    """Whether the tokens were counted."""
    memory: float | None = None
    disk: float | None = None
    seconds: float | None = None
    """Of optimizer steps, as earlier trainings of the base on this machine went."""


@dataclass(frozen=True)
class Amount:
    """What an epoch of training takes: windows (or examples), and the tokens that are learned (end-of-text included)."""

    windows: float
    tokens: float
    exact: bool
    read: float | None = None
    """All tokens of the examples, where not each of them is learned."""

    @property
    def length(self) -> float:
        """Of an example, in tokens."""
        return (self.read or self.tokens) / max(1, self.windows)


def describe_plan(study: Study, lock: Lock, plan: Plan, store: Store, options: RunOptions = _DEFAULTS) -> str:
    """The plan as a table: each stage with status, reason, users and costs, and what a run would add."""
    reviewed = review(plan, store)
    costs = plan_costs(study, lock, plan, store, options)
    rows: list[tuple[str, ...]] = [("stage", "status", "steps", "tokens", "memory", "disk", "for / because")]
    rows += [_row(one, costs[one.stage], plan, study) for one in reviewed]
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[6]]) for row in rows]
    new = [costs[one.stage] for one in reviewed if one.status == "new"]
    reused, diverged = (sum(one.status == status for one in reviewed) for status in ("reused", "diverged"))
    told = f"{reused} reused{f', {diverged} diverged' if diverged else ''}, {len(new)} new{_to_run(new, study)}"
    lines += ["", f"{len(reviewed)} stages: {told}", *describe_tunings(plan)]
    lines += small_splits(plan, store)
    lines += [f"a run downloads: {one}" for one in pending(plan, store)]
    lines.append(f"device {lock.device}, training in {lock.compute}, measuring in {lock.evaluate}, store {store.root}")
    return "\n".join(lines)


def plan_costs(study: Study, lock: Lock, plan: Plan, store: Store, options: RunOptions = _DEFAULTS) -> dict[Stage, Cost]:
    """What each stage takes, whether it is new or not."""
    amounts: dict[Stage, Amount | None] = {}
    for stage in plan.stages:
        tokens = stage.inputs.get("tokens")
        if "train" in stage.config and tokens and tokens not in amounts:
            dataset = next(study.data[name] for (_, name), one in plan.tokens.items() if one == tokens)
            amounts[tokens] = _counted(tokens, store) or _sampled(tokens, dataset)
    here = [one for one in store.records() if _SPEED in one.metrics and one.machine == fingerprint()]
    return {stage: _cost(stage, study, lock, amounts, _speed(stage, here), options) for stage in plan.stages}


def count_weights(directory: Path) -> int:
    """Parameters of the model in a directory, from the headers of its safetensors files alone."""
    # Some checkpoints keep buffers beside the weights: causal masks, of four dimensions, and rotary frequencies.
    return sum(
        math.prod(shape)
        for name, shape in weight_shapes(directory).items()
        if len(shape) < 4 and not name.endswith((".masked_bias", ".inv_freq"))
    )


def _row(one: PlannedStage, cost: Cost, plan: Plan, study: Study) -> tuple[str, ...]:
    mark = "" if cost.exact else "~"
    steps = "" if cost.steps is None else f"{'' if study.train.max_steps else mark}{cost.steps:,}"
    tokens = "" if cost.tokens is None else f"{mark}{cost.tokens:,}"
    sizes = [_bytes(cost.memory), _bytes(cost.disk)]
    users = plan.uses(one.stage)
    uses = f"{users[0]}{f' and {len(users) - 1} more' if len(users) > 1 else ''}" if users else ""
    return one.stage.name, one.status, steps, tokens, *sizes, "; ".join(filter(None, (uses, one.reason)))


def _to_run(costs: Sequence[Cost], study: Study) -> str:
    told = []
    steps = [cost.steps for cost in costs if cost.steps is not None]
    if steps:
        told.append(f"{'at most ' if study.train.early_stopping else ''}{sum(steps):,} optimizer steps")
    tokens = [cost.tokens for cost in costs if cost.tokens is not None]
    if tokens:
        told.append(f"{sum(tokens):,} tokens to train on")
        told.append(_time([cost.seconds for cost in costs if cost.tokens is not None]))
    memory, disk = [cost.memory for cost in costs if cost.memory], [cost.disk for cost in costs if cost.disk]
    if memory:
        told.append(f"peak memory about {_bytes(max(memory))}")
    if disk:
        told.append(f"disk about {_bytes(sum(disk))}")
    return f"; to run: {', '.join(told)}" if told else ""


def _speed(stage: Stage, records: Sequence[Record]) -> float | None:
    """Tokens that a second of the same method on the same base read, in the middle of those that are known."""
    found = [
        one.metrics[_SPEED]
        for one in records
        if one.kind == stage.kind and one.config["base"] == stage.config["base"] and one.device == stage.config["device"]
    ]
    return statistics.median(found) if found else None


def _time(trainings: Sequence[float | None]) -> str:
    known = [seconds for seconds in trainings if seconds is not None]
    if not known:
        return "no estimate of the time yet"
    whole = "training" if len(known) == len(trainings) else f"{len(known)} of {len(trainings)} trainings"
    return f"{whole} about {_duration(sum(known))} by earlier ones"


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{math.ceil(seconds)} s"


def _cost(
    stage: Stage, study: Study, lock: Lock, amounts: Mapping[Stage, Amount | None], speed: float | None, options: RunOptions
) -> Cost:
    if "base" not in stage.resources or stage.kind == "tokenize":
        return Cost()
    directory = _directory(stage.resources["base"])
    weights = count_weights(directory) if directory else None
    libraries = 0 if lock.device == "cuda" else _LIBRARIES
    config = next(base.config for base in lock.bases.values() if base.resource == stage.resources["base"])
    if "train" not in stage.config:
        # A block at a time: nothing is kept for a backward pass.
        one_block = {**config, "num_hidden_layers": 1, "n_layer": 1}
        scoring = _forward(one_block, options.forward_tokens, study.train.max_length, 80)
        used = scoring + _states(stage, config) if stage.kind in _SCORING or "tokens" in stage.inputs else 0.0
        memory = None if weights is None else libraries + max(_LOADING * weights, 4 * weights + used)
        return Cost(memory=memory, disk=4 * weights if weights and stage.kind.startswith("prune") else None)
    amount = amounts[stage.inputs["tokens"]]
    batch, steps = study.train.batch_size, study.train.max_steps
    epochs = study.train.num_epochs or 0.0
    if amount is not None:
        per_epoch = max(1, math.ceil(amount.windows / batch))
        epochs, steps = (steps / per_epoch, steps) if steps else (epochs, per_epoch * (study.train.num_epochs or 0))
    tokens = None if amount is None else round(amount.tokens * epochs)
    length = study.train.max_length if amount is None else amount.length
    in_pass = min(options.forward_tokens, round(batch * length))
    kept = _kept(stage, config, in_pass, study.train.max_length, options.recompute)
    memory, disk = _training(stage, weights, config, kept)
    if options.memory is not None and disk is not None:
        # As `paretune.model.memory.fitting_tokens` does it: 12 bytes of each trained weight, of which 4 are those on disk.
        least = _kept(stage, config, min(_SHORTEST, in_pass), study.train.max_length, options.recompute)
        fitting = max(least, (options.memory - 3 * disk) / _TRANSIENT)
        memory, _ = _training(stage, weights, config, min(kept, fitting))
    seconds = (amount.read or amount.tokens) * epochs / speed if amount and speed else None
    return Cost(steps, tokens, amount is None or amount.exact, memory and libraries + memory, disk, seconds)


def _kept(stage: Stage, config: Mapping[str, Any], tokens: int, length: int, recompute: bool) -> float:
    """Bytes that a training pass keeps: of every block, or of one and the input of each where the rest is computed again."""
    activations = _ACTIVATIONS.get(stage.kind, 112)
    if not recompute:
        return _forward(config, tokens, length, activations)
    width = config.get("hidden_size") or config.get("n_embd") or 0
    return _forward({**config, "num_hidden_layers": 1, "n_layer": 1}, tokens, length, activations) + float(
        4 * tokens * width * _blocks(config)
    )


def _forward(config: Mapping[str, Any], tokens: int, length: int, activations: int) -> float:
    """Bytes that a pass over `tokens` in rows of `length` keeps of every block, and of a chunk of logits."""
    width = config.get("hidden_size") or config.get("n_embd") or 0
    heads = config.get("num_attention_heads") or config.get("n_head") or 0
    by_block = tokens * (width * activations + heads * min(length, tokens) * _ATTENTION)
    return float(_blocks(config) * by_block + _HEAD * config.get("vocab_size", 0))


def _states(stage: Stage, config: Mapping[str, Any]) -> float:
    """Bytes of the hidden states that a choice of blocks holds: of all its text, or as much as it takes at a time."""
    calibration = stage.config.get("method", {}).get("calibration")
    if calibration is None:
        return 0.0
    width = config.get("hidden_size") or config.get("n_embd") or 0
    return float(min(_STATES, 4 * calibration["tokens"] * width * (_blocks(config) + 1)))


def _blocks(config: Mapping[str, Any]) -> int:
    return int(config.get("num_hidden_layers") or config.get("n_layer") or 1)


def _training(stage: Stage, weights: int | None, config: Mapping[str, Any], kept: float) -> tuple[float | None, float | None]:
    """Bytes of memory, and on disk, of training that keeps `kept` bytes for the backward pass."""
    if weights is None:
        return None, None
    rank = stage.config["method"].get("r")
    if rank is None:
        return 16 * weights + kept, 4 * weights
    width = config.get("hidden_size") or config.get("n_embd") or 0
    adapter = 16 * rank * width * _blocks(config)  # about: the targets are known once the model is built
    return max(_LOADING * weights, 4 * weights + 16 * adapter + kept), 4 * adapter


def _directory(resource: str) -> Path | None:
    """Where a base lies; None for one of the hub that the cache does not hold yet."""
    if resource.startswith("hub:"):
        name, _, commit = resource.removeprefix("hub:").rpartition("@")
        return hub.cached_model(name, commit)
    return Path(resource)


def _counted(tokens: Stage, store: Store) -> Amount | None:
    """From the records of the tokenize and data stages; None where they have not run."""
    record, data = store.find(tokens), store.find(tokens.inputs["data"])
    if record is None or data is None:
        return None
    windows = record.metrics["windows_train"]
    if "read_tokens_train" in record.metrics:
        return Amount(windows, record.metrics["tokens_train"] + windows, exact=True, read=record.metrics["read_tokens_train"])
    # Each example adds its end-of-text. Where examples are skipped, those that are left have one window each.
    examples = windows if record.metrics["skipped_examples"] else data.metrics["examples_train"]
    return Amount(windows, record.metrics["tokens_train"] + examples, exact=True)


def _sampled(tokens: Stage, dataset: Dataset) -> Amount | None:
    """From a sample of the records; None for a hub dataset, which is not at hand yet. DataError if the data is bad."""
    split = not isinstance(dataset.source, Source)
    source = dataset.source if isinstance(dataset.source, Source) else dataset.source.train
    place = tokens.inputs["data"].resources["source.train" if split else "source"]
    if source.hub:
        return None
    read = load_function("paretune.data.sources:iterate_rows")
    whole = source.resolved_format not in _LONG
    rows = list(itertools.islice(read(source, place), None if whole else _ROWS))
    records = len(rows) if whole or len(rows) < _ROWS else _num_records(source, place, rows)
    chosen = rows[:: math.ceil(len(rows) / _SAMPLE)]
    share = records / len(chosen) * (1 if split else dataset.split.train)
    base, length, rule = _directory(tokens.resources["base"]), tokens.config["max_length"], tokens.config["too_long"]
    parse, record_of = (load_function(f"paretune.data.records:{name}") for name in ("parse_form", "read_record"))
    form = parse(dataset, "data")
    records_read = [record_of(form, row) for row in chosen]
    if dataset.completes:
        return _of_branches(records_read, base, length, rule, share)
    counts = _count_tokens([one.text for one in records_read if one.text.strip()], base)
    if rule == "skip":
        counts = [count for count in counts if count + 2 <= length]
    windows = sum(math.ceil((count + 1) / (length - 1)) for count in counts)
    return Amount(windows * share, sum(count + 1 for count in counts) * share, exact=False)


def _of_branches(records: Sequence[Any], base: Path | None, length: int, rule: str, share: float) -> Amount:
    """Of records with prompts and completions; prefix and end-of-text are a token each."""
    branches = [(one.context + branch.prompt, branch.completion) for one in records for branch in one.branches]
    before, learned = (_count_tokens([branch[side] for branch in branches], base) for side in (0, 1))
    kept = list(zip(before, learned, strict=True))
    if rule != "error":
        # What `cut` shortens fits then; its few examples that no context would fit beside are not told apart here.
        kept = [(min(first, length - 2 - second) if rule == "cut" else first, second) for first, second in kept]
        kept = [(first, second) for first, second in kept if 0 <= first <= length - 2 - second]
    tokens = sum(second + 1 for _, second in kept) * share
    return Amount(len(kept) * share, tokens, exact=False, read=tokens + sum(first + 1 for first, _ in kept) * share)


def _count_tokens(texts: list[str], base: Path | None) -> list[int]:
    definition = base / "tokenizer.json" if base else None
    if definition is None or not definition.is_file():
        return [math.ceil(len(text.encode()) * _TOKENS_PER_BYTE) for text in texts]
    encodings = Tokenizer.from_file(str(definition)).encode_batch(texts, add_special_tokens=False)
    return [len(encoding.ids) for encoding in encodings]


def _num_records(source: Source, place: str, rows: Sequence[Any]) -> float:
    """How many records a file holds, by its size and that of its first `rows`."""
    if source.resolved_format == "parquet":
        import pyarrow.parquet

        return float(pyarrow.parquet.ParquetFile(place).metadata.num_rows)
    if source.resolved_format == "csv":
        read = sum(len(",".join(row.values.values()).encode()) + 1 for row in rows)
    else:
        read = sum(len(json.dumps(row.values, ensure_ascii=False).encode()) + 1 for row in rows)
    return len(rows) * Path(place).stat().st_size / read


def _bytes(size: float | None) -> str:
    if not size:
        return ""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"

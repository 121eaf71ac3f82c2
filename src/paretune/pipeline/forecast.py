"""What a run would take, before it runs: optimizer steps, tokens, peak memory and disk, by arithmetic on configs and files.

Steps and tokens are exact once the tokenize stage has run, and estimated from a sample of the data (`~`) before. Memory and
disk are always estimates: weights, gradients and moments are counted; activations and the libraries' memory are rules of thumb.
"""

import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paretune.pipeline.checks import read_tokenizer
from paretune.pipeline.config_json import num_blocks, num_heads, width, with_num_blocks
from paretune.pipeline.lock import Lock
from paretune.pipeline.machine import fingerprint
from paretune.pipeline.plan import Plan, pending
from paretune.pipeline.resources import Resource, count_weights
from paretune.pipeline.results import small_splits
from paretune.pipeline.stage import RunOptions, Stage
from paretune.pipeline.store import Store
from paretune.pipeline.tuning import describe_tunings
from paretune.pipeline.why import review
from paretune.study.data import Dataset
from paretune.study.registry import evaluations, load_function, methods
from paretune.study.study import Study

_LIBRARIES = 430e6
"""Resident memory of a worker with torch and transformers imported; on CUDA only the device's memory counts."""
_LOADING = 8
"""Bytes of a weight while it is loaded: it is in memory as in the file and as it is used."""
_ATTENTION = 8
"""Bytes kept for the backward pass by token, block, head and position of a row."""
_IN_SCORING = 80
"""Bytes by token and unit of width that a block needs where nothing is kept for a backward pass."""
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
    """That are learned."""
    read: int | None = None
    """Where not all of those that are read are learned."""
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
    costs = forecast(study, lock, plan, store, options)
    rows: list[tuple[str, ...]] = [("stage", "status", "steps", "tokens", "memory", "disk", "for / because")]
    for planned in reviewed:
        cost, users = costs[planned.stage], plan.uses(planned.stage)
        mark = "" if cost.exact else "~"
        steps = "" if cost.steps is None else f"{'' if study.train.max_steps else mark}{cost.steps:,}"
        tokens = "" if cost.tokens is None else f"{mark}{cost.tokens:,}"
        tokens = tokens if cost.read is None else f"{mark}{cost.read:,} read, {tokens} learned"
        uses = f"{users[0]}{f' and {len(users) - 1} more' if len(users) > 1 else ''}" if users else ""
        because = "; ".join(filter(None, (uses, planned.reason)))
        rows.append((planned.stage.name, planned.status, steps, tokens, _bytes(cost.memory), _bytes(cost.disk), because))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[6]]) for row in rows]
    new = [costs[planned.stage] for planned in reviewed if planned.status == "new"]
    reused, diverged = (sum(planned.status == status for planned in reviewed) for status in ("reused", "diverged"))
    counts = f"{reused} reused{f', {diverged} diverged' if diverged else ''}, {len(new)} new{_to_run(new, study)}"
    lines += ["", f"{len(reviewed)} stages: {counts}", *describe_tunings(plan)]
    lines += small_splits(plan, store)
    told = dict.fromkeys(
        line
        for variant in study.variants.values()
        for base in variant.bases or study.bases
        for use in variant.methods
        for line in (load_function(use.row.tells)(use.config, base, lock.bases[base]) if use.row.tells else ())
    )
    lines += told
    whole = {name: base.dequantized_from for name, base in lock.bases.items() if base.dequantized_from}
    lines += [f"base `{name}`: weights dequantized from {kind}" for name, kind in whole.items()]
    lines += [f"a run downloads: {resource.description}" for resource in pending(plan, store)]
    lines.append(f"device {lock.device}, training in {lock.compute}, measuring in {lock.evaluate}, store {store.root}")
    return "\n".join(lines)


def forecast(study: Study, lock: Lock, plan: Plan, store: Store, options: RunOptions = _DEFAULTS) -> dict[Stage, Cost]:
    """What each stage takes, whether it is new or not."""
    amounts: dict[Stage, Amount | None] = {}
    for stage in plan.stages:
        tokens = stage.inputs.get("tokens")
        if "train" in stage.config and tokens and tokens not in amounts:
            dataset = next(study.data[name] for (_, name), planned in plan.tokens.items() if planned == tokens)
            amounts[tokens] = _counted(tokens, store) or _sampled(tokens, dataset)
    here = [record for record in store.records() if _SPEED in record.metrics and record.machine == fingerprint()]
    costs: dict[Stage, Cost] = {}
    for stage in plan.stages:
        if "base" not in stage.resources or stage.kind == "tokenize":
            costs[stage] = Cost()
            continue
        directory = stage.resources["base"].directory()
        weights = count_weights(directory) if directory else None
        config = next(base.config for base in lock.bases.values() if base.resource == stage.resources["base"])
        libraries = 0 if lock.device == "cuda" else _LIBRARIES
        if "train" not in stage.config:
            costs[stage] = _without_training(stage, weights, config, libraries, study, options)
            continue
        # Tokens that a second of the same method on the same base read, in the middle of those that are known.
        speeds = [
            record.metrics[_SPEED]
            for record in here
            if record.kind == stage.kind
            and record.config["base"] == stage.config["base"]
            and record.device == stage.config["device"]
        ]
        speed = statistics.median(speeds) if speeds else None
        costs[stage] = _training(stage, weights, config, libraries, study, options, amounts[stage.inputs["tokens"]], speed)
    return costs


def _to_run(costs: Sequence[Cost], study: Study) -> str:
    parts = []
    steps = [cost.steps for cost in costs if cost.steps is not None]
    if steps:
        parts.append(f"{'at most ' if study.train.early_stopping else ''}{sum(steps):,} optimizer steps")
    trainings = [cost for cost in costs if cost.tokens is not None]
    if trainings:
        learned = sum(cost.tokens or 0 for cost in trainings)
        read = sum(cost.read or cost.tokens or 0 for cost in trainings)
        parts.append(f"{read:,} tokens to train on{'' if read == learned else f', {learned:,} of them learned'}")
        seconds = [cost.seconds for cost in trainings if cost.seconds is not None]
        whole = "training" if len(seconds) == len(trainings) else f"{len(seconds)} of {len(trainings)} trainings"
        time = f"{whole} about {_duration(sum(seconds))} by earlier ones"
        parts.append(time if seconds else "no estimate of the time yet")
    memory, disk = [cost.memory for cost in costs if cost.memory], [cost.disk for cost in costs if cost.disk]
    if memory:
        parts.append(f"peak memory about {_bytes(max(memory))}")
    if disk:
        parts.append(f"disk about {_bytes(sum(disk))}")
    return f"; to run: {', '.join(parts)}" if parts else ""


def _without_training(
    stage: Stage, weights: int | None, config: Mapping[str, Any], libraries: float, study: Study, options: RunOptions
) -> Cost:
    """Of an evaluation, or a method that does not train."""
    row = evaluations().get(stage.kind.removeprefix("evaluate."))
    used = 0.0
    if "tokens" in stage.inputs or (row and row.scores_texts):
        # A block at a time: nothing is kept for a backward pass.
        used = _pass(with_num_blocks(config, 1), options.forward_tokens, study.train.max_length, _IN_SCORING)
        if calibration := stage.config.get("method", {}).get("calibration"):
            # The hidden states of a choice of blocks: of all its text, or as much as it takes at a time.
            used += float(min(_STATES, 4 * calibration["tokens"] * width(config) * ((num_blocks(config) or 1) + 1)))
    memory = None if weights is None else libraries + max(_LOADING * weights, 4 * weights + used)
    return Cost(memory=memory, disk=4 * weights if weights and "method" in stage.config else None)


def _training(
    stage: Stage,
    weights: int | None,
    config: Mapping[str, Any],
    libraries: float,
    study: Study,
    options: RunOptions,
    amount: Amount | None,
    speed: float | None,
) -> Cost:
    batch, steps = study.train.batch_size, study.train.max_steps
    epochs = study.train.num_epochs or 0.0
    if amount is not None:
        per_epoch = max(1, math.ceil(amount.windows / batch))
        epochs, steps = (steps / per_epoch, steps) if steps else (epochs, per_epoch * (study.train.num_epochs or 0))
    tokens = None if amount is None else round(amount.tokens * epochs)
    seconds = (amount.read or amount.tokens) * epochs / speed if amount and speed else None
    exact = amount is None or amount.exact
    cost = Cost(steps, tokens, round(amount.read * epochs) if amount and amount.read else None, exact, seconds=seconds)
    if weights is None:
        return cost
    blocks, rank = num_blocks(config) or 1, stage.config["method"].get("r")
    # About: the targets of an adapter are known once the model is built.
    trained = weights if rank is None else 16 * rank * width(config) * blocks
    row = methods()[stage.kind]

    def kept(in_pass: int) -> float:
        """Bytes for the backward pass: of every block, or of one and the input of each where the rest is computed again."""
        whole = with_num_blocks(config, 1) if options.recompute else config
        inputs = float(4 * in_pass * width(config) * blocks) if options.recompute else 0.0
        return _pass(whole, in_pass, study.train.max_length, row.activations) + inputs

    in_pass = min(options.forward_tokens, round(batch * (study.train.max_length if amount is None else amount.length)))
    states = kept(in_pass)
    if options.memory is not None:
        # As `paretune.model.memory.fitting_tokens` does it: 12 bytes of each trained weight beside the 4 on disk.
        least = kept(min(_SHORTEST, in_pass))
        states = min(states, max(least, (options.memory - 12 * trained) / _TRANSIENT))
    needed = 16 * trained + states
    memory = needed if rank is None else max(_LOADING * weights, 4 * weights + needed)
    return replace(cost, memory=libraries + memory, disk=4 * trained)


def _pass(config: Mapping[str, Any], tokens: int, length: int, activations: int) -> float:
    """Bytes that a pass over `tokens` in rows of `length` keeps of every block, and of a chunk of logits."""
    by_block = tokens * (width(config) * activations + num_heads(config) * min(length, tokens) * _ATTENTION)
    return float((num_blocks(config) or 1) * by_block + _HEAD * config.get("vocab_size", 0))


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
    role = "source" if "source" in dataset.sources else "source.train"
    source, resource = dataset.sources[role], tokens.inputs["data"].resources[role]
    if source.hub:
        return None
    whole = source.resolved_format not in _LONG
    read = load_function("paretune.data.sources:iterate_rows")(source, str(resource))
    rows = list(itertools.islice(read, None if whole else _ROWS))
    num_records = float(len(rows))
    if not whole and len(rows) == _ROWS:  # how many the file holds, by its size and that of its first rows
        if source.resolved_format == "parquet":
            import pyarrow.parquet

            num_records = float(pyarrow.parquet.ParquetFile(resource.path).metadata.num_rows)
        else:
            csv = source.resolved_format == "csv"
            texts = (",".join(row.values.values()) if csv else json.dumps(row.values, ensure_ascii=False) for row in rows)
            num_records *= Path(str(resource)).stat().st_size / sum(len(text.encode()) + 1 for text in texts)
    chosen = rows[:: math.ceil(len(rows) / _SAMPLE)]
    share = num_records / len(chosen) * (1 if role == "source.train" else dataset.split.train)
    base, length, rule = tokens.resources["base"], tokens.config["max_length"], tokens.config["too_long"]
    parse, record_of = (load_function(f"paretune.data.records:{name}") for name in ("parse_form", "read_record"))
    form = parse(dataset, "data")
    records = [record_of(form, row) for row in chosen]
    if dataset.completes:
        return _of_branches(records, base, length, rule, share)
    counts = _count_tokens([record.text for record in records if record.text.strip()], base)
    if rule == "skip":
        counts = [count for count in counts if count + 2 <= length]
    windows = sum(math.ceil((count + 1) / (length - 1)) for count in counts)
    return Amount(windows * share, sum(count + 1 for count in counts) * share, exact=False)


def _of_branches(records: Sequence[Any], base: Resource, length: int, rule: str, share: float) -> Amount:
    """Of records with prompts and completions; prefix and end-of-text are a token each."""
    branches = [(record.context + branch.prompt, branch.completion) for record in records for branch in record.branches]
    before, learned = (_count_tokens([branch[side] for branch in branches], base) for side in (0, 1))
    kept = list(zip(before, learned, strict=True))
    if rule != "error":
        # What `cut` shortens fits then; its few examples that no context would fit beside are not told apart here.
        kept = [(min(first, length - 2 - second) if rule == "cut" else first, second) for first, second in kept]
        kept = [(first, second) for first, second in kept if 0 <= first <= length - 2 - second]
    tokens = sum(second + 1 for _, second in kept) * share
    return Amount(len(kept) * share, tokens, exact=False, read=tokens + sum(first + 1 for first, _ in kept) * share)


def _count_tokens(texts: list[str], base: Resource) -> list[int]:
    directory = base.directory()
    definition = directory / "tokenizer.json" if directory else None
    if definition is None or not definition.is_file():
        return [math.ceil(len(text.encode()) * _TOKENS_PER_BYTE) for text in texts]
    encodings = read_tokenizer(definition).encode_batch(texts, add_special_tokens=False)
    return [len(encoding.ids) for encoding in encodings]


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{math.ceil(seconds)} s"


def _bytes(size: float | None) -> str:
    if not size:
        return ""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"

"""What a run would take, before it runs: optimizer steps, tokens, peak memory and disk, by arithmetic on configs and files.

Steps and tokens are exact once the tokenize stage has run, and estimated from a sample of the data (`~`) before. Memory and
disk are always estimates: weights, gradients and moments are counted; activations and the libraries' memory are rules of thumb.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import psutil

from paretune.pipeline.config_json import num_blocks, num_heads, vocabulary_size, width, with_num_blocks
from paretune.pipeline.duration import Rates, Work, durations
from paretune.pipeline.lock import Lock
from paretune.pipeline.plan import TEACHER, Plan, first_tokens
from paretune.pipeline.resources import count_weights
from paretune.pipeline.sample import Amount, Sample, amount_of, counted, sample_of
from paretune.pipeline.stage import RunOptions, Stage
from paretune.pipeline.stage_configs import TeacherConfig
from paretune.pipeline.store import Store
from paretune.study.base import FROM_KEY
from paretune.study.registry import evaluations, methods
from paretune.study.study import Study

_LIBRARIES = 430e6
"""Resident memory of a worker with torch and transformers imported; on CUDA only the device's memory counts."""
_LOADING = 8
"""Bytes of a weight while it is loaded: it is in memory as in the file and as it is used."""
_TRAINING = 250e6
"""Of a training on a CPU besides: compiled kernels, the optimizer's code, memory that is kept for the next step."""
_ATTENTION = 8
"""Bytes by token, head and position of a row, of one block at a time: scores are made again in the backward pass."""
_SHARE = 0.8
"""Of the memory that is free, which a run keeps to: `paretune.model.memory`."""
_IN_SCORING = 80
"""Bytes by token and unit of width that a block needs where nothing is kept for a backward pass."""
_STATES = 512 * 2**20
"""Hidden states that a choice of blocks by loss holds: `paretune.variants.choose.STATE_BYTES`."""
_HEAD = 16 * 1024
"""Bytes by word of the vocabulary: a chunk of logits with its gradient."""
_SHORTEST = 64
"""Tokens of a pass at least: `paretune.data.trees.ROUND_TO`."""
_TRANSIENT = 1.5
"""What a pass takes beside what it keeps: `paretune.model.memory`."""
_DEFAULTS = RunOptions()
_NOTHING: Mapping[str, Rates] = {}


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
    per_epoch: float | None = None
    """Examples, or windows, of the training split."""
    seconds: float | None = None
    at_most: str = ""
    """Why it may take less."""


def forecast(
    study: Study, lock: Lock, plan: Plan, store: Store, options: RunOptions = _DEFAULTS, rates: Mapping[str, Rates] = _NOTHING
) -> dict[Stage, Cost]:
    """What each stage takes, whether it is new or not; time where `rates` has the base."""
    amounts: dict[str, Amount] = {}
    samples: dict[str, Sample] = {}
    data: dict[str, Sample] = {}
    trainings = (stage for stage in plan.stages if "train" in stage.config and "tokens" in stage.inputs)
    trained_on = {first_tokens(stage.inputs["tokens"]) for stage in trainings}
    for (_, name), tokens in plan.tokens.items():
        asked = rates or (tokens in trained_on and not store.find(tokens))
        sample = sample_of(tokens, study.data[name]) if asked else None
        if tokens in trained_on and (amount := amount_of(tokens, sample, store)):
            amounts[tokens.key] = amount
        if sample:
            samples[tokens.key] = data[tokens.inputs["data"].key] = counted(sample, tokens, store)
    expected = durations(Work(lock, options, rates, samples, amounts, data), plan, store) if rates else {}
    costs: dict[Stage, Cost] = {}
    for stage in plan.stages:
        cost = Cost()
        if "base" in stage.resources and stage.kind != "tokenize":
            directory = stage.resources["base"].directory()
            weights = count_weights(directory) if directory else None
            config = next(base.config for base in lock.bases.values() if base.resource == stage.resources["base"])
            libraries = 0 if lock.device == "cuda" else _LIBRARIES
            if "train" in stage.config:
                amount = amounts.get(first_tokens(stage.inputs["tokens"]).key)
                cost = _training(stage, weights, config, libraries, study, options, amount)
            else:
                cost = _without_training(stage, weights, config, libraries, study, options)
            if stage.kind == TEACHER and (amount := amounts.get(stage.inputs["tokens"].key)):
                teacher = TeacherConfig.model_validate(stage.config, context=FROM_KEY)
                cost = replace(cost, disk=amount.tokens * teacher.bytes_of_target(vocabulary_size(config) or 0))
        duration = expected.get(stage)
        costs[stage] = replace(cost, seconds=duration.seconds, at_most=duration.at_most) if duration else cost
    return costs


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
    method = methods().get(stage.kind)
    return Cost(memory=memory, disk=4 * weights if weights and method and method.writes_weights else None)


def _training(
    stage: Stage,
    weights: int | None,
    config: Mapping[str, Any],
    libraries: float,
    study: Study,
    options: RunOptions,
    amount: Amount | None,
) -> Cost:
    heal = stage.config["method"].get("heal") or {}
    method = next((heal[way] for way in ("lora", "last_blocks", "full") if heal.get(way)), stage.config["method"])
    batch, steps = study.train.batch_size, heal.get("max_steps") or study.train.max_steps
    epochs = study.train.num_epochs or 0.0
    if amount is not None:
        per_epoch = max(1, math.ceil(amount.windows / batch))
        epochs, steps = (steps / per_epoch, steps) if steps else (epochs, per_epoch * (study.train.num_epochs or 0))
    tokens = None if amount is None else round(amount.tokens * epochs)
    exact = amount is None or amount.exact
    cost = Cost(
        steps,
        tokens,
        round(amount.read * epochs) if amount and amount.read else None,
        exact,
        per_epoch=amount.windows if amount else None,
    )
    if weights is None:
        return cost
    row, blocks = methods()[stage.kind], num_blocks(config) or 1
    rank, count = (method.get("lora") or method).get("r"), min(method.get("count") or blocks, blocks)
    # About: the targets of an adapter, and what stands outside of the blocks, are known once the model is built.
    trained = weights * count // blocks if rank is None else 16 * rank * width(config) * blocks
    config = with_num_blocks(config, count)  # nothing is kept of those below the first that is trained

    def kept(in_pass: int) -> float:
        """Bytes for the backward pass: of every block, or of one and the input of each where the rest is computed again."""
        whole = with_num_blocks(config, 1) if options.recompute else config
        inputs = float(4 * in_pass * width(config) * count) if options.recompute else 0.0
        return _pass(whole, in_pass, study.train.max_length, row.activations) + inputs

    longest = study.train.max_length
    # Without libraries it is a GPU's memory.
    in_row = max(options.row_tokens, longest) if libraries else options.forward_tokens
    in_pass = min(options.forward_tokens, in_row, round(batch * (longest if amount is None else amount.length)))
    states = kept(in_pass)
    budget = options.memory
    if budget is None and libraries:  # of a GPU nothing is known before a run
        budget = int(_SHARE * psutil.virtual_memory().available / options.workers)
    if budget is not None:
        # As `paretune.model.memory.fitting_tokens` does it: 12 bytes of each trained weight beside the 4 on disk.
        least = kept(min(_SHORTEST, in_pass))
        states = min(states, max(least, (budget - 12 * trained) / _TRANSIENT))
    needed = 16 * trained + states + (_TRAINING if libraries else 0)
    memory = needed if trained == weights else max(_LOADING * weights, 4 * weights + needed)
    return replace(cost, memory=libraries + memory, disk=4 * (weights if rank is None or heal else trained))


def _pass(config: Mapping[str, Any], tokens: int, length: int, activations: int) -> float:
    """Bytes that a pass over `tokens` in rows of `length` keeps of every block, and of a chunk of logits."""
    of_blocks = (num_blocks(config) or 1) * tokens * width(config) * activations
    return float(
        of_blocks + tokens * num_heads(config) * min(length, tokens) * _ATTENTION + _HEAD * config.get("vocab_size", 0)
    )


def duration_words(seconds: float) -> str:
    """`40 s`, `3 min`, `2.5 h`."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{seconds < 10 * length:d}f} {unit}"
    return f"{math.ceil(seconds)} s"


def size_words(size: float | None) -> str:
    """`430 MB`, `2.5 GB`; empty for nothing."""
    if not size:
        return ""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"

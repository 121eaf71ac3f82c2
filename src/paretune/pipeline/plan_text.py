"""The plan as a person reads it: every stage as new or reused, with its costs, and what else is worth knowing before a run."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from paretune.pipeline.duration import Rates
from paretune.pipeline.forecast import Cost, duration_words, forecast, size_words
from paretune.pipeline.lock import Lock
from paretune.pipeline.plan import Plan, pending
from paretune.pipeline.preflight import Setting
from paretune.pipeline.results import describe_documents, small_splits
from paretune.pipeline.stage import RunOptions, Stage
from paretune.pipeline.store import Store
from paretune.pipeline.tuning import describe_tunings
from paretune.pipeline.why import review
from paretune.study.registry import load_function
from paretune.study.study import Study

_SLOW_SEARCH = 600
"""Seconds of a search for blocks that a plan warns of."""
_FAMILIES = {"train": "training", "distill": "training", "evaluate": "evaluations", "quantize": "quantizing"} | dict.fromkeys(
    ("prune", "skip", "exit", "shrink"), "pruning"
)
"""What the time of a plan is counted as, by the first word of a kind of stage; all else is data."""
_DEFAULTS = RunOptions()
_NOTHING: Mapping[str, Rates] = {}


def describe_plan(
    study: Study,
    lock: Lock,
    plan: Plan,
    store: Store,
    options: RunOptions = _DEFAULTS,
    rates: Mapping[str, Rates] = _NOTHING,
    folder: Path | None = None,
) -> str:
    """The plan as a table: each stage with status, reason, users and costs, and what a run would add. Paths of
    evaluations start at `folder`; without it nothing is told of them.

    `rates` are those of `paretune.pipeline.rates.measure_rates`; without them nothing is said of time.
    """
    reviewed = review(plan, store)
    costs = forecast(study, lock, plan, store, options, rates)
    rows: list[tuple[str, ...]] = [("stage", "status", "time", "steps", "tokens", "memory", "disk", "for / because")]
    for planned in reviewed:
        cost, users = costs[planned.stage], plan.uses(planned.stage)
        mark = "" if cost.exact else "~"
        steps = "" if cost.steps is None else f"{'' if study.train.max_steps else mark}{cost.steps:,}"
        tokens = "" if cost.tokens is None else f"{mark}{cost.tokens:,}"
        tokens = tokens if cost.read is None else f"{mark}{cost.read:,} read, {tokens} learned"
        uses = f"{users[0]}{f' and {len(users) - 1} more' if len(users) > 1 else ''}" if users else ""
        because = "; ".join(filter(None, (uses, planned.reason)))
        time = "" if cost.seconds is None else f"{'<' if cost.at_most else '~'}{duration_words(cost.seconds)}"
        memory, disk = size_words(cost.memory), size_words(cost.disk)
        rows.append((planned.stage.name, planned.status, time, steps, tokens, memory, disk, because))
    widths = [max(len(row[column]) for row in rows) for column in range(7)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[7]]) for row in rows]
    new = [costs[planned.stage] for planned in reviewed if planned.status == "new"]
    reused, diverged = (sum(planned.status == status for planned in reviewed) for status in ("reused", "diverged"))
    counts = f"{reused} reused{f', {diverged} diverged' if diverged else ''}, {len(new)} new{_to_run(new, study)}"
    lines += ["", f"{len(reviewed)} stages: {counts}", *describe_tunings(plan)]
    free = shutil.disk_usage(next(folder for folder in (store.root, *store.root.absolute().parents) if folder.exists())).free
    if (needed := sum(cost.disk or 0 for cost in new)) > free:
        lines.append(f"warning: the store needs about {size_words(needed)}, and its disk has {size_words(free)} free")
    if rates:
        lines += _time({planned.stage: costs[planned.stage] for planned in reviewed if planned.status == "new"})
    lines += [*describe_documents(study, plan, store), *small_splits(plan, store)]
    one_step = {cost.per_epoch for cost in new if cost.per_epoch is not None and cost.per_epoch < study.train.batch_size}
    if one_step:
        lines.append(
            f"train.batch_size: a step of {study.train.batch_size:,} holds all of about {max(one_step):,.0f} examples: an "
            "epoch is one step"
        )
    told = dict.fromkeys(
        line
        for variant in study.variants.values()
        for base in variant.bases or study.bases
        for use in variant.methods
        for line in (load_function(use.row.tells)(use.config, base, lock.bases[base]) if use.row.tells else ())
    )
    lines += told
    for name, use in study.evaluate.items():
        if use.row.tells and folder is not None:
            lines += load_function(use.row.tells)(use.config, Setting(f"evaluate.{name}", study, lock, folder))
    whole = {name: base.dequantized_from for name, base in lock.bases.items() if base.dequantized_from}
    lines += [f"base `{name}`: weights dequantized from {kind}" for name, kind in whole.items()]
    lines += [f"a run downloads: {resource.description}" for resource in pending(plan, store)]
    lines.append(f"device {lock.device}, training in {lock.compute}, measuring in {lock.evaluate}, store {store.root}")
    return "\n".join(lines)


def _time(new: Mapping[Stage, Cost]) -> list[str]:
    """What the stages that are to run take in all, what is counted as far as it may go, what is not known, and what is slow."""
    seconds: dict[str, float] = {}
    for stage, cost in new.items():
        family = stage.kind.partition(".")[0]
        named = _FAMILIES.get(family, "data")
        seconds[named] = seconds.get(named, 0.0) + (cost.seconds or 0.0)
    if not sum(seconds.values()):
        return []
    bounds = dict.fromkeys(cost.at_most for cost in new.values() if cost.at_most)
    unknown = dict.fromkeys(stage.kind for stage, cost in new.items() if cost.seconds is None and stage.runs)
    parts = ", ".join(f"{name} {duration_words(each)}" for name, each in seconds.items() if each)
    less = f"; less where {', '.join(bounds)}" if bounds else ""
    without = f"; without {', '.join(unknown)}, whose time is not known" if unknown else ""
    lines = [
        f"time: about {duration_words(sum(seconds.values()))} ({parts}), one stage at a time with nothing beside{less}{without}"
    ]
    for stage, cost in new.items():
        method = stage.config.get("method", {})
        if stage.kind in ("prune.blocks", "skip.blocks") and method.get("calibration") and (cost.seconds or 0) > _SLOW_SEARCH:
            fewer = method["calibration"]["tokens"] // 4
            ways = [f"`calibration: {{tokens: {fewer}}}`", *(["`count: 1`"] if (method.get("count") or 2) > 1 else [])]
            ways += ["`budget: {passes: 64}`"] if cost.at_most else []
            ways += ["`choose: influence`"] if method["choose"] == "loss" else []
            lines.append(
                f"warning: {stage.name}: choosing the blocks takes about {duration_words(cost.seconds or 0)}; "
                f"shorter with {', '.join(ways)}"
            )
    return lines


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
    memory, disk = [cost.memory for cost in costs if cost.memory], [cost.disk for cost in costs if cost.disk]
    if memory:
        parts.append(f"peak memory about {size_words(max(memory))}")
    if disk:
        parts.append(f"disk about {size_words(sum(disk))}")
    return f"; to run: {', '.join(parts)}" if parts else ""

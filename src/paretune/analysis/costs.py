"""What variants cost: sizes, training time, memory, latency, by seed, and ratios of them between variants.

Times and memory belong to a machine and the options of a run: a ratio across different ones is refused. A variant that trains
more than once is charged for all of it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paretune.analysis.scores import Entrant, Seed, entrant_of
from paretune.pipeline.records import Cell, Record, Results, Trial, Tuning
from paretune.study.registry import metric_of

if TYPE_CHECKING:
    from paretune.study.study import Study

_SIZES = ("parameters", "model_bytes", "adapter_bytes")
_SUMMED = ("train_seconds", "wall_seconds", "train_tokens", "train_tokens_read")
DISTURBED = 1.15
"""Ratio of times that should be equal from which the machine counts as busy with something else."""
_OPTIONS = ("workers", "accumulate", "forward_tokens", "pack", "recompute", "memory")
"""Of a run: what times and memory depend on."""
_BEYOND = 1.5
"""How many times as far from equal as runs that should be equal two times have to be to count as different: the noise is the
range of a few measurements, and the range of others is easily somewhat wider."""


@dataclass(frozen=True)
class Cost:
    """One figure of cost of one variant."""

    by_seed: Mapping[Seed, float]
    machines: frozenset[str] = frozenset()
    """Fingerprints that it was measured on and options that it was run under; empty for what depends on neither."""
    disturbance: float | None = None
    """Of a training's time the largest ratio between the speeds of parts of one training; None where that is unknown."""
    waited: float | None = None
    """Wall over processor time, which is 1 where the machine does nothing else; of a training's time as a multiple of the least
    under the same conditions. None where that is unknown."""

    @property
    def mean(self) -> float:
        return sum(self.by_seed.values()) / len(self.by_seed)

    @property
    def low(self) -> float:
        return min(self.by_seed.values())

    @property
    def high(self) -> float:
        return max(self.by_seed.values())


@dataclass(frozen=True)
class Ratio:
    """A variant's cost over a reference's."""

    value: float
    clear: bool
    """Beyond the noise, and the seeds of the two do not overlap; for sizes: not equal."""
    of_one_network: bool = False
    """Of its inference: equal whatever was measured."""


Costs = Mapping[Entrant, Mapping[str, Cost]]


def read_costs(
    results: Results, disturbances: Mapping[tuple[Entrant, Seed], float | None] | None = None
) -> dict[Entrant, dict[str, Cost]]:
    """All costs by seed; `disturbances` are ratios between the speeds of parts of each training (`training.disturbance`)."""
    latencies = timed_evaluations(results.study)
    of_training = _waits(results)
    by_entrant: dict[Entrant, dict[str, Cost]] = {}
    for cell in results.cells:
        entrant = entrant_of(cell)
        costs = by_entrant.setdefault(entrant, {})
        waited = _wall_by_cpu(cell, latencies)
        held_up = max((of_training[record.key] for record in cell.trained if record.key in of_training), default=None)
        for name, (value, machine) in _cell_costs(cell, latencies).items():
            before = costs.get(name, Cost({}))
            machines = before.machines if machine is None else before.machines | {machine}
            own = (
                ((disturbances or {}).get((entrant, cell.seed)), held_up)
                if _is_training_time(name)
                else (None, waited.get(name))
            )
            pairs = zip((before.disturbance, before.waited), own, strict=True)
            parts, waits = (max((ratio for ratio in pair if ratio is not None), default=None) for pair in pairs)
            costs[name] = Cost({**before.by_seed, cell.seed: value}, machines, parts, waits)
    for tuning in results.tunings:
        if tuning.chosen is not None:
            seconds, steps, machines = tuning_cost(tuning)
            costs = by_entrant.setdefault(Entrant(tuning.base, tuning.dataset, tuning.variant), {})
            costs |= {
                "tuning_seconds": Cost({tuning.seed: seconds}, machines),
                "tuning_steps": Cost({tuning.seed: float(steps)}),
            }
    return by_entrant


def timed_evaluations(study: "Study") -> list[str]:
    """Names of the evaluations that measure costs."""
    return [name for name, use in study.evaluate.items() if use.row.measures_time]


def cost_name(metric: str, evaluation: str, timed: Sequence[str]) -> str:
    """What a cost of an evaluation is called: by its metric alone where only one of `timed` measures costs."""
    return metric if len(timed) == 1 else f"{evaluation}.{metric}"


def tuning_cost(tuning: Tuning) -> tuple[float, int, frozenset[str]]:
    """Seconds and optimizer steps of the trials that were not chosen, each training once, and the machines that they ran on."""
    chosen = {record.key for record in tuning.trials[tuning.chosen].methods} if tuning.chosen is not None else set()
    trained = {
        record.key: record
        for trial in tuning.trials
        for record in trial.methods
        if record.key not in chosen and "train_seconds" in record.metrics
    }
    diverged = [trial.divergence for trial in tuning.trials if trial.divergence]
    seconds = sum(record.metrics["train_seconds"] for record in trained.values()) + sum(run.seconds for run in diverged)
    steps = sum(record.metrics["steps"] for record in trained.values()) + sum(run.steps for run in diverged)
    return seconds, steps, frozenset(_conditions(record) for record in trained.values())


def trial_cost(trial: Trial) -> tuple[float, int]:
    """Seconds and optimizer steps of one trial, diverged or not."""
    if trial.divergence:
        return trial.divergence.seconds, trial.divergence.steps
    trained = [record.metrics for record in trial.methods if "train_seconds" in record.metrics]
    return sum(metrics["train_seconds"] for metrics in trained), sum(metrics["steps"] for metrics in trained)


def ratio(costs: Costs, name: str, variant: Entrant, reference: Entrant) -> Ratio | None:
    """None where either is missing, or they were measured on different machines or under different options."""
    cost, base = costs[variant].get(name), costs[reference].get(name)
    if cost is None or base is None or base.mean == 0 or cost.machines != base.machines or len(cost.machines) > 1:
        return None
    value = cost.mean / base.mean
    if not cost.machines:
        return Ratio(value, clear=cost.mean != base.mean)
    apart = cost.low > base.high or cost.high < base.low
    if metric_of(name).unit == "ms" and same_network(costs, variant, reference):
        return Ratio(value, clear=False, of_one_network=True)
    noise = noise_of(costs, name, reference)
    if noise is None and _is_training_time(name):
        return Ratio(value, clear=False)
    noise = noise or 1.0
    # On a busy machine the disturbance may have met the one and spared the other, and be larger than a few runs show: without
    # one of its thirty blocks a model once was 2.26 times as fast where equal runs differed by 1.39.
    least = max(metric_of(name).noise, _BEYOND * (noise - 1), noise**3 - 1 if noise > DISTURBED else 0.0)
    return Ratio(value, clear=apart and max(value, 1 / value) - 1 > least)


def same_network(costs: Costs, variant: Entrant, reference: Entrant) -> bool:
    """Whether two variants of one base export weights of the same size: after the merge LoRA, full and base are one network."""
    sizes = [costs[entrant].get("model_bytes") for entrant in (variant, reference)]
    return variant[:2] == reference[:2] and sizes[0] is not None and sizes[1] is not None and sizes[0].mean == sizes[1].mean


def noise_of(costs: Costs, name: str, entrant: Entrant) -> float | None:
    """The largest ratio between two measurements beside `entrant` (same base and dataset) that should have been equal.

    These are the seeds of one variant; for latency, variants whose exported models have the same size; for training of one
    seed, parts of one run, which scatter more than whole ones; and wall and processor time, as seeds that ran side by side
    were held up alike. A busy machine shows here, and a ratio of variants that is not clearly larger than this says nothing.
    None where nothing was measured twice.
    """
    runs: dict[object, list[Cost]] = {}
    ratios, parts, waits = list[float](), list[float](), list[float]()
    for other, known in costs.items():
        if other[:2] == entrant[:2] and name in known:
            size = known["model_bytes"].mean if metric_of(name).unit == "ms" and "model_bytes" in known else other
            runs.setdefault((size, known[name].machines), []).append(known[name])
            parts += filter(None, [known[name].disturbance])
            waits += filter(None, [known[name].waited])
    for equal in runs.values():
        if sum(len(cost.by_seed) for cost in equal) > 1:
            ratios.append(max(cost.high for cost in equal) / min(cost.low for cost in equal))
    of_latency = metric_of(name).unit == "ms"
    measured = ratios if of_latency else ratios or parts
    return max(measured + waits, default=None) if measured or of_latency else None


def fingerprint(record: Record) -> str:
    return json.dumps(record.machine, sort_keys=True, ensure_ascii=False)


def options_of(record: Record) -> dict[str, Any]:
    """What a stage was run under that its time and memory depend on; those of a measurement on workers and threads alone."""
    threads = record.metrics.get("threads")
    if "train_seconds" not in record.metrics:
        return {"workers": record.options.get("workers"), "threads": threads}
    return {name: record.options.get(name) for name in _OPTIONS} | {"threads": ", then ".join(map(str, threads or [])) or None}


def _conditions(record: Record) -> str:
    options = {name: value for name, value in options_of(record).items() if value is not None}
    return fingerprint(record) + (f" {json.dumps(options)}" if options else "")


def _cell_costs(cell: Cell, latencies: Sequence[str]) -> dict[str, tuple[float, str | None]]:
    """By name a cost of one cell, and the machine that it depends on."""
    costs: dict[str, tuple[float, str | None]] = {}
    if "size" in cell.evaluations:
        metrics = cell.evaluations["size"].metrics
        costs |= {name: (float(metrics[name]), None) for name in _SIZES if name in metrics}
    if trained := cell.trained:
        each = [_numbers(record.metrics) for record in trained]
        summed = {name: sum(metrics.get(name, 0.0) for metrics in each) for name in _SUMMED}
        summed["train_tokens_read"] = summed["train_tokens_read"] or summed["train_tokens"]
        summed["trainable_parameters"] = each[-1]["trainable_parameters"]
        summed["peak_memory_bytes"] = max(metrics.get("peak_memory_bytes", 0.0) for metrics in each)
        if summed["train_seconds"] > 0:
            # Each example with its context, once: what is learned is only part of that where a dataset has tasks.
            summed["train_tokens_per_second"] = summed["train_tokens_read"] / summed["train_seconds"]
        machine = " and ".join(sorted({_conditions(record) for record in trained}))
        costs |= {name: (value, machine if metric_of(name).of_machine else None) for name, value in summed.items()}
    for name in latencies:
        if (record := cell.evaluations.get(name)) is not None:
            figures = {metric: value for metric, value in _numbers(record.metrics).items() if metric_of(metric).cost}
            costs |= {cost_name(metric, name, latencies): (value, _conditions(record)) for metric, value in figures.items()}
    return costs


def _wall_by_cpu(cell: Cell, latencies: Sequence[str]) -> dict[str, float]:
    """By name of a latency, the wall time over what its thread had a core of it."""
    measured = [(name, cell.evaluations[name].metrics) for name in latencies if name in cell.evaluations]
    return {
        cost_name(metric, name, latencies): metrics[metric] / metrics[f"cpu_{metric}"]
        for name, metrics in measured
        for metric in metrics
        if metrics.get(f"cpu_{metric}")
    }


def _waits(results: Results) -> dict[str, float]:
    """By key of a training on a CPU its wall time over its processor time, as a multiple of the least of those under the same
    conditions: above 1 it has waited for cores that other work had."""
    by_conditions: dict[str, dict[str, float]] = {}
    for record in (record for cell in results.cells for record in cell.trained):
        had = record.metrics.get("train_cpu_seconds")
        if had and record.config.get("device", "cpu") == "cpu":
            by_conditions.setdefault(_conditions(record), {})[record.key] = record.metrics["train_seconds"] / had
    return {key: ratio / min(alike.values()) for alike in by_conditions.values() for key, ratio in alike.items()}


def _is_training_time(name: str) -> bool:
    return name == "train_tokens_per_second" or (metric_of(name).of_machine and metric_of(name).unit == "seconds")


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value) for name, value in metrics.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }

"""Where a study departs from "the same for every variant": what was left out, and trainings that went otherwise than others."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from paretune.analysis.costs import fingerprint, options_of, timed_evaluations
from paretune.analysis.findings import Fact, Findings, Group
from paretune.analysis.scores import Entrant, Seed, entrant_of
from paretune.pipeline.records import Cell
from paretune.study.data import SPLITS
from paretune.study.tasks import RESPONSE

_BUDGET = ("train_tokens", "train_tokens_read", "epochs_done", "steps", "precision")
"""What is the same for all variants of a base on a dataset, over all trainings of a variant."""
_CHANGED = ("cut_examples", "latest_examples", "lossy_examples", "control_examples")
_OF_RUNS = ("stopped_early", "out_of_memory", "flex_failure", "slow_ways", "repeated_steps", "untied_parameters")
"""Metrics of a training that went otherwise than those of other variants."""


@dataclass(frozen=True)
class RecordsLeftOut(Fact):
    dataset: str
    counts: tuple[tuple[str, str, int], ...]
    """A metric of the data's record, the task where it is of one, and how many."""
    completes: bool
    """Whether records are completions, and not text."""
    drops_empty: bool
    """Whether a record without a field that it needs counts as empty."""


@dataclass(frozen=True)
class LeakageAllowed(Fact):
    dataset: str
    num_pairs: int
    documents: tuple[tuple[str, int], ...]
    """By split, how many also stand in training text."""
    items: tuple[tuple[str, int], ...]
    """By evaluation."""


@dataclass(frozen=True)
class ExamplesChanged(Fact):
    """That do not come out of the tokenizer of a base as they went in."""

    base: str
    dataset: str
    metric: str
    """Of the record of the tokens: `cut_examples` and `latest_examples` to fit, `lossy_examples` that are not given back
    exactly, `control_examples` with control tokens as text, or `unwritten_FIELD`, which the chat template leaves out."""
    num_examples: int
    max_length: int
    """In tokens."""
    control_tokens: str | None = None
    """The dataset's rule."""
    too_long: str = ""
    """The dataset's rule."""
    num_turns: int = 0
    """Messages that `latest_examples` are without."""


@dataclass(frozen=True)
class ExamplesLeftOut(Fact):
    """Too long to be trained or scored on."""

    base: str
    dataset: str
    num_examples: int
    max_length: int
    """In tokens."""
    total: int
    """0 where it is unknown."""
    by_split: tuple[tuple[str, int], ...]
    rule: str
    """The dataset's `too_long`."""

    @property
    def share(self) -> float:
        return self.num_examples / self.total if self.total else 1.0


@dataclass(frozen=True)
class QuestionsTooLong(Fact):
    """Left out, or cut to fit, for what a base reads; alike for all its variants unless some are named."""

    base: str
    evaluation: str
    num_left_out: int
    num_cut: int
    total: int
    rule: str
    """The evaluation's `too_long`."""
    variants: tuple[str, ...] = ()


@dataclass(frozen=True)
class ComparedOnShared(Fact):
    """Variants of two bases were not scored on the same examples, as not the same were too long."""

    dataset: str
    task: str
    split: str
    num_shared: int
    """What they are compared on."""
    of_base: tuple[tuple[str, int], ...]
    """What the means of each are over."""


@dataclass(frozen=True)
class Run:
    """The training of a variant with one seed."""

    entrant: Entrant
    seed: Seed
    """None where there is only one."""
    alone: bool
    """Whether the study has one base and one dataset, so that the variant's name says which it is."""


@dataclass(frozen=True)
class RunDeviates(Fact):
    """It stopped early, ran out of memory, went on without FlexAttention or in a slower way, or was interrupted."""

    run: Run
    metric: str
    """That says so."""
    metrics: Mapping[str, Any]
    """Of the record of the training."""


@dataclass(frozen=True)
class BestWeightsKept(Fact):
    runs: tuple[tuple[Run, int, int], ...]
    """The step that was kept, of how many."""


@dataclass(frozen=True)
class BudgetUnequal(Fact):
    """Trainings of one base on one dataset that should have spent the same."""

    where: tuple[str, str] | None
    """Base and dataset; None where the study has one of each."""
    metric: str
    values: tuple[tuple[float | tuple[str, ...], tuple[str, ...]], ...]
    """A number or words, and the variants that have it."""


@dataclass(frozen=True)
class SeveralMachines(Fact):
    where: tuple[str, str] | None
    """Base and dataset; None where the study has one of each."""
    num_machines: int


@dataclass(frozen=True)
class OptionsUnequal(Fact):
    """Runs of one base on one dataset that went under other options: their times and memory are not compared."""

    where: tuple[str, str] | None
    """Base and dataset; None where the study has one of each."""
    option: str
    values: tuple[tuple[str, tuple[str, ...]], ...]
    """Each with the variants that had it."""


@dataclass(frozen=True)
class BasesUnequal(Fact):
    """Trained for different numbers of steps; their tokens differ with the tokenizer."""

    dataset: str
    steps: tuple[tuple[str, tuple[float, ...]], ...]
    """By base, of its variants."""


@dataclass(frozen=True)
class TunedUnequally(Fact):
    trials: tuple[tuple[int, tuple[str, ...]], ...]
    """A number of trials and the variants that had it, the most first."""


@dataclass(frozen=True)
class NoDeviations(Fact):
    """Nothing was left out, nothing is missing, and every variant was treated alike."""

    alone: ClassVar[bool] = True


def deviations(findings: Findings) -> list[Fact]:
    """Where variants were not treated alike or something was left out; or that there is nothing of the kind."""
    results, study = findings.results, findings.study
    facts = [*_data_deviations(findings)]
    too_long = left_out(findings)
    for (base, dataset), record in results.tokens.items():
        facts += [too_long[base, dataset]] if (base, dataset) in too_long else []
        data, num_turns = study.data[dataset], record.metrics.get("turns_left_out", 0)
        for metric, num_examples in record.metrics.items():
            if num_examples and (metric in _CHANGED or metric.startswith("unwritten_")):
                rules = (data.control_tokens, data.length_rule, num_turns if metric == "latest_examples" else 0)
                facts.append(ExamplesChanged(base, dataset, metric, num_examples, study.train.max_length, *rules))
    facts += [*_questions_too_long(findings), *_compared_on_shared(findings)]
    alone = len(study.bases) == len(study.data) == 1
    kept = []
    for cell in results.cells:
        run = Run(entrant_of(cell), cell.seed if len(study.seeds) > 1 else None, alone)
        for record in cell.trained:
            facts += [RunDeviates(run, metric, record.metrics) for metric in _OF_RUNS if record.metrics.get(metric)]
            best, steps = record.metrics.get("best_step", 0), record.metrics.get("steps", 0)
            if study.train.keep == "best" and 0 < best < steps:
                kept.append((run, best, steps))
    facts += [BestWeightsKept(tuple(kept))] if kept else []
    for group in findings.groups:
        facts += _unequal_runs(findings, group)
    for dataset in study.data:
        steps_of: dict[str, set[float]] = {}
        for cell in results.cells:
            spent = _spent(cell, "steps") if cell.dataset == dataset else None
            if isinstance(spent, int | float):
                steps_of.setdefault(cell.base, set()).add(spent)
        if len({frozenset(steps) for steps in steps_of.values()}) > 1:
            facts.append(BasesUnequal(dataset, tuple((base, tuple(sorted(steps))) for base, steps in steps_of.items())))
    facts += unequal_tuning(findings)
    if not facts and not any(cell.missing or cell.running for cell in results.cells):
        return [NoDeviations()]
    return facts


def left_out(findings: Findings) -> dict[tuple[str, str], ExamplesLeftOut]:
    """By base and dataset with examples that are too long."""
    facts = {}
    for (base, dataset), record in findings.results.tokens.items():
        if skipped := record.metrics.get("skipped_examples", 0):
            data = findings.results.data[dataset].metrics if dataset in findings.results.data else {}
            lost = (
                (split, data[f"examples_{split}"] - record.metrics[f"kept_examples_{split}"])
                for split in SPLITS
                if f"examples_{split}" in data and f"kept_examples_{split}" in record.metrics
            )
            total = sum(data.get(f"examples_{split}", 0) for split in SPLITS)
            longest, rule = findings.study.train.max_length, findings.study.data[dataset].length_rule
            facts[base, dataset] = ExamplesLeftOut(base, dataset, skipped, longest, total, tuple(lost), rule)
    return facts


def _questions_too_long(findings: Findings) -> Iterator[QuestionsTooLong]:
    variants: dict[tuple[str, str], dict[tuple[int, int, int], dict[str, None]]] = {}
    for cell in findings.results.cells:
        for name, record in cell.evaluations.items():
            left_out, cut = (record.metrics.get(f"{done}_questions", 0) for done in ("skipped", "cut"))
            counts = (left_out, cut, record.metrics.get("questions", 0) + left_out)
            variants.setdefault((cell.base, name), {}).setdefault(counts, {})[cell.variant] = None
    for (base, name), by_counts in variants.items():
        for counts, names in by_counts.items():
            if counts[0] or counts[1]:
                rule = getattr(findings.study.evaluate[name].config, "too_long", "")
                yield QuestionsTooLong(base, name, *counts, rule, tuple(names) if len(by_counts) > 1 else ())


def _compared_on_shared(findings: Findings) -> list[ComparedOnShared]:
    """Of the differences between bases."""
    facts: dict[ComparedOnShared, None] = {}
    for (variant, reference, quantity), difference in findings.differences.items():
        estimates = [findings.estimate(entrant, quantity) for entrant in sorted((variant, reference))]
        if variant.base == reference.base or quantity.slice:
            continue
        sizes = tuple(
            (entrant.base, estimate.n_examples)
            for entrant, estimate in zip(sorted((variant, reference)), estimates, strict=True)
            if estimate is not None
        )
        if any(size > difference.n_examples for _, size in sizes):
            where = (variant.dataset, quantity.task, quantity.split)
            facts[ComparedOnShared(*where, difference.n_examples, sizes)] = None
    return list(facts)


def unequal_tuning(findings: Findings) -> list[Fact]:
    """That of the variants that train some were tuned more than others."""
    tried: dict[int, list[str]] = {}
    for name, variant in findings.study.variants.items():
        if any(use.row.trains for use in variant.methods):
            tried.setdefault(len(variant.trials), []).append(name)
    trials = tuple((number, tuple(names)) for number, names in sorted(tried.items(), reverse=True))
    return [TunedUnequally(trials)] if len(trials) > 1 else []


def _data_deviations(findings: Findings) -> Iterator[Fact]:
    study = findings.study
    for name, record in findings.results.data.items():
        dataset = study.data[name]
        # Of a single task, records without a completion are counted as such.
        tasks = sorted(dataset.tasks) if len(dataset.tasks) > 1 else [RESPONSE] if dataset.chats else []
        asked = [("records_empty", ""), ("records_duplicate", ""), ("records_unsafe", "")]
        asked += [*(("completions_empty", task) for task in tasks), ("documents_removed", "")]
        sizes = ((metric, task, record.metrics.get(f"{metric}_{task}" if task else metric, 0)) for metric, task in asked)
        if counts := tuple(size for size in sizes if size[2]):
            yield RecordsLeftOut(name, counts, dataset.completes, "empty" in dataset.clean.drop)
    for name, record in findings.results.leakage.items():
        if study.data[name].leakage == "allow" and record.metrics.get("pairs"):
            documents = ((split, record.metrics.get(f"documents_touched_{split}", 0)) for split in SPLITS)
            items = ((task, record.metrics.get(f"items_touched_{task}", 0)) for task in study.evaluate)
            touched = (tuple(size for size in sizes if size[1]) for sizes in (documents, items))
            yield LeakageAllowed(name, record.metrics["pairs"], *touched)


def _unequal_runs(findings: Findings, group: Group) -> Iterator[Fact]:
    """Differences between the runs of one base on one dataset that should have been the same."""
    cells = [cell for cell in findings.results.cells if (cell.base, cell.dataset) == (group.base, group.dataset)]
    for metric in _BUDGET:
        # Seeds shuffle, and 40 steps of one order are not the tokens of 40 steps of another.
        for seed in dict.fromkeys(cell.seed for cell in cells):
            variants: dict[float | tuple[str, ...], set[str]] = {}
            for cell in cells:
                if cell.seed == seed and (spent := _spent(cell, metric)) is not None:
                    variants.setdefault(spent, set()).add(cell.variant)
            if len(variants) > 1:
                values = tuple((spent, tuple(sorted(names))) for spent, names in variants.items())
                yield BudgetUnequal(where_of(findings, group), metric, values)
                break
    machines = {fingerprint(record) for cell in cells for record in cell.trained}
    if len(machines) > 1:
        yield SeveralMachines(where_of(findings, group), len(machines))
    options: dict[tuple[str, bool], dict[str, dict[str, None]]] = {}  # of trainings and of measurements
    for cell in cells:
        timed = (cell.evaluations[name] for name in timed_evaluations(findings.study) if name in cell.evaluations)
        for record in (*cell.trained, *timed):
            for option, value in options_of(record).items():
                by_value = options.setdefault((option, record in cell.trained), {})
                by_value.setdefault("none" if value is None else str(value), {})[cell.variant] = None
    unequal = {
        (option, tuple((value, tuple(names)) for value, names in by_value.items())): None
        for (option, _), by_value in options.items()
        if len(by_value) > 1
    }
    for option, runs in unequal:  # said once where trainings and measurements differ alike
        yield OptionsUnequal(where_of(findings, group), option, runs)


def _spent(cell: Cell, name: str) -> float | tuple[str, ...] | None:
    """A metric of all trainings of a cell: their sum (four digits where it is not whole) or words; None without one."""
    values = [record.metrics[name] for record in cell.trained if record.metrics.get(name) is not None]
    if all(isinstance(value, int | float) for value in values):
        total = float(sum(values))
        return (total if total.is_integer() else float(f"{total:.4g}")) if values else None
    return tuple(dict.fromkeys(map(str, values)))


def where_of(findings: Findings, group: Group) -> tuple[str, str] | None:
    return (group.base, group.dataset) if len(findings.groups) > 1 else None

"""What stands between a ranking of runs and one of methods, and where a study departs from "the same for every variant".

Each caveat is computed and said only where it holds: untuned rates, short trainings, a choice on validation text, disturbed
times, texts that were left out, trainings that went otherwise than the others.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from paretune.analysis2.costs import (
    DISTURBED,
    cost_name,
    fingerprint,
    timed_evaluations,
    trained_records,
    trial_cost,
    tuning_cost,
)
from paretune.analysis2.decision import as_compared
from paretune.analysis2.findings import Fact, Findings, Group
from paretune.analysis2.scores import Entrant, Seed, entrant_of
from paretune.analysis2.training import BlockChoice
from paretune.pipeline.records import Cell, Tuning
from paretune.study.data import SPLITS

_BUDGET = ("train_tokens", "train_tokens_read", "epochs_done", "steps", "precision")
"""What is the same for all variants of a base on a dataset, over all trainings of a variant."""
_MUCH = 0.05
"""Share of examples left out from which it belongs beside the recommendation."""


# What was left out of the data, and what stands in it twice.


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
    touched: tuple[tuple[str, int, Literal["document", "item"]], ...]
    """A split or an evaluation, and how many of its documents or items also stand in training text."""


@dataclass(frozen=True)
class LeakedFigures(Fact):
    """Splits and evaluations whose figures are too good."""

    dataset: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class OfTokens(Fact):
    """Examples of a dataset that do not come out of the tokenizer of a base as they went in."""

    base: str
    dataset: str
    num_examples: int
    max_length: int
    """In tokens."""


class ContextsCut(OfTokens):
    """To fit the longest example that is trained on."""


class TokenizerLossy(OfTokens):
    """Not given back exactly."""


@dataclass(frozen=True)
class ExamplesLeftOut(OfTokens):
    """Too long to be trained or scored on."""

    total: int
    """0 where it is unknown."""
    by_split: tuple[tuple[str, int], ...]
    rule: str
    """The dataset's `too_long`."""

    @property
    def share(self) -> float:
        return self.num_examples / self.total if self.total else 1.0


@dataclass(frozen=True)
class SheetUnread(Fact):
    """Items of a rater's sheet that are of other texts."""

    rater: str
    num_unread: int
    num_items: int


# Trainings that went otherwise than those of other variants.


@dataclass(frozen=True)
class Run:
    """The training of a variant with one seed."""

    entrant: Entrant
    seed: Seed
    """None where there is only one."""
    alone: bool
    """Whether the study has one base and one dataset, so that the variant's name says which it is."""


@dataclass(frozen=True)
class OfRun(Fact):
    run: Run
    metrics: Mapping[str, Any]
    """Of the record of the training."""


class StoppedEarly(OfRun):
    """Before the number of steps that the study asks for."""


class OutOfMemory(OfRun):
    """And went on in smaller passes."""


class FlexAttentionFailed(OfRun):
    """And the training went on without it."""


class Interrupted(OfRun):
    """Some steps ran twice."""


_OF_RUNS: dict[str, type[OfRun]] = {
    "stopped_early": StoppedEarly,
    "out_of_memory": OutOfMemory,
    "flex_failure": FlexAttentionFailed,
    "repeated_steps": Interrupted,
}
"""By the metric of a training's record that says so."""


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
class BasesUnequal(Fact):
    """Trained for different numbers of steps; their tokens differ with the tokenizer."""

    dataset: str
    steps: tuple[tuple[str, tuple[float, ...]], ...]
    """By base, of its variants."""


@dataclass(frozen=True)
class NoDeviations(Fact):
    """Nothing was left out, nothing is missing, and every variant was treated alike."""


# What keeps the ranking of runs from being one of methods.


@dataclass(frozen=True)
class FamilyUnmeasured(Fact):
    """Metrics of the declared family."""

    metrics: tuple[str, ...]


@dataclass(frozen=True)
class TimesDisturbed(Fact):
    where: tuple[str, str] | None
    """Base and dataset; None where the study has one of each."""
    factors: tuple[tuple[str, float], ...]
    """By cost: how much runs differ that should be equally fast."""


@dataclass(frozen=True)
class FewSeeds(Fact):
    """One or two."""

    num_seeds: int


@dataclass(frozen=True)
class Untuned(Fact):
    """Methods that were each trained at a single learning rate."""

    rates: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class TunedUnequally(Fact):
    trials: tuple[tuple[int, tuple[str, ...]], ...]
    """A number of trials and the variants that had it, the most first."""


@dataclass(frozen=True)
class ChosenAtEdge(Fact):
    """Choices that a longer list of values could have improved."""

    field: str
    value: str
    """As the study writes it."""
    side: Literal["smallest", "largest"]
    entrants: tuple[Entrant, ...]


@dataclass(frozen=True)
class Tuned(Fact):
    """What tuning chose and cost."""

    entrant: Entrant
    trial: str
    seed: int
    others: tuple[float, int]
    """Seconds and optimizer steps of the trials that were not chosen."""
    own: tuple[float, int]
    """Of the training that was."""


@dataclass(frozen=True)
class TrialDiverged(Fact):
    entrant: Entrant
    trial: str
    message: str


@dataclass(frozen=True)
class TrainingShort(Fact):
    """Variants that more training may improve."""

    validation: tuple[Entrant, ...]
    """Whose validation loss was still falling."""
    train: tuple[Entrant, ...]
    """Evaluated once, whose train loss was."""


@dataclass(frozen=True)
class LossStillFalling(Fact):
    split: Literal["validation", "train"]
    entrants: tuple[Entrant, ...]


@dataclass(frozen=True)
class Overfitted(Fact):
    """The validation loss rose after one of these epochs, with every seed."""

    entrant: Entrant
    epochs: tuple[int, ...]
    num_epochs: int


@dataclass(frozen=True)
class BaseDropoutOn(Fact):
    rates: tuple[float, ...]


@dataclass(frozen=True)
class RankedOnValidation(Fact):
    """The text that ranks variants has also chosen something about them."""

    chosen: tuple[Literal["weights", "end", "values"], ...]


@dataclass(frozen=True)
class PartTrained(Fact):
    """Fewer parameters than there are."""

    entrant: Entrant
    num_trained: int
    num_parameters: int


@dataclass(frozen=True)
class BlocksChosen(Fact):
    choice: BlockChoice


def remarks(findings: Findings) -> list[Fact]:
    """What holds for the whole study: what so few questions, so few seeds, and leaked texts allow to say."""
    study = findings.study
    facts: list[Fact] = [fact for fact in _left_out(findings).values() if fact.share > _MUCH]
    for dataset in study.data:
        touched = sorted({*findings.marks.splits, *findings.marks.tasks})
        names = tuple(name for where, name in touched if where == dataset and name != "train")
        facts += [LeakedFigures(dataset, names)] if names else []
    for rating in findings.ratings.values():
        facts += [SheetUnread(rater, *counts) for rater, counts in rating.unread.items()]
    measured = {quantity.metric for estimates in findings.estimates.values() for quantity in estimates}
    unmeasured = tuple(metric for metric in study.compare.family if metric not in measured)
    facts += [FamilyUnmeasured(unmeasured)] if unmeasured and measured else []
    for group in findings.groups:
        factors = disturbed_times(findings, group)
        facts += [TimesDisturbed(_where(findings, group), tuple(factors.items()))] if factors else []
    num_seeds = len({cell.seed for cell in findings.results.cells if trained_records(cell)})
    facts += [FewSeeds(num_seeds)] if num_seeds in (1, 2) else []
    rates: dict[str, set[float]] = {}
    for use in (use for variant in study.variants.values() for chain in variant.chains for use in chain):
        if use.row.trains:
            rates.setdefault(use.name, set()).add(use.config.model_dump()["learning_rate"])
    if len(rates) > 1 and all(len(tried) == 1 for tried in rates.values()):
        facts.append(Untuned(tuple((name, rate) for name, tried in rates.items() for rate in tried)))
    return [*facts, *_unequal_tuning(findings), *_edges(findings.results.tunings)]


def deviations(findings: Findings) -> list[Fact]:
    """Where variants were not treated alike or something was left out; or that there is nothing of the kind."""
    results, study = findings.results, findings.study
    facts = [*_data_deviations(findings)]
    left_out = _left_out(findings)
    for (base, dataset), record in results.tokens.items():
        facts += [left_out[base, dataset]] if (base, dataset) in left_out else []
        for metric, fact in (("cut_examples", ContextsCut), ("lossy_examples", TokenizerLossy)):
            if num_examples := record.metrics.get(metric, 0):
                facts.append(fact(base, dataset, num_examples, study.train.max_length))
    alone = len(study.bases) == len(study.data) == 1
    kept = []
    for cell in results.cells:
        run = Run(entrant_of(cell), cell.seed if len(study.seeds) > 1 else None, alone)
        for record in trained_records(cell):
            facts += [fact(run, record.metrics) for metric, fact in _OF_RUNS.items() if record.metrics.get(metric)]
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
    facts += _unequal_tuning(findings)
    if not facts and not any(cell.missing for cell in results.cells):
        return [NoDeviations()]
    return facts


def disturbed_times(findings: Findings, group: Group) -> dict[str, float]:
    """By cost, where the machine was busy: how much runs, or parts of one, differ that should be equally fast."""
    timed = timed_evaluations(findings.study)
    names = ["train_tokens_per_second"]
    for latency in (cost_name("ms_per_token", evaluation, timed) for evaluation in timed):
        entrants = [entrant for entrant in group.entrants if latency in findings.costs.get(entrant, {})]
        names.append(as_compared(findings, latency, entrants))
    return {name: group.noise[name] for name in names if group.noise.get(name, 1.0) > DISTURBED}


def short_training(findings: Findings, group: Group) -> list[Fact]:
    validation, train = (tuple(map(group.entrant, names)) for names in group.falling)
    return [TrainingShort(validation, train)] if validation or train else []


def chosen_on_validation(findings: Findings, group: Group) -> list[Fact]:
    train = findings.study.train
    chosen: list[Literal["weights", "end", "values"]] = ["weights"] if train.keep == "best" else []
    if train.early_stopping is not None and not chosen:
        chosen.append("end")
    if any(variant.trials for variant in findings.study.variants.values()):
        chosen.append("values")
    on_validation = group.headline is not None and group.headline.split == "validation"
    trained = any(len(curve) for curve in findings.curves.values())
    return [RankedOnValidation(tuple(chosen))] if on_validation and chosen and trained else []


def trained_shares(findings: Findings, group: Group) -> list[Fact]:
    facts: list[Fact] = []
    for entrant in group.entrants:
        costs = findings.costs.get(entrant, {})
        if "trainable_parameters" in costs and "parameters" in costs:
            part, whole = round(costs["trainable_parameters"].mean), round(costs["parameters"].mean)
            facts += [PartTrained(entrant, part, whole)] if part < whole else []
    return facts


def training_notes(findings: Findings, group: Group) -> list[Fact]:
    """Overfitting, trainings that were too short, and the dropout of the base."""
    facts: list[Fact] = []
    dropouts: dict[tuple[float, ...], None] = {}
    for entrant in group.entrants:
        cells = findings.cells(entrant)
        runs = [epochs for cell in cells if (epochs := findings.epochs[entrant, cell.seed])]
        best = []
        for epochs in runs:
            losses = [epoch.validation_loss for epoch in epochs]
            known = [loss for loss in losses if loss is not None]
            if known and losses[-1] is not None and losses[-1] > min(known):
                best.append(epochs[losses.index(min(known))].number)
        if best and len(best) == len(runs):
            facts.append(Overfitted(entrant, tuple(sorted(set(best))), max(map(len, runs))))
        records = [record for cell in cells if runs for record in trained_records(cell)]
        dropouts |= dict.fromkeys(tuple(record.metrics.get("base_dropout") or ()) for record in records)
    validation, train = (tuple(map(group.entrant, names)) for names in group.falling)
    facts += [LossStillFalling("validation", validation)] if validation else []
    facts += [LossStillFalling("train", train)] if train else []
    return facts + [BaseDropoutOn(tuple(sorted(set(rates)))) for rates in dropouts if any(rates)]


def tuning_facts(findings: Findings, group: Group) -> list[Fact]:
    """What tuning chose and cost, which trials diverged, and choices at the edge of what was tried."""
    tunings = [tuning for tuning in findings.results.tunings if (tuning.base, tuning.dataset) == (group.base, group.dataset)]
    facts: list[Fact] = []
    for tuning in tunings:
        if tuning.chosen is not None:
            chosen, (seconds, steps, _) = tuning.trials[tuning.chosen], tuning_cost(tuning)
            entrant = group.entrant(tuning.variant)
            facts.append(Tuned(entrant, chosen.name, tuning.seed, (seconds, steps), trial_cost(chosen)))
    facts += [
        TrialDiverged(group.entrant(tuning.variant), trial.name, trial.divergence.message)
        for tuning in tunings
        for trial in tuning.trials
        if trial.divergence and trial.score is None
    ]
    return facts + _edges(tunings)


def block_facts(findings: Findings, group: Group) -> list[Fact]:
    return [BlocksChosen(choice) for choice in findings.block_choices[group.base, group.dataset]]


def _data_deviations(findings: Findings) -> Iterator[Fact]:
    study = findings.study
    for name, record in findings.results.data.items():
        dataset = study.data[name]
        # Of a single task, records without a completion are counted as such.
        tasks = sorted(dataset.tasks) if len(dataset.tasks) > 1 else []
        asked = [("records_empty", ""), ("records_duplicate", ""), ("records_unsafe", "")]
        asked += [*(("completions_empty", task) for task in tasks), ("documents_removed", "")]
        sizes = ((metric, task, record.metrics.get(f"{metric}_{task}" if task else metric, 0)) for metric, task in asked)
        if counts := tuple(size for size in sizes if size[2]):
            yield RecordsLeftOut(name, counts, dataset.completes, "empty" in dataset.clean.drop)
    for name, record in findings.results.leakage.items():
        if study.data[name].leakage == "allow" and record.metrics.get("pairs"):
            documents = [(split, record.metrics.get(f"documents_touched_{split}", 0), "document") for split in SPLITS]
            items = [(task, record.metrics.get(f"items_touched_{task}", 0), "item") for task in study.evaluate]
            yield LeakageAllowed(name, record.metrics["pairs"], tuple(each for each in documents + items if each[1]))


def _left_out(findings: Findings) -> dict[tuple[str, str], ExamplesLeftOut]:
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
                yield BudgetUnequal(_where(findings, group), metric, values)
                break
    machines = {fingerprint(record) for cell in cells for record in trained_records(cell)}
    if len(machines) > 1:
        yield SeveralMachines(_where(findings, group), len(machines))


def _spent(cell: Cell, name: str) -> float | tuple[str, ...] | None:
    """A metric of all trainings of a cell: their sum (four digits where it is not whole) or words; None without one."""
    values = [record.metrics[name] for record in trained_records(cell) if record.metrics.get(name) is not None]
    if all(isinstance(value, int | float) for value in values):
        total = float(sum(values))
        return (total if total.is_integer() else float(f"{total:.4g}")) if values else None
    return tuple(dict.fromkeys(map(str, values)))


def _unequal_tuning(findings: Findings) -> list[Fact]:
    """That of the variants that train some were tuned more than others."""
    tried: dict[int, list[str]] = {}
    for name, variant in findings.study.variants.items():
        if any(use.row.trains for use in variant.methods):
            tried.setdefault(len(variant.trials), []).append(name)
    trials = tuple((number, tuple(names)) for number, names in sorted(tried.items(), reverse=True))
    return [TunedUnequally(trials)] if len(trials) > 1 else []


def _edges(tunings: Iterable[Tuning]) -> list[Fact]:
    entrants: dict[tuple[str, str, Literal["smallest", "largest"]], list[Entrant]] = {}
    for tuning in tunings:
        if tuning.chosen is None:
            continue
        # The name of a trial is `FIELD=NUMBER,FIELD=NUMBER`.
        tried = [dict(part.rsplit("=", 1) for part in trial.name.split(",")) for trial in tuning.trials]
        for field, value in tried[tuning.chosen].items():
            numbers = sorted({float(values[field]) for values in tried})
            for side, end in (("smallest", numbers[0]), ("largest", numbers[-1])):
                if len(numbers) > 1 and float(value) == end:
                    entrant = Entrant(tuning.base, tuning.dataset, tuning.variant)
                    entrants.setdefault((field, value, side), []).append(entrant)
    return [ChosenAtEdge(*choice, tuple(names)) for choice, names in entrants.items()]


def _where(findings: Findings, group: Group) -> tuple[str, str] | None:
    return (group.base, group.dataset) if len(findings.groups) > 1 else None

"""What stands between a ranking of runs and one of methods: untuned rates, short trainings, a choice on validation text.

Each caveat is computed and said only where it holds.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from paretune.analysis.costs import DISTURBED, cost_name, timed_evaluations, trial_cost, tuning_cost
from paretune.analysis.decision import as_compared
from paretune.analysis.deviations import left_out, unequal_tuning, where_of
from paretune.analysis.findings import Fact, Findings, Group
from paretune.analysis.scores import Entrant
from paretune.analysis.training import BlockChoice
from paretune.pipeline.records import MOST_OF_ALL, Record, Tuning
from paretune.study.data import SPLITS

_MUCH = 0.05
"""Share of examples left out, or of documents that are alike, from which it belongs beside the recommendation."""


@dataclass(frozen=True)
class LeakedFigures(Fact):
    """Splits and evaluations whose figures are too good."""

    dataset: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class GroupUnnamed(Fact):
    """A column whose values repeat, and the study names no document, or one with a value each."""

    dataset: str
    column: str
    num_values: int
    num_records: int
    """That were looked at."""


@dataclass(frozen=True)
class OneDocument(Fact):
    """Most records are of one document."""

    dataset: str
    field: str | None
    num_records: int
    total: int


@dataclass(frozen=True)
class DocumentsAlike(Fact):
    """Documents of a held-out split that share long parts with another of it."""

    dataset: str
    split: str
    num_alike: int
    num_documents: int


@dataclass(frozen=True)
class RecordsShared(Fact):
    """Records of several splits share long parts, and no column groups them."""

    dataset: str
    num_records: int
    """Of the earlier split."""
    removed: bool


@dataclass(frozen=True)
class NotSmaller(Fact):
    """A variant of fewer bits that takes no less room than what it was made of."""

    entrant: Entrant
    made_of: Entrant
    where: tuple[str, str] | None
    """Base and dataset; None where the study has one of each."""
    num_bytes: float
    bytes_before: float


@dataclass(frozen=True)
class SheetUnread(Fact):
    """Items of a rater's sheet that are of other texts."""

    rater: str
    num_unread: int
    num_items: int


@dataclass(frozen=True)
class FamilyUnmeasured(Fact):
    """Metrics of the declared family."""

    metrics: tuple[str, ...]


@dataclass(frozen=True)
class TimesDisturbed(Fact):
    where: tuple[str, str] | None
    """Base and dataset; None where the study has one of each."""
    factors: tuple[tuple[str, float], ...]
    """By cost: how much times differ that should be equal."""


@dataclass(frozen=True)
class FewSeeds(Fact):
    """One or two."""

    num_seeds: int


@dataclass(frozen=True)
class Untuned(Fact):
    """Methods that were each trained at a single learning rate."""

    rates: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class ChosenAtEdge(Fact):
    """Choices that a longer list of values could have improved."""

    field: str
    value: str
    """As the study writes it."""
    side: str
    """`smallest` or `largest` of those that were tried."""
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
class MergedFromPacked(Fact):
    """An adapter was trained beside matrices in 8 or 4 bits, and is measured merged into those that they were made of."""

    entrant: Entrant
    load: Literal["int8", "nf4"]
    packed_loss: float
    """On validation, as trained; mean over the runs."""
    merged_loss: float


@dataclass(frozen=True)
class RankedOnValidation(Fact):
    """The text that ranks variants has also chosen something about them."""

    chosen: tuple[Literal["weights", "end", "values"], ...]


@dataclass(frozen=True)
class PartTrained(Fact):
    """Fewer parameters than there are; by all variants of which the same is true."""

    entrants: tuple[Entrant, ...]
    num_trained: int
    num_parameters: int


@dataclass(frozen=True)
class PartAdapted(Fact):
    """What the targets of an adapter reach of the model that it was trained on."""

    entrants: tuple[Entrant, ...]
    num_adapted: int
    num_parameters: int
    num_left_out: int
    """Parameters of routed experts without an adapter."""


@dataclass(frozen=True)
class BlocksChosen(Fact):
    choice: BlockChoice


def remarks(findings: Findings) -> list[Fact]:
    """What holds for the whole study: what so few questions, so few seeds, and leaked texts allow to say."""
    study = findings.study
    facts: list[Fact] = [fact for fact in left_out(findings).values() if fact.share > _MUCH]
    for dataset in study.data:
        touched = sorted({*findings.marks.splits, *findings.marks.tasks})
        names = tuple(name for where, name in touched if where == dataset and name != "train")
        facts += [LeakedFigures(dataset, names)] if names else []
        facts += _of_documents(findings, dataset)
    for rating in findings.ratings.values():
        facts += [SheetUnread(rater, *counts) for rater, counts in rating.unread.items()]
    measured = {quantity.metric for estimates in findings.estimates.values() for quantity in estimates}
    unmeasured = tuple(metric for metric in study.compare.family if metric not in measured)
    facts += [FamilyUnmeasured(unmeasured)] if unmeasured and measured else []
    for group in findings.groups:
        factors = disturbed_times(findings, group)
        facts += [TimesDisturbed(where_of(findings, group), tuple(factors.items()))] if factors else []
        facts += _not_smaller(findings, group)
    num_seeds = len({cell.seed for cell in findings.results.cells if cell.trained})
    facts += [FewSeeds(num_seeds)] if num_seeds in (1, 2) else []
    rates: dict[str, set[float]] = {}
    for use in (use for variant in study.variants.values() for chain in variant.chains for use in chain):
        if use.row.trains and (rate := getattr(use.config, "learning_rate", None)):  # none where several methods heal
            rates.setdefault(use.name, set()).add(rate)
    if len(rates) > 1 and all(len(tried) == 1 for tried in rates.values()):
        facts.append(Untuned(tuple((name, rate) for name, tried in rates.items() for rate in tried)))
    return [*facts, *unequal_tuning(findings), *_edges(findings.results.tunings)]


def _not_smaller(findings: Findings, group: Group) -> Iterator[NotSmaller]:
    sizes = {
        each: costs["model_bytes"].mean for each in group.entrants if "model_bytes" in (costs := findings.costs.get(each, {}))
    }
    chains = {each: [(use.name, use.config) for use in findings.study.variants[each.variant].methods] for each in sizes}
    for entrant, chain in chains.items():
        if chain and chain[-1][0].startswith("quantize."):
            for other in (each for each in sizes if chains[each] == chain[:-1] and sizes[each] <= sizes[entrant]):
                yield NotSmaller(entrant, other, where_of(findings, group), sizes[entrant], sizes[other])


def _of_documents(findings: Findings, name: str) -> list[Fact]:
    """What makes documents less than independent: groups that nobody named, one large one, and texts that are alike."""
    dataset, results = findings.study.data[name], findings.results
    data, leakage = results.data.get(name), results.leakage.get(name)
    if data is None:
        return []
    facts: list[Fact] = [GroupUnnamed(name, *group) for group in data.metrics.get("groups", [])[:1]]
    num, largest = data.metrics.get("records_used", 0), data.metrics.get("records_largest_document", 0)
    facts += [OneDocument(name, dataset.document, largest, num)] if largest > MOST_OF_ALL * num else []
    found = leakage.metrics if leakage else {}
    for split in SPLITS:
        alike, of_split = found.get(f"documents_alike_{split}", 0), data.metrics.get(f"documents_{split}", 0)
        facts += [DocumentsAlike(name, split, alike, of_split)] if alike > _MUCH * of_split else []
    removed, touched = data.metrics.get("documents_removed", 0), found.get("documents_touched_train", 0)
    if dataset.document is None and (removed or touched) > _MUCH * num > 0:
        facts.append(RecordsShared(name, removed or touched, bool(removed)))
    return facts


def disturbed_times(findings: Findings, group: Group) -> dict[str, float]:
    """By cost, where the machine was busy: how much runs, parts of one, or wall and processor time differ."""
    timed = timed_evaluations(findings.study)
    names = ["train_tokens_per_second"]
    for latency in (cost_name("ms_per_token", evaluation, timed) for evaluation in timed):
        entrants = [entrant for entrant in group.entrants if latency in findings.costs.get(entrant, {})]
        names.append(as_compared(findings, latency, entrants))
    return {name: group.noise[name] for name in names if group.noise.get(name, 1.0) > DISTURBED}


def short_training(group: Group) -> list[Fact]:
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
    trained: dict[tuple[int, int], dict[Entrant, None]] = {}
    adapted: dict[tuple[int, int, int], dict[Entrant, None]] = {}
    for entrant in group.entrants:
        costs = findings.costs.get(entrant, {})
        if "trainable_parameters" in costs and "parameters" in costs:
            part, whole = round(costs["trainable_parameters"].mean), round(costs["parameters"].mean)
            if part < whole:
                trained.setdefault((part, whole), {})[entrant] = None
        for record in (record for cell in findings.cells(entrant) for record in cell.trained):
            metrics = record.metrics
            if "adapted_parameters" in metrics:
                left_out = 0 if _adapter_of(record).get("experts") else metrics["expert_parameters"]
                reached = metrics["adapted_parameters"], metrics["base_parameters"], left_out
                adapted.setdefault(reached, {})[entrant] = None
    facts: list[Fact] = [PartTrained(tuple(entrants), *numbers) for numbers, entrants in trained.items()]
    return facts + [PartAdapted(tuple(entrants), *numbers) for numbers, entrants in adapted.items()]


def training_notes(findings: Findings, group: Group) -> list[Fact]:
    """Overfitting, trainings that were too short, the dropout of the base, and adapters that were trained beside fewer bits."""
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
        records = [record for cell in cells if runs for record in cell.trained]
        dropouts |= dict.fromkeys(tuple(record.metrics.get("base_dropout") or ()) for record in records)
        merged = [record for record in records if "merged_validation_loss" in record.metrics]
        for load in sorted({_adapter_of(record)["load"] for record in merged}):
            of_load = [record.metrics for record in merged if _adapter_of(record)["load"] == load]
            means = (fmean(each[f"{form}_validation_loss"] for each in of_load) for form in ("packed", "merged"))
            facts.append(MergedFromPacked(entrant, load, *means))
    validation, train = (tuple(map(group.entrant, names)) for names in group.falling)
    facts += [LossStillFalling("validation", validation)] if validation else []
    facts += [LossStillFalling("train", train)] if train else []
    return facts + [BaseDropoutOn(tuple(sorted(set(rates)))) for rates in dropouts if any(rates)]


def _adapter_of(record: Record) -> Mapping[str, Any]:
    """The fields of the adapter that was trained."""
    method: Mapping[str, Any] = record.config["method"]
    return method.get("lora") or method


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


def _edges(tunings: Iterable[Tuning]) -> list[Fact]:
    entrants: dict[tuple[str, str, str], list[Entrant]] = {}
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

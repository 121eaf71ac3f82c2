"""A study's results with everything that the tables, figures and sentences share, computed once."""

from collections.abc import Iterator, KeysView, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from paretune.analysis.compare import (
    Difference,
    Estimate,
    Samples,
    as_perplexity,
    estimate,
    make_samples,
)
from paretune.analysis.costs import Costs, read_costs
from paretune.analysis.curves import disturbance, read_curve
from paretune.analysis.family import (
    Comparer,
    Pair,
    adjusted_for_pairs,
    as_perplexity_difference,
    decide,
    in_units,
)
from paretune.analysis.scores import Place, Quantity, Seed, SeedScores, place_of, read_scores
from paretune.pipeline.records import Cell, Results, read_lines
from paretune.study.compare import TO_ONE
from paretune.study.study import Study

QUALITY = (
    *(
        "bits_per_byte",
        "loss",
        "accuracy",
        "acc_norm",
        "acc",
        "exact_match",
        "contains",
        "set_f1",
        "rouge_l",
        "bert_score_f1",
        "rouge_1",
        "rouge_2",
    ),
    "log_likelihood",
)
"""Metrics that a study is judged by, the first that was measured."""
HELD_OUT = ("test", "validation")
"""The split that a study is judged on, the first that was measured."""
FORGETTING, HARNESS = "forgetting", "lm_eval"
"""Kinds of evaluations; `forgetting` is the metric, too."""
_PER_TOKEN = frozenset({"loss", "token_accuracy", "log_likelihood"})
"""Metrics that are compared only between models of one tokenizer."""


@dataclass(frozen=True)
class Group:
    """The variants of one base on one dataset: what can be compared in every metric."""

    base: str
    dataset: str
    variants: tuple[str, ...]
    """In the order of the study."""

    def place(self, variant: str) -> Place:
        return Place(self.base, self.dataset, variant)

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple(map(self.place, self.variants))


@dataclass(frozen=True)
class Measured:
    results: Results
    comparer: Comparer
    costs: Costs
    curves: Mapping[tuple[Place, Seed], pd.DataFrame]
    groups: tuple[Group, ...]
    decided: dict[Pair, Difference] = field(default_factory=dict)
    """Every comparison with a baseline, and those of other pairs as far as somebody has asked for them."""

    @property
    def study(self) -> Study:
        return self.results.study

    @property
    def scores(self) -> Mapping[Place, Mapping[Quantity, SeedScores]]:
        return self.comparer.scores

    @property
    def samples(self) -> Samples:
        return self.comparer.samples

    @property
    def level(self) -> float:
        return self.study.compare.interval

    @property
    def interval(self) -> str:
        """`95 % interval`."""
        return f"{100 * self.level:g} % interval"


def measure(results: Results) -> Measured:
    scores = read_scores(results)
    curves = {(place_of(cell), cell.seed): read_curve(cell) for cell in results.cells}
    measured = Measured(
        results=results,
        comparer=Comparer(scores, make_samples(scores), results.study.compare),
        costs=read_costs(results, {run: disturbance(curve) for run, curve in curves.items()}),
        curves=curves,
        groups=tuple(_groups(results)),
    )
    baselines, headlines = {}, {}
    for group in measured.groups:
        reference, quantity = baseline(measured, group), headline(measured, group)
        for place in group.places:
            if reference is not None and place != reference:
                baselines[place] = reference
            if quantity is not None:
                headlines[place] = quantity
    measured.decided.update(decide(measured.comparer, baselines, headlines))
    return measured


def quantities_of(measured: Measured, group: Group) -> KeysView[Quantity]:
    """All that any variant of a group has a figure of."""
    return dict.fromkeys(quantity for place in group.places for quantity in measured.samples.get(place, {})).keys()


def estimates_of(measured: Measured, place: Place) -> Iterator[tuple[Quantity, Estimate]]:
    """Every estimate of a variant; perplexity follows the loss that it is the exp of."""
    for quantity, sample in measured.samples.get(place, {}).items():
        found = estimate(sample, measured.level)
        yield quantity, found
        if quantity.metric == "loss":
            yield quantity._replace(metric="perplexity"), as_perplexity(found)


def estimate_of(measured: Measured, place: Place, quantity: Quantity) -> Estimate | None:
    stored = quantity._replace(metric="loss") if quantity.metric == "perplexity" else quantity
    sample = measured.samples.get(place, {}).get(stored)
    if sample is None:
        return None
    found = estimate(sample, measured.level)
    if quantity.metric in TO_ONE:  # which the quantiles of Student's t do not know
        found = replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))
    return as_perplexity(found) if quantity.metric == "perplexity" else found


def difference_of(measured: Measured, variant: Place, reference: Place, quantity: Quantity) -> Difference | None:
    """`variant` minus `reference`, adjusted; None where one of them lacks the quantity or it is per other tokens."""
    if quantity.metric == "perplexity":
        loss = difference_of(measured, variant, reference, quantity._replace(metric="loss"))
        return None if loss is None else as_perplexity_difference(loss, measured.study.compare.margin.get("perplexity"))
    pair = (variant, reference, quantity)
    if pair not in measured.decided and (found := _undeclared(measured, pair)) is not None:
        measured.decided[pair] = found
    return measured.decided.get(pair)


def cells_of(measured: Measured, place: Place) -> list[Cell]:
    return [cell for cell in measured.results.cells if place_of(cell) == place]


def cell_generations(cell: Cell, task: str) -> list[dict[str, Any]]:
    """The texts that one evaluation of one cell made; none if it makes none."""
    file = cell.evaluations[task].path / "generations.jsonl"
    return read_lines(file) if file.exists() else []


def untouched(measured: Measured, group: Group) -> Place | None:
    """The variant without methods: the base as it came."""
    return next((place for place in group.places if not measured.study.variants[place.variant].methods), None)


def baseline(measured: Measured, group: Group) -> Place | None:
    """What the others are compared with: the study's baseline if this base has it, else its first variant that was measured."""
    name = measured.study.baseline
    return group.place(name) if name in group.variants else None


def headline(measured: Measured, group: Group) -> Quantity | None:
    """The quantity that variants of a group are ranked by; None if nothing of the kind was measured."""
    found = quantities_of(measured, group)
    outside = {name for name, use in measured.study.evaluate.items() if use.kind == FORGETTING}
    asked = {quantity.task for quantity in found} - outside
    order = [task for task in tasks_of(measured, group.dataset) if task in asked]
    for metric in QUALITY:
        for task in order:
            for split in (*HELD_OUT, ""):
                if (quantity := Quantity(task, split, metric)) in found:
                    return quantity
    return None


def tasks_of(measured: Measured, dataset: str) -> list[str]:
    """What a dataset's variants were asked: the study's evaluations, the dataset's own tasks, those of lm-evaluation-harness.

    Text outside the domain comes last: nothing but forgetting is judged on it.
    """
    outside = [name for name, use in measured.study.evaluate.items() if use.kind == FORGETTING]
    own = [name for name in measured.study.evaluate if name not in outside]
    return [*dict.fromkeys([*own, *measured.study.data[dataset].scored, *harness_tasks(measured, dataset)]), *outside]


def harness_tasks(measured: Measured, dataset: str) -> list[str]:
    """The tasks of lm-evaluation-harness that variants of a dataset were asked."""
    told = {one.task for place, known in measured.samples.items() if place.dataset == dataset for one in known}
    others = {name for name, use in measured.study.evaluate.items() if use.kind != HARNESS}
    return sorted(told - others - set(measured.study.data[dataset].scored))


def chance_of(measured: Measured, group: Group, task: str) -> float | None:
    """The share of multiple-choice questions that guessing answers; None where there are none, or a record does not tell it."""
    cells = (cell for place in group.places for cell in cells_of(measured, place) if task in cell.evaluations)
    found = (cell.evaluations[task].metrics.get("chance_accuracy") for cell in cells)
    return next((float(chance) for chance in found if chance is not None), None)


def same_tokenizer(measured: Measured, bases: set[str], dataset: str) -> bool:
    """Whether loss and perplexity of these bases are per the same tokens."""
    records = [measured.results.tokens.get((base, dataset)) for base in bases]
    digests = {None if record is None else record.config["base"]["digest"] for record in records}
    return len(digests) == 1 and None not in digests


def _undeclared(measured: Measured, pair: Pair) -> Difference | None:
    """A pair that the study does not declare: the mirror image of one that it does, or one of all pairs."""
    variant, reference, quantity = pair
    bases = {variant.base, reference.base}
    if len(bases) > 1 and quantity.metric in _PER_TOKEN and not same_tokenizer(measured, bases, variant.dataset):
        return None
    found = measured.comparer.difference(variant, reference, quantity)
    if found is None:
        return None
    bits = None
    if quantity.metric == "loss":
        bits = difference_of(measured, variant, reference, quantity._replace(metric="bits_per_byte"))
    if bits is not None:
        return in_units(found, bits, measured.study.compare)
    if (mirrored := measured.decided.get((reference, variant, quantity))) is not None:
        return replace(found, p_adjusted=mirrored.p_adjusted, mde=mirrored.mde, margin=mirrored.margin)
    rivals = [place for place, known in measured.samples.items() if place.dataset == variant.dataset and quantity in known]
    num = sum(place.base in bases for place in rivals)
    return adjusted_for_pairs(found, num, measured.study.compare.margin.get(quantity.metric))


def _groups(results: Results) -> Iterator[Group]:
    for dataset in results.study.data:
        for base in results.study.bases:
            here = {cell.variant for cell in results.cells if (cell.base, cell.dataset) == (base, dataset)}
            if here:
                yield Group(base, dataset, tuple(name for name in results.study.variants if name in here))

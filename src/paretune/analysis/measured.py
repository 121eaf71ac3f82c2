"""A study's results with everything that the tables, figures and sentences share, computed once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pandas as pd

from paretune.analysis.compare import (
    Difference,
    Estimate,
    Samples,
    SeedNoise,
    as_perplexity,
    difference,
    estimate,
    make_samples,
    pool_seeds,
)
from paretune.analysis.costs import Costs, read_costs
from paretune.analysis.curves import read_curve
from paretune.analysis.scores import Place, Quantity, Seed, SeedScores, place_of, read_scores
from paretune.pipeline.records import Cell, Results
from paretune.spec.study import Study

QUALITY = ("bits_per_byte", "loss", "accuracy", "exact_match", "contains", "log_likelihood")
"""Metrics that a study is judged by, the first that was measured."""
HELD_OUT = ("test", "validation")
"""The split that a study is judged on, the first that was measured."""


@dataclass(frozen=True)
class Group:
    """The variants of one base on one dataset: what can be compared in every metric."""

    base: str
    dataset: str
    variants: tuple[str, ...]
    """In the order of the study."""

    def place(self, variant: str) -> Place:
        return Place(self.base, self.dataset, variant)


@dataclass(frozen=True)
class Measured:
    results: Results
    scores: Mapping[Place, Mapping[Quantity, SeedScores]]
    samples: Samples
    costs: Costs
    curves: Mapping[tuple[Place, Seed], pd.DataFrame]
    groups: tuple[Group, ...]
    level: float
    _differences: dict[tuple[Place, Place, Quantity], Difference | None] = field(default_factory=dict, compare=False)

    @property
    def study(self) -> Study:
        return self.results.study


def measure(results: Results) -> Measured:
    scores = read_scores(results)
    return Measured(
        results=results,
        scores=scores,
        samples=make_samples(scores),
        costs=read_costs(results),
        curves={(place_of(cell), cell.seed): read_curve(cell) for cell in results.cells},
        groups=tuple(_groups(results)),
        level=results.study.compare.interval,
    )


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
    return as_perplexity(found) if quantity.metric == "perplexity" else found


def difference_of(measured: Measured, variant: Place, reference: Place, quantity: Quantity) -> Difference | None:
    """`variant` minus `reference`; None where one of them lacks the quantity."""
    key = (variant, reference, quantity)
    if key not in measured._differences:
        measured._differences[key] = _difference(measured, variant, reference, quantity)
    return measured._differences[key]


def cells_of(measured: Measured, place: Place) -> list[Cell]:
    return [cell for cell in measured.results.cells if place_of(cell) == place]


def untouched(measured: Measured, group: Group) -> Place | None:
    """The variant without methods: the base as it came."""
    names = (name for name in group.variants if not measured.study.variants[name].methods)
    return next((group.place(name) for name in names), None)


def baseline(measured: Measured, group: Group) -> Place | None:
    """What the others are compared with: the study's baseline if this base has it, else its first variant that was measured."""
    name = measured.study.baseline
    return group.place(name) if name in group.variants else None


def headline(measured: Measured, group: Group) -> Quantity | None:
    """The quantity that variants of a group are ranked by; None if nothing of the kind was measured."""
    found = {quantity for name in group.variants for quantity in measured.samples.get(group.place(name), {})}
    order = [task for task in measured.study.evaluate if task in {quantity.task for quantity in found}]
    for metric in QUALITY:
        for task in order:
            for split in (*HELD_OUT, ""):
                if (quantity := Quantity(task, split, metric)) in found:
                    return quantity
    return None


def same_tokenizer(measured: Measured, bases: set[str], dataset: str) -> bool:
    """Whether loss and perplexity of these bases are per the same tokens."""
    records = [measured.results.tokens.get((base, dataset)) for base in bases]
    digests = {None if record is None else record.config["base"]["digest"] for record in records}
    return len(digests) == 1 and None not in digests


def _difference(measured: Measured, variant: Place, reference: Place, quantity: Quantity) -> Difference | None:
    sides = []
    for place in (variant, reference):
        sample = measured.samples.get(place, {}).get(quantity)
        if sample is None:
            return None
        sides.append((place, measured.scores[place][quantity], sample))
    return difference(sides[0], sides[1], quantity, measured.level, _noise(measured, variant, quantity))


def _noise(measured: Measured, place: Place, quantity: Quantity) -> SeedNoise | None:
    beside = (
        quantities[quantity]
        for other, quantities in measured.samples.items()
        if (other.base, other.dataset) == (place.base, place.dataset) and quantity in quantities
    )
    return pool_seeds(beside)


def _groups(results: Results) -> Iterator[Group]:
    for dataset in results.study.data:
        for base in results.study.bases:
            here = {cell.variant for cell in results.cells if (cell.base, cell.dataset) == (base, dataset)}
            if here:
                yield Group(base, dataset, tuple(name for name in results.study.variants if name in here))

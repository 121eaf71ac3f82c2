"""Estimates of every quantity, and paired differences between two variants.

Scores are first averaged over seeds for each example, then documents are resampled. A difference takes the examples and the
seeds that both sides have and resamples the same documents for both. Where there are several seeds, their spread enters the
interval of a difference: without it, two runs of one method are told apart in 6 of 10 simulated studies whose seeds scatter
four times as much as their documents.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from paretune.analysis.estimate import (
    Floats,
    bootstrap,
    percentile_interval,
    sign_flip_interval,
    sign_flip_p,
    widen_for_seeds,
    wilson_interval,
)
from paretune.analysis.scores import Items, Place, Quantity, Seed, SeedScores, common_items

LOWER_IS_BETTER = frozenset({"loss", "perplexity", "bits_per_byte"})
_FEW_DOCUMENTS = 50
"""Below, the interval of a difference is that of the sign-flip test: percentile intervals of so few are too sure."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Document sums of one quantity of one variant, averaged over seeds; arrays of shape (documents,)."""

    items: Items
    seeds: tuple[Seed, ...]
    sums: Floats
    weights: Floats
    by_seed: Mapping[Seed, float]
    answers: bool
    """Right-or-wrong scores of independent questions: each 0 or 1, weight 1, one a document."""
    replicates: Floats

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / self.weights.sum())


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and examples, with its interval over documents (NaN where there is one document)."""

    mean: float
    low: float
    high: float
    n_examples: int
    n_documents: int
    by_seed: Mapping[Seed, float]

    @property
    def n_seeds(self) -> int:
        return len(self.by_seed)

    @property
    def spread(self) -> float | None:
        """Half the distance between the lowest and the highest seed; None for one seed."""
        values = list(self.by_seed.values())
        return (max(values) - min(values)) / 2 if len(values) > 1 else None


@dataclass(frozen=True)
class Difference:
    """A variant minus a reference, on the same examples and seeds."""

    variant: Place
    reference: Place
    quantity: Quantity
    variant_mean: float
    reference_mean: float
    mean: float
    low: float
    high: float
    documents_low: float
    """The interval over documents alone: how far it holds for these very weights."""
    documents_high: float
    p: float | None
    """Of the sign-flip test; only for few documents."""
    n_examples: int
    n_documents: int
    n_seeds: int
    level: float

    @property
    def detected(self) -> bool:
        """The interval leaves out 0."""
        return self.low > 0 or self.high < 0

    @property
    def detected_for_weights(self) -> bool:
        """Detected if the seeds' spread is left out: these weights differ, new ones may not."""
        return self.documents_low > 0 or self.documents_high < 0

    @property
    def better(self) -> bool:
        """Whether the variant's mean is on the good side of the reference's."""
        return self.mean < 0 if self.quantity.metric in LOWER_IS_BETTER else self.mean > 0

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `no difference detected`."""
        if not self.detected:
            return "no difference detected"
        return "better" if self.better else "worse"


@dataclass(frozen=True)
class SeedNoise:
    """How much one training seed moves a quantity, pooled over the variants of a group."""

    variance: float
    """Of a single seed's figure."""
    freedom: int
    """Variants times (seeds - 1)."""


Samples = Mapping[Place, Mapping[Quantity, Sample]]


def make_samples(scores: Mapping[Place, Mapping[Quantity, SeedScores]]) -> dict[Place, dict[Quantity, Sample]]:
    """A sample for every quantity, all resampled together where the documents are equally many."""
    bare = [
        (place, quantity, sample)
        for place, quantities in scores.items()
        for quantity, by_seed in quantities.items()
        if (sample := average(by_seed)) is not None
    ]
    found: dict[Place, dict[Quantity, Sample]] = {place: {} for place in scores}
    for (place, quantity, _), sample in zip(bare, resampled([sample for _, _, sample in bare]), strict=True):
        found[place][quantity] = sample
    return found


def average(by_seed: SeedScores, items: Items | None = None) -> Sample | None:
    """Scores averaged over seeds, on `items` or on what all seeds have, without replicates; None for no example."""
    items = items or common_items(by_seed.values())
    if items is None:
        return None
    shared = [scores.on(items) for scores in by_seed.values()]
    weights = np.mean([scores.weights for scores in shared], axis=0)
    products = np.mean([scores.values * scores.weights for scores in shared], axis=0)
    values = np.concatenate([scores.values for scores in shared])
    alone = items.num_documents == len(items)
    return Sample(
        items=items,
        seeds=tuple(by_seed),
        sums=np.bincount(items.codes, products).astype(np.float64),
        weights=np.bincount(items.codes, weights).astype(np.float64),
        by_seed={seed: float(np.average(one.values, weights=one.weights)) for seed, one in zip(by_seed, shared, strict=True)},
        answers=alone and bool(np.isin(values, (0.0, 1.0)).all()) and bool((weights == 1).all()),
        replicates=np.empty(0),
    )


def resampled(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with replicates; one matrix product for all that have equally many documents."""
    sizes: dict[int, list[int]] = {}
    for index, sample in enumerate(samples):
        sizes.setdefault(len(sample.sums), []).append(index)
    replicates: dict[int, Floats] = {}
    for indices in sizes.values():
        sums = np.stack([samples[index].sums for index in indices], axis=1)
        weights = np.stack([samples[index].weights for index in indices], axis=1)
        columns = bootstrap(sums, weights)
        replicates |= {index: columns[:, column] for column, index in enumerate(indices)}
    return [replace(sample, replicates=replicates[index]) for index, sample in enumerate(samples)]


def estimate(sample: Sample, level: float) -> Estimate:
    """Mean and interval; right-or-wrong answers get Wilson's interval, which does not shrink to nothing at 0 of 10."""
    if sample.answers:
        low, high = wilson_interval(sample.mean, len(sample.items), level)
    else:
        low, high = percentile_interval(sample.replicates, level, sample.items.num_documents)
    return Estimate(sample.mean, low, high, len(sample.items), sample.items.num_documents, sample.by_seed)


def as_perplexity(loss: Estimate) -> Estimate:
    """exp of a loss: mean, interval and each seed (so the mean over seeds is a geometric one)."""
    by_seed = {seed: _exp(value) for seed, value in loss.by_seed.items()}
    return replace(loss, mean=_exp(loss.mean), low=_exp(loss.low), high=_exp(loss.high), by_seed=by_seed)


def difference(
    variant: tuple[Place, SeedScores, Sample],
    reference: tuple[Place, SeedScores, Sample],
    quantity: Quantity,
    level: float,
    noise: SeedNoise | None = None,
) -> Difference | None:
    """Variant minus reference; None where they share no example or no seed.

    A side without a seed (an untrained variant) stands against every seed of the other. The samples are those of
    `make_samples`, used as they are where both sides have the same examples and seeds. The variance between seeds is the pooled
    `noise`, or that of the pair itself where it is larger: two seeds alone know their variance with one degree of freedom.
    """
    pair = _paired(variant[1:], reference[1:])
    if pair is None:
        return None
    left, right = pair
    draws = left.replicates - right.replicates
    mean, documents = left.mean - right.mean, left.items.num_documents
    few = documents < _FEW_DOCUMENTS
    shares = left.weights / left.weights.sum()
    paired = left.sums / left.weights.sum() - right.sums / right.weights.sum()
    over_documents = sign_flip_interval(paired, shares, level) if few else percentile_interval(draws, level, documents)
    variance, freedom = _seed_variance(left, right, noise)
    interval = widen_for_seeds(
        over_documents,
        mean,
        error=float(np.std(draws)) * math.sqrt(documents / max(1, documents - 1)),
        num_documents=documents,
        seed_variance=variance,
        freedom=freedom,
        level=level,
    )
    return Difference(
        variant=variant[0],
        reference=reference[0],
        quantity=quantity,
        variant_mean=left.mean,
        reference_mean=right.mean,
        mean=mean,
        low=interval[0],
        high=interval[1],
        documents_low=over_documents[0],
        documents_high=over_documents[1],
        p=sign_flip_p(paired) if few else None,
        n_examples=len(left.items),
        n_documents=documents,
        n_seeds=max(len(left.seeds), len(right.seeds)),
        level=level,
    )


def _paired(variant: tuple[SeedScores, Sample], reference: tuple[SeedScores, Sample]) -> tuple[Sample, Sample] | None:
    left, right = _shared_seeds(variant[0], reference[0])
    if not left or not right:
        return None
    items = common_items([*left.values(), *right.values()])
    if items is None:
        return None
    kept = [
        sample if sample.items is items and sample.seeds == tuple(scores) else average(scores, items)
        for sample, scores in ((variant[1], left), (reference[1], right))
    ]
    fresh = iter(resampled([sample for sample in kept if sample is not None and not len(sample.replicates)]))
    first, second = (sample if sample is not None and len(sample.replicates) else next(fresh) for sample in kept)
    return first, second


def _shared_seeds(left: SeedScores, right: SeedScores) -> tuple[SeedScores, SeedScores]:
    if None in left or None in right:
        return left, right
    seeds = [seed for seed in left if seed in right]
    return {seed: left[seed] for seed in seeds}, {seed: right[seed] for seed in seeds}


def pool_seeds(samples: Iterable[Sample]) -> SeedNoise | None:
    """The variance between seeds over several variants of the same quantity; None where none has two seeds."""
    figures = [list(sample.by_seed.values()) for sample in samples if len(sample.seeds) > 1]
    freedom = sum(len(values) - 1 for values in figures)
    if not freedom:
        return None
    return SeedNoise(sum(float(np.var(values)) * len(values) for values in figures) / freedom, freedom)


def _seed_variance(left: Sample, right: Sample, noise: SeedNoise | None) -> tuple[float, int]:
    """Variance of the difference of the two means over seeds, and its degrees of freedom."""
    seeds = left.seeds if len(left.seeds) >= len(right.seeds) else right.seeds
    if len(seeds) < 2:
        return 0.0, 1
    own = float(np.var([_of(left, seed) - _of(right, seed) for seed in seeds], ddof=1)) / len(seeds)
    if noise is None:
        return own, len(seeds) - 1
    sides = sum(None not in sample.seeds for sample in (left, right))
    return max(own, sides * noise.variance / len(seeds)), noise.freedom


def _of(sample: Sample, seed: Seed) -> float:
    return sample.by_seed[seed] if seed in sample.by_seed else sample.by_seed[None]


def _exp(value: float) -> float:
    return math.inf if value >= 700 else math.exp(value)

"""Estimates of every quantity, and paired differences between two variants.

Scores are first averaged over seeds for each example, then summed by document. A difference takes the examples and the seeds
that both sides have. Where there are several seeds, their spread enters the interval and the p value of a difference: without
it, two runs of one method are told apart in 6 of 10 simulated studies whose seeds scatter four times as much as documents do.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from paretune.analysis.estimate import (
    FEW_DOCUMENTS,
    Errors,
    Floats,
    ratio_interval,
    standard_error,
    widened,
    wilson_interval,
)
from paretune.analysis.exact import (
    mcnemar_interval,
    sign_flip_interval,
    sign_flip_p,
    smallest_detectable,
    smallest_detectable_share,
    with_seeds,
)
from paretune.analysis.scores import Items, Place, Quantity, Seed, SeedScores, common_items
from paretune.study.compare import LOWER_IS_BETTER


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
    p: float
    """That a difference so large comes from nothing: sign-flip test over documents, raised by the spread of the seeds."""
    p_documents: float
    """The same for these very weights, without the seeds."""
    errors: Errors
    n_examples: int
    n_seeds: int
    level: float
    answers_apart: int | None = None
    """Questions that one side alone answered rightly; only for one seed and right-or-wrong answers."""
    p_adjusted: float = math.nan
    """`p` corrected for the other comparisons that are decided together."""
    mde: float = math.inf
    """The smallest difference that would have been detected with probability 0.8."""
    margin: float | None = None
    """A difference that does not matter."""

    @property
    def n_documents(self) -> int:
        return self.errors.num_documents

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `equivalent` or `no difference detected`."""
        if self.margin is not None and -self.margin <= self.low and self.high <= self.margin:
            return "equivalent"
        if self.p_adjusted <= 1 - self.level + 1e-12 and (self.low > 0 or self.high < 0):
            return "better" if self.better else "worse"
        return "no difference detected"

    @property
    def detected(self) -> bool:
        return self.verdict in ("better", "worse")

    @property
    def detected_for_weights(self) -> bool:
        """Detected if the seeds' spread is left out: these weights differ, new ones may not."""
        return self.detected or (self.errors.seeds > 0 and self.p_documents <= 1 - self.level)

    @property
    def better(self) -> bool:
        """Whether the variant's mean is on the good side of the reference's."""
        return self.mean < 0 if self.quantity.metric in LOWER_IS_BETTER else self.mean > 0


Samples = Mapping[Place, Mapping[Quantity, Sample]]


def make_samples(scores: Mapping[Place, Mapping[Quantity, SeedScores]]) -> dict[Place, dict[Quantity, Sample]]:
    """A sample for every quantity that has an example which all its seeds share."""
    return {
        place: {quantity: sample for quantity, by_seed in quantities.items() if (sample := average(by_seed)) is not None}
        for place, quantities in scores.items()
    }


def average(by_seed: SeedScores, items: Items | None = None) -> Sample | None:
    """Scores averaged over seeds, on `items` or on what all seeds have; None for no example."""
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
    )


def estimate(sample: Sample, level: float) -> Estimate:
    """Mean and interval; right-or-wrong answers get Wilson's interval, which does not shrink to nothing at 0 of 10."""
    if sample.answers:
        low, high = wilson_interval(sample.mean, len(sample.items), level)
    else:
        low, high = ratio_interval(sample.sums, sample.weights, level)
    return Estimate(sample.mean, low, high, len(sample.items), sample.items.num_documents, sample.by_seed)


def as_perplexity(loss: Estimate) -> Estimate:
    """exp of a loss: mean, interval and each seed (so the mean over seeds is a geometric one)."""
    by_seed = {seed: _exp(value) for seed, value in loss.by_seed.items()}
    return replace(loss, mean=_exp(loss.mean), low=_exp(loss.low), high=_exp(loss.high), by_seed=by_seed)


def difference(
    variant: tuple[Place, SeedScores],
    reference: tuple[Place, SeedScores],
    quantity: Quantity,
    level: float,
) -> Difference | None:
    """Variant minus reference, not yet adjusted; None where they share no example or no seed.

    A side without a seed (an untrained variant) stands against every seed of the other.
    """
    pair = _paired(variant[1], reference[1])
    if pair is None:
        return None
    left, right = pair
    sums, weights = _contrast(left, right)
    mean, documents = left.mean - right.mean, left.items.num_documents
    seed_error, seed_freedom = _seed_error(left, right)
    errors = Errors(standard_error(sums, weights), documents, seed_error, seed_freedom)
    p = sign_flip_p(sums)
    apart = None
    if left.answers and right.answers and errors.seeds == 0 and np.isin(sums, (-1.0, 0.0, 1.0)).all():
        wins, losses = int((sums > 0).sum()), int((sums < 0).sum())
        interval, apart = mcnemar_interval(wins, losses, documents, level), wins + losses
    elif 1 < documents < FEW_DOCUMENTS:
        interval = sign_flip_interval(sums, weights, level)
    else:
        interval = ratio_interval(sums, weights, level)
    low, high = widened(interval, mean, errors, level)
    found = Difference(
        variant=variant[0],
        reference=reference[0],
        quantity=quantity,
        variant_mean=left.mean,
        reference_mean=right.mean,
        mean=mean,
        low=low,
        high=high,
        p=with_seeds(p, mean, errors),
        p_documents=p,
        errors=errors,
        n_examples=len(left.items),
        n_seeds=max(len(left.seeds), len(right.seeds)),
        level=level,
        answers_apart=apart,
    )
    return decided(found, found.p, 1)


def decided(found: Difference, p_adjusted: float, num_tests: int, margin: float | None = None) -> Difference:
    """`found` as one of `num_tests` comparisons that are decided together."""
    alpha = (1 - found.level) / num_tests
    if found.answers_apart is not None:
        mde = smallest_detectable_share(found.n_documents, found.answers_apart, alpha)
    else:
        mde = smallest_detectable(found.errors, alpha)
    return replace(found, p_adjusted=p_adjusted, mde=mde, margin=margin)


def _contrast(left: Sample, right: Sample) -> tuple[Floats, Floats]:
    """Document sums and weights of which the ratio is the difference of two ratios; linearised where the weights differ."""
    if np.allclose(left.weights, right.weights, rtol=1e-9):
        return left.sums - right.sums, left.weights
    parts = [(one.sums - one.mean * one.weights) / one.weights.sum() for one in (left, right)]
    share = np.full(len(left.sums), 1 / len(left.sums))
    return parts[0] - parts[1] + (left.mean - right.mean) * share, share


def _paired(left: SeedScores, right: SeedScores) -> tuple[Sample, Sample] | None:
    if None not in left and None not in right:
        seeds = [seed for seed in left if seed in right]
        left, right = {seed: left[seed] for seed in seeds}, {seed: right[seed] for seed in seeds}
    items = common_items([*left.values(), *right.values()]) if left and right else None
    if items is None:
        return None
    one, other = average(left, items), average(right, items)
    assert one is not None
    assert other is not None
    return one, other


def _seed_error(left: Sample, right: Sample) -> tuple[float, float]:
    """Standard error of the difference of two means over seeds, and its degrees of freedom (Welch 1947).

    Each side brings its own variance: methods differ in how much a seed moves them, so a quiet one vouches for none.
    """
    sides = [list(sample.by_seed.values()) for sample in (left, right) if len(sample.seeds) > 1]
    parts = [(float(np.var(values, ddof=1)) / len(values), len(values) - 1) for values in sides]
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return 0.0, 1.0
    return math.sqrt(total), total**2 / sum(variance**2 / freedom for variance, freedom in parts)


def _exp(value: float) -> float:
    return math.inf if value >= 700 else math.exp(value)

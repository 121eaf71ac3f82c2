"""Estimates of every quantity, and paired differences between two variants with the verdict on each.

Scores are first averaged over seeds for each example, then summed by document. A difference takes the examples and the seeds
that both sides have. Where there are several seeds, their spread enters the interval and the p value of a difference: without
it, two runs of one method are told apart in 6 of 10 simulated studies whose seeds scatter four times as much as documents do.

Every variant is compared with the baseline, corrected by Holm inside its family: the one that a study declares, and what it
does not declare inside its task and split (slices among themselves). A pair without the baseline was picked after looking, so
it counts as one of all pairs. Loss and perplexity say in other units what bits per byte say: one hypothesis, one interval.

Each interval is at the level at which its comparison was decided, and the verdict is read off the interval.
"""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from paretune.analysis.inference import (
    Contrast,
    Errors,
    Floats,
    holm,
    holm_alphas,
    ratio_interval,
    smallest_detectable,
    smallest_detectable_share,
    standard_error,
    wilson_interval,
)
from paretune.analysis.scores import Entrant, Quantity, Sample, Samples, Seed, SeedScores, average, common_items
from paretune.study.registry import metric_of, metrics

if TYPE_CHECKING:
    from paretune.study.compare import Compare

_LARGEST = 700
"""Of the arguments of `exp`."""
WITHHELD = "withheld: raters do not agree"
NO_DIFFERENCE = "no difference detected"


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

    variant: Entrant
    reference: Entrant
    quantity: Quantity
    variant_mean: float
    reference_mean: float
    mean: float
    low: float
    high: float
    p: float
    """That a difference so large comes from nothing: the smallest alpha whose interval leaves out 0."""
    p_documents: float
    """That so large a difference of these very weights comes from nothing: without the spread of the seeds."""
    errors: Errors
    n_examples: int
    n_seeds: int
    level: float
    """Of the interval: that of the study, corrected for the other comparisons that are decided together."""
    answers_apart: int | None = None
    """Questions that one side alone answered rightly; only for one seed and right-or-wrong answers."""
    p_adjusted: float = math.nan
    """`p` corrected for the other comparisons that are decided together."""
    mde: float = math.inf
    """The smallest difference that would have been detected with probability 0.8."""
    margin: float | None = None
    """A difference that does not matter."""
    withheld: bool = False
    """Ratings on which raters do not agree: they bear no verdict."""
    contrast: Contrast | None = field(default=None, repr=False, compare=False)
    """What the interval is computed from; None where it is that of another metric in other units."""

    @property
    def n_documents(self) -> int:
        return self.errors.num_documents

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `equivalent`, `no difference detected` or that it is withheld."""
        if self.withheld:
            return WITHHELD
        if self.margin is not None and -self.margin <= self.low and self.high <= self.margin:
            return "equivalent"
        if self.low > 0 or self.high < 0:
            return "better" if self.better else "worse"
        return NO_DIFFERENCE

    @property
    def detected(self) -> bool:
        return self.verdict in ("better", "worse")

    @property
    def detected_for_weights(self) -> bool:
        """Detected if the seeds' spread is left out: these weights differ, new ones may not."""
        of_weights = self.errors.seeds > 0 and self.p_documents <= 1 - self.level
        return self.detected or (of_weights and not self.withheld)

    @property
    def better(self) -> bool:
        """Whether the variant's mean is on the good side of the reference's."""
        return self.loss < 0

    @property
    def loss(self) -> float:
        """By how much the variant is worse; negative where it is better."""
        return -metric_of(self.quantity.metric).sign * self.mean

    @property
    def worst(self) -> float:
        """By how much the variant is worse at most, by the far end of the interval."""
        return self.high if metric_of(self.quantity.metric).better == "lower" else -self.low

    def loses_at_most(self, margin: float) -> bool:
        """Whether the whole interval shows it."""
        return self.worst <= margin and not self.withheld


Side = tuple[Entrant, SeedScores]
Pair = tuple[Entrant, Entrant, Quantity]
"""A variant, what it is compared with, and in what."""


def estimates_of(samples: Mapping[Quantity, Sample], level: float) -> dict[Quantity, Estimate]:
    """Mean and interval of every quantity, inside the range of its metric; the exp of one follows it.

    Right-or-wrong answers get Wilson's interval, which does not shrink to nothing at 0 of 10.
    """
    estimates: dict[Quantity, Estimate] = {}
    for quantity, sample in samples.items():
        if sample.answers:
            low, high = wilson_interval(sample.mean, len(sample.items), level)
        else:
            low, high = ratio_interval(sample.sums, sample.weights, level)
        row = metric_of(quantity.metric)
        low, high = max(low, row.low), min(high, row.high)  # which the quantiles of Student's t do not know
        num_documents = sample.items.num_documents
        estimate = estimates[quantity] = Estimate(sample.mean, low, high, len(sample.items), num_documents, sample.by_seed)
        for view in views_of(quantity.metric):
            by_seed = {seed: exp(value) for seed, value in estimate.by_seed.items()}  # their mean is a geometric one
            estimates[quantity._replace(metric=view)] = replace(
                estimate, mean=exp(estimate.mean), low=exp(estimate.low), high=exp(estimate.high), by_seed=by_seed
            )
    return estimates


def views_of(metric: str) -> list[str]:
    """The metrics that are the exp of one."""
    return [row.name for row in metrics().values() if row.exp_of == metric]


def exp(value: float) -> float:
    """e to the power of `value`, infinite where float64 has no such number."""
    return math.inf if value >= _LARGEST else math.exp(value)


def difference(variant: Side, reference: Side, quantity: Quantity, level: float) -> Difference | None:
    """Variant minus reference, not adjusted for others; None where they share no example or no seed."""
    compared = _undecided(variant, reference, quantity)
    return None if compared is None else decided(compared, compared.p, 1 - level)


def decided(compared: Difference, p_adjusted: float, alpha: float, margin: float | None = None) -> Difference:
    """A difference at the level at which it is decided together with others: its interval, and what could have been found."""
    assert compared.contrast is not None
    low, high = compared.contrast.interval(alpha)
    if compared.answers_apart is not None:
        mde = smallest_detectable_share(compared.n_documents, compared.answers_apart, alpha)
    else:
        mde = smallest_detectable(compared.errors, alpha)
    return replace(compared, low=low, high=high, level=1 - alpha, p_adjusted=p_adjusted, mde=mde, margin=margin)


def in_units(loss: Difference, bits: Difference, margin: float | None = None) -> Difference:
    """A difference of losses with the interval, p values and, unless one is given, margin of that of the bits per byte.

    Both are totals of the same nats, over the tokens and over the bytes of the same text.
    """
    scale = loss.reference_mean / bits.reference_mean
    if margin is None and bits.margin is not None:
        margin = bits.margin * scale
    same_test = replace(loss, p=bits.p, p_documents=bits.p_documents, p_adjusted=bits.p_adjusted, level=bits.level)
    low, high, mde = (end * scale for end in (bits.low, bits.high, bits.mde))
    return replace(same_test, low=low, high=high, mde=mde, margin=margin, contrast=None)


def margin_of(compare: "Compare", quantity: Quantity, reference_mean: float) -> float:
    """A loss against the reference that does not matter: the study's margin, or the default of the metric."""
    row = metric_of(quantity.metric)
    default = row.margin * abs(reference_mean) if row.margin_is_relative else row.margin
    return compare.margin.get(quantity.metric, default)


def _undecided(variant: Side, reference: Side, quantity: Quantity) -> Difference | None:
    """Variant minus reference, still without an interval; None where they share no example or no seed.

    A side without a seed (an untrained variant) stands against every seed of the other.
    """
    left_seeds, right_seeds = variant[1], reference[1]
    if None not in left_seeds and None not in right_seeds:
        shared = [seed for seed in left_seeds if seed in right_seeds]
        left_seeds, right_seeds = ({seed: scores[seed] for seed in shared} for scores in (left_seeds, right_seeds))
    items = common_items([*left_seeds.values(), *right_seeds.values()]) if left_seeds and right_seeds else None
    if items is None:
        return None
    left, right = average(left_seeds, items), average(right_seeds, items)
    assert left is not None
    assert right is not None
    if metric_of(quantity.metric).per_token and not np.allclose(left.weights, right.weights, rtol=1e-9):
        return None  # by other tokens of the same text, as after `prune.vocabulary`
    sums, weights = _contrast(left, right)
    seed_error, seed_freedom = _seed_error(left, right)
    errors = Errors(standard_error(sums, weights), left.items.num_documents, seed_error, seed_freedom)
    apart = None
    if left.answers and right.answers and errors.seeds == 0 and np.isin(sums, (-1.0, 0.0, 1.0)).all():
        apart = int((sums > 0).sum()), int((sums < 0).sum())
    contrast = Contrast(sums, weights, errors, apart)
    return Difference(
        variant=variant[0],
        reference=reference[0],
        quantity=quantity,
        variant_mean=left.mean,
        reference_mean=right.mean,
        mean=left.mean - right.mean,
        low=math.nan,
        high=math.nan,
        p=contrast.p,
        p_documents=contrast.p_documents,
        errors=errors,
        n_examples=len(left.items),
        n_seeds=max(len(left.seeds), len(right.seeds)),
        level=math.nan,
        answers_apart=None if apart is None else sum(apart),
        contrast=contrast,
    )


def _contrast(left: Sample, right: Sample) -> tuple[Floats, Floats]:
    """Document sums and weights of which the ratio is the difference of two ratios; linearised where the weights differ."""
    if np.allclose(left.weights, right.weights, rtol=1e-9):
        return left.sums - right.sums, left.weights
    parts = [(side.sums - side.mean * side.weights) / side.weights.sum() for side in (left, right)]
    share = np.full(len(left.sums), 1 / len(left.sums))
    return parts[0] - parts[1] + (left.mean - right.mean) * share, share


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


@dataclass(frozen=True)
class Comparer:
    """What differences are computed from, and the rules that a study decides by."""

    scores: Mapping[Entrant, Mapping[Quantity, SeedScores]]
    samples: Samples
    compare: "Compare"
    tokenizers: Mapping[tuple[str, str], str]
    """Digest by (base, dataset), as far as it is known."""
    withheld: Collection[tuple[str, str]]
    """(evaluation, criterion) of ratings on which raters do not agree."""

    def against_baselines(
        self, baselines: Mapping[Entrant, Entrant], headlines: Mapping[Entrant, Quantity]
    ) -> dict[Pair, Difference]:
        """Every comparison with a baseline, adjusted; `headlines` are the quantities that variants are ranked by."""
        unadjusted = {
            (variant, reference, quantity): compared
            for variant, reference in baselines.items()
            for quantity in self.samples.get(variant, {})
            if metric_of(quantity.metric).is_quality
            and (compared := self._difference(variant, reference, quantity)) is not None
        }
        families: dict[object, list[Pair]] = {}
        for pair in unadjusted:
            if _hypothesis(pair, unadjusted) == pair:
                families.setdefault(self._family(pair, headlines), []).append(pair)
        margins, adjusted = self.compare.margin, dict[Pair, Difference]()
        for pairs in families.values():
            p_values = [unadjusted[pair].p for pair in pairs]
            steps = zip(pairs, holm(p_values), holm_alphas(p_values, 1 - self.compare.interval), strict=True)
            for pair, p, alpha in steps:
                adjusted[pair] = decided(unadjusted[pair], p, alpha, margins.get(pair[2].metric))
        return {
            pair: adjusted.get(pair) or in_units(compared, adjusted[_hypothesis(pair, unadjusted)], margins.get(pair[2].metric))
            for pair, compared in unadjusted.items()
        }

    def between(
        self, entrants: Sequence[Entrant], quantity: Quantity, known: Mapping[Pair, Difference]
    ) -> Iterator[tuple[Pair, Difference]]:
        """Both directions of every pair of `entrants` in a quantity that is not `known`: not declared by the study.

        The mirror image of a comparison that is known has its p value; others count as one of all pairs (Bonferroni).
        """
        row = metric_of(quantity.metric)
        for first, second in itertools.combinations(entrants, 2):
            bases = {first.base, second.base}
            digests = {self.tokenizers.get((base, first.dataset)) for base in bases}
            if len(bases) > 1 and row.per_token and (len(digests) > 1 or None in digests):
                continue
            pair, mirrored = (first, second, quantity), (second, first, quantity)
            if mirrored in known:
                pair, mirrored = mirrored, pair
            if pair in known:
                if mirrored not in known:
                    yield mirrored, _mirrored(known[pair])
                continue
            compared = self._difference(first, second, quantity)
            if compared is None:
                continue
            margin = self.compare.margin.get(quantity.metric)
            bits = known.get((first, second, quantity._replace(metric=row.hypothesis)))
            if bits is not None:
                compared = in_units(compared, bits, margin)
            else:
                num = sum(
                    entrant.dataset == first.dataset and entrant.base in bases and quantity in samples
                    for entrant, samples in self.samples.items()
                )
                num_pairs = max(1, num * (num - 1) // 2)
                alpha = (1 - self.compare.interval) / num_pairs
                compared = decided(compared, min(1.0, compared.p * num_pairs), alpha, margin)
            yield pair, compared
            yield mirrored, _mirrored(compared)

    def _difference(self, variant: Entrant, reference: Entrant, quantity: Quantity) -> Difference | None:
        scores, others = (self.scores.get(entrant, {}).get(quantity) for entrant in (variant, reference))
        if scores is None or others is None:
            return None
        compared = _undecided((variant, scores), (reference, others), quantity)
        withheld = (quantity.task, quantity.metric) in self.withheld
        return None if compared is None else replace(compared, withheld=withheld)

    def _family(self, pair: Pair, headlines: Mapping[Entrant, Quantity]) -> object:
        """What is equal for comparisons that are adjusted together."""
        variant, _, quantity = pair
        splits = {other.split for other in self.samples[variant] if other._replace(split=quantity.split) == quantity}
        # Validation has chosen weights already, and stands in where there is no test split.
        judged = quantity.split in ("test", "") or "test" not in splits
        declared = {metric_of(name).hypothesis or name for name in self.compare.family}
        chosen = quantity.metric in declared if declared else quantity == headlines.get(variant)
        if chosen and judged and not quantity.slice:
            return "declared"
        return (variant.base, variant.dataset, quantity.task, quantity.split, bool(quantity.slice))


def with_views(differences: Mapping[Pair, Difference], compare: "Compare") -> dict[Pair, Difference]:
    """`differences` and, behind each in a metric that another is the exp of, the same in that one's units.

    They are those of a ratio, like the `+3 %` of a report, at the reference's figure.
    """
    viewed: dict[Pair, Difference] = {}
    for pair, logs in differences.items():
        viewed[pair] = logs
        for view in views_of(pair[2].metric):
            quantity = pair[2]._replace(metric=view)
            viewed[pair[0], pair[1], quantity] = _exp_difference(logs, quantity, compare.margin.get(view))
    return viewed


def _exp_difference(logs: Difference, quantity: Quantity, margin: float | None) -> Difference:
    """A difference of logarithms at the reference's figure; `margin` in units of `quantity`, that of the logarithms if None."""
    at = exp(logs.reference_mean)

    def moved(nats: float) -> float:
        return nats if math.isinf(nats) else at * math.expm1(min(nats, _LARGEST))

    if margin is None and logs.margin is not None:
        margin = -moved(-logs.margin)
    mean, low, high, mde = (moved(nats) for nats in (logs.mean, logs.low, logs.high, logs.mde))
    shown = replace(logs, quantity=quantity, variant_mean=at + mean, reference_mean=at)
    return replace(shown, mean=mean, low=low, high=high, mde=mde, margin=margin, contrast=None)


def _mirrored(seen: Difference) -> Difference:
    """The same comparison from the other side."""
    return replace(
        seen,
        variant=seen.reference,
        reference=seen.variant,
        variant_mean=seen.reference_mean,
        reference_mean=seen.variant_mean,
        mean=0.0 - seen.mean,  # no minus before a zero
        low=0.0 - seen.high,
        high=0.0 - seen.low,
        contrast=None if seen.contrast is None else seen.contrast.mirrored,
    )


def _hypothesis(pair: Pair, known: Collection[Pair]) -> Pair:
    """The pair whose p value decides on `pair`: that of the bits per byte where it is a loss."""
    variant, reference, quantity = pair
    named = metric_of(quantity.metric).hypothesis
    same = (variant, reference, quantity._replace(metric=named))
    return same if named and same in known else pair

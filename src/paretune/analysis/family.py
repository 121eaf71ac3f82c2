"""Which comparisons are decided together: every variant against the baseline, corrected by Holm inside its family.

The family that a study declares is one. What it does not declare is decided too, corrected inside its task and split (slices
among themselves). A pair without the baseline was picked after looking, so it counts as one of all pairs. Loss and perplexity
say in other units what bits per byte say: one hypothesis, one p value.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from paretune.analysis.compare import Difference, Samples, decided, difference
from paretune.analysis.exact import holm
from paretune.analysis.scores import Place, Quantity, SeedScores
from paretune.study.compare import QUALITY, Compare

Pair = tuple[Place, Place, Quantity]
"""A variant, what it is compared with, and in what."""
_HELD_OUT = ("test", "")
"""Splits that a study decides on; validation has chosen weights already, and stands in where there is no test split."""


@dataclass(frozen=True)
class Comparer:
    """What a difference is computed from."""

    scores: Mapping[Place, Mapping[Quantity, SeedScores]]
    samples: Samples
    compare: Compare

    def difference(self, variant: Place, reference: Place, quantity: Quantity) -> Difference | None:
        """Not adjusted for others; None where one of them lacks the quantity, or they share no example."""
        sides = [self.scores.get(place, {}).get(quantity) for place in (variant, reference)]
        if sides[0] is None or sides[1] is None:
            return None
        return difference((variant, sides[0]), (reference, sides[1]), quantity, self.compare.interval)


def decide(comparer: Comparer, baselines: Mapping[Place, Place], headlines: Mapping[Place, Quantity]) -> dict[Pair, Difference]:
    """Every comparison with a baseline, adjusted; `headlines` are the quantities that variants are ranked by."""
    found = {
        (variant, reference, quantity): one
        for variant, reference in baselines.items()
        for quantity in comparer.samples.get(variant, {})
        if quantity.metric in QUALITY and (one := comparer.difference(variant, reference, quantity)) is not None
    }
    families: dict[object, list[Pair]] = {}
    for pair in found:
        if hypothesis(pair, found) == pair:
            families.setdefault(_family(pair, comparer, headlines), []).append(pair)
    adjusted: dict[Pair, Difference] = {}
    for pairs in families.values():
        for pair, p in zip(pairs, holm([found[pair].p for pair in pairs]), strict=True):
            adjusted[pair] = decided(found[pair], p, len(pairs), comparer.compare.margin.get(pair[2].metric))
    return {
        pair: adjusted[pair] if pair in adjusted else in_units(one, adjusted[hypothesis(pair, found)], comparer.compare)
        for pair, one in found.items()
    }


def hypothesis(pair: Pair, known: Mapping[Pair, Difference]) -> Pair:
    """The pair whose p value decides on `pair`: that of the bits per byte where it is a loss."""
    variant, reference, quantity = pair
    bits = (variant, reference, quantity._replace(metric="bits_per_byte"))
    return bits if quantity.metric == "loss" and bits in known else pair


def in_units(loss: Difference, bits: Difference, compare: Compare) -> Difference:
    """A difference of losses with the p values and, in its own units, the margin of that of the bits per byte."""
    margin = compare.margin.get("loss")
    if margin is None and bits.margin is not None:
        margin = bits.margin * loss.reference_mean / bits.reference_mean
    same = replace(loss, p=bits.p, p_documents=bits.p_documents, p_adjusted=bits.p_adjusted, margin=margin)
    return replace(same, mde=bits.mde * loss.reference_mean / bits.reference_mean)


def as_perplexity_difference(loss: Difference, margin: float | None) -> Difference:
    """The same difference of perplexities, at the reference's perplexity: that of a ratio, like the `+3 %` of a report."""
    at = math.exp(min(loss.reference_mean, 700))

    def moved(nats: float) -> float:
        return nats if math.isinf(nats) else at * math.expm1(min(nats, 700))

    found = replace(loss, quantity=loss.quantity._replace(metric="perplexity"), mean=moved(loss.mean), low=moved(loss.low))
    found = replace(found, high=moved(loss.high), mde=moved(loss.mde), variant_mean=at + moved(loss.mean), reference_mean=at)
    return replace(found, margin=margin if margin is not None or loss.margin is None else -moved(-loss.margin))


def adjusted_for_pairs(one: Difference, num_places: int, margin: float | None) -> Difference:
    """`one` as one of all pairs of `num_places` variants (Bonferroni)."""
    num_pairs = max(1, num_places * (num_places - 1) // 2)
    return decided(one, min(1.0, one.p * num_pairs), num_pairs, margin)


def _family(pair: Pair, comparer: Comparer, headlines: Mapping[Place, Quantity]) -> object:
    variant, _, quantity = pair
    splits = {other.split for other in comparer.samples[variant] if other._replace(split=quantity.split) == quantity}
    judged = quantity.split in _HELD_OUT or "test" not in splits
    declared = {_SAME_HYPOTHESIS.get(metric, metric) for metric in comparer.compare.family}
    chosen = quantity.metric in declared if declared else quantity == headlines.get(variant)
    if chosen and judged and not quantity.slice:
        return "declared"
    return (variant.base, variant.dataset, quantity.task, quantity.split, bool(quantity.slice))


_SAME_HYPOTHESIS = {"loss": "bits_per_byte", "perplexity": "bits_per_byte"}

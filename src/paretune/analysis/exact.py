"""Tests that keep their level on small counts, what they could have detected, and the correction for several of them.

Under the null hypothesis that two variants are alike, swapping their scores inside a document changes nothing: each document's
difference has either sign with probability 1/2. For right-or-wrong answers that is McNemar's exact test.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from scipy import optimize, stats

from paretune.analysis.estimate import SEED, Errors, Floats

POWER = 0.8
"""Probability with which the smallest detectable difference would be detected."""
_ALL_SIGNS = 14
"""Documents up to which all 2^n sign flips are listed."""
_RANDOM_SIGNS = 200
"""Documents up to which signs are drawn; beyond, the saddlepoint is as exact as 20,000 draws."""
_FLIPS = 20_000
_RARE = 25
"""Draws as extreme as what was seen, below which counting them is less exact than the saddlepoint."""
_EXACT_POWER = 300
"""Questions up to which power is summed over all outcomes rather than approximated."""


def sign_flip_p(sums: Floats) -> float:
    """Two-sided p value of the total of the documents' paired differences, if either sign of each were as likely."""
    sizes = np.abs(sums[sums != 0])
    total, num = abs(float(sums.sum())), len(sizes)
    if num == 0:
        return 1.0
    if np.all(sizes == sizes[0]):
        wins = int((sums > 0).sum())
        return float(stats.binomtest(wins, num).pvalue)
    if num > _RANDOM_SIGNS:
        return _saddlepoint_p(sizes, total)
    flipped = np.abs(_signs(num) @ sizes) >= total * (1 - 1e-12)
    if num > _ALL_SIGNS and flipped.sum() < _RARE:
        return _saddlepoint_p(sizes, total)
    return float(flipped.mean())


def sign_flip_interval(sums: Floats, weights: Floats, level: float) -> tuple[float, float]:
    """All differences that the sign-flip test does not reject, for few documents; infinite where it can reject none.

    `sums` are the documents' paired differences and `weights` their weights; the difference is sum(sums) / sum(weights). With
    fewer than 6 documents no test at 0.05 can reject anything, and the interval says so.
    """
    signs, alpha = _signs(len(sums)), 1 - level
    flipped_sums, flipped_weights = signs @ sums, signs @ weights
    total, weight = float(sums.sum()), float(weights.sum())

    def kept(shift: float) -> bool:
        observed = abs(total - shift * weight)
        return float(np.mean(np.abs(flipped_sums - shift * flipped_weights) >= observed * (1 - 1e-12))) > alpha

    mean, each = total / weight, sums / weights
    return (
        -_end(lambda shift: kept(-shift), -mean, -float(each.min())),
        _end(kept, mean, float(each.max())),
    )


def mcnemar_interval(wins: int, losses: int, num: int, level: float) -> tuple[float, float]:
    """Interval of (wins - losses) / num of paired right-or-wrong answers; leaves out 0 only where McNemar's exact test rejects.

    The hull of two: Bonett and Price's adjusted Wald interval (2012, https://doi.org/10.1111/j.2044-8317.2011.02032.x), which
    knows that `num` questions are few, and the exact interval given how many answers differ.
    """
    more, less = (wins + 1) / (num + 2), (losses + 1) / (num + 2)
    half = float(stats.norm.ppf((1 + level) / 2)) * np.sqrt((more + less - (more - less) ** 2) / (num + 2))
    ends = [more - less - half, more - less + half]
    if wins + losses:
        share = stats.binomtest(wins, wins + losses).proportion_ci(level, method="exact")
        ends += [(2 * end - 1) * (wins + losses) / num for end in (share.low, share.high)]
    return max(-1.0, float(min(ends))), min(1.0, float(max(ends)))


def fisher_p(right: int, num: int, other_right: int, other_num: int) -> float:
    """Fisher's exact test of two published counts of right answers, for which no pairs are known."""
    return float(stats.fisher_exact([[right, num - right], [other_right, other_num - other_right]]).pvalue)


def chance_p(right: int, num: int, chance: float) -> float:
    """Exact binomial test of `right` of `num` answers against guessing; of unequal chances the mean, which is conservative."""
    return float(stats.binomtest(right, num, chance).pvalue)


def with_seeds(p: float, mean: float, errors: Errors) -> float:
    """A p value over documents, raised to what the spread of the seeds allows."""
    if errors.seeds == 0:
        return p
    return max(p, float(2 * stats.t.sf(abs(mean) / errors.total, errors.freedom)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for each other (Holm 1979): the chance of any false one under alpha is at most alpha."""
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(p) for p in adjusted]


def smallest_detectable(errors: Errors, alpha: float) -> float:
    """The difference that a test at `alpha` finds with probability 0.8; infinite where so few documents can reject nothing."""
    if errors.num_documents < 2 or 2.0 ** (1 - errors.num_documents) > alpha:
        return float("inf")
    quantiles = stats.t.ppf(1 - alpha / 2, errors.freedom) + stats.t.ppf(POWER, errors.freedom)
    return float(quantiles) * errors.total


def smallest_detectable_share(num: int, differing: int, alpha: float) -> float:
    """The same for shares of right answers to `num` questions, of which `differing` were answered differently."""
    rate = (differing + 1) / (num + 2)

    def lacking(gap: float) -> float:
        return POWER - mcnemar_power(num, max(rate, gap), gap, alpha)

    return float("inf") if lacking(1.0) > 0 else float(optimize.brentq(lacking, 1e-9, 1.0, xtol=1e-4))


def mcnemar_power(num: int, rate: float, gap: float, alpha: float) -> float:
    """Chance that McNemar's test at `alpha` finds a gap of shares where `rate` of `num` questions are answered differently."""
    if num > _EXACT_POWER:
        z = float(stats.norm.ppf(1 - alpha / 2))
        scale = np.sqrt(max(rate - gap**2, 1e-12))
        return float(stats.norm.cdf((gap * np.sqrt(num) - z * np.sqrt(rate)) / scale))
    differing = np.arange(num + 1)
    needed = stats.binom.isf(alpha / 2, differing, 0.5)
    won = (1 + gap / rate) / 2
    found = stats.binom.sf(needed, differing, won) + stats.binom.sf(needed, differing, 1 - won)
    return float((stats.binom.pmf(differing, num, rate) * found).sum())


def _saddlepoint_p(sizes: Floats, total: float) -> float:
    """P(|sum of +-sizes| >= total) by Lugannani and Rice (1980): relative error of order 1 / len(sizes), in the tails too."""
    if total >= sizes.sum() * (1 - 1e-9):
        return float(2.0 ** (1 - len(sizes)))
    error = float(np.sqrt((sizes**2).sum()))
    if total < 1e-3 * error:
        return 1.0
    scaled, reached = sizes / error, total / error

    def slope(tilt: float) -> float:
        return float((scaled * np.tanh(tilt * scaled)).sum()) - reached

    upper = 1.0
    while slope(upper) < 0 and upper < 1e9:
        upper *= 2
    tilt = float(optimize.brentq(slope, 0.0, upper))
    turned = np.abs(tilt * scaled)
    generating = float((turned + np.log1p(np.exp(-2 * turned)) - np.log(2)).sum())
    root = np.sqrt(2 * max(tilt * reached - generating, 1e-300))
    curve = tilt * np.sqrt(float((scaled**2 / np.cosh(np.minimum(turned, 350)) ** 2).sum()))
    tail = stats.norm.sf(root) + stats.norm.pdf(root) * (1 / max(curve, 1e-300) - 1 / root)
    return min(1.0, max(2 * float(tail), float(2.0 ** (1 - len(sizes)))))


@lru_cache(maxsize=8)
def _signs(num: int) -> Floats:
    """Rows of +1 and -1: all of them for few, random ones (and the one that was seen) for more."""
    if num <= _ALL_SIGNS:
        return (((np.arange(2**num)[:, None] >> np.arange(num)) & 1) * 2 - 1).astype(np.float64)
    signs = (np.random.default_rng(SEED).integers(0, 2, (_FLIPS, num)) * 2 - 1).astype(np.float64)
    signs[0] = 1.0
    return signs


def _end(kept: Callable[[float], bool], start: float, farthest: float) -> float:
    """The largest value from `start` on that is kept; beyond `farthest` nothing new can be rejected."""
    step = max(abs(farthest - start), 1e-9 * abs(start), 1e-12)
    low, high = start, farthest + 1e-3 * step
    if kept(high):
        return float("inf")
    while high - low > 1e-5 * step:
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle) else (low, middle)
    return high

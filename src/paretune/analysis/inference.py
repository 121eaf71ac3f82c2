"""Intervals, tests and what they could have detected, for scores whose examples come in documents.

Every figure is a ratio sum(value * weight) / sum(weight), never a mean of ratios. Examples of one document resemble each other,
so the unit is the document: documents are resampled, and under the null hypothesis that two variants are alike each document's
difference has either sign with probability 1/2 (for right-or-wrong answers that is McNemar's exact test). Everything is seeded;
equal input gives equal figures.

A paired difference has one procedure, its intervals: they are nested, and its p value is the smallest alpha whose interval
leaves out 0. So a verdict that is read off an interval and the p value beside it never contradict each other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DRAWS = 10_000
SEED = 20240
FEW_DOCUMENTS = 50
"""Below, resampling knows the tails less well than a t quantile or a sign-flip test does."""
_BUNDLES = 500
"""Documents resampled one by one; more are bundled at random, which keeps the size and the skewness of their total."""
_ROUNDING = 1e-12
"""Of the ratio itself: an error smaller than this is float rounding."""
_LEAST_ERROR = 0.25
"""Of the standard error itself: a draw that happens to hold equal documents only would say that nothing is uncertain."""
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
_GRID = np.arange(1, 1000) / 1000
"""Probabilities at which quantiles of resampled figures are kept; beyond, they are scaled like those of Student's t."""
_MOST_DOCUMENTS = 10_000_000
"""Beyond which nobody is told how many documents would do."""


@dataclass(frozen=True)
class Errors:
    """What makes a figure uncertain: standard errors over documents and over training seeds, each with degrees of freedom."""

    documents: float
    num_documents: int
    seeds: float = 0.0
    seed_freedom: float = 1.0

    @property
    def total(self) -> float:
        return float(np.hypot(self.documents, self.seeds))

    @property
    def freedom(self) -> float:
        """Of the sum of both variances (Satterthwaite 1946)."""
        of_documents = max(1, self.num_documents - 1)
        if self.total == 0:
            return float(of_documents)
        return float(self.total**4 / (self.documents**4 / of_documents + self.seeds**4 / self.seed_freedom))

    def on(self, num_documents: int) -> "Errors":
        """What they would be on so many documents of the same kind."""
        documents = self.documents * float(np.sqrt(self.num_documents / num_documents))
        return replace(self, documents=documents, num_documents=num_documents)


@dataclass(frozen=True, eq=False)
class Contrast:
    """A paired difference, sum(sums) / sum(weights) over documents, with all of its intervals.

    Below 50 documents an interval holds what the sign-flip test does not reject, from 50 on it is that of the studentised
    bootstrap. Right-or-wrong answers of one seed have the hull of McNemar's exact interval and Bonett and Price's. The spread
    of seeds widens each interval.
    """

    sums: Floats
    weights: Floats
    errors: Errors
    apart: tuple[int, int] | None = None
    """Questions that one side alone answered rightly, and the other; only for one seed and right-or-wrong answers."""

    @cached_property
    def mean(self) -> float:
        return float(self.sums.sum() / self.weights.sum())

    @property
    def mirrored(self) -> "Contrast":
        """The same from the other side."""
        return replace(self, sums=-self.sums, apart=None if self.apart is None else self.apart[::-1])

    @cached_property
    def p_documents(self) -> float:
        """That so large a difference of these very weights comes from nothing: without the spread of the seeds."""
        if self.apart is not None:
            return mcnemar_p(*self.apart, len(self.sums))
        return sign_flip_p(self.sums) if self._by_signs else self._resampled_p(0.0)

    @cached_property
    def p(self) -> float:
        """That so large a difference comes from nothing: the smallest alpha whose interval leaves out 0."""
        if self.errors.seeds == 0 or self.p_documents >= 1:
            return self.p_documents
        p_of = self._p_of()
        low, high = np.log(max(self.p_documents, 1e-300)), 0.0
        while high - low > 1e-6:
            alpha = float(np.exp((low + high) / 2))
            moved = self._moved_by_seeds(alpha)
            rejected = abs(moved) < abs(self.mean) and p_of(moved) <= alpha
            low, high = (low, (low + high) / 2) if rejected else ((low + high) / 2, high)
        return float(np.exp(high))

    def interval(self, alpha: float) -> tuple[float, float]:
        """With coverage 1 - `alpha`; NaN twice for one document, infinite where so few documents reject nothing."""
        num, mean = len(self.sums), self.mean
        if num < 2:
            return float("nan"), float("nan")
        rejected = self.p <= alpha * (1 + 1e-12)
        if self.apart is not None:
            low, high = mcnemar_interval(*self.apart, num, 1 - alpha)
        elif self._by_signs:
            low, high = self._not_rejected(alpha)
        else:
            low, high = (mean - end * self.errors.documents for end in self._quantiles_at(alpha)[::-1])
        low, high = widened((min(low, mean), max(high, mean)), mean, self.errors, 1 - alpha)
        # Rounding and interpolation decide nothing: the p value is that of the same procedure.
        tiny = max(1e-9 * abs(mean), 1e-300)
        if mean > 0:
            low = max(low, tiny) if rejected else min(low, 0.0)
        if mean < 0:
            high = min(high, -tiny) if rejected else max(high, 0.0)
        return float(low), float(high)

    @property
    def _by_signs(self) -> bool:
        """Differences that are all alike cannot be resampled either."""
        return len(self.sums) < FEW_DOCUMENTS or self.errors.documents == 0

    @cached_property
    def _quantiles(self) -> Floats:
        """Of the resampled difference, in standard errors, at each probability of the grid."""
        found: Floats = np.quantile(_pivots(self.sums, self.weights), _GRID)
        return found

    def _quantiles_at(self, alpha: float) -> tuple[float, float]:
        if alpha / 2 >= _GRID[0]:
            low, high = np.interp([alpha / 2, 1 - alpha / 2], _GRID, self._quantiles)
            return float(low), float(high)
        beyond = float(stats.t.ppf(alpha / 2, len(self.sums) - 1) / stats.t.ppf(_GRID[0], len(self.sums) - 1))
        return beyond * float(self._quantiles[0]), beyond * float(self._quantiles[-1])

    def _resampled_p(self, shift: float) -> float:
        """Of the bootstrap, that the difference is `shift`."""
        pivot = (self.mean - shift) / self.errors.documents
        quantiles = self._quantiles if pivot > 0 else -self._quantiles[::-1]
        pivot, last, freedom = abs(pivot), float(quantiles[-1]), len(self.sums) - 1
        if pivot <= last:
            return min(1.0, 2 * float(1 - np.interp(pivot, quantiles, _GRID)))
        return float(2 * stats.t.sf(pivot / last * stats.t.ppf(_GRID[-1], freedom), freedom))

    def _p_of(self) -> Callable[[float], float]:
        """The p value over documents of each difference that could be the true one."""
        if not self._by_signs:
            return self._resampled_p
        if self.errors.documents == 0:
            return lambda shift: 1.0 if shift == self.mean else 2.0 ** (1 - len(self.sums))
        signs = _signs(len(self.sums))
        flipped_sums, flipped_weights = signs @ self.sums, signs @ self.weights

        def p_of(shift: float) -> float:
            left = self.sums - shift * self.weights
            total, drawn = abs(float(left.sum())), len(self.sums) > _ALL_SIGNS
            extreme = int((np.abs(flipped_sums - shift * flipped_weights) >= total * (1 - 1e-12)).sum())
            return _saddlepoint_p(np.abs(left), total) if drawn and extreme < _RARE else extreme / len(signs)

        return p_of

    def _not_rejected(self, alpha: float) -> tuple[float, float]:
        """All differences that the sign-flip test does not reject."""
        p_of, each = self._p_of(), self.sums / self.weights
        return (
            -_end(lambda shift: p_of(-shift) > alpha, -self.mean, -float(each.min())),
            _end(lambda shift: p_of(shift) > alpha, self.mean, float(each.max())),
        )

    def _moved_by_seeds(self, alpha: float) -> float:
        """The end of the interval over documents that `widened` takes to 0, on its way from the mean."""
        if self.errors.documents == 0:
            half = -float(special.stdtrit(self.errors.seed_freedom, alpha / 2)) * self.errors.seeds
            return half if self.mean > 0 else -half
        return self.mean * (1 - 1 / _widening(self.errors, alpha))


def standard_error(sums: Floats, weights: Floats) -> float:
    """Of the ratio of the totals, linearised; `sums` and `weights` are document totals, shape (documents,). NaN for one."""
    num = len(sums)
    if num < 2:
        return float("nan")
    ratio = sums.sum() / weights.sum()
    residuals = sums - ratio * weights
    error = float(np.sqrt(num / (num - 1) * (residuals**2).sum()) / weights.sum())
    return error if error > _ROUNDING * abs(ratio) else 0.0


def ratio_interval(sums: Floats, weights: Floats, level: float) -> tuple[float, float]:
    """Interval of the ratio of the totals; NaN twice for fewer than two documents.

    Studentised cluster bootstrap (Efron and Tibshirani 1993, chapter 12); for fewer than 50 documents t quantiles.
    """
    num, mean, error = len(sums), float(sums.sum() / weights.sum()), standard_error(sums, weights)
    if num < FEW_DOCUMENTS or error == 0:
        half = float(stats.t.ppf((1 + level) / 2, num - 1)) * error if num > 1 else float("nan")
        return mean - half, mean + half
    low, high = np.quantile(_pivots(sums, weights), [(1 - level) / 2, (1 + level) / 2])
    return mean - float(high) * error, mean - float(low) * error


def _pivots(sums: Floats, weights: Floats) -> Floats:
    """(resampled ratio - ratio) / its own standard error, one a draw."""
    residuals = sums - sums.sum() / weights.sum() * weights
    if len(sums) > _BUNDLES:
        bundle = np.random.default_rng(SEED).permutation(len(sums)) % _BUNDLES
        residuals, weights = (np.bincount(bundle, each).astype(np.float64) for each in (residuals, weights))
    num, error = len(weights), standard_error(residuals, weights)
    columns = np.stack([residuals, weights, residuals**2, residuals * weights, weights**2], axis=1)
    shift, weight, squares, products, weight_squares = (_counts(num) @ columns).T
    shift = shift / weight
    variance = squares - 2 * shift * products + shift**2 * weight_squares
    errors = np.sqrt(np.maximum(variance, 0) * num / (num - 1)) / weight
    pivots: Floats = shift / np.maximum(errors, _LEAST_ERROR * error)
    return pivots


@lru_cache(maxsize=4)
def _counts(num: int) -> Floats:
    """How often each of `num` is drawn, shape (DRAWS, num); each row sums to `num`."""
    drawn = np.random.default_rng(SEED).integers(0, num, (DRAWS, num))
    flat = np.bincount((drawn + num * np.arange(DRAWS)[:, None]).ravel(), minlength=DRAWS * num)
    return flat.reshape(DRAWS, num).astype(np.float64)


def wilson_interval(share: float, num_examples: int, level: float) -> tuple[float, float]:
    """Score interval of a share of independent right-or-wrong answers (Wilson 1927): sensible at 0, at 1 and for few."""
    z = float(stats.norm.ppf((1 + level) / 2))
    scale = 1 + z * z / num_examples
    centre = (share + z * z / (2 * num_examples)) / scale
    half = z / scale * float(np.sqrt(share * (1 - share) / num_examples + (z / (2 * num_examples)) ** 2))
    return max(0.0, centre - half), min(1.0, centre + half)


def widened(interval: tuple[float, float], mean: float, errors: Errors, level: float) -> tuple[float, float]:
    """An interval over documents, widened by how far seeds lie apart; as it is where they do not."""
    if errors.num_documents < 2 or errors.documents == 0 or errors.seeds == 0:
        half = 0.0 if errors.seeds == 0 else float(stats.t.ppf((1 + level) / 2, errors.seed_freedom)) * errors.seeds
        return interval[0] - half, interval[1] + half
    factor = _widening(errors, 1 - level)
    return mean - (mean - interval[0]) * factor, mean + (interval[1] - mean) * factor


def _widening(errors: Errors, alpha: float) -> float:
    wide = special.stdtrit(errors.freedom, alpha / 2) * errors.total
    narrow = special.stdtrit(errors.num_documents - 1, alpha / 2) * errors.documents
    return max(1.0, float(wide / narrow))


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


def mcnemar_p(wins: int, losses: int, num: int) -> float:
    """The smallest alpha at which `mcnemar_interval` leaves out 0: the larger p value of the two procedures."""
    if wins == losses:
        return 1.0
    more, less = (wins + 1) / (num + 2), (losses + 1) / (num + 2)
    error = np.sqrt((more + less - (more - less) ** 2) / (num + 2))
    return max(float(stats.binomtest(wins, wins + losses).pvalue), float(2 * stats.norm.sf(abs(more - less) / error)))


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


def chance_p(right: int, num: int, chance: float, alternative: Literal["two-sided", "less"] = "two-sided") -> float:
    """Exact binomial test of `right` of `num` answers against guessing; of unequal chances the mean, which is conservative."""
    return float(stats.binomtest(right, num, chance, alternative).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for each other (Holm 1979): the chance of any false one under alpha is at most alpha."""
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(p) for p in adjusted]


def holm_alphas(p_values: Sequence[float], alpha: float) -> list[float]:
    """The alpha of the step at which Holm's procedure decides on each p value; where it stops, it stays for all that follow.

    A p value is at most its own alpha exactly where the adjusted one is at most `alpha`.
    """
    order = np.argsort(p_values, kind="stable")
    alphas, step, stopped = np.empty(len(order)), alpha / max(1, len(order)), False
    for index, which in enumerate(order):
        step = step if stopped else alpha / (len(order) - index)
        stopped = stopped or p_values[which] > step * (1 + 1e-12)
        alphas[which] = step
    return [float(each) for each in alphas]


def documents_needed(errors: Errors, loss: float, margin: float, alpha: float) -> int | None:
    """How many documents of the same kind would show a `loss` as large as the one that was seen to lie within `margin`.

    None where none would: the loss itself is no smaller than the margin, or seeds lie too far apart.
    """

    def shows(num: int) -> bool:
        there = errors.on(num)
        return loss + float(stats.t.ppf(1 - alpha / 2, there.freedom)) * there.total <= margin

    low, high = errors.num_documents, _MOST_DOCUMENTS
    if low < 2 or loss >= margin or not shows(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shows(middle) else (middle, high)
    return high


def smallest_detectable(errors: Errors, alpha: float) -> float:
    """The difference that a test at `alpha` finds with probability 0.8; infinite where so few documents can reject nothing."""
    if errors.num_documents < 2 or 2.0 ** (1 - errors.num_documents) > alpha:
        return float("inf")
    quantiles = stats.t.ppf(1 - alpha / 2, errors.freedom) + stats.t.ppf(POWER, errors.freedom)
    return float(quantiles) * errors.total


def smallest_detectable_share(num: int, differing: int, alpha: float) -> float:
    """The difference between shares of right answers that McNemar's test at `alpha` finds with probability 0.8.

    Of `num` questions `differing` were answered differently; infinite where so few questions can reject nothing.
    """
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

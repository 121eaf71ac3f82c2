"""Intervals for weighted means whose examples come in documents.

An estimate is sum(value * weight) / sum(weight). Examples of one document resemble each other, so documents are resampled and
not examples (cluster bootstrap). The same draws serve every column that has the same documents: differences of two columns of
replicates are paired. Everything is seeded; equal input gives equal intervals.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DRAWS = 2000
_SEED = 20240
_BLOCK = 1 << 22
"""Counts held at a time (32 MiB)."""
_EXACT_SIGNS = 14
"""Documents up to which all 2^n sign flips are listed."""


def resample_counts(num_documents: int, draws: int = DRAWS, seed: int = _SEED) -> Iterator[Floats]:
    """How often each document is drawn, in blocks of shape (some draws, num_documents); each row sums to num_documents."""
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // num_documents)
    for start in range(0, draws, rows):
        counts = np.empty((min(rows, draws - start), num_documents))
        for row in counts:
            # One draw at a time: its counts stay in the processor's cache, which is three times as fast as a whole block.
            row[:] = np.bincount(rng.integers(0, num_documents, num_documents, np.uint32), minlength=num_documents)
        yield counts


def bootstrap(sums: Floats, weights: Floats, draws: int = DRAWS, seed: int = _SEED) -> Floats:
    """Estimates of resampled sets of documents, shape (draws, columns).

    `sums` and `weights` have shape (documents, columns): of each document sum(value * weight) and sum(weight).
    """
    columns = sums.shape[1]
    # Most columns of a study have the same weights: tokens or bytes of the documents.
    distinct, owner = np.unique(weights, axis=1, return_inverse=True)
    both = np.concatenate([sums, distinct], axis=1)
    totals = np.concatenate([counts @ both for counts in resample_counts(len(sums), draws, seed)])
    ratio: Floats = totals[:, :columns] / totals[:, columns + owner]
    return ratio


def percentile_interval(replicates: Floats, level: float, num_documents: int) -> tuple[float, float]:
    """The expanded percentile interval of one column of replicates; NaN twice for fewer than two documents.

    The plain percentile interval is too narrow for few documents, by the factor that separates a normal quantile with the
    n-denominator variance from a t quantile; the tail probability is lowered by just that (Hesterberg 2015, "What teachers
    should know about the bootstrap", section 3.3).
    """
    if num_documents < 2:
        return float("nan"), float("nan")
    t = stats.t.ppf((1 + level) / 2, num_documents - 1)
    tail = float(stats.norm.sf(np.sqrt(num_documents / (num_documents - 1)) * t))
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def wilson_interval(share: float, num_examples: int, level: float) -> tuple[float, float]:
    """Score interval of a share of independent right-or-wrong answers (Wilson 1927): sensible at 0, at 1 and for few."""
    z = float(stats.norm.ppf((1 + level) / 2))
    scale = 1 + z * z / num_examples
    centre = (share + z * z / (2 * num_examples)) / scale
    half = z / scale * float(np.sqrt(share * (1 - share) / num_examples + (z / (2 * num_examples)) ** 2))
    return max(0.0, centre - half), min(1.0, centre + half)


def sign_flip_p(sums: Floats, seed: int = _SEED) -> float:
    """Two-sided p value of the total of paired differences, one for each document, if either sign were as likely.

    Exact up to 14 documents with a difference (for right-or-wrong answers it is McNemar's exact test), 20,000 random flips
    beyond that.
    """
    nonzero = sums[sums != 0]
    return _flipped_p(*_flips(nonzero, np.zeros_like(nonzero), seed), 0.0) if len(nonzero) else 1.0


def sign_flip_interval(sums: Floats, weights: Floats, level: float, seed: int = _SEED) -> tuple[float, float]:
    """All differences that the sign-flip test does not reject, for few documents; infinite where it can reject none.

    `sums` are the documents' paired differences and `weights` their weights; the difference is sum(sums) / sum(weights). With
    fewer than 6 documents no test at 0.05 can reject anything, and the interval says so.
    """
    parts = _flips(sums, weights, seed)
    mean, each = float(sums.sum() / weights.sum()), sums / weights
    alpha = 1 - level
    return (
        -_end(lambda shift: _flipped_p(*parts, -shift) > alpha, -mean, -float(each.min())),
        _end(lambda shift: _flipped_p(*parts, shift) > alpha, mean, float(each.max())),
    )


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


def _flips(sums: Floats, weights: Floats, seed: int) -> tuple[Floats, Floats, float, float]:
    """Totals of `sums` and of `weights` under sign flips, and without them."""
    num = len(sums)
    if num <= _EXACT_SIGNS:
        signs = ((np.arange(2**num)[:, None] >> np.arange(num)) & 1) * 2.0 - 1
    else:
        signs = np.random.default_rng(seed).integers(0, 2, (20_000, num)) * 2.0 - 1
        signs[0] = 1.0  # what was observed is one of the flips
    return signs @ sums, signs @ weights, float(sums.sum()), float(weights.sum())


def _flipped_p(sums: Floats, weights: Floats, total: float, weight: float, shift: float) -> float:
    observed = abs(total - shift * weight)
    return float(np.mean(np.abs(sums - shift * weights) >= observed * (1 - 1e-12)))


def widen_for_seeds(
    interval: tuple[float, float],
    mean: float,
    *,
    error: float,
    num_documents: int,
    seed_variance: float,
    freedom: int,
    level: float,
) -> tuple[float, float]:
    """`interval` of a mean over seeds, widened by how far the seeds lie apart.

    `error` is the standard error from resampling documents; `seed_variance` that of the mean over seeds, known with `freedom`
    degrees of freedom. The variances add, and the t quantile has Satterthwaite's degrees of freedom (1946).
    """
    if error <= 0 or seed_variance <= 0 or num_documents < 2:
        return interval
    total = error**2 + seed_variance
    joint = total**2 / (error**4 / (num_documents - 1) + seed_variance**2 / freedom)
    wide = stats.t.ppf((1 + level) / 2, joint) * np.sqrt(total)
    narrow = stats.t.ppf((1 + level) / 2, num_documents - 1) * error
    factor = max(1.0, float(wide / narrow))
    return mean - (mean - interval[0]) * factor, mean + (interval[1] - mean) * factor

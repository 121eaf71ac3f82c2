"""Intervals for ratios whose examples come in documents: sum(value * weight) / sum(weight), never a mean of ratios.

Examples of one document resemble each other, so the unit is the document: an interval's spread is that of document totals, and
documents are resampled. Everything is seeded; equal input gives equal intervals.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import stats

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
    wide = stats.t.ppf((1 + level) / 2, errors.freedom) * errors.total
    narrow = stats.t.ppf((1 + level) / 2, errors.num_documents - 1) * errors.documents
    factor = max(1.0, float(wide / narrow))
    return mean - (mean - interval[0]) * factor, mean + (interval[1] - mean) * factor

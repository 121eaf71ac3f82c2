"""How far raters agree: Krippendorff's alpha for ordered ratings, with an interval over items, and weighted kappa for pairs.

Alpha is 1 minus the disagreement that was seen over what raters who guess by the same numbers would show: 1 is perfect, 0 is
chance. It takes any number of raters and missing ratings, and a distance of ranks: 1 and 2 lie farther apart where many ratings
lie between them.
"""

from dataclasses import dataclass

import numpy as np

from paretune.analysis.estimate import SEED, Floats, Ints

RELIABLE, TENTATIVE = 0.8, 0.667
"""Of alpha: from the first on conclusions can be drawn, from the second on tentative ones, below it none (Krippendorff 2004,
Content Analysis, 2nd edition, page 241)."""
_DRAWS = 2000


@dataclass(frozen=True)
class Agreement:
    """Alpha of at least two raters; NaN where all ratings are one number, which shows nothing."""

    alpha: float
    low: float
    high: float
    num_items: int
    """With two ratings or more."""


def agreement(ratings: Floats, level: float) -> Agreement | None:
    """Of `ratings`, shape (raters, items), NaN where one is missing; None where no item has two.

    The interval is a bootstrap over items (Zapf et al. 2016, https://doi.org/10.1186/s12874-016-0200-9).
    """
    pairs = _coincidences(ratings)
    if not len(pairs):
        return None
    flat = pairs.reshape(len(pairs), -1)
    alpha = float(_alpha(flat.sum(axis=0, keepdims=True))[0])
    drawn = np.random.default_rng(SEED).multinomial(len(flat), np.full(len(flat), 1 / len(flat)), size=_DRAWS)
    alphas = _alpha(drawn @ flat)
    alphas = alphas[~np.isnan(alphas)]
    low, high = np.quantile(alphas, [(1 - level) / 2, (1 + level) / 2]) if len(alphas) else (np.nan, np.nan)
    return Agreement(alpha, float(low), float(high), len(pairs))


def weighted_kappa(one: Floats, other: Floats) -> float:
    """Cohen's kappa (1968) of two raters with quadratic weights, on what both rated; NaN where nobody varies."""
    both = ~np.isnan(one) & ~np.isnan(other)
    left, right = one[both], other[both]
    if not len(left):
        return float("nan")
    expected = float(((left[:, None] - right[None, :]) ** 2).mean())
    return 1 - float(((left - right) ** 2).mean()) / expected if expected else float("nan")


def _coincidences(ratings: Floats) -> Floats:
    """Pairs of values within each item, shape (items with pairs, values, values), each rating weighing 1 in all."""
    values, codes = np.unique(ratings[~np.isnan(ratings)], return_inverse=True)
    coded: Ints = np.full(ratings.shape, -1, dtype=np.int64)
    coded[~np.isnan(ratings)] = codes
    counts = np.stack([(coded == code).sum(axis=0) for code in range(len(values))], axis=1) if len(values) else np.zeros((0, 0))
    counts = counts[counts.sum(axis=1) > 1]
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(counts.shape[1])
    found: Floats = pairs / (counts.sum(axis=1) - 1)[:, None, None]
    return found


def _alpha(coincidences: Floats) -> Floats:
    """Alpha of each row of coincidences, shape (rows, values * values)."""
    size = int(np.sqrt(coincidences.shape[1]))
    seen = coincidences.reshape(-1, size, size)
    totals = seen.sum(axis=2)
    ranks = totals.cumsum(axis=1) - totals / 2
    distances = (ranks[:, :, None] - ranks[:, None, :]) ** 2
    expected = (totals[:, :, None] * totals[:, None, :] * distances).sum(axis=(1, 2))
    disagreement = (totals.sum(axis=1) - 1) * (seen * distances).sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = np.where(expected > 0, 1 - disagreement / expected, np.nan)
    return found

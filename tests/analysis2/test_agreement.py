"""Agreement against published worked examples and the definition, term by term."""

import itertools

import numpy as np
import pytest

from paretune.analysis2.agreement import agreement, weighted_kappa

_NAN = float("nan")
PUBLISHED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, _NAN, _NAN, _NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _NAN, 3],
        [_NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _NAN],
    ]
)
"""Four observers and twelve units of Krippendorff (2011), Computing Krippendorff's alpha-reliability, examples C and D."""
ANXIETY = (
    [3, 3, 3, 4, 5, 5, 2, 3, 5, 2, 2, 6, 1, 5, 2, 2, 1, 2, 4, 3],
    [3, 6, 4, 6, 2, 4, 2, 4, 3, 3, 2, 3, 3, 3, 2, 2, 1, 3, 3, 4],
)
"""Two raters of the `anxiety` data of the R package irr, whose manual gives the kappa with squared weights."""


def test_alpha_is_that_of_krippendorff_s_example() -> None:
    found = agreement(PUBLISHED, 0.95)
    assert found is not None
    assert found.alpha == pytest.approx(0.815, abs=5e-4)
    assert found.num_items == 11
    assert found.low < found.alpha <= found.high


def test_kappa_is_that_of_the_irr_manual() -> None:
    one, other = (np.array(ratings, dtype=float) for ratings in ANXIETY)
    assert weighted_kappa(one, other) == pytest.approx(0.297, abs=5e-4)
    assert weighted_kappa(one, one) == 1
    assert np.isnan(weighted_kappa(np.full(3, 4.0), np.full(3, 4.0)))
    assert np.isnan(weighted_kappa(np.array([1.0, _NAN]), np.array([_NAN, 2.0])))


def test_alpha_is_its_definition_term_by_term() -> None:
    rng = np.random.default_rng(3)
    ratings = rng.integers(1, 6, (3, 25)).astype(float)
    ratings[rng.random(ratings.shape) < 0.2] = _NAN
    found = agreement(ratings, 0.95)
    assert found is not None
    assert found.alpha == pytest.approx(_alpha(ratings), abs=1e-12)


def test_strangers_do_not_agree_and_copies_do() -> None:
    rng = np.random.default_rng(0)
    strangers = rng.integers(1, 6, (2, 200)).astype(float)
    found = agreement(strangers, 0.95)
    assert found is not None
    assert found.low < 0 < found.high
    copies = agreement(strangers[[0, 0]], 0.95)
    assert copies is not None
    assert (copies.alpha, copies.low, copies.high) == (1, 1, 1)


@pytest.mark.parametrize("ratings", [[[3.0, 3.0], [3.0, 3.0]], [[3.0], [3.0]]])
def test_equal_ratings_show_nothing(ratings: list[list[float]]) -> None:
    found = agreement(np.array(ratings), 0.95)
    assert found is not None
    assert np.isnan(found.alpha)
    assert np.isnan(found.low)


@pytest.mark.parametrize("ratings", [[[1.0, _NAN], [_NAN, 2.0]], [[_NAN], [_NAN]], [[1.0, 2.0]]])
def test_without_an_item_of_two_ratings_there_is_no_agreement(ratings: list[list[float]]) -> None:
    assert agreement(np.array(ratings), 0.95) is None


def test_the_interval_holds_the_truth() -> None:
    """95 of 100 samples of 40 items, from raters whose alpha over 20,000 items is known."""
    rng = np.random.default_rng(1)

    def drawn(num: int) -> np.ndarray:
        quality = rng.normal(3, 1, num)
        return np.clip(np.rint(quality + rng.normal(0, 0.5, (2, num))), 1, 5)

    parts = [agreement(drawn(1000), 0.95) for _ in range(20)]
    truth = float(np.mean([one.alpha for one in parts if one is not None]))
    found = [agreement(drawn(40), 0.95) for _ in range(100)]
    assert 87 <= sum(one is not None and one.low <= truth <= one.high for one in found) <= 100


def _alpha(ratings: np.ndarray) -> float:
    """Observed over expected disagreement, pair by pair."""
    units = [column[~np.isnan(column)] for column in ratings.T]
    units = [unit for unit in units if len(unit) > 1]
    pooled = np.concatenate(units)
    values, counts = np.unique(pooled, return_counts=True)

    def distance(one: float, other: float) -> float:
        low, high = sorted((one, other))
        between = counts[(values >= low) & (values <= high)].sum()
        ends = counts[values == low].sum() + counts[values == high].sum()
        return float(between - ends / 2) ** 2

    observed = sum(distance(a, b) / (len(unit) - 1) for unit in units for a, b in itertools.permutations(unit, 2)) / len(pooled)
    expected = sum(distance(a, b) for a, b in itertools.permutations(pooled, 2)) / (len(pooled) * (len(pooled) - 1))
    return 1 - observed / expected

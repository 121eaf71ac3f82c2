"""Answers that are known beforehand: figures of statsmodels 0.15.0, and a comparison of two answers that has no winner."""

import math

import numpy as np
import pytest

from paretune.analysis.compare import Difference, difference
from paretune.analysis.inference import fisher_p, holm, ratio_interval, sign_flip_p, standard_error, wilson_interval
from paretune.analysis.scores import Entrant, Items, Quantity, Scores
from paretune.report.words import detectable

DOCUMENTS = np.array([0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5])
VALUES = np.array([1.2, 1.5, 0.9, 1.1, 1.0, 2.0, 1.8, 1.4, 1.3, 1.6, 1.2, 0.7, 0.8, 1.9, 2.1])
TOKENS = np.array([10, 30, 20, 20, 15, 40, 12, 25, 25, 10, 10, 50, 8, 16, 16.0])


@pytest.mark.parametrize(
    ("weights", "mean", "error", "low", "high"),
    [
        (TOKENS, 1.3501628664495116, 0.20061564436430268, 0.83446394, 1.8658618),
        (np.ones(15), 1.3666666666666665, 0.170888744401037, 0.92738316, 1.80595017),
    ],
)
def test_clustered_means_are_those_of_a_regression_with_cluster_robust_errors(
    weights: np.ndarray, mean: float, error: float, low: float, high: float
) -> None:
    """`sm.WLS(VALUES, ones, weights).fit(cov_type="cluster", cov_kwds={"groups": DOCUMENTS}, use_t=True)`."""
    sums, totals = np.bincount(DOCUMENTS, VALUES * weights), np.bincount(DOCUMENTS, weights)
    assert sums.sum() / totals.sum() == pytest.approx(mean, rel=1e-12)
    assert standard_error(sums, totals) == pytest.approx(error, rel=1e-12)
    assert ratio_interval(sums, totals, 0.95) == pytest.approx((low, high), abs=1e-8)


@pytest.mark.parametrize(("only_one", "only_other", "p"), [(6, 2, 0.2890625), (1, 9, 0.021484375), (4, 2, 0.6875)])
def test_paired_answers_have_the_p_value_of_mcnemar_exact(only_one: int, only_other: int, p: float) -> None:
    differences = np.array([1.0] * only_one + [-1.0] * only_other + [0.0] * 7)
    assert sign_flip_p(differences) == pytest.approx(p, rel=1e-9)


def test_holm_is_that_of_multipletests() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005, 0.2]) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.2])


@pytest.mark.parametrize(
    ("right", "num", "low", "high"),
    [
        (5, 20, 0.11186170140766563, 0.4687008776187441),
        (7, 20, 0.18119182410108203, 0.5671457233147638),
        (0, 10, 0.0, 0.27753279986288926),
        (61, 100, 0.5120301704584073, 0.6998312599360558),
    ],
)
def test_shares_have_the_interval_of_proportion_confint(right: int, num: int, low: float, high: float) -> None:
    assert wilson_interval(right / num, num, 0.95) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize("both", range(6))
def test_five_and_seven_of_twenty_have_no_winner_however_they_overlap(both: int) -> None:
    """25 % against 35 % are two answers; `both` of them are right on both sides."""
    found = _answers(right=5, other_right=7, both=both, num=20)
    assert (found.reference_mean, found.variant_mean) == (0.25, 0.35)
    assert found.verdict == "no difference detected"
    assert found.low < 0 < found.high
    assert found.mde > 0.2
    told = detectable(found)
    assert not math.isfinite(found.mde) or told == f"{100 * found.mde:.1f} points"
    assert fisher_p(5, 20, 7, 20) == pytest.approx(0.7311, abs=1e-4)


def _answers(right: int, other_right: int, both: int, num: int) -> Difference:
    one, other = np.zeros(num), np.zeros(num)
    one[:right] = 1
    other[right - both : right - both + other_right] = 1
    names = np.array([f"q{index}" for index in range(num)], dtype=object)
    items = Items(names, names)
    sides = [(Entrant("b", "d", name), {0: Scores(items, side, np.ones(num))}) for name, side in (("y", other), ("x", one))]
    found = difference(sides[0], sides[1], Quantity("qa", "", "accuracy"), 0.95)
    assert found is not None
    return found

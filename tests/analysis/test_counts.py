import itertools
import math

import numpy as np
import pytest
from scipy import stats

import paretune
from paretune.analysis.counts import compare_counts
from paretune.errors import SpecError


def power(num: int, share: float, other_num: int, other: float) -> float:
    """Of Fisher's test at 0.05, over all outcomes."""
    counts, other_counts = np.arange(num + 1), np.arange(other_num + 1)
    chances = np.outer(stats.binom.pmf(counts, num, share), stats.binom.pmf(other_counts, other_num, other))
    found = [[stats.fisher_exact([[a, num - a], [b, other_num - b]]).pvalue <= 0.05 for b in other_counts] for a in counts]
    return float(chances[np.array(found)].sum())


def test_five_and_seven_of_twenty_are_not_apart() -> None:
    found = paretune.compare_counts(5, 20, 7, 20)
    assert found == compare_counts(5, 20, 7, 20)
    assert (found.shares, found.difference) == ((0.25, 0.35), pytest.approx(0.1))
    assert found.p == pytest.approx(0.7311, abs=1e-4)
    # Newcombe's method 10 by hand, from the Wilson intervals 0.1119 to 0.4687 and 0.1812 to 0.5671.
    assert found.interval == pytest.approx((-0.1763, 0.3573), abs=1e-4)
    assert found.items_needed == 349  # as Fleiss' tables have it for 0.25 and 0.35
    assert found.detectable == pytest.approx(0.47, abs=0.01)


def test_the_interval_holds_no_difference_exactly_where_the_test_rejects_nothing() -> None:
    for num, other_num, level in ((6, 6, 0.95), (3, 20, 0.9), (12, 15, 0.95), (10, 10, 0.8)):
        for right, other in itertools.product(range(num + 1), range(other_num + 1)):
            found = compare_counts(right, num, other, other_num, level)
            low, high = found.interval
            assert (low <= 0 <= high) == (found.p > 1 - level)
            assert -1 <= low <= found.difference <= high <= 1


@pytest.mark.parametrize(("right", "num", "other", "other_num"), [(5, 20, 7, 20), (10, 40, 11, 40), (15, 30, 20, 60)])
def test_what_would_have_been_detected_has_the_power_that_is_said(right: int, num: int, other: int, other_num: int) -> None:
    found = compare_counts(right, num, other, other_num)
    share = right / num + math.copysign(found.detectable, found.difference)
    assert power(num, right / num, other_num, share) == pytest.approx(0.8, abs=0.06)


def test_equal_shares_need_more_items_than_there_are_and_few_can_detect_nothing() -> None:
    equal = compare_counts(3, 10, 6, 20)
    assert (equal.difference, equal.p, equal.items_needed) == (0.0, 1.0, math.inf)
    assert compare_counts(1, 2, 1, 2).detectable == math.inf
    assert compare_counts(0, 1, 1, 1).interval[0] <= 0
    all_right = compare_counts(20, 20, 20, 20)
    assert 0 < all_right.detectable < 1


@pytest.mark.parametrize("counts", [(5, 0, 1, 2), (3, 2, 1, 2), (-1, 2, 1, 2), (1, 2, 1, 2, 1.0)])
def test_counts_that_cannot_be_are_refused(counts: tuple[int, int, int, int]) -> None:
    with pytest.raises(SpecError, match="compare_counts: "):
        compare_counts(*counts)

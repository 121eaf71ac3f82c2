import math

import numpy as np
import pytest
from scipy import stats

from paretune.analysis.estimate import Errors, _counts, ratio_interval, standard_error, widened, wilson_interval


def test_each_draw_takes_as_many_documents_as_there_are() -> None:
    counts = _counts(7)
    assert counts.shape == (10_000, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(7), abs=0.05)


def test_an_interval_is_that_of_a_ratio_of_totals_not_of_a_mean_of_ratios() -> None:
    sums, weights = np.array([10.0, 300.0, 40.0]), np.array([10.0, 100.0, 20.0])
    low, high = ratio_interval(sums, weights, 0.95)
    assert (low + high) / 2 == pytest.approx(350 / 130)
    # Linearised: residuals of (10, 300, 40) from 350 / 130 a unit of weight.
    residuals = sums - 350 / 130 * weights
    error = math.sqrt(3 / 2 * (residuals**2).sum()) / 130
    assert standard_error(sums, weights) == pytest.approx(error)
    assert (high - low) / 2 == pytest.approx(4.302653 * error, rel=1e-6)


def test_equal_weights_give_the_interval_of_students_t() -> None:
    values = np.random.default_rng(0).normal(3, 1, 20)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert ratio_interval(values, np.ones(20), 0.9) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("documents", [60, 2000])
def test_the_studentised_interval_agrees_with_scipys_bca_on_skewed_documents(documents: int) -> None:
    rng = np.random.default_rng(documents)
    sums, weights = rng.exponential(1, documents), rng.uniform(1, 3, documents)
    low, high = ratio_interval(sums, weights, 0.95)
    reference = stats.bootstrap(
        (sums, weights),
        lambda each, weight, axis: each.sum(axis=axis) / weight.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=2000,
        batch=500,
        random_state=1,
    ).confidence_interval
    width = reference.high - reference.low
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=0.12 * width)
    assert high - sums.sum() / weights.sum() > sums.sum() / weights.sum() - low


def test_draws_without_any_spread_do_not_say_that_nothing_is_uncertain() -> None:
    sums = np.zeros(60)
    sums[:2] = 1.0
    low, high = ratio_interval(sums, np.ones(60), 0.95)
    assert low < 2 / 60 < 0.08 < high < 1


def test_one_document_has_no_interval() -> None:
    assert all(math.isnan(end) for end in ratio_interval(np.ones(1), np.ones(1), 0.95))


@pytest.mark.parametrize("documents", [8, 40, 80])
def test_intervals_of_clustered_examples_cover_the_truth(documents: int) -> None:
    """95 % intervals over documents of 5 like examples: 92 to 98 % cover; taking examples for independent covers far less."""
    rng = np.random.default_rng(documents)
    studies, examples = 400, 5
    covered = naive = 0
    for _ in range(studies):
        values = rng.normal(0, 1, documents)[:, None] + rng.normal(0, 0.5, (documents, examples))
        weights = rng.uniform(0.5, 1.5, (documents, examples))
        low, high = ratio_interval((values * weights).sum(1), weights.sum(1), 0.95)
        covered += low <= 0 <= high
        error = values.std(ddof=1) / math.sqrt(documents * examples)
        naive += abs(np.average(values, weights=weights)) < 1.96 * error
    assert 0.92 <= covered / studies <= 0.98
    assert naive / studies < 0.75


@pytest.mark.parametrize(
    ("right", "num", "low", "high"), [(5, 20, 0.112, 0.469), (7, 20, 0.181, 0.567), (20, 20, 0.839, 1.0), (0, 10, 0.0, 0.278)]
)
def test_wilson_intervals_of_published_tables(right: int, num: int, low: float, high: float) -> None:
    assert wilson_interval(right / num, num, 0.95) == pytest.approx((low, high), abs=6e-4)


def test_seeds_that_agree_leave_an_interval_and_seeds_that_differ_widen_it() -> None:
    assert widened((-1.0, 2.0), 0.0, Errors(0.5, 60), 0.95) == (-1.0, 2.0)
    errors = Errors(0.5, 60, seeds=1.0, seed_freedom=1)
    # Variance 1.25; Satterthwaite: 1.25^2 / (0.0625 / 59 + 1 / 1) = 1.561 degrees of freedom.
    assert errors.freedom == pytest.approx(1.25**2 / (0.0625 / 59 + 1))
    factor = stats.t.ppf(0.975, errors.freedom) * math.sqrt(1.25) / (stats.t.ppf(0.975, 59) * 0.5)
    assert widened((-1.0, 2.0), 0.0, errors, 0.95) == pytest.approx((-factor, 2 * factor))
    assert factor > 5
    alike = Errors(0.0, 60, seeds=1.0, seed_freedom=2)
    assert widened((0.0, 0.0), 0.0, alike, 0.95) == pytest.approx((-4.302653, 4.302653))

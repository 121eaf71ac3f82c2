import math

import numpy as np
import pytest
from scipy import stats

from paretune.analysis.estimate import (
    bootstrap,
    percentile_interval,
    resample_counts,
    sign_flip_interval,
    sign_flip_p,
    widen_for_seeds,
    wilson_interval,
)


def test_each_draw_takes_as_many_documents_as_there_are() -> None:
    counts = np.concatenate(list(resample_counts(7, draws=50)))
    assert counts.shape == (50, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert len(np.unique(counts, axis=0)) > 40


def test_the_same_draws_serve_every_column_and_every_call() -> None:
    first, again = (np.concatenate(list(resample_counts(20, draws=30))) for _ in range(2))
    assert (first == again).all()


def test_bootstrap_equals_a_naive_loop_on_the_same_indices() -> None:
    rng = np.random.default_rng(3)
    sums, weights = rng.normal(5, 1, (6, 2)), rng.uniform(1, 4, (6, 2))
    found = bootstrap(sums, weights, draws=40, seed=9)
    indices = np.random.default_rng(9)
    for replicate in found:
        drawn = [int(index) for index in indices.integers(0, 6, 6, np.uint32)]
        for column in range(2):
            total = math.fsum(sums[index, column] for index in drawn)
            weight = math.fsum(weights[index, column] for index in drawn)
            assert replicate[column] == pytest.approx(total / weight, rel=1e-12)


def test_equal_weights_of_two_columns_do_not_mix_the_columns_up() -> None:
    weights = np.array([[1.0, 2.0, 1.0], [3.0, 1.0, 3.0], [2.0, 5.0, 2.0]])
    sums = np.array([[1.0, 1.0, 4.0], [2.0, 1.0, 5.0], [3.0, 1.0, 6.0]])
    together = bootstrap(sums, weights, draws=10)
    alone = [bootstrap(sums[:, [column]], weights[:, [column]], draws=10)[:, 0] for column in range(3)]
    assert np.allclose(together, np.stack(alone, axis=1), rtol=1e-14)


def test_few_documents_get_a_wider_interval_than_the_plain_percentiles() -> None:
    replicates = np.random.default_rng(0).normal(0, 1, 20_000)
    low, high = percentile_interval(replicates, 0.95, 6)
    # The tail of the expanded interval: P(Z > sqrt(6/5) t) with t = 2.5706 for 5 degrees of freedom.
    expected = float(np.quantile(replicates, stats.norm.cdf(math.sqrt(6 / 5) * 2.5706)))
    assert high == pytest.approx(expected, abs=1e-3)
    assert low < np.quantile(replicates, 0.025)
    many = percentile_interval(replicates, 0.95, 100_000)
    assert many == pytest.approx(tuple(np.quantile(replicates, [0.025, 0.975])), abs=0.01)


def test_one_document_has_no_interval() -> None:
    assert all(math.isnan(end) for end in percentile_interval(np.zeros(10), 0.95, 1))


@pytest.mark.parametrize("documents", [8, 40])
def test_intervals_of_clustered_examples_cover_the_truth(documents: int) -> None:
    """95 % intervals over documents of 5 like examples: 91 to 98 % cover; resampling examples would cover far less."""
    rng = np.random.default_rng(documents)
    studies, examples = 400, 5
    covered = naive = 0
    for _ in range(studies):
        values = rng.normal(0, 1, documents)[:, None] + rng.normal(0, 0.5, (documents, examples))
        weights = rng.uniform(0.5, 1.5, (documents, examples))
        replicates = bootstrap((values * weights).sum(1)[:, None], weights.sum(1)[:, None], draws=400)[:, 0]
        low, high = percentile_interval(replicates, 0.95, documents)
        covered += low <= 0 <= high
        error = values.std(ddof=1) / math.sqrt(documents * examples)
        naive += abs(np.average(values, weights=weights)) < 1.96 * error
    assert 0.91 <= covered / studies <= 0.98
    assert naive / studies < 0.75


@pytest.mark.parametrize(
    ("right", "num", "low", "high"), [(5, 20, 0.112, 0.469), (7, 20, 0.181, 0.567), (20, 20, 0.839, 1.0), (0, 10, 0.0, 0.278)]
)
def test_wilson_intervals_of_published_tables(right: int, num: int, low: float, high: float) -> None:
    assert wilson_interval(right / num, num, 0.95) == pytest.approx((low, high), abs=6e-4)


@pytest.mark.parametrize(("wins", "losses", "p"), [(2, 0, 0.5), (3, 1, 0.625), (5, 3, 0.7266), (6, 0, 0.03125), (0, 0, 1.0)])
def test_sign_flips_of_right_and_wrong_answers_are_mcnemars_exact_test(wins: int, losses: int, p: float) -> None:
    differences = np.array([1.0] * wins + [-1.0] * losses + [0.0] * 10)
    assert sign_flip_p(differences) == pytest.approx(p, abs=1e-4)


def test_random_sign_flips_come_near_the_exact_value() -> None:
    differences = np.array([1.0] * 20 + [-1.0] * 8)
    assert sign_flip_p(differences) == pytest.approx(stats.binomtest(8, 28).pvalue, abs=0.006)


def test_the_ends_of_a_sign_flip_interval_are_where_the_test_begins_to_reject() -> None:
    differences = np.random.default_rng(5).normal(0.4, 1, 12)
    weights = np.full(12, 1 / 12)
    low, high = sign_flip_interval(differences / 12, weights, 0.95)
    for end, inward in ((low, 1), (high, -1)):
        assert sign_flip_p(differences - (end + inward * 1e-3)) > 0.05
        assert sign_flip_p(differences - (end - inward * 1e-3)) <= 0.05
    half = stats.t.ppf(0.975, 11) * differences.std(ddof=1) / math.sqrt(12)
    assert (low, high) == pytest.approx((differences.mean() - half, differences.mean() + half), abs=0.2 * half)


def test_five_documents_reject_nothing() -> None:
    assert sign_flip_interval(np.full(5, 0.2), np.full(5, 0.2), 0.95) == (-math.inf, math.inf)
    low, high = sign_flip_interval(np.full(6, 1 / 6), np.full(6, 1 / 6), 0.95)
    assert low == pytest.approx(1, abs=1e-4)
    assert high == pytest.approx(1, abs=1e-4)


def test_seeds_that_agree_leave_an_interval_and_seeds_that_differ_widen_it() -> None:
    same = widen_for_seeds((-1.0, 2.0), 0.0, error=0.5, num_documents=60, seed_variance=0.0, freedom=1, level=0.95)
    assert same == (-1.0, 2.0)
    wide = widen_for_seeds((-1.0, 2.0), 0.0, error=0.5, num_documents=60, seed_variance=1.0, freedom=1, level=0.95)
    # Variance 1.25; Satterthwaite: 1.25^2 / (0.0625 / 59 + 1 / 1) = 1.561 degrees of freedom.
    factor = stats.t.ppf(0.975, 1.25**2 / (0.0625 / 59 + 1)) * math.sqrt(1.25) / (stats.t.ppf(0.975, 59) * 0.5)
    assert wide == pytest.approx((-factor, 2 * factor))
    assert factor > 5

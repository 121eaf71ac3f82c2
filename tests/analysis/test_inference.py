import math

import numpy as np
import pytest
from scipy import stats

from paretune.analysis.inference import (
    Errors,
    _counts,
    _saddlepoint_p,
    fisher_p,
    holm,
    mcnemar_interval,
    mcnemar_power,
    ratio_interval,
    sign_flip_interval,
    sign_flip_p,
    smallest_detectable,
    smallest_detectable_share,
    standard_error,
    widened,
    wilson_interval,
    with_seeds,
)


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


@pytest.mark.parametrize(("right", "num", "p"), [((5, 7), 20, 0.7311), ((0, 6), 20, 0.0202), ((10, 10), 20, 1.0)])
def test_published_counts_without_pairs_get_fishers_test(right: tuple[int, int], num: int, p: float) -> None:
    assert fisher_p(right[0], num, right[1], num) == pytest.approx(p, abs=1e-4)


@pytest.mark.parametrize(("wins", "losses", "p"), [(2, 0, 0.5), (3, 1, 0.625), (5, 3, 0.7266), (6, 0, 0.03125), (0, 0, 1.0)])
def test_sign_flips_of_right_and_wrong_answers_are_mcnemars_exact_test(wins: int, losses: int, p: float) -> None:
    differences = np.array([1.0] * wins + [-1.0] * losses + [0.0] * 10)
    assert sign_flip_p(differences) == pytest.approx(p, abs=1e-4)


@pytest.mark.parametrize("num", [6, 10, 14])
def test_few_documents_agree_with_scipys_exact_permutation_test(num: int) -> None:
    differences = np.random.default_rng(num).normal(0.5, 1, num)
    reference = stats.permutation_test(
        (differences, np.zeros(num)), lambda one, other: (one - other).sum(), permutation_type="samples", n_resamples=10**6
    )
    assert sign_flip_p(differences) == pytest.approx(reference.pvalue)


@pytest.mark.parametrize("shift", [0.1, 0.3, 0.6])
def test_drawn_signs_come_near_students_t_of_normal_documents(shift: float) -> None:
    differences = np.random.default_rng(1).normal(shift, 1, 60)
    assert sign_flip_p(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, rel=0.25, abs=0.01)


@pytest.mark.parametrize("num", [30, 100, 400])
def test_the_saddlepoint_agrees_with_exact_counts_deep_in_the_tail(num: int) -> None:
    """Differences of two sizes: the total is a sum of two binomials, which can be added up exactly."""
    half = num // 2
    total = 4 * math.sqrt(half * (1 + 2.02**2))
    ones, twos = np.arange(half + 1), np.arange(half + 1)
    totals = (2 * ones[:, None] - half) + 2 * (2 * twos[None] - half) * 1.01
    chance = np.outer(stats.binom.pmf(ones, half, 0.5), stats.binom.pmf(twos, half, 0.5))
    exact = float(chance[np.abs(totals) >= total].sum())
    assert exact < 1e-3
    sizes = np.array([1.0] * half + [2.02] * half)
    assert _saddlepoint_p(sizes, total) == pytest.approx(exact, rel=0.35)


def test_a_rare_result_is_not_rounded_up_to_the_number_of_draws() -> None:
    assert sign_flip_p(np.linspace(1, 2, 60)) == pytest.approx(2.0**-59)
    assert sign_flip_p(np.random.default_rng(0).normal(1, 1, 60)) < 1e-6


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
    assert smallest_detectable(Errors(0.1, 5), 0.05) == math.inf


@pytest.mark.parametrize("num", [10, 20, 60])
def test_an_interval_of_answers_leaves_out_zero_only_where_the_exact_test_rejects(num: int) -> None:
    for wins in range(num // 2):
        for losses in range(num // 2 - wins):
            low, high = mcnemar_interval(wins, losses, num, 0.95)
            assert low <= (wins - losses) / num <= high
            p = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
            assert (low > 0 or high < 0) <= (p <= 0.05 + 1e-12)


def test_no_answers_apart_of_ten_still_leave_an_interval() -> None:
    assert mcnemar_interval(0, 0, 10, 0.95) == pytest.approx((-0.231, 0.231), abs=1e-3)


@pytest.mark.parametrize("truth", [0.0, 0.1, 0.25])
def test_intervals_of_answers_cover_the_truth(truth: float) -> None:
    rng = np.random.default_rng(3)
    studies, num, covered = 400, 30, 0
    for _ in range(studies):
        wins, losses, _same = rng.multinomial(num, [0.1 + truth, 0.1, 0.8 - truth])
        low, high = mcnemar_interval(int(wins), int(losses), num, 0.95)
        covered += low <= truth <= high
    assert covered / studies >= 0.94


def test_holm_agrees_with_a_table_by_hand() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("num", "gap"), [(50, 0.17), (100, 0.12), (200, 0.088), (500, 0.056), (1000, 0.040), (1319, 0.034)])
def test_the_smallest_detectable_share_is_that_of_the_published_table(num: int, gap: float) -> None:
    """For a fifth of the answers apart; the table is the normal approximation, exact power needs up to 4 % more."""
    found = smallest_detectable_share(num, round(0.2 * (num + 2) - 1), 0.05)
    assert gap * 0.98 <= found <= gap * 1.06


def test_power_is_what_simulated_studies_have() -> None:
    rng = np.random.default_rng(0)
    outcomes = rng.multinomial(40, [0.3, 0.05, 0.65], size=4000)
    found = np.mean([stats.binomtest(int(won), int(won + lost)).pvalue <= 0.05 for won, lost, _ in outcomes if won + lost])
    assert mcnemar_power(40, 0.35, 0.25, 0.05) == pytest.approx(found, abs=0.02)
    assert smallest_detectable_share(5, 2, 0.05) == math.inf


def test_the_smallest_detectable_difference_is_detected_four_times_of_five() -> None:
    rng = np.random.default_rng(2)
    error = 1 / math.sqrt(40)
    gap = smallest_detectable(Errors(error, 40), 0.05)
    found = np.mean([sign_flip_p(rng.normal(gap, 1, 40)) <= 0.05 for _ in range(400)])
    assert found == pytest.approx(0.8, abs=0.05)


def test_seeds_raise_a_p_value_and_never_lower_it() -> None:
    assert with_seeds(0.01, 1.0, Errors(0.1, 60)) == 0.01
    errors = Errors(0.1, 60, seeds=0.5, seed_freedom=2)
    assert with_seeds(0.01, 1.0, errors) == pytest.approx(2 * stats.t.sf(1 / errors.total, errors.freedom))
    assert with_seeds(0.9, 1.0, errors) == 0.9


def test_examples_of_one_document_are_not_independent() -> None:
    """30 documents of 10 examples, intraclass correlation 0.7, no difference: 5 % are declared, over examples many more."""
    rng = np.random.default_rng(11)
    studies, documents, examples = 400, 30, 10
    wrong = naive = 0
    for _ in range(studies):
        shared = rng.normal(0, math.sqrt(0.7), (documents, 1))
        differences = shared + rng.normal(0, math.sqrt(0.3), (documents, examples))
        wrong += sign_flip_p(differences.sum(axis=1)) <= 0.05
        naive += stats.ttest_1samp(differences.ravel(), 0).pvalue <= 0.05
    assert wrong / studies <= 0.075
    assert naive / studies > 0.35

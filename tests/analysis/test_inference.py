import math

import numpy as np
import pytest
from scipy import stats

from paretune.analysis.inference import (
    Contrast,
    Errors,
    _counts,
    _saddlepoint_p,
    documents_needed,
    fisher_p,
    holm,
    holm_alphas,
    mcnemar_interval,
    mcnemar_p,
    mcnemar_power,
    ratio_interval,
    sign_flip_p,
    smallest_detectable,
    smallest_detectable_share,
    standard_error,
    widened,
    wilson_interval,
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
    low, high = contrast_of(differences / 12, weights).interval(0.05)
    for end, inward in ((low, 1), (high, -1)):
        assert sign_flip_p(differences - (end + inward * 1e-3)) > 0.05
        assert sign_flip_p(differences - (end - inward * 1e-3)) <= 0.05
    half = stats.t.ppf(0.975, 11) * differences.std(ddof=1) / math.sqrt(12)
    assert (low, high) == pytest.approx((differences.mean() - half, differences.mean() + half), abs=0.2 * half)


def test_five_documents_reject_nothing() -> None:
    assert contrast_of(np.full(5, 0.2), np.full(5, 0.2)).interval(0.05) == (-math.inf, math.inf)
    low, high = contrast_of(np.full(6, 1 / 6), np.full(6, 1 / 6)).interval(0.05)
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
    differences = np.random.default_rng(1).normal(0.3, 1, 60)
    alone = contrast_of(differences)
    assert alone.p == alone.p_documents < 0.05
    seeded = contrast_of(differences, seeds=0.5, seed_freedom=2)
    assert seeded.p_documents == alone.p
    errors = seeded.errors
    assert seeded.p == pytest.approx(2 * stats.t.sf(alone.mean / errors.total, errors.freedom), rel=0.1)


def contrast_of(sums: np.ndarray, weights: np.ndarray | None = None, seeds: float = 0.0, seed_freedom: float = 1.0) -> Contrast:
    weights = np.ones(len(sums)) if weights is None else weights
    return Contrast(sums, weights, Errors(standard_error(sums, weights), len(sums), seeds, seed_freedom))


def some_contrasts(number: int) -> list[Contrast]:
    """Of every kind: few and many documents, answers, seeds that scatter, documents that are all alike."""
    rng, found = np.random.default_rng(number), []
    for index in range(number):
        num, shift = int(rng.choice([2, 5, 6, 9, 20, 49, 50, 80])), float(rng.choice([0.0, 0.2, 0.5, 2.0]))
        if index % 4 == 0:
            sums = rng.choice([-1.0, 0.0, 1.0], num, p=[0.1, 0.6, 0.3])
            found.append(Contrast(sums, np.ones(num), Errors(standard_error(sums, np.ones(num)), num), wins_and_losses(sums)))
        else:
            weights, values = rng.uniform(0.5, 2, num), shift + rng.standard_t(4, num) * (index % 13 > 0)
            found.append(contrast_of(values * weights, weights, *((0.3, 2.0) if index % 2 else ())))
    return found


def wins_and_losses(sums: np.ndarray) -> tuple[int, int]:
    return int((sums > 0).sum()), int((sums < 0).sum())


def test_intervals_are_nested_and_p_is_where_they_begin_to_leave_out_zero() -> None:
    for contrast in some_contrasts(200):
        alphas = [0.5, 0.1, 0.05, 0.01, 1e-3, 1e-4, 1e-6]
        for alpha in (contrast.p * 0.999, min(0.9999, contrast.p * 1.001)):
            low, high = contrast.interval(alpha)
            assert (low > 0 or high < 0) == (contrast.p <= alpha)
        ends = np.array([contrast.interval(alpha) for alpha in alphas])
        assert (ends[:, 0] <= contrast.mean + 1e-12).all()
        assert (ends[:, 1] >= contrast.mean - 1e-12).all()
        inner, outer = ends[:-1], ends[1:]
        slack = 2e-5 * np.ptp(contrast.sums / contrast.weights) + 1e-9
        assert (outer[:, 0] <= inner[:, 0] + slack).all()
        assert (outer[:, 1] >= inner[:, 1] - slack).all()
        assert contrast.mirrored.interval(0.05) == pytest.approx(tuple(-end for end in contrast.interval(0.05)[::-1]), rel=1e-3)


def test_intervals_of_a_family_never_contradict_its_p_values() -> None:
    """Over 2,000 families of up to six comparisons each."""
    rng, contrasts = np.random.default_rng(0), some_contrasts(300)
    known: dict[tuple[int, float], tuple[float, float]] = {}
    for _ in range(2000):
        family = rng.choice(len(contrasts), int(rng.integers(1, 7)), replace=False)
        p_values = [contrasts[index].p for index in family]
        for index, adjusted, alpha in zip(family, holm(p_values), holm_alphas(p_values, 0.05), strict=True):
            key = (int(index), alpha)
            low, high = known.setdefault(key, contrasts[index].interval(alpha)) if key not in known else known[key]
            assert (low > 0 or high < 0) == (adjusted <= 0.05)


def test_quantiles_beyond_the_draws_go_on_like_those_of_students_t() -> None:
    contrast = contrast_of(np.random.default_rng(0).normal(1.5, 1, 80))
    assert 1e-30 < contrast.p < 1e-9
    wide, wider = (np.diff(contrast.interval(alpha))[0] for alpha in (1e-3, 1e-6))
    assert wider / wide == pytest.approx(stats.t.isf(5e-7, 79) / stats.t.isf(5e-4, 79))


@pytest.mark.parametrize(("wins", "losses", "num"), [(2, 0, 20), (6, 0, 10), (9, 1, 17), (30, 12, 200)])
def test_answers_have_the_larger_p_value_of_two_procedures(wins: int, losses: int, num: int) -> None:
    p = mcnemar_p(wins, losses, num)
    assert p >= stats.binomtest(wins, wins + losses).pvalue
    for alpha in (p * 0.99, p * 1.01):
        low, high = mcnemar_interval(wins, losses, num, 1 - min(alpha, 0.999))
        assert (low > 0 or high < 0) == (alpha >= p)


def test_where_holm_stops_the_level_stays() -> None:
    assert holm_alphas([0.001, 0.9, 0.03, 0.04], 0.05) == pytest.approx([0.0125, 0.05 / 3, 0.05 / 3, 0.05 / 3])
    assert holm_alphas([0.001, 0.01], 0.05) == pytest.approx([0.025, 0.05])


def test_as_many_documents_as_are_needed_bring_the_interval_into_the_margin() -> None:
    errors = Errors(0.1, 20)
    needed = documents_needed(errors, 0.01, 0.05, 0.05)
    assert needed is not None
    there = errors.on(needed)
    assert 0.01 + stats.t.ppf(0.975, needed - 1) * there.documents == pytest.approx(0.05, rel=1e-3)
    assert documents_needed(errors, 0.05, 0.05, 0.05) is None  # the loss itself is no smaller
    assert documents_needed(Errors(0.1, 20, seeds=0.1), 0.01, 0.05, 0.05) is None  # only more seeds would


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

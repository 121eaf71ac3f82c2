import math

import numpy as np
import pytest

from paretune.analysis.compare import Difference, as_perplexity, difference, estimate, make_samples
from paretune.analysis.scores import Items, Place, Quantity, Scores, Seed, common_items

LOSS = Quantity("perplexity", "test", "loss")
ONE, OTHER = Place("base", "data", "one"), Place("base", "data", "other")


def items_of(documents: list[str]) -> Items:
    return Items(np.array(documents, dtype=object), np.array([str(index) for index in range(len(documents))], dtype=object))


def compared(one: dict[Seed, Scores], other: dict[Seed, Scores], quantity: Quantity = LOSS) -> Difference | None:
    return difference((ONE, one), (OTHER, other), quantity, 0.95)


def test_an_estimate_is_the_weighted_mean_of_scores_averaged_over_seeds() -> None:
    items = items_of(["a", "a", "b"])
    weights = np.array([10.0, 30.0, 60.0])
    by_seed = {0: Scores(items, np.array([4.0, 2.0, 3.0]), weights), 1: Scores(items, np.array([5.0, 2.0, 4.0]), weights)}
    found = estimate(make_samples({ONE: {LOSS: by_seed}})[ONE][LOSS], 0.95)
    # Averages 4.5, 2.0, 3.5; (45 + 60 + 210) / 100.
    assert found.mean == pytest.approx(3.15)
    assert (found.n_examples, found.n_documents, found.n_seeds) == (3, 2, 2)
    assert found.by_seed == pytest.approx({0: 2.8, 1: 3.5})
    assert found.spread == pytest.approx(0.35)


def test_perplexity_is_exp_of_the_loss_and_so_is_its_interval() -> None:
    items = items_of([f"d{index}" for index in range(30)])
    scores = {0: Scores(items, np.random.default_rng(0).normal(3, 0.5, 30), np.ones(30))}
    loss = estimate(make_samples({ONE: {LOSS: scores}})[ONE][LOSS], 0.95)
    perplexity = as_perplexity(loss)
    assert perplexity.mean == pytest.approx(math.exp(loss.mean))
    assert (perplexity.low, perplexity.high) == pytest.approx((math.exp(loss.low), math.exp(loss.high)))


def test_right_or_wrong_answers_keep_an_interval_at_none_of_ten() -> None:
    items = items_of([f"q{index}" for index in range(10)])
    quantity = Quantity("qa", "", "accuracy")
    sample = make_samples({ONE: {quantity: {None: Scores(items, np.zeros(10), np.ones(10))}}})[ONE][quantity]
    assert sample.answers
    found = estimate(sample, 0.95)
    assert (found.low, found.high) == pytest.approx((0.0, 0.2775), abs=1e-3)


def test_a_paired_difference_is_detected_where_the_two_intervals_overlap() -> None:
    rng = np.random.default_rng(1)
    items = items_of([f"d{index}" for index in range(80)])
    hardness, weights = rng.normal(4, 0.5, 80), rng.uniform(100, 500, 80)
    one = {None: Scores(items, hardness + 0.02 + rng.normal(0, 0.01, 80), weights)}
    other = {None: Scores(items, hardness, weights)}
    samples = make_samples({ONE: {LOSS: one}, OTHER: {LOSS: other}})
    alone = [estimate(samples[place][LOSS], 0.95) for place in (ONE, OTHER)]
    assert alone[0].low < alone[1].high
    found = compared(one, other)
    assert found is not None
    assert found.detected
    assert not found.better
    assert found.verdict == "worse"
    assert found.low < 0.02 < found.high


def test_a_difference_of_nothing_but_noise_is_not_detected() -> None:
    rng = np.random.default_rng(2)
    items = items_of([f"d{index}" for index in range(80)])
    hardness = rng.normal(4, 0.5, 80)
    one, other = ({None: Scores(items, hardness + rng.normal(0, 0.05, 80), np.ones(80))} for _ in range(2))
    found = compared(one, other)
    assert found is not None
    assert found.verdict == "no difference detected"
    assert found.low < 0 < found.high


def test_only_examples_and_seeds_that_both_have_are_compared() -> None:
    items, fewer = items_of([f"d{index}" for index in range(60)]), items_of([f"d{index}" for index in range(55)])
    values = np.linspace(3, 5, 60)
    one = {0: Scores(items, values + 0.1, np.ones(60)), 1: Scores(items, values + 9, np.ones(60))}
    other = {0: Scores(fewer, values[:55], np.ones(55))}
    found = compared(one, other)
    assert found is not None
    assert (found.n_examples, found.n_seeds) == (55, 1)
    assert found.mean == pytest.approx(0.1)
    assert found.reference_mean == pytest.approx(values[:55].mean())


def test_nothing_in_common_is_no_difference() -> None:
    scores = Scores(items_of(["a", "b"]), np.ones(2), np.ones(2))
    elsewhere = Scores(items_of(["c", "d"]), np.ones(2), np.ones(2))
    assert compared({0: scores}, {1: scores}) is None
    assert compared({None: scores}, {None: elsewhere}) is None
    assert common_items([scores, elsewhere]) is None


def test_an_untrained_variant_stands_against_every_seed() -> None:
    items = items_of([f"d{index}" for index in range(60)])
    values = np.linspace(3, 5, 60)
    one = {seed: Scores(items, values - 1 + 0.001 * seed, np.ones(60)) for seed in (0, 1, 2)}
    found = compared(one, {None: Scores(items, values, np.ones(60))})
    assert found is not None
    assert found.n_seeds == 3
    assert found.mean == pytest.approx(-0.999)
    assert found.verdict == "better"


def test_few_documents_are_judged_by_the_sign_flip_test() -> None:
    quantity = Quantity("qa", "", "accuracy")
    items = items_of([f"q{index}" for index in range(10)])
    right = np.array([1.0] * 5 + [0.0] * 5)
    found = compared({None: Scores(items, right, np.ones(10))}, {None: Scores(items, np.zeros(10), np.ones(10))}, quantity)
    assert found is not None
    assert found.p == pytest.approx(0.0625)
    assert not found.detected
    six = np.array([1.0] * 6 + [0.0] * 4)
    found = compared({None: Scores(items, six, np.ones(10))}, {None: Scores(items, np.zeros(10), np.ones(10))}, quantity)
    assert found is not None
    assert found.p == pytest.approx(0.03125)
    assert found.detected


def test_each_side_brings_the_variance_of_its_own_seeds() -> None:
    items = items_of([f"d{index}" for index in range(60)])
    values = np.linspace(3, 5, 60)

    def seeded(*effects: float) -> dict[Seed, Scores]:
        return {seed: Scores(items, values + effect, np.ones(60)) for seed, effect in enumerate(effects)}

    found = compared(seeded(0.0, 0.1, 0.2), seeded(0.0, 0.0, 0.0))
    assert found is not None
    # Variance 0.01 over three seeds; the quiet side adds no degrees of freedom.
    assert found.errors.seeds == pytest.approx(math.sqrt(0.01 / 3))
    assert found.errors.seed_freedom == pytest.approx(2)
    both = compared(seeded(0.0, 0.1, 0.2), seeded(0.2, 0.0, 0.1))
    assert both is not None
    assert both.errors.seeds == pytest.approx(math.sqrt(0.02 / 3))
    assert both.errors.seed_freedom == pytest.approx(4)
    alone = compared(seeded(0.0), seeded(0.3))
    assert alone is not None
    assert alone.errors.seeds == 0


@pytest.mark.parametrize("quiet", [1.0, 0.1])
@pytest.mark.parametrize("seeds", [2, 3])
def test_equal_methods_with_scattering_seeds_are_seldom_told_apart(seeds: int, quiet: float) -> None:
    """Seeds four times as noisy as documents, on one side perhaps hardly at all: at most 8 % of null pairs are detected."""
    rng = np.random.default_rng(seeds)
    items = items_of([f"d{index}" for index in range(60)])
    studies, wrong, without = 200, 0, 0
    for _ in range(studies):
        hardness = rng.normal(4, 0.3, 60)
        one, other = (
            {
                seed: Scores(items, hardness + rng.normal(0, 0.04 * scale) + rng.normal(0, 0.075, 60), np.ones(60))
                for seed in range(seeds)
            }
            for scale in (1.0, quiet)
        )
        found = compared(one, other)
        assert found is not None
        wrong += found.detected
        without += found.detected_for_weights
    assert wrong / studies <= 0.08
    assert without / studies > 0.3

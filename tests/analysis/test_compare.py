import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paretune.analysis.compare import Comparer, Difference, Estimate, difference, estimates_of, margin_of, with_views
from paretune.analysis.inference import holm
from paretune.analysis.measure import measure
from paretune.analysis.scores import Entrant, Items, Quantity, Scores, Seed, SeedScores, common_items, make_samples
from paretune.study.compare import Compare
from tests.analysis.synthetic import Shape, make_results

LOSS = Quantity("perplexity", "test", "loss")
ONE, OTHER = Entrant("base", "data", "one"), Entrant("base", "data", "other")
NAMES = ("base", "full", "original", "reduced")
BITS, LOSS, RIGHT = Quantity("text", "test", "bits_per_byte"), Quantity("text", "test", "loss"), Quantity("qa", "", "accuracy")
ENTRANTS = {name: Entrant("b", "d", name) for name in NAMES}
BASELINES = {ENTRANTS[name]: ENTRANTS["original"] for name in NAMES if name != "original"}
HEADLINES = dict.fromkeys(ENTRANTS.values(), BITS)


def items_of(documents: list[str]) -> Items:
    return Items(np.array(documents, dtype=object), np.array([str(index) for index in range(len(documents))], dtype=object))


def estimate_of(by_seed: SeedScores, quantity: Quantity = LOSS) -> Estimate:
    return estimates_of(make_samples({ONE: {quantity: by_seed}})[ONE], 0.95)[quantity]


def compared(one: dict[Seed, Scores], other: dict[Seed, Scores], quantity: Quantity = LOSS) -> Difference | None:
    return difference((ONE, one), (OTHER, other), quantity, 0.95)


def test_an_estimate_is_the_weighted_mean_of_scores_averaged_over_seeds() -> None:
    items = items_of(["a", "a", "b"])
    weights = np.array([10.0, 30.0, 60.0])
    by_seed = {0: Scores(items, np.array([4.0, 2.0, 3.0]), weights), 1: Scores(items, np.array([5.0, 2.0, 4.0]), weights)}
    found = estimate_of(by_seed)
    # Averages 4.5, 2.0, 3.5; (45 + 60 + 210) / 100.
    assert found.mean == pytest.approx(3.15)
    assert (found.n_examples, found.n_documents, found.n_seeds) == (3, 2, 2)
    assert found.by_seed == pytest.approx({0: 2.8, 1: 3.5})
    assert found.spread == pytest.approx(0.35)


def test_perplexity_is_exp_of_the_loss_and_so_is_its_interval() -> None:
    items = items_of([f"d{index}" for index in range(30)])
    scores = {0: Scores(items, np.random.default_rng(0).normal(3, 0.5, 30), np.ones(30))}
    found = estimates_of(make_samples({ONE: {LOSS: scores}})[ONE], 0.95)
    loss, perplexity = found[LOSS], found[LOSS._replace(metric="perplexity")]
    assert list(found) == [LOSS, LOSS._replace(metric="perplexity")]
    assert perplexity.mean == pytest.approx(math.exp(loss.mean))
    assert (perplexity.low, perplexity.high) == pytest.approx((math.exp(loss.low), math.exp(loss.high)))


def test_right_or_wrong_answers_keep_an_interval_at_none_of_ten() -> None:
    items = items_of([f"q{index}" for index in range(10)])
    quantity = Quantity("qa", "", "accuracy")
    sample = make_samples({ONE: {quantity: {None: Scores(items, np.zeros(10), np.ones(10))}}})[ONE][quantity]
    assert sample.answers
    found = estimate_of({None: Scores(items, np.zeros(10), np.ones(10))}, quantity)
    assert (found.low, found.high) == pytest.approx((0.0, 0.2775), abs=1e-3)


def test_a_paired_difference_is_detected_where_the_two_intervals_overlap() -> None:
    rng = np.random.default_rng(1)
    items = items_of([f"d{index}" for index in range(80)])
    hardness, weights = rng.normal(4, 0.5, 80), rng.uniform(100, 500, 80)
    one = {None: Scores(items, hardness + 0.02 + rng.normal(0, 0.01, 80), weights)}
    other = {None: Scores(items, hardness, weights)}
    alone = [estimate_of(one), estimate_of(other)]
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


def scores_of(documents: int = 40, gap: float = 0.02) -> dict[Entrant, dict[Quantity, dict[int | None, Scores]]]:
    """Four variants of which `reduced` is worse by `gap` bits per byte; 20 questions, 5 and 7 of them right."""
    rng = np.random.default_rng(0)
    names = np.array([f"d{index}" for index in range(documents)], dtype=object)
    items = Items(names, names)
    asked = Items(*[np.array([f"q{index}" for index in range(20)], dtype=object)] * 2)
    hardness, size = rng.normal(2, 0.3, documents), rng.uniform(100, 500, documents)
    found: dict[Entrant, dict[Quantity, dict[int | None, Scores]]] = {}
    for name, entrant in ENTRANTS.items():
        bits = hardness + gap * (name == "reduced") + rng.normal(0, 0.01, documents)
        right = (np.arange(20) < (7 if name == "full" else 5)).astype(float)
        found[entrant] = {
            BITS: {0: Scores(items, bits, size)},
            LOSS: {0: Scores(items, bits * 3, size / 4)},
            RIGHT: {0: Scores(asked, right, np.ones(20))},
        }
    return found


def decided(**compare: object) -> dict[tuple[str, Quantity], Difference]:
    scores, rules = scores_of(), Compare.model_validate(compare, strict=False)
    comparer = Comparer(scores, make_samples(scores), rules, tokenizers={}, withheld=())
    found = with_views(comparer.against_baselines(BASELINES, HEADLINES), rules)
    return {(variant.variant, quantity): one for (variant, _, quantity), one in found.items()}


def test_the_declared_family_is_corrected_together_and_the_rest_inside_its_task() -> None:
    undeclared = decided()
    bits = {name: undeclared[name, BITS] for name in ("base", "full", "reduced")}
    assert [one.p_adjusted for one in bits.values()] == pytest.approx(holm([one.p for one in bits.values()]))
    both = decided(family=["bits_per_byte", "accuracy"])
    order = [(name, quantity) for quantity in (BITS, RIGHT) for name in bits]
    assert [both[key].p_adjusted for key in order] == pytest.approx(holm([both[key].p for key in order]))
    assert both["reduced", BITS].p_adjusted > undeclared["reduced", BITS].p_adjusted
    assert both["reduced", BITS].mde > undeclared["reduced", BITS].mde


def test_five_against_seven_of_twenty_has_no_winner_and_says_what_it_could_have_found() -> None:
    found = decided()["full", RIGHT]
    assert found.mean == pytest.approx(0.1)
    assert found.p == pytest.approx(0.5)
    assert found.verdict == "no difference detected"
    assert 0.35 < found.mde < 0.55


def test_loss_and_perplexity_say_what_bits_per_byte_say() -> None:
    found = decided(margin={"bits_per_byte": 0.05})
    for name in ("base", "full", "reduced"):
        bits, loss = found[name, BITS], found[name, LOSS]
        assert (loss.p, loss.p_adjusted, loss.verdict) == (bits.p, bits.p_adjusted, "equivalent")
        assert bits.verdict == "equivalent"
        # Nats per token are three times the bits per byte here.
        assert loss.margin == pytest.approx(0.15, rel=0.05)
        perplexity = found[name, LOSS._replace(metric="perplexity")]
        at = math.exp(loss.reference_mean)
        assert perplexity.mean == pytest.approx(math.exp(loss.variant_mean) - at)
        assert perplexity.low == pytest.approx(at * (math.exp(loss.low) - 1))
        assert perplexity.verdict == bits.verdict


def test_a_verdict_is_read_off_the_interval_at_the_level_of_its_step() -> None:
    found = decided()
    steps = sorted((found[name, BITS] for name in ("base", "full", "reduced")), key=lambda one: one.p)
    assert steps[0].verdict == "worse"
    assert [one.level for one in steps] == pytest.approx([1 - 0.05 / 3, 0.975, 0.975])
    for one in found.values():
        assert one.detected == (one.p_adjusted <= 0.05)
    assert replace(steps[0], low=-0.01).verdict == "no difference detected"
    assert replace(steps[0], margin=1.0).verdict == "equivalent"
    assert replace(steps[0], withheld=True).verdict.startswith("withheld")
    assert not replace(steps[0], withheld=True).loses_at_most(1.0)


def test_without_a_margin_of_the_study_the_metric_has_one() -> None:
    assert margin_of(Compare(), BITS, 2.5) == pytest.approx(0.025)
    assert margin_of(Compare(), RIGHT, 0.5) == 0.02
    assert margin_of(Compare(), Quantity("qa", "", "log_likelihood"), -3.0) == pytest.approx(0.03)
    assert margin_of(Compare(margin={"accuracy": 0.1}), RIGHT, 0.5) == 0.1
    assert margin_of(Compare(), Quantity("qa", "", "of_a_third_party"), 0.5) == 0


def test_a_pair_without_the_baseline_is_one_of_all_pairs(tmp_path: Path) -> None:
    shape = Shape(seeds=(0,), documents=30, evaluations=("perplexity",), epochs=1, extra="compare: {baseline: base}\n")
    findings = measure(make_results(tmp_path, shape))
    full, original, base = (Entrant("novels", "news", name) for name in ("full", "original", "base"))
    quantity = Quantity("perplexity", "test", "bits_per_byte")
    pair, back = (findings.difference(*entrants, quantity) for entrants in ((full, original), (base, full)))
    declared = findings.difference(full, base, quantity)
    assert pair is not None
    assert back is not None
    assert declared is not None
    assert pair.p_adjusted == pytest.approx(6 * pair.p)
    assert (back.p_adjusted, back.mean) == (declared.p_adjusted, pytest.approx(-declared.mean))
    assert findings.difference(full, Entrant("novels", "news", "nobody"), quantity) is None
    assert findings.difference(full, None, quantity) is None


@pytest.mark.parametrize("seeds", [1, 3])
def test_studies_of_four_identical_variants_seldom_declare_a_difference(seeds: int) -> None:
    """Of 150 studies at most 8 % (5 % and two standard errors); three uncorrected tests would declare one in more than 8 %."""
    rng = np.random.default_rng(seeds)
    documents, studies, wrong, uncorrected = 60, 150, 0, 0
    names = np.arange(documents).astype(object)
    items = Items(names, names)
    for _ in range(studies):
        hardness, size = rng.normal(2, 0.3, documents), rng.uniform(100, 500, documents)
        effects = rng.normal(0, 0.01 if seeds > 1 else 0, (len(ENTRANTS), seeds))
        scores = {
            entrant: {
                BITS: {
                    seed: Scores(items, hardness + effects[index, seed] + rng.standard_t(4, documents) * 0.03, size)
                    for seed in range(seeds)
                }
            }
            for index, entrant in enumerate(ENTRANTS.values())
        }
        comparer = Comparer(scores, make_samples(scores), Compare(), tokenizers={}, withheld=())
        found = comparer.against_baselines(BASELINES, HEADLINES).values()
        wrong += any(one.detected for one in found)
        uncorrected += any(one.p_documents <= 0.05 for one in found)
    assert wrong / studies <= 0.085
    assert uncorrected / studies > 0.085

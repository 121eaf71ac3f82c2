import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paretune.analysis.compare import make_samples
from paretune.analysis.exact import holm
from paretune.analysis.family import Comparer, as_perplexity_difference, decide
from paretune.analysis.measured import difference_of, measure
from paretune.analysis.scores import Items, Place, Quantity, Scores
from paretune.study.compare import Compare
from tests.analysis.synthetic import Shape, make_results

NAMES = ("base", "full", "original", "reduced")
BITS, LOSS, RIGHT = Quantity("text", "test", "bits_per_byte"), Quantity("text", "test", "loss"), Quantity("qa", "", "accuracy")
PLACES = {name: Place("b", "d", name) for name in NAMES}
BASELINES = {PLACES[name]: PLACES["original"] for name in NAMES if name != "original"}
HEADLINES = dict.fromkeys(PLACES.values(), BITS)


def scores_of(documents: int = 40, gap: float = 0.02) -> dict[Place, dict[Quantity, dict[int | None, Scores]]]:
    """Four variants of which `reduced` is worse by `gap` bits per byte; 20 questions, 5 and 7 of them right."""
    rng = np.random.default_rng(0)
    names = np.array([f"d{index}" for index in range(documents)], dtype=object)
    items = Items(names, names)
    asked = Items(*[np.array([f"q{index}" for index in range(20)], dtype=object)] * 2)
    hardness, size = rng.normal(2, 0.3, documents), rng.uniform(100, 500, documents)
    found: dict[Place, dict[Quantity, dict[int | None, Scores]]] = {}
    for name, place in PLACES.items():
        bits = hardness + gap * (name == "reduced") + rng.normal(0, 0.01, documents)
        right = (np.arange(20) < (7 if name == "full" else 5)).astype(float)
        found[place] = {
            BITS: {0: Scores(items, bits, size)},
            LOSS: {0: Scores(items, bits * 3, size / 4)},
            RIGHT: {0: Scores(asked, right, np.ones(20))},
        }
    return found


def decided(**compare: object) -> dict[tuple[str, Quantity], object]:
    scores = scores_of()
    comparer = Comparer(scores, make_samples(scores), Compare.model_validate(compare, strict=False))
    found = decide(comparer, BASELINES, HEADLINES)
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
        perplexity = as_perplexity_difference(loss, None)
        at = math.exp(loss.reference_mean)
        assert perplexity.mean == pytest.approx(math.exp(loss.variant_mean) - at)
        assert perplexity.low == pytest.approx(at * (math.exp(loss.low) - 1))
        assert perplexity.verdict == bits.verdict


def test_a_verdict_needs_the_corrected_p_value() -> None:
    found = replace(decided()["reduced", BITS], p_adjusted=0.06)
    assert found.low > 0
    assert found.verdict == "no difference detected"
    assert replace(found, p_adjusted=0.05).verdict == "worse"
    assert replace(found, p_adjusted=0.05, margin=1.0).verdict == "equivalent"


def test_a_pair_without_the_baseline_is_one_of_all_pairs(tmp_path: Path) -> None:
    shape = Shape(seeds=(0,), documents=30, evaluations=("perplexity",), epochs=1, extra="compare: {baseline: base}\n")
    measured = measure(make_results(tmp_path, shape))
    full, original, base = (Place("novels", "news", name) for name in ("full", "original", "base"))
    quantity = Quantity("perplexity", "test", "bits_per_byte")
    pair, back = (difference_of(measured, *places, quantity) for places in ((full, original), (base, full)))
    declared = difference_of(measured, full, base, quantity)
    assert pair is not None
    assert back is not None
    assert declared is not None
    assert pair.p_adjusted == pytest.approx(6 * pair.p)
    assert (back.p_adjusted, back.mean) == (declared.p_adjusted, pytest.approx(-declared.mean))
    assert difference_of(measured, full, Place("novels", "news", "nobody"), quantity) is None


@pytest.mark.parametrize("seeds", [1, 3])
def test_studies_of_four_identical_variants_seldom_declare_a_difference(seeds: int) -> None:
    """Of 150 studies at most 8 % (5 % and two standard errors); three uncorrected tests would declare one in more than 8 %."""
    rng = np.random.default_rng(seeds)
    documents, studies, wrong, uncorrected = 60, 150, 0, 0
    names = np.arange(documents).astype(object)
    items = Items(names, names)
    for _ in range(studies):
        hardness, size = rng.normal(2, 0.3, documents), rng.uniform(100, 500, documents)
        effects = rng.normal(0, 0.01 if seeds > 1 else 0, (len(PLACES), seeds))
        scores = {
            place: {
                BITS: {
                    seed: Scores(items, hardness + effects[index, seed] + rng.standard_t(4, documents) * 0.03, size)
                    for seed in range(seeds)
                }
            }
            for index, place in enumerate(PLACES.values())
        }
        found = decide(Comparer(scores, make_samples(scores), Compare()), BASELINES, HEADLINES).values()
        wrong += any(one.detected for one in found)
        uncorrected += any(one.p_documents <= 0.05 for one in found)
    assert wrong / studies <= 0.085
    assert uncorrected / studies > 0.085

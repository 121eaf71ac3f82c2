from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from paretune.analysis.conclude import conclude, remarks
from paretune.analysis.measured import Measured, measure
from paretune.pipeline.records import Results
from tests.analysis.synthetic import VARIANTS, Shape, Truth, make_results, write_scores

QUIET = Shape(seeds=(0,), seed_effect=0.0, evaluations=("perplexity", "latency"), epochs=1)
BASE, FULL, LORA, REDUCED = (VARIANTS[name] for name in ("base", "full", "original", "reduced"))


def said(results: Results) -> list[str]:
    measured = measure(results)
    found = conclude(measured, measured.groups[0])
    return [*found.recommendation, *found.findings]


def study(tmp_path: Path, shape: Shape = QUIET, **variants: Truth) -> list[str]:
    return said(make_results(tmp_path, replace(shape, variants=variants)))


def having(sentences: Sequence[str], *words: str) -> list[str]:
    return [sentence for sentence in sentences if all(word in sentence for word in words)]


def test_a_detected_loss_of_quality_is_a_trade_with_its_price(tmp_path: Path) -> None:
    sentences = study(tmp_path, original=LORA, reduced=REDUCED)
    assert having(sentences, "Recommended: `original`.", "lowest test perplexity", "lead over every other variant is detected")
    (trade,) = having(sentences, "Cheaper at a price: `reduced` is 11.3 % smaller than `original`, trains 1.1")
    assert "but its test perplexity is" in trade
    assert "higher (95 % interval " in trade
    assert "generates 1." in trade


def test_where_no_difference_is_detected_the_cheaper_variant_is_recommended(tmp_path: Path) -> None:
    sentences = study(tmp_path, original=LORA, reduced=replace(REDUCED, loss=LORA.loss - 1e-4))
    (recommended,) = having(sentences, "Recommended")
    assert "`reduced`" in recommended
    assert (
        "11.3 % smaller" in recommended or "`original` cannot be told apart from it and is not clearly cheaper" in recommended
    )
    assert not having(sentences, " higher ("), sentences
    assert not having(sentences, " lower (")


def test_a_variant_that_is_better_and_cheaper_is_no_trade(tmp_path: Path) -> None:
    sentences = study(tmp_path, original=LORA, reduced=replace(REDUCED, loss=3.9))
    assert having(sentences, "Recommended: `reduced`.")
    assert not having(sentences, "Cheaper at a price")
    assert having(sentences, "`reduced` is 11.3 % smaller", ", and its test perplexity is", "lower")


def test_a_variant_worse_than_the_untouched_base_is_said_to_be_so(tmp_path: Path) -> None:
    sentences = study(tmp_path, base=BASE, full=replace(FULL, loss=5.3), original=LORA)
    assert having(sentences, "`full` is worse than the untouched base: its test perplexity is")
    assert having(sentences, "`original` is better than the untouched base: test perplexity from ")
    assert not having(sentences, "Every other variant is better")


def test_what_is_worse_than_the_untouched_base_is_no_bargain(tmp_path: Path) -> None:
    sentences = study(tmp_path, base=BASE, original=LORA, reduced=replace(REDUCED, loss=6.5))
    assert not having(sentences, "Cheaper at a price")
    (worse,) = having(sentences, "`reduced` is worse than the untouched base")
    assert " times as high (95 % interval " in worse
    assert worse.endswith(" times).")


def test_disturbed_times_are_told_and_quiet_ones_not(tmp_path: Path) -> None:
    results = make_results(tmp_path, replace(QUIET, variants={"base": BASE, "original": LORA, "reduced": REDUCED}))
    assert not having(remarks(measure(results)), "disturbed")
    cells = []
    for cell in results.cells:
        record = cell.evaluations["latency"]
        slow = {name: value * 3 for name, value in record.metrics.items() if name != "threads"}
        record = replace(record, metrics=slow) if cell.variant == "base" else record
        cells.append(replace(cell, evaluations={**cell.evaluations, "latency": record}))
    disturbed = replace(results, cells=tuple(cells))
    assert having(remarks(measure(disturbed)), "Times were disturbed", "time per token by 3.", "not told")
    assert having(said(results), "generates 1.")
    assert not having(said(disturbed), "generates 1.")


def test_a_base_that_nothing_beats_is_recommended(tmp_path: Path) -> None:
    sentences = study(tmp_path, base=BASE, full=replace(FULL, loss=5.3), original=replace(LORA, loss=5.0))
    assert having(sentences, "Recommended: the untouched base, `base`.")


def test_times_of_different_machines_are_not_spoken_of(tmp_path: Path) -> None:
    results = make_results(tmp_path, replace(QUIET, variants={"original": LORA, "reduced": REDUCED}))
    assert having(said(results), "trains 1.")
    cells = tuple(
        replace(
            cell,
            methods=tuple(replace(record, machine={"processor": f"of {cell.variant}"}) for record in cell.methods),
            evaluations={
                name: replace(record, machine={"processor": f"of {cell.variant}"}) for name, record in cell.evaluations.items()
            },
        )
        for cell in results.cells
    )
    sentences = said(replace(results, cells=cells))
    assert not having(sentences, "trains ")
    assert not having(sentences, "generates ")
    assert having(sentences, "`reduced` is 11.3 % smaller than `original`")


def test_seeds_that_lie_too_far_apart_are_not_a_verdict_about_methods(tmp_path: Path) -> None:
    shape = replace(QUIET, seeds=(0, 1), seed_effect=0.05)
    sentences = study(tmp_path, shape, full=replace(FULL, loss=4.08), original=LORA)
    assert having(sentences, "Recommended: `original`", "cannot be told apart from the best", "; the 2 seeds lie far apart; ")
    sentences = study(tmp_path, shape, base=BASE, cut=replace(LORA, loss=4.55))
    assert having(sentences, "Recommended: the untouched base, `base`.", "and it needs no training")


@pytest.mark.parametrize(("seeds", "words"), [((0,), "One training seed"), ((0, 1), "Two training seeds"), ((0, 1, 2), None)])
def test_what_the_number_of_seeds_allows_to_say(tmp_path: Path, seeds: tuple[int, ...], words: str | None) -> None:
    found = remarks(measure(make_results(tmp_path, replace(QUIET, seeds=seeds, documents=6))))
    assert [sentence for sentence in found if "seed" in sentence] == ([] if words is None else having(found, words))


def with_answers(tmp_path: Path, **right: int) -> Measured:
    """A study of ten questions of which each variant answers the first `right` ones."""
    variants = {"original": LORA, "reduced": REDUCED}
    results = make_results(tmp_path, replace(QUIET, variants=variants, evaluations=("perplexity", "qa"), documents=40))
    for cell in results.cells:
        rows = [
            {"split": "", "document": str(index), "example": str(index), "metric": "accuracy", "weight": 1.0}
            | {"value": float(index < right[cell.variant])}
            for index in range(10)
        ]
        write_scores(cell.evaluations["qa"].path, rows)
    return measure(results)


def test_two_answers_apart_are_no_difference(tmp_path: Path) -> None:
    measured = with_answers(tmp_path, original=7, reduced=5)
    sentences = conclude(measured, measured.groups[0]).findings
    (found,) = having(sentences, "Accuracy on `qa` (10 questions): from 5 of 10 (`reduced`) to 7 of 10 (`original`)")
    assert "no variant is told apart from `original` (widest gap 2 answers, `reduced`, exact test p = 0.5; " in found
    assert "; a gap of 7 would have been detected)" in found


def test_seven_answers_apart_are_one(tmp_path: Path) -> None:
    measured = with_answers(tmp_path, original=8, reduced=1)
    sentences = conclude(measured, measured.groups[0]).findings
    assert having(sentences, "Accuracy on `qa`", "`reduced` is worse than `original` (1 of 10 against 8 of 10")
    assert not having(sentences, "Accuracy on `qa`", "no variant is told apart")


def test_equal_answers_are_said_to_be_equal(tmp_path: Path) -> None:
    measured = with_answers(tmp_path, original=4, reduced=4)
    assert having(conclude(measured, measured.groups[0]).findings, "all variants answer 4 of 10 correctly")


LIMITS = """
compare:
  baseline: original
  costs: [model_bytes]
  require:
    - {model_bytes: {at_most: 26.0e6}}
    - {model_bytes: {at_most: 1.0e6}}
    - {bits_per_byte: {within: 0.1}}
    - {bits_per_byte: {within: 0.001}}
"""


def test_each_limit_of_the_study_has_a_recommendation(tmp_path: Path) -> None:
    shape = replace(QUIET, extra=LIMITS)
    sentences = study(tmp_path, shape, base=BASE, full=FULL, original=LORA, reduced=replace(REDUCED, loss=4.2))
    for words in (
        "With model size at most 26.0 MB: `reduced`; no other is shown to keep to it.",
        "With model size at most 1.00 MB: no variant is shown to keep to it.",
        "With test bits per byte within 0.1 of `original`: `reduced`; of those that keep to it (`full`, `original` and "
        "`reduced`) it is the cheapest.",
        "With test bits per byte within 0.001 of `original`: `full`; of those that keep to it (`full` and `original`) none is "
        "clearly cheaper.",
        "On the Pareto frontier of test perplexity against model size are `full` and `reduced`; beaten: `original` and "
        "`base` (by `full`).",
    ):
        assert words in sentences, sentences


def test_a_difference_inside_the_margin_is_equivalent_and_the_cheaper_variant_is_taken(tmp_path: Path) -> None:
    margin = "compare: {baseline: original, margin: {bits_per_byte: 0.05}, costs: [model_bytes]}\n"
    sentences = study(tmp_path, replace(QUIET, extra=margin), original=LORA, reduced=replace(REDUCED, loss=LORA.loss + 0.04))
    assert having(sentences, "Recommended: `reduced`.", "cannot be told apart from the best")
    assert not having(sentences, "Recommended: `original`")
    (tmp_path / "no").mkdir()
    without = study(tmp_path / "no", original=LORA, reduced=replace(REDUCED, loss=LORA.loss + 0.04))
    assert having(without, "Recommended: `original`", "lead over every other variant is detected")


def test_one_document_gives_no_recommendation(tmp_path: Path) -> None:
    sentences = study(tmp_path, replace(QUIET, documents=1), original=LORA, reduced=REDUCED)
    assert having(sentences, "No recommendation: 1 document cannot tell variants apart")
    assert not having(sentences, "frontier")  # where nothing is told apart, costs alone would say what beats what
    assert not having(sentences, "Recommended")


def test_a_perplexity_that_only_memory_can_give_is_flagged(tmp_path: Path) -> None:
    assert having(
        study(tmp_path, original=replace(LORA, loss=0.2)), "so low that held-out text is likely to stand in the training"
    )
    (tmp_path / "sane").mkdir()
    assert not having(study(tmp_path / "sane", original=LORA), "so low that")


def test_merged_networks_of_one_shape_have_no_speed_and_no_size_to_tell(tmp_path: Path) -> None:
    sentences = study(tmp_path, full=replace(FULL, ms_per_token=8.0), lora=LORA, reduced=replace(REDUCED, ms_per_token=1.0))
    assert not having(sentences, "`lora`", "than `full`", "generates")
    assert not having(sentences, "`lora`", "than `full`", "smaller")
    assert not having(sentences, "`lora`", "than `full`", "larger")
    assert all("1.1 %" not in sentence for sentence in having(sentences, "`lora`", "than `full`"))
    assert having(sentences, "`reduced` is 11.3 % smaller than `full`")
    assert not having(sentences, "parameters")


def test_answers_that_guessing_gives_are_said_to_be_so(tmp_path: Path) -> None:
    measured = with_answers(tmp_path, original=9, reduced=3)
    sentences = conclude(measured, measured.groups[0]).findings
    (found,) = having(sentences, "not told apart from guessing")
    assert "(chance 2.5 of 10, exact binomial test): `reduced` (3 of 10, p = 0.72)." in found
    assert "`original`" not in found
    (tmp_path / "known").mkdir()
    known = with_answers(tmp_path / "known", original=9, reduced=8)
    assert not having(conclude(known, known.groups[0]).findings, "guessing")


def test_cheaper_in_nothing_that_is_told_is_no_bargain(tmp_path: Path) -> None:
    costs = "compare: {baseline: original, costs: [trainable_parameters]}\n"
    tiny = Truth(LORA.methods, LORA.loss + 0.2, parameters=7_010_000, trainable=10_000, tokens_per_second=5000)
    sentences = study(tmp_path, replace(QUIET, extra=costs), original=LORA, tiny=tiny)
    assert having(sentences, "Recommended: `original`.")
    assert not having(sentences, "Cheaper at a price")

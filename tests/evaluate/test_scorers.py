import pytest
from rouge_score import rouge_scorer

from paretune.evaluate.scorers import (
    best_of,
    contains,
    exact_match,
    normalise_answer,
    rouge,
    score_answer,
    set_scores,
    shape_of,
)


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("  an apple, a day\n", "apple day"),
        ("U.S.A.", "usa"),
        ("well-known", "wellknown"),
        ("anthem of the nation", "anthem of nation"),
        ("«Paris»", "«paris»"),  # the official script removes ASCII punctuation only
        ("the", ""),
        ("3.0 CSL", "30 csl"),
    ],
)
def test_normalisation_is_that_of_squad(text: str, normalised: str) -> None:
    assert normalise_answer(text) == normalised


def test_exact_match_ignores_case_articles_and_punctuation_only() -> None:
    assert exact_match(" the Regensburg.", "Regensburg")
    assert not exact_match("Regensburg plant", "Regensburg")
    assert not exact_match("", "Regensburg")


def test_contains_asks_for_whole_words_in_a_row() -> None:
    assert contains("It is the BMW M4 GT3, I think", "BMW M4 GT3")
    assert contains("25", "25")
    assert not contains("It has 460 hp", "46")
    assert not contains("M4 of BMW", "BMW M4")
    assert not contains("", "460")


def test_a_reference_without_words_is_in_no_text_with_words() -> None:
    assert not contains("something", "The")
    assert contains("the", "The")


def test_rouge_is_the_library_s_where_text_is_ascii() -> None:
    text, reference = "The BMW Group's new car, announced today.", "the bmw group announced a new car today"
    found = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"]).score(reference, text)
    assert rouge(text, reference) == {
        "rouge_1": found["rouge1"].fmeasure,
        "rouge_2": found["rouge2"].fmeasure,
        "rouge_l": found["rougeL"].fmeasure,
    }


def test_rouge_reads_other_scripts() -> None:
    assert rouge("новая машина", "новая лампа")["rouge_1"] == 0.5
    assert rouge("", "x") == {"rouge_1": 0.0, "rouge_2": 0.0, "rouge_l": 0.0}


def test_lists_are_compared_as_sets() -> None:
    found = set_scores("BMW, motor  sport; electric\nBMW", "bmw, Motor Sport, design, racing")
    assert found == {"set_precision": 2 / 3, "set_recall": 2 / 4, "set_f1": 4 / 7, "jaccard": 2 / 5}
    assert set_scores("", " ")["set_f1"] == 1.0
    assert set_scores("", "a")["set_f1"] == set_scores("a", "")["set_f1"] == 0.0


def test_the_shape_of_a_text() -> None:
    assert shape_of("a b a b a b", ["x y z"]) == {
        "length_ratio": 2.0,
        "distinct_1": 2 / 6,
        "distinct_2": 2 / 5,
        "repetition": 1 - 2 / 3,
    }
    assert shape_of("", ["x"]) == {"length_ratio": 0.0}
    assert shape_of("a", [""]) == {"distinct_1": 1.0}


def test_an_answer_has_the_scores_that_its_task_asks_for() -> None:
    assert set(score_answer(["rouge_1", "exact_match"], "a", "a")) == {"rouge_1", "exact_match"}
    assert set(score_answer(["set_f1"], "a", "a")) == {"set_precision", "set_recall", "set_f1", "jaccard"}
    assert score_answer(["accuracy"], "a", "a") == {}


def test_of_several_references_the_best_counts_metric_by_metric() -> None:
    assert best_of([{"a": 0.1, "b": 0.5}, {"a": 0.2}, {}]) == {"a": 0.2, "b": 0.5}
    assert shape_of("a b c", ["x", "x y z w", ""])["length_ratio"] == 3 / 4

import pytest
from rouge_score import rouge_scorer

from paretune.evaluate.scorers import best_of, contains, exact_match, rouge, score_answer, set_scores, shape_of, squad_em


@pytest.mark.parametrize(
    ("text", "reference", "same"),
    [
        (" Regensburg.\n", "regensburg", True),
        ("the Regensburg", "Regensburg", False),
        ("cafe\u0301", "caf\u00e9", True),
        ("Stra\u00dfe", "STRASSE", True),
        ("don\u2019t", "don't", True),
        ("(\u201cParis\u201d).", "Paris", True),
        ("\u300c\u6771\u4eac\u300d\u3002", "\u6771\u4eac", True),
        ("\u00bfS\u00ed?", "s\u00ed", True),
        ("दिल्ली।", "दिल्ली", True),
        ("B)", "b", True),
        ("", "A", False),
        ("the", "A", False),
        ("!!!", "A", False),
        ("", "The", False),
        ("", "!", False),
        ("", " ", True),
        ("!", "?", False),
        ("-", "+", False),
        ("3.14", "3.140", True),
        ("314", "3.14", False),
        ("1,000", "1000.0", True),
        ("1,0000", "10000", False),
        ("1e3", "1000", True),
        (".5", "0.50", True),
        ("-5", "5", False),
        ("\u22125", "-5", True),
        ("+5", "5", True),
        ("0", "-0", True),
        ("007", "7", False),
        ("1030", "10:30", False),
        ("3.11.2", "3.112", False),
        ("0.5", "1/2", False),
        ("$1,000", "$1000", True),
        ("50 %", "50%", True),
        ("50", "50%", False),
        ("9" * 5000, "9" * 5000, True),
        ("1e999", "1e998", False),
        ("\u0663\u0664", "34", True),
        ("C#", "C++", False),
        ("C", "C#", False),
        (".NET", "NET", False),
        ("foo()", "foo", False),
        ("x\u00b2", "x2", False),
        ("USA", "U.S.A.", False),
    ],
)
def test_answers_match_by_words_numbers_and_signs(text: str, reference: str, same: bool) -> None:
    assert exact_match(text, reference) == exact_match(reference, text) == same


@pytest.mark.parametrize(
    ("text", "reference", "inside"),
    [
        ("It is the BMW M4 GT3, I think", "BMW M4 GT3", True),
        ("It is a BMW M40.", "M4", False),
        ("M4 of BMW", "BMW M4", False),
        ("It has 460 hp", "46", False),
        ("That is 1,000 euros", "1000", True),
        ("pi is 3.14159", "3.14", False),
        ("It is 3.140.", "3.14", True),
        ("It is -5 outside", "5", False),
        ("between 3-5", "5", True),
        ("at 10:30", "30", False),
        ("The answer is A", "A", True),
        ("the answer is (A).", "A", True),
        ("It is a dog", "A", False),
        ("C++ and C#", "C", False),
        ("\u7b54\u6848\u662f\u5317\u4eac\u3002", "\u5317\u4eac", True),
        ("", "460", False),
        ("something", "The", False),
        ("the", "The", True),
        ("x", " ", False),
        ("", "", True),
    ],
)
def test_contains_asks_for_whole_words_in_a_row(text: str, reference: str, inside: bool) -> None:
    assert contains(text, reference) == inside


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("  an apple, a day\n", "apple day"),
        ("U.S.A.", "usa"),
        ("anthem of the nation", "anthem of nation"),
        ("the", ""),
        ("3.0 CSL", "30 csl"),
    ],
)
def test_squad_s_match_is_that_of_its_script(text: str, reference: str) -> None:
    assert squad_em(text, reference)
    assert not squad_em("\u00abParis\u00bb", "Paris")  # it removes ASCII punctuation only


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
    # Vowel signs belong to their words, and of scripts without spaces each character is one.
    assert rouge("का", "की")["rouge_1"] == 0
    assert rouge("நான் போனேன்", "நான் போனான்")["rouge_1"] == 0.5
    assert rouge("今天天气很好", "今天天气不好")["rouge_1"] == pytest.approx(5 / 6)
    assert rouge("東京は日本の首都です", "東京は日本の首都である")["rouge_l"] == pytest.approx(18 / 21)
    assert rouge("", "x") == {"rouge_1": 0.0, "rouge_2": 0.0, "rouge_l": 0.0}


def test_lists_are_compared_as_sets() -> None:
    found = set_scores("BMW, motor  sport; electric\nBMW", "bmw, Motor Sport, design, racing")
    assert found == {"set_precision": 2 / 3, "set_recall": 2 / 4, "set_f1": 4 / 7, "jaccard": 2 / 5}
    assert set_scores("cafe\u0301\u3001b", "b, caf\u00e9")["set_f1"] == 1.0
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
    assert score_answer(["squad_em", "contains"], "the 314", "3.14") == {"squad_em": 1.0, "contains": 0.0}
    assert score_answer(["accuracy"], "a", "a") == {}


def test_of_several_references_the_best_counts_metric_by_metric() -> None:
    assert best_of([{"a": 0.1, "b": 0.5}, {"a": 0.2}, {}]) == {"a": 0.2, "b": 0.5}
    assert shape_of("a b c", ["x", "x y z w", ""])["length_ratio"] == 3 / 4

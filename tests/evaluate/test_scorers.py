import pytest

from paretune.evaluate.scorers import contains, exact_match, normalise_answer


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

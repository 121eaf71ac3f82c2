import pytest

from paretune.analysis import wording


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4.5367, "4.54"),
        (93.66, "93.7"),
        (1234.5, "1,234"),
        (0.9996, "1.00"),
        (9.996, "10.0"),
        (0.0123, "0.0123"),
        (0, "0"),
        (2e9, "over 10 million"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert wording.number(value) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (1.031, "+3.1 %"),
        (0.969, "-3.1 %"),
        (1.004, "+0.40 %"),
        (1.0, "0 %"),
        (2.473, "+147 %"),
        (4.2, "x 4.2"),
        (1.0000001, "0 %"),
    ],
)
def test_changes_are_in_percent_until_they_are_factors(ratio: float, text: str) -> None:
    assert wording.change(ratio) == text


def test_the_share_of_trained_parameters_has_four_digits() -> None:
    assert wording.part_of(294_912, 124_734_720) == "294,912 of 124,734,720 (0.2364 %)"


@pytest.mark.parametrize(
    ("value", "text"), [(0.416, "0.42 s"), (12.34, "12.3 s"), (59.97, "1 min 00 s"), (245, "4 min 05 s"), (7389, "2 h 03 min")]
)
def test_seconds_are_said_as_people_say_them(value: float, text: str) -> None:
    assert wording.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (294_912, "295 kB"), (28_294_912, "28.3 MB"), (999_999, "1.00 MB"), (2.5e12, "2.50 TB")]
)
def test_sizes_are_decimal(value: float, text: str) -> None:
    assert wording.size(value) == text


def test_words_are_listed_and_counted() -> None:
    assert wording.listed(["a"]) == "a"
    assert wording.listed(["a", "b", "c"]) == "a, b and c"
    assert wording.plural(1, "document") == "1 document"
    assert wording.plural(1200, "document") == "1,200 documents"


def test_a_literal_cannot_break_out_of_its_backticks() -> None:
    assert wording.code("a`b\nc") == "`a'b c`"


def test_the_interval_of_nothing_is_not_nothing() -> None:
    assert wording.with_interval(0.0, 0.0, 0.143) == "0.000 (0.000 to 0.143)"


def test_means_of_answers_over_seeds_are_called_so() -> None:
    assert wording.part_of_mean(0.4, 10) == "4 of 10"
    assert wording.part_of_mean(0.25, 2) == "mean 0.5 of 2"

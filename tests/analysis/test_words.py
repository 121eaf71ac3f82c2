import pytest

from paretune.analysis.compare import Difference
from paretune.analysis.inference import Errors
from paretune.analysis.scores import Entrant, Quantity
from paretune.report import words


def between(metric: str, mean: float, low: float, high: float) -> Difference:
    entrants = (Entrant("novels", "news", name) for name in ("full", "base"))
    quantity, errors = Quantity("title", "test", metric), Errors(0.01, 20, 0.0, 1.0)
    return Difference(*entrants, quantity, 0.2, 0.1, mean, low, high, 0.2, 0.2, errors, 20, n_seeds=1, level=0.95)


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
    assert words.number(value) == text


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
    assert words.change(ratio) == text


def test_the_share_of_trained_parameters_has_four_digits() -> None:
    assert words.part_of(294_912, 124_734_720) == "294,912 of 124,734,720 (0.2364 %)"


@pytest.mark.parametrize(
    ("value", "text"), [(0.416, "0.42 s"), (12.34, "12.3 s"), (59.97, "1 min 00 s"), (245, "4 min 05 s"), (7389, "2 h 03 min")]
)
def test_seconds_are_said_as_people_say_them(value: float, text: str) -> None:
    assert words.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (294_912, "295 kB"), (28_294_912, "28.3 MB"), (999_999, "1.00 MB"), (2.5e12, "2.50 TB")]
)
def test_sizes_are_decimal(value: float, text: str) -> None:
    assert words.size(value) == text


def test_words_are_listed_and_counted() -> None:
    assert words.listed(["a"]) == "a"
    assert words.listed(["a", "b", "c"]) == "a, b and c"
    assert words.plural(1, "document") == "1 document"
    assert words.plural(1200, "document") == "1,200 documents"


def test_a_literal_cannot_break_out_of_its_backticks() -> None:
    assert words.code("a`b\nc") == "`a'b c`"


def test_the_interval_of_nothing_is_not_nothing() -> None:
    assert words.with_interval(0.0, 0.0, 0.143) == "0.000 (0.000 to 0.143)"


def test_means_of_answers_over_seeds_are_called_so() -> None:
    assert words.part_of_mean(0.4, 10) == "4 of 10"
    assert words.part_of_mean(0.25, 2) == "mean 0.5 of 2"


@pytest.mark.parametrize(
    ("metric", "low", "high", "text"),
    [
        ("rouge_l", -0.000000049, 0.017, "0 to +0.017"),
        ("rouge_l", -0.00038, 0.053, "-0.0004 to +0.053"),
        ("rouge_l", -0.71, -0.0275, "-0.71 to -0.028"),
        ("rouge_l", -1.4, 1.2, "-1.0 to +1.0"),
        ("log_likelihood", -2.2, -0.98, "-2.2 to -0.98 nats per token"),
        ("accuracy", -0.1, 0.31, "-10.0 to +31.0 points"),
        ("loss", 0.02, 0.04, "+2.0 to +4.1 %"),
        ("loss", 2.6, 2.8, "13 to 16 times"),
    ],
)
def test_an_end_near_zero_has_no_more_digits_than_the_other_calls_for(metric: str, low: float, high: float, text: str) -> None:
    assert words.interval(between(metric, 0.1, low, high)) == f"95 % interval {text}"


@pytest.mark.parametrize(
    ("metric", "mean", "text"),
    [
        ("loss", 0.031, "3.1 % higher"),
        ("loss", -0.031, "3.1 % lower"),
        ("loss", 2.7, "15 times as high"),
        ("accuracy", 0.1, "10.0 points higher"),
        ("bits_per_byte", -0.024, "0.024 lower"),
    ],
)
def test_a_difference_is_so_much_above_or_below(metric: str, mean: float, text: str) -> None:
    assert words.apart(between(metric, mean, mean, mean)) == text


def test_an_interval_of_too_few_says_of_how_many() -> None:
    nothing = float("nan")
    assert words.interval(between("rouge_l", 0.1, nothing, nothing)) == "20 documents: too few for an interval"


def test_the_best_is_the_lowest_or_the_highest() -> None:
    assert [words.better_word(Quantity("t", "", metric)) for metric in ("loss", "accuracy")] == ["lowest", "highest"]

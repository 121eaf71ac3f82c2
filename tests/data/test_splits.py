import random
from collections import Counter
from fractions import Fraction

import pytest

from paretune.data.prepare import split_documents, whole_counts
from paretune.errors import DataError
from paretune.study.data import Split

NAMES = [f"document {number}" for number in range(97)]


def test_every_document_gets_one_side_and_counts_are_by_largest_remainder() -> None:
    side = split_documents(NAMES, Split(train=0.7, validation=0.2, test=0.1))
    assert set(side) == set(NAMES)
    # 97 x (0.7, 0.2, 0.1) = 67.9, 19.4, 9.7
    assert Counter(side.values()) == {"train": 68, "validation": 19, "test": 10}


def test_binary_rounding_of_the_shares_does_not_move_a_document() -> None:
    # 0.29 * 100 is 28.999999999999996 in floating point.
    side = split_documents([str(n) for n in range(100)], Split(train=0.29, validation=0.57, test=0.14))
    assert Counter(side.values()) == {"train": 29, "validation": 57, "test": 14}


def test_the_order_of_the_file_changes_nothing_and_the_seed_does() -> None:
    shuffled = random.Random(1).sample(NAMES, len(NAMES))
    assert split_documents(shuffled, Split()) == split_documents(NAMES, Split())
    assert split_documents(NAMES, Split(seed=14)) != split_documents(NAMES, Split())


def test_the_split_of_a_seed_never_changes() -> None:
    side = split_documents([f"d{n}" for n in range(10)], Split(seed=13))
    assert {name: part for name, part in side.items() if part != "train"} == {"d2": "validation", "d6": "test"}


def test_what_the_shares_leave_is_unused() -> None:
    side = split_documents(NAMES, Split(train=0.5, validation=0.1, test=0.1))
    assert Counter(side.values()) == {"train": 48, "validation": 10, "test": 10, "unused": 29}


def test_strata_keep_their_shares() -> None:
    strata = {f"{stratum} {n}": stratum for stratum, count in (("a", 100), ("b", 50), ("c", 10)) for n in range(count)}
    side = split_documents(strata, Split(), strata)
    counts = Counter((strata[name], part) for name, part in side.items())
    assert [counts[stratum, "test"] for stratum in "abc"] == [10, 5, 1]
    assert [counts[stratum, "train"] for stratum in "abc"] == [80, 40, 8]


def test_many_small_strata_still_add_up_to_the_shares() -> None:
    strata = {f"{n}": str(n // 3) for n in range(300)}
    assert Counter(split_documents(strata, Split(), strata).values()) == {"train": 240, "validation": 30, "test": 30}
    single = {name: name for name in NAMES}
    assert Counter(split_documents(single, Split(), single).values()) == Counter(split_documents(NAMES, Split()).values())


def test_whole_counts_sum_and_stay_next_to_their_quotas() -> None:
    draw = random.Random(0)
    for _ in range(300):
        total = draw.randint(0, 12)
        weights = [Fraction(draw.randint(0, 9)) for _ in range(4)]
        quotas = [total * weight / (sum(weights) or 1) for weight in weights] if any(weights) else [Fraction(total), *[0] * 3]
        counts = whole_counts([Fraction(quota) for quota in quotas], total)
        assert sum(counts) == total
        assert all(abs(count - quota) < 1 for count, quota in zip(counts, quotas, strict=True))


def test_quotas_below_zero_count_as_zero() -> None:
    quotas = [Fraction(-6, 10), Fraction(-6, 10), Fraction(11, 10), Fraction(11, 10)]
    assert whole_counts(quotas, 1) == [0, 0, 1, 0]


def test_too_few_documents_are_refused_with_the_numbers() -> None:
    with pytest.raises(DataError) as caught:
        split_documents(["a", "b", "c"], Split())
    message = str(caught.value)
    expected = [
        "3 document(s)",
        "train 0.8 is 3",
        "validation 0.1 is 0",
        "test 0.1 is 0",
        "`validation` would be empty",
        "about 10",
    ]
    assert [part for part in expected if part not in message] == []

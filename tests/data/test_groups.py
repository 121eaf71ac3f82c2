from typing import Any

import pytest

from paretune.data.groups import groupings

ROWS = 240


def found(**columns: Any) -> list[tuple[str, int]]:
    rows = [{name: column(n) for name, column in columns.items()} for n in range(ROWS)]
    return [(grouping.column, grouping.num_values) for grouping in groupings(rows)]


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("transcript_id", lambda n: n // 6),
        ("session", lambda n: f"s-{n % 40}"),
        ("patient", lambda n: 1000 + n % 40),
        ("userID", lambda n: float(n % 40)),
        ("conversationid", lambda n: str(n // 6)),
        ("page_url", lambda n: f"https://example.org/{n % 40}"),
        ("title", lambda n: f"On number {n // 6}"),
        ("x", lambda n: n // 6),
        ("date", lambda n: f"2024-05-{n // 6}"),
    ],
)
def test_a_column_groups_by_its_name_or_by_runs(name: str, column: Any) -> None:
    assert found(turn=lambda n: n % 6, number=lambda n: n, **{name: column}) == [(name, 40)]


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("id", lambda n: n),
        ("turn", lambda n: n // 6),
        ("label", lambda n: n // 80),
        ("x", lambda n: n % 40),
        ("category_id", lambda n: n // 6),
        ("score", lambda n: n / 7),
        ("text", lambda n: f"This is text {n}."),
        ("user", lambda n: "the same"),
        ("session", lambda n: None if n % 9 else n // 6),
        ("grid", lambda n: n % 40),
    ],
)
def test_counters_labels_and_what_is_empty_do_not_group(name: str, column: Any) -> None:
    assert found(**{name: column}) == []


def test_groups_of_two_and_of_many_and_fields_of_objects() -> None:
    assert found(session=lambda n: n // 2) == [("session", 120)]
    assert found(session=lambda n: n // 120) == [("session", 2)]
    assert found(meta=lambda n: {"conversation_id": n // 6, "turn": n % 6}) == [("meta.conversation_id", 40)]


def test_the_surest_and_coarsest_comes_first_and_too_few_groups_last() -> None:
    columns = {
        "url": lambda n: f"u{n // 4}",
        "session": lambda n: n // 3,
        "patient": lambda n: n // 6,
        "user": lambda n: n // 60,
    }
    assert [name for name, _ in found(**columns)] == ["patient", "session", "url", "user"]

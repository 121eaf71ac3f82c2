"""Columns whose values say which records belong together: conversations, patients, pages, the answers to one question.

A column groups if its values repeat and its name says so (`session`, `user_id`, `questionURL`), or if equal values stand in
runs, as a file has them that was written group by group. A column of few values is a label rather than a group, and a counter
(`turn`) repeats without running.
"""

import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

LOOK = 20_000
"""Records that are looked at."""
_CELLS = 2_000_000
"""Values that are looked at, where there are so many columns that this is less."""
FEWEST = 10
"""Groups with which every part of a split of 80, 10 and 10 % has one."""
_ENOUGH = 30
"""Groups from which the coarsest column is taken: with fewer, little is held out to measure by."""
_LABELS = 20
"""Values that a column without a telling name may have and be a label."""
_RUN = 1.2
"""Runs for each value, at most, of a column that is written group by group."""
_PAIRED = 1.5
"""Records for each value, at least, of such a column."""
_REPEATED = 0.05
"""Share of records with an earlier one's value, at least, of a column whose name only may say so: some titles occur twice."""
_NAMES = (
    *("id", "uuid", "guid", "session", "conversation", "dialog", "dialogue", "chat", "thread", "transcript", "call", "ticket"),
    *("case", "group", "cluster", "family", "patient", "user", "customer", "client", "subject", "speaker", "participant"),
    *("person", "student", "member", "account", "document", "doc", "article", "page", "book", "story", "episode", "meeting"),
)
"""Words of a column's name that say that its values are those of records that belong together, surest first."""
_WEAKER = ("url", "uri", "link", "file", "filename", "path", "title", "heading", "author", "source", "date", "day")
_NO_GROUP = ("type", "category", "class", "label", "topic", "tag", "lang", "language", "score", "rating", "difficulty", "level")
_COUNTS = ("turn", "index", "position", "number", "count", "length", "year", "vote", "upvote", "view", "step", "rank")


@dataclass(frozen=True)
class Grouping:
    """A column whose values repeat."""

    column: str
    """A field of a record, or of an object in it: `metadata.conversation_id`."""
    num_values: int
    num_records: int
    named: int
    """2 for a name that says so, 1 for one that may, 0 where runs alone say so."""

    @property
    def splits(self) -> bool:
        """Whether there are enough values for a split."""
        return self.num_values >= FEWEST


def groupings(rows: Iterable[Mapping[str, Any]]) -> list[Grouping]:
    """The columns of `rows` that group, the one to take first: enough groups, then the surest name, then the coarsest."""
    columns: dict[str, list[int]] = {}
    num, most = 0, LOOK
    for num, row in enumerate(islice(rows, LOOK), 1):
        values = _scalars(row)
        if num == 1:
            most, columns = _CELLS // max(1, len(values)), {name: [] for name in values}
        columns = {name: of_column for name, of_column in columns.items() if name in values}
        for name, of_column in columns.items():
            of_column.append(hash(values[name]))  # whether two are equal is all that counts
        if num >= most or not columns:
            break
    found = [grouping for name, values in columns.items() if (grouping := _grouping(name, values)) is not None]

    def order(grouping: Grouping) -> tuple[int, ...]:
        few = grouping.num_values < _ENOUGH
        return (not grouping.splits, -grouping.named, few, -grouping.num_values if few else grouping.num_values)

    return sorted(found, key=order)


def words_of_name(field: str) -> list[str]:
    """`questionTitle`, `question_title` and `Question titles` as `question`, `title`."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", field)]
    return [re.sub(r"(?<!s)s$", "", word) for word in words]


def _scalars(row: Mapping[str, Any]) -> dict[str, str]:
    """Texts, whole numbers and dates that are not empty, as text; those of an object in a record under `object.field`."""
    values: dict[str, str] = {}
    for name, value in row.items():
        inner = {f"{name}.{field}": item for field, item in value.items()} if isinstance(value, Mapping) else {name: value}
        for path, item in inner.items():
            whole = isinstance(item, int | datetime.date) or (isinstance(item, float) and item.is_integer())
            if (isinstance(item, str) and item.strip()) or (whole and not isinstance(item, bool)):
                values[path] = str(item)
    return values


def _grouping(column: str, values: Sequence[int]) -> Grouping | None:
    num, num_values = len(values), len(set(values))
    if not 1 < num_values < num:
        return None
    words = words_of_name(column)
    if {"".join(words), *words} & {*_NO_GROUP, *_COUNTS}:
        return None
    joined = any(word.endswith("id") and word[:-2] in _NAMES for word in words)  # `userid`
    named = 2 if joined or set(words) & set(_NAMES) else 1 if set(words) & set(_WEAKER) else 0
    runs = 1 + sum(first != second for first, second in pairwise(values))
    in_runs = runs <= _RUN * num_values and num >= _PAIRED * num_values
    repeats = num - num_values >= _REPEATED * num
    if named == 2 or (named == 1 and num_values > _LABELS and repeats) or (in_runs and num_values > _LABELS):
        return Grouping(column, num_values, num, named)
    return None

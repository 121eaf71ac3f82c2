"""What the columns of records are, judged by their names and the first values: what asks and what answers, ids, labels, prose.

A name is read as its words: `questionText`, `question_text` and `Questions` all say `question`.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]

STRATUM = range(2, 21)
"""Values of a field that splits keep the shares of."""
_PAIRS = {
    "prompt": ("completion", "response", "answer"),
    "instruction": ("output", "response", "completion", "answer"),
    "question": ("answer", "response", "reply"),
    "query": ("answer", "response", "reply"),
    "context": ("response",),
    "input": ("output", "response"),
}
"""What asks, and what answers it, in the names that people give them."""
_ABOUT = {"id", "uuid", "url", "link", "count", "number", "date", "time", "score", "type", "category", "author", "name"}
"""Words of columns that tell something about a text."""
_FILLING = {"text", "body", "content"}
_ASKING_WORDS = 3
"""Words on average of a column that asks and is not simply called so: a title does, a difficulty does not."""
_ASKED = 0.9
HTML = re.compile(r"</?(?:p|br|div|span|a|b|i|em|strong|ul|ol|li|h[1-6]|table|t[dr]|img)\b[^<>]*>|&(?:#\d+|[a-z]+);")
_HTML_SHARE = 0.1
_ITEM_WORDS = 4
"""Of an item of a list, and of a label, at most."""
_REPEATS = 5
"""Records for each label."""


def asking_and_answering(rows: Rows) -> tuple[list[str], str] | None:
    """The columns that ask, one that is never empty first if there is one, and the one that answers; None without such names.

    Some column that asks is filled in nine of ten records.
    """
    names = {field: _words(field) for field in rows[0] if field.isidentifier() and not _ABOUT & set(_words(field))}
    for ask, several in _PAIRS.items():
        for answer in several:
            answers = [field for field, words in names.items() if answer in words]
            asks = [
                field
                for field, words in names.items()
                if ask in words and field not in answers and (words == [ask] or mean_words(rows, field) >= _ASKING_WORDS)
            ]
            asks.sort(key=lambda field: not always_text(rows, field))
            if answers and sum(any(is_text(row.get(field)) for field in asks) for row in rows) >= _ASKED * len(rows):
                return asks, max(answers, key=lambda field: (names[field] == [answer], mean_words(rows, field)))
    return None


def unused_columns(rows: Rows, written: str) -> list[str]:
    """Columns of text that `written`, a part of a study, does not name."""
    return [
        field
        for field in rows[0]
        if not re.search(rf"\b{re.escape(field)}\b", written)
        and not _ABOUT & set(_words(field))
        and not is_address(rows, field)
        and any(is_text(row.get(field)) and re.search(r"[^\W\d]", row[field]) for row in rows)
    ]


def columns_in(written: str, row: Mapping[str, Any]) -> list[str]:
    """The columns of a record that `written`, a part of a study, names."""
    return [field for field in row if re.search(rf"\b{re.escape(field)}\b", written)]


def html_columns(rows: Rows, written: str) -> dict[str, float]:
    """Of the columns that `written` names, the share of values that hold HTML, where it is more than a few."""
    shares = {}
    for field in rows[0]:
        values = [row[field] for row in rows if is_text(row.get(field))]
        if values and columns_in(written, {field: None}):
            shares[field] = sum(bool(HTML.search(value)) for value in values) / len(values)
    return {field: share for field, share in shares.items() if share >= _HTML_SHARE}


def _words(field: str) -> list[str]:
    """The words of a name in the singular, but for those that only say that it is a text."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", field)]
    told = [re.sub(r"(?<!s)s$", "", word) for word in words]
    return [word for word in told if word not in _FILLING] or told


def is_list(values: Sequence[Any]) -> bool:
    """Lists of short texts, or texts that write most of them: several short items between commas, without a sentence's end."""
    if all(isinstance(value, list) and all(isinstance(item, str) for item in value) for value in values):
        return True
    texts = [value for value in values if is_text(value)]
    items = [[item.split() for item in re.split(r"[,;\n]", text)] for text in texts if not re.search(r"[.!?]\s|[.!?]$", text)]
    listed = [parts for parts in items if len(parts) > 1 and max(map(len, parts)) <= _ITEM_WORDS]
    return len(texts) == len(values) and 2 * len(listed) > len(texts)


def is_label(values: Sequence[Any]) -> bool:
    """Few short texts, each of which stands there often."""
    if not all(is_text(value) for value in values):
        return False
    counts = Counter(value.strip() for value in values)
    return (
        len(counts) in STRATUM
        and len(values) >= _REPEATS * len(counts)
        and max(map(len, map(str.split, counts))) <= _ITEM_WORDS
    )


def repeated_id(rows: Rows) -> str | None:
    """A field called an id under which several records stand, such as the answers to one question."""
    for field in rows[0]:
        if not (field.lower().endswith("id") and all(isinstance(row.get(field), str | int) for row in rows)):
            continue
        if len(rows) // 10 < len({row[field] for row in rows}) < len(rows):
            return field
    return None


def stratum(rows: Rows, document: str | None) -> str | None:
    """A field of few, frequent values of which a document has only one."""
    for field in rows[0]:
        values = [row.get(field) for row in rows]
        if not all(isinstance(value, str) and value.strip() for value in values):
            continue
        counts = Counter(values)
        pairs = {(row.get(document), row.get(field)) for row in rows} if document else set()
        if len(counts) in STRATUM and min(counts.values()) >= 10 and len(pairs) == len({pair[0] for pair in pairs}):
            return field
    return None


def mean_words(rows: Rows, field: str) -> float:
    texts = [str(row[field]) for row in rows if is_text(row.get(field))]
    return sum(len(text.split()) for text in texts) / len(texts) if texts else 0.0


def is_address(rows: Rows, field: str) -> bool:
    return all(str(row.get(field) or "http").startswith("http") for row in rows)


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def always_text(rows: Rows, field: str) -> bool:
    return all(is_text(row.get(field)) for row in rows)

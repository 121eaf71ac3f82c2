"""Values that stand as text: JSON, read more strictly than Python does, and lists as tables have them."""

import ast
import io
import json
import math
import re
import tokenize
from collections import Counter
from typing import Any, NoReturn

from paretune.study.base import shown

_ARRAY = re.compile(r"array\((\[.*?\])(?:, dtype=\w+)?\)", re.DOTALL)


class UnusableJson(ValueError):
    """What Python's reader takes and a record cannot hold; `literal` is the value as it is written, where it is one."""

    def __init__(self, problem: str, literal: str = "") -> None:
        super().__init__(problem)
        self.literal = literal


def parse_json(text: str) -> Any:
    """JSON `text`; UnusableJson for NaN, for a number beyond float64, and for a name that stands twice in an object."""

    def constant(literal: str) -> NoReturn:
        raise UnusableJson(f"`{literal}` is no JSON value; write `null`, or leave the record out", literal)

    def number(literal: str) -> float:
        value = float(literal)
        if math.isinf(value) or (value == 0 and re.match("[^eE]*[1-9]", literal)):
            raise UnusableJson(f"`{literal}` is beyond the numbers that can be held; write it as a text, in quotes", literal)
        return value

    def record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            name = Counter(name for name, _ in pairs).most_common(1)[0][0]
            both = " and ".join(shown(value) for other, value in pairs if other == name)
            raise UnusableJson(f"`{name}` stands twice in one object, with {both}; rename one of them or take it out")
        return values

    return json.loads(text, parse_constant=constant, parse_float=number, object_pairs_hook=record)


def written_out(value: Any) -> Any:
    """The list or object that a text is the JSON or the Python of, of numpy arrays too; any other value as it is."""
    if not isinstance(value, str) or not value.strip().startswith(("[", "{", "array(")):
        return value
    try:
        return parse_json(value)
    except ValueError:
        text = _ARRAY.sub(r"\1", value.strip())
    try:
        if text.startswith("{"):
            return ast.literal_eval(text)
        # By its tokens, as numpy writes no commas: Python would join two texts that stand side by side to one.
        tokens = [(token.type, token.string) for token in tokenize.generate_tokens(io.StringIO(text).readline)]
        items = [string for kind, string in tokens if kind in (tokenize.STRING, tokenize.NUMBER)]
        others = {string for kind, string in tokens if kind in (tokenize.OP, tokenize.NAME)}
        return [ast.literal_eval(item) for item in items] if others <= {"[", "]", ","} else value
    except (ValueError, SyntaxError, tokenize.TokenError):
        return value

"""What is kept of a text or a conversation that is longer than a model is shown."""

import json
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from paretune.data.chat import plain_turn

if TYPE_CHECKING:
    from paretune.data.tokenizer import TextTokenizer

T = TypeVar("T")
_INSIDE = 4
"""Tokens at a cut that may be part of one character, of at most so many bytes."""


def shortened_text(tokenizer: "TextTokenizer", ids: Sequence[int], text: str, room: int, rule: str) -> tuple[list[int], str]:
    """The first `room` of the ids of a text (`cut`), or the last (`keep_end`), and the text that they are.

    A few less where the cut would part a character. The ids of a tokenizer that does not give texts back are cut all the same.
    """
    for num in range(room, max(0, room - _INSIDE), -1):
        kept = list(ids[:num] if rule == "cut" else ids[len(ids) - num :])
        part = tokenizer.decode(kept)
        if text.startswith(part) if rule == "cut" else text.endswith(part):
            return kept, part
    kept = list(ids[:room] if rule == "cut" else ids[len(ids) - room :])
    return kept, tokenizer.decode(kept)


def latest_turns(
    row: Mapping[str, Any], make: Callable[[Mapping[str, Any]], T], fits: Callable[[T], bool]
) -> tuple[T, int] | None:
    """What `make` makes of a row of `documents.parquet` with as many of the latest messages as fit, and how many were left out.

    The system prompt stays, and what is kept begins with a turn of the user, as chat templates ask for. None where not even
    the last turn of the user fits.
    """
    chat = json.loads(row["messages"])
    messages = chat["messages"]
    head = next((n for n, message in enumerate(messages) if message["role"] != "system"), 0)
    begins = [n for n, message in enumerate(messages[:-1]) if message["role"] == "user" and n > head]

    def made(begin: int) -> T:
        kept = messages[:head] + messages[begin:]
        written = json.dumps({**chat, "messages": kept}, ensure_ascii=False)
        return make({**row, "messages": written, "prompt": plain_turn(kept)[0]})

    first = bisect_left(begins, True, key=lambda begin: fits(made(begin)))
    return None if first == len(begins) else (made(begins[first]), begins[first] - head)

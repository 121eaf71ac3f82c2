"""Control tokens that stand as text in records, such as `</s>` behind an answer or `<|im_end|>` in a message.

A tokenizer takes them for what they look like: the end of a text, a turn of somebody else. What the study's own templates and
the chat template of a base write is meant so; what records hold is treated as the dataset's `control_tokens` says.
"""

import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paretune.errors import DataError

if TYPE_CHECKING:
    from paretune.data.records import Rendered
    from paretune.data.tokenizer import TextTokenizer

KNOWN = re.compile(
    r"</?s>|<\|[\w ]{1,40}\|>|<\uff5c[\w\u2581]{1,40}\uff5c>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|pad)>"
    r"|\[(?:CLS|SEP|PAD|MASK)\]"
)
"""What is a control token to one base or another; for the audit, which knows no base."""
_FIRST = 0xF0000
"""Of the private characters that stand for control tokens that are text."""
_PRIVATE = re.compile("([\U000f0000-\U000f7fff])")
WAYS_OUT = (
    "write `control_tokens: strip` to take them out, `text` to learn them as the characters that they are, or `learn` to learn "
    "them as the tokens that they look like"
)


@functools.lru_cache(maxsize=64)
def pattern_of(tokens: Sequence[str]) -> re.Pattern[str]:
    """Matches any of `tokens`, the longest first; nothing where there are none."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")


def sources_of(dataset: Mapping[str, Any]) -> dict[str, str]:
    """The study's own templates, by the piece that they write: `text`, `context`, `prompt NAME`, `completion NAME`."""
    tasks: Mapping[str, Mapping[str, str]] = dataset.get("tasks") or {}
    return {
        "text": dataset.get("text") or "",
        "context": dataset.get("context") or "",
        **{f"{piece} {name}": task.get(piece) or "" for name, task in tasks.items() for piece in ("prompt", "completion")},
    }


def pieces_of(rendered: "Rendered") -> list[tuple[str, str]]:
    """Name (as `sources_of` has it) and text of the pieces of a record, of conversations the messages."""
    if not rendered.branches:
        return [("text", rendered.context)]
    pieces = [("context", rendered.context)]
    for branch in rendered.branches:
        asked = [(f"prompt {branch.task}", branch.prompt), (f"completion {branch.task}", branch.completion)]
        pieces += asked if branch.messages is None else [("messages", branch.messages)]
    return pieces


def held(pattern: re.Pattern[str], text: str, source: str = "") -> Counter[str]:
    """The control tokens of a piece that come from its record: those beyond what its template `source` writes."""
    return Counter(pattern.findall(text)) - Counter(pattern.findall(source))


@dataclass
class ControlTokens:
    """What is done with the control tokens of one base in the pieces of a dataset."""

    tokenizer: "TextTokenizer"
    rule: str | None
    sources: Mapping[str, str]
    """Of the pieces."""

    def __post_init__(self) -> None:
        tokens = self.tokenizer.hf.convert_ids_to_tokens(sorted(self.tokenizer.special_ids))
        self.tokens = tuple(sorted(filter(None, tokens)))  # config.json may name an id that the tokenizer does not have
        self.pattern = pattern_of(self.tokens)
        self.num_examples = 0
        """That held some."""

    def check(self, examples: Iterable[tuple[str, Sequence[tuple[str, str]]]]) -> int:
        """DataError where records hold control tokens and the study does not say what is done; `examples` are the number of the
        record and the pieces of each. Returns how many there are."""
        counts, first, total = Counter[str](), "", 0
        for number, pieces in examples:
            total += 1
            of_example = sum((held(self.pattern, text, self.sources.get(name, "")) for name, text in pieces), Counter[str]())
            self.num_examples += bool(of_example)
            first = first or (number if of_example else "")
            counts.update(dict.fromkeys(of_example, 1))
        if counts and self.rule is None:
            named = ", ".join(f"`{token}` in {count}" for token, count in counts.most_common(5))
            raise DataError(
                f"{self.num_examples} of {total} examples (the first: of record {int(first) + 1}) hold control tokens of the "
                f"base as text: {named}; {WAYS_OUT}"
            )
        return total

    def treated(self, name: str, text: str) -> str:
        """A piece for the tokenizer: without the control tokens of its record, or with a private character for each that
        `encode` writes as text. DataError where the study's template writes the same tokens, so that none can be told apart."""
        source = self.sources.get(name, "")
        found = held(self.pattern, text, source)
        if not found or self.rule == "learn":
            return text
        if both := sorted(set(self.pattern.findall(source)) & set(found)):
            raise DataError(
                f"`{both[0]}` stands in records and in the study's own template of the same text, so `control_tokens: "
                f"{self.rule}` cannot tell them apart; take it out of the records, or write `control_tokens: learn`"
            )
        pattern = pattern_of(tuple(found))
        if self.rule == "text":
            return pattern.sub(lambda match: chr(_FIRST + self.tokens.index(match[0])), text)
        while pattern.search(text):  # `<</s>/s>`
            text = pattern.sub("", text)
        return text

    def plain(self, text: str) -> str:
        """A treated text as it reads."""
        return _PRIVATE.sub(lambda match: self.tokens[ord(match[0]) - _FIRST], text)

    def encode(self, text: str, *, continues: bool) -> list[int]:
        """Ids of a treated text, at its beginning or where it continues another one."""
        ids: list[int] = []
        for part in _PRIVATE.split(text):
            if _PRIVATE.fullmatch(part):
                ids += self.tokenizer.encode_continuation(self.plain(part), literally=True)
            elif part:
                ids += self.tokenizer.encode_continuation(part) if continues or ids else self.tokenizer.encode(part)
        return ids

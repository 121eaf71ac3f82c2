"""Which texts are unsafe by a study's `safety:`, its list of words, its classifier, or both; for data and for generations.

Words are found as whole words by their tokens: runs of letters, digits and marks in any script, single characters where a
script writes no spaces, and single signs; so `f*ck` and `c++` can stand in a list, and `ass` is not found in `class`.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import regex

from paretune.errors import DataError

if TYPE_CHECKING:
    from paretune.data.classifier import Classifier

_ALONE = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_TOKEN = regex.compile(rf"[{_ALONE}]|[\w--[{_ALONE}]]+|[^\w\s]", regex.V1)

Words = Mapping[str, Sequence[tuple[str, ...]]]
"""By its first token, each entry of a list as its tokens."""


@dataclass(frozen=True)
class Filter:
    """What counts as unsafe: either may be missing."""

    words: Words
    classifier: "Classifier | None"

    def flags(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text is unsafe."""
        found = [holds_words(text, self.words) for text in texts]
        if self.classifier is not None:
            from paretune.data.classifier import unsafe_probabilities

            rest = [n for n, unsafe in enumerate(found) if not unsafe]
            for n, p in zip(rest, unsafe_probabilities(self.classifier, [texts[n] for n in rest]), strict=True):
                found[n] = p >= self.classifier.threshold
        return found


def load_filter(config: Mapping[str, Any], resources: Mapping[str, str]) -> Filter:
    """The filter of a stage: `words` and `classifier` of `config`, at the resources `safety.words` and `safety.classifier`."""
    words = read_words(Path(resources["safety.words"])) if "words" in config else {}
    if "classifier" not in config:
        return Filter(words, None)
    from paretune.data.classifier import load_classifier  # brings torch

    return Filter(words, load_classifier(config["classifier"], resources["safety.classifier"], config["device"]))


def read_words(file: Path) -> Words:
    """The entries of a list, one a line; DataError for a file that is no UTF-8 or holds none."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"`{file}` is not UTF-8 (byte {error.start}); save it as UTF-8, one word or phrase a line") from None
    entries = {_tokens(line) for line in lines if not line.lstrip().startswith("#")} - {()}
    if not entries:
        raise DataError(f"`{file}` holds no words; write one word or phrase a line, or leave `words` out")
    found: dict[str, list[tuple[str, ...]]] = {}
    for entry in sorted(entries):
        found.setdefault(entry[0], []).append(entry)
    return found


def holds_words(text: str, words: Words) -> bool:
    """Whether an entry of `words` stands in `text`, as whole words in any case."""
    if not words:
        return False
    tokens = _tokens(text)
    starts = (n for n, token in enumerate(tokens) if token in words)
    return any(tokens[n : n + len(entry)] == entry for n in starts for entry in words[tokens[n]])


def labels_of(config: Mapping[str, Any]) -> list[str]:
    """The labels of a classifier by its config.json, in the order of its outputs; transformers' names where it has none."""
    named = config.get("id2label") or {n: f"LABEL_{n}" for n in range(config.get("num_labels", 2))}
    return [str(named[key]) for key in sorted(named, key=int)]


def _tokens(text: str) -> tuple[str, ...]:
    return tuple(_TOKEN.findall(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())))

"""The same text on two sides: between the splits, and between training text and evaluation items.

By document: `exact`; `normalised`, the same words (Unicode NFKC, case folded, punctuation and white space ignored); `near`,
by coverage, the share of a held-out document's distinct n-grams of words that stand in one other document, where n-grams of
many documents (boilerplate) do not count; and `field`, one field of the records in common (an article under another title, a
question with another answer). An inverted index of the held-out n-grams finds all pairs, in one pass over the training text.
"""

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from paretune.data.ngrams import NgramIndex
from paretune.data.words import words_of


@dataclass(frozen=True)
class Near:
    """How a held-out document of fewer than `below` words is compared."""

    below: float
    ngram: int
    """Words of an n-gram."""
    threshold: float
    """Coverage from which it counts as a near duplicate."""


NGRAM = 13
"""Words; the n-gram of GPT-3's overlap analysis (Brown et al. 2020, arXiv 2005.14165, appendix C)."""
NEAR = (Near(30, 5, 0.6), Near(150, 5, 0.35), Near(math.inf, NGRAM, 0.4))
"""By rising length. A text that is held in two or three parts has few long n-grams left where it is short: of 45 words of which
27 stand elsewhere, in two parts, 9 % of the 13-grams do and 46 % of the 5-grams. Under 30 words a form that many questions
share ("what is the opposite of ...") is as long. `benchmarks/leakage.py --lengths` measures what each row finds and misses."""
ITEM_NGRAM = 8
"""Words, for questions; the smallest of the same analysis."""
ITEM_THRESHOLD = 0.4
MIN_ITEM_WORDS = 5
"""A shorter question can stand in any text by chance."""
EXCERPT_CHARACTERS = 80

Kind = Literal["exact", "normalised", "near", "field"]
Texts = Mapping[str, str]
"""Document to its text."""
Contents = Mapping[str, Sequence[int]]
"""Document to the `content_digest` of its records' fields."""
Side = tuple[str, str]
"""Split and document."""
_Group = list[Side]
"""Documents with the same words."""
_Covered = list[tuple[int, int, float]]
"""(source, target, coverage) of pairs, by their indices."""

_KINDS = ("exact", "normalised", "near", "field")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_ORDER = {"train": 0, "validation": 1, "test": 2}


@dataclass(frozen=True)
class Pair:
    """A text of `split` that stands in `other`: a later split, an evaluation, or, as another document, the same split."""

    kind: Kind
    split: str
    document: str
    other: str
    other_document: str
    """A document, or the number of an item from 1."""
    coverage: float
    """Share of the other document's n-grams that stand in `document`; boilerplate counts for `field` only."""
    excerpt: str


def content_digest(text: str) -> int | None:
    """Of the words of one field, 63 bits; None if it has fewer than NGRAM words, which two records may share by chance."""
    words = words_of(text)
    if len(words) < NGRAM:
        return None
    return int.from_bytes(text_digest("".join(words))[:8], "little") >> 1


def find_pairs(
    texts: Mapping[str, Texts],
    contents: Mapping[str, Contents] | None = None,
    near: Sequence[Near] = NEAR,
    *,
    within: bool = False,
) -> list[Pair]:
    """Documents of `train` in `validation` or `test`, and of `validation` in `test`; `texts` is split to documents.

    `within`: those of `validation` and of `test` among themselves as well, as far as their texts are alike. Every document that
    is touched stands in at least one pair; of a thousand copies not every combination is listed.
    """
    pairs = {(pair.split, pair.document, pair.other, pair.other_document): pair for pair in _text_pairs(texts, near, within)}
    groups: dict[int, _Group] = {}
    for split, documents in (contents or {}).items():
        for document, digests in documents.items():
            for digest in dict.fromkeys(digests):
                groups.setdefault(digest, []).append((split, document))
    for group in groups.values():
        for (split, document), (other, other_document) in _sides(group, group):
            share, excerpt = _shared(texts[split][document], texts[other][other_document], NGRAM)
            pair = Pair("field", split, document, other, other_document, share, excerpt)
            pairs.setdefault((split, document, other, other_document), pair)
    return sorted(
        pairs.values(), key=lambda pair: (_KINDS.index(pair.kind), -pair.coverage, pair.document, pair.other_document)
    )


def _text_pairs(texts: Mapping[str, Texts], near: Sequence[Near], within: bool) -> Iterator[Pair]:
    groups: dict[bytes, _Group] = {}
    held_out = [
        _hashes(words)
        for split in ("test", "validation")
        for document, text in texts[split].items()
        if _joins(groups, words := words_of(text), text, split, document)
    ]
    num_targets = len(groups)
    ways = [next(way for way in near if len(hashes) < way.below) for hashes in held_out]
    # An index for each size of n-grams: of the documents that are compared by it, which all others are looked for in.
    own = {n: [target for target, way in enumerate(ways) if way.ngram == n] for n in sorted({way.ngram for way in ways})}
    others = {n: [target for target, way in enumerate(ways) if way.ngram != n] for n in own}
    indices = {n: NgramIndex() for n in own}
    for n, index in indices.items():
        for target in own[n]:
            index.add_target(_distinct_grams(held_out[target], n))
        for target in others[n]:
            index.add_source(_distinct_grams(held_out[target], n))
    del held_out
    for document, text in texts["train"].items():
        if _joins(groups, words := words_of(text), text, "train", document):
            hashes = _hashes(words)
            for n, index in indices.items():
                index.add_source(_distinct_grams(hashes, n))
    sources = list(groups.values())
    covered: _Covered = []
    for n, index in indices.items():
        numbers = [*others[n], *range(num_targets, len(sources)), *own[n]]
        thresholds = np.array([ways[target].threshold for target in own[n]])
        found = index.covered(range(len(own[n])), thresholds)
        covered += [(numbers[source], own[n][target], share) for source, target, share in found]
    for group in sources:
        for (split, document), (other, other_document) in _sides(group, group, within):
            text, other_text = texts[split][document], texts[other][other_document]
            kind: Kind = "exact" if text == other_text else "normalised"
            yield Pair(kind, split, document, other, other_document, 1.0, _short(other_text))
    for source, target, coverage in _strongest(covered, sources, within):
        for (split, document), (other, other_document) in _sides(sources[source], sources[target], within):
            _, excerpt = _shared(texts[split][document], texts[other][other_document], ways[target].ngram)
            yield Pair("near", split, document, other, other_document, coverage, excerpt)


def find_item_pairs(training: Texts, items: Mapping[str, Sequence[str]]) -> list[Pair]:
    """Items (evaluation to its texts, question and answer) that stand in `training` word for word, or nearly so.

    An item counts if its text, or the question alone (all up to the last question mark), stands there as one run of words, or
    if so much of its 8-grams stands in one training document. An answer that merely stands in training text does not.
    """
    probes = [
        (evaluation, number, hashes)
        for evaluation, texts in items.items()
        for number, text in enumerate(texts, 1)
        for hashes in map(_hashes, map(words_of, _probes(text)))
        if len(hashes) >= MIN_ITEM_WORDS
    ]
    # A probe shorter than ITEM_NGRAM is one n-gram of its own length: it is covered where it stands as one run.
    by_size: dict[int, list[tuple[str, int, np.ndarray]]] = {}
    for probe in probes:
        by_size.setdefault(min(ITEM_NGRAM, len(probe[2])), []).append(probe)
    indices = {n: NgramIndex() for n in by_size}
    for n, sized in by_size.items():
        for _, _, hashes in sized:
            indices[n].add_target(_distinct_grams(hashes, n))
    for text in training.values() if probes else ():
        hashes = _hashes(words_of(text))
        for n, index in indices.items():
            index.add_source(_distinct_grams(hashes, n))
    names = list(training)
    best: dict[tuple[str, int, str], float] = {}
    for n, index in indices.items():
        for source, target, share in index.covered([], np.full(len(by_size[n]), ITEM_THRESHOLD)):
            evaluation, number, _ = by_size[n][target]
            key = (evaluation, number, names[source])
            best[key] = max(best.get(key, 0.0), share)
    pairs = []
    for (evaluation, number, document), share in sorted(best.items()):
        item, text = items[evaluation][number - 1], training[document]
        words = f" {' '.join(words_of(text))} "
        kind: Kind = "near"
        if any(probe.strip() in text for probe in _probes(item)):
            kind = "exact"
        elif any(f" {' '.join(words_of(probe))} " in words for probe in _probes(item)):
            kind = "normalised"
        pairs.append(Pair(kind, "train", document, evaluation, str(number), share, _short(item)))
    return pairs


def block_message(pairs: Sequence[Pair], file: Path, shown: int = 5) -> str:
    """What `leakage: block` says: counts, the first pairs, the `file` that holds all of them, and the way out."""
    first = {(pair.split, pair.document) for pair in pairs}
    sides = Counter((pair.split, pair.other) for pair in pairs)
    counts = ", ".join(f"{times} between `{split}` and `{other}`" for (split, other), times in sorted(sides.items()))
    lines = []
    for pair in pairs[:shown]:
        share = f" ({pair.coverage:.0%} of it)" if pair.coverage < 1 else ""
        stands_in = f"{pair.other} `{pair.other_document}` in {pair.split} `{pair.document}`{share}"
        lines.append(f"  {pair.kind}: {stands_in}: {pair.excerpt}")
    if len(pairs) > shown:
        lines.append(f"  ... and {len(pairs) - shown} more")
    lines.append(f"  the place of both texts of {'each pair' if len(pairs) > 1 else 'the pair'}: {file}")
    return "\n".join(
        [
            f"the same text stands on two sides ({counts}); what is measured there would be memory, not skill:",
            *lines,
            f"write `leakage: remove` to leave {len(first)} document(s) of the earlier split out, "
            "or `leakage: allow` to keep them and mark the numbers that they touch",
        ]
    )


def _joins(groups: dict[bytes, _Group], words: Sequence[str], text: str, split: str, document: str) -> bool:
    """Put the document into its group, by letters and digits alone (`24-hour` is `24hour`); True if that is a new one."""
    key = text_digest("".join(words) or text.strip())
    new = key not in groups
    groups.setdefault(key, []).append((split, document))
    return new


def text_digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _sides(source: _Group, target: _Group, within: bool = False) -> Iterator[tuple[Side, Side]]:
    """Each document of `source` with one of `target` in a later split, or `within` one: the longer list's length."""
    for split, later in (("train", ("validation", "test")), ("validation", ("test",))):
        first = [side for side in source if side[0] == split]
        second = [side for side in target if side[0] in later] if first else []
        for n in range(max(len(first), len(second)) if second else 0):
            yield first[min(n, len(first) - 1)], second[min(n, len(second) - 1)]
    for split in ("validation", "test") if within else ():
        first, second = ([side for side in group if side[0] == split] for group in (source, target))
        if source is target:
            yield from itertools.pairwise(first)
        elif first and second:
            yield first[0], second[0]


def _probes(item: str) -> list[str]:
    question = item[: max(item.rfind("?"), item.rfind("\uff1f")) + 1]
    return [item, question] if question.strip() and question.strip() != item.strip() else [item]


def _hashes(words: Sequence[str]) -> np.ndarray:
    return np.fromiter(map(_word_hash, words), dtype=np.uint64, count=len(words))


@lru_cache(maxsize=2**17)
def _word_hash(word: str) -> int:
    # Not Python's own hash, which differs between processes.
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _distinct_grams(hashes: np.ndarray, size: int) -> np.ndarray:
    return np.unique(_grams(hashes, size))


def _grams(hashes: np.ndarray, size: int) -> np.ndarray:
    """64-bit hash of the n-gram at each word: sum_k hashes[i + k] * m^(size - 1 - k) mod 2^64.

    10^8 n-grams hold a chance collision with probability 0.0003, and it would change one coverage by one n-gram.
    """
    count = max(0, len(hashes) - size + 1)
    grams = np.zeros(count, dtype=np.uint64)
    for offset in range(size):
        grams = grams * _MULTIPLIER + hashes[offset : offset + count]
    return grams


def _strongest(covered: _Covered, groups: Sequence[_Group], within: bool) -> _Covered:
    """For each source and for each target, split by split, the pair with the highest coverage among those across splits, and
    `within` one.

    Their number grows with the documents, not with their square.
    """
    splits = [{split for split, _ in group} for group in groups]
    best: dict[tuple[int, int, str, str], tuple[int, int, float]] = {}
    for source, target, share in covered:
        for first, second in itertools.product(splits[source], splits[target] - {"train"}):
            if _ORDER[first] < _ORDER[second] or (within and first == second):
                for key in ((0, source, first, second), (1, target, first, second)):
                    if key not in best or share > best[key][2]:
                        best[key] = (source, target, share)
    return sorted(set(best.values()))


def _shared(text: str, other_text: str, ngram: int) -> tuple[float, str]:
    """Share of the n-grams of `other_text` that stand in `text`, and the longest run of words in common, shortened."""
    words = words_of(other_text)
    grams = _grams(_hashes(words), ngram)
    shared = np.isin(grams, _grams(_hashes(words_of(text)), ngram))
    edges = np.flatnonzero(np.diff(np.concatenate([[False], shared, [False]]).astype(np.int8)))
    begins, ends = edges[::2], edges[1::2]
    longest = int(np.argmax(ends - begins))
    run = words[begins[longest] : ends[longest] + ngram - 1]
    return len(np.unique(grams[shared])) / len(np.unique(grams)), _short(" ".join(run))


def shared_ngrams(texts: Sequence[str], other_text: str) -> list[int]:
    """How many of the n-grams of each text, of the shortest that are compared, stand in `other_text`."""
    size = min(way.ngram for way in NEAR)
    others = _grams(_hashes(words_of(other_text)), size)
    return [int(np.isin(_grams(_hashes(words_of(text)), size), others).sum()) for text in texts]


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= EXCERPT_CHARACTERS else text[: EXCERPT_CHARACTERS - 3] + "..."

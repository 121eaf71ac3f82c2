"""Scores of a generated answer against its reference, as pure functions of two texts, and of how a text repeats itself.

ROUGE is rouge-score's (Lin 2004, https://aclanthology.org/W04-1013), F-measure, without stemming; words are those of
`paretune.data.words`, rouge-score's own for ASCII text. `exact_match` and `contains` compare words, signs, and numbers by their
value. `squad_em` is exact match after the normalisation of the official SQuAD evaluation script (Rajpurkar et al. 2016,
https://arxiv.org/abs/1606.05250, `evaluate-v1.1.py`), which was not made for letters and numbers: to it 314 is 3.14, C# is C++,
and an empty answer is A.
"""

import functools
import re
import string
import unicodedata
from collections.abc import Mapping, Sequence
from decimal import Context, Decimal
from itertools import pairwise
from typing import TYPE_CHECKING

import regex

from paretune.data.words import ALONE, IGNORED, words_of

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_BETWEEN_ITEMS = re.compile(r"[,;\r\n\u3001\uff0c\uff1b]")
_TYPOGRAPHIC = str.maketrans("\u2018\u2019\u02bc\u201c\u201d\u2212", "'''\"\"-")
_LETTER = rf"[[\p{{L}}\p{{N}}\p{{M}}]--[{ALONE}]]"
_NUMBER = r"(?:(?<![\p{L}\p{N}\p{M})\]])[-+])?(?:(?:[1-9]\d{0,2}(?:,\d{3})+|(?!0\d)\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3})?"
_TOKEN = regex.compile(
    # A number stands by itself: not in `M4`, `10:30` or `3.11.2`; `007` is a code; a hyphen after a word is no sign.
    rf"(?P<number>{_NUMBER})(?!{_LETTER}|[.,:/]\d|[+#])"
    # A word, with what makes another one of it: C++, C#, 10:30, 3.11.2.
    rf"|{_LETTER}+(?:(?<=\d)[.,:/](?=\d){_LETTER}+)*(?:[+#]+(?!{_LETTER}))?"
    # Else a single character, as in scripts without spaces between words.
    r"|(?=\S)\X",
    regex.V1,
)
_OPENING = regex.compile(r"[\p{Ps}\p{Pi}\p{Pf}\p{Quotation_Mark}`\u00bf\u00a1]+")
_CLOSING = regex.compile(r"[\p{Pe}\p{Pi}\p{Pf}\p{Quotation_Mark}\p{Terminal_Punctuation}`\u2026]+")


def exact_match(text: str, reference: str) -> bool:
    """Whether both are the same words, numbers and signs, whatever their case; nothing is right only where nothing is."""
    return _folded(_tokens(text)) == _folded(_tokens(reference))


def contains(text: str, reference: str) -> bool:
    """Whether the words, numbers and signs of the reference stand in a row in the text: `M4` not in `M40`, nor 3 in 3.14.

    A single capital must be one in the text: A is not in `it is a dog`. Nothing is contained in nothing alone.
    """
    answer, wanted = _tokens(text), _tokens(reference)
    if not (len(wanted) == 1 and len(wanted[0]) == 1 and wanted[0].isupper()):
        answer, wanted = _folded(answer), _folded(wanted)
    runs = (answer[start : start + len(wanted)] for start in range(len(answer) - len(wanted) + 1))
    return wanted in runs if wanted else not answer


def _tokens(text: str) -> list[str]:
    """Words, numbers and signs of an answer: Unicode NFC, without white space and without the punctuation around all of it.

    Around it are quotation marks, brackets, and at the end what ends sentences; where there is nothing else, they are kept.
    A number is written the same however it was: 3.140 as 3.14, and 1,000 as 1e3.
    """
    tokens = []
    for match in _TOKEN.finditer(unicodedata.normalize("NFC", IGNORED.sub("", text)).translate(_TYPOGRAPHIC)):
        token = match[0]
        if match["number"]:
            number = Decimal(token.replace(",", ""))
            token = str(number.normalize(Context(prec=len(token)))) if number else "0"
        tokens.append(token)
    begin, end = 0, len(tokens)
    while begin < end and _OPENING.fullmatch(tokens[begin]):
        begin += 1
    while begin < end and _CLOSING.fullmatch(tokens[end - 1]):
        end -= 1
    return tokens[begin:end] or tokens


def _folded(tokens: Sequence[str]) -> list[str]:
    return [token.casefold() for token in tokens]


def squad_em(text: str, reference: str) -> bool:
    """Whether both are the same in lower case, without ASCII punctuation, articles and superfluous white space."""
    first, second = (" ".join(_ARTICLES.sub(" ", each.lower().translate(_PUNCTUATION)).split()) for each in (text, reference))
    return first == second


def rouge(text: str, reference: str) -> dict[str, float]:
    """`rouge_1`, `rouge_2` and `rouge_l`: F-measure of words, pairs of words and the longest common subsequence."""
    scores = _rouge_scorer().score(reference, text)
    return {"rouge_1": scores["rouge1"].fmeasure, "rouge_2": scores["rouge2"].fmeasure, "rouge_l": scores["rougeL"].fmeasure}


def set_scores(text: str, reference: str) -> dict[str, float]:
    """Of two lists as sets: `set_precision`, `set_recall`, `set_f1` and `jaccard`.

    Items are parted by commas, semicolons or line ends, and compared in Unicode NFC without case and superfluous white space.
    Two empty lists agree; an empty one has nothing of another.
    """
    items, wanted = items_of(text), items_of(reference)
    if not items and not wanted:
        return dict.fromkeys(("set_precision", "set_recall", "set_f1", "jaccard"), 1.0)
    common = len(items & wanted)
    return {
        "set_precision": common / len(items) if items else 0.0,
        "set_recall": common / len(wanted) if wanted else 0.0,
        "set_f1": 2 * common / (len(items) + len(wanted)),
        "jaccard": common / len(items | wanted),
    }


def items_of(text: str) -> set[str]:
    """The items of a written list."""
    parts = (" ".join(part.split()).casefold() for part in _BETWEEN_ITEMS.split(unicodedata.normalize("NFC", text)))
    return {part for part in parts if part}


def shape_of(text: str, references: Sequence[str]) -> dict[str, float]:
    """How a text is written, whatever it says; what a text is too short for is left out.

    `length_ratio`: words for each word of the reference, of several the one nearest in length. `distinct_1`, `distinct_2`:
    different words, and pairs of words, among all of them (Li et al. 2016, https://arxiv.org/abs/1510.03055). `repetition`:
    share of 4-grams that stood there before.
    """
    words = words_of(text)
    ratios = [len(words) / num for reference in references if (num := len(words_of(reference)))]
    shape = {"length_ratio": min(ratios, key=lambda ratio: abs(ratio - 1))} if ratios else {}
    pairs, fours = list(pairwise(words)), [tuple(words[n : n + 4]) for n in range(len(words) - 3)]
    for name, grams in (("distinct_1", words), ("distinct_2", pairs)):
        if grams:
            shape[name] = len(set(grams)) / len(grams)
    if fours:
        shape["repetition"] = 1 - len(set(fours)) / len(fours)
    return shape


def best_of(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The highest of each metric: what an answer is worth where several references are right."""
    return {
        metric: max(each[metric] for each in scores if metric in each) for metric in {m: None for each in scores for m in each}
    }


def score_answer(scorers: Sequence[str], text: str, reference: str) -> Mapping[str, float]:
    """The metrics that `scorers` of a task ask for; `accuracy`, which needs a model, is not among them."""
    scores: dict[str, float] = {}
    if any(name.startswith("rouge_") for name in scorers):
        scores |= {name: value for name, value in rouge(text, reference).items() if name in scorers}
    if "set_f1" in scorers:
        scores |= set_scores(text, reference)
    by_answer = {"exact_match": exact_match, "contains": contains, "squad_em": squad_em}
    return scores | {name: float(same(text, reference)) for name, same in by_answer.items() if name in scorers}


class _Words:
    """What rouge-score takes for a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return words_of(text)


@functools.cache
def _rouge_scorer() -> "RougeScorer":
    from rouge_score import rouge_scorer  # here, as it brings 100 MB of other packages with it

    return rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=_Words())

"""Scores of a generated answer against its reference, as pure functions of two texts, and of how a text repeats itself.

ROUGE is rouge-score's (Lin 2004, https://aclanthology.org/W04-1013), F-measure, without stemming; words of other scripts than
ASCII count too, which its own tokenizer drops. The normalisation of answers is that of the official SQuAD evaluation script
(Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250, `evaluate-v1.1.py`): lower case, then ASCII punctuation removed, then
the articles a, an and the, then white space joined.
"""

import functools
import re
import string
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_BETWEEN_ITEMS = re.compile(r"[,;\r\n]")
_WORD = re.compile(r"[^\W_]+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise_answer(text: str) -> str:
    """The answer without case, ASCII punctuation, articles and superfluous white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(text: str, reference: str) -> bool:
    """Whether both are the same after normalisation."""
    return normalise_answer(text) == normalise_answer(reference)


def contains(text: str, reference: str) -> bool:
    """Whether the normalised reference stands in the normalised text as whole words: `M4` is not in `M40`.

    A reference of which normalisation leaves nothing is contained only in a text of which it leaves nothing.
    """
    answer, wanted = normalise_answer(text), normalise_answer(reference)
    return f" {wanted} " in f" {answer} " if wanted else not answer


def rouge(text: str, reference: str) -> dict[str, float]:
    """`rouge_1`, `rouge_2` and `rouge_l`: F-measure of words, pairs of words and the longest common subsequence."""
    scores = _rouge_scorer().score(reference, text)
    return {"rouge_1": scores["rouge1"].fmeasure, "rouge_2": scores["rouge2"].fmeasure, "rouge_l": scores["rougeL"].fmeasure}


def set_scores(text: str, reference: str) -> dict[str, float]:
    """Of two lists as sets: `set_precision`, `set_recall`, `set_f1` and `jaccard`.

    Items are parted by commas, semicolons or line ends, and compared without case and superfluous white space. Two empty
    lists agree; an empty one has nothing of another.
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
    parts = (" ".join(part.split()).casefold() for part in _BETWEEN_ITEMS.split(text))
    return {part for part in parts if part}


def shape_of(text: str, references: Sequence[str]) -> dict[str, float]:
    """How a text is written, whatever it says; what a text is too short for is left out.

    `length_ratio`: words for each word of the reference, of several the one nearest in length. `distinct_1`, `distinct_2`:
    different words, and pairs of words, among all of them (Li et al. 2016, https://arxiv.org/abs/1510.03055). `repetition`:
    share of 4-grams that stood there before.
    """
    words = text.split()
    ratios = [len(words) / len(reference.split()) for reference in references if reference.split()]
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
    if "exact_match" in scorers:
        scores["exact_match"] = float(exact_match(text, reference))
    if "contains" in scorers:
        scores["contains"] = float(contains(text, reference))
    return scores


class _Words:
    """What rouge-score takes for a tokenizer: as its own for ASCII, and words of every script otherwise."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@functools.cache
def _rouge_scorer() -> "RougeScorer":
    from rouge_score import rouge_scorer  # here, as it brings 100 MB of other packages with it

    return rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=_Words())

"""Scores of a generated answer against its reference, as pure functions of two texts.

The normalisation is that of the official SQuAD evaluation script (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250,
`evaluate-v1.1.py`): lower case, then ASCII punctuation removed, then the articles a, an and the, then white space joined.
"""

import re
import string

_PUNCTUATION = str.maketrans("", "", string.punctuation)
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
    found, wanted = normalise_answer(text), normalise_answer(reference)
    return f" {wanted} " in f" {found} " if wanted else not found

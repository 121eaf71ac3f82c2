"""Windows over a long text: they overlap, so that each token is scored once, and after the first window with some before it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from paretune.data.tokenizer import TextTokenizer
from paretune.data.trees import Example, Examples
from paretune.errors import DataError


@dataclass(frozen=True)
class Window:
    """`ids[start:stop]` are read, `ids[first_target:stop]` are scored."""

    start: int
    stop: int
    first_target: int


def scored_windows(num_tokens: int, max_length: int, stride: int) -> list[Window]:
    """Windows over a sequence of `num_tokens` tokens whose first is the prefix: each later token is scored in exactly one.

    A window reads at most `max_length` tokens; after the first one each scores `stride` new tokens (the last one what is left),
    with at least `max_length - stride` tokens before the first of them. DataError unless `1 <= stride < max_length`.
    """
    if not 1 <= stride < max_length:
        raise DataError(
            f"`stride: {stride}` does not fit windows of {max_length} tokens; write a stride from 1 to {max_length - 1}"
        )
    windows, scored = [], 1
    while scored < num_tokens:
        stop = min(max_length if scored == 1 else scored + stride, num_tokens)
        windows.append(Window(max(0, stop - max_length), stop, scored))
        scored = stop
    return windows


def window_examples(
    documents: Sequence[np.ndarray], tokenizer: TextTokenizer, max_length: int, stride: int
) -> tuple[Examples, list[int]]:
    """All windows of all documents (ids without prefix and EOS), and how many belong to each document.

    The prefix stands before each document. Where the tokenizer puts it before every text by itself, it takes the place of the
    first token of each later window too (as in llama.cpp's `perplexity`): Gemma 3 270M loses a nat a token without.
    """
    in_each = tokenizer.adds_prefix
    windows_of = lru_cache(maxsize=1)(lambda row: scored_windows(1 + len(documents[row]), max_length, stride))

    def example_of(row: int, number: int) -> Example:
        window = windows_of(row)[number]
        ids = documents[row][max(0, window.start - 1) : window.stop - 1]
        begun = [tokenizer.prefix_id] if in_each or not window.start else []
        whole = np.concatenate([begun, ids[1:] if begun and window.start else ids])
        return Example(whole.astype(np.int32), window.first_target - window.start)

    counts = [len(windows_of(row)) for row in range(len(documents))]
    return Examples(np.array(counts, np.int64), example_of), counts

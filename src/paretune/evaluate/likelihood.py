"""Loss, bits per byte and token accuracy of held-out documents.

A long document is read in windows that overlap, so that every token is scored once and, after the first window, with at least
`max_length - stride` tokens before it. BOS and EOS are never scored: not every tokenizer has them, and they are no text.
Perplexity is exp of the token-weighted mean of `loss` and is not stored.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from typing import Any

import numpy as np

from paretune.data.examples import examples_of
from paretune.data.tokens import read_tokens
from paretune.data.trees import Example, Examples
from paretune.errors import DataError
from paretune.evaluate.outputs import Score, write_outputs
from paretune.model.forward import TargetScores, score
from paretune.model.load import load_model
from paretune.pipeline.stage import StageContext
from paretune.study.evaluations import Perplexity

TASK = "task"
"""The column of a dataset with tasks."""


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


def evaluate_perplexity(context: StageContext) -> dict[str, Any]:
    """Stage body: `loss`, `bits_per_byte` and `token_accuracy` of each document in `scores.parquet`.

    Of a dataset with tasks they are of the completions alone, each read whole after its context and prompt.
    """
    settings = Perplexity.model_validate(context.config["evaluation"], strict=False)
    loaded = load_model(context, fused=True)
    max_length = context.config["max_length"]
    stride = settings.stride or max_length // 2
    scores: list[Score] = []
    metrics: dict[str, Any] = {"window_tokens": max_length, "stride": stride}
    slice_by: tuple[str, ...] = ()
    for split in settings.splits:
        rows = read_tokens(context.inputs["tokens"].path, split)
        scored = "completion" if rows.has_tasks else "ids"
        rows = rows.where(rows.lengths(scored) > 0)
        if rows.has_tasks:
            slice_by = (TASK,) if len(rows.column(TASK).unique()) > 1 else ()
            examples, counts = examples_of(rows, loaded.tokenizer, max_length, end=False), [1] * len(rows)
        else:
            texts = [rows.ids_of("ids", n) for n in range(len(rows))]
            examples, counts = window_examples(texts, loaded.tokenizer.prefix_id, max_length, stride)
        emit = partial(context.emit, part=f"{split} split")
        results = score(loaded.packed, examples, forward_tokens=context.options.forward_tokens, emit=emit)
        of_split: list[Score] = []
        for row, result in zip(rows, join_windows(results, counts), strict=True):
            of_split += document_scores(row, result)
        scores += of_split
        metrics |= {
            f"documents_{split}": len(rows),
            f"tokens_{split}": int(rows.lengths(scored).sum()),
            f"bytes_{split}": int(rows.column("bytes").to_numpy().sum()),
            f"lossy_documents_{split}": int((~rows.column("lossless").to_numpy()).sum()),
        }
        for metric in dict.fromkeys(each.metric for each in of_split):
            of_metric = [each for each in of_split if each.metric == metric]
            total = sum(each.value * each.weight for each in of_metric)
            metrics[f"{metric}_{split}"] = total / sum(each.weight for each in of_metric)
    write_outputs(context.draft, scores, slice_by=slice_by)
    return metrics


def window_examples(
    documents: Sequence[np.ndarray], prefix_id: int, max_length: int, stride: int
) -> tuple[Examples, list[int]]:
    """All windows of all documents (ids without prefix and EOS), and how many belong to each document."""
    windows_of = lru_cache(maxsize=1)(lambda row: scored_windows(1 + len(documents[row]), max_length, stride))

    def example_of(row: int, number: int) -> Example:
        window = windows_of(row)[number]
        ids = documents[row][max(0, window.start - 1) : window.stop - 1]
        whole = ids if window.start else np.concatenate([[prefix_id], ids])
        return Example(whole.astype(np.int32), window.first_target - window.start)

    counts = [len(windows_of(row)) for row in range(len(documents))]
    return Examples(np.array(counts, np.int64), example_of), counts


def join_windows(results: Iterator[TargetScores], counts: Sequence[int]) -> Iterator[TargetScores]:
    """The scores of each document's tokens in order, from those of its windows."""
    for count in counts:
        parts = list(islice(results, count))
        yield TargetScores(np.concatenate([p.nats for p in parts]), np.concatenate([p.correct for p in parts]))


def document_scores(row: Mapping[str, Any], result: TargetScores) -> list[Score]:
    """The three scores of one document; `row` is one of tokens.arrow, of which a record has one for each of its tasks."""
    tokens, num_bytes, nats = len(result.nats), row["bytes"], float(result.nats.sum())
    example, slices = str(row["example"]), {}
    if TASK in row:
        example, slices = f"{example}:{row[TASK]}", {TASK: row[TASK]}
    common = {"split": row["split"], "document": row["document"], "example": example, "slices": slices}
    return [
        Score("loss", nats / tokens, weight=tokens, **common),
        Score("bits_per_byte", nats / math.log(2) / num_bytes, weight=num_bytes, **common),
        Score("token_accuracy", float(result.correct.mean()), weight=tokens, **common),
    ]

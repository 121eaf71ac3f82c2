"""Loss, bits per byte and token accuracy of held-out documents.

A long document is read in windows that overlap, so that every token is scored once and, after the first window, with at least
`max_length - stride` tokens before it; BOS is one of them where the tokenizer puts it before every text by itself. BOS and EOS
are never scored: not every tokenizer has them, and they are no text.
Perplexity is exp of the token-weighted mean of `loss` and is not stored.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from paretune.data.examples import examples_of
from paretune.data.tokens import read_tokens
from paretune.data.windows import window_examples
from paretune.evaluate.outputs import Score, write_outputs
from paretune.model.forward import TargetScores, score
from paretune.model.load import load_model
from paretune.pipeline.stage import StageContext
from paretune.study.evaluations import Perplexity

TASK = "task"
"""The column of a dataset with tasks."""


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
            examples, counts = window_examples(texts, loaded.tokenizer, max_length, stride)
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

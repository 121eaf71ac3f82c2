"""What training on one domain costs elsewhere: the loss on text outside of it, against that of the untouched base.

`forgetting` is the difference in bits per byte of each document, so that it is an estimate like any other: weighted by bytes,
with an interval over documents. Learning and forgetting are two axes (Biderman et al. 2024, arXiv 2405.09673).
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from paretune.data.outside import outside_documents
from paretune.data.windows import window_examples
from paretune.errors import DataError
from paretune.evaluate.likelihood import document_scores, join_windows
from paretune.evaluate.outputs import Score, write_outputs
from paretune.model.forward import score
from paretune.model.load import load_model
from paretune.pipeline.stage import StageContext

UNTOUCHED = "untouched"
"""The input that holds the scores of the base as it came; the base itself has none."""


def evaluate_forgetting(context: StageContext) -> dict[str, Any]:
    """Stage body: `loss`, `bits_per_byte` and `token_accuracy` of each document, and `forgetting` where a base was before."""
    fields = context.config["evaluation"]
    chosen = {name: fields.get(name) for name in ("text", "document", "format", "max_documents")}
    documents = outside_documents(str(context.resources["items"]), **chosen)
    if not documents:
        raise DataError(f"{context.resources['items']}: no record has a text; look at `text` and its fields")
    loaded = load_model(context)
    max_length = fields["max_length"]
    texts = [np.array(loaded.tokenizer.encode(text), np.int32) for _, text in documents]
    examples, counts = window_examples(texts, loaded.tokenizer, max_length, fields["stride"] or max_length // 2)
    forward_tokens = context.options.forward_tokens
    results = join_windows(score(loaded.model, examples, forward_tokens=forward_tokens, emit=context.emit), counts)
    scores: list[Score] = []
    for (name, text), result in zip(documents, results, strict=True):
        row = {"split": "", "document": name, "example": name, "bytes": len(text.encode())}
        scores += document_scores(row, result)
    if UNTOUCHED in context.inputs:
        untouched = pd.read_parquet(context.inputs[UNTOUCHED].path / "scores.parquet")
        before = untouched[untouched["metric"] == "bits_per_byte"].set_index("document")["value"]
        scores += [
            replace(score, metric="forgetting", value=score.value - float(before[score.document]))
            for score in scores
            if score.metric == "bits_per_byte"
        ]
    write_outputs(context.draft, scores)
    return {
        "documents": len(documents),
        "tokens": sum(map(len, texts)),
        "bytes": sum(len(text.encode()) for _, text in documents),
    }

"""Training text that a choice of blocks is measured on: windows drawn from documents of the training split, never from others.

Windows are cut as training examples are (at most `max_length` tokens, prefix first), without the end-of-text, which is no
text. A short last window is kept; rows are padded on the right, where causal attention does not look. Of a dataset with
tasks a window is one context, prompt and completion, and the completion is what is scored.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paretune.data.tokens import lengths_of, read_tokens, values_of
from paretune.data.trees import Example
from paretune.errors import DataError
from paretune.pipeline.stage import StageContext
from paretune.pipeline.stage_configs import MethodConfig
from paretune.study.methods import Calibration
from paretune.variants.walk import Removed


@dataclass(frozen=True, eq=False)
class Window:
    document: str
    example: Example


def read_windows(context: StageContext, config: MethodConfig[Any], prefix_id: int) -> list[Window]:
    """The windows that a stage's config asks for, from its input `tokens`; DataError if training has no tokens."""
    rows = read_tokens(context.inputs["tokens"].path, "train")
    calibration, max_length = config.method.calibration, config.max_length
    assert calibration is not None, "a choice that is measured has it"
    assert max_length is not None, "a method that takes the tokens has it"
    windows = draw_windows(rows, calibration, max_length, prefix_id)
    if not windows:
        raise DataError("the training split has no tokens to measure on; name the blocks, or choose by what needs no text")
    return windows


def draw_windows(rows: Sequence[Mapping[str, Any]], calibration: Calibration, max_length: int, prefix_id: int) -> list[Window]:
    """Windows of `documents` documents, one of each in turn and in random order, until they hold `tokens` tokens.

    `rows` are those of tokens.arrow. The first document's first window is always taken.
    """
    by_document: dict[str, list[int]] = {}
    filled = lengths_of(rows, "completion" if rows and "completion" in rows[0] else "ids") > 0
    for number, document in enumerate(values_of(rows, "document")):
        if filled[number]:
            by_document.setdefault(document, []).append(number)
    generator = np.random.default_rng(calibration.seed)
    names = list(by_document)
    piles = []
    for index in generator.permutation(len(names))[: calibration.documents]:
        examples: list[Example] = []
        for row in (rows[number] for number in by_document[names[index]]):
            whole = np.concatenate([[prefix_id], row["ids"]]).astype(np.int32)
            if "completion" in row:
                examples.append(Example(whole, len(whole) - len(row["completion"])))
            else:
                starts = range(0, len(whole) - 1, max_length - 1)
                examples += [Example(whole[start : start + max_length]) for start in starts]
        piles.append([Window(names[index], examples[n]) for n in generator.permutation(len(examples))])
    taken: list[Window] = []
    tokens = 0
    for window in itertools.chain.from_iterable(itertools.zip_longest(*piles)):
        if window is not None and tokens < calibration.tokens:
            taken.append(window)
            tokens += len(window.example.ids) - 1
    return taken


def document_numbers(windows: Sequence[Window]) -> tuple[list[str], np.ndarray]:
    """The documents of some windows, and the number of that of each."""
    names = list(dict.fromkeys(window.document for window in windows))
    by_name = {name: number for number, name in enumerate(names)}
    return names, np.array([by_name[window.document] for window in windows])


def write_block_scores(
    scores: Mapping[Removed, np.ndarray], chosen: Removed, windows: Sequence[Window], context: StageContext
) -> None:
    """Write `block_scores.parquet`: of each removal and document the sum of its score and the tokens that it is over.

    `scores` holds the sum of each of the first windows, as many as were measured. Columns `removed` (list of block indices),
    `document`, `sum`, `tokens`, and `reference`, the sum of the set `chosen` over the same windows; what is compared with
    it, the whole model and sets of its size, is told of as far as both were measured.
    """
    names, numbers = document_numbers(windows)
    targets = np.array([window.example.num_targets for window in windows])
    reference = scores.get(chosen)
    parts: dict[str, list[Any]] = {name: [] for name in ("removed", "document", "sum", "tokens", "reference")}
    for removed, sums in scores.items():
        compared = reference is not None and len(removed) in (0, len(chosen))
        stop = min(len(sums), len(reference)) if compared else len(sums)
        weights = {"sum": sums, "tokens": targets, "reference": reference if compared else None}
        of_document = {
            k: None if w is None or len(w) < stop else np.bincount(numbers[:stop], w[:stop]) for k, w in weights.items()
        }
        covered = np.unique(numbers[:stop])
        parts["removed"] += [list(removed)] * len(covered)
        parts["document"] += [names[number] for number in covered]
        for key, values in of_document.items():
            parts[key] += [None] * len(covered) if values is None else values[covered].tolist()
    columns = {
        "removed": pa.array(parts["removed"], pa.list_(pa.int32())),
        "document": pa.array(parts["document"], pa.string()),
        "sum": pa.array(parts["sum"], pa.float64()),
        "tokens": pa.array(np.array(parts["tokens"]).astype(np.int64), pa.int64()),
        "reference": pa.array(parts["reference"], pa.float64()),
    }
    pq.write_table(pa.table(columns), context.draft / "block_scores.parquet")

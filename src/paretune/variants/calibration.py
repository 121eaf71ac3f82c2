"""Training text that a choice is measured on: windows drawn from documents of the training split, never from others.

Windows of plain text are cut as training examples are (at most `max_length` tokens, prefix first), without the end-of-text,
which is no text. A short last window is kept; rows are padded on the right, where causal attention does not look. Of a dataset
with tasks a window is a context with all that is asked of it, a token tree: the completions are what is scored, and the context
is read once for all of them.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedModel

from paretune.data.examples import context_starts
from paretune.data.tokens import lengths_of, read_tokens, values_of
from paretune.data.trees import ROUND_TO, Batch, Example, forward_batches, rounded
from paretune.errors import DataError
from paretune.model.forward import SLOW, mixing
from paretune.pipeline.stage import StageContext
from paretune.pipeline.stage_configs import MethodConfig
from paretune.study.methods import Calibration
from paretune.variants.walk import Removed

TREE_TOKENS = 4096
"""Of a row of token trees at most, but one tree always."""


@dataclass(frozen=True, eq=False)
class Window:
    """What is measured together: a stretch of plain text, or a context with all that is asked of it."""

    document: str
    examples: tuple[Example, ...]
    """Of a context, its branches; otherwise one."""

    @property
    def num_tokens(self) -> int:
        """That are read, a context once."""
        trunk = self.examples[0].trunk
        return sum(len(example.ids) for example in self.examples) + (0 if trunk is None else len(trunk))

    @property
    def num_targets(self) -> int:
        """That are scored."""
        return sum(example.num_targets for example in self.examples)


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
    has_tasks = bool(len(rows)) and "completion" in rows[0]
    filled = lengths_of(rows, "completion" if has_tasks else "ids") > 0
    starts = context_starts(rows) if has_tasks else np.arange(len(rows))
    documents = values_of(rows, "document")
    by_document: dict[str, list[list[int]]] = {}
    for start, stop in itertools.pairwise([*starts.tolist(), len(rows)]):
        if group := [number for number in range(start, stop) if filled[number]]:
            by_document.setdefault(documents[start], []).append(group)
    generator = np.random.default_rng(calibration.seed)
    names = list(by_document)
    piles = []
    for index in generator.permutation(len(names))[: calibration.documents]:
        parts: list[tuple[Example, ...]] = []
        for group in by_document[names[index]]:
            parts += _examples([rows[number] for number in group], max_length, prefix_id)
        piles.append([Window(names[index], parts[n]) for n in generator.permutation(len(parts))])
    taken: list[Window] = []
    tokens = 0
    for window in itertools.chain.from_iterable(itertools.zip_longest(*piles)):
        if window is not None and tokens < calibration.tokens:
            taken.append(window)
            tokens += window.num_tokens - 1
    return taken


def _examples(rows: Sequence[Mapping[str, Any]], max_length: int, prefix_id: int) -> list[tuple[Example, ...]]:
    """Of each window: those of a text, or all that is asked of one context."""
    first = rows[0]
    if len(first.get("context", ())):
        trunk = np.concatenate([[prefix_id], first["context"]]).astype(np.int32)
        branches = [(np.concatenate([row["prompt"], row["completion"]]).astype(np.int32), len(row["prompt"])) for row in rows]
        return [tuple(Example(ids, begin, trunk) for ids, begin in branches)]
    whole = np.concatenate([[prefix_id], first["ids"]]).astype(np.int32)
    if "completion" in first:
        return [(Example(whole, len(whole) - len(first["completion"])),)]
    return [(Example(whole[start : start + max_length]),) for start in range(0, len(whole) - 1, max_length - 1)]


def share_contexts(model: PreTrainedModel, windows: Sequence[Window]) -> bool:
    """Whether windows are read as token trees: they have contexts, and the architecture keeps their branches apart."""
    if all(window.examples[0].trunk is None for window in windows):
        return False
    failure = mixing(model)
    if failure:
        SLOW.warning("%s reads one example at a time, sharing no context: %s", type(model).__name__, failure)
    return not failure


def window_batches(
    model: PreTrainedModel, windows: Sequence[Window], *, forward_tokens: int, trees: bool
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Batches of at most `forward_tokens` positions (or one window), each with the window of each of its examples.

    With `trees` a row holds whole windows; without, one example with its context.
    """
    examples = [example for window in windows for example in window.examples]
    numbers = np.repeat(np.arange(len(windows)), [len(window.examples) for window in windows])
    if trees:
        longest = max((window.num_tokens for window in windows), default=1)
        forward_tokens = rounded(max(min(forward_tokens, TREE_TOKENS), longest), ROUND_TO)
    for indices, batch in forward_batches(examples, forward_tokens=forward_tokens, pack=trees):
        yield numbers[indices], batch.to(model.device)


def amount_of(windows: Sequence[Window]) -> dict[str, int]:
    """What was measured on, for the record: documents, tokens read (the first of each window is not), tokens scored."""
    return {
        "calibration_documents": len({window.document for window in windows}),
        "calibration_tokens": sum(window.num_tokens - 1 for window in windows),
        "calibration_targets": sum(window.num_targets for window in windows),
    }


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
    targets = np.array([window.num_targets for window in windows])
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

"""From documents to the examples of training and scoring, and the tokens of datasets with tasks.

Context, prompt and completion are tokenized apart and joined literally (the seam rule), so that a shared context has the same
tokens for each task; the examples of one context share its array, by which a batch encodes it once.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paretune.data.chat import render_turn
from paretune.data.tokenizer import TextTokenizer, kept_counts, load_tokenizer, refuse_empty_split, too_long
from paretune.data.trees import Example, windows
from paretune.errors import DataError
from paretune.pipeline.stage import StageContext
from paretune.pipeline.stage_configs import TokenizeConfig
from paretune.study.data import SPLITS

_IDS = pa.list_(pa.int32())
SCHEMA = pa.schema(
    {
        "split": pa.string(),
        "document": pa.string(),
        "example": pa.string(),
        "task": pa.string(),
        "context": _IDS,
        "prompt": _IDS,
        "completion": _IDS,
        "end": _IDS,
        "reference": pa.string(),
        "bytes": pa.int64(),
        "lossless": pa.bool_(),
    }
)
_OVERLAP = 8
"""Tokens before a completion that it is decoded with, to see whether they give it back."""


@dataclass(frozen=True)
class _Tokenized:
    """A row of `documents.parquet` as ids."""

    row: Mapping[str, Any]
    prompt: list[int]
    completion: list[int]
    end: list[int]
    """What ends the completion: EOS, or what a chat template ends a turn with."""
    text: str
    """The completion."""

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.completion) + len(self.end)


def examples_of(
    rows: Sequence[Mapping[str, Any]], tokenizer: TextTokenizer, max_length: int, *, end: bool = True
) -> list[Example]:
    """Rows of `read_tokens` as examples, in their order: a text in windows, a task's row as one example.

    Neighbouring rows of one document and context share one trunk array. Without `end`, what ends a completion is left out, as
    for scores over text alone; of a plain text the end stays.
    """
    examples: list[Example] = []
    trunk, owner = None, None
    for row in rows:
        if "task" not in row:
            examples += windows(row["ids"], max_length, tokenizer.prefix_id, tokenizer.eos_id)
            continue
        if trunk is None or owner != (row["split"], row["document"]) or not np.array_equal(trunk[1:], row["context"]):
            trunk = np.concatenate([[tokenizer.prefix_id], row["context"]]).astype(np.int32)
            owner = (row["split"], row["document"])
        parts = [row["prompt"], row["completion"], *([row["end"]] if end else [])]
        branch = np.concatenate(parts).astype(np.int32)
        if len(row["context"]):
            examples.append(Example(branch, len(row["prompt"]), trunk))
        else:
            examples.append(Example(np.concatenate([trunk, branch]), 1 + len(row["prompt"])))
    return examples


def tokenize_tasks(context: StageContext) -> dict[str, Any]:
    """Stage body: the examples of a dataset with tasks as the ids of one tokenizer, in `tokens.parquet`.

    Raises DataError for an example longer than `max_length` where the study says `too_long: error`, its default here.
    """
    tokenizer = load_tokenizer(context.config["base"], context.resources["base"])
    documents = pq.read_table(context.inputs["data"].path / "documents.parquet").to_pylist()
    config = context.parse(TokenizeConfig)
    max_length, rule = config.max_length, config.too_long
    rows: list[dict[str, Any]] = []
    skipped = cut = 0
    lengths: list[tuple[int, Mapping[str, Any]]] = []
    by_context = itertools.groupby(documents, lambda row: (row["split"], row["document"], row["context"]))
    for (_, _, text), group in by_context:
        shared, branches = tokenizer.encode(text), [_tokenized(tokenizer, row) for row in group]
        lengths += [(1 + len(shared) + branch.length, branch.row) for branch in branches]
        room = max_length - 1  # of the prefix token
        kept = [branch for branch in branches if len(shared) + branch.length <= room]
        if rule == "cut" and len(kept) < len(branches):
            # All keep the same of the context; where nothing of it would be left, there is nothing to ask about.
            kept = [branch for branch in branches if branch.length < room]
            left = room - max((branch.length for branch in kept), default=0)
            cut += len(kept) if left < len(shared) else 0
            shared = shared[:left]
        skipped += len(branches) - len(kept)
        for branch in kept:
            before = [*shared, *branch.prompt][-_OVERLAP:]
            rows.append(
                {
                    **{name: branch.row[name] for name in ("split", "document", "task")},
                    "example": branch.row["example"] + branch.row["part"],
                    "context": shared,
                    "prompt": branch.prompt,
                    "completion": branch.completion,
                    "end": branch.end,
                    "reference": branch.text,
                    "bytes": len(branch.text.encode()),
                    "lossless": tokenizer.decode([*before, *branch.completion]).endswith(branch.text),
                }
            )
        context.emit(done=len(rows) + skipped, total=len(documents))
    if rule == "error" and skipped:
        _, longest = max(lengths, key=lambda each: each[0])
        named = f"document `{longest['document']}` (record {longest['example']}, task `{longest['task']}`)"
        way_out = "`too_long: skip` to leave such examples out"
        way_out += ", or `too_long: cut` to shorten the context at its end" if longest["context"] else ""
        raise DataError(too_long(named, [length for length, _ in lengths], max_length, way_out))
    refuse_empty_split(rows, max_length, "raise `train.max_length`, or shorten prompts and contexts")
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), context.draft / "tokens.parquet")
    metrics: dict[str, int] = {}
    for split in SPLITS:
        of_split = [row for row in rows if row["split"] == split]
        # Learned are completions without their ends; read is all that an example holds.
        metrics[f"tokens_{split}"] = sum(len(row["completion"]) for row in of_split)
        metrics[f"windows_{split}"] = len(of_split)
        parts = [row[name] for row in of_split for name in ("context", "prompt", "completion", "end")]
        metrics[f"read_tokens_{split}"] = len(of_split) + sum(map(len, parts))
    lossy = sum(not row["lossless"] for row in rows)
    return {**metrics, **kept_counts(rows), "skipped_examples": skipped, "cut_examples": cut, "lossy_examples": lossy}


def _tokenized(tokenizer: TextTokenizer, row: Mapping[str, Any]) -> _Tokenized:
    prompt, completion, end = row["prompt"], row["completion"], [tokenizer.eos_id]
    if row["messages"] is not None and tokenizer.hf.chat_template is not None:
        turn = render_turn(tokenizer.hf, row["messages"], f"record {int(row['example']) + 1}")
        prompt, completion, end = turn.prompt, turn.completion, tokenizer.encode_continuation(turn.end)
        # A turn ends with the first token that ends a generation, or with all of them and EOS.
        stops = [position for position, token in enumerate(end) if token in tokenizer.stop_ids]
        end = end[: stops[0] + 1] if stops else [*end, tokenizer.eos_id]
    encode = tokenizer.encode_continuation if row["context"] else tokenizer.encode
    after = tokenizer.encode_continuation if row["context"] or prompt else tokenizer.encode
    return _Tokenized(row, encode(prompt), after(completion), end, completion)

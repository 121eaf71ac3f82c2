"""From documents to the examples of training and scoring, and the tokens of datasets with tasks.

Context, prompt and completion are tokenized apart and joined literally (the seam rule), so that a shared context has the same
tokens for each task; the examples of one context share its array, by which a batch encodes it once.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
class _Branch:
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
    max_length, rule = context.config["max_length"], context.config["too_long"]
    rows: list[dict[str, Any]] = []
    counts: Counter[str] = Counter(skipped=0, cut=0)
    lengths: list[tuple[int, _Branch]] = []
    for group in _groups(documents):
        shared = tokenizer.encode(group[0]["context"])
        branches = [_branch(tokenizer, row) for row in group]
        kept, fitted = _fitted(branches, len(shared), max_length, rule)
        lengths += [(1 + len(shared) + branch.length, branch) for branch in branches]
        counts["skipped"] += len(branches) - len(kept)
        counts["cut"] += len(kept) if fitted < len(shared) else 0
        rows += [_row(tokenizer, branch, shared[:fitted]) for branch in kept]
        context.emit(done=len(rows) + counts["skipped"], total=len(documents))
    if rule == "error" and counts["skipped"]:
        raise DataError(_refusal(lengths, max_length))
    refuse_empty_split(rows, max_length, "raise `train.max_length`, or shorten prompts and contexts")
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), context.draft / "tokens.parquet")
    return {
        **{name: number for split in SPLITS for name, number in _measured(rows, split).items()},
        **kept_counts(rows),
        "skipped_examples": counts["skipped"],
        "cut_examples": counts["cut"],
        "lossy_examples": sum(not row["lossless"] for row in rows),
    }


def _groups(documents: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Neighbouring rows of one document and context."""
    for _, group in itertools.groupby(documents, lambda row: (row["split"], row["document"], row["context"])):
        yield list(group)


def _branch(tokenizer: TextTokenizer, row: Mapping[str, Any]) -> _Branch:
    prompt, completion, end = row["prompt"], row["completion"], [tokenizer.eos_id]
    if row["messages"] is not None and tokenizer.hf.chat_template is not None:
        turn = render_turn(tokenizer.hf, row["messages"], f"record {int(row['example']) + 1}")
        prompt, completion, end = turn.prompt, turn.completion, _end(tokenizer, turn.end)
    encode = tokenizer.encode_continuation if row["context"] else tokenizer.encode
    after = tokenizer.encode_continuation if row["context"] or prompt else tokenizer.encode
    return _Branch(row, encode(prompt), after(completion), end, completion)


def _end(tokenizer: TextTokenizer, text: str) -> list[int]:
    """The tokens that end a turn: up to the first that ends a generation, or all of them and EOS."""
    ids = tokenizer.encode_continuation(text)
    stops = [position for position, token in enumerate(ids) if token in tokenizer.stop_ids]
    return ids[: stops[0] + 1] if stops else [*ids, tokenizer.eos_id]


def _fitted(branches: Sequence[_Branch], context: int, max_length: int, rule: str) -> tuple[list[_Branch], int]:
    """The branches that fit after a context of so many tokens, and how many of those are kept: one number for all of them."""
    room = max_length - 1  # of the prefix token
    fitting = [branch for branch in branches if context + branch.length <= room]
    if rule != "cut" or len(fitting) == len(branches):
        return fitting, context
    # Where nothing of the context would be left, there is nothing to ask about.
    kept = [branch for branch in branches if branch.length < room]
    return kept, min(context, room - max((branch.length for branch in kept), default=0))


def _refusal(lengths: Sequence[tuple[int, _Branch]], max_length: int) -> str:
    row = max(lengths, key=lambda each: each[0])[1].row
    cut = ", or `too_long: cut` to shorten the context at its end" if row["context"] else ""
    named = f"document `{row['document']}` (record {row['example']}, task `{row['task']}`)"
    way_out = f"`too_long: skip` to leave such examples out{cut}"
    return too_long(named, [length for length, _ in lengths], max_length, way_out)


def _row(tokenizer: TextTokenizer, branch: _Branch, context: list[int]) -> dict[str, Any]:
    row, before = branch.row, [*context, *branch.prompt][-_OVERLAP:]
    return {
        **{name: row[name] for name in ("split", "document", "task")},
        "example": row["example"] + row["part"],
        "context": context,
        "prompt": branch.prompt,
        "completion": branch.completion,
        "end": branch.end,
        "reference": branch.text,
        "bytes": len(branch.text.encode()),
        "lossless": tokenizer.decode([*before, *branch.completion]).endswith(branch.text),
    }


def _measured(rows: Sequence[Mapping[str, Any]], split: str) -> dict[str, int]:
    """Tokens that are learned (without those that end), examples, and all tokens that these hold."""
    found = [row for row in rows if row["split"] == split]
    learned = sum(len(row["completion"]) for row in found)
    read = sum(1 + sum(len(row[name]) for name in ("context", "prompt", "completion", "end")) for row in found)
    return {f"tokens_{split}": learned, f"windows_{split}": len(found), f"read_tokens_{split}": read}

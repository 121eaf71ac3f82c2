"""From documents to the examples of training and scoring, and the tokens of datasets with tasks.

Context, prompt and completion are tokenized apart and joined literally (the seam rule), so that a shared context has the same
tokens for each task; the examples of one context share its array, by which a batch encodes it once.
"""

import functools
import itertools
import json
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import pyarrow as pa

from paretune.data.chat import end_ids, render_turn, unwritten_in_plain
from paretune.data.control import ControlTokens, pieces_of, sources_of
from paretune.data.documents import document_rows
from paretune.data.records import PromptCompletion, Rendered
from paretune.data.tokenizer import TextTokenizer, load_tokenizer, too_long
from paretune.data.tokens import ids_of, kept_counts, lengths_of, read_tokens, refuse_empty_split, values_of, writing_tokens
from paretune.data.too_long import latest_turns
from paretune.data.trees import Example, Examples, num_windows, window
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
        "references": pa.list_(pa.string()),
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
    unwritten: tuple[str, ...] = ()
    """What a chat template leaves out of it."""

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.completion) + len(self.end)


def examples_of(rows: Sequence[Mapping[str, Any]], tokenizer: TextTokenizer, max_length: int, *, end: bool = True) -> Examples:
    """Rows of `read_tokens` as examples, in their order: a text in windows, a task's row as one example.

    Neighbouring rows of one document and context share one trunk array. Without `end`, what ends a completion is left out, as
    for scores over text alone; of a plain text the end stays.
    """
    if not len(rows) or "task" not in rows[0]:

        def window_of(row: int, number: int) -> Example:
            return window(rows[row]["ids"], number, max_length, tokenizer.prefix_id, tokenizer.eos_id)

        return Examples(num_windows(lengths_of(rows, "ids"), max_length), window_of)
    starts = context_starts(rows)
    # The examples of one context have one array as long as any of them is held.
    trunks: WeakValueDictionary[int, np.ndarray] = WeakValueDictionary()

    def example_of(number: int, _: int) -> Example:
        row = rows[number]
        parts = [row["prompt"], row["completion"], *([row["end"]] if end else [])]
        branch = np.concatenate(parts).astype(np.int32)
        if not len(row["context"]):
            return Example(np.concatenate([[tokenizer.prefix_id], branch]).astype(np.int32), 1 + len(row["prompt"]))
        start = int(starts[np.searchsorted(starts, number, side="right") - 1])
        trunk = trunks.get(start)
        if trunk is None:
            trunk = trunks[start] = np.concatenate([[tokenizer.prefix_id], row["context"]]).astype(np.int32)
        return Example(branch, len(row["prompt"]), trunk)

    return Examples(np.ones(len(rows), np.int64), example_of, starts)


def context_starts(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Where the runs of rows with tasks begin that are of one split, document and context; a row without context is one."""
    owners = list(zip(values_of(rows, "split"), values_of(rows, "document"), strict=True))
    lengths = lengths_of(rows, "context")
    new = np.ones(len(rows), bool)
    for n in (np.flatnonzero((lengths[1:] == lengths[:-1]) & (lengths[1:] > 0)) + 1).tolist():
        if owners[n] == owners[n - 1]:
            new[n] = not np.array_equal(ids_of(rows, "context", n - 1), ids_of(rows, "context", n))
    return np.flatnonzero(new)


def tokenize_tasks(context: StageContext) -> dict[str, Any]:
    """Stage body: the examples of a dataset with tasks as the ids of one tokenizer, in `tokens.arrow`.

    Raises DataError for an example longer than `max_length` where the study says `too_long: error`, its default here, and for
    control tokens in records where it does not say what is done with them.
    """
    tokenizer = load_tokenizer(context.config["base"], context.resources["base"], context.inputs.get("model"))
    file = context.inputs["data"].path / "documents.parquet"
    config = context.parse(TokenizeConfig)
    max_length, rule = config.max_length, config.too_long
    control = ControlTokens(tokenizer, config.control_tokens, sources_of(context.inputs["data"].record.config["dataset"]))
    total = control.check((str(row["example"]), _pieces(tokenizer, row)) for row in document_rows(file))
    remade = functools.partial(_tokenized, control)
    kept_rows = skipped = cut = shortened = turns_left_out = longest_length = 0
    unwritten: Counter[str] = Counter()
    lengths, longest = array("q"), dict[str, Any]()
    with writing_tokens(context.draft, SCHEMA) as writer:
        for (_, _, text), group in itertools.groupby(
            document_rows(file), lambda row: (row["split"], row["document"], row["context"])
        ):
            shared = control.encode(control.treated("context", text), continues=False)
            branches = [_tokenized(control, row) for row in group]
            unwritten.update(name for branch in branches for name in branch.unwritten)
            for branch in branches:
                length = 1 + len(shared) + branch.length
                lengths.append(length)
                if length > longest_length:
                    longest, longest_length = dict(branch.row), length
            room = max_length - 1  # of the prefix token
            kept = [branch for branch in branches if len(shared) + branch.length <= room]
            if shared and rule in ("cut", "keep_end") and len(kept) < len(branches):
                # All keep the same of the context; where nothing of it would be left, there is nothing to ask about.
                kept = [branch for branch in branches if branch.length < room]
                left = room - max((branch.length for branch in kept), default=0)
                cut += len(kept) if left < len(shared) else 0
                shared = shared[:left] if rule == "cut" else shared[max(0, len(shared) - left) :]
            elif rule in ("keep_end", "keep_latest"):
                kept = []
                for branch in branches:
                    asked = room - len(branch.completion) - len(branch.end)
                    if branch.length <= room:
                        kept.append(branch)
                    elif rule == "keep_end" and asked > 0:
                        kept.append(replace(branch, prompt=branch.prompt[-asked:]))
                        cut += 1
                    elif branch.row["messages"] is not None and (
                        latest := latest_turns(branch.row, remade, lambda each: each.length <= max_length - 1)
                    ):
                        kept.append(latest[0])
                        shortened += 1
                        turns_left_out += latest[1]
            skipped += len(branches) - len(kept)
            for branch in kept:
                before = [*shared, *branch.prompt][-_OVERLAP:]
                writer.add(
                    {
                        **{name: branch.row[name] for name in ("split", "document", "task")},
                        "example": branch.row["example"] + branch.row["part"],
                        "context": shared,
                        "prompt": branch.prompt,
                        "completion": branch.completion,
                        "end": branch.end,
                        "reference": branch.text,
                        "references": _references(control, branch.row),
                        "bytes": len(branch.text.encode()),
                        "lossless": tokenizer.decode([*before, *branch.completion]).endswith(branch.text),
                    }
                )
            kept_rows += len(kept)
            context.emit(done=kept_rows + skipped, total=total)
    if rule == "error" and skipped:
        named = f"document `{longest['document']}` (record {longest['example']}, task `{longest['task']}`)"
        way_out = "`too_long: skip` to leave such examples out, or "
        if longest["context"]:
            way_out += "`too_long: cut` to shorten the context at its end"
        elif longest["messages"] is not None:
            way_out += "`too_long: keep_latest` to leave their earliest turns out"
        else:
            way_out += "`too_long: keep_end` to shorten the prompt at its beginning"
        raise DataError(too_long(named, lengths, max_length, way_out))
    tokens = read_tokens(context.draft)
    refuse_empty_split(tokens, max_length, "raise `train.max_length`, or shorten prompts and contexts")
    metrics: dict[str, int] = {}
    for split in SPLITS:
        of_split = tokens.of_split(split)
        # Learned are completions without their ends; read is all that an example holds.
        metrics[f"tokens_{split}"] = int(of_split.lengths("completion").sum())
        metrics[f"windows_{split}"] = len(of_split)
        parts = (of_split.lengths(name) for name in ("context", "prompt", "completion", "end"))
        metrics[f"read_tokens_{split}"] = len(of_split) + int(sum(part.sum() for part in parts))
    lossy = int((~tokens.column("lossless").to_numpy()).sum())
    counts = {"skipped_examples": skipped, "cut_examples": cut, "lossy_examples": lossy}
    counts |= {"latest_examples": shortened, "turns_left_out": turns_left_out} if shortened else {}
    counts |= {"control_examples": control.num_examples, **{f"unwritten_{name}": n for name, n in sorted(unwritten.items())}}
    return {**metrics, **kept_counts(tokens), **counts}


def _pieces(tokenizer: TextTokenizer, row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the tokenizer will read of a row of `documents.parquet`."""
    messages = row["messages"] if tokenizer.hf.chat_template is not None else None
    branch = PromptCompletion(row["task"], row["prompt"], row["completion"], messages=messages)
    return pieces_of(Rendered(row["context"], (branch,)))


def _references(control: ControlTokens, row: Mapping[str, Any]) -> list[str] | None:
    """What is right too in the place of a completion, treated as it is."""
    if not row.get("references"):
        return None
    return [control.plain(control.treated(f"completion {row['task']}", text)) for text in row["references"]]


def _tokenized(control: ControlTokens, row: Mapping[str, Any]) -> _Tokenized:
    tokenizer, end, where = control.tokenizer, [control.tokenizer.eos_id], f"record {int(row['example']) + 1}"
    unwritten: tuple[str, ...] = ()
    if row["messages"] is not None and tokenizer.hf.chat_template is not None:
        chat = json.loads(control.treated("messages", row["messages"]))
        turn = render_turn(tokenizer.hf, chat["messages"], chat["tools"], where)
        prompt, completion, end, unwritten = turn.prompt, turn.completion, end_ids(tokenizer, turn.end), turn.unwritten
    else:
        prompt = control.treated(f"prompt {row['task']}", row["prompt"])
        completion = control.treated(f"completion {row['task']}", row["completion"])
        if row["messages"] is not None:
            chat = json.loads(row["messages"])
            unwritten = unwritten_in_plain(chat["messages"][-1], chat["tools"])
            if unwritten and not completion.strip():
                raise DataError(
                    f"{where}: the turn has only `{unwritten[0]}`, and the base has no chat template that writes it; take a "
                    "base that has one, or give the turn `weight: 0`"
                )
    before = bool(row["context"])
    return _Tokenized(
        row,
        control.encode(prompt, continues=before),
        control.encode(completion, continues=before or bool(prompt)),
        end,
        control.plain(completion),
        unwritten,
    )

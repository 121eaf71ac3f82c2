"""What a teacher says at every target of the training split: computed once, kept on disk, read a few rows at a time.

Kept are log-probabilities at temperature 1, from which those at any other follow: of all words, or of the likeliest with the
mass of the rest. In 16 bits: what the rounding moves is measured and stands in the record. A row is a target; those of an
example follow each other, and examples stand in the order of the tokens, so a student finds its rows by counting.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paretune.data.examples import examples_of
from paretune.data.tokenizer import TextTokenizer, load_tokenizer
from paretune.data.tokens import read_tokens
from paretune.data.trees import Example, Examples, forward_batches, group_starts
from paretune.errors import StageError
from paretune.model.attention import attending
from paretune.model.forward import PackedModel, hidden_states
from paretune.model.load import load_model
from paretune.model.loss import ROWS
from paretune.model.soft_loss import TopWords
from paretune.pipeline.stage import Artifact, StageContext
from paretune.pipeline.stage_configs import TeacherConfig

_LOG_P, _WORDS, _REST = "log_p.npy", "words.npy", "log_rest.npy"
_STRETCH = 512
"""Examples that are packed together, about."""


def write_teacher(context: StageContext) -> dict[str, Any]:
    """Stage body: the log-probabilities of the input `model`, or the base, at the targets of the training split.

    Of the record: `targets`; `words` of each that are kept; `kept_mass`, the mean share of probability on them; `rounding`, the
    mean divergence (nats a target) of what is kept from what it was rounded from; `token_map` for students to compare.
    """
    config = context.parse(TeacherConfig)
    loaded = load_model(context, getattr(torch, config.precision), fused=True)
    assert isinstance(loaded.packed, PackedModel), "refused where the study is read"
    tokens = context.inputs["tokens"]
    student = load_tokenizer(tokens.record.config["base"], context.resources["student"])
    examples = examples_of(read_tokens(tokens.path, "train"), student, config.max_length)
    starts = first_rows(examples)
    num_rows, num_words = int(starts[-1]), min(loaded.packed.head.num_words, num_tokens(student))
    kept = min(config.top_k or num_words, num_words)
    needed, free = num_rows * config.bytes_of_target(num_words), shutil.disk_usage(context.draft).free
    if needed > free:
        raise StageError(
            f"the teacher's logits take {needed / 1e9:,.1f} GB on disk, and {free / 1e9:,.1f} GB are free; "
            + ("write `cache: top_k`" if config.top_k is None else "lower `top_k`")
        )
    log_p = _reserved(context.draft / _LOG_P, (num_rows, kept), np.float16)
    words = rest = None
    if config.top_k is not None:
        words = _reserved(context.draft / _WORDS, (num_rows, kept), np.uint16 if num_words <= 2**16 else np.int32)
        rest = _reserved(context.draft / _REST, (num_rows, 1), np.float32)
    mass, rounding = 0.0, 0.0
    for rows, states in _states(context, loaded.packed, examples, starts):
        for first in range(0, len(rows), ROWS):
            at = rows[first : first + ROWS]
            with torch.no_grad():
                exact = loaded.packed.head(states[first : first + ROWS]).float()[:, :num_words].log_softmax(-1)
            of_words = exact
            if words is not None and rest is not None:
                of_words, likeliest = exact.topk(kept, sorted=False)
                words[at] = likeliest.cpu().numpy().astype(words.dtype)
                rest[at] = exact.scatter(1, likeliest, -torch.inf).logsumexp(-1, keepdim=True).cpu().numpy()
            rounded = of_words.clamp_min(-65504).half()
            log_p[at] = rounded.cpu().numpy()
            p, q = of_words.exp(), rounded.float().exp()
            rounding += float((p * (of_words - rounded.float()) + q - p).sum())
            mass += float(p.sum())
    for file in (log_p, words, rest):
        if file is not None:
            file.flush()
    return {
        "targets": num_rows,
        "words": kept,
        "kept_mass": mass / num_rows,
        "rounding": rounding / num_rows,
        "token_map": token_map(loaded.tokenizer),
    }


@dataclass(frozen=True, eq=False)
class Teacher:
    """What a teacher's stage left."""

    log_p: np.ndarray
    words: np.ndarray | None
    log_rest: np.ndarray | None
    metrics: dict[str, Any]
    device: str

    def read(self, rows_R: np.ndarray) -> torch.Tensor | TopWords:
        """`paretune.model.soft_loss.ReadTeacher`."""
        log_p = torch.from_numpy(self.log_p[rows_R]).to(self.device).float()
        if self.words is None or self.log_rest is None:
            return log_p
        words, rest = torch.from_numpy(self.words[rows_R].astype(np.int64)), torch.from_numpy(self.log_rest[rows_R])
        return TopWords(log_p, words.to(self.device), rest.to(self.device))

    def numbered(self, examples: Sequence[Example], tokenizer: TextTokenizer) -> Examples:
        """`examples` with the rows of their targets; StageError where they, or their tokens, are not those of the teacher."""
        starts = first_rows(examples)
        if int(starts[-1]) != len(self.log_p):
            raise StageError(f"the teacher was asked at {len(self.log_p):,} targets, and the student has {int(starts[-1]):,}")
        if self.metrics["token_map"] != token_map(tokenizer):
            raise StageError("the teacher has other tokens than the student; take one with the same tokenizer")
        ones = np.ones(len(examples), np.int64)
        return Examples(ones, lambda n, _: replace(examples[n], first_row=int(starts[n])), group_starts(examples))


def read_teacher(artifact: Artifact, device: str) -> Teacher:
    """What the stage `distill.teacher` left, mapped."""
    files = (artifact.path / name for name in (_LOG_P, _WORDS, _REST))
    log_p, words, rest = (np.load(file, mmap_mode="r") if file.exists() else None for file in files)
    assert log_p is not None, "written by the stage"
    return Teacher(log_p, words, rest, artifact.record.metrics, device)


def first_rows(examples: Sequence[Example]) -> np.ndarray:
    """The number of the first target of each example among those of all, and at the end how many there are."""
    return np.concatenate([[0], np.cumsum([example.num_targets for example in examples])])


def num_tokens(tokenizer: TextTokenizer) -> int:
    """Of the vocabulary: rows of an embedding from there on are padding."""
    return max(tokenizer.hf.get_vocab().values()) + 1


def token_map(tokenizer: TextTokenizer) -> str:
    """A digest of which token is which number."""
    pairs = sorted((number, token) for token, number in tokenizer.hf.get_vocab().items())
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def _reserved(file: Path, shape: tuple[int, int], dtype: Any) -> np.memmap:
    """A file that is written by memory map, whose room on the disk is taken first: a write to a full one kills the process."""
    mapped: np.memmap = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    return mapped


def _states(
    context: StageContext, packed: PackedModel, examples: Sequence[Example], starts: np.ndarray
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """The states that predict the targets, a pass at a time, and the rows of these."""
    bounds, done = [0], 0
    for start in group_starts(examples):
        if start - bounds[-1] >= _STRETCH:
            bounds.append(int(start))
    context.emit(done=0, total=len(examples), part="reading by the teacher")
    for start, stop in pairwise([*bounds, len(examples)]):
        batches = forward_batches(examples[start:stop], forward_tokens=context.options.forward_tokens, pack=packed.isolates)
        for indices, batch in batches:
            with torch.no_grad(), attending(packed.model, batch):
                states = hidden_states(packed.model, batch.to(packed.model.device))
            yield np.concatenate([np.arange(starts[start + i], starts[start + i + 1]) for i in indices]), states
            done += len(indices)
            context.emit(done=done, total=len(examples))

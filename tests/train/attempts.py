"""Trainings in processes of their own that can be killed at a chosen moment, to be gone on with by the next."""

import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from paretune.data.tokenizer import SCHEMA
from paretune.pipeline import signals
from paretune.pipeline.resources import Resource
from paretune.pipeline.stage import RunOptions, StageContext
from paretune.pipeline.threads import Threads
from paretune.pipeline.worker import PRELOAD
from paretune.train import loop
from paretune.train.last_blocks import train_last_blocks
from paretune.train.stages import train_full, train_lora
from tests.evaluate.stages import make_artifact
from tests.tiny import VOCABULARY_SIZE, make_model

# Threads that wait for each other sleep: otherwise a second one takes ten times as long where the cores have other work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

BODIES = {"full": train_full, "last": train_last_blocks, "lora": train_lora}
LORA = {"r": 4, "alpha": 8, "dropout": 0.2, "bias": "none", "targets": "all-linear"}
FIELDS = {"full": {}, "last": {"count": 2, "head": True}, "lora": LORA}
TRAIN = {
    "epochs": None,
    "max_steps": 12,
    "batch_size": 4,
    "max_length": 32,
    "schedule": "cosine",
    "warmup": 0.1,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "evaluate_every": 5,
    "early_stopping": None,
    "keep": "best",
    "base_dropout": "keep",
}


@dataclass(frozen=True)
class Training:
    """One training stage; equal ones give equal answers, whatever `folder` they work in."""

    base: Path
    tokens: Path
    folder: Path
    method: str = "lora"
    precision: str = "float32"
    threads: int = 1
    options: RunOptions = RunOptions(checkpoint_seconds=1e9)  # noqa: RUF009  frozen
    train: Mapping[str, Any] | None = None

    @property
    def draft(self) -> Path:
        return self.folder / "draft"

    @property
    def resume(self) -> Path:
        return self.folder / "draft.resume"

    @property
    def steps_done(self) -> list[int]:
        """Every step of every attempt, in the order in which they were done."""
        file = self.folder / "steps"
        return [int(line) for line in file.read_text().split()] if file.exists() else []


def write_base(directory: Path, architecture: str = "gpt2") -> Path:
    """A tiny model with a dropout of its own."""
    return make_model(architecture, directory, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)


def write_tokens(directory: Path, count: int = 34) -> Path:
    directory.mkdir()
    draw = random.Random(0)
    rows = [
        {
            "split": "train" if number < count - 6 else "validation",
            "document": str(number),
            "example": str(number),
            "ids": [draw.randrange(2, VOCABULARY_SIZE) for _ in range(draw.randint(5, 40))],
            "bytes": 1,
            "lossless": True,
        }
        for number in range(count)
    ]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), directory / "tokens.parquet")
    return directory


def attempt(training: Training, kill: Callable[..., None] | None = None, moment: int = 0) -> int:
    """Train in a process of its own, killed by `kill` at `moment`; returns its exit code, -9 if it was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=_attempt, args=(training, kill, moment))
    process.start()
    process.join()
    return process.exitcode


def at_step(training: Training, moment: int, signal_number: int = signal.SIGKILL) -> None:
    """Kill right after step `moment` of this attempt, before its checkpoint."""
    before = loop.ckpt.write_line
    left = [moment]

    def write_line(journal: Any, row: Mapping[str, float]) -> None:
        before(journal, row)
        left[0] -= "train_loss" in row
        if left[0] == 0 and "train_loss" in row:
            os.kill(os.getpid(), signal_number)

    loop.ckpt.write_line = write_line


def asked_at_step(training: Training, moment: int) -> None:
    """Ask it to end during step `moment` of this attempt."""
    at_step(training, moment, signals.STOP)


def choosing_others(training: Training, moment: int) -> None:
    """One thread and two in turns, by each checkpoint; killed as by `at_step`."""
    Threads.choose = lambda threads: threads.use(3 - torch.get_num_threads())
    at_step(training, moment)


def at_file_operation(training: Training, moment: int) -> None:
    """Kill right before the operation on files that comes as number `moment` of this attempt."""
    left = [moment]

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **named)

        return counting

    for name in ("fsync", "rename", "replace", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))


def _attempt(training: Training, kill: Callable[..., None] | None, moment: int) -> None:
    if kill:
        kill(training, moment)
    torch.set_num_threads(training.threads)
    loop._CHECKPOINT_SHARE = 0  # as often as the options say, however long it takes
    shutil.rmtree(training.draft, ignore_errors=True)
    training.draft.mkdir(parents=True)
    training.resume.mkdir(exist_ok=True)
    with (training.folder / "steps").open("a") as steps:

        def emit(done: int, loss: float | None = None, **_: Any) -> None:
            if loss is not None:  # else it is no step
                steps.write(f"{done}\n")
                steps.flush()

        metrics = BODIES[training.method](_context(training, emit))
    (training.folder / "metrics").write_text(repr(metrics))


def _context(training: Training, emit: Callable[..., None]) -> StageContext:
    return StageContext(
        config={
            "base": {"digest": "0", "trust_remote_code": False},
            "method": {"learning_rate": 1e-2} | FIELDS[training.method],
            "train": TRAIN | (training.train or {}),
            "seed": 3,
            "precision": training.precision,
            "device": "cpu",
        },
        inputs={"tokens": make_artifact(training.tokens)},
        resources={"base": Resource(path=training.base)},
        options=training.options,
        draft=training.draft,
        emit=emit,
    )

"""What a killed training goes on from: checkpoints, the best weights so far, and a journal of every step ever done.

A checkpoint holds all that the next step depends on: weights, optimizer moments, scheduler, random state, position, and the
options that move bits (threads, packing, accumulation), in safetensors and JSON. So a killed run goes on to the same bits on
the same machine. Each is written whole under a name of its own before the one before it is removed. The journal is only ever
appended to: the curves and the number of repeated steps are read from it at the end, however often the run was killed.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from paretune.errors import StageError
from paretune.pipeline.stage import CHECKPOINT
from paretune.pipeline.store import flush
from paretune.study.train import EarlyStopping

_JOURNAL = "curves.jsonl"
_BEST = "best-"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class Progress:
    """Where a training run stands."""

    step: int = 0
    tokens: int = 0
    """That were learned: targets."""
    tokens_read: int = 0
    """Of the examples, each with its whole context, as a trainer without padding would read them."""
    forward_tokens: int = 0
    """Of a pass at most: fewer than was asked for where memory did not reach."""
    out_of_memory: int = 0
    """How often it did not reach for a step, which began again with half of them."""
    loss_scale: dict[str, Any] = field(default_factory=dict)
    """State of the scaler of float16; empty in other formats."""
    train_seconds: float = 0.0
    """Optimizer steps only."""
    cpu_seconds: float = 0.0
    """That all threads of the process had of the cores in these steps."""
    wall_seconds: float = 0.0
    threads: list[int] = field(default_factory=list)
    """Each number of threads that a step was computed on."""
    best: float | None = None
    """Validation metric of the best evaluation, lower is better."""
    best_step: int = 0
    evaluations_since_best: int = 0
    stopped_early: bool = False

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_read / self.train_seconds

    def note_evaluation(self, measured: Mapping[str, float], stopping: EarlyStopping | None) -> bool:
        """Update best and patience by an evaluation after this step; True if it is the best so far."""
        by_loss = stopping is None or stopping.metric == "loss"
        value = measured["validation_loss"] if by_loss else -measured["validation_token_accuracy"]
        better = self.best is None or value < self.best
        if better:
            self.best, self.best_step, self.evaluations_since_best = value, self.step, 0
        else:
            self.evaluations_since_best += 1
        self.stopped_early = stopping is not None and self.evaluations_since_best >= stopping.patience
        return better


def save_checkpoint(
    folder: Path, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, scheduler: Any, progress: Progress,
    options: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write the state of a run into `folder`, then remove older ones; a kill leaves the newest whole one."""
    new, current = folder / "new", folder / f"{CHECKPOINT}{progress.step:09}"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    save_file(_detached(trained), new / "weights.safetensors")
    moments = {f"{name}/{key}": moment for name, p in trained.items() for key, moment in optimizer.state[p].items()}
    save_file({key: moment.contiguous() for key, moment in moments.items()}, new / "optimizer.safetensors")
    random = {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})
    save_file(random, new / "random.safetensors")
    state = {"progress": vars(progress), "scheduler": scheduler.state_dict(), "options": dict(options)}
    (new / "state.json").write_text(json.dumps(state), encoding="utf-8")
    for path in (*new.iterdir(), new, folder / _JOURNAL):
        if path.exists():
            flush(path)
    new.rename(current)
    flush(folder)
    for older in folder.glob(f"{CHECKPOINT}*"):
        if older != current:
            shutil.rmtree(older)
    for file in folder.glob(f"{_BEST}*"):
        if file != _best(folder, progress.best_step):
            file.unlink()


def find_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in `folder`."""
    return max(folder.glob(f"{CHECKPOINT}*"), default=None)


def checkpoint_step(checkpoint: Path) -> int:
    """The optimizer step after which it was written."""
    return int(checkpoint.name.removeprefix(CHECKPOINT))


def checkpoint_options(checkpoint: Path) -> dict[str, Any]:
    """The options that the run went under after it, for it to go on with."""
    options: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["options"]
    return options


def load_checkpoint(
    checkpoint: Path, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, scheduler: Any
) -> Progress:
    """Put the state of a run back; StageError if the checkpoint is damaged or of other weights."""
    try:
        weights, moments = load_file(checkpoint / "weights.safetensors"), load_file(checkpoint / "optimizer.safetensors")
        random, state = load_file(checkpoint / "random.safetensors"), json.loads((checkpoint / "state.json").read_text("utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise StageError(f"{checkpoint}: cannot be read ({error}); remove it, and the training starts over") from None
    if weights.keys() != trained.keys() or any(weights[name].shape != p.shape for name, p in trained.items()):
        raise StageError(f"{checkpoint}: holds other weights than this stage trains; remove it, and the training starts over")
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(weights[name])
            # A weight that no loss has reached yet has no moments.
            of_weight = {key: moments[f"{name}/{key}"] for key in _MOMENTS if f"{name}/{key}" in moments}
            optimizer.state[p] = {key: moment.clone().to(p.device) for key, moment in of_weight.items()}
    scheduler.load_state_dict(state["scheduler"])
    # The scheduler does not write the rate into the optimizer by itself.
    for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = rate
    torch.set_rng_state(random["cpu"])
    if "cuda" in random:
        torch.cuda.set_rng_state(random["cuda"])
    return Progress(**state["progress"])


def save_best(folder: Path, trained: Mapping[str, nn.Parameter], step: int) -> None:
    """Keep the present weights as the best so far. Those that a checkpoint counts on stay until the next checkpoint."""
    new = folder / "best.new"
    save_file(_detached(trained), new)
    flush(new)
    new.replace(_best(folder, step))


def load_best(folder: Path, trained: Mapping[str, nn.Parameter], step: int) -> None:
    """Put the weights of step `step` back, which `save_best` has kept."""
    best = load_file(_best(folder, step))
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(best[name])


def open_journal(folder: Path) -> TextIO:
    """The journal, to append lines to; after a kill in the middle of a line it goes on with a line of its own."""
    file = folder / _JOURNAL
    torn = file.exists() and file.read_bytes()[-1:] not in (b"", b"\n")
    journal = file.open("a", encoding="utf-8")
    if torn:
        journal.write("\n")
    return journal


def write_line(journal: TextIO, row: Mapping[str, float]) -> None:
    journal.write(json.dumps(row) + "\n")
    journal.flush()


def write_curves(folder: Path, draft: Path, last_step: int) -> int:
    """Write `curves.jsonl` into `draft` from the journal, each step once; returns how many steps were done in vain."""
    rows: dict[tuple[int, bool], dict[str, Any]] = {}
    steps = 0
    for line in (folder / _JOURNAL).read_text(encoding="utf-8").splitlines():
        try:
            row: dict[str, Any] = json.loads(line)
        except ValueError:  # the line that a kill cut off
            continue
        evaluation = "validation_loss" in row
        steps += not evaluation
        rows[row["step"], evaluation] = row
    kept = [rows[step, evaluation] for step, evaluation in sorted(rows) if step <= last_step]
    (draft / "curves.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in kept), encoding="utf-8")
    return steps - last_step


def _best(folder: Path, step: int) -> Path:
    return folder / f"{_BEST}{step:09}.safetensors"


def _detached(trained: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: p.detach().contiguous() for name, p in trained.items()}

"""Training checkpoints: all that the next step depends on, in safetensors and JSON, replaced in one rename.

Weights, optimizer moments, scheduler, random state, position, best weights so far, and the options that move bits (threads,
packing, accumulation), so that a killed run goes on to the same bits on the same machine.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from paretune.errors import StageError

_CHECKPOINT = "checkpoint"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class Progress:
    """Where a training run stands."""

    step: int = 0
    tokens: int = 0
    train_seconds: float = 0.0
    """Optimizer steps only."""
    wall_seconds: float = 0.0
    repeated_steps: int = 0
    """Steps done twice because of kills."""
    best: float | None = None
    """Validation metric of the best evaluation, lower is better."""
    best_step: int = 0
    evaluations_since_best: int = 0
    stopped_early: bool = False


def save_checkpoint(
    draft: Path, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, scheduler: Any, progress: Progress,
    options: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write the state of a run into `draft`, replacing the checkpoint that is there; a kill leaves the old or the new one."""
    new, current, old = draft / f"{_CHECKPOINT}.new", draft / _CHECKPOINT, draft / f"{_CHECKPOINT}.old"
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir()
    save_file({name: p.detach().contiguous() for name, p in trained.items()}, new / "weights.safetensors")
    moments = {f"{name}/{key}": optimizer.state[p][key] for name, p in trained.items() for key in _MOMENTS}
    save_file({key: value.contiguous() for key, value in moments.items()}, new / "optimizer.safetensors")
    save_file(_random_state(), new / "random.safetensors")
    state = {"progress": vars(progress), "scheduler": scheduler.state_dict(), "options": dict(options)}
    (new / "state.json").write_text(json.dumps(state), encoding="utf-8")
    for file in new.iterdir():
        _flush(file)
    if current.exists():
        current.rename(old)
    new.rename(current)
    shutil.rmtree(old, ignore_errors=True)


def find_checkpoint(draft: Path) -> Path | None:
    """The checkpoint in `draft`, whole; the old one where a kill fell between the two renames."""
    for name in (_CHECKPOINT, f"{_CHECKPOINT}.old"):
        if (draft / name / "state.json").exists():
            return draft / name
    return None


def checkpoint_options(checkpoint: Path) -> dict[str, Any]:
    """The options that the run began with; it goes on with them."""
    options: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["options"]
    return options


def load_checkpoint(
    checkpoint: Path, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, scheduler: Any
) -> Progress:
    """Put the state of a run back; StageError if the checkpoint is of other weights."""
    weights = load_file(checkpoint / "weights.safetensors")
    if weights.keys() != trained.keys():
        raise StageError(f"{checkpoint}: holds other weights than this stage trains; remove the directory")
    moments = load_file(checkpoint / "optimizer.safetensors")
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(weights[name])
            optimizer.state[p] = {key: _beside(moments[f"{name}/{key}"], p, key) for key in _MOMENTS}
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    scheduler.load_state_dict(state["scheduler"])
    # The scheduler does not write the rate into the optimizer by itself.
    for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = rate
    _set_random_state(load_file(checkpoint / "random.safetensors"))
    return Progress(**state["progress"])


def save_best(draft: Path, trained: Mapping[str, nn.Parameter]) -> None:
    """Keep the present weights as the best so far."""
    new = draft / "best.new"
    save_file({name: p.detach().contiguous() for name, p in trained.items()}, new)
    new.replace(draft / "best.safetensors")


def load_best(draft: Path, trained: Mapping[str, nn.Parameter]) -> None:
    best = load_file(draft / "best.safetensors")
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(best[name])


def remove_checkpoints(draft: Path) -> None:
    """What only an unfinished run needs."""
    for directory in draft.glob(f"{_CHECKPOINT}*"):
        shutil.rmtree(directory)
    for file in draft.glob("best.*"):
        file.unlink()


def _beside(moment: torch.Tensor, p: nn.Parameter, key: str) -> torch.Tensor:
    # A fused optimizer keeps its step count on the parameter's device as well.
    return moment if key == "step" and p.device.type == "cpu" else moment.to(p.device)


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: Mapping[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def _flush(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

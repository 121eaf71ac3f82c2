"""What stands before removed blocks makes up for them: least squares, folded into the weights of a projection that is there.

The last projection of an MLP writes y = W h into the residual stream. What a run of removed blocks behind it added there is
lost; W is changed to add it too, as far as it can be told from h (`linear`, as in ReplaceMe, arXiv 2505.02819), or from y
channel by channel (`scale`, as in LinearPatch, arXiv 2505.24680, without its rotation). The model keeps its shapes.

Legend: N tokens, C channels that the projection reads, D width of the hidden states.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from paretune.data.trees import Batch
from paretune.errors import StageError
from paretune.model.blocks import block_list, skipped_blocks
from paretune.model.forward import along_trees
from paretune.pipeline.stage import Emit
from paretune.variants.calibration import Window, document_numbers, share_contexts, window_batches
from paretune.variants.cuts import Cut, find_cuts, narrow_mlp
from paretune.variants.proof import probe_of
from paretune.variants.walk import Removed

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Of the mean second moment of a channel, added to each: that is taken which does best on documents that were not fit to."""


@dataclass(frozen=True)
class Seam:
    """What makes up for one run of removed blocks."""

    removed: Removed
    """The run; the projection of the block before it was changed."""
    ridge: float | None
    """None where nothing was changed, as it would not have helped."""
    explained: float
    """Share of what the run added, in squares, that is made up for on documents that were not fit to."""


@torch.no_grad()
def sew(
    model: PreTrainedModel,
    drop: Sequence[int],
    windows: Sequence[Window],
    *,
    seam: Literal["scale", "linear"],
    forward_tokens: int,
    emit: Emit = lambda **_: None,
) -> list[Seam]:
    """Change in place the projection before each run of `drop`, the first run first: those behind it see what it left.

    `model` is whole, in evaluation mode and float32. StageError where nothing stands before a run, or where what an MLP writes
    is not added as it is.
    """
    blocks, runs = block_list(model)[1], runs_in(drop)
    if runs[0][0] == 0:
        raise StageError("nothing stands before block 0 that could make up for it: write `protect: [0]`, or `seam: none`")
    cuts = projections_that_add(model)
    documents, trees = document_numbers(windows)[1], share_contexts(model, windows)
    batches = [
        (fold, batch)
        for fold in range(2)
        for _, batch in window_batches(
            model,
            [window for window, number in zip(windows, documents, strict=True) if number % 2 == fold],
            forward_tokens=forward_tokens,
            trees=trees,
        )
    ]
    goals = [_states(model, batch, [blocks[run[-1]] for run in runs]) for _, batch in batches]
    seams = []
    for number, run in enumerate(runs):
        block, cut = blocks[run[0] - 1], cuts[run[0] - 1]
        wide, channels = cut.matrix_DC().shape
        double = {"dtype": torch.float64, "device": model.device}
        moments = [_Moments(torch.zeros(channels, channels, **double), torch.zeros(wide, channels, **double)) for _ in range(2)]
        for done, ((fold, batch), goal) in enumerate(zip(batches, goals, strict=True)):
            emit(done=done, total=len(batches), part=f"making up for blocks {', '.join(map(str, run))}")
            with skipped_blocks(model, [gone for earlier in runs[:number] for gone in earlier]):
                read_NC, after_ND = _states(model, batch, [block], reading=cut.projection)
            moments[fold].add(*(x.index_select(0, batch.held_P) for x in (read_NC, goal[number] - after_ND)))
        seams.append(_sewn(cut, run, moments, seam))
    return seams


@torch.no_grad()
def projections_that_add(model: PreTrainedModel) -> list[Cut]:
    """The last projection of the MLP of each block; StageError unless what it writes is added as it is."""
    cuts = find_cuts(model, narrow_mlp(model.config, lambda width: width - 1))
    for block, cut in zip(block_list(model)[1], cuts, strict=True):
        _check_adds(model, block, cut.projection)
    return cuts


def runs_in(drop: Sequence[int]) -> list[Removed]:
    """Blocks that stand next to each other, together."""
    runs: list[list[int]] = []
    for block in sorted(drop):
        if runs and block == runs[-1][-1] + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    return [tuple(run) for run in runs]


@dataclass
class _Moments:
    """Sums over tokens, float64."""

    read_CC: torch.Tensor
    """Of h h^T."""
    lost_DC: torch.Tensor
    """Of what is lost times h^T."""
    squares: float = 0.0
    """Of what is lost."""

    def add(self, read_NC: torch.Tensor, lost_ND: torch.Tensor) -> None:
        self.read_CC += read_NC.T @ read_NC
        self.lost_DC += lost_ND.T @ read_NC
        self.squares += float(lost_ND.double().square().sum())

    def __add__(self, other: "_Moments") -> "_Moments":
        return _Moments(self.read_CC + other.read_CC, self.lost_DC + other.lost_DC, self.squares + other.squares)

    def change(self, weight_DC: torch.Tensor, seam: str, ridge: float) -> torch.Tensor:
        """What is added to the projection, float64 [D, C]: least squares with a ridge."""
        if seam == "scale":
            written_D = ((weight_DC @ self.read_CC) * weight_DC).sum(1)
            share_D = (self.lost_DC * weight_DC).sum(1) / (written_D + ridge * written_D.mean())
            return share_D[:, None] * weight_DC
        ridged_CC = self.read_CC.clone()
        ridged_CC.diagonal().add_(ridge * ridged_CC.diagonal().mean())
        return torch.linalg.solve(ridged_CC, self.lost_DC.T).T

    def left(self, change_DC: torch.Tensor) -> float:
        """The squares of what is still lost with `change_DC` h added."""
        return self.squares + float((change_DC @ self.read_CC - 2 * self.lost_DC).mul(change_DC).sum())


def _sewn(cut: Cut, run: Removed, folds: Sequence[_Moments], seam: str) -> Seam:
    """The projection changed by the ridge that does best across the folds, unless none does better than nothing."""
    if not all(fold.squares for fold in folds):
        raise StageError(f"`seam: {seam}` is fit on some documents and tried on others: it takes two or more to measure on")
    weight_DC = cut.matrix_DC()
    wide_DC, (first, second) = weight_DC.double(), folds
    whole = first + second

    def explained(ridge: float) -> float:
        left = sum(tried.left(fit.change(wide_DC, seam, ridge)) for fit, tried in ((first, second), (second, first)))
        return 1 - left / whole.squares

    share, ridge = max((explained(ridge), ridge) for ridge in RIDGES)
    if share <= 0:
        return Seam(run, None, 0.0)
    weight_DC += whole.change(wide_DC, seam, ridge).to(weight_DC.dtype)
    return Seam(run, ridge, share)


def _states(
    model: PreTrainedModel, batch: Batch, blocks: Sequence[nn.Module], reading: nn.Module | None = None
) -> list[torch.Tensor]:
    """What the projection `reading` reads, if given, and what each of `blocks` returns, [R * T, ...] in float32."""
    found: list[torch.Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], output: Any = None) -> None:
        state = args[0] if output is None else output[0] if isinstance(output, tuple | list) else output
        found.append(state.flatten(0, -2).float().clone())

    handles = [block.register_forward_hook(keep) for block in blocks]
    if reading is not None:
        handles.append(reading.register_forward_pre_hook(keep))
    try:
        with along_trees(model, batch):
            model.base_model(input_ids=batch.ids_RT, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _check_adds(model: PreTrainedModel, block: nn.Module, projection: nn.Module) -> None:
    """StageError unless what `projection` writes is added to what its block returns, neither scaled nor normed."""
    ids_RT = probe_of(model)
    probe = Batch(ids_RT, ids_RT, ids_RT, ids_RT, ())
    (before_ND,) = _states(model, probe, [block])
    added_ND = torch.zeros_like(before_ND).uniform_(-1, 1, generator=torch.Generator().manual_seed(0)) * before_ND.std()
    handle = projection.register_forward_hook(lambda _module, _args, output: output + added_ND.view_as(output))
    try:
        (after_ND,) = _states(model, probe, [block])
    finally:
        handle.remove()
    if not torch.allclose(after_ND - before_ND, added_ND, atol=1e-3 * float(before_ND.abs().max())):
        raise StageError(
            f"`{type(model).__name__}` norms or scales what its MLPs write, so they cannot make up for removed blocks: write "
            "`seam: none`"
        )

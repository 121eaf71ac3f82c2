"""What makes up for removed blocks: least squares, sequential, kept where it helps documents that it was not fit to."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from paretune.data.trees import Example
from paretune.errors import SpecError, StageError
from paretune.model.blocks import block_list, skipped_blocks
from paretune.pipeline.checks import check_blocks
from paretune.study.methods import PruneBlocks
from paretune.variants.calibration import Window
from paretune.variants.cuts import find_cuts, narrow_mlp
from paretune.variants.seam import projections_that_add, runs_in, sew
from paretune.variants.stages import prune_blocks
from paretune.variants.walk import block_inputs
from tests.tiny import ARCHITECTURES, VOCABULARY_SIZE, make_model, randomise
from tests.variants.test_choose import context_of
from tests.variants.test_width import locked

NORMED = ("gemma2", "gemma3", "olmo2")
"""Architectures that norm what an MLP writes before it is added."""


def load(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory).eval()


def some_windows(count: int = 60) -> list[Window]:
    generator = np.random.default_rng(0)
    return [Window(str(n % 6), (Example(generator.integers(2, VOCABULARY_SIZE, 24).astype(np.int32)),)) for n in range(count)]


def at(model: PreTrainedModel, windows: Sequence[Window], depth: int, skip: Sequence[int] = ()) -> np.ndarray:
    """The states before block `depth`, float64 [N, D], one window after the other."""
    states = []
    with skipped_blocks(model, skip):
        for window in windows:
            states.append(block_inputs(model, torch.from_numpy(window.examples[0].ids).long()[None])[depth][0])
    return torch.cat(states).double().numpy()


def read_by(model: PreTrainedModel, windows: Sequence[Window], block: int) -> np.ndarray:
    """What the last projection of a block's MLP reads, float64 [N, C]."""
    read: list[torch.Tensor] = []
    cut = find_cuts(model, narrow_mlp(model.config, lambda width: width - 1))[block]
    handle = cut.projection.register_forward_pre_hook(lambda _, args: read.append(args[0][0].double()))
    at(model, windows, 0)
    handle.remove()
    return torch.cat(read).numpy()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_behind_a_seam_is_nearer_to_what_was_there(architecture: str, bases: dict[str, Path]) -> None:
    model, windows = load(bases[architecture]), some_windows()
    if architecture in NORMED:
        with pytest.raises(StageError, match="norms or scales what its MLPs write"):
            sew(model, [1], windows, seam="linear", forward_tokens=256)
        return
    there, without = at(model, windows, 2), at(model, windows, 2, skip=[1])
    (seam,) = sew(model, [1], windows, seam="linear", forward_tokens=256)
    sewn = at(model, windows, 2, skip=[1])
    assert seam.removed == (1,)
    left = np.square(there - sewn).sum() / np.square(there - without).sum()
    assert left < 1 if seam.ridge else left == pytest.approx(1)
    assert seam.explained <= 1 - left + 0.05  # of documents that were not fit to: hardly better than of those that were


def test_the_whole_projection_is_least_squares_with_the_ridge_that_is_told(bases: dict[str, Path]) -> None:
    model, windows = load(bases["llama"]), some_windows()
    lost = at(model, windows, 3) - at(model, windows, 3, skip=[1, 2])
    read = read_by(model, windows, 0)
    cut = find_cuts(model, narrow_mlp(model.config, lambda width: width - 1))[0]
    before = cut.matrix_DC().detach().double().numpy().copy()
    (seam,) = sew(model, [1, 2], windows, seam="linear", forward_tokens=100)
    second = read.T @ read
    assert seam.ridge
    ridged = second + seam.ridge * second.diagonal().mean() * np.eye(len(second))
    expected = np.linalg.solve(ridged, read.T @ lost).T
    assert np.abs(cut.matrix_DC().detach().double().numpy() - before - expected).max() < 1e-5 * np.abs(expected).max() + 1e-6


def test_a_factor_for_each_channel_is_least_squares_of_that_channel(bases: dict[str, Path]) -> None:
    model, windows = load(bases["llama"]), some_windows()
    # Make what the run adds depend on what the MLP before it writes, so that there is something to make up for.
    read, cut = read_by(model, windows, 0), find_cuts(model, narrow_mlp(model.config, lambda width: width - 1))[0]
    before = cut.matrix_DC().detach().double().numpy().copy()
    lost = at(model, windows, 2) - at(model, windows, 2, skip=[1])
    (seam,) = sew(model, [1], windows, seam="scale", forward_tokens=256)
    written = read @ before.T
    squares = np.square(written).sum(0)
    factor = (lost * written).sum(0) / (squares + (seam.ridge or np.inf) * squares.mean())
    assert np.abs(cut.matrix_DC().detach().double().numpy() - before * (1 + factor)[:, None]).max() < 1e-6


def test_the_second_seam_sees_what_the_first_left(bases: dict[str, Path]) -> None:
    both, windows = load(bases["llama"]), some_windows()
    there = at(both, windows, 4)
    sew(both, [1, 3], windows, seam="linear", forward_tokens=256)
    apart = load(bases["llama"])
    weights = [find_cuts(apart, narrow_mlp(apart.config, lambda width: width - 1))[n].matrix_DC().data for n in (0, 2)]
    before = [weight.clone() for weight in weights]
    sew(apart, [1], windows, seam="linear", forward_tokens=256)
    first = weights[0].clone()
    weights[0].copy_(before[0])
    sew(apart, [3], windows, seam="linear", forward_tokens=256)  # as if the first block were still there
    weights[0].copy_(first)
    left = [np.square(there - at(model, windows, 4, skip=[1, 3])).sum() for model in (both, apart)]
    assert left[0] < left[1]


def test_the_stage_leaves_an_ordinary_model_and_tells_what_was_explained(bases: dict[str, Path], tmp_path: Path) -> None:
    context = context_of(bases["llama"], {"choose": "last", "count": 1, "seam": "linear"}, tmp_path)
    metrics = prune_blocks(context)
    assert [seam["removed"] for seam in metrics["seams"]] == [(3,)]
    assert AutoModelForCausalLM.from_pretrained(context.draft).config.num_hidden_layers == 3
    assert len(block_list(load(context.draft))[1]) == 3


@pytest.mark.parametrize("kind", ["exaone4", "gemma2", "gemma3_text", "glm4", "granite", "llama", "olmo2", "olmo3", "phi3"])
def test_the_plan_refuses_what_the_stage_would(kind: str, tmp_path: Path) -> None:
    fields = {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 300}
    more = {"num_key_value_heads": 4, "head_dim": 8, "pad_token_id": None}
    more |= {"residual_multiplier": 0.5} if kind == "granite" else {}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **fields, **more)).eval()
    randomise(model)
    model.config.save_pretrained(tmp_path)
    refused = []
    for act in (
        lambda: check_blocks(PruneBlocks(count=1, choose="loss", seam="scale"), "v", "b", locked(tmp_path)),
        lambda: projections_that_add(model),
    ):
        try:
            act()
        except (SpecError, StageError) as error:
            assert "norms or scales what its MLPs write" in str(error)  # noqa: PT017
            refused.append(True)
        else:
            refused.append(False)
    assert refused[0] == refused[1] == (kind not in ("llama", "phi3"))


@pytest.mark.parametrize(("drop", "runs"), [([2], [(2,)]), ([5, 1, 2, 4], [(1, 2), (4, 5)])])
def test_blocks_that_stand_together_are_one_run(drop: list[int], runs: list[tuple[int, ...]]) -> None:
    assert runs_in(drop) == runs


def test_what_cannot_be_sewn_is_told(bases: dict[str, Path], tmp_path: Path) -> None:
    base = make_model("llama", tmp_path / "base")
    with pytest.raises(SpecError, match=r"v\.seam: nothing stands before block 0"):
        check_blocks(PruneBlocks(blocks=(0,), seam="scale"), "v", "b", locked(base))
    with pytest.raises(StageError, match="nothing stands before block 0"):
        sew(load(base), [0, 1], some_windows(), seam="scale", forward_tokens=256)
    with pytest.raises(StageError, match="it takes two or more"):
        sew(load(base), [1], some_windows()[:1], seam="scale", forward_tokens=256)

"""What is measured on contexts with several completions, each read once, is what one example at a time gives in float64."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from paretune.data.trees import Example, unshared
from paretune.model.blocks import block_list
from paretune.pipeline.block_search import runs_of
from paretune.variants import calibration
from paretune.variants.calibration import Window
from paretune.variants.choose import choose_by_loss, choose_by_turn, choose_run, race_by_loss
from paretune.variants.cuts import find_cuts, narrow_heads, narrow_mlp
from paretune.variants.gguf import importance_of
from paretune.variants.seam import sew
from paretune.variants.width import loss_slopes, second_moments
from tests.tiny import NUM_BLOCKS, SLIDING_WINDOW, VOCABULARY_SIZE

LONG = 2 * SLIDING_WINDOW + 3
SHAPES = (((13, (7, 4, 5)), (9, (3,)), (0, (11,)), (LONG, (5, 12))), ((6, (8, 2)),), ((10, (4, 4)), (3, (9,))))
"""By document and window the tokens of its context and of its branches."""


def load(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64).eval()


def tree_windows(shapes: Sequence[Sequence[tuple[int, Sequence[int]]]] = SHAPES) -> list[Window]:
    generator = np.random.default_rng(0)

    def ids(count: int) -> np.ndarray:
        return generator.integers(2, VOCABULARY_SIZE, count).astype(np.int32)

    windows = []
    for document, texts in enumerate(shapes):
        for context, branches in texts:
            trunk = ids(context) if context else None
            examples = tuple(Example(ids(length), length // 2, trunk) for length in branches)
            windows.append(Window(str(document), examples))
    return windows


def one_by_one(windows: Sequence[Window]) -> list[Window]:
    """The same, each example a row of its own."""
    return [Window(window.document, tuple(map(unshared, window.examples))) for window in windows]


def positions_of(model: PreTrainedModel) -> list[int]:
    """Told of each pass how many positions the first block is called on."""
    counts: list[int] = []
    block_list(model)[1][0].register_forward_pre_hook(
        lambda _, args, kwargs: counts.append((args[0] if args else kwargs["hidden_states"])[..., 0].numel()), with_kwargs=True
    )
    return counts


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3", "gpt2", "llama", "opt"])
def test_choices_measure_what_one_example_at_a_time_gives(architecture: str, bases: dict[str, Path]) -> None:
    model, windows, runs = load(bases[architecture]), tree_windows(), runs_of(NUM_BLOCKS, 2)
    for measure in (
        lambda texts: choose_by_loss(model, texts, 2, forward_tokens=64),
        lambda texts: race_by_loss(model, texts, 2, passes=1e9, forward_tokens=64),
        lambda texts: choose_run(model, texts, runs),
        *(lambda texts, by=by: choose_by_turn(model, texts, 2, choose=by) for by in ("influence", "angular", "taylor")),
    ):
        found, expected = measure(windows), measure(one_by_one(windows))
        assert found.removed == expected.removed
        assert found.scores.keys() == expected.scores.keys()
        assert found.computed == expected.computed != "one by one" or found.tried == "runs"
        for removed, sums in expected.scores.items():
            # Exact to the norms of these models, which round to float32.
            np.testing.assert_allclose(found.scores[removed], sums, rtol=1e-5, atol=1e-5 * np.abs(sums).max())


def test_a_context_is_read_once(bases: dict[str, Path]) -> None:
    model = load(bases["llama"])
    windows = tree_windows([[(300, [8] * 6)]] * 3)
    counts = positions_of(model)
    choose_by_turn(model, windows, 1, choose="influence")
    assert counts == [17 * 64]  # 3 (300 + 48) tokens
    counts.clear()
    choose_by_turn(model, one_by_one(windows), 1, choose="influence")
    assert sum(counts) == 3 * 6 * 320


def test_an_architecture_that_mixes_branches_reads_one_example_at_a_time(
    bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, windows = load(bases["llama"]), tree_windows()
    expected = choose_by_loss(model, windows, 1, forward_tokens=64)
    monkeypatch.setattr(calibration, "mixing", lambda _: "as it likes")
    found = choose_by_loss(model, windows, 1, forward_tokens=64)
    for removed, sums in expected.scores.items():
        np.testing.assert_allclose(found.scores[removed], sums, rtol=1e-6)


def read_alone(model: PreTrainedModel, module: nn.Module, windows: Sequence[Window]) -> np.ndarray:
    """What `module` is given of every token, a context once, [N, C]: each example read by itself."""
    given: list[np.ndarray] = []
    handle = module.register_forward_pre_hook(lambda _, args: given.append(args[0][0].detach().numpy()))
    rows = []
    for window in windows:
        for number, example in enumerate(window.examples):
            with torch.no_grad():
                model(input_ids=torch.from_numpy(unshared(example).ids).long()[None], use_cache=False)
            rows.append(given.pop()[0 if number == 0 or example.trunk is None else len(example.trunk) :])
    handle.remove()
    return np.concatenate(rows)


@pytest.mark.parametrize("architecture", ["gemma3", "llama"])
def test_moments_and_slopes_of_units_are_those_of_one_example_at_a_time(architecture: str, bases: dict[str, Path]) -> None:
    model, windows = load(bases[architecture]), tree_windows()
    for cuts in (find_cuts(model, narrow_mlp(model.config, lambda _: 32)), find_cuts(model, narrow_heads(model.config, 1))):
        projections, units = [cut.projection for cut in cuts], [cut.channels_C for cut in cuts]
        moments = second_moments(model, projections, windows, 64, lambda **_: None)
        for block in (0, NUM_BLOCKS - 1):
            read = read_alone(model, projections[block], windows)
            np.testing.assert_allclose(moments[block], read.T @ read / len(read), rtol=1e-4, atol=1e-5)
        slopes, expected = (loss_slopes(model, projections, units, texts) for texts in (windows, one_by_one(windows)))
        for found, alone in zip(slopes, expected, strict=True):
            np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-6)


def test_importance_for_gguf_is_that_of_one_example_at_a_time(bases: dict[str, Path]) -> None:
    model, windows = load(bases["llama"]), tree_windows()
    importance = importance_of(model, windows)
    for name in ("model.layers.0.self_attn.q_proj", f"model.layers.{NUM_BLOCKS - 1}.mlp.down_proj", "lm_head"):
        read = read_alone(model, model.get_submodule(name), windows)
        np.testing.assert_allclose(importance[name], np.square(read).mean(0), rtol=1e-4)


def test_a_seam_sees_a_context_once(bases: dict[str, Path]) -> None:
    # With one branch each, a tree has the tokens of the example alone.
    windows = tree_windows([[(12, (6,)), (9, (5,))], [(20, (7,))], [(11, (9,))], [(8, (3,))]])
    sewn = []
    for texts in (windows, one_by_one(windows)):
        model = load(bases["llama"])
        (seam,) = sew(model, [1, 2], texts, seam="linear", forward_tokens=64)
        sewn.append((seam, find_cuts(model, narrow_mlp(model.config, lambda width: width - 1))[0].matrix_DC().detach().numpy()))
    assert sewn[0][0].explained == pytest.approx(sewn[1][0].explained, rel=1e-5)
    assert sewn[0][0].ridge == sewn[1][0].ridge
    np.testing.assert_allclose(sewn[0][1], sewn[1][1], rtol=1e-4, atol=1e-6)
    # With several, the context is one of the texts that are fit to and not several.
    model = load(bases["llama"])
    several = tree_windows([[(12, (6, 5, 4))], [(20, (7, 2))]])
    (seam,) = sew(model, [1, 2], several, seam="linear", forward_tokens=64)
    assert seam.explained <= 1

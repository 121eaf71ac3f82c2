"""The walk over the depth equals removing each set of blocks live, on every architecture, and computes no more than it must."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from paretune.model.blocks import remove_blocks
from paretune.variants.walk import agrees, block_inputs, live_removals, make_walk, sets_of
from tests.tiny import ARCHITECTURES, NUM_BLOCKS, SLIDING_WINDOW, VOCABULARY_SIZE, make_model

ROWS, TOKENS = 3, 2 * SLIDING_WINDOW + 5
BLOCKS = range(NUM_BLOCKS)


def load(directory: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


def some_ids() -> torch.Tensor:
    return torch.randint(2, VOCABULARY_SIZE, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
def last_states(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    return model.base_model(input_ids=ids, use_cache=False).last_hidden_state


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_removal_of_one_two_and_three_blocks_is_that_of_the_model_without_them(
    architecture: str, bases: dict[str, Path]
) -> None:
    ids = some_ids()
    model = load(bases[architecture])
    walk = make_walk(model, forward_tokens=2 * TOKENS)
    expected = dict(live_removals(model, ids, sets_of(BLOCKS, 3)))
    for count in (1, 2, 3):
        found = {removed: difference(states, expected[removed]) for removed, states in walk.removals(ids, BLOCKS, count)}
        assert sorted(found) == sorted(sets_of(BLOCKS, count))
        assert max(found.values()) < 1e-5
        assert agrees(walk, count)
    for removed in [(0,), (1,), (2,), (3,), (0, 2), (1, 3)]:
        pruned = load(bases[architecture])
        remove_blocks(pruned, removed, base_fingerprint="")
        assert difference(expected[removed], last_states(pruned, ids)) < 1e-5


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3", "smollm3"])
def test_removals_from_what_is_left_are_told_by_their_place_in_the_whole(architecture: str, bases: dict[str, Path]) -> None:
    ids, model = some_ids(), load(bases[architecture])
    expected = dict(live_removals(model, ids, [(1,), (0, 1), (1, 2), (1, 3)]))
    found = dict(make_walk(model, forward_tokens=4096).removals(ids, [0, 2, 3], 1))
    assert found.keys() == expected.keys()
    assert max(difference(found[removed], expected[removed]) for removed in found) < 1e-5


def test_rows_padded_on_the_right_do_not_move_what_stands_before(bases: dict[str, Path]) -> None:
    ids, model = some_ids(), load(bases["gemma3"])
    walk = make_walk(model, forward_tokens=4096)
    short = {removed: states.clone() for removed, states in walk.removals(ids[:, :11], BLOCKS, 1)}
    for removed, states in walk.removals(ids, BLOCKS, 1):
        assert difference(states[:, :11], short[removed]) < 1e-5


@pytest.mark.parametrize(("num_blocks", "count", "expected"), [(16, 1, 136), (12, 1, 78), (12, 2, 298), (8, 1, 36)])
def test_what_is_shared_is_computed_once(num_blocks: int, count: int, expected: int, tmp_path: Path) -> None:
    """A block runs once for each set of at most `count` of the blocks before it."""
    model = load(make_model("llama", tmp_path, num_hidden_layers=num_blocks))
    walk = make_walk(model, forward_tokens=4096)
    rows = 0

    def count_rows(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        nonlocal rows
        rows += len(args[0])

    for block in model.model.layers:
        block.mlp.register_forward_pre_hook(count_rows)  # the block itself is also called where it is replaced
    assert len(list(walk.removals(some_ids()[:1], range(num_blocks), count))) == len(sets_of(range(num_blocks), count))
    assert (
        rows
        == expected
        == sum(math.comb(depth, size) for depth, size in itertools.product(range(num_blocks), range(count + 1)))
    )


def test_a_model_that_acts_between_its_blocks_is_found_out(bases: dict[str, Path]) -> None:
    model = load(bases["llama"])
    sound = make_walk(model, forward_tokens=4096)
    assert agrees(sound, 1)
    between = Between(model.model.norm)
    model.model.layers[1].register_forward_hook(between.remember)
    model.model.norm = between
    assert not agrees(sound, 1)


class Between(nn.Module):
    """A final norm that adds what an earlier block gave out, which no block is called with."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.seen = norm, []

    def remember(self, _: nn.Module, __: object, output: torch.Tensor) -> None:
        self.seen = [output]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.norm(hidden + self.seen[0][: len(hidden), : hidden.shape[1]])


def test_blocks_that_cannot_be_called_apart_are_found_out(bases: dict[str, Path]) -> None:
    model = load(bases["llama"])
    walk = make_walk(model, forward_tokens=4096)

    def only_rows_of_two(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if len(args[0]) != 2:
            raise RuntimeError("the batch is part of the architecture")

    model.model.layers[1].register_forward_pre_hook(only_rows_of_two)
    assert not agrees(walk, 1)


def test_the_model_computes_as_before_afterwards(bases: dict[str, Path]) -> None:
    ids, model = some_ids(), load(bases["opt"])
    before = last_states(model, ids)
    walk = make_walk(model, forward_tokens=4096)
    list(walk.removals(ids, BLOCKS, 2))
    next(walk.removals(ids, BLOCKS, 1))
    assert torch.equal(last_states(model, ids), before)
    assert "forward" not in vars(walk.blocks[0])


@pytest.mark.parametrize("architecture", ["gpt2", "gemma", "opt"])
def test_the_inputs_of_blocks_are_those_of_the_whole_model(architecture: str, bases: dict[str, Path]) -> None:
    ids, model = some_ids(), load(bases[architecture])
    states = block_inputs(model, ids)
    assert len(states) == NUM_BLOCKS + 1
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True).hidden_states
    assert all(torch.equal(*pair) for pair in zip(states[:-1], expected[:-1], strict=True))

"""The final hidden states of a model without each of its blocks, and without each set of them, in one walk over its depth.

All models that have the same blocks up to some depth share their state there: it is computed once. So the whole model and its
N single removals take N (N + 1) / 2 block evaluations instead of N^2, and all states of one depth go through a block
together. What a block is called with (masks by layer type, rotary embeddings, positions) and what stands
before and after the blocks is the model's own public forward, with the blocks replaced. `agrees` compares with live removal.

Legend: R rows, S rows of several states, T positions, D width of the hidden states.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from paretune.model.blocks import REFUSALS, block_list, skipped_blocks
from paretune.variants.proof import compute_at_once, narrow_windows, probe_of, tolerance_of, windows_of

_PROBE_TOKENS = 4
_CPU_TOKENS = 1024
"""Of one call at most on a CPU, whose caches hold the activations of no more: 4,096 take 5 to 10 % longer a token."""
Removed = tuple[int, ...]
"""Blocks left out, in ascending order; empty for the whole model."""
Run = Callable[[int, torch.Tensor], None]
"""Run block `index` on states [S, T, D], in place."""


@dataclass(frozen=True)
class Walk:
    """A model's blocks, called one by one."""

    model: PreTrainedModel
    blocks: nn.ModuleList
    rests: tuple[tuple[Any, ...] | None, ...]
    """What each block returns after the hidden state; None where it returns the state alone."""
    forward_tokens: int
    """Of one call of a block at most, but never less than one row."""
    emit: Callable[[int], None] = lambda _: None
    """Told after each call of a block how many rows of the text went through it."""

    @torch.no_grad()
    def removals(
        self, ids_RT: torch.Tensor, remaining: Sequence[int], count: int, among: Sequence[int] | None = None
    ) -> Iterator[tuple[Removed, torch.Tensor]]:
        """(all removed, last hidden states [R, T, D]) of the blocks `remaining` alone and without each set of at most `count`.

        The sets are of the blocks `among`, if given. The states live until the next are asked for.
        Rows are causal and from position 0, so what pads them on the right reaches no state before it.
        """
        gone = [block for block in range(len(self.blocks)) if block not in remaining]
        calls = self._enter(ids_RT[:1])
        states_RTD = _hidden(*self._enter(ids_RT)[0]).clone()

        def run(index: int, states_STD: torch.Tensor) -> None:
            # The arguments are those of one row, which all rows share: they broadcast.
            args, kwargs = calls[index]
            for part_STD in states_STD.split(max(1, self.forward_tokens // states_STD.shape[1])):
                if args:
                    output = self.blocks[index](part_STD, *args[1:], **kwargs)
                else:
                    output = self.blocks[index](**kwargs | {"hidden_states": part_STD})
                part_STD.copy_(_state(output))
                self.emit(len(part_STD))

        for removed, final_RTD in _removals(run, states_RTD, remaining, count, remaining if among is None else among):
            yield tuple(sorted((*gone, *removed))), self._leave(ids_RT[:1], final_RTD)

    def _enter(self, ids_RT: torch.Tensor) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """What the model calls each block with, the hidden state of the first block being right."""
        calls = []

        def block(index: int, *args: Any, **kwargs: Any) -> Any:
            calls.append((args, kwargs))
            return self._returned(index, _hidden(args, kwargs))

        with _replaced(self.blocks, block):
            self.model.base_model(input_ids=ids_RT, use_cache=False)
        return calls

    def _leave(self, ids_1T: torch.Tensor, final_RTD: torch.Tensor) -> torch.Tensor:
        """What the model makes of the states after its last block, [R, T, D]."""

        def block(index: int, *args: Any, **kwargs: Any) -> Any:
            is_last = index == len(self.blocks) - 1
            return self._returned(index, final_RTD if is_last else _hidden(args, kwargs))

        with _replaced(self.blocks, block):
            return self.model.base_model(input_ids=ids_1T, use_cache=False).last_hidden_state

    def _returned(self, index: int, states_RTD: torch.Tensor) -> Any:
        rest = self.rests[index]
        return states_RTD if rest is None else (states_RTD, *rest)


@torch.no_grad()
def make_walk(model: PreTrainedModel, *, forward_tokens: int) -> Walk:
    """The walk over the blocks of `model`, which is in evaluation mode; StageError where its blocks cannot be found."""
    blocks = block_list(model)[1]
    outputs: list[Any] = []
    handles = [block.register_forward_hook(lambda _block, _args, output: outputs.append(output)) for block in blocks]
    try:
        model.base_model(input_ids=torch.zeros((1, _PROBE_TOKENS), dtype=torch.long, device=model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    rests = tuple(tuple(output[1:]) if isinstance(output, tuple | list) else None for output in outputs)
    return Walk(model, blocks, rests, min(forward_tokens, _CPU_TOKENS) if model.device.type == "cpu" else forward_tokens)


@torch.no_grad()
def agrees(walk: Walk, count: int) -> bool:
    """Whether the walk gives the states of live removal, for a set of `count` blocks in the middle of the depth.

    Tried on two short rows, once more with narrow sliding windows, as in `proof.py`. False also where the architecture does
    not let its blocks be called apart.
    """
    probe_1T = probe_of(walk.model)
    ids_RT = torch.cat([probe_1T, probe_1T.flip(1)])
    if not _agrees_on(walk, ids_RT, count):
        return False
    with narrow_windows(walk.model):
        return not windows_of(walk.model) or _agrees_on(walk, ids_RT, count)


@torch.no_grad()
def live_removals(
    model: PreTrainedModel, ids_RT: torch.Tensor, sets: Sequence[Removed]
) -> Iterator[tuple[Removed, torch.Tensor]]:
    """(removed, last hidden states [R, T, D]) without each of `sets`, skipped in one evaluation each: correct wherever hooks
    are."""
    for removed in sets:
        with skipped_blocks(model, removed):
            final_RTD = model.base_model(input_ids=ids_RT, use_cache=False).last_hidden_state
        yield removed, final_RTD


def sets_of(blocks: Sequence[int], count: int) -> list[Removed]:
    """All sets of at most `count` of `blocks`, the empty one first."""
    return [removed for size in range(count + 1) for removed in itertools.combinations(blocks, size)]


@torch.no_grad()
def block_inputs(model: PreTrainedModel, ids_RT: torch.Tensor) -> list[torch.Tensor]:
    """The hidden states before each block, and after the last: N + 1 of [R, T, D]."""
    states: list[torch.Tensor] = []
    blocks = block_list(model)[1]

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(_hidden(args, kwargs).clone())

    handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
    handles.append(blocks[-1].register_forward_hook(lambda _block, _args, output: states.append(_state(output).clone())))
    try:
        model.base_model(input_ids=ids_RT, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return states


def _agrees_on(walk: Walk, ids_RT: torch.Tensor, count: int) -> bool:
    remaining = range(len(walk.blocks))
    first = (len(remaining) - count) // 2
    chosen = tuple(range(first, first + count))
    (_, expected_RTD), *_ = live_removals(walk.model, ids_RT, [chosen])
    try:
        removals = walk.removals(ids_RT, remaining, count, among=chosen)
        walked_RTD = next(final_RTD for removed, final_RTD in removals if removed == chosen)
    except torch.OutOfMemoryError:
        raise
    except REFUSALS:
        return False
    if walked_RTD.shape != expected_RTD.shape:
        return False
    difference = (walked_RTD.double() - expected_RTD.double()).abs().max() / expected_RTD.double().abs().max()
    return bool(difference <= tolerance_of(walk.model, compute_at_once(walk.model)))  # not true of a NaN


def _removals(
    run: Run, states_RTD: torch.Tensor, blocks: Sequence[int], count: int, among: Sequence[int]
) -> Iterator[tuple[Removed, torch.Tensor]]:
    """(removed, states after the last of `blocks`) for each set of at most `count` of `among`.

    For one removal all states go through a block together; of several, the first is fixed and the others are walked from there,
    so that memory holds N + count states however many sets there are.
    """
    if count <= 1:
        sets: list[Removed] = [()]
        batch_KRTD = states_RTD.new_empty(1 + sum(block in among for block in blocks), *states_RTD.shape)
        batch_KRTD[0] = states_RTD
        for block in blocks:
            running = len(sets)
            if block in among:
                batch_KRTD[running] = batch_KRTD[0]
                sets.append((block,))
            run(block, batch_KRTD[:running].flatten(0, 1))
        yield from zip(sets, batch_KRTD, strict=True)
        return
    current_RTD = states_RTD.clone()
    for position, block in enumerate(blocks):
        if block in among:
            for removed, final_RTD in _removals(run, current_RTD, blocks[position + 1 :], count - 1, among):
                yield (block, *removed), final_RTD
        run(block, current_RTD)
    yield (), current_RTD


@contextmanager
def _replaced(blocks: nn.ModuleList, forward: Callable[..., Any]) -> Iterator[None]:
    """Let each block compute `forward(index, ...)` instead."""
    for index, block in enumerate(blocks):
        block.forward = partial(forward, index)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _state(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple | list) else output

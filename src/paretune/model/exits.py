"""Early exit by confidence: a token whose next one is sure after a block already leaves out the blocks above.

What is computed is defined for every token alike, of a prompt or written, by what stands before it alone: after each block with
an exit, final norm and head say the next token of whatever has not left yet; where the confidence reaches the threshold, the
state of that token stays as it is from there on. The blocks above read keys and values of the state that stayed, each by its
own norm and projections (the state propagation of CALM, arXiv 2207.07061), and the head gives what the exit said. As a state is
decided on before the next block reads it, all tokens of a text can be computed at once, a block after the other, which is
exact: scores, token trees and cached decoding are of one function, but for rounding, which may turn a confidence that is next
to the threshold as it may turn a near tie of two tokens.

`attach` computes that and saves nothing: all blocks run, and what they add to a token that has left is dropped. `serve` makes
of a pass whose tokens have all left, as when one text is written, no more than keys and values of the blocks above.
Legend: R rows, T tokens, D width, N tokens that have not left, V vocabulary.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from paretune.errors import StageError
from paretune.model.blocks import block_list
from paretune.model.forward import head_of
from paretune.model.loss import CHUNK_LOGITS, Head

Confidence = Literal["probability", "margin"]
_ATTRIBUTE = "paretune_exits"


@dataclass(eq=False)
class Exits:
    """The exits of a model, and what has left in its last pass."""

    after: tuple[int, ...]
    """Blocks, ascending."""
    threshold: float | None
    """None: nothing leaves."""
    confidence: Confidence
    norm: Callable[[torch.Tensor], torch.Tensor]
    """From the states after a block to those that the head reads."""
    head: Head
    num_blocks: int
    left_RT: torch.Tensor
    depths_RT: torch.Tensor
    """Blocks that ran for each token."""
    serving: bool = False
    said: torch.Tensor | None = None
    """Of one that serves, what the module of the head gave where all tokens of a pass left at once."""

    @property
    def all_left(self) -> bool:
        """Whether nothing of the pass goes on."""
        return bool(self.left_RT.all())

    def leave(self, block: int, states_RTD: torch.Tensor) -> None:
        """Let the tokens leave whose next one is sure in the states after `block`."""
        if block == self.after[0]:
            self.left_RT = torch.zeros(states_RTD.shape[:2], dtype=torch.bool, device=states_RTD.device)
            self.depths_RT = torch.full_like(self.left_RT, self.num_blocks, dtype=torch.long)
            self.said = None
        staying_N = (~self.left_RT).flatten().nonzero().flatten()
        if not len(staying_N):
            return
        states_ND = states_RTD.flatten(0, 1).index_select(0, staying_N)
        size = max(1, CHUNK_LOGITS // self.head.num_words)
        for numbers_N, part_ND in zip(staying_N.split(size), states_ND.split(size), strict=True):
            said_NV = self.head.module(self.norm(part_ND))
            leaving_N = numbers_N[confidences(self.head.scaled(said_NV), self.confidence) >= self.threshold]
            self.left_RT.view(-1)[leaving_N] = True
            self.depths_RT.view(-1)[leaving_N] = block + 1
            if self.serving and len(leaving_N) == self.left_RT.numel():
                self.said = said_NV


def confidences(logits_NV: torch.Tensor, kind: Confidence) -> torch.Tensor:
    """How sure the next token is, from 0 to 1."""
    top_N2 = logits_NV.float().softmax(-1).topk(2).values
    return top_N2[:, 0] if kind == "probability" else top_N2[:, 0] - top_N2[:, 1]


def attach(model: PreTrainedModel, after: tuple[int, ...], threshold: float | None, confidence: Confidence) -> Exits:
    """Give `model`, which is in evaluation mode, exits after some of its blocks; StageError where its architecture does not
    show what makes its last states of those after a block."""
    norm, blocks, nothing = final_norm(model), block_list(model)[1], torch.zeros(0, 0, dtype=torch.bool)
    exits = Exits(after, threshold, confidence, norm, head_of(model), len(blocks), nothing, nothing)

    def hook(block: int, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if exits.threshold is None:
            return output
        before, states = args[0] if args else kwargs["hidden_states"], _states_of(output)
        if block > after[0]:
            states = torch.where(exits.left_RT[..., None], before, states)
        if block in after:
            exits.leave(block, states)
        return type(output)((states, *output[1:])) if isinstance(output, tuple | list) else states

    for block in range(after[0], len(blocks)):
        blocks[block].register_forward_hook(
            lambda _module, args, kwargs, output, block=block: hook(block, args, kwargs, output), with_kwargs=True
        )
    setattr(model, _ATTRIBUTE, exits)
    return exits


def exits_of(model: nn.Module) -> Exits | None:
    """The exits of `model`, if it has any."""
    return getattr(model, _ATTRIBUTE, None)


def serve(model: PreTrainedModel) -> None:
    """Let passes of `model`, if it has exits, leave out what nobody reads once all of their tokens have left."""
    exits = exits_of(model)
    if exits is None or exits.threshold is None:
        return
    exits.serving = True
    for block in block_list(model)[1][exits.after[0] + 1 :]:
        block.forward = _keys_and_values_alone(block.forward, exits)
    head, through = exits.head.module, exits.head.module.forward

    def once(states: torch.Tensor) -> torch.Tensor:
        said, exits.said = exits.said, None
        known = said is not None and exits.all_left and states.shape[:-1].numel() == said.shape[0]
        return said.view(*states.shape[:-1], -1) if said is not None and known else through(states)

    head.forward = once


def _keys_and_values_alone(through: Callable[..., Any], exits: Exits) -> Callable[..., Any]:
    """The forward of a block that ends where keys and values are in the cache, if all tokens have left."""
    kind: list[Any] = []

    def forward(*args: Any, **kwargs: Any) -> Any:
        cached = any(isinstance(given, Cache) for given in (*args, *kwargs.values()))
        if not kind or not cached or not exits.all_left:
            output = through(*args, **kwargs)
            kind[:] = [type(output), len(output)] if isinstance(output, tuple | list) else [None, 0]
            return output
        with suppress(_Kept):
            through(*map(_keeping, args), **{name: _keeping(given) for name, given in kwargs.items()})
        states = args[0] if args else kwargs["hidden_states"]
        return kind[0]((states, *[None] * (kind[1] - 1))) if kind[0] else states

    return forward


class _Kept(Exception):
    """Keys and values are in the cache."""


class _OnlyKeep:
    """A cache that ends the pass through a block once it has its keys and values."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def update(self, *args: Any, **kwargs: Any) -> None:
        self._cache.update(*args, **kwargs)
        raise _Kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def _keeping(given: Any) -> Any:
    return _OnlyKeep(given) if isinstance(given, Cache) else given


def _states_of(output: Any) -> torch.Tensor:
    states: torch.Tensor = output[0] if isinstance(output, tuple | list) else output
    return states


@torch.no_grad()
def final_norm(model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor]:
    """The module of `model` that makes its last hidden states of those after the last block, or none where these are the same;
    found by a pass of a few tokens. StageError where it is not one module."""
    after: list[torch.Tensor] = []
    makers: list[tuple[nn.Module, torch.Tensor]] = []

    def saw(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        given_after = after and args and torch.is_tensor(args[0]) and torch.is_tensor(output)
        if given_after and args[0].shape == output.shape and torch.equal(args[0].flatten(), after[-1].flatten()):
            makers.append((module, output))

    last = block_list(model)[1][-1]
    handles = [module.register_forward_hook(saw) for module in model.base_model.modules() if not any(module.children())]
    handles.append(last.register_forward_hook(lambda _module, _args, output: after.append(_states_of(output))))
    ids = torch.arange(1, 9, device=model.device)[None] % model.config.get_text_config().vocab_size
    try:
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    for module, output in makers:
        if torch.equal(output.flatten(), states.flatten()):
            return module
    if torch.equal(after[-1].flatten(), states.flatten()):
        return nn.Identity()
    raise StageError(
        f"{type(model).__name__} makes its last states of those after its blocks by more than one module, so there is no early "
        "exit of it"
    )

"""Attention over token trees: each token over its ancestors and itself, registered as one more attention of transformers.

The model's own code decides which layer gets which mask (full, sliding window, chunks) and calls what is registered here: the
mask function once for each kind of mask, with a rule over positions, and the attention function in every layer. The rule is
asked about depths in the tree, so a window reaches back along a token's ancestors. A row is cut into blocks of queries, each
with the keys that any of them sees: a long trunk costs what a causal mask costs, and a branch sees its trunk and itself.

Legend: T tokens of the row, Q queries and S keys of a block, H heads, K heads of keys, G = H / K, D width of a head.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from paretune.data.trees import Batch, Forest, rounded
from paretune.model.dropout import drop, keep_mask
from paretune.model.flex import attend_by_flex, flex_mask, flex_runs, has_flex
from paretune.model.last_block import reading_targets_only, rows_of

NAME = "paretune_trees"
QUERIES = 128
"""Queries of a block. More would mean fewer and larger products, and more of them under the mask."""
QUERY_STEP, KEY_STEP = 64, 128
"""Blocks are filled up to multiples of these: every new shape of a bfloat16 product costs about 1 MB (`trees.ROUND_TO`)."""
_FOREST: ContextVar[Forest | None] = ContextVar("forest", default=None)


@dataclass(frozen=True, eq=False)
class Block:
    """Queries `start:stop` of the row over the keys `keys:stop`."""

    start: int
    stop: int
    keys: int
    mask_QS: torch.Tensor | None
    """What is added to the scores, 0 or -inf; None where every query sees every key."""
    num_masked: int
    """Every query sees the keys before the last so many."""


@dataclass(frozen=True, eq=False)
class TreeMask:
    """The attention mask of one kind of layer, as the attention function takes it."""

    blocks: tuple[Block, ...]
    flex: BlockMask | None = None
    """The same for FlexAttention, which is used on CUDA."""


@contextmanager
def attending(model: PreTrainedModel, batch: Batch, *, whole: bool = False) -> Iterator[None]:
    """Let `model` attend along the trees of `batch` (as ever, where it has none), in the backward pass too if it is inside.

    Of what the last block gives, only the states that predict a target are right, unless it is to be `whole`.
    """
    if batch.forest is None:
        yield
        return
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        with using_forest(batch.forest), nullcontext() if whole else reading_targets_only(model, batch):
            yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def using_forest(forest: Forest) -> Iterator[None]:
    """Let `mask_of_trees` make the masks of `forest`."""
    token = _FOREST.set(forest)
    try:
        yield
    finally:
        _FOREST.reset(token)


def mask_of_trees(*, mask_function: Callable[..., torch.Tensor], device: torch.device, **_: Any) -> TreeMask:
    """The mask function: `mask_function(batch, head, query, key)` is the rule of a kind of layer over positions."""
    forest = _FOREST.get()
    if forest is None:
        raise ValueError("attention over trees is used without a forest")
    zero = torch.zeros((), dtype=torch.long)
    trees, branches, depths = forest.trees_T, forest.branches_T, forest.depths_T
    blocks = []
    for start, stop in block_bounds(forest, join=torch.is_grad_enabled()):
        first = int(np.searchsorted(trees, trees[start]))
        queries, keys = np.arange(start, stop), np.arange(first, stop)
        seen_QS = (trees[queries][:, None] == trees[keys]) & (keys <= queries[:, None])
        seen_QS &= (branches[keys] == 0) | (branches[queries][:, None] == branches[keys])
        depths_Q1, depths_1S = torch.from_numpy(depths[queries])[:, None], torch.from_numpy(depths[keys])[None]
        seen_QS &= mask_function(zero, zero, depths_Q1, depths_1S).numpy()
        skip = int(seen_QS.any(0).argmax())
        seen_QS = seen_QS[:, skip:]
        hidden = np.flatnonzero(~seen_QS.all(0))
        mask_QS, num_masked = None, 0
        if len(hidden):
            mask_QS = torch.from_numpy(np.where(seen_QS, 0.0, -np.inf).astype(np.float32)).to(device)
            num_masked = seen_QS.shape[1] - int(hidden[0])
        blocks.append(Block(start, stop, first + skip, mask_QS, num_masked))
    return TreeMask(tuple(blocks), flex_mask(forest, mask_function, device) if has_flex(torch.device(device)) else None)


def attention_of_trees(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any,
    scaling: float | None = None, dropout: float = 0.0, softcap: float | None = None, **others: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """The attention function: query [R, H, T, D], key and value [R, K, T, D] to [R, T, H, D], all rows along the same trees.

    Raises TypeError or ValueError for what cannot be computed along trees.
    """
    if not isinstance(attention_mask, TreeMask):
        raise TypeError(f"{type(module).__name__} makes a mask of its own")
    unknown = [name for name in ("position_bias", "s_aux") if others.get(name) is not None]
    if unknown or not getattr(module, "is_causal", True):
        raise ValueError(f"{type(module).__name__} attends in a way that is not known here: {', '.join(unknown)}")
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attention_mask.flex is not None and not dropout and flex_runs(query, key.shape[1], softcap):
        return attend_by_flex(query, key, value, attention_mask.flex, scale, softcap).transpose(1, 2), None
    with torch.autocast(query.device.type, enabled=False):
        blocks, needed = attention_mask.blocks, rows_of(module)
        if needed is not None:  # those with a query that is
            blocks = tuple(b for b in blocks if np.searchsorted(needed, b.start) < np.searchsorted(needed, b.stop))
        rows = zip(query, key, value, strict=True)
        outs = [_TreeAttention.apply(*row, blocks, scale, softcap, dropout) for row in rows]
    return outs[0][None] if len(outs) == 1 else torch.stack(outs), None


def block_bounds(forest: Forest, *, join: bool) -> list[tuple[int, int]]:
    """Where the blocks of queries begin and end: trunks, the branches of a tree, and with `join` runs of small trees, in equal
    parts. Without it a tree is computed to the last bit as if it stood alone: its sums do not begin at the keys of another.
    """
    trees, in_branch = forest.trees_T, forest.branches_T > 0
    edges = np.flatnonzero(np.diff(trees) | (np.diff(in_branch.astype(np.int8)) != 0)) + 1
    parts: list[tuple[int, int]] = []
    for start, stop in zip([0, *edges.tolist()], [*edges.tolist(), len(forest)], strict=True):
        fits = parts and stop - parts[-1][0] <= QUERIES
        # A trunk's keys are also those of its branches, so joining either to its like costs little.
        if fits and (trees[parts[-1][1] - 1] == trees[start] or (join and stop - start <= QUERIES // 2)):
            parts[-1] = (parts[-1][0], stop)
        else:
            parts.append((start, stop))
    bounds = []
    for start, stop in parts:
        count = -(-(stop - start) // QUERIES)
        step = rounded(-(-(stop - start) // count), QUERY_STEP)
        bounds += [(begin, min(begin + step, stop)) for begin in range(start, stop, step)]
    return bounds


class _TreeAttention(torch.autograd.Function):
    """Block by block; the weights are computed again in the backward pass. [H, T, D] and [K, T, D] to [T, H, D].

    Queries of no block get zeros.

    The forward pass is SDPA's own, which keeps no weights and touches little memory. Its backward pass on a CPU takes twice
    as long as these products in buffers that are used again for every block.
    """

    @staticmethod
    def forward(
        ctx: Any, query_HTD: torch.Tensor, key_KTD: torch.Tensor, value_KTD: torch.Tensor, blocks: tuple[Block, ...],
        scale: float, softcap: float | None, dropout: float,
    ) -> torch.Tensor:  # fmt: skip
        keeps: list[torch.Tensor] = []
        out_THD = query_HTD.new_zeros(query_HTD.shape[1], len(query_HTD), query_HTD.shape[2])
        if softcap is None and not dropout:
            groups = len(query_HTD) // len(key_KTD)
            keys_HTD, values_HTD = (x.repeat_interleave(groups, 0) if groups > 1 else x for x in (key_KTD, value_KTD))
            for block in blocks:
                key, value = (x[None, :, block.keys : block.stop] for x in (keys_HTD, values_HTD))
                query, mask = query_HTD[None, :, block.start : block.stop], block.mask_QS
                mask = None if mask is None else mask.to(query.dtype)
                out = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
                out_THD[block.start : block.stop] = out[0].transpose(0, 1)
        else:  # what SDPA does not have on a CPU
            room = _room(2, blocks, query_HTD)
            for block in blocks:
                query, key, value = _cut(block, query_HTD, key_KTD, value_KTD)
                weights, _ = _weights(block, query, key, scale, softcap, room)
                if dropout:
                    keeps.append(keep_mask(weights, dropout))
                    weights = drop(weights, keeps[-1], dropout)
                _put(out_THD.transpose(0, 1), torch.bmm(weights, value), block)
        ctx.save_for_backward(query_HTD, key_KTD, value_KTD, *keeps)
        ctx.blocks, ctx.scale, ctx.softcap, ctx.dropout = blocks, scale, softcap, dropout
        return out_THD

    @staticmethod
    def backward(ctx: Any, grad_THD: torch.Tensor) -> Any:
        query_HTD, key_KTD, value_KTD, *keeps = ctx.saved_tensors
        grad_HTD, num_key_heads, scale = grad_THD.transpose(0, 1), len(key_KTD), ctx.scale
        wide = torch.promote_types(key_KTD.dtype, torch.float32)
        grad_query = torch.zeros_like(grad_THD).transpose(0, 1)
        grad_key, grad_value = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (key_KTD, value_KTD))
        room = _room(3, ctx.blocks, query_HTD)
        for index, block in enumerate(ctx.blocks):
            query, key, value = _cut(block, query_HTD, key_KTD, value_KTD)
            grad = _queries(block, grad_HTD, num_key_heads)
            weights, slope = _weights(block, query, key, scale, ctx.softcap, room)
            grad_weights = torch.bmm(grad, value.transpose(1, 2), out=_in(room[2], weights.shape))
            dropped = weights
            if ctx.dropout:
                dropped = drop(weights, keeps[index], ctx.dropout)
                grad_weights = drop(grad_weights, keeps[index], ctx.dropout)
            _add(grad_value, torch.bmm(dropped.transpose(1, 2), grad), block)
            slopes = _in(room[0], weights.shape)
            torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype, grad_input=slopes)
            if slope is not None:
                slopes = slopes * slope
            _put(grad_query, _scaled_product(slopes, key, scale), block)
            _add(grad_key, _scaled_product(slopes.transpose(1, 2), query, scale), block)
        return grad_query, grad_key.to(key_KTD.dtype), grad_value.to(value_KTD.dtype), None, None, None, None


def _weights(
    block: Block, query: torch.Tensor, key: torch.Tensor, scale: float, softcap: float | None, room: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What every query of a block takes of every key, [K, G * Q, S], and the slope of the soft cap; uses up two of `room`."""
    scores = _in(room[0], (len(query), query.shape[1], key.shape[1]))
    _scaled_product(query, key.transpose(1, 2), scale, out=scores)
    slope = None
    if softcap is not None:
        scores.div_(softcap).tanh_()
        slope = 1 - scores * scores
        scores.mul_(softcap)
    # What fills up the keys is not seen, nor what the mask hides.
    scores[:, :, : scores.shape[2] - (block.stop - block.keys)] = -torch.inf
    if block.mask_QS is not None:
        num_queries = len(block.mask_QS)
        by_query = scores.view(len(key), -1, rounded(num_queries, QUERY_STEP), scores.shape[2])
        by_query[:, :, :num_queries, -block.num_masked :] += block.mask_QS[:, -block.num_masked :].to(scores.dtype)
    return torch.softmax(scores, -1, out=_in(room[1], scores.shape)), slope


def _room(count: int, blocks: tuple[Block, ...], query_HTD: torch.Tensor) -> list[torch.Tensor]:
    """Buffers for the scores of any block."""
    sizes = [
        len(query_HTD) * rounded(block.stop - block.start, QUERY_STEP) * rounded(block.stop - block.keys, KEY_STEP)
        for block in blocks
    ]
    return [query_HTD.new_empty(max(sizes)) for _ in range(count)]


def _in(room: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return room[: math.prod(shape)].view(shape)


def _scaled_product(left: torch.Tensor, right: torch.Tensor, scale: float, out: torch.Tensor | None = None) -> torch.Tensor:
    return torch.baddbmm(left.new_empty(1, 1, 1), left, right, beta=0, alpha=scale, out=out)


def _cut(block: Block, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Queries [K, G * Q, D], and keys and values [K, S, D] after as many zeros as fill up the block's shape; contiguous, as
    products of slices take twice as long.
    """
    count = block.stop - block.keys
    filled = [x.new_empty(len(x), rounded(count, KEY_STEP), x.shape[2]) for x in (key, value)]
    for x_KSD, x_KTD in zip(filled, (key, value), strict=True):
        x_KSD[:, :-count] = 0
        x_KSD[:, -count:] = x_KTD[:, block.keys : block.stop]
    return _queries(block, query, len(key)), *filled


def _queries(block: Block, x_HTD: torch.Tensor, num_key_heads: int) -> torch.Tensor:
    """The queries of a block before as many zeros as fill up its shape, [K, G * Q, D]."""
    count = block.stop - block.start
    filled = x_HTD.new_empty(len(x_HTD), rounded(count, QUERY_STEP), x_HTD.shape[2])
    filled[:, :count] = x_HTD[:, block.start : block.stop]
    filled[:, count:] = 0
    return filled.view(num_key_heads, -1, x_HTD.shape[2])


def _put(out_HTD: torch.Tensor, part: torch.Tensor, block: Block) -> None:
    by_head = part.view(len(out_HTD), -1, part.shape[-1])
    out_HTD[:, block.start : block.stop] = by_head[:, : block.stop - block.start]


def _add(sum_KTD: torch.Tensor, part: torch.Tensor, block: Block) -> None:
    """Add what a block gives to its keys; cast before, as a sum of two dtypes takes several times as long."""
    sum_KTD[:, block.keys : block.stop].add_(part[:, block.keys - block.stop :].to(sum_KTD.dtype))


AttentionInterface.register(NAME, attention_of_trees)
AttentionMaskInterface.register(NAME, mask_of_trees)

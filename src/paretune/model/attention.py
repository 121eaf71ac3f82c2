"""Attention over token trees: each token over its ancestors and itself, registered as one more attention of transformers.

The model's own code decides which layer gets which mask (full, sliding window, chunks) and calls what is registered here: the
mask function once for each kind of mask, with a rule over positions, and the attention function in every layer. The rule is
asked about depths in the tree, so a window reaches back along a token's ancestors. A row is cut into blocks of queries, each
with the keys that any of them sees: a long trunk costs what a causal mask costs, and a branch sees its trunk and itself.

Legend: T tokens of the row, Q queries and S keys of a block, H heads, K heads of keys, G = H / K, D width of a head.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from paretune.data.trees import Batch, Forest, rounded

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
    mask_QM: torch.Tensor | None
    """What is added to the scores of the last M keys, 0 or -inf; every query sees the keys before them."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """The attention mask of one kind of layer, as the attention function takes it."""

    blocks: tuple[Block, ...]


@contextmanager
def attending(model: PreTrainedModel, batch: Batch) -> Iterator[None]:
    """Let `model` attend along the trees of `batch` (as ever, where it has none), in the backward pass too if it is inside."""
    if batch.forest is None:
        yield
        return
    before, token = model.config._attn_implementation, _FOREST.set(batch.forest)
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        _FOREST.reset(token)


def mask_of_trees(*, mask_function: Callable[..., torch.Tensor], device: torch.device, **_: Any) -> Blocks:
    """The mask function: `mask_function(batch, head, query, key)` is the rule of a kind of layer over positions."""
    forest = _FOREST.get()
    if forest is None:
        raise ValueError("attention over trees is used without a forest")
    zero = torch.zeros((), dtype=torch.long)

    def rule(depth_Q: np.ndarray, depth_S: np.ndarray) -> np.ndarray:
        queries, keys = torch.from_numpy(depth_Q)[:, None], torch.from_numpy(depth_S)[None]
        return np.broadcast_to(mask_function(zero, zero, queries, keys).numpy(), (len(depth_Q), len(depth_S)))

    return Blocks(tuple(_block(forest, rule, start, stop, device) for start, stop in block_bounds(forest)))


def attention_of_trees(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any,
    scaling: float | None = None, dropout: float = 0.0, softcap: float | None = None, **others: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """The attention function: query [1, H, T, D], key and value [1, K, T, D] to [1, T, H, D].

    Raises TypeError or ValueError for what cannot be computed along trees.
    """
    if not isinstance(attention_mask, Blocks):
        raise TypeError(f"{type(module).__name__} makes a mask of its own")
    unknown = [name for name in ("position_bias", "s_aux") if others.get(name) is not None]
    if unknown or query.shape[0] != 1 or not getattr(module, "is_causal", True):
        raise ValueError(f"{type(module).__name__} attends in a way that is not known here: {', '.join(unknown)}")
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast(query.device.type, enabled=False):
        out = _TreeAttention.apply(query[0], key[0], value[0], attention_mask.blocks, scale, softcap, dropout)
    return out[None], None


def block_bounds(forest: Forest) -> list[tuple[int, int]]:
    """Where the blocks of queries begin and end: trunks, the branches of a tree, and runs of small trees, in equal parts."""
    trees, in_branch = forest.trees_T, forest.branches_T > 0
    edges = np.flatnonzero(np.diff(trees) | (np.diff(in_branch.astype(np.int8)) != 0)) + 1
    parts: list[tuple[int, int]] = []
    for start, stop in zip([0, *edges.tolist()], [*edges.tolist(), len(forest)], strict=True):
        fits = parts and stop - parts[-1][0] <= QUERIES
        # A trunk's keys are also those of its branches, so joining either to its like costs little.
        if fits and (trees[parts[-1][1] - 1] == trees[start] or stop - start <= QUERIES // 2):
            parts[-1] = (parts[-1][0], stop)
        else:
            parts.append((start, stop))
    bounds = []
    for start, stop in parts:
        count = -(-(stop - start) // QUERIES)
        step = rounded(-(-(stop - start) // count), QUERY_STEP)
        bounds += [(begin, min(begin + step, stop)) for begin in range(start, stop, step)]
    return bounds


def _block(
    forest: Forest, rule: Callable[[np.ndarray, np.ndarray], np.ndarray], start: int, stop: int, device: torch.device
) -> Block:
    trees, branches, depths = forest.trees_T, forest.branches_T, forest.depths_T
    first = int(np.searchsorted(trees, trees[start]))
    queries, keys = np.arange(start, stop), np.arange(first, stop)
    seen = (trees[queries][:, None] == trees[keys]) & (keys <= queries[:, None])
    seen &= (branches[keys] == 0) | (branches[queries][:, None] == branches[keys])
    seen &= rule(depths[queries], depths[keys])
    skip = int(seen.any(0).argmax())
    seen = seen[:, skip:]
    hidden = np.flatnonzero(~seen.all(0))
    if not len(hidden):
        return Block(start, stop, first + skip, None)
    mask = np.where(seen[:, hidden[0] :], 0.0, -np.inf).astype(np.float32)
    return Block(start, stop, first + skip, torch.from_numpy(mask).to(device))


class _TreeAttention(torch.autograd.Function):
    """Block by block, with the weights of each block kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, query_HTD: torch.Tensor, key_KTD: torch.Tensor, value_KTD: torch.Tensor, blocks: tuple[Block, ...],
        scale: float, softcap: float | None, dropout: float,
    ) -> torch.Tensor:  # fmt: skip
        num_heads, num_tokens, width = query_HTD.shape
        out_THD = query_HTD.new_empty(num_tokens, num_heads, width)
        kept: list[torch.Tensor] = []
        for block in blocks:
            query, key, value = _gathered(block, query_HTD, key_KTD, value_KTD)
            scores = torch.baddbmm(_nothing(query), query, key.transpose(1, 2), beta=0, alpha=scale)
            if softcap is not None:
                scores.div_(softcap).tanh_()
                kept.append(scores.clone())
                scores.mul_(softcap)
            _hide(scores, block, len(key))
            weights = torch.softmax(scores, -1)
            kept.append(weights)
            if dropout:
                keep = _keep_mask(weights, dropout)
                kept.append(keep)
                weights = weights * keep / (1 - dropout)
            _scatter(out_THD, torch.bmm(weights, value), block, num_heads)
        ctx.save_for_backward(query_HTD, key_KTD, value_KTD, *kept)
        ctx.blocks, ctx.scale, ctx.softcap, ctx.dropout = blocks, scale, softcap, dropout
        return out_THD

    @staticmethod
    def backward(ctx: Any, grad_THD: torch.Tensor) -> Any:
        query_HTD, key_KTD, value_KTD, *kept = ctx.saved_tensors
        parts = iter(kept)
        accumulator = torch.float64 if query_HTD.dtype == torch.float64 else torch.float32
        grad_query = torch.empty_like(query_HTD.transpose(0, 1))
        grad_key, grad_value = (x.new_zeros(x.shape, dtype=accumulator) for x in (key_KTD, value_KTD))
        for block in ctx.blocks:
            query, key, value = _gathered(block, query_HTD, key_KTD, value_KTD)
            grad = _queries(block, grad_THD.transpose(0, 1), len(key))
            capped = None if ctx.softcap is None else next(parts)
            weights = next(parts)
            dropped, grad_weights = weights, torch.bmm(grad, value.transpose(1, 2))
            if ctx.dropout:
                keep = next(parts)
                dropped = weights * keep / (1 - ctx.dropout)
                grad_weights = grad_weights * keep / (1 - ctx.dropout)
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            if capped is not None:
                grad_scores = grad_scores * (1 - capped * capped)
            _scatter(grad_query, torch.bmm(grad_scores, key).mul_(ctx.scale), block, len(query_HTD))
            reach = block.stop - block.keys
            grad_key[:, block.keys : block.stop] += torch.bmm(grad_scores.transpose(1, 2), query)[:, -reach:]
            grad_value[:, block.keys : block.stop] += torch.bmm(dropped.transpose(1, 2), grad)[:, -reach:]
        grads = (grad_query.transpose(0, 1), grad_key.mul_(ctx.scale).to(key_KTD.dtype), grad_value.to(value_KTD.dtype))
        return *grads, None, None, None, None


def _gathered(block: Block, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Queries [K, G * Q, D], keys and values [K, S, D] of a block, filled up; the keys stand at the end of theirs."""
    num_keys = rounded(block.stop - block.keys, KEY_STEP)
    begin = block.stop - num_keys
    found = []
    for tensor in (key, value):
        part = tensor[:, max(begin, 0) : block.stop]
        found.append(nn.functional.pad(part, (0, 0, max(-begin, 0), 0)).contiguous())
    return _queries(block, query, len(key)), *found


def _queries(block: Block, tensor_HTD: torch.Tensor, num_key_heads: int) -> torch.Tensor:
    part = tensor_HTD[:, block.start : block.stop]
    num_queries = rounded(part.shape[1], QUERY_STEP)
    filled = nn.functional.pad(part, (0, 0, 0, num_queries - part.shape[1])).contiguous()
    return filled.view(num_key_heads, -1, tensor_HTD.shape[-1])


def _hide(scores: torch.Tensor, block: Block, num_key_heads: int) -> None:
    """Take away what the queries of a block do not see: the filling before the keys, and what the mask says."""
    scores[:, :, : scores.shape[2] - (block.stop - block.keys)] = -torch.inf
    if block.mask_QM is None:
        return
    num_queries, num_masked = block.mask_QM.shape
    by_query = scores.view(num_key_heads, -1, rounded(num_queries, QUERY_STEP), scores.shape[2])
    by_query[:, :, :num_queries, -num_masked:] += block.mask_QM


def _scatter(out_THD: torch.Tensor, part: torch.Tensor, block: Block, num_heads: int) -> None:
    """Put what a block gives, [K, G * Q, D] with filling, into its place."""
    by_head = part.view(num_heads, -1, part.shape[-1])
    out_THD[block.start : block.stop] = by_head[:, : block.stop - block.start].transpose(0, 1)


def _keep_mask(weights: torch.Tensor, dropout: float) -> torch.Tensor:
    return torch.empty_like(weights, dtype=torch.bool).bernoulli_(1 - dropout)


def _nothing(like: torch.Tensor) -> torch.Tensor:
    return like.new_empty(1, 1, 1)


AttentionInterface.register(NAME, attention_of_trees)
AttentionMaskInterface.register(NAME, mask_of_trees)

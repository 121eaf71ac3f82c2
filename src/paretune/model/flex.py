"""FlexAttention over token trees: on a GPU it skips what is hidden, block by block, in one kernel.

Its kernels are compiled where they run, which fails on some devices and forms of queries. So it is tried first, and where it
fails the blocks of `paretune.model.attention` take its place: slower, and the same.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from paretune.data.trees import Forest
from paretune.errors import is_out_of_memory

_PROBE = 256
_FAILURES: dict[tuple[Any, ...], str | None] = {}
"""What came of trying FlexAttention, by the form of its queries."""


def flex_mask(forest: Forest, mask_function: Callable[..., torch.Tensor], device: torch.device) -> BlockMask:
    """The mask of `forest` for FlexAttention, which skips what is hidden in blocks."""
    trees, branches, depths = (
        torch.from_numpy(array).to(device) for array in (forest.trees_T, forest.branches_T, forest.depths_T)
    )

    def seen(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        ancestor = (branches[key] == 0) | (branches[query] == branches[key])
        before = (trees[query] == trees[key]) & (key <= query)
        return before & ancestor & mask_function(batch, head, depths[query], depths[key])

    return create_block_mask(seen, None, None, len(forest), len(forest), device=device)


def attend_by_flex(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: BlockMask, scale: float, softcap: float | None
) -> torch.Tensor:
    """[1, H, T, D] from query, key and value of that form; compiled where there is a GPU."""

    def capped(score: torch.Tensor, batch: Any, head: Any, query_index: Any, key_index: Any) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    attend = _compiled_flex() if query.is_cuda else flex_attention
    score_mod = None if softcap is None else capped
    return attend(
        query, key, value, score_mod=score_mod, block_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )


def flex_failure() -> str | None:
    """Why FlexAttention has not been used in this process where it should have been; None where nothing failed."""
    return next((failure for failure in _FAILURES.values() if failure), None)


def flex_runs(query: torch.Tensor, num_key_heads: int, softcap: float | None) -> bool:
    """Whether FlexAttention compiles and runs for queries of this form, forwards and backwards: tried once.

    Where it does not, attention goes block by block through SDPA, which is slower and the same; `flex_failure` tells why.
    """
    form = (query.device, query.dtype, query.shape[1], num_key_heads, query.shape[-1], softcap is None)
    if form in _FAILURES:
        return _FAILURES[form] is None
    depths = np.arange(_PROBE)
    forest = Forest((depths >= _PROBE // 2).astype(np.int32), np.zeros(_PROBE, np.int32), depths % (_PROBE // 2))
    failure = None
    try:
        mask = flex_mask(forest, lambda batch, head, query, key: key <= query, query.device)
        sides = [query.new_ones(1, heads, _PROBE, query.shape[-1]) for heads in (query.shape[1], num_key_heads)]
        with torch.enable_grad():
            out = attend_by_flex(sides[0].requires_grad_(query.is_cuda), sides[1], sides[1], mask, 1.0, softcap)
            if query.is_cuda:  # there is no backward pass on a CPU
                out.sum().backward()
    except (RuntimeError, TypeError, ValueError, AssertionError, OSError) as error:
        if is_out_of_memory(error):
            raise
        failure = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    _FAILURES[form] = failure
    return failure is None


def has_flex(device: torch.device) -> bool:
    """Its backward pass needs a GPU."""
    return device.type == "cuda"


@functools.cache
def _compiled_flex() -> Callable[..., torch.Tensor]:
    return torch.compile(flex_attention)

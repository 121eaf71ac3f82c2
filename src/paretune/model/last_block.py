"""What the last block computes where nobody looks: left out.

The states that predict a target are all that is read of the last block. Its keys and values are needed everywhere, its queries
and its MLP at those tokens alone: beside a long context that several tasks share, a small part of a row.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from paretune.data.trees import ROUND_TO, Batch, rounded

MLP = "mlp"
"""What a block's MLP is called in nearly every architecture of transformers; where it is not, nothing is left out of it."""
_SHARE = 0.75
"""Of a row's tokens: with more of them to compute, picking them out costs more than it saves."""
_READ: ContextVar[tuple[nn.Module, np.ndarray] | None] = ContextVar("read", default=None)


@contextmanager
def reading_targets_only(model: PreTrainedModel, batch: Batch) -> Iterator[None]:
    """Inside, and in the backward pass if it is inside, the last block of `model` computes what the targets of `batch` need."""
    block, rows = last_block(model), rows_read(batch)
    if block is None or rows is None:
        yield
        return
    token = _READ.set((block, rows))
    try:
        with _at_rows(getattr(block, MLP, None), torch.from_numpy(rows).to(batch.ids_RT.device)):
            yield
    finally:
        _READ.reset(token)


def rows_of(module: nn.Module) -> np.ndarray | None:
    """The tokens whose queries are needed of an attention module, ascending; None for all of them."""
    read = _READ.get()
    return read[1] if read is not None and any(module is part for part in read[0].modules()) else None


def last_block(model: PreTrainedModel) -> nn.Module | None:
    count = model.config.get_text_config().num_hidden_layers
    lists = [module for module in model.base_model.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    return lists[0][-1] if len(lists) == 1 else None


def rows_read(batch: Batch) -> np.ndarray | None:
    """The tokens of a row whose states predict a target, ascending, filled up with others to a multiple of ROUND_TO."""
    if batch.forest is None:
        return None
    rows = np.unique(batch.hidden_N.cpu().numpy())
    filled = rounded(len(rows), ROUND_TO)
    if filled > _SHARE * len(batch.forest):
        return None
    others = np.setdiff1d(np.arange(len(batch.forest)), rows)
    return np.sort(np.concatenate([rows, others[: filled - len(rows)]]))


@contextmanager
def _at_rows(mlp: nn.Module | None, rows_N: torch.Tensor) -> Iterator[None]:
    """Inside, `mlp` computes these tokens of its row and gives zeros for the others."""
    if mlp is None:
        yield
        return
    before, forward = vars(mlp).get("forward"), mlp.forward

    def at_rows(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:  # not a function of the tokens alone
            return forward(x, *args, **kwargs)
        out_ND = forward(x.flatten(0, 1).index_select(0, rows_N)[None])[0]
        return out_ND.new_zeros(x.shape[1], out_ND.shape[1]).index_copy(0, rows_N, out_ND)[None]

    mlp.forward = at_rows
    try:
        yield
    finally:
        if before is None:
            del mlp.forward
        else:
            mlp.forward = before

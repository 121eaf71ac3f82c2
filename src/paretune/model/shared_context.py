"""Contexts that are read once, and branches that go on after them: what is kept of both, and attention over it.

A row of the cache is a document. Its context ends where its branches begin, and these lie side by side, token by token: so
what any query sees of a row lies together, and one product takes all branches of a document over its context. A pass takes one
row of tokens, without padding: first whole trees (`paretune.data.trees`), later a token of each branch that goes on.

Legend: D documents, S slots for branches, B branches, T tokens of a pass, P places of a row, H heads, K heads of keys,
G = H / K, W width of a head.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from paretune.data.trees import Batch, Example, Forest, Tree, lay_out
from paretune.model.attention import TreeMask, attention_of_trees, mask_of_trees, using_forest
from paretune.model.forward import PackedModel, hidden_states

NAME = "paretune_shared_contexts"
_EMPTY = -1


@dataclass(frozen=True, eq=False)
class Document:
    """A context, and the prompts that are to be answered after it."""

    trunk: np.ndarray
    """int32, not empty."""
    prompts: tuple[np.ndarray, ...]
    """int32; may be empty."""


class SharedContexts:
    """Keys and values of some documents and their branches, and the passes that make them."""

    def __init__(self, packed: PackedModel, *, num_rows: int, num_slots: int, trunk_tokens: int, branch_tokens: int) -> None:
        self.packed, self.num_slots, self.trunk_tokens = packed, num_slots, trunk_tokens
        self.num_rows, self.num_places = num_rows, trunk_tokens + num_slots * branch_tokens
        self.lengths: list[int] = []
        """Tokens of the context of each document, by row."""
        self.depths_DP = torch.full((num_rows, self.num_places), _EMPTY)
        """Number of tokens before the one that lies there in its text, or EMPTY."""
        # Of a context -1; of a branch its slot.
        self.slots_P = (torch.arange(self.num_places) - trunk_tokens).clamp_min(-num_slots) % num_slots
        self.slots_P[:trunk_tokens] = -1
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """Keys and values [D, K, P, W], by the index of the layer."""

    @property
    def bytes_per_place(self) -> float:
        return sum(x.nbytes for pair in self.layers.values() for x in pair) / (self.num_rows * self.num_places)

    def read(self, documents: Sequence[Document]) -> torch.Tensor:
        """Put documents into the next rows; logits [B, V] after each of their prompts."""
        first, examples, trees = len(self.lengths), [], []
        for document in documents:
            # A token more than the prompt, so that the state before it is asked for; what is kept of it is written over.
            new = [Example(np.append(prompt, 0).astype(np.int32), len(prompt), document.trunk) for prompt in document.prompts]
            size = len(document.trunk) + sum(len(example.ids) for example in new)
            trees.append(Tree(document.trunk, tuple(range(len(examples), len(examples) + len(new))), size))
            examples += new
        self.lengths += [len(document.trunk) for document in documents]
        batch = lay_out(examples, trees)
        assert batch.forest is not None
        forest, num_tokens = batch.forest, sum(tree.num_tokens for tree in trees)
        kept = Forest(*(x[:num_tokens] for x in (first + forest.trees_T, forest.branches_T, forest.depths_T)))
        with using_forest(forest):
            return self._forward(batch, kept, decodes=False)

    def step(
        self, rows_B: Sequence[int], slots_B: Sequence[int], depths_B: Sequence[int], ids_B: Sequence[int]
    ) -> torch.Tensor:
        """Logits [B, V] after one more token of each branch, which has so many tokens before it."""
        depths = np.array(depths_B, np.int64)
        forest = Forest(np.array(rows_B, np.int32), np.array(slots_B, np.int32) + 1, depths)
        ids = torch.tensor(ids_B)[None]
        batch = Batch(ids, torch.from_numpy(depths)[None], torch.arange(len(depths)), torch.empty(0), (), forest)
        return self._forward(batch, forest, decodes=True)

    def close(self, row: int) -> int:
        """Take away a document; the last row moves into its place, and its former number is returned."""
        last = len(self.lengths) - 1
        self.lengths[row] = self.lengths[last]
        del self.lengths[last]
        if row != last:
            for layer in self.layers.values():
                for x in layer:
                    x[row] = x[last]
            self.depths_DP[row] = self.depths_DP[last]
        self.depths_DP[last] = _EMPTY
        return last

    def _forward(self, batch: Batch, kept: Forest, *, decodes: bool) -> torch.Tensor:
        rows, places = (torch.from_numpy(x) for x in (kept.trees_T.astype(np.int64), self._places(kept)))
        self.depths_DP[rows, places] = torch.from_numpy(kept.depths_T)
        model, device = self.packed.model, self.packed.model.device
        of_pass = _Pass(self, kept, rows.to(device), places.to(device), decodes, *(self._span() if decodes else (0, 0)))
        token = _PASS.set(of_pass)
        try:
            with torch.no_grad():
                return self.packed.head(hidden_states(model, batch.to(device)))
        finally:
            _PASS.reset(token)

    def _places(self, kept: Forest) -> np.ndarray:
        lengths_T = np.array(self.lengths)[kept.trees_T]
        of_branch = kept.branches_T > 0
        along = (kept.depths_T - lengths_T) * np.where(of_branch, self.num_slots, 1)
        return self.trunk_tokens + along + np.maximum(kept.branches_T - 1, 0)

    def _span(self) -> tuple[int, int]:
        """The places from the first to the last that hold something."""
        filled = torch.nonzero((self.depths_DP[: len(self.lengths)] != _EMPTY).any(0))
        return int(filled[0]), int(filled[-1]) + 1


@dataclass(frozen=True, eq=False)
class _Pass:
    """Where the tokens of a pass belong, and over which places of the cache they attend."""

    cache: SharedContexts
    kept: Forest
    rows_T: torch.Tensor
    places_T: torch.Tensor
    decodes: bool
    """Whether the tokens go on after what is in the cache; else they see each other only, as trees."""
    start: int
    stop: int


_PASS: ContextVar[_Pass | None] = ContextVar("pass", default=None)


@dataclass(frozen=True, eq=False)
class _BranchMask:
    """What is added to the scores of every slot of every document, 0 or -inf, in one kind of layer."""

    added_DSP: torch.Tensor


@contextmanager
def sharing(packed: PackedModel) -> Iterator[None]:
    """Let the passes of `SharedContexts` of this model attend over their cache."""
    model = packed.model
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _mask(*, mask_function: Callable[..., torch.Tensor], device: torch.device, **_: Any) -> TreeMask | _BranchMask:
    """The mask function: `mask_function(batch, head, query, key)` is the rule of a kind of layer over positions."""
    now = _pass()
    if not now.decodes:
        return mask_of_trees(mask_function=mask_function, device=device)
    cache, zero = now.cache, torch.zeros((), dtype=torch.long)
    num_documents, places = len(cache.lengths), slice(now.start, now.stop)
    queries_DS1 = torch.full((num_documents, cache.num_slots, 1), _EMPTY)
    queries_DS1[now.kept.trees_T, now.kept.branches_T - 1, 0] = torch.from_numpy(now.kept.depths_T)
    keys_D1P, slots_P = cache.depths_DP[:num_documents, None, places], cache.slots_P[places]
    own_SP = (slots_P == _EMPTY) | (slots_P == torch.arange(cache.num_slots)[:, None])
    seen_DSP = mask_function(zero, zero, queries_DS1, keys_D1P) & (keys_D1P != _EMPTY) & own_SP
    # A slot that asks nothing sees all, so that its softmax is a number.
    seen_DSP = seen_DSP | (queries_DS1 == _EMPTY)
    return _BranchMask(torch.where(seen_DSP, 0.0, -torch.inf).to(device))


def _attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any,
    scaling: float | None = None, softcap: float | None = None, **others: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """The attention function: query [1, H, T, W], key and value [1, K, T, W] to [1, T, H, W]."""
    now = _pass()
    keys, values = _write(now, module.layer_idx, key[0], value[0])
    if not now.decodes:
        others.pop("dropout", None)
        return attention_of_trees(module, query, key, value, attention_mask, scaling, 0.0, softcap, **others)
    if not isinstance(attention_mask, _BranchMask):
        raise TypeError(f"{type(module).__name__} makes a mask of its own")
    if any(others.get(name) is not None for name in ("position_bias", "s_aux")):
        raise ValueError(f"{type(module).__name__} attends in a way that is not known here")
    num_documents, num_slots, num_places = attention_mask.added_DSP.shape
    num_heads, num_key_heads, width = query.shape[1], key.shape[1], query.shape[-1]
    groups, slots_T = num_heads // num_key_heads, torch.from_numpy(now.kept.branches_T - 1).to(query.device)
    asked = query.new_zeros(num_documents, num_slots, num_heads, width)
    asked[now.rows_T, slots_T] = query[0].transpose(0, 1)
    asked = asked.view(num_documents, num_slots, num_key_heads, groups, width).permute(0, 2, 3, 1, 4)
    mask = (
        attention_mask.added_DSP.to(query.dtype)[:, None].expand(-1, groups, -1, -1).reshape(num_documents, 1, -1, num_places)
    )
    out = _attend(
        asked.flatten(2, 3),
        *(x[:num_documents, :, now.start : now.stop] for x in (keys, values)),
        mask,
        width**-0.5 if scaling is None else scaling,
        softcap,
    )
    by_slot = out.view(num_documents, num_key_heads, groups, num_slots, width).permute(0, 3, 1, 2, 4).flatten(2, 3)
    return by_slot[now.rows_T, slots_T][None], None


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float, softcap: float | None
) -> torch.Tensor:
    if softcap is None:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    scores = torch.tanh(torch.matmul(query, key.transpose(2, 3)) * (scale / softcap)) * softcap
    return torch.matmul(torch.softmax((scores + mask).float(), -1).to(value.dtype), value)


def _write(now: _Pass, layer: int, key_KTW: torch.Tensor, value_KTW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of a layer with those of this pass among them."""
    cache, num_tokens = now.cache, len(now.kept)
    if layer not in cache.layers:
        pair = (key_KTW, value_KTW)
        shapes = ((cache.num_rows, x.shape[0], cache.num_places, x.shape[2]) for x in pair)
        cache.layers[layer] = tuple(x.new_empty(shape) for x, shape in zip(pair, shapes, strict=True))
    for kept, new in zip(cache.layers[layer], (key_KTW, value_KTW), strict=True):
        if not now.decodes:
            # What is hidden is multiplied by 0, which of what lies in memory by chance may give no number.
            kept[now.kept.trees_T[0] : len(cache.lengths)] = 0
        kept[now.rows_T, :, now.places_T] = new[:, :num_tokens].transpose(0, 1)
    return cache.layers[layer]


def _pass() -> _Pass:
    now = _PASS.get()
    if now is None:
        raise ValueError("attention over shared contexts is used without a pass")
    return now


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)

"""Contexts that are read once, and branches that go on after them: what is kept of both, and attention over it.

A row of the cache is a context with its branches. The context ends where its branches begin, and these lie side by side, token
by token: so what any query sees of a row lies together, and one product takes all branches of a context over it. A pass takes
one row of tokens, without padding: first whole trees (`paretune.data.trees`), later one or more tokens of each branch that goes
on.

Legend: R rows, S slots for branches, B branches, T tokens of a pass, P places of a row for what asks: so many to a slot as the
pass has tokens of one branch; E entries of a row, H heads, K heads of keys, G = H / K, W width of a head.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from paretune.data.trees import Batch, Example, Forest, Tree, lay_out
from paretune.model.attention import TreeMask, attention_of_trees, mask_of_trees, using_forest
from paretune.model.forward import SLOW, PackedModel, are_close, difference, head_of, hidden_states
from paretune.model.twin import REFUSALS, small_twin

NAME = "paretune_shared_contexts"
_EMPTY = -1
_PASS: ContextVar["_Pass | None"] = ContextVar("pass", default=None)


@dataclass(frozen=True, eq=False)
class PromptTree:
    """A context, and the prompts that are continued after it."""

    context: np.ndarray
    """int32, not empty."""
    prompts: tuple[np.ndarray, ...]
    """int32; may be empty."""


class SharedContexts:
    """Keys and values of some contexts and their branches, and the passes that make them."""

    def __init__(self, packed: PackedModel, *, num_rows: int, num_slots: int, context_tokens: int, branch_tokens: int) -> None:
        self.packed, self.num_slots, self.context_tokens = packed, num_slots, context_tokens
        self.num_rows, self.num_entries = num_rows, context_tokens + num_slots * branch_tokens
        self.trees: list[PromptTree] = []
        """By row."""
        self.depths_RE = torch.full((num_rows, self.num_entries), _EMPTY)
        """Number of tokens before the one of that entry in its text, or EMPTY."""
        # Of a context -1; of a branch its slot.
        self.slots_E = (torch.arange(self.num_entries) - context_tokens).clamp_min(-num_slots) % num_slots
        self.slots_E[:context_tokens] = -1
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """Keys and values [R, K, E, W], by the index of the layer."""

    @property
    def bytes_per_entry(self) -> float:
        return sum(x.nbytes for pair in self.layers.values() for x in pair) / (self.num_rows * self.num_entries)

    def read(self, trees: Sequence[PromptTree]) -> torch.Tensor:
        """Put trees into the next rows; logits [B, V] after each of their prompts."""
        examples: list[Example] = []
        layout = []
        for tree in trees:
            # A token more than the prompt, so that the state before it is asked for; what is kept of it is written over.
            new = [Example(np.append(prompt, 0).astype(np.int32), len(prompt), tree.context) for prompt in tree.prompts]
            size = len(tree.context) + sum(len(example.ids) for example in new)
            layout.append(Tree(tree.context, tuple(range(len(examples), len(examples) + len(new))), size))
            examples += new
        first = len(self.trees)
        self.trees += trees
        batch = lay_out(examples, layout)
        assert batch.forest is not None
        forest, num_tokens = batch.forest, sum(tree.num_tokens for tree in layout)
        kept = Forest(*(x[:num_tokens] for x in (first + forest.trees_T, forest.branches_T, forest.depths_T)))
        with using_forest(forest):
            return self._forward(batch, kept, decodes=False)

    def step(
        self, trees_T: Sequence[PromptTree], slots_T: Sequence[int], depths_T: Sequence[int], ids_T: Sequence[int]
    ) -> torch.Tensor:
        """Logits [T, V] after each of some tokens, which have so many before them: of a branch one or, in a row, several.

        What follows in a branch may be given again from any depth on: deeper tokens of before are not seen.
        """
        rows = {tree: row for row, tree in enumerate(self.trees)}
        depths = np.array(depths_T, np.int64)
        forest = Forest(np.array([rows[tree] for tree in trees_T], np.int32), np.array(slots_T, np.int32) + 1, depths)
        ids = torch.tensor(ids_T)[None]
        batch = Batch(ids, torch.from_numpy(depths)[None], torch.arange(len(depths)), torch.empty(0), (), forest)
        return self._forward(batch, forest, decodes=True)

    def keep(self, trees: Collection[PromptTree]) -> None:
        """Take away all other trees; the last row moves into the place of one that goes."""
        for row in reversed(range(len(self.trees))):
            if self.trees[row] in trees:
                continue
            last = len(self.trees) - 1
            if row != last:
                for layer in self.layers.values():
                    for x in layer:
                        x[row] = x[last]
                self.depths_RE[row] = self.depths_RE[last]
                self.trees[row] = self.trees[last]
            self.depths_RE[last] = _EMPTY
            del self.trees[last]

    def _forward(self, batch: Batch, kept: Forest, *, decodes: bool) -> torch.Tensor:
        lengths_T = np.array([len(tree.context) for tree in self.trees])[kept.trees_T]
        along_T = (kept.depths_T - lengths_T) * np.where(kept.branches_T > 0, self.num_slots, 1)
        entries_T = torch.from_numpy(self.context_tokens + along_T + np.maximum(kept.branches_T - 1, 0))
        rows_T = torch.from_numpy(kept.trees_T.astype(np.int64))
        self.depths_RE[rows_T, entries_T] = torch.from_numpy(kept.depths_T)
        filled, per_slot, queries_T = slice(0, 0), 1, 0
        if decodes:
            branches_T = kept.trees_T * self.num_slots + kept.branches_T
            begins_T = np.append(True, np.diff(branches_T) != 0)
            queries_T = np.arange(len(kept)) - np.flatnonzero(begins_T)[np.cumsum(begins_T) - 1]
            per_slot = int(queries_T.max()) + 1
            used = torch.nonzero((self.depths_RE[: len(self.trees)] != _EMPTY).any(0))
            filled = slice(int(used[0]), int(used[-1]) + 1)
        places_T = torch.from_numpy((kept.branches_T - 1) * per_slot + queries_T)
        model, device = self.packed.model, self.packed.model.device
        at = (x.to(device) for x in (rows_T, entries_T, places_T))
        token = _PASS.set(_Pass(self, kept, *at, per_slot, decodes, filled))
        try:
            with torch.no_grad():
                return self.packed.head(hidden_states(model, batch.to(device)))
        finally:
            _PASS.reset(token)


@dataclass(frozen=True, eq=False)
class _Pass:
    """Where the tokens of a pass belong, and over which entries of the cache they attend."""

    cache: SharedContexts
    kept: Forest
    rows_T: torch.Tensor
    entries_T: torch.Tensor
    places_T: torch.Tensor
    per_slot: int
    """Places of a slot."""
    decodes: bool
    """Whether the tokens go on after what is in the cache; else they see each other only, as trees."""
    filled: slice
    """From the first to the last entry that holds something."""


@dataclass(frozen=True, eq=False)
class _CacheMask:
    """What is added to the scores of every place of every row, 0 or -inf, in one kind of layer."""

    added_RPE: torch.Tensor


@lru_cache(maxsize=1)
def bytes_per_entry(packed: PackedModel) -> float | None:
    """Bytes that an entry of the cache takes; None where branches of unlike length after one cached context do not give what
    each gives alone, which is tried on two contexts through a small twin.
    """
    if not packed.isolates:
        return None
    failure = _sharing_failure(small_twin(packed.model))
    if failure:
        SLOW.warning("%s writes answers padded, sharing no context: %s", type(packed.model).__name__, failure)
        return None
    cache = SharedContexts(packed, num_rows=1, num_slots=1, context_tokens=1, branch_tokens=1)
    with sharing(packed):
        cache.read([PromptTree(np.ones(1, np.int32), (np.empty(0, np.int32),))])
    return cache.bytes_per_entry


def _sharing_failure(twin: PreTrainedModel) -> str:
    contexts = [np.arange(start, start + length) for start, length in ((3, 9), (5, 4))]
    prompts = [np.arange(start, start + length) for start, length in ((11, 3), (2, 5), (7, 1))]
    trees = [PromptTree(contexts[0], tuple(prompts[:2])), PromptTree(contexts[1], tuple(prompts[2:]))]
    following = [[9, 6], [4], [8]]
    try:
        packed = PackedModel(twin, head_of(twin), isolates=True)
        cache = SharedContexts(packed, num_rows=2, num_slots=2, context_tokens=9, branch_tokens=7)
        with sharing(packed):
            read = cache.read(trees)
            cache.step([trees[0]] * 3, [0] * 3, [12, 13, 14], [9, 2, 7])  # of which the last two are taken back
            step = cache.step([trees[0], trees[0], trees[1]], [0, 1, 0], [13, 14, 5], [6, 4, 8])
        for n, logits in enumerate(torch.stack([read, step], dim=1)):
            ids = [*contexts[n // 2].tolist(), *prompts[n].tolist(), *following[n]]
            with torch.no_grad():
                every = twin(input_ids=torch.tensor([ids], device=twin.device), use_cache=False).logits[0]
            alone = every[[-1 - len(following[n]), -1]]
            if not are_close(alone, logits):
                return (
                    f"logits after a shared context differ from those alone by {difference(alone, logits):.0e} of the largest"
                )
    except REFUSALS as error:  # an architecture with a cache or masks of its own
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


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


def _mask(*, mask_function: Callable[..., torch.Tensor], device: torch.device, **_: Any) -> TreeMask | _CacheMask:
    """The mask function: `mask_function(batch, head, query, key)` is the rule of a kind of layer over positions."""
    now = _pass()
    if not now.decodes:
        return mask_of_trees(mask_function=mask_function, device=device)
    cache, zero = now.cache, torch.zeros((), dtype=torch.long)
    num_rows, places_T = len(cache.trees), now.places_T.cpu()
    queries_RP1 = torch.full((num_rows, cache.num_slots * now.per_slot, 1), _EMPTY)
    queries_RP1[now.kept.trees_T, places_T, 0] = torch.from_numpy(now.kept.depths_T)
    keys_R1E, slots_E = cache.depths_RE[:num_rows, None, now.filled], cache.slots_E[now.filled]
    slots_P1 = torch.arange(cache.num_slots).repeat_interleave(now.per_slot)[:, None]
    seen_RPE = mask_function(zero, zero, queries_RP1, keys_R1E) & (keys_R1E != _EMPTY)
    # A place that asks nothing sees all, so that its softmax is a number.
    seen_RPE = (seen_RPE & ((slots_E == _EMPTY) | (slots_E == slots_P1))) | (queries_RP1 == _EMPTY)
    return _CacheMask(torch.where(seen_RPE, 0.0, -torch.inf).to(device))


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
    if not isinstance(attention_mask, _CacheMask):
        raise TypeError(f"{type(module).__name__} makes a mask of its own")
    if any(others.get(name) is not None for name in ("position_bias", "s_aux")):
        raise ValueError(f"{type(module).__name__} attends in a way that is not known here")
    num_rows, num_places, num_entries = attention_mask.added_RPE.shape
    num_heads, num_key_heads, width = query.shape[1], key.shape[1], query.shape[-1]
    groups = num_heads // num_key_heads
    asked = query.new_zeros(num_rows, num_places, num_heads, width)
    asked[now.rows_T, now.places_T] = query[0].transpose(0, 1)
    asked = asked.view(num_rows, num_places, num_key_heads, groups, width).permute(0, 2, 3, 1, 4).flatten(2, 3)
    mask = attention_mask.added_RPE.to(query.dtype)[:, None].expand(-1, groups, -1, -1).reshape(num_rows, 1, -1, num_entries)
    seen_keys, seen_values = (x[:num_rows, :, now.filled] for x in (keys, values))
    scale = width**-0.5 if scaling is None else scaling
    if softcap is None:
        out = functional.scaled_dot_product_attention(asked, seen_keys, seen_values, attn_mask=mask, scale=scale)
    else:
        scores = torch.tanh(torch.matmul(asked, seen_keys.transpose(2, 3)) * (scale / softcap)) * softcap
        out = torch.matmul(torch.softmax((scores + mask).float(), -1).to(value.dtype), seen_values)
    by_place = out.view(num_rows, num_key_heads, groups, num_places, width).permute(0, 3, 1, 2, 4).flatten(2, 3)
    return by_place[now.rows_T, now.places_T][None], None


def _write(now: _Pass, layer: int, key_KTW: torch.Tensor, value_KTW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of a layer with those of this pass among them."""
    cache, num_tokens = now.cache, len(now.kept)
    if layer not in cache.layers:
        pair = (key_KTW, value_KTW)
        shapes = ((cache.num_rows, x.shape[0], cache.num_entries, x.shape[2]) for x in pair)
        cache.layers[layer] = tuple(x.new_empty(shape) for x, shape in zip(pair, shapes, strict=True))
    for kept, new in zip(cache.layers[layer], (key_KTW, value_KTW), strict=True):
        if not now.decodes:
            # What is hidden is multiplied by 0, which of what lies in memory by chance may give no number.
            kept[now.kept.trees_T[0] : len(cache.trees)] = 0
        kept[now.rows_T, :, now.entries_T] = new[:, :num_tokens].transpose(0, 1)
    return cache.layers[layer]


def _pass() -> _Pass:
    now = _PASS.get()
    if now is None:
        raise ValueError("attention over shared contexts is used without a pass")
    return now


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)

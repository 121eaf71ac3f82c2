"""Greedy answers to several prompts after one context, which is read once: a trunk, and branches that all attend to it.

The contexts of some documents are read in one pass; then their prompts; then every pass adds a token to each branch that has
not ended. Keys and values of a context are kept once: the queries of its branches meet them in one product, and one softmax
runs over them and the branch's own keys. Padding (contexts on the right, prompts on the left) is hidden and windows are counted
along each text alone, so an answer does not depend on what is answered beside it. Where an architecture cannot do this, which
is tried first, prompts are answered one by one and each reads its context again.

Legend: B branches, D documents, Q queries, T keys of a trunk, S keys of a branch, H heads, K heads of keys, W width of a head.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel

from paretune.data.tokenizer import TextTokenizer
from paretune.evaluate.outputs import StoppedBy
from paretune.model.load import LoadedModel

NAME = "paretune_branches"
MAX_BRANCHES = 32
MAX_TOKENS = 32_768
"""Of the cache of one batch. Both are fixed: they move float rounding, which can turn a near tie of two tokens."""
_PADDING = -1
_STOP_MARGIN = 8
"""Tokens more than a stop has characters, in which it is looked for; one at a time is new."""
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True, eq=False)
class _View:
    """Where the queries of a pass stand, and what they may see."""

    trunks: DynamicCache
    """Of the documents; empty where no branch has a context."""
    document_B: torch.Tensor
    slot_B: torch.Tensor
    """Which of its document's branches each is."""
    num_slots: int
    queries_BQ: torch.Tensor
    """Depths, as those of the keys: the number of tokens before it in its text, or PADDING."""
    trunk_keys_DT: torch.Tensor
    keys_BS: torch.Tensor


_VIEW: ContextVar[_View | None] = ContextVar("view", default=None)


@dataclass(frozen=True, eq=False)
class _Masks:
    """What the queries of a kind of layer do not see; None where they see all."""

    trunk_B1QT: torch.Tensor | None
    own_B1QS: torch.Tensor | None


@dataclass(frozen=True, eq=False)
class Ask:
    """A prompt to be answered."""

    trunk: np.ndarray
    """int32, prefix token and context. Asks with the same array object share it."""
    prompt: np.ndarray
    """int32; may be empty."""
    limit: int
    """New tokens at most."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer."""
    at_limit: StoppedBy = "max_new_tokens"
    """What is said to have ended an answer of `limit` tokens."""


@dataclass(frozen=True)
class Answer:
    ids: tuple[int, ...]
    """The new tokens before what ended them."""
    text: str
    """Without the stop text."""
    stopped_by: StoppedBy
    seconds: float
    """Wall time of the batch divided by its branches."""


@dataclass
class _Branch:
    """One that is being answered."""

    ask: Ask
    index: int
    ids: list[int]
    ended: StoppedBy | None = None


def answer(
    loaded: LoadedModel, asks: Sequence[Ask], *, share: bool | None = None, emit: Callable[..., None] = lambda **_: None
) -> list[Answer]:
    """The most likely continuation of each trunk and prompt, token by token, in the order of `asks`.

    `share` says whether contexts are read once; by default where the architecture has been shown to allow it.
    """
    shared = shares(loaded.model) if share is None else share
    found: dict[int, Answer] = {}
    for batch in _batches(asks) if shared else ([[index]] for index in range(len(asks))):
        indices = [index for tree in batch for index in tree] if shared else batch[0]
        started = time.perf_counter()
        branches = [_Branch(asks[index], index, []) for index in indices]
        _answer_batch(loaded, branches, shared=shared)
        seconds = (time.perf_counter() - started) / len(branches)
        found |= {branch.index: _finished(loaded.tokenizer, branch, seconds) for branch in branches}
        emit(done=len(found), total=len(asks))
    return [found[index] for index in range(len(asks))]


def shares(model: PreTrainedModel) -> bool:
    """Whether branches of unlike length after one cached trunk give what each gives alone: shown on two trunks."""
    size = model.config.get_text_config().vocab_size
    trunks = [np.arange(start, start + length) % size for start, length in ((3, 9), (5, 4))]
    prompts = [np.arange(start, start + length) % size for start, length in ((11, 3), (2, 5), (7, 1))]
    branches = [_Branch(Ask(trunks[n // 2], prompt, 2), n, []) for n, prompt in enumerate(prompts)]
    following = torch.tensor([[9], [4], [8]], device=model.device) % size
    try:
        batch = _Batch(model, branches)
        together = torch.stack([batch.read_prompts(), batch.step(following)], dim=1)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return False  # an architecture with a cache or masks of its own
    for branch, logits, token in zip(branches, together, following, strict=True):
        ids = torch.tensor([*branch.ask.trunk.tolist(), *branch.ask.prompt.tolist(), *token.tolist()], device=model.device)
        with torch.no_grad():
            alone = model(input_ids=ids[None], use_cache=False).logits[0, -2:]
        scale = alone.float().abs().max().clamp_min(1e-6)
        if (alone.float() - logits.float()).abs().max() / scale > _TOLERANCE[alone.dtype]:
            return False
    return True


def cut_at_text(tokenizer: TextTokenizer, ids: Sequence[int], stop: Sequence[str]) -> tuple[list[int], str] | None:
    """The tokens up to the first of the texts `stop`, and the text before it; None where none of them stands there."""
    text = tokenizer.decode(ids)
    places = [place for each in stop if (place := text.find(each)) >= 0]
    if not places:
        return None
    kept = next(n for n in range(1, len(ids) + 1) if any(each in tokenizer.decode(ids[:n]) for each in stop))
    return list(ids[:kept]), text[: min(places)]


class _Batch:
    """The trunks of some documents and the caches of their branches."""

    def __init__(self, model: PreTrainedModel, branches: Sequence[_Branch]) -> None:
        self.model, self.device = model, model.device
        self.trunks, self.branches = DynamicCache(), DynamicCache()
        self.keep_last = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
        trunks = list({id(branch.ask.trunk): branch.ask.trunk for branch in branches}.values())
        place = {id(trunk): n for n, trunk in enumerate(trunks)}
        self.document_B = torch.tensor([place[id(branch.ask.trunk)] for branch in branches], device=self.device)
        # The last token of a trunk goes with the prompts, so that an empty prompt has a token to be answered after.
        self.trunk_keys_DT = self._read_trunks([trunk[:-1] for trunk in trunks])
        self.prompts = [np.concatenate([branch.ask.trunk[-1:], branch.ask.prompt]) for branch in branches]
        self.depths_B = torch.tensor([len(branch.ask.trunk) - 1 for branch in branches], device=self.device)
        self.keys_BS = torch.empty(len(branches), 0, dtype=torch.long, device=self.device)

    def read_prompts(self) -> torch.Tensor:
        """Logits [B, V] after the prompts."""
        ids_BQ, depths_BQ = _padded(self.prompts, self.device, left=True)
        queries_BQ = torch.where(depths_BQ == _PADDING, _PADDING, depths_BQ + self.depths_B[:, None])
        self.depths_B = queries_BQ[:, -1]
        return self._forward(ids_BQ, queries_BQ)

    def step(self, tokens_B1: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] after one more token each."""
        self.depths_B = self.depths_B + 1
        return self._forward(tokens_B1, self.depths_B[:, None])

    def keep(self, rows: Sequence[int]) -> None:
        """Only these branches go on."""
        indices = torch.tensor(rows, device=self.device)
        self.branches.batch_select_indices(indices)
        self.keys_BS, self.depths_B, self.document_B = (x[indices] for x in (self.keys_BS, self.depths_B, self.document_B))
        alive, document_B = self.document_B.unique(return_inverse=True)
        if self.trunk_keys_DT.shape[1] and 2 * len(alive) <= len(self.trunk_keys_DT):
            self.trunks.batch_select_indices(alive)
            self.trunk_keys_DT, self.document_B = self.trunk_keys_DT[alive], document_B

    def _read_trunks(self, trunks: Sequence[np.ndarray]) -> torch.Tensor:
        """Depths [D, T] of the keys that are then in the cache."""
        ids_DT, depths_DT = _padded(trunks, self.device, left=False)
        if ids_DT.shape[1]:
            # Causal attention as ever: what comes after a text changes nothing in it.
            with torch.no_grad():
                self.model(input_ids=ids_DT, past_key_values=self.trunks, use_cache=True, **self.keep_last)
        return depths_DT

    def _forward(self, ids_BQ: torch.Tensor, queries_BQ: torch.Tensor) -> torch.Tensor:
        self.keys_BS = torch.cat([self.keys_BS, queries_BQ], dim=1)
        slot_B, num_slots = _slots(self.document_B)
        view = _View(self.trunks, self.document_B, slot_B, num_slots, queries_BQ, self.trunk_keys_DT, self.keys_BS)
        with torch.no_grad(), _attending(self.model, view):
            output = self.model(
                input_ids=ids_BQ,
                # With a mask given, even one that hides nothing, transformers does not look for sequences in the positions.
                attention_mask=torch.ones_like(self.keys_BS),
                position_ids=queries_BQ.clamp_min(0),
                past_key_values=self.branches,
                use_cache=True,
                **self.keep_last,
            )
        return output.logits[:, -1]


class _Alone:
    """One prompt with its trunk before it, through the model as it comes."""

    def __init__(self, model: PreTrainedModel, branch: _Branch) -> None:
        self.model, self.past = model, None
        self.ids = np.concatenate([branch.ask.trunk, branch.ask.prompt])

    def read_prompts(self) -> torch.Tensor:
        return self.step(torch.from_numpy(self.ids.astype(np.int64)).to(self.model.device)[None])

    def step(self, tokens_1Q: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            output = self.model(input_ids=tokens_1Q, past_key_values=self.past, use_cache=True)
        self.past = output.past_key_values
        return output.logits[:, -1]

    def keep(self, rows: Sequence[int]) -> None:
        """Nothing to take away from one row."""


def _answer_batch(loaded: LoadedModel, branches: Sequence[_Branch], *, shared: bool) -> None:
    """Fill `ids` and `ended` of the branches."""
    batch: _Batch | _Alone = _Batch(loaded.model, branches) if shared else _Alone(loaded.model, branches[0])
    going = list(branches)
    logits = batch.read_prompts()
    while True:
        tokens = logits.argmax(-1).tolist()
        for branch, token in zip(going, tokens, strict=True):
            _take(loaded.tokenizer, branch, token)
        rows = [row for row, branch in enumerate(going) if branch.ended is None]
        if not rows:
            return
        if len(rows) < len(going):
            going = [going[row] for row in rows]
            batch.keep(rows)
        logits = batch.step(torch.tensor([[branch.ids[-1]] for branch in going], device=loaded.device))


def _take(tokenizer: TextTokenizer, branch: _Branch, token: int) -> None:
    if token in tokenizer.stop_ids:
        branch.ended = "eos"
        return
    branch.ids.append(token)
    recent = branch.ids[-max(map(len, branch.ask.stop), default=0) - _STOP_MARGIN :]
    if branch.ask.stop and any(stop in tokenizer.decode(recent) for stop in branch.ask.stop):
        branch.ended = "stop"
    elif len(branch.ids) >= branch.ask.limit:
        branch.ended = branch.ask.at_limit


def _finished(tokenizer: TextTokenizer, branch: _Branch, seconds: float) -> Answer:
    head = [*branch.ask.trunk[-1:].tolist(), *branch.ask.prompt.tolist()]
    ids, ended = branch.ids, branch.ended or branch.ask.at_limit
    before, whole = tokenizer.decode(head), tokenizer.decode([*head, *ids])
    text = whole[len(before) :] if whole.startswith(before) else tokenizer.decode(ids)
    found = cut_at_text(tokenizer, ids, branch.ask.stop) if ended == "stop" else None
    if found is not None:
        place = min(place for stop in branch.ask.stop if (place := text.find(stop)) >= 0)
        ids, text = found[0], text[:place]
    return Answer(tuple(ids), text, ended, seconds)


def _batches(asks: Sequence[Ask]) -> Iterator[list[list[int]]]:
    """Indices of asks, by trunk: trunks of like length together, those of one trunk in one batch where they fit."""
    trees: dict[int, list[int]] = {}
    for index, ask in enumerate(asks):
        trees.setdefault(id(ask.trunk), []).append(index)
    parts = [tree[n : n + MAX_BRANCHES] for tree in trees.values() for n in range(0, len(tree), MAX_BRANCHES)]
    parts.sort(key=lambda tree: (len(asks[tree[0]].trunk), max(_length(asks[index]) for index in tree)))
    batch: list[list[int]] = []
    for part in parts:
        together = [index for tree in (*batch, part) for index in tree]
        tokens = len(together) * max(_length(asks[index]) for index in together)
        if batch and (len(together) > MAX_BRANCHES or tokens > MAX_TOKENS):
            yield batch
            batch = []
        batch.append(part)
    if batch:
        yield batch


def _length(ask: Ask) -> int:
    return len(ask.trunk) + len(ask.prompt) + ask.limit


def _padded(texts: Sequence[np.ndarray], device: torch.device, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids, and the place of each in its text or PADDING: int64 [texts, longest]."""
    width = max(map(len, texts))
    ids, depths = (np.full((len(texts), width), fill) for fill in (0, _PADDING))
    for row, text in enumerate(texts):
        start = width - len(text) if left else 0
        ids[row, start : start + len(text)], depths[row, start : start + len(text)] = text, np.arange(len(text))
    return torch.from_numpy(ids).to(device), torch.from_numpy(depths).to(device)


def _slots(document_B: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Number each branch among those of its document, and the most that a document has."""
    seen: dict[int, int] = {}
    slots = []
    for document in document_B.tolist():
        slots.append(seen.get(document, 0))
        seen[document] = slots[-1] + 1
    return torch.tensor(slots, device=document_B.device), max(seen.values())


@contextmanager
def _attending(model: PreTrainedModel, view: _View) -> Iterator[None]:
    before, token = model.config._attn_implementation, _VIEW.set(view)
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        _VIEW.reset(token)


def _masks_of_branches(*, mask_function: Callable[..., torch.Tensor], **_: Any) -> _Masks:
    """The mask function: `mask_function(batch, head, query, key)` is the rule of a kind of layer over positions."""
    view = _view()
    zero = torch.zeros((), dtype=torch.long, device=view.keys_BS.device)

    def hidden(keys_BS: torch.Tensor) -> torch.Tensor | None:
        seen_BQS = mask_function(zero, zero, view.queries_BQ[:, :, None], keys_BS[:, None]) & (keys_BS != _PADDING)[:, None]
        return None if bool(seen_BQS.all()) else ~seen_BQS[:, None]

    own_B1QS = hidden(view.keys_BS)
    if own_B1QS is not None:
        # A query that is padding sees itself, so that its softmax is a number.
        own_B1QS &= (view.queries_BQ != _PADDING)[:, None, :, None]
    return _Masks(hidden(view.trunk_keys_DT[view.document_B]), own_B1QS)


def _attention_of_branches(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any,
    scaling: float | None = None, softcap: float | None = None, **others: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """The attention function: query [B, H, Q, W], key and value [B, K, S, W] of the branches to [B, Q, H, W]."""
    if not isinstance(attention_mask, _Masks):
        raise TypeError(f"{type(module).__name__} makes a mask of its own")
    if any(others.get(name) is not None for name in ("position_bias", "s_aux")):
        raise ValueError(f"{type(module).__name__} attends in a way that is not known here")
    view, (num_rows, num_heads, num_queries, width) = _view(), query.shape
    query = query.reshape(num_rows, key.shape[1], -1, width) * (width**-0.5 if scaling is None else scaling)
    parts = [(torch.matmul(query, key.transpose(2, 3)), attention_mask.own_B1QS)]
    if view.trunk_keys_DT.shape[1]:
        trunk = view.trunks.layers[module.layer_idx]
        by_document = torch.matmul(_by_document(query, view), trunk.keys.transpose(2, 3))
        parts.insert(0, (_by_branch(by_document, view), attention_mask.trunk_B1QT))
    weights = torch.softmax(torch.cat([_scores(*part, num_heads, num_queries, softcap) for part in parts], -1).float(), -1)
    weights = weights.to(value.dtype).reshape(num_rows, key.shape[1], -1, weights.shape[-1])
    out = torch.matmul(weights[..., -key.shape[2] :], value)
    if len(parts) > 1:
        of_trunk = _by_document(weights[..., : -key.shape[2]], view)
        out = out + _by_branch(torch.matmul(of_trunk, trunk.values), view)
    return out.reshape(num_rows, num_heads, num_queries, width).transpose(1, 2), None


def _scores(
    scores: torch.Tensor, hidden: torch.Tensor | None, num_heads: int, num_queries: int, softcap: float | None
) -> torch.Tensor:
    """[B, K, H / K * Q, keys] as [B, H, Q, keys], without what the queries do not see."""
    scores = scores.reshape(len(scores), num_heads, num_queries, -1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    return scores if hidden is None else scores.masked_fill(hidden, -torch.inf)


def _by_document(rows: torch.Tensor, view: _View) -> torch.Tensor:
    """[B, K, N, X] of the branches as [D, K, slots * N, X] of their documents; slots without a branch are 0."""
    num_documents = len(view.trunk_keys_DT)
    packed = rows.new_zeros(num_documents, rows.shape[1], view.num_slots, *rows.shape[2:])
    packed[view.document_B, :, view.slot_B] = rows
    return packed.flatten(2, 3)


def _by_branch(packed: torch.Tensor, view: _View) -> torch.Tensor:
    """[D, K, slots * N, X] of documents as [B, K, N, X] of their branches."""
    return packed.unflatten(2, (view.num_slots, -1))[view.document_B, :, view.slot_B]


def _view() -> _View:
    view = _VIEW.get()
    if view is None:
        raise ValueError("attention over branches is used without a view")
    return view


AttentionInterface.register(NAME, _attention_of_branches)
AttentionMaskInterface.register(NAME, _masks_of_branches)

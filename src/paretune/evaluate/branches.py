"""Greedy answers to several prompts after one context, which is read once: a trunk, and its cache for all branches.

The contexts of some documents are read in one pass, the keys and values of each are copied to its branches, the prompts are
read, and then every pass adds a token to each branch that has not ended. Padding (contexts on the right, prompts on the left)
is hidden, and windows are counted along each text alone, so an answer does not depend on what is answered beside it. Where an
architecture cannot do this, which is tried first, prompts are answered one by one and each reads its context again.

Legend: B branches, Q queries, S keys of the cache.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

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
_DEPTHS: ContextVar[tuple[torch.Tensor, torch.Tensor] | None] = ContextVar("depths", default=None)


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
    if model.config._attn_implementation != "sdpa":
        return False
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
    """The cache of some branches, and which depth each of its keys has."""

    def __init__(self, model: PreTrainedModel, branches: Sequence[_Branch]) -> None:
        self.model, self.device, self.cache = model, model.device, DynamicCache()
        self.keep_last = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
        trunks = list({id(branch.ask.trunk): branch.ask.trunk for branch in branches}.values())
        owners = [next(n for n, trunk in enumerate(trunks) if trunk is branch.ask.trunk) for branch in branches]
        # The last token of a trunk goes with the prompts, so that an empty prompt has a token to be answered after.
        self.keys_BS = self._read_trunks([trunk[:-1] for trunk in trunks])[owners]
        if self.keys_BS.shape[1]:
            self.cache.batch_select_indices(torch.tensor(owners, device=self.device))
        self.prompts = [np.concatenate([branch.ask.trunk[-1:], branch.ask.prompt]) for branch in branches]
        self.depths_B = torch.tensor([len(branch.ask.trunk) - 1 for branch in branches], device=self.device)

    def read_prompts(self) -> torch.Tensor:
        """Logits [B, V] after the prompts."""
        width = max(map(len, self.prompts))
        ids, depths = (np.full((len(self.prompts), width), fill) for fill in (0, _PADDING))
        for row, prompt in enumerate(self.prompts):
            ids[row, width - len(prompt) :] = prompt
            depths[row, width - len(prompt) :] = np.arange(len(prompt))
        queries_BQ = torch.from_numpy(depths).to(self.device)
        queries_BQ = torch.where(queries_BQ == _PADDING, _PADDING, queries_BQ + self.depths_B[:, None])
        self.depths_B = queries_BQ[:, -1]
        return self._forward(torch.from_numpy(ids).to(self.device), queries_BQ)

    def step(self, tokens_B1: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] after one more token each."""
        self.depths_B = self.depths_B + 1
        return self._forward(tokens_B1, self.depths_B[:, None])

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows go on."""
        indices = torch.tensor(rows, device=self.device)
        self.cache.batch_select_indices(indices)
        self.keys_BS, self.depths_B = self.keys_BS[indices], self.depths_B[indices]

    def _read_trunks(self, trunks: Sequence[np.ndarray]) -> torch.Tensor:
        """Depths [trunks, S] of the keys that are then in the cache, padded on the right."""
        width = max(map(len, trunks))
        ids, depths = (np.full((len(trunks), width), fill) for fill in (0, _PADDING))
        for row, trunk in enumerate(trunks):
            ids[row, : len(trunk)], depths[row, : len(trunk)] = trunk, np.arange(len(trunk))
        if width:
            # Causal attention as ever: what comes after a text changes nothing in it.
            with torch.no_grad():
                self.model(
                    input_ids=torch.from_numpy(ids).to(self.device),
                    past_key_values=self.cache,
                    use_cache=True,
                    **self.keep_last,
                )
        return torch.from_numpy(depths).to(self.device)

    def _forward(self, ids_BQ: torch.Tensor, queries_BQ: torch.Tensor) -> torch.Tensor:
        self.keys_BS = torch.cat([self.keys_BS, queries_BQ], dim=1)
        with torch.no_grad(), _attending(self.model, queries_BQ, self.keys_BS):
            output = self.model(
                input_ids=ids_BQ,
                # With a mask given, even one that hides nothing, transformers does not look for sequences in the positions.
                attention_mask=torch.ones_like(self.keys_BS),
                position_ids=queries_BQ.clamp_min(0),
                past_key_values=self.cache,
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
        branch.ended = "max_new_tokens"


def _finished(tokenizer: TextTokenizer, branch: _Branch, seconds: float) -> Answer:
    head = [*branch.ask.trunk[-1:].tolist(), *branch.ask.prompt.tolist()]
    ids, ended = branch.ids, branch.ended or "max_new_tokens"
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


@contextmanager
def _attending(model: PreTrainedModel, queries_BQ: torch.Tensor, keys_BS: torch.Tensor) -> Iterator[None]:
    before, token = model.config._attn_implementation, _DEPTHS.set((queries_BQ, keys_BS))
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        _DEPTHS.reset(token)


def _mask_of_branches(*, mask_function: Callable[..., torch.Tensor], **_: Any) -> torch.Tensor | None:
    """The mask function of transformers: bool [B, 1, Q, S]. `mask_function` is the rule of a kind of layer over positions."""
    depths = _DEPTHS.get()
    if depths is None:
        raise ValueError("attention over branches is used without depths")
    queries_BQ, keys_BS = depths
    zero = torch.zeros((), dtype=torch.long, device=keys_BS.device)
    seen_BQS = mask_function(zero, zero, queries_BQ[:, :, None], keys_BS[:, None]) & (keys_BS >= 0)[:, None]
    if queries_BQ.shape[1] == 1 and bool(seen_BQS.all()):
        return None
    # A row that sees nothing is padding; its softmax must be a number all the same.
    return (seen_BQS | ~seen_BQS.any(-1, keepdim=True))[:, None]


AttentionInterface.register(NAME, sdpa_attention_forward)
AttentionMaskInterface.register(NAME, _mask_of_branches)

"""Greedy answers to several prompts after one context, which is read once: a trunk, and branches that all attend to it.

Contexts and prompts are read as token trees; then every pass adds a token to each branch that has not ended, whichever document
it belongs to, and as soon as there is room the next documents are read. The weights are read once a pass, so many branches
cost little more than one. Where an architecture cannot do this, which is tried first, prompts are answered one by one and each
reads its context again.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from paretune.data.tokenizer import TextTokenizer
from paretune.evaluate.outputs import StoppedBy
from paretune.model.forward import PackedModel
from paretune.model.load import LoadedModel
from paretune.model.shared_context import Document, SharedContexts, sharing

MAX_BRANCHES = 64
"""That go on at a time."""
MAX_BYTES = 2**30
"""Of what is kept of contexts and branches."""
PASS_TOKENS = 2048
"""Of contexts and prompts that are read in one pass. All three are fixed: they move float rounding, which can turn a near tie
of two tokens."""
_STOP_MARGIN = 8
"""Tokens more than a stop has characters, in which it is looked for; one at a time is new."""
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


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
    """Wall time of what was answered together, divided by its answers."""


@dataclass
class _Branch:
    """One that is being answered."""

    ask: Ask
    index: int
    ids: list[int]
    row: int = 0
    slot: int = 0
    """Its place among the branches of the document in that row."""
    ended: StoppedBy | None = None


def answer(
    loaded: LoadedModel, asks: Sequence[Ask], *, share: bool | None = None, emit: Callable[..., None] = lambda **_: None
) -> list[Answer]:
    """The most likely continuation of each trunk and prompt, token by token, in the order of `asks`.

    `share` says whether contexts are read once; by default where the architecture has been shown to allow it.
    """
    shared = (bool(asks) and place_bytes(loaded.packed) is not None) if share is None else share
    found: dict[int, Answer] = {}
    for group in _groups(asks) if shared else ([[index]] for index in range(len(asks))):
        branches = [[_Branch(asks[index], index, [], slot=slot) for slot, index in enumerate(tree)] for tree in group]
        started, count = time.perf_counter(), sum(map(len, group))
        ending = (
            _answer_together(loaded.packed, loaded.tokenizer, branches) if shared else _answer_alone(loaded, branches[0][0])
        )
        done: list[_Branch] = []
        for ended in ending:
            done += ended
            emit(done=len(found) + len(done), total=len(asks))
        seconds = (time.perf_counter() - started) / count
        found |= {branch.index: _finished(loaded.tokenizer, branch, seconds) for branch in done}
    return [found[index] for index in range(len(asks))]


@lru_cache(maxsize=1)
def place_bytes(packed: PackedModel) -> float | None:
    """Bytes that a place of the cache takes; None where branches of unlike length after one cached trunk do not give what each
    gives alone, which is tried on two trunks.
    """
    if not packed.isolates:
        return None
    model, size = packed.model, packed.model.config.get_text_config().vocab_size
    trunks = [np.arange(start, start + length) % size for start, length in ((3, 9), (5, 4))]
    prompts = [np.arange(start, start + length) % size for start, length in ((11, 3), (2, 5), (7, 1))]
    documents = [Document(trunks[0], tuple(prompts[:2])), Document(trunks[1], tuple(prompts[2:]))]
    following = [9 % size, 4 % size, 8 % size]
    cache = SharedContexts(packed, num_rows=2, num_slots=2, trunk_tokens=9, branch_tokens=7)
    try:
        with sharing(packed):
            read = cache.read(documents)
            together = torch.stack([read, cache.step([0, 0, 1], [0, 1, 0], [12, 14, 5], following)], dim=1)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return None  # an architecture with a cache or masks of its own
    for n, logits in enumerate(together):
        ids = [*trunks[n // 2].tolist(), *prompts[n].tolist(), following[n]]
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, -2:]
        scale = alone.float().abs().max().clamp_min(1e-6)
        if (alone.float() - logits.float()).abs().max() / scale > _TOLERANCE[alone.dtype]:
            return None
    return cache.bytes_per_place


def cut_at_text(tokenizer: TextTokenizer, ids: Sequence[int], stop: Sequence[str]) -> tuple[list[int], str] | None:
    """The tokens up to the first of the texts `stop`, and the text before it; None where none of them stands there."""
    text = tokenizer.decode(ids)
    places = [place for each in stop if (place := text.find(each)) >= 0]
    if not places:
        return None
    kept = next(n for n in range(1, len(ids) + 1) if any(each in tokenizer.decode(ids[:n]) for each in stop))
    return list(ids[:kept]), text[: min(places)]


def _answer_together(
    packed: PackedModel, tokenizer: TextTokenizer, trees: Sequence[Sequence[_Branch]]
) -> Iterator[list[_Branch]]:
    """Fill `ids` and `ended` of the branches of some documents; those that have ended, after each pass."""
    waiting, going = deque(trees), list[_Branch]()
    cache = _room_for(packed, trees)
    with sharing(packed):
        while waiting or going:
            opened = _next_trees(waiting, going, cache)
            fresh = [branch for tree in opened for branch in tree]
            if opened:
                for row, tree in enumerate(opened, start=len(cache.lengths)):
                    for branch in tree:
                        branch.row = row
                logits = cache.read([Document(tree[0].ask.trunk, tuple(each.ask.prompt for each in tree)) for tree in opened])
            else:
                depths = [len(each.ask.trunk) + len(each.ask.prompt) + len(each.ids) - 1 for each in going]
                places = [each.row for each in going], [each.slot for each in going], depths
                logits = cache.step(*places, [each.ids[-1] for each in going])
            # The first of the highest, as argmax, which takes three times as long.
            for branch, token in zip(fresh or going, logits.max(-1).indices.tolist(), strict=True):
                _take(tokenizer, branch, token)
            ended = [branch for branch in fresh or going if branch.ended is not None]
            going = [branch for branch in going + fresh if branch.ended is None]
            _close_rows(cache, going)
            yield ended


def _next_trees(waiting: deque[Sequence[_Branch]], going: Sequence[_Branch], cache: SharedContexts) -> list[Sequence[_Branch]]:
    """Documents that are read now: as many as have room beside what goes on, and are one pass."""
    found: list[Sequence[_Branch]] = []
    branches, tokens = len(going), 0
    while waiting and len(cache.lengths) + len(found) < cache.num_rows:
        tree = waiting[0]
        branches, tokens = branches + len(tree), tokens + _read_tokens(tree)
        if (going or found) and (branches > MAX_BRANCHES or (found and tokens > PASS_TOKENS)):
            break
        found.append(waiting.popleft())
    return found


def _close_rows(cache: SharedContexts, going: Sequence[_Branch]) -> None:
    """Take away the documents that no branch goes on after."""
    for row in reversed(range(len(cache.lengths))):
        if all(branch.row != row for branch in going):
            moved = cache.close(row)
            for branch in going:
                if branch.row == moved:
                    branch.row = row


def _room_for(packed: PackedModel, trees: Sequence[Sequence[_Branch]]) -> SharedContexts:
    """A cache of as many documents as may be answered at a time."""
    slots = max(map(len, trees))
    sizes = {
        "num_slots": slots,
        "trunk_tokens": max(len(tree[0].ask.trunk) for tree in trees),
        "branch_tokens": max(len(each.ask.prompt) + each.ask.limit for tree in trees for each in tree),
    }
    of_row = (place_bytes(packed) or 0) * (sizes["trunk_tokens"] + slots * sizes["branch_tokens"])
    return SharedContexts(packed, num_rows=max(1, min(len(trees), MAX_BRANCHES, int(MAX_BYTES // max(1, of_row)))), **sizes)


def _answer_alone(loaded: LoadedModel, branch: _Branch) -> Iterator[list[_Branch]]:
    """One prompt with its trunk before it, through the model as it comes."""
    ids, past = [*branch.ask.trunk.tolist(), *branch.ask.prompt.tolist()], None
    while branch.ended is None:
        with torch.no_grad():
            output = loaded.model(input_ids=torch.tensor([ids], device=loaded.device), past_key_values=past, use_cache=True)
        past, token = output.past_key_values, int(output.logits[0, -1].argmax())
        _take(loaded.tokenizer, branch, token)
        ids = [token]
    yield [branch]


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


def _groups(asks: Sequence[Ask]) -> Iterator[list[list[int]]]:
    """Indices of asks, by trunk, the longest first. What has room beside each other is answered together; of more than that
    only trunks of like length and number of branches, as all rows of a cache are as long as the longest.
    """
    trees: dict[int, list[int]] = {}
    for index, ask in enumerate(asks):
        trees.setdefault(id(ask.trunk), []).append(index)
    parts = [tree[n : n + MAX_BRANCHES] for tree in trees.values() for n in range(0, len(tree), MAX_BRANCHES)]

    def size(part: Sequence[int]) -> tuple[int, int]:
        return len(part).bit_length(), max(_length(asks[index]) for index in part).bit_length()

    parts.sort(key=lambda part: (*size(part), len(asks[part[0]].trunk)), reverse=True)
    group: list[list[int]] = []
    for part in parts:
        if group and size(part) != size(group[0]) and sum(map(len, group)) + len(part) > MAX_BRANCHES:
            yield group
            group = []
        group.append(part)
    if group:
        yield group


def _length(ask: Ask) -> int:
    return len(ask.trunk) + len(ask.prompt) + ask.limit


def _read_tokens(tree: Sequence[_Branch]) -> int:
    return len(tree[0].ask.trunk) + sum(len(branch.ask.prompt) for branch in tree)

"""The one engine that writes text: greedy or sampled, after a context that several prompts share or after one of their own.

Contexts and prompts are read as token trees, each context once; then every pass adds a token to each answer that has not
ended, whichever context it follows, and as soon as there is room the next contexts are read. The weights are read once a pass,
so many answers cost little more than one. Where few are left, a pass of greedy answers also reads what is guessed of the tokens
that follow, by where the last two stood before (prompt lookup decoding, https://github.com/apoorvumang/prompt-lookup-decoding):
of these stays what the model would have chosen by itself. Where an architecture cannot do this, which is tried first, prompts
are padded on the left, their contexts before them, and go through transformers' `generate`.

A sampled answer draws from a generator of its own (Gumbel noise on its logits, then argmax, which is a draw from the softmax),
not from one stream for all: its text then depends on its prompt and its seed, not on the batching or its neighbours.
Nothing of the checkpoint's generation config applies but the ids that end a text; what its chat template ends a turn with ends
an answer too.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from paretune.data.tokenizer import TextTokenizer
from paretune.evaluate.outputs import StoppedBy
from paretune.model.llama_cpp import LlamaCpp
from paretune.model.load import LoadedModel
from paretune.model.shared_context import PromptTree, SharedContexts, bytes_per_entry, sharing

MAX_ANSWERS = 64
"""That are written at a time; with what is guessed, tokens of a pass."""
MAX_GUESSES = 3
"""Of an answer in a pass."""
MAX_BYTES = 2**30
"""Of what is kept of contexts and answers."""
PASS_TOKENS = 2048
"""Of contexts and prompts that are read in one pass. All of these are fixed: they move float rounding, which can turn a near
tie of two tokens."""
SEQUENCES = 16
"""That llama.cpp writes side by side."""
PADDED_ROWS = 16
"""Of a batch that is padded."""
LINE_BREAKS = ("\r", "\n")
_STOP_MARGIN = 8
"""Tokens more than a stop has characters, in which it is looked for; one at a time is new."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """What is to be answered, and what may end the answer besides an EOS token and the last position of the model."""

    context: np.ndarray
    """int32, the prefix token first. Prompts with the same array object share it."""
    ids: np.ndarray
    """int32, what follows the context; may be empty."""
    max_new_tokens: int
    stops: tuple[str, ...] = ()
    """Texts that end the answer and are left out of it."""
    turn_end: tuple[int, ...] = ()
    """Tokens that end the answer as an EOS does, and are left out of it: what a chat template ends a turn with."""
    at_stop: StoppedBy = "stop"
    """What is said to have ended an answer at one of `stops`."""
    seed: int = 0
    """Of what is sampled."""
    on_text: Callable[[str], None] | None = None
    """Told the text so far, whole, after each token, without what may become the end of the turn; stop texts stand in it."""

    @property
    def num_tokens(self) -> int:
        return len(self.context) + len(self.ids)


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen from its logits."""

    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    repetition_penalty: float = 1.0
    """Of tokens of context, prompt and answer so far (Keskar et al. 2019, https://arxiv.org/abs/1909.05858); 1 is none. Not of
    the prefix token, which is no text: as it often is EOS too, a penalty on it would keep texts from ending."""


GREEDY = Decoding()


@dataclass(frozen=True)
class Answer:
    ids: tuple[int, ...]
    """The new tokens without the EOS or the turn's end that ended them; of a stop text, up to the token that completed it."""
    text: str
    """Without the stop text."""
    stopped_by: StoppedBy
    seconds: float
    """Wall time of what was answered together, divided by its answers."""


@dataclass(eq=False)
class _Draft:
    """An answer that is being written."""

    prompt: Prompt
    limit: int
    """New tokens at most: those asked for and the rest of a turn's end that begins among them, or as many as the positions
    leave room for."""
    generator: torch.Generator
    ids: list[int] = field(default_factory=list)
    stopped_by: StoppedBy | None = None
    seconds: float = 0.0
    num_guesses: int = 1
    """In the next pass: one, until all of a pass are right."""

    def guesses(self) -> list[int]:
        """What followed the last two tokens where they stood before; over again where that is their own place."""
        text = np.concatenate([self.prompt.context, self.prompt.ids, np.array(self.ids, np.int32)])
        before = np.flatnonzero((text[:-2] == text[-2]) & (text[1:-1] == text[-1]))
        room = min(self.num_guesses, self.limit - len(self.ids) - 1)
        return np.resize(text[before[-1] + 2 :], room).tolist() if len(before) and room > 0 else []


Group = Sequence[Sequence[_Draft]]
"""Drafts that are written together, by their context."""


def write_answers(
    loaded: LoadedModel, prompts: Sequence[Prompt], decoding: Decoding = GREEDY, *, emit: Callable[..., None] = lambda **_: None
) -> list[Answer]:
    """The answer to each of `prompts`, in their order; each must leave room for a token in the positions of the model."""
    positions = sys.maxsize if loaded.max_positions is None else loaded.max_positions
    drafts = [
        _Draft(
            prompt,
            min(prompt.max_new_tokens + max(0, len(prompt.turn_end) - 1), positions - prompt.num_tokens),
            torch.Generator().manual_seed(prompt.seed),
        )
        for prompt in prompts
    ]
    if isinstance(loaded.model, LlamaCpp):
        write, groups = _write_sequences, _groups_by_context(drafts)
    elif drafts and bytes_per_entry(loaded.packed) is not None:
        write, groups = _write_shared, _groups_by_context(drafts)
    else:
        write, groups = _write_padded, _groups_by_length(drafts)
    # By tokens, as answers end side by side; one that ends early has done all that it might have written.
    count, total = 0, sum(draft.limit for draft in drafts)
    emit(done=0, total=total, answers=0)
    for group in groups:
        started = time.perf_counter()
        for ended in write(loaded, group, decoding):
            count += ended
            left = sum(draft.limit - len(draft.ids) for draft in drafts if draft.stopped_by is None)
            emit(done=total - left, total=total, answers=count)
        seconds = (time.perf_counter() - started) / sum(map(len, group))
        for draft in (draft for tree in group for draft in tree):
            draft.seconds = seconds
    return [_finished(loaded.tokenizer, draft) for draft in drafts]


def continuation_text(tokenizer: TextTokenizer, before: Sequence[int], new_ids: Sequence[int]) -> str:
    """The text of `new_ids` as it follows the tokens `before`.

    Decoded with them: SentencePiece-style decoders drop the space before the first word of what they are given.
    """
    head, whole = tokenizer.decode(before), tokenizer.decode([*before, *new_ids])
    return whole[len(head) :] if whole.startswith(head) else tokenizer.decode(new_ids)


def _text_of(tokenizer: TextTokenizer, prompt: Prompt, ids: Sequence[int]) -> str:
    return continuation_text(tokenizer, [*prompt.context[-1:].tolist(), *prompt.ids.tolist()], ids)


def _finished(tokenizer: TextTokenizer, draft: _Draft) -> Answer:
    prompt, ids, stopped_by = draft.prompt, draft.ids, draft.stopped_by
    assert stopped_by is not None
    text = _text_of(tokenizer, prompt, ids)
    if stopped_by == prompt.at_stop:
        text = text[: min((start for stop in prompt.stops if (start := text.find(stop)) >= 0), default=len(text))]
        completed = (n for n in range(len(ids)) if any(stop in tokenizer.decode(ids[:n]) for stop in prompt.stops))
        ids = ids[: next(completed, len(ids))]
    return Answer(tuple(ids), text, stopped_by, draft.seconds)


def _groups_by_context(drafts: Sequence[_Draft]) -> Iterator[Group]:
    """Drafts by context, the longest first. What has room beside each other is written together; of more than that only
    contexts of like length and number of drafts, as all rows of a cache are as long as the longest.
    """
    by_context: dict[int, list[_Draft]] = {}
    for draft in drafts:
        by_context.setdefault(id(draft.prompt.context), []).append(draft)
    trees = [tree[n : n + MAX_ANSWERS] for tree in by_context.values() for n in range(0, len(tree), MAX_ANSWERS)]

    def size(tree: Sequence[_Draft]) -> tuple[int, int]:
        return len(tree).bit_length(), max(draft.prompt.num_tokens + draft.limit for draft in tree).bit_length()

    trees.sort(key=lambda tree: (*size(tree), len(tree[0].prompt.context)), reverse=True)
    group: list[list[_Draft]] = []
    for tree in trees:
        if group and size(tree) != size(group[0]) and sum(map(len, group)) + len(tree) > MAX_ANSWERS:
            yield group
            group = []
        group.append(tree)
    if group:
        yield group


def _groups_by_length(drafts: Sequence[_Draft]) -> Iterator[Group]:
    """Drafts of one limit and like length together.

    One limit: a row that has ended is fed padding until all have, and must not be pushed past the last position by it.
    """
    rest = sorted(drafts, key=lambda draft: (draft.limit, draft.prompt.num_tokens))
    while rest:
        batch = [draft for draft in rest[:PADDED_ROWS] if draft.limit == rest[0].limit]
        rest = rest[len(batch) :]
        yield [batch]


def _write_shared(loaded: LoadedModel, group: Group, decoding: Decoding) -> Iterator[int]:
    """Write a group with one cache; how many have ended, after each pass."""
    trees = {PromptTree(drafts[0].prompt.context, tuple(draft.prompt.ids for draft in drafts)): drafts for drafts in group}
    branches = {draft: (tree, slot) for tree, drafts in trees.items() for slot, draft in enumerate(drafts)}
    num_slots = max(map(len, group))
    context_tokens = max(len(tree.context) for tree in trees)
    branch_tokens = max(len(draft.prompt.ids) + draft.limit for draft in branches)
    bytes_per_row = (bytes_per_entry(loaded.packed) or 0) * (context_tokens + num_slots * branch_tokens)
    cache = SharedContexts(
        loaded.packed,
        num_rows=max(1, min(len(trees), MAX_ANSWERS, int(MAX_BYTES // max(1, bytes_per_row)))),
        num_slots=num_slots,
        context_tokens=context_tokens,
        branch_tokens=branch_tokens,
    )
    waiting, going = deque(trees), list[_Draft]()
    with sharing(loaded.packed):
        while waiting or going:
            # As many contexts as have room beside what goes on, and are one pass.
            opened: list[PromptTree] = []
            count, tokens = len(going), 0
            while waiting and len(cache.trees) + len(opened) < cache.num_rows:
                count += len(waiting[0].prompts)
                tokens += len(waiting[0].context) + sum(map(len, waiting[0].prompts))
                if (going or opened) and (count > MAX_ANSWERS or (opened and tokens > PASS_TOKENS)):
                    break
                opened.append(waiting.popleft())
            fresh = [draft for tree in opened for draft in trees[tree]]
            passed, guesses = fresh or going, [list[int]()] * len(fresh or going)
            if opened:
                logits_TV = cache.read(opened)
            else:
                if decoding.temperature == 0:  # a draw is seldom what stood before
                    guesses = [draft.guesses() for draft in going]
                    share = (MAX_ANSWERS - len(going)) // max(1, sum(map(bool, guesses)))
                    guesses = [each[:share] for each in guesses]
                tokens = [
                    (*branches[draft], draft.prompt.num_tokens + len(draft.ids) - 1 + n, token)
                    for draft, each in zip(going, guesses, strict=True)
                    for n, token in enumerate([draft.ids[-1], *each])
                ]
                logits_TV = cache.step(*zip(*tokens, strict=True))
            _write_on(loaded, passed, guesses, logits_TV, decoding)
            yield sum(draft.stopped_by is not None for draft in passed)
            going = [draft for draft in going + fresh if draft.stopped_by is None]
            cache.keep({branches[draft][0] for draft in going})


def _write_on(
    loaded: LoadedModel, drafts: Sequence[_Draft], guesses: Sequence[list[int]], logits_TV: torch.Tensor, decoding: Decoding
) -> None:
    """Add to each draft its next token, and the one after each guess that was right."""
    rows = np.cumsum([0, *(1 + len(each) for each in guesses)])
    going, n = list(range(len(drafts))), 0
    while going:
        tokens = _choose([drafts[i] for i in going], logits_TV[rows[going] + n], decoding)
        for i, token in zip(going, tokens, strict=True):
            _append(loaded.tokenizer, drafts[i], token)
            drafts[i].num_guesses = MAX_GUESSES if n == len(guesses[i]) > 0 else 1
        right = (i for i, token in zip(going, tokens, strict=True) if guesses[i][n : n + 1] == [token])
        going, n = [i for i in right if drafts[i].stopped_by is None], n + 1


def _write_sequences(loaded: LoadedModel, group: Group, decoding: Decoding) -> Iterator[int]:
    """Write a group in llama.cpp: contexts read once each, then a token of every draft that goes on, as many as it takes."""
    assert isinstance(loaded.model, LlamaCpp)
    waiting = deque(draft for tree in group for draft in tree)
    while waiting:
        drafts = [waiting.popleft() for _ in range(min(len(waiting), SEQUENCES))]
        sequences = {draft: number for number, draft in enumerate(drafts, start=1)}
        needed = sum(draft.prompt.num_tokens + draft.limit for draft in drafts) + max(len(d.prompt.context) for d in drafts)
        with loaded.model.session(needed, len(drafts) + 1) as session:
            context, rows = None, []
            for draft, sequence in sequences.items():
                asked = draft.prompt
                if context is not asked.context:
                    session.drop(0)
                    at_end, context = session.read(0, asked.context.tolist(), 0, last=1), asked.context
                session.copy(0, sequence)
                ids = asked.ids.tolist()
                rows.append(session.read(sequence, ids, len(context), last=1) if ids else at_end)
            logits_BV, going = torch.cat(rows), drafts
            while going:
                for draft, token in zip(going, _choose(going, logits_BV, decoding), strict=True):
                    _append(loaded.tokenizer, draft, token)
                yield sum(draft.stopped_by is not None for draft in going)
                going = [draft for draft in going if draft.stopped_by is None]
                positions = [draft.prompt.num_tokens + len(draft.ids) - 1 for draft in going]
                if going:
                    logits_BV = session.step([sequences[d] for d in going], positions, [d.ids[-1] for d in going])


def _write_padded(loaded: LoadedModel, group: Group, decoding: Decoding) -> Iterator[int]:
    """Write a batch through `generate` of transformers, which knows every architecture's cache; how many have ended, once."""
    (drafts,), tokenizer, model = group, loaded.tokenizer, loaded.model
    rows = [[*draft.prompt.context.tolist(), *draft.prompt.ids.tolist()] for draft in drafts]
    width = max(map(len, rows))
    ids = [[tokenizer.pad_id] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]

    class AddTokens(LogitsProcessor):
        """Scores whose argmax is the token that is chosen."""

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            going = [row for row, draft in enumerate(drafts) if draft.stopped_by is None]
            tokens = _choose([drafts[row] for row in going], scores[going], decoding)
            for row, token in zip(going, tokens, strict=True):
                _append(tokenizer, drafts[row], token)
            chosen = torch.zeros_like(scores)
            chosen[going, tokens] = 1
            return chosen

    class HaveEnded(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
            return torch.tensor([draft.stopped_by is not None for draft in drafts], device=input_ids.device)

    config = GenerationConfig(
        max_new_tokens=drafts[0].limit,
        do_sample=False,
        use_cache=True,
        eos_token_id=sorted(tokenizer.stop_ids),
        pad_token_id=tokenizer.pad_id,
    )
    # What a call leaves open is filled from the model's own, a sampling temperature for example.
    of_checkpoint, model.generation_config = model.generation_config, GenerationConfig()
    try:
        model.generate(
            torch.tensor(ids, device=loaded.device),
            attention_mask=torch.tensor(mask, device=loaded.device),
            generation_config=config,
            logits_processor=LogitsProcessorList([AddTokens()]),
            stopping_criteria=StoppingCriteriaList([HaveEnded()]),
        )
    finally:
        model.generation_config = of_checkpoint
    yield len(drafts)


def _choose(drafts: Sequence[_Draft], logits_BV: torch.Tensor, decoding: Decoding) -> list[int]:
    """The next token of each draft: the most likely one, or a draw."""
    scores_BV = logits_BV
    if decoding.repetition_penalty != 1:
        scores_BV, seen_BV = scores_BV.float(), torch.zeros_like(logits_BV, dtype=torch.bool)
        for seen_V, draft in zip(seen_BV, drafts, strict=True):
            text = [*draft.prompt.context[1:].tolist(), *draft.prompt.ids.tolist(), *draft.ids]
            seen_V[torch.tensor(text, dtype=torch.long, device=seen_V.device)] = True
        penalty = decoding.repetition_penalty
        scores_BV = torch.where(seen_BV, torch.where(scores_BV > 0, scores_BV / penalty, scores_BV * penalty), scores_BV)
    if decoding.temperature > 0:
        warpers = LogitsProcessorList([TemperatureLogitsWarper(decoding.temperature)])
        if decoding.top_k > 0:
            warpers.append(TopKLogitsWarper(decoding.top_k))
        if decoding.top_p < 1:
            warpers.append(TopPLogitsWarper(decoding.top_p))
        # Drawn on the CPU in float64, so that every device sees the same.
        draws = [torch.empty(logits_BV.shape[1], dtype=torch.float64).exponential_(generator=d.generator) for d in drafts]
        noise_BV = -torch.stack(draws).log().float()
        scores_BV = warpers(None, scores_BV.float()) + noise_BV.to(scores_BV.device)
    # The first of the highest, as argmax, which takes three times as long.
    tokens: list[int] = scores_BV.max(-1).indices.tolist()
    return tokens


def _append(tokenizer: TextTokenizer, draft: _Draft, token: int) -> None:
    """Add a token to a draft, and the stop rule: an EOS token, the end of a turn, a stop text, the tokens asked for, the last
    position of the model."""
    if token in tokenizer.stop_ids:
        draft.stopped_by = "eos"
        return
    draft.ids.append(token)
    end = draft.prompt.turn_end
    if end and token == end[-1]:
        whole = tuple(draft.ids[-len(end) :]) == end
        if whole or token in tokenizer.special_ids:
            del draft.ids[-(len(end) if whole else 1) :]
            draft.stopped_by = "eos"
            return
    stops = draft.prompt.stops
    recent = tokenizer.decode(draft.ids[-max(map(len, stops)) - _STOP_MARGIN :]) if stops else ""
    if any(stop in recent for stop in stops):
        draft.stopped_by = draft.prompt.at_stop
        return
    beyond = len(draft.ids) - draft.prompt.max_new_tokens
    ending = any(tuple(draft.ids[-n:]) == end[:n] for n in range(max(1, beyond), len(end)))
    if len(draft.ids) >= draft.limit or (beyond >= 0 and not ending):
        draft.stopped_by = "max_new_tokens" if beyond >= 0 else "context"
        del draft.ids[draft.prompt.max_new_tokens :]
    if draft.prompt.on_text:
        held = max((n for n in range(1, len(end)) if tuple(draft.ids[-n:]) == end[:n]), default=0)
        draft.prompt.on_text(_text_of(tokenizer, draft.prompt, draft.ids[: len(draft.ids) - held]))

"""Continue prompts: batched on the left, greedy or sampled, and the same text whichever prompts stand beside one.

A sampled prompt draws from a generator of its own (Gumbel noise on its logits, then argmax, which is a draw from the softmax),
not from one stream for the whole batch: its text then depends on `seed` and itself, not on the batching or its neighbours.
Nothing of the checkpoint's generation config applies but the ids that end a text.
"""

import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from paretune.data.tokenizer import TextTokenizer
from paretune.errors import DataError
from paretune.evaluate.outputs import Generation, Score, StoppedBy, filtered_score, judged, write_generations, write_scores
from paretune.model.load import LoadedModel, load_model
from paretune.pipeline.stage import StageContext
from paretune.study.evaluations import Generate

BATCH_SIZE = 16
"""Fixed: padding to the longest prompt of a batch moves float rounding, which can turn a near tie of two tokens in bfloat16."""
_LINE_BREAK = re.compile(r"[\r\n]")


@dataclass(frozen=True)
class GenerationSettings:
    """What the text of a prompt depends on, besides the model."""

    max_new_tokens: int
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    repetition_penalty: float = 1.0
    """Of tokens of the prompt and of the text so far (Keskar et al. 2019, https://arxiv.org/abs/1909.05858); 1 is none."""
    seed: int = 0
    end_at_line_break: bool = False
    """End at the first line break, which is left out: for short answers."""


@dataclass(frozen=True)
class _Prompt:
    index: int
    text: str
    ids: tuple[int, ...]
    """The prefix token first."""
    limit: int
    """New tokens at most: those asked for, or as many as the positions leave room for."""
    seed: int


def evaluate_generate(context: StageContext) -> dict[str, Any]:
    """Stage body: `generations.jsonl` in the order of the prompts, and scores `new_tokens`, `new_words`, `stopped_by_eos`."""
    config = Generate.model_validate(context.config["evaluation"], strict=False)
    settings = GenerationSettings(**config.model_dump(exclude={"prompts"}))
    generations = judged(context, generate(load_model(context), config.prompts, settings, emit=context.emit))
    scores = [score for index, each in enumerate(generations) for score in generation_scores(each, str(index))]
    write_generations(generations, context.draft)
    write_scores(scores, context.draft)
    stops = Counter(each.stopped_by for each in generations)
    return {"prompts": len(generations), **{f"stopped_by_{reason}": count for reason, count in sorted(stops.items())}}


def generation_scores(generation: Generation, name: str) -> list[Score]:
    """Length in tokens and in words (between white space), and whether the text came to its end by itself."""
    values = {
        "new_tokens": generation.new_tokens,
        "new_words": len(generation.text.split()),
        "stopped_by_eos": generation.stopped_by == "eos",
    }
    scores = [Score(metric, float(value), example=name, document=name) for metric, value in values.items()]
    return scores + filtered_score(generation, scores[0])


def generate(
    loaded: LoadedModel,
    prompts: Sequence[str],
    settings: GenerationSettings,
    *,
    batch_size: int = BATCH_SIZE,
    emit: Callable[..., None] = lambda **_: None,
) -> list[Generation]:
    """The continuation of each prompt, in the order of `prompts`.

    Prompt and text together stay within the positions of the model; DataError for a prompt that leaves no room for a token.
    """
    done: dict[int, Generation] = {}
    for batch in _batches(_prepared(loaded, prompts, settings), batch_size):
        for prompt, generation in zip(batch, _generate_batch(loaded, batch, settings), strict=True):
            done[prompt.index] = generation
        emit(done=len(done), total=len(prompts))
    return [done[index] for index in range(len(prompts))]


def cut_at_stop(ids: Sequence[int], stop_ids: frozenset[int], limit: int, asked: int) -> tuple[list[int], StoppedBy]:
    """The tokens before the first stop token, and why the text ends there; `ids` may carry padding after it.

    `limit` new tokens were possible, `asked` were asked for.
    """
    for position, token in enumerate(ids[:limit]):
        if token in stop_ids:
            return list(ids[:position]), "eos"
    return list(ids[:limit]), "max_new_tokens" if limit == asked else "context"


def continuation_text(tokenizer: TextTokenizer, prompt_ids: Sequence[int], new_ids: Sequence[int]) -> str:
    """The text of `new_ids` as it follows `prompt_ids`.

    Decoded with the prompt: SentencePiece-style decoders drop the space before the first word of what they are given.
    """
    head, whole = tokenizer.decode(prompt_ids), tokenizer.decode([*prompt_ids, *new_ids])
    return whole[len(head) :] if whole.startswith(head) else tokenizer.decode(new_ids)


def _prepared(loaded: LoadedModel, prompts: Sequence[str], settings: GenerationSettings) -> list[_Prompt]:
    prepared, seen = [], Counter[str]()
    for index, text in enumerate(prompts):
        ids = (loaded.tokenizer.prefix_id, *loaded.tokenizer.encode(text))
        room = settings.max_new_tokens if loaded.max_positions is None else loaded.max_positions - len(ids)
        if room < 1:
            raise DataError(
                f"the prompt `{text[:60]}...` has {len(ids)} tokens and the model {loaded.max_positions} positions; shorten it"
            )
        # A prompt that is given twice is sampled twice.
        seed = _seed_of(settings.seed, text, seen[text])
        seen[text] += 1
        prepared.append(_Prompt(index, text, ids, min(room, settings.max_new_tokens), seed))
    return prepared


def _seed_of(seed: int, text: str, occurrence: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\0{occurrence}\0{text}".encode()).digest()[:7])


def _batches(prompts: Sequence[_Prompt], batch_size: int) -> Iterator[list[_Prompt]]:
    """Prompts of one limit and like length together.

    One limit: a row that has ended is fed padding until its batch ends, and must not be pushed past the last position by it.
    """
    rest = sorted(prompts, key=lambda prompt: (prompt.limit, len(prompt.ids)))
    while rest:
        batch = [prompt for prompt in rest[:batch_size] if prompt.limit == rest[0].limit]
        rest = rest[len(batch) :]
        yield batch


def _generate_batch(loaded: LoadedModel, batch: Sequence[_Prompt], settings: GenerationSettings) -> list[Generation]:
    tokenizer, width = loaded.tokenizer, max(len(prompt.ids) for prompt in batch)
    rows = [[tokenizer.pad_id] * (width - len(prompt.ids)) + list(prompt.ids) for prompt in batch]
    mask = [[0] * (width - len(prompt.ids)) + [1] * len(prompt.ids) for prompt in batch]
    started = time.perf_counter()
    with _own_generation_config(loaded.model):
        output = loaded.model.generate(
            torch.tensor(rows, device=loaded.device),
            attention_mask=torch.tensor(mask, device=loaded.device),
            generation_config=GenerationConfig(
                max_new_tokens=batch[0].limit,
                do_sample=False,
                use_cache=True,
                eos_token_id=sorted(tokenizer.stop_ids),
                pad_token_id=tokenizer.pad_id,
            ),
            logits_processor=LogitsProcessorList([_Choice(batch, width, settings)]),
            stopping_criteria=StoppingCriteriaList([_AtLineBreak(tokenizer, width)] if settings.end_at_line_break else []),
        )
    new_ids = output[:, width:].tolist()  # waits for the device
    seconds = (time.perf_counter() - started) / len(batch)
    return [_generation(tokenizer, prompt, ids, settings, seconds) for prompt, ids in zip(batch, new_ids, strict=True)]


def _generation(
    tokenizer: TextTokenizer, prompt: _Prompt, ids: Sequence[int], settings: GenerationSettings, seconds: float
) -> Generation:
    kept, stopped_by = cut_at_stop(ids, tokenizer.stop_ids, prompt.limit, settings.max_new_tokens)
    text = continuation_text(tokenizer, prompt.ids[1:], kept)
    if settings.end_at_line_break and (found := _LINE_BREAK.search(text)):
        text, stopped_by = text[: found.start()], "line_break"
        kept = kept[: next(n for n in range(1, len(kept) + 1) if _LINE_BREAK.search(tokenizer.decode(kept[:n])))]
    return Generation(prompt.text, text, len(kept), seconds, stopped_by)


@contextmanager
def _own_generation_config(model: PreTrainedModel) -> Iterator[None]:
    """Empty inside the block: `generate` fills what a call leaves open from the model's, a sampling temperature for example."""
    of_checkpoint, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = of_checkpoint


class _Choice(LogitsProcessor):
    """Turns logits into scores whose argmax is the next token: the most likely one, or a draw."""

    def __init__(self, batch: Sequence[_Prompt], width: int, settings: GenerationSettings) -> None:
        # After padding and prefix, which are no text: as EOS is often both, a penalty on them would keep texts from ending.
        self.starts = [width - len(prompt.ids) + 1 for prompt in batch]
        self.penalty = settings.repetition_penalty
        self.warpers = _warpers(settings) if settings.temperature > 0 else []
        self.generators = [torch.Generator().manual_seed(prompt.seed) for prompt in batch]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.penalty != 1:
            scores = self._penalised(input_ids, scores)
        if not self.warpers:
            return scores
        for warper in self.warpers:
            scores = warper(input_ids, scores)
        return scores + self._gumbel_noise(scores.shape[1]).to(scores.device)

    def _penalised(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen = torch.zeros_like(scores, dtype=torch.bool)
        for row, start in enumerate(self.starts):
            seen[row, input_ids[row, start:]] = True
        return torch.where(seen, torch.where(scores > 0, scores / self.penalty, scores * self.penalty), scores)

    def _gumbel_noise(self, size: int) -> torch.Tensor:
        """One row a prompt, drawn on the CPU in float64, so that every device sees the same."""
        draws = [torch.empty(size, dtype=torch.float64).exponential_(generator=each) for each in self.generators]
        return -torch.stack(draws).log().float()


def _warpers(settings: GenerationSettings) -> list[LogitsProcessor]:
    warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(settings.temperature)]
    if settings.top_k > 0:
        warpers.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        warpers.append(TopPLogitsWarper(settings.top_p))
    return warpers


class _AtLineBreak(StoppingCriteria):
    """Ends a row once its text holds a line break."""

    def __init__(self, tokenizer: TextTokenizer, width: int) -> None:
        self.tokenizer, self.width = tokenizer, width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        texts = [self.tokenizer.decode(ids) for ids in input_ids[:, self.width :].tolist()]
        return torch.tensor([_LINE_BREAK.search(text) is not None for text in texts], device=input_ids.device)

"""Continuations of prompts, greedy or sampled, each told by its length and by what ended it."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from paretune.data.chat import chat_prompt, turn_end
from paretune.data.words import words_of
from paretune.errors import DataError
from paretune.evaluate.answers import GREEDY, LINE_BREAKS, Decoding, Prompt, write_answers
from paretune.evaluate.outputs import Generation, Score, safety_scores, with_safety, write_outputs
from paretune.model.load import LoadedModel, load_model
from paretune.pipeline.stage import StageContext
from paretune.study.evaluations import Generate, Prefix


def evaluate_generate(context: StageContext) -> dict[str, Any]:
    """Stage body: `generations.jsonl` in the order of the prompts, and scores `new_tokens`, `new_words`, `stopped_by_eos`.

    The evaluation's config is `Generate`, with `chats` where each prompt is what a user says.
    """
    fields = dict(context.config["evaluation"])
    chats = fields.pop("chats", False)
    config = Generate.model_validate(fields, strict=False)
    decoding = Decoding(config.temperature, config.top_p, config.top_k, config.repetition_penalty)
    loaded = load_model(context)
    prompts = config.prompts
    if chats:
        asked = ([{"role": "user", "content": prompt}] for prompt in prompts)
        prompts = tuple(chat_prompt(loaded.tokenizer, messages, where="evaluate.generate") for messages in asked)
    generations = generate(loaded, prompts, config.max_new_tokens, decoding, seed=config.seed, emit=context.emit)
    if chats:
        pairs = zip(generations, config.prompts, strict=True)
        generations = [replace(each, prompt=prompt, read=each.prompt) for each, prompt in pairs]
    generations = with_safety(context, generations)
    scores: list[Score] = []
    for index, generation in enumerate(generations):
        values = {
            "new_tokens": generation.new_tokens,
            "new_words": len(words_of(generation.text)),
            "stopped_by_eos": generation.stopped_by == "eos",
        }
        of_text = [Score(metric, float(value), example=str(index), document=str(index)) for metric, value in values.items()]
        scores += of_text + safety_scores(generation, of_text[0])
    write_outputs(context.draft, scores, generations)
    stops = Counter(each.stopped_by for each in generations)
    return {"prompts": len(generations), **{f"stopped_by_{reason}": count for reason, count in sorted(stops.items())}}


def generate(
    loaded: LoadedModel,
    prompts: Sequence[str],
    max_new_tokens: int,
    decoding: Decoding = GREEDY,
    *,
    seed: int = 0,
    end_at_line_break: bool = False,
    prefix: Prefix = "auto",
    emit: Callable[..., None] = lambda **_: None,
    on_text: Callable[[str], None] | None = None,
) -> list[Generation]:
    """The continuation of each prompt, in the order of `prompts`; with `end_at_line_break` its first line.

    `on_text`, for a single prompt, is told the text so far after each token.

    Prompt and text together stay within the positions of the model; DataError for a prompt that leaves no room for a token.
    """
    asked: list[Prompt] = []
    times_seen, end = Counter[str](), turn_end(loaded.tokenizer)
    stops = {"stops": LINE_BREAKS, "at_stop": "line_break"} if end_at_line_break else {}
    before = np.array(loaded.tokenizer.prefix_ids(prefix), np.int32)
    for text in prompts:
        ids = np.array(loaded.tokenizer.encode(text), np.int32)
        context, ids = (before.copy(), ids) if len(before) else (ids, before)
        # A prompt that is given twice is sampled twice.
        digest = hashlib.sha256(f"{seed}\0{times_seen[text]}\0{text}".encode()).digest()
        times_seen[text] += 1
        drawn_by = int.from_bytes(digest[:7])
        asked.append(Prompt(context, ids, max_new_tokens, turn_end=end, seed=drawn_by, on_text=on_text, **stops))
        if loaded.max_positions is not None and asked[-1].num_tokens >= loaded.max_positions:
            raise DataError(
                f"the prompt `{text[:60]}...` has {asked[-1].num_tokens} tokens and the model {loaded.max_positions} "
                "positions; shorten it"
            )
    answers = write_answers(loaded, asked, decoding, emit=emit)
    return [
        Generation(text, answer.text, len(answer.ids), answer.seconds, answer.stopped_by)
        for text, answer in zip(prompts, answers, strict=True)
    ]

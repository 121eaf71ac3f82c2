"""Questions with known answers: multiple choice by likelihood, factual by likelihood and by generated answer.

Prompt and option are tokenized apart and joined literally (the seam rule), so every option follows the same prompt tokens.
`accuracy` takes the option with the highest log-likelihood per UTF-8 byte of its text, as long options are less likely than
short ones for no merit of theirs; `accuracy_unnormalised` takes the plain sum.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from paretune.data.questions import Question, Request, read_questions, request_of, slices_of
from paretune.data.templates import parse_template
from paretune.data.trees import Example
from paretune.errors import DataError
from paretune.evaluate.generate import GenerationSettings, generate
from paretune.evaluate.outputs import Generation, Score, filtered_score, judged, write_generations, write_scores
from paretune.evaluate.scorers import contains, exact_match
from paretune.model.forward import score
from paretune.model.load import LoadedModel, load_model
from paretune.pipeline.stage import StageContext
from paretune.study.evaluations import Qa

TIE = 1e-5
"""Relative difference under which two options count as equal: what packing and padding move in float32."""


@dataclass(frozen=True)
class Likelihoods:
    """log p of each answer of a question after its prompt: of the options, or of the one answer of a factual question."""

    sums: tuple[float, ...]
    """Nats over the tokens of the answer, at most 0."""
    num_tokens: tuple[int, ...]


def evaluate_qa(context: StageContext) -> dict[str, Any]:
    """Stage body: scores of every question, and the generated answers of the factual ones in `generations.jsonl`."""
    settings = Qa.model_validate(context.config["evaluation"], strict=False)
    questions = read_questions(context.resources["items"], settings.format)
    slices = [slices_of(question, settings.slice_by) for question in questions]
    templates = [parse_template(source) for source in (settings.prompt, settings.answer, settings.context)]
    requests = [request_of(question, *templates) for question in questions]
    loaded = load_model(context, fused=True)
    likelihoods = answer_likelihoods(loaded, requests, context.options.forward_tokens)
    context.emit(done=len(questions), total=2 * len(questions))
    generations = judged(context, generated_answers(loaded, requests, settings.max_new_tokens))
    answers = dict(zip((request.question.id for request in requests if request.factual), generations, strict=True))
    scores, first = [], dict[str, str]()
    for question, found, of_question in zip(questions, likelihoods, slices, strict=True):
        # Questions about one text are a cluster, which has the name of its first.
        document = first.setdefault(question.context, question.id) if question.context else question.id
        scores += question_scores(question, found, answers.get(question.id), of_question, document)
    write_scores(scores, context.draft, settings.slice_by)
    write_generations(generations, context.draft)
    ties = sum(choices_of(q, found)[1] for q, found in zip(questions, likelihoods, strict=True) if q.options)
    chosen = [1 / len(question.options) for question in questions if question.options]
    counts = {"questions": len(questions), "multiple_choice": len(chosen), "ties": ties}
    return counts | ({"chance_accuracy": sum(chosen) / len(chosen)} if chosen else {})


def answer_likelihoods(loaded: LoadedModel, requests: Sequence[Request], forward_tokens: int) -> list[Likelihoods]:
    """Log-likelihoods of the answers of each request; DataError for one that does not fit into the model's positions."""
    examples = [example for request in requests for example in _examples(loaded, request)]
    results = score(loaded.packed, examples, forward_tokens=forward_tokens)
    groups = [list(islice(results, len(request.answers))) for request in requests]
    return [Likelihoods(tuple(-float(r.nats.sum()) for r in group), tuple(len(r.nats) for r in group)) for group in groups]


def generated_answers(loaded: LoadedModel, requests: Sequence[Request], max_new_tokens: int) -> list[Generation]:
    """Greedy answers to the factual questions among `requests`, in their order, up to the first line break."""
    factual = [request for request in requests if request.factual]
    settings = GenerationSettings(max_new_tokens, end_at_line_break=True)
    generations = generate(loaded, [request.prompt for request in factual], settings)
    return [replace(each, reference=request.question.answer) for each, request in zip(generations, factual, strict=True)]


def question_scores(
    question: Question, found: Likelihoods, generation: Generation | None, slices: Mapping[str, str], document: str
) -> list[Score]:
    """`log_likelihood` of the gold answer, weighted by its tokens, and what is right and wrong, weighted 1.

    `generation` is the answer to a factual question, None for multiple choice.
    """
    gold = question.answer_index or 0
    values = {"log_likelihood": found.sums[gold] / found.num_tokens[gold]}
    if generation is None:
        values |= {metric: float(index == gold) for metric, index in choices_of(question, found)[0].items()}
    else:
        values["exact_match"] = float(exact_match(generation.text, question.answer))
        values["contains"] = float(contains(generation.text, question.answer))
    weights = {"log_likelihood": found.num_tokens[gold]}
    scores = [
        Score(metric, value, example=question.id, document=document, weight=weights.get(metric, 1), slices=slices)
        for metric, value in values.items()
    ]
    return scores if generation is None else scores + filtered_score(generation, scores[0])


def choices_of(question: Question, found: Likelihoods) -> tuple[dict[str, int], bool]:
    """The option that each metric takes, the first where several are best, and whether there was such a tie."""
    sizes = [len(option.encode()) for option in question.options]
    normalised = best([value / size for value, size in zip(found.sums, sizes, strict=True)])
    plain = best(found.sums)
    tied = len(normalised) > 1 or len(plain) > 1
    return {"accuracy": normalised[0], "accuracy_unnormalised": plain[0]}, tied


def best(values: Sequence[float]) -> list[int]:
    """Indices of the highest value, and of those within `TIE` of it."""
    highest = max(values)
    return [index for index, value in enumerate(values) if math.isclose(value, highest, rel_tol=TIE)]


def _examples(loaded: LoadedModel, request: Request) -> list[Example]:
    """The answers as branches of the prompt, which is encoded once."""
    prompt = np.array([loaded.tokenizer.prefix_id, *loaded.tokenizer.encode(request.prompt)], dtype=np.int32)
    return [Example(_answer_ids(loaded, request, answer, len(prompt)), 0, prompt) for answer in request.answers]


def _answer_ids(loaded: LoadedModel, request: Request, answer: str, prompt_tokens: int) -> np.ndarray:
    ids = loaded.tokenizer.encode_continuation(answer)
    length = prompt_tokens + len(ids)
    if not ids:
        raise DataError(f"question `{request.question.id}`: the template `answer` leaves nothing of an answer to score")
    if loaded.max_positions is not None and length > loaded.max_positions:
        raise DataError(
            f"question `{request.question.id}` has {length} tokens with its answer and the model {loaded.max_positions} "
            "positions; shorten it, or leave it out"
        )
    return np.array(ids, dtype=np.int32)

"""Questions with known answers: multiple choice by likelihood, factual by likelihood and by generated answer.

Prompt and option are tokenized apart and joined literally (the seam rule), so every option follows the same prompt tokens;
before a prompt stands the token that `prefix` names. `accuracy` takes the option with the highest log-likelihood per UTF-8 byte
of its text, as long options are less likely than short ones for no merit of theirs; `accuracy_unnormalised` takes the sum.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from paretune.data.questions import Question, Request, fitted, read_question_set, request_of, slices_of
from paretune.data.templates import parse_template
from paretune.data.trees import Example
from paretune.errors import DataError
from paretune.evaluate.generate import generate
from paretune.evaluate.outputs import Generation, Score, safety_scores, with_safety, write_outputs
from paretune.evaluate.scorers import best_of, score_answer
from paretune.model.forward import score
from paretune.model.load import LoadedModel, load_model
from paretune.pipeline.records import CHOICES
from paretune.pipeline.stage import StageContext
from paretune.study.evaluations import Prefix, Qa

TIE = 1e-5
"""Relative difference under which two options count as equal: what packing and padding move in float32."""


@dataclass(frozen=True)
class Likelihoods:
    """log p of each answer of a question after its prompt: of the options, or of the one answer of a factual question."""

    sums: tuple[float, ...]
    """Nats over the tokens of the answer, at most 0."""
    num_tokens: tuple[int, ...]


def evaluate_qa(context: StageContext) -> dict[str, Any]:
    """Stage body: scores of every question, the generated answers of the factual ones in `generations.jsonl`, and which option
    was taken of the others in `choices.jsonl`."""
    settings = Qa.model_validate(context.config["evaluation"], strict=False)
    file = str(context.resources["items"])
    found = read_question_set(file, settings.format, settings.right_option, settings.references)
    loaded = load_model(context, fused=True)
    asked, cut = asked_within(loaded, found.questions, settings)
    questions, requests = [question for question, _ in asked], [request for _, request in asked]
    slices = [slices_of(question, settings.slice_by) for question in questions]
    told = partial(context.emit, part="likelihoods")
    likelihoods = answer_likelihoods(loaded, requests, context.options.forward_tokens, settings.prefix, emit=told)
    factual = [request for request in requests if request.factual]
    generations = generate(
        loaded,
        [request.prompt for request in factual],
        settings.max_new_tokens,
        end_at_line_break=True,
        prefix=settings.prefix,
        emit=partial(context.emit, part="answers"),
    )
    pairs = zip(generations, factual, strict=True)
    generations = with_safety(
        context,
        [
            replace(each, reference=asked.answer, references=(asked.answer, *asked.others) if asked.others else None)
            for each, asked in ((each, request.question) for each, request in pairs)
        ],
    )
    answers = {request.question.id: each for request, each in zip(factual, generations, strict=True)}
    # Questions about one text are a cluster, which has the name of its first, for every base.
    first = {question.context: question.id for question in reversed(found.questions) if question.context}
    scores, ties = [], 0
    for question, likelihood, of_question in zip(questions, likelihoods, slices, strict=True):
        document = first.get(question.context, question.id)
        scores += question_scores(question, likelihood, answers.get(question.id), of_question, document)
        ties += bool(question.options) and choices_of(question, likelihood)[1]
    write_outputs(context.draft, scores, generations, settings.slice_by)
    write_choices(context.draft / CHOICES, requests, likelihoods)
    chosen = [1 / len(question.options) for question in questions if question.options]
    counts = {"questions": len(questions), "multiple_choice": len(chosen), "ties": ties}
    counts |= {
        "prefix": loaded.tokenizer.decode(loaded.tokenizer.prefix_ids(settings.prefix)),
        "read_as": "; ".join(found.read_as),
    }
    too_long = {"skipped_questions": len(found.questions) - len(questions), "cut_questions": cut}
    counts |= {name: count for name, count in too_long.items() if count}
    return counts | ({"chance_accuracy": sum(chosen) / len(chosen)} if chosen else {})


def write_choices(file: Path, requests: Sequence[Request], likelihoods: Sequence[Likelihoods]) -> None:
    """A line for each multiple-choice question: what was asked, its options, the right one, and which was the likeliest."""
    with file.open("w", encoding="utf-8") as lines:
        for request, likelihood in zip(requests, likelihoods, strict=True):
            question = request.question
            if options := question.options:
                row = {"example": question.id, "prompt": request.prompt, "options": list(options)}
                row |= {"reference": options[question.answer_index or 0]}
                row |= {"text": options[choices_of(question, likelihood)[0]["accuracy"]]}
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")


def asked_within(
    loaded: LoadedModel, questions: Sequence[Question], settings: Qa
) -> tuple[list[tuple[Question, Request]], int]:
    """The questions that the model can read to the end of each answer, by `settings.too_long`, with what is asked, and how many
    were cut. DataError where none is left, and for one that is too long where the study says `error`."""
    tokenizer, limit = loaded.tokenizer, loaded.max_positions or sys.maxsize
    num_before = len(tokenizer.prefix_ids(settings.prefix))
    templates = [parse_template(source) for source in (settings.prompt, settings.answer, settings.context)]

    def length(request: Request) -> int:
        # Tokens are not more than bytes, and one for the space before a text.
        longest = max(len(answer.encode()) for answer in request.answers)
        if num_before + len(request.prompt.encode()) + longest + 2 <= limit:
            return 0
        num_prompt = num_before + len(tokenizer.encode(request.prompt))
        return num_prompt + max(len(tokenizer.encode_continuation(answer)) for answer in request.answers)

    asked, num_cut = [], 0
    for question in questions:
        request, cut = fitted(
            question, lambda each: request_of(each, *templates), lambda request: length(request) <= limit, settings.too_long
        )
        if request is None and settings.too_long == "error":
            raise DataError(
                f"question `{question.id}` has {length(request_of(question, *templates))} tokens with its answer and the model "
                f"{limit} positions; shorten it, or write `too_long: skip`, `cut` or `keep_end`"
            )
        asked += [(question, request)] if request else []
        num_cut += cut
    if not asked:
        raise DataError(f"none of {len(questions)} questions fits into the {limit} positions of the model with its answer")
    return asked, num_cut


def answer_likelihoods(
    loaded: LoadedModel,
    requests: Sequence[Request],
    forward_tokens: int,
    prefix: Prefix = "auto",
    emit: Callable[..., None] = lambda **_: None,
) -> list[Likelihoods]:
    """Log-likelihoods of the answers of each request, as branches of its prompt, which is encoded once.

    DataError for an answer that is empty or does not fit into the model's positions.
    """
    examples, before = [], loaded.tokenizer.prefix_ids(prefix)
    for request in requests:
        prompt = np.array([*before, *loaded.tokenizer.encode(request.prompt)], np.int32)
        if not len(prompt):
            raise DataError(f"question `{request.question.id}`: nothing stands before its answer; write a longer `prompt`")
        for answer in request.answers:
            ids = np.array(loaded.tokenizer.encode_continuation(answer), np.int32)
            length = len(prompt) + len(ids)
            if not len(ids):
                raise DataError(f"question `{request.question.id}`: the template `answer` leaves nothing of an answer to score")
            if loaded.max_positions is not None and length > loaded.max_positions:
                raise DataError(
                    f"question `{request.question.id}` has {length} tokens with its answer and the model "
                    f"{loaded.max_positions} positions; shorten it, or leave it out"
                )
            examples.append(Example(ids, 0, prompt))
    results = score(loaded.packed, examples, forward_tokens=forward_tokens, emit=emit)
    groups = [list(islice(results, len(request.answers))) for request in requests]
    return [Likelihoods(tuple(-float(r.nats.sum()) for r in group), tuple(len(r.nats) for r in group)) for group in groups]


def question_scores(
    question: Question, likelihoods: Likelihoods, generation: Generation | None, slices: Mapping[str, str], document: str
) -> list[Score]:
    """`log_likelihood` of the gold answer, weighted by its tokens, and what is right and wrong, weighted 1.

    Of several right answers the likelihood is that of the first, the same text for every model, and the rest of the best.
    `generation` is the answer to a factual question, None for multiple choice.
    """
    gold = question.answer_index or 0
    values = {"log_likelihood": likelihoods.sums[gold] / likelihoods.num_tokens[gold]}
    if generation is None:
        values |= {metric: float(index == gold) for metric, index in choices_of(question, likelihoods)[0].items()}
    else:
        right = (question.answer, *question.others)
        values |= best_of([score_answer(("exact_match", "contains"), generation.text, answer) for answer in right])
    weights = {"log_likelihood": likelihoods.num_tokens[gold]}
    scores = [
        Score(metric, value, example=question.id, document=document, weight=weights.get(metric, 1), slices=slices)
        for metric, value in values.items()
    ]
    return scores if generation is None else scores + safety_scores(generation, scores[0])


def choices_of(question: Question, likelihoods: Likelihoods) -> tuple[dict[str, int], bool]:
    """The option that each metric takes, the first where several are best, and whether there was such a tie."""
    sizes = [len(option.encode()) for option in question.options]
    by_metric = {
        "accuracy": [value / size for value, size in zip(likelihoods.sums, sizes, strict=True)],
        "accuracy_unnormalised": likelihoods.sums,
    }
    best = {
        metric: [index for index, value in enumerate(values) if math.isclose(value, max(values), rel_tol=TIE)]
        for metric, values in by_metric.items()
    }
    return {metric: indices[0] for metric, indices in best.items()}, any(len(indices) > 1 for indices in best.values())

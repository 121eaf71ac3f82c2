"""The tasks of a dataset on held-out records: greedy answers with their scores, and labels by likelihood.

The tasks of a record share its context, which is read once. What is asked alike (one document, context and prompt) is one
question with several right answers: it is answered once, and the best score counts, metric by metric. `accuracy` takes the
label with the highest log-likelihood as a whole answer, its end included, so that a label that begins another one is told from
it; `accuracy_generated` asks whether the generated answer is the label.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from paretune.data.chat import turn_end
from paretune.data.examples import examples_of
from paretune.data.tokenizer import TextTokenizer
from paretune.data.tokens import read_tokens
from paretune.data.trees import Example
from paretune.data.words import words_of
from paretune.errors import DataError
from paretune.evaluate.answers import Answer, Prompt, write_answers
from paretune.evaluate.bert_score import bert_score, load_encoder
from paretune.evaluate.outputs import Generation, Score, safety_scores, with_safety, write_outputs
from paretune.evaluate.scorers import best_of, score_answer, shape_of
from paretune.model.forward import score
from paretune.model.load import LoadedModel, load_model
from paretune.pipeline.stage import StageContext
from paretune.study.evaluations import Tasks
from paretune.study.tasks import BERT_SCORE

Row = Mapping[str, Any]
"""Of tokens.arrow: one task of one record."""


@dataclass(frozen=True)
class Question:
    """A row, and what would be right to answer."""

    row: Row
    """The first that asks so."""
    references: tuple[str, ...]
    """Different from each other, as they are written."""

    @property
    def task(self) -> str:
        return str(self.row["task"])


def evaluate_tasks(context: StageContext) -> dict[str, Any]:
    """Stage body: scores of every answer in `scores.parquet`, with the task's name in `task`, and `generations.jsonl`.

    The evaluation's config is `Tasks` with `tasks`: name to the fields of its `Scoring`, and `encoder`: the layer of the one
    that `bert_score` compares with.
    """
    fields = dict(context.config["evaluation"])
    tasks: Mapping[str, Mapping[str, Any]] = fields.pop("tasks")
    encoder: Mapping[str, Any] | None = fields.pop("encoder", None)
    settings = Tasks.model_validate(fields, strict=False)
    directory = context.inputs["tokens"].path
    loaded = load_model(context, fused=True)
    labels = {name: _labels(task["labels"], directory, name) for name, task in tasks.items() if task.get("labels")}
    questions: list[Question] = []
    answers: list[Answer] = []
    likeliest: list[str | None] = []
    for split in settings.splits:
        rows = read_tokens(directory, split)
        names, of_tasks = rows.column("document").to_pylist(), rows.column("task").to_pylist()
        documents = set(islice(dict.fromkeys(names), settings.max_documents))
        asked = [name in documents and task in tasks for name, task in zip(names, of_tasks, strict=True)]
        of_split = questions_of(rows.where(np.array(asked, bool)))
        questions += of_split
        answers += write_answers(loaded, prompts_of(of_split, tasks, loaded), emit=partial(context.emit, part="answers"))
        told = partial(context.emit, part="labels")
        likeliest += likeliest_labels(loaded, of_split, labels, context.options.forward_tokens, emit=told)
    similarities = _bert_scores(questions, answers, tasks, encoder, context) if encoder is not None else [{} for _ in questions]
    generations = with_safety(
        context,
        [
            Generation(
                prompt=loaded.tokenizer.decode(question.row["prompt"]),
                text=answer.text,
                new_tokens=len(answer.ids),
                seconds=answer.seconds,
                stopped_by=answer.stopped_by,
                reference=question.references[0],
                task=question.task,
                document=question.row["document"],
                example=question.row["example"],
                references=question.references if len(question.references) > 1 else None,
            )
            for question, answer in zip(questions, answers, strict=True)
        ],
    )
    scores: list[Score] = []
    unseen: Counter[str] = Counter()
    for question, answer, label, similarity, generation in zip(
        questions, answers, likeliest, similarities, generations, strict=True
    ):
        of_answer = answer_scores(question, tasks[question.task], answer, label, similarity)
        scores += of_answer + safety_scores(generation, of_answer[0])
        unseen[question.task] += not {text.strip() for text in question.references} & set(labels.get(question.task, ()))
    write_outputs(context.draft, scores, generations)
    counts = Counter((question.row["split"], question.task) for question in questions)
    return {f"labels_unseen_{name}": unseen[name] for name in labels} | {
        f"answers_{split}_{name}": counts[split, name] for split in settings.splits for name in tasks
    }


def questions_of(rows: Sequence[Row]) -> list[Question]:
    """The rows by what they ask, in their order."""
    by_prompt: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        prompt = (row["split"], row["document"], row["task"], tuple(row["context"]), tuple(row["prompt"]))
        by_prompt.setdefault(prompt, []).append(row)
    right = (
        [text for row in alike for text in (row["reference"], *(row.get("references") or ()))] for alike in by_prompt.values()
    )
    return [Question(alike[0], tuple(dict.fromkeys(texts))) for alike, texts in zip(by_prompt.values(), right, strict=True)]


def prompts_of(questions: Sequence[Question], tasks: Mapping[str, Mapping[str, Any]], loaded: LoadedModel) -> list[Prompt]:
    """What the model is asked; DataError for a question that leaves no room for an answer in the positions of the model."""
    prompts, by_template = [], turn_end(loaded.tokenizer)
    for question, (context, ids) in zip(questions, _context_and_prompt(questions, loaded.tokenizer), strict=True):
        row, task = question.row, tasks[question.task]
        end = turn_end(loaded.tokenizer, row["end"].tolist()) or by_template
        prompts.append(Prompt(context, ids, task["max_new_tokens"], tuple(task["stop"]), end))
        if loaded.max_positions is not None and prompts[-1].num_tokens >= loaded.max_positions:
            raise DataError(
                f"document `{row['document']}` (record {row['example']}) leaves no room for an answer; lower `max_length`"
            )
    return prompts


def likeliest_labels(
    loaded: LoadedModel,
    questions: Sequence[Question],
    labels: Mapping[str, Sequence[str]],
    forward_tokens: int,
    emit: Callable[..., None] = lambda **_: None,
) -> list[str | None]:
    """The likeliest of the labels of each question's task; None where it has none."""
    tokenizer = loaded.tokenizer
    examples: list[Example] = []
    asked = [question for question in questions if question.task in labels]
    for question, (context, prompt) in zip(asked, _context_and_prompt(asked, tokenizer), strict=True):
        # With the white space that stands around the right one.
        reference = question.references[0]
        before, after = reference[: len(reference) - len(reference.lstrip())], reference[len(reference.rstrip()) :]
        for label in labels[question.task]:
            ids = [*prompt, *tokenizer.encode_continuation(f"{before}{label}{after}"), *question.row["end"]]
            examples.append(Example(np.array(ids, np.int32), len(prompt), context))
    results = score(loaded.packed, examples, forward_tokens=forward_tokens, emit=emit)
    likeliest: list[str | None] = []
    for question in questions:
        names = labels.get(question.task, ())
        sums = [-float(each.nats.sum()) for each in islice(results, len(names))]
        likeliest.append(names[int(np.argmax(sums))] if names else None)
    return likeliest


def answer_scores(
    question: Question, task: Mapping[str, Any], answer: Answer, label: str | None, similarity: Mapping[str, float]
) -> list[Score]:
    """All scores of one answer: `label` is the likeliest one, None for a task without labels; `similarity` is by an encoder."""
    row, text = question.row, answer.text.strip()
    references = [reference.strip() for reference in question.references]
    values = {
        **best_of([score_answer(task["score"], text, reference) for reference in references]),
        **similarity,
        **shape_of(text, references),
        "new_tokens": len(answer.ids),
        "new_words": len(words_of(text)),
        "stopped_by_eos": answer.stopped_by == "eos",
    }
    if label is not None:
        values |= {"accuracy": label.strip() in references, "accuracy_generated": text in references}
    common = {"example": row["example"], "document": row["document"], "split": row["split"], "task": row["task"]}
    return [Score(metric, float(value), **common) for metric, value in values.items()]


def _bert_scores(
    questions: Sequence[Question],
    answers: Sequence[Answer],
    tasks: Mapping[str, Mapping[str, Any]],
    config: Mapping[str, Any],
    context: StageContext,
) -> list[dict[str, float]]:
    """BERTScore of each answer of a task that asks for it, by the best of its references; nothing for the others."""
    encoder = load_encoder(config, context.resources["encoder"], context.config.get("device", "cpu"))
    asked = [n for n, question in enumerate(questions) if BERT_SCORE in tasks[question.task]["score"]]
    pairs = [(n, reference) for n in asked for reference in questions[n].references]
    of_pairs = bert_score(encoder, [answers[n].text for n, _ in pairs], [reference for _, reference in pairs], context.emit)
    scores: list[dict[str, float]] = [{} for _ in questions]
    for (n, _), of_pair in zip(pairs, of_pairs, strict=True):
        scores[n] = best_of([of_pair, scores[n]])
    return scores


def _labels(asked: str | Sequence[str], directory: Path, name: str) -> tuple[str, ...]:
    """The labels of a task in alphabetical order; those of the training split where they are asked from there."""
    texts = asked
    if isinstance(asked, str):
        rows = read_tokens(directory, "train")
        numbers = np.flatnonzero(np.array([task == name for task in rows.column("task").to_pylist()], bool))
        texts = list({rows.value_of("reference", number) for number in numbers.tolist()})
    labels = sorted({text.strip() for text in texts})
    if len(labels) < 2:
        raise DataError(f"task `{name}`: the training split has {len(labels)} label(s); a classification needs two or more")
    return tuple(labels)


def _context_and_prompt(questions: Sequence[Question], tokenizer: TextTokenizer) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each question; without a context it is the prefix token."""
    for example in examples_of([question.row for question in questions], tokenizer, 0):
        if example.trunk is None:
            yield example.ids[:1], example.ids[1 : example.first_target]
        else:
            yield example.trunk, example.ids[: example.first_target]

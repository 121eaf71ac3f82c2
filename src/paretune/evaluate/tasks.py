"""The tasks of a dataset on held-out records: greedy answers with their scores, and labels by likelihood.

The tasks of a record share its context, which is read once. `accuracy` takes the label with the highest log-likelihood as a
whole answer, its end included, so that a label that begins another one is told from it; `accuracy_generated` asks whether the
generated answer is the label.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from paretune.data.examples import examples_of
from paretune.data.tokenizer import TextTokenizer, read_tokens
from paretune.data.trees import Example
from paretune.errors import DataError
from paretune.evaluate.branches import Answer, Ask, answer
from paretune.evaluate.outputs import Generation, Score, write_generations, write_scores
from paretune.evaluate.scorers import score_answer, shape_of
from paretune.model.forward import score
from paretune.model.load import LoadedModel, load_model
from paretune.pipeline.stage import StageContext
from paretune.spec.evaluations import Tasks

Row = Mapping[str, Any]
"""Of tokens.parquet: one task of one record."""


def evaluate_tasks(context: StageContext) -> dict[str, Any]:
    """Stage body: scores of every answer in `scores.parquet`, with the task's name in `task`, and `generations.jsonl`.

    The evaluation's config is `Tasks` with `tasks`: name to the fields of its `Scoring`.
    """
    fields = dict(context.config["evaluation"])
    tasks: Mapping[str, Mapping[str, Any]] = fields.pop("tasks")
    settings = Tasks.model_validate(fields, strict=False)
    directory = context.inputs["tokens"].path
    loaded = load_model(context)
    labels = {name: _labels(task["labels"], directory, name) for name, task in tasks.items() if task.get("labels")}
    scores: list[Score] = []
    generations: list[Generation] = []
    metrics: dict[str, Any] = {f"labels_unseen_{name}": 0 for name in labels}
    for split in settings.splits:
        rows = _first_documents(read_tokens(directory, split), settings.max_documents)
        rows = [row for row in rows if row["task"] in tasks]
        answers = answer(loaded, asks_of(rows, tasks, loaded), emit=context.emit)
        likeliest = likeliest_labels(loaded, rows, labels, context.options.forward_tokens)
        for row, found, label in zip(rows, answers, likeliest, strict=True):
            scores += answer_scores(row, tasks[row["task"]], found, label)
            if label is not None:
                metrics[f"labels_unseen_{row['task']}"] += row["reference"].strip() not in labels[row["task"]]
            generations.append(_generation(loaded.tokenizer, row, found))
        counts = Counter(row["task"] for row in rows)
        metrics |= {f"answers_{split}_{name}": counts[name] for name in tasks}
    write_scores(scores, context.draft)
    write_generations(generations, context.draft)
    return metrics


def asks_of(rows: Sequence[Row], tasks: Mapping[str, Mapping[str, Any]], loaded: LoadedModel) -> list[Ask]:
    """What the model is asked about each row; an answer stays within the positions of the model."""
    asks = []
    for row, (trunk, prompt) in zip(rows, _prompts(rows, loaded.tokenizer), strict=True):
        task = tasks[row["task"]]
        room = task["max_new_tokens"] if loaded.max_positions is None else loaded.max_positions - len(trunk) - len(prompt)
        if room < 1:
            raise DataError(
                f"document `{row['document']}` (record {row['example']}) leaves no room for an answer; lower `max_length`"
            )
        asks.append(Ask(trunk, prompt, min(room, task["max_new_tokens"]), tuple(task["stop"])))
    return asks


def likeliest_labels(
    loaded: LoadedModel, rows: Sequence[Row], labels: Mapping[str, Sequence[str]], forward_tokens: int
) -> list[str | None]:
    """The likeliest of the labels of each row's task; None where it has none."""
    tokenizer = loaded.tokenizer
    examples: list[Example] = []
    asked = [row for row in rows if row["task"] in labels]
    for row, (trunk, prompt) in zip(asked, _prompts(asked, tokenizer), strict=True):
        for label in _written(labels[row["task"]], row["reference"]):
            ids = np.array([*tokenizer.encode_continuation(label), *row["end"]], np.int32)
            examples.append(Example(np.concatenate([prompt, ids]).astype(np.int32), len(prompt), trunk))
    results = score(loaded.model, examples, forward_tokens=forward_tokens)
    found = []
    for row in rows:
        names = labels.get(row["task"], ())
        sums = [-float(each.nats.sum()) for each in islice(results, len(names))]
        found.append(names[int(np.argmax(sums))] if names else None)
    return found


def answer_scores(row: Row, task: Mapping[str, Any], found: Answer, label: str | None) -> list[Score]:
    """All scores of one answer; `label` is the likeliest one, None for a task without labels."""
    text, reference = found.text.strip(), row["reference"].strip()
    values = {
        **score_answer(task["score"], text, reference),
        **shape_of(text, reference),
        "new_tokens": len(found.ids),
        "new_words": len(text.split()),
        "stopped_by_eos": found.stopped_by == "eos",
    }
    if label is not None:
        values |= {"accuracy": label.strip() == reference, "accuracy_generated": text == reference}
    place = {"example": row["example"], "document": row["document"], "split": row["split"], "task": row["task"]}
    return [Score(metric, float(value), **place) for metric, value in values.items()]


def _labels(asked: str | Sequence[str], directory: Path, name: str) -> tuple[str, ...]:
    """The labels of a task in alphabetical order; those of the training split where they are asked from there."""
    texts = (
        asked if not isinstance(asked, str) else [r["reference"] for r in read_tokens(directory, "train") if r["task"] == name]
    )
    found = sorted({text.strip() for text in texts})
    if len(found) < 2:
        raise DataError(f"task `{name}`: the training split has {len(found)} label(s); a classification needs two or more")
    return tuple(found)


def _written(labels: Sequence[str], reference: str) -> list[str]:
    """The labels with the white space that stands around the right one."""
    before, after = reference[: len(reference) - len(reference.lstrip())], reference[len(reference.rstrip()) :]
    return [f"{before}{label}{after}" for label in labels]


def _first_documents(rows: Sequence[Row], count: int | None) -> list[Row]:
    kept = set(islice(dict.fromkeys(row["document"] for row in rows), count))
    return [row for row in rows if row["document"] in kept]


def _prompts(rows: Sequence[Row], tokenizer: TextTokenizer) -> list[tuple[np.ndarray, np.ndarray]]:
    """Trunk and prompt of each row; without a context the trunk is the prefix token."""
    found = []
    for example in examples_of(rows, tokenizer, 0):
        if example.trunk is None:
            found.append((example.ids[:1], example.ids[1 : example.first_target]))
        else:
            found.append((example.trunk, example.ids[: example.first_target]))
    return found


def _generation(tokenizer: TextTokenizer, row: Row, found: Answer) -> Generation:
    prompt = tokenizer.decode(row["prompt"])
    return Generation(
        prompt,
        found.text,
        len(found.ids),
        found.seconds,
        found.stopped_by,
        row["reference"],
        row["task"],
        row["document"],
        row["example"],
    )

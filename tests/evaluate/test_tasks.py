"""Scores of answers to tasks: against plain generation, and labels against a float64 reference."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretune.data.tokenizer import load_tokenizer
from paretune.errors import DataError
from paretune.evaluate.scorers import rouge
from paretune.evaluate.tasks import evaluate_tasks
from paretune.pipeline.resources import Resource
from tests.evaluate.stages import BASE, make_context, read_scores, reference_nats, write_task_tokens
from tests.tiny import make_model, make_tokenizer

LABELS = ["copper", "argon", "a lamp"]
CONTEXT = "The train to the harbour leaves at seven.\n"
ROWS = [
    (split, f"d{n // 2}", CONTEXT + str(n // 2), "\nTitle:" if n % 2 == 0 else "\nMetal:", f" {LABELS[n // 2 % 2]}")
    for n, split in enumerate(["train"] * 4 + ["test"] * 8)
]
SCORING = {"score": ["rouge_l", "exact_match"], "max_new_tokens": 8, "stop": []}
TASKS = {"t0": SCORING, "t1": SCORING | {"labels": "from_train", "score": []}}


def evaluate(folder: Path, base: Path, **fields: Any) -> tuple[dict[str, Any], Any]:
    tokens = write_task_tokens(base, ROWS, folder / "tokens")
    evaluation = {"splits": ["test"], "max_documents": None, "tasks": TASKS} | fields
    metrics = evaluate_tasks(make_context(base, evaluation, folder / "draft", inputs={"tokens": tokens}))
    return metrics, read_scores(folder / "draft")


def test_every_answer_is_scored_under_its_task_s_name(tmp_path: Path) -> None:
    base = make_model("llama", tmp_path / "base")
    metrics, scores = evaluate(tmp_path, base)
    assert metrics == {"answers_test_t0": 4, "answers_test_t1": 4, "labels_unseen_t1": 0}
    common = {"length_ratio", "distinct_1", "distinct_2", "repetition", "new_tokens", "new_words", "stopped_by_eos"}
    for task, metric in (("t0", {"rouge_l", "exact_match"}), ("t1", {"accuracy", "accuracy_generated"})):
        of_task = scores[scores.task == task]
        assert metric <= set(of_task.metric) <= metric | common
        assert set(of_task.document) == {"d2", "d3", "d4", "d5"}
        assert not of_task.duplicated(["example", "metric"]).any()
    written = [json.loads(line) for line in (tmp_path / "draft" / "generations.jsonl").read_text().splitlines()]
    assert [(row["task"], row["document"], row["reference"]) for row in written[:2]] == [
        ("t0", "d2", " copper"),
        ("t1", "d2", " copper"),
    ]
    expected = [rouge(row["text"].strip(), row["reference"].strip())["rouge_l"] for row in written if row["task"] == "t0"]
    assert scores.query("task == 't0' and metric == 'rouge_l'").value.tolist() == expected


def test_the_likeliest_label_is_that_of_a_float64_reference(tmp_path: Path) -> None:
    base = make_model("llama", tmp_path / "base")
    evaluation = {"tasks": {"t1": SCORING | {"labels": LABELS}}}
    metrics, scores = evaluate(tmp_path, base, **evaluation)
    assert metrics["labels_unseen_t1"] == 0
    tokenizer, nats_of = load_tokenizer(BASE, Resource(path=base)), reference_nats(base)
    expected = []
    for _, _, context, prompt, completion in ROWS[5::2]:
        head = [tokenizer.prefix_id, *tokenizer.encode(context), *tokenizer.encode(prompt)]
        sums = []
        for label in LABELS:
            ids = [*tokenizer.encode(f" {label}"), tokenizer.eos_id]
            sums.append(float(nats_of([*head, *ids])[0][-len(ids) :].sum()))
        expected.append(float(LABELS[int(np.argmin(sums))] == completion.strip()))
    assert scores.query("metric == 'accuracy'").value.tolist() == expected


def test_the_first_documents_alone_where_asked(tmp_path: Path) -> None:
    base = make_model("llama", tmp_path / "base")
    metrics, scores = evaluate(tmp_path, base, max_documents=2)
    assert metrics["answers_test_t0"] == 2
    assert set(scores.document) == {"d2", "d3"}


def test_one_label_is_no_classification(tmp_path: Path) -> None:
    base = make_model("llama", tmp_path / "base")
    rows = [row for row in ROWS if row[0] == "test" or row[4] == " copper"]
    tokens = write_task_tokens(base, rows, tmp_path / "tokens")
    context = make_context(base, {"tasks": TASKS}, tmp_path / "draft", inputs={"tokens": tokens})
    with pytest.raises(DataError, match=r"task `t1`: the training split has 1 label\(s\)"):
        evaluate_tasks(context)


def test_of_several_right_answers_the_best_counts(tmp_path: Path) -> None:
    base = make_model("llama", tmp_path / "base")
    rows = [("test", "d", CONTEXT, "\nMetal:", f" {label}") for label in ("copper", "x", "argon", "x")]
    evaluate(tmp_path, base)
    tokens = write_task_tokens(base, rows, tmp_path / "several")
    context = make_context(base, {"tasks": {"t0": SCORING}}, tmp_path / "best", inputs={"tokens": tokens})
    assert evaluate_tasks(context) == {"answers_test_t0": 1}
    written = json.loads((tmp_path / "best" / "generations.jsonl").read_text())
    assert written["reference"] == " copper"
    assert written["references"] == [" copper", " argon"]
    found = read_scores(tmp_path / "best").query("metric == 'rouge_l'").value.tolist()
    assert found == [max(rouge(written["text"].strip(), label)["rouge_l"] for label in ("copper", "argon"))]


def test_an_answer_that_reaches_the_last_position_says_so(tmp_path: Path) -> None:
    ids = make_tokenizer()("a lampMetal:")["input_ids"]
    base = make_model("llama", tmp_path / "base", max_position_embeddings=len(ids) + 4)
    rows = [("test", "d", "a lamp", "Metal:", " copper")]
    tokens = write_task_tokens(base, rows, tmp_path / "tokens")
    scoring = {"score": ["contains"], "max_new_tokens": 500, "stop": []}
    evaluate_tasks(make_context(base, {"tasks": {"t0": scoring}}, tmp_path / "draft", inputs={"tokens": tokens}))
    written = json.loads((tmp_path / "draft" / "generations.jsonl").read_text())
    assert (written["stopped_by"], written["new_tokens"]) == ("context", 3)

"""Our engine beside the harness' own `hf` model, request by request, and its tasks as an evaluation, on local task files."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("lm_eval", reason="lm-evaluation-harness comes with the extra `score`")

from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from paretune.cli import main
from paretune.errors import DataError, NeedsError
from paretune.evaluate.harness_tasks import evaluate_lm_eval, task_texts
from paretune.evaluate.lm_eval import ParetuneLM
from tests.conftest import STUDY, write_study
from tests.evaluate.stages import make_context, read_scores
from tests.tiny import make_model

WORDS = ["harbour", "engine", "letter", "lamp", "train", "driver", "winter", "garden", "bridge", "market"]
CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{options}}"
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
ROLLING = """
task: local_text
dataset_path: json
dataset_kwargs: {data_files: {test: texts.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity}
  - {metric: byte_perplexity}
  - {metric: bits_per_byte}
"""
WRITTEN = """
task: local_written
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{options[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 12}
metric_list:
  - {metric: exact_match}
"""


def words(draw: random.Random, count: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(count))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("tasks"), random.Random(0)
    for name, text in (("choice", CHOICE), ("text", ROLLING), ("written", WRITTEN)):
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    questions = [
        {"question": words(draw, 6), "options": [words(draw, n + 1) for n in range(4)], "answer": draw.randrange(4)}
        for _ in range(20)
    ]
    # Longer than the 512 positions of the model, and shorter; one word, and none but ASCII.
    texts = [{"text": text} for text in (words(draw, 700), words(draw, 60), "lamp", "née à Zürich, 12 °C")]
    for name, rows in (("questions", questions), ("texts", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(request.param, tmp_path_factory.mktemp(request.param))


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, one, n) for n, one in enumerate(arguments)]


def test_log_likelihoods_are_those_of_the_harness(base: Path) -> None:
    ours, theirs = ParetuneLM(str(base)), HFLM(str(base), batch_size=4, device="cpu")
    draw = random.Random(1)
    context = words(draw, 30)
    asked = requests(
        "loglikelihood",
        *((context, f" {words(draw, n)}") for n in (1, 2, 5)),
        ("", "A text without a context"),
        (f"{context} ", words(draw, 3)),  # a space at the end of the context goes to the continuation
        (words(draw, 900), f" {words(draw, 4)}"),  # cut on the left
    )
    for (mine, greedy), (reference, is_greedy) in zip(ours.loglikelihood(asked), theirs.loglikelihood(asked), strict=True):
        assert mine == pytest.approx(reference, rel=1e-5)
        assert greedy == is_greedy
    texts = requests("loglikelihood_rolling", *((words(draw, n),) for n in (1, 40, 500, 900)))
    assert ours.loglikelihood_rolling(texts) == pytest.approx(theirs.loglikelihood_rolling(texts), rel=1e-5)


def test_another_prefix_is_that_of_the_harness_when_told_so(base: Path) -> None:
    theirs = HFLM(str(base), batch_size=1, device="cpu")
    ours = ParetuneLM(str(base), prefix="eos")
    (mine,) = ours.loglikelihood(requests("loglikelihood", ("The train", " leaves")))
    end = ours.tokenizer.eos_token
    (reference,) = theirs.loglikelihood(requests("loglikelihood", (f"{end}The train", " leaves")))
    (without,) = theirs.loglikelihood(requests("loglikelihood", ("The train", " leaves")))
    assert mine[0] == pytest.approx(reference[0], rel=1e-5)
    assert mine[0] != pytest.approx(without[0], rel=1e-3)
    assert ours.tok_encode(f"{end}The") == theirs.tok_encode(f"{end}The")  # no second one


def test_greedy_answers_are_those_of_the_harness(base: Path) -> None:
    ours, theirs = ParetuneLM(str(base)), HFLM(str(base), batch_size=1, device="cpu")
    draw = random.Random(2)
    settings = {"until": ["the", "."], "max_gen_toks": 10}
    asked = requests("generate_until", *((words(draw, n), settings) for n in (1, 8, 20)))
    assert ours.generate_until(asked) == theirs.generate_until(asked)
    with pytest.raises(DataError, match="samples its answers"):
        ours.generate_until(requests("generate_until", ("a", {"do_sample": True, "temperature": 1.0})))
    with pytest.raises(DataError, match="answers of 512 tokens"):
        ours.generate_until(requests("generate_until", ("a", {"max_gen_toks": 512})))


def test_tasks_give_the_figures_of_the_harness_and_a_score_for_each_document(base: Path, tasks: Path, tmp_path: Path) -> None:
    names = ["local_choice", "local_text", "local_written"]
    evaluation = {"path": "sha256:0", "tasks": names, "num_fewshot": 2, "limit": None, "chat_template": False}
    record = evaluate_lm_eval(make_context(base, evaluation, tmp_path, items=tasks))
    scores = read_scores(tmp_path)
    assert scores.groupby("task").example.nunique().to_dict() == {"local_choice": 20, "local_text": 4, "local_written": 20}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tasks)
        theirs = simple_evaluate(
            HFLM(str(base), batch_size=4, device="cpu"),
            tasks=names,
            num_fewshot=2,
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            bootstrap_iters=0,
        )["results"]
    for name, figures in theirs.items():
        for metric, value in figures.items():
            if isinstance(value, float):
                assert record[f"harness_{name}"][metric] == pytest.approx(value, rel=1e-4)

    def mean(task: str, metric: str) -> float:
        rows = scores[(scores.task == task) & (scores.metric == metric)]
        return float((rows.value * rows.weight).sum() / rows.weight.sum())

    assert mean("local_choice", "acc") == theirs["local_choice"]["acc,none"]
    assert mean("local_choice", "acc_norm") == theirs["local_choice"]["acc_norm,none"]
    assert mean("local_written", "exact_match") == theirs["local_written"]["exact_match,none"]
    assert mean("local_text", "bits_per_byte") == pytest.approx(theirs["local_text"]["bits_per_byte,none"], rel=1e-4)
    assert math.exp(mean("local_text", "word_loss")) == pytest.approx(theirs["local_text"]["word_perplexity,none"], rel=1e-4)


def test_the_texts_for_the_leakage_check_are_those_of_the_documents(tasks: Path) -> None:
    first = json.loads((tasks / "questions.jsonl").read_text().splitlines()[0])
    texts = task_texts(str(tasks), ["local_choice", "local_text"], limit=3)
    assert len(texts) == 6
    assert texts[0] == f"Question: {first['question']}\nAnswer: {first['options'][first['answer']]}"
    assert texts[5].strip() == "lamp"


def test_the_harness_makes_our_model_from_arguments(tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_model("gpt2", tmp_path / "model")
    monkeypatch.chdir(tasks)
    found = simple_evaluate(
        "paretune",
        model_args=f"pretrained={base},dtype=float32",
        batch_size=8,
        tasks=["local_choice"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        limit=3,
    )
    assert found["n-samples"]["local_choice"]["effective"] == 3
    assert "acc_norm,none" in found["results"]["local_choice"]


def test_a_study_compares_variants_on_tasks_of_the_harness(tasks: Path, tmp_path: Path) -> None:
    asked = f"harness: {{kind: lm_eval, tasks: [local_choice, local_text], num_fewshot: 0, limit: 12, include_path: {tasks}}}"
    text = STUDY[: STUDY.index("  original:")].replace("seeds: [0, 1]", "seeds: [0]")
    study = write_study(tmp_path, f"{text}  shorter: [{{prune.blocks: {{count: 1}}}}]\nevaluate:\n  {asked}\n")
    assert main(["run", str(study), "--out", str(tmp_path / "out")]) == 0
    results = pd.read_csv(tmp_path / "out" / "results.csv").query("task == 'local_choice' and metric == 'acc'")
    assert dict(zip(results.variant, results.n, strict=True)) == {"base": 12, "full": 12, "shorter": 12}
    compared = pd.read_csv(tmp_path / "out" / "comparisons.csv").query("task == 'local_choice'")
    assert set(compared.metric) == {"acc", "acc_norm"}
    assert compared.p.between(0, 1).all()
    (leakage,) = tmp_path.glob(".paretune/leakage-*/record.json")
    assert json.loads(leakage.read_text())["metrics"]["items_touched_harness"] == 0
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "### Tasks of lm-evaluation-harness" in report
    assert "| local\\_choice | acc\\_norm | 12 |" in report
    assert "| local\\_text | word\\_loss | 4 |" in report


def test_a_task_that_cannot_be_had_is_told(tasks: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    text = CHOICE.replace("{{question}}", "{{qestion}}").replace("questions.jsonl", f"{tasks}/questions.jsonl")
    (tmp_path / "mine" / "wrong.yaml").write_text(text, encoding="utf-8")
    gone = text.replace("questions.jsonl", "gone.jsonl").replace("local_choice", "local_gone")
    (tmp_path / "mine" / "gone.yaml").write_text(gone, encoding="utf-8")
    with pytest.raises(DataError, match="one cannot be asked about the first document of its data: 'qestion' is undefined"):
        task_texts(str(tmp_path / "mine"), ["local_choice"])
    with pytest.raises(NeedsError, match=r"tasks `local_gone` of lm-evaluation-harness: a dataset cannot be loaded \(.*gone"):
        task_texts(str(tmp_path / "mine"), ["local_gone"])

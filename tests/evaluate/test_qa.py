"""Option likelihoods against a float64 reference, one option at a time; choices and slices by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paretune.data.questions import Question, request_of, slices_of
from paretune.data.templates import parse_template
from paretune.data.tokenizer import load_tokenizer
from paretune.errors import DataError
from paretune.evaluate.answers import LINE_BREAKS, Prompt, write_answers
from paretune.evaluate.outputs import Generation
from paretune.evaluate.qa import Likelihoods, asked_within, choices_of, evaluate_qa, question_scores
from paretune.model.load import load_model
from paretune.pipeline.resources import Resource
from paretune.study.evaluations import Qa
from tests.evaluate.stages import BASE, make_context, read_scores, reference_nats

QUESTIONS = [
    {
        "id": 1,
        "question": "Which of these is a metal?",
        "options": ["argon", "copper", "the lamp in the harbour", "gas"],
        "answer": "copper",
        "level": "easy",
    },
    {"id": 2, "question": "When does the train leave?", "answer": "at seven", "level": "hard"},
    {"id": 3, "question": "What is a gas?", "options": ["Argon", "née"], "answer": "née", "level": "hard"},
    {"id": 4, "question": "Who waits?", "answer": "nobody", "level": "easy"},
]
PROMPT, ANSWER = " Question: {{ question }}\nAnswer:", " {{ answer }}."


def run(base: Path, draft: Path, questions: list[dict[str, Any]] = QUESTIONS, **fields: Any) -> dict[str, Any]:
    forward_tokens = fields.pop("forward_tokens", 4096)
    draft.mkdir(exist_ok=True)
    (draft / "items.json").write_text(json.dumps({"questions": questions}), encoding="utf-8")
    evaluation = {"path": "sha256:0", "prompt": PROMPT, "answer": ANSWER, "max_new_tokens": 8} | fields
    return evaluate_qa(make_context(base, evaluation, draft, items=draft / "items.json", forward_tokens=forward_tokens))


def test_scores_equal_a_float64_reference(base: Path, tmp_path: Path) -> None:
    metrics = run(base, tmp_path)
    assert metrics == {
        "questions": 4,
        "multiple_choice": 2,
        "ties": 0,
        "prefix": "<bos>",
        "read_as": (
            "2 of multiple choice, the list `options`, `answer` is the text of an option; 2 factual, with an answer in words"
        ),
        "chance_accuracy": (1 / 4 + 1 / 2) / 2,
    }
    scores = read_scores(tmp_path).set_index(["example", "metric"])
    for question in QUESTIONS:
        options = question.get("options", [question["answer"]])
        nats = [_nats(base, question["question"], option) for option in options]
        gold = options.index(question["answer"])
        row = scores.loc[(str(question["id"]), "log_likelihood")]
        assert row.value == pytest.approx(-nats[gold].mean(), rel=1e-5)
        assert row.weight == len(nats[gold])
        if "options" in question:
            per_byte = [-each.sum() / len(option.encode()) for each, option in zip(nats, options, strict=True)]
            plain = [-each.sum() for each in nats]
            assert scores.loc[(str(question["id"]), "accuracy")].value == (np.argmax(per_byte) == gold)
            assert scores.loc[(str(question["id"]), "accuracy_unnormalised")].value == (np.argmax(plain) == gold)
    metrics_of = scores.reset_index().groupby("example").metric.agg(set)
    assert metrics_of["1"] == metrics_of["3"] == {"log_likelihood", "accuracy", "accuracy_unnormalised"}
    assert metrics_of["2"] == metrics_of["4"] == {"log_likelihood", "exact_match", "contains"}


def test_the_choice_is_normalised_by_bytes_of_the_option() -> None:
    question = Question("1", "?", ("yes", "a long option"), "a long option", 1, {})
    # Per byte -8 / 3 against -20 / 13; the plain sum prefers the short one.
    assert choices_of(question, Likelihoods((-8.0, -20.0), (2, 4))) == ({"accuracy": 1, "accuracy_unnormalised": 0}, False)
    umlauts = Question("1", "?", ("ééé", "abcd"), "abcd", 1, {})
    # By bytes -6 / 6 beats -6 / 4; by characters -6 / 3 would lose.
    assert choices_of(umlauts, Likelihoods((-6.0, -6.0), (1, 1)))[0]["accuracy"] == 0


def test_of_tied_options_the_first_is_taken_and_the_tie_is_told() -> None:
    question = Question("1", "?", ("one", "two", "six"), "two", 1, {})
    chosen, tied = choices_of(question, Likelihoods((-9.0, -6.0, -6.00001), (1, 1, 1)))
    assert (chosen, tied) == ({"accuracy": 1, "accuracy_unnormalised": 1}, True)
    chosen, tied = choices_of(question, Likelihoods((-9.0, -6.00001, -6.0), (1, 1, 1)))
    assert (chosen, tied) == ({"accuracy": 1, "accuracy_unnormalised": 1}, True)
    assert choices_of(question, Likelihoods((-9.0, -6.0, -6.01), (1, 1, 1)))[1] is False


def test_scores_do_not_depend_on_packing_or_on_the_order_of_questions(base: Path, tmp_path: Path) -> None:
    frames = []
    for name, questions, forward_tokens in [("a", QUESTIONS, 4096), ("b", QUESTIONS, 1), ("c", QUESTIONS[::-1], 64)]:
        run(base, tmp_path / name, questions, forward_tokens=forward_tokens)
        frames.append(read_scores(tmp_path / name).set_index(["example", "metric"]).sort_index().value)
    for other in frames[1:]:
        assert list(other.index) == list(frames[0].index)
        np.testing.assert_allclose(other, frames[0], rtol=2e-6)


def test_slices_stand_beside_every_score(base: Path, tmp_path: Path) -> None:
    run(base, tmp_path, slice_by=["level"])
    scores = read_scores(tmp_path)
    assert list(scores.columns)[-1] == "slice.level"
    by_example = scores.groupby("example")["slice.level"].agg(set)
    assert by_example.to_dict() == {"1": {"easy"}, "2": {"hard"}, "3": {"hard"}, "4": {"easy"}}


def test_a_question_without_the_field_of_a_slice_is_refused() -> None:
    question = Question("q7", "?", (), "yes", None, {"tags": ["a"], "level": None})
    for name in ("difficulty", "tags", "level"):
        with pytest.raises(DataError, match=f"question `q7`.*`{name}` that `slice_by` names"):
            slices_of(question, [name])


def test_what_was_taken_of_several_options_is_kept_beside_its_score(base: Path, tmp_path: Path) -> None:
    run(base, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "choices.jsonl").read_text(encoding="utf-8").splitlines()]
    asked = [question for question in QUESTIONS if question.get("options")]
    assert [row["options"] for row in rows] == [list(question["options"]) for question in asked]
    right = read_scores(tmp_path).query("metric == 'accuracy'").set_index("example").value
    assert {row["example"]: float(row["text"] == row["reference"]) for row in rows} == right.to_dict()


def test_answers_are_generated_for_factual_questions(base: Path, tmp_path: Path) -> None:
    run(base, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "generations.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["reference"] for line in lines] == ["at seven", "nobody"]
    assert lines[0]["prompt"] == " Question: When does the train leave?\nAnswer:"
    scores = read_scores(tmp_path).query("metric == 'contains'")
    expected = [line["reference"] in line["text"] for line in lines]
    assert list(scores.value) == expected


def test_templates_are_literal_and_the_prompt_does_not_know_the_answer() -> None:
    question = Question("1", "Who?", ("a", "b"), "b", 1, {"level": "easy"})
    prompt = parse_template(" {{ level }}: {{ question }}\n({{ options | join('|') }}) \n")
    request = request_of(question, prompt, parse_template("\t{{ answer }} "))
    assert (request.prompt, request.answers) == (" easy: Who?\n(a|b) \n", ("\ta ", "\tb "))
    with pytest.raises(DataError, match=r"question `1`.*`answer` is missing"):
        request_of(question, parse_template("{{ answer }}"), parse_template("{{ answer }}"))


def test_what_stands_before_a_question_is_read_and_makes_a_cluster(base: Path, tmp_path: Path) -> None:
    lamp = {"question": "is it lit", "passage": "The lamp is out.", "answer": False}
    rows = [lamp, lamp | {"question": "is it out", "answer": True}, lamp | {"passage": "The lamp is on.", "answer": True}]
    run(base, tmp_path, rows, prompt="{{ question }}?")
    scores = read_scores(tmp_path).query("metric == 'log_likelihood'")
    assert list(zip(scores.example, scores.document, strict=True)) == [("1", "1"), ("2", "1"), ("3", "3")]
    tokenizer = load_tokenizer(BASE, Resource(path=base))
    head = [tokenizer.prefix_id, *tokenizer.encode("The lamp is out.\n\nis it lit?")]
    nats = reference_nats(base)([*head, *tokenizer.encode(" no.")])[0][len(head) - 1 :]
    assert scores.value.iloc[0] == pytest.approx(-float(nats.mean()), rel=1e-5)
    run(base, tmp_path, rows, prompt="{{ question }}?", context="")
    assert read_scores(tmp_path).query("metric == 'log_likelihood'").value.iloc[0] != scores.value.iloc[0]


@pytest.mark.parametrize(("prefix", "before"), [("auto", [0]), ("bos", [0]), ("eos", [1]), ("none", []), ("tokenizer", [])])
def test_a_question_stands_behind_the_prefix_that_is_asked_for(
    base: Path, tmp_path: Path, prefix: str, before: list[int]
) -> None:
    metrics = run(base, tmp_path, QUESTIONS[1:2], prefix=prefix)
    tokenizer = load_tokenizer(BASE, Resource(path=base))
    assert metrics["prefix"] == tokenizer.decode(before)
    head = [*before, *tokenizer.encode(" Question: When does the train leave?\nAnswer:")]
    nats = reference_nats(base)([*head, *tokenizer.encode(" at seven.")])[0][len(head) - 1 :]
    value = read_scores(tmp_path).query("metric == 'log_likelihood'").value.iloc[0]
    assert value == pytest.approx(-float(nats.mean()), rel=1e-5)
    text = json.loads((tmp_path / "generations.jsonl").read_text(encoding="utf-8").splitlines()[0])["text"]
    prompt = Prompt(np.array(head, np.int32), np.array([], np.int32), 8, LINE_BREAKS, "line_break")
    (answer,) = write_answers(load_model(make_context(base, {}, tmp_path)), [prompt])
    assert text == answer.text


def test_a_question_behind_nothing_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="question `2`: nothing stands before its answer"):
        run(base, tmp_path, QUESTIONS[1:2], prefix="none", prompt="{{ level | replace('hard', '') }}")


def test_any_of_several_right_answers_is_right(base: Path, tmp_path: Path) -> None:
    question = {"question": "Who waits?", "answers": ["nobody", "no one"]}
    run(base, tmp_path, [question, question | {"question": "Who?", "answers": {"text": ["nobody"]}}])
    first, second = map(json.loads, (tmp_path / "generations.jsonl").read_text(encoding="utf-8").splitlines())
    assert first["references"] == ["nobody", "no one"]
    assert "references" not in second
    asked = Question("1", "Who?", (), "nobody", None, {}, others=("no one", "3.14"))
    for text, right in (("No one.", 1.0), ("3.140", 1.0), ("no", 0.0), ("", 0.0)):
        scores = question_scores(asked, Likelihoods((-1.0,), (2,)), Generation("", text, 1, 0.1, "eos"), {}, "1")
        assert {score.metric: score.value for score in scores if score.metric in ("exact_match", "contains")} == {
            "exact_match": right,
            "contains": right,
        }


def test_a_question_that_does_not_fit_is_refused(base: Path, tmp_path: Path) -> None:
    long = [{"id": "long", "question": "Which? " * 400, "answer": "this"}]
    with pytest.raises(DataError, match=r"question `long` has .* tokens .* 512 positions.*`too_long: skip`"):
        run(base, tmp_path, long, too_long="error")
    with pytest.raises(DataError, match="none of 1 questions fits into the 512 positions"):
        run(base, tmp_path, long)
    with pytest.raises(DataError, match="question `1`: the template `answer` leaves nothing"):
        run(base, tmp_path, answer="{{ '' }}")


def test_one_question_too_long_is_left_out_and_the_rest_is_as_without_it(base: Path, tmp_path: Path) -> None:
    passage = {"question": "is it lit", "passage": "The lamp is out. " * 200, "answer": False, "id": "p"}
    rows = [QUESTIONS[0], passage, QUESTIONS[1], passage | {"question": "is it", "passage": "It is.", "id": "q"}]
    metrics = run(base, tmp_path / "skip", rows)
    assert (metrics["questions"], metrics["skipped_questions"]) == (3, 1)
    without = run(base, tmp_path / "without", [rows[0], *rows[2:]])
    assert "skipped_questions" not in without
    assert metrics["chance_accuracy"] == without["chance_accuracy"]
    frames = [read_scores(tmp_path / name).set_index(["example", "metric"]).value for name in ("skip", "without")]
    assert list(frames[0].index) == list(frames[1].index)
    np.testing.assert_allclose(*frames, rtol=2e-6)


@pytest.mark.parametrize("rule", ["cut", "keep_end"])
def test_what_is_read_first_is_shortened_and_the_question_left_whole(base: Path, rule: str) -> None:
    loaded = load_model(make_context(base, {}, base))
    passage = " ".join(f"lamp {n}" for n in range(300))
    asked, alone = (
        Question(name, text, ("yes", "no"), "yes", 0, {}, context)
        for name, text, context in (("p", "is it lit", passage), ("a", passage, ""))
    )
    settings = Qa(path="a.json", too_long=rule)
    kept, num_cut = asked_within(loaded, [asked, alone], settings)
    assert num_cut == 2
    for question, request in kept:
        text = request.prompt.removesuffix("\nAnswer:")
        text = text.removesuffix("\n\nQuestion: is it lit") if question.context else text.removeprefix("Question: ")
        assert passage.startswith(text) if rule == "cut" else passage.endswith(text)
        length = 1 + len(loaded.tokenizer.encode(request.prompt))
        longest = max(len(loaded.tokenizer.encode_continuation(answer)) for answer in request.answers)
        assert 512 - 3 < length + longest <= 512


def _nats(base: Path, question: str, option: str) -> np.ndarray:
    tokenizer = load_tokenizer(BASE, Resource(path=base))
    head = [tokenizer.prefix_id, *tokenizer.encode(f" Question: {question}\nAnswer:")]
    nats: torch.Tensor = reference_nats(base)([*head, *tokenizer.encode(f" {option}.")])[0]
    return nats[len(head) - 1 :].numpy()

"""Students that learn what a teacher answers: what is written, what of it is learned, and how the study tells it."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from paretune.cli import main
from paretune.data.tokenizer import load_tokenizer
from paretune.data.trees import Example, unshared
from paretune.errors import StageError
from paretune.evaluate.teacher import write_teacher_answers
from paretune.pipeline.resources import Resource
from paretune.pipeline.stage_configs import AnswersConfig, BaseConfig, TrainConfig
from paretune.study.methods import DistillText
from paretune.study.train import Train
from paretune.train.distill import distill_text
from tests.conftest import write_notes
from tests.evaluate.stages import BASE, make_artifact, make_context, reference_logits, write_task_tokens
from tests.tiny import make_model

ROWS = [
    (split, f"{split}{n // 2}", f"The text about {n // 2}. ", f"Task {n % 2}:", f" answer {n} of it")
    for split in ("train", "validation")
    for n in range(10)
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("base"), seed=1)


def answered(base: Path, draft: Path, **changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the stage of the teacher says and leaves."""
    context = make_context(base, {}, draft, inputs={"tokens": write_task_tokens(base, ROWS, draft.parent / "tokens")})
    context.config.clear()
    fields = {"max_new_tokens": 5, "temperature": 0.0, "stop": (), "precision": "float32", "device": "cpu"} | changes
    context.config.update(AnswersConfig(base=BaseConfig(**BASE), **fields).model_dump(mode="json"))
    metrics = write_teacher_answers(context)
    return metrics, [json.loads(line) for line in (draft / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


def test_answers_are_what_the_teacher_writes_after_each_prompt_of_the_training_split(base: Path, tmp_path: Path) -> None:
    metrics, answers = answered(base, tmp_path / "greedy")
    tokenizer, logits_of = load_tokenizer(BASE, Resource(path=base)), reference_logits(base)
    for (_, document, context, prompt, completion), answer in zip(ROWS[:10], answers, strict=True):
        before = [tokenizer.prefix_id, *tokenizer.encode(context), *tokenizer.encode(prompt)]
        ids = list(before)
        while len(ids) < len(before) + 5 and (token := int(logits_of(ids)[-1].argmax())) not in tokenizer.stop_ids:
            ids.append(token)
        whole, head = tokenizer.decode(ids), tokenizer.decode(before)
        assert answer["answer"] == whole[len(head) :]
        assert (answer["document"], answer["prompt"], answer["reference"]) == (document, prompt, completion)
        assert answer["ended"] == (len(ids) < len(before) + 5)
    assert metrics["answers"] == 10
    assert metrics["ended"] == sum(answer["ended"] for answer in answers)
    stop = next(answer["answer"] for answer in answers if answer["answer"].isascii() and answer["answer"].strip())[1]
    _, stopped = answered(base, tmp_path / "stopped", stop=(stop,))
    assert not any(stop in answer["answer"] for answer in stopped)
    assert all(answer["ended"] for answer, before in zip(stopped, answers, strict=True) if stop in before["answer"])
    drawn = [answered(base, tmp_path / name, temperature=3.0)[1] for name in ("one", "two")]
    assert drawn[0] == drawn[1] != answers
    assert len({answer["answer"] for answer in drawn[0]}) > 5


def learned(
    base: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, answers: Sequence[dict[str, Any]], train: Train, **method: Any
) -> tuple[list[Example], Train, dict[str, Any]]:
    """What a student is given to learn, how, and what its record says."""
    (folder / "answers").mkdir(parents=True)
    lines = "".join(json.dumps(answer) + "\n" for answer in answers)
    (folder / "answers" / "answers.jsonl").write_text(lines, encoding="utf-8")
    inputs = {
        "tokens": write_task_tokens(base, ROWS, folder / "tokens"),
        "teacher": make_artifact(folder / "answers", answers=len(answers), ended=sum(each["ended"] for each in answers)),
    }
    context = make_context(base, {}, folder / "draft", inputs=inputs)
    context.config.clear()
    config = TrainConfig(
        base=BaseConfig(**BASE), method=DistillText(**method), train=train, seed=0, precision="float32", device="cpu"
    )
    context.config.update(config.model_dump(mode="json"))
    context.resume.mkdir()
    given: list[Any] = []
    from paretune.train.loop import fit

    def seen(packed: Any, examples: Any, validation: Any, run: Any) -> Any:
        given.extend((list(examples), run.train))
        return fit(packed, examples, validation, replace(run, train=run.train.model_copy(update={"max_steps": 1})))

    monkeypatch.setattr("paretune.train.stages.fit", seen)
    metrics = distill_text(context)
    return *given, metrics["teacher_answers"]


def answers_of(texts: Sequence[str], ended: Sequence[bool]) -> list[dict[str, Any]]:
    return [
        {"document": f"train{n // 2}", "example": str(n // 2), "task": f"t{n % 2}", "answer": text, "ended": end}
        for n, (text, end) in enumerate(zip(texts, ended, strict=True))
    ]


LONG = " word" * 60


@pytest.mark.parametrize("keep", ["ended", "all"])
def test_answers_stand_in_the_place_of_completions_and_what_did_not_end_is_cut_or_left_out(
    keep: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [" one", " two", " three", LONG, "", " six", "", " eight", " nine"]
    ended = [True, True, False, True, True, True, False, False, True]  # and the tenth was not answered
    settings = Train(epochs=3, batch_size=4, max_length=64)
    examples, train, told = learned(base, tmp_path, monkeypatch, answers_of(texts, ended), settings, keep=keep)
    tokenizer = load_tokenizer(BASE, Resource(path=base))
    expected = []
    for (_, _, context, prompt, _), text, end in zip(ROWS, texts, ended, strict=False):
        before = [tokenizer.prefix_id, *tokenizer.encode(context), *tokenizer.encode(prompt)]
        whole = [*before, *tokenizer.encode_continuation(text), *([tokenizer.eos_id] if end else [])]
        if (end and text != LONG) or (keep == "all" and text):
            expected.append(whole[:64])
    assert [unshared(example).ids.tolist() for example in examples] == expected
    assert examples[0].trunk is examples[1].trunk
    assert told == {
        "name": "base",
        "answers": 9,
        "ended": 6,
        "learned": len(expected),
        "cut": 3 if keep == "all" else 0,
        "left_out": 9 - len(expected),
        "unanswered": 1,
    }
    assert (train.max_steps, train.evaluate_every, train.num_epochs) == (9, 3, None)  # as of ten examples in fours


def test_answers_that_never_end_teach_nothing(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageError, match=r"none of the 10 answers of the teacher came to an end .* or write `keep: all`"):
        learned(base, tmp_path, monkeypatch, answers_of([" on and on"] * 10, [False] * 10), Train(max_steps=1, max_length=64))


STUDY = """
study: answers
bases: {tiny: {path: model}, bytes: {path: bytes}}
data:
  notes:
    source: {path: notes.jsonl}
    document: title
    context: "{{ content[:60] }}"
    tasks: {kind: {prompt: "Kind:", completion: " {{ type }}", score: [exact_match], max_new_tokens: 3}}
    leakage: allow
train: {max_steps: 30, batch_size: 8, max_length: 128}
precision: {compute: float32, evaluate: float32}
seeds: [0]
variants:
  base: []
  taught: {bases: [tiny], methods: [{train.full: {learning_rate: 1.0e-2}}]}
  student: {bases: [tiny], methods: [{prune.blocks: {count: 1}}, {distill.text: {teacher: taught, learning_rate: 1.0e-2}}]}
  adapted: {bases: [tiny], methods: [{distill.text: {teacher: taught, lora: {r: 2}}}]}
  other: {bases: [tiny], methods: [{distill.text: {teacher: bytes, max_new_tokens: 4, keep: all}}]}
evaluate:
  tasks: {}
compare: {baseline: taught}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    make_model("llama", folder / "model")
    make_model("llama", folder / "bytes", seed=3)
    write_notes(folder / "notes.jsonl")
    tokens = {"<bos>": 0, "<|endoftext|>": 1} | {letter: n + 2 for n, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    tokenizer = Tokenizer(models.BPE(tokens, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    named = {"bos_token": "<bos>", "eos_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder / "bytes")
    (folder / "study.yaml").write_text(STUDY, encoding="utf-8")
    assert main(["run", str(folder / "study.yaml"), "--out", str(folder / "out")]) == 0
    return folder


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted((folder / ".paretune").glob("*/record.json"))]


def test_a_teacher_writes_once_for_all_of_its_students_whatever_its_tokenizer(folder: Path) -> None:
    kinds = [record["kind"] for record in records(folder)]
    assert kinds.count("distill.answers") == 2  # of the variant and of the base
    assert kinds.count("distill.text") == 3
    for record in records(folder):
        if record["kind"] == "distill.text":
            told = record["metrics"]["teacher_answers"]
            assert told["answers"] == told["learned"] + told["left_out"] == 32
            assert told["unanswered"] == 0
            if told["name"] == "taught":  # `keep: ended`
                assert (told["learned"], told["cut"]) == (told["ended"], 0)
            else:  # `keep: all`, and an untrained base may write bytes that are no text
                assert told["cut"] == told["learned"] - told["ended"] > 20
            assert record["metrics"]["steps"] == 30


def test_a_student_of_a_teacher_that_was_taught_answers_as_it_does(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "out" / "generations.jsonl").read_text(encoding="utf-8").splitlines()]
    by_variant = {name: {row["text"] for row in rows if row["variant"] == name} for name in ("taught", "student")}
    assert by_variant["taught"] <= {" a", " b"}
    assert by_variant["student"] <= {" a", " b"}


def test_the_report_tells_whose_answers_were_learned(folder: Path) -> None:
    text = " ".join((folder / "out" / "report.txt").read_text(encoding="utf-8").replace("`", "").split())
    told = "student learned what taught answers to the 32 prompts of the training split, in the place of its completions: "
    assert f"{told}100.0 % of the answers came to an end within 256 tokens, and 100.0 % were learned." in text
    assert "of all cut and without an end." in text


def test_a_second_run_does_nothing_and_a_longer_answer_is_written_anew(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = records(folder)
    assert main(["run", str(folder / "study.yaml"), "--out", str(folder / "out")]) == 0
    assert records(folder) == before
    other = folder / "other.yaml"
    other.write_text(STUDY.replace("{teacher: taught,", "{teacher: taught, max_new_tokens: 6,"))
    capsys.readouterr()
    assert main(["plan", str(other)]) == 0
    new = [line.split("-")[0] for line in capsys.readouterr().out.splitlines() if " new" in line and "distill" in line]
    assert sorted(new) == ["distill.answers", "distill.text", "distill.text"]

"""Chats with variants of a study that has run: what they answer is what the evaluations of the study wrote."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paretune.api import open_study, run
from paretune.app.conversation import Asking, Conversation, Models, Reply, conversation
from paretune.cli import main
from paretune.data.chat import chat_prompt, turn_end
from paretune.evaluate.answers import Prompt, _append, _Draft
from paretune.evaluate.generate import generate
from paretune.pipeline.plan import Wanted
from paretune.report.render import visible
from tests.conftest import write_notes
from tests.data.chat_templates import CHATML, QUOTED
from tests.tiny import make_model, make_tokenizer

STUDY = """
study: talk
bases: {tiny: {path: base}}
data: {d: {source: {path: chats.jsonl}, records: messages, leakage: allow}}
train: {max_steps: 2, batch_size: 4, max_length: 200}
precision: {compute: float32, evaluate: float32}
seeds: [3]
variants:
  base: []
  lora: [{train.lora: {r: 4, learning_rate: 2.0e-2}}]
  eight: [{quantize.int8: {}}]
evaluate:
  generate: {prompts: ["Log 5. Direction?", "Where to?"], max_new_tokens: 12}
"""
VARIANTS = ("base", "lora", "eight")


def make_study(folder: Path, template: str | None) -> Path:
    make_model("llama", folder / "base", vocab_size=304, hidden_size=64, head_dim=16)
    tokenizer = make_tokenizer()
    if template:
        tokenizer.chat_template = template
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(folder / "base")
    turns = [[{"role": "user", "content": f"Log {n}?"}, {"role": "assistant", "content": f"in {n}"}] for n in range(40)]
    (folder / "chats.jsonl").write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns))
    (folder / "study.yaml").write_text(STUDY)
    return folder / "study.yaml"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = make_study(tmp_path_factory.mktemp("talk"), CHATML)
    assert run(file).exit_code == 0
    return file


def talk_to(study: Path, variant: str) -> Conversation:
    return conversation(open_study(study), Wanted(variant), "", Models(None))


def written(study: Path, variant: str) -> dict[str, str]:
    """By prompt, what the study's generations hold."""
    opened = open_study(study)
    (cell,) = (cell for cell in opened.plan.cells if cell.variant == variant)
    lines = (opened.store.artifact(cell.evaluations["generate"]).path / "generations.jsonl").read_text(encoding="utf-8")
    return {row["prompt"]: row["text"] for row in map(json.loads, lines.splitlines())}


def pipe(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode(errors="surrogateescape")), encoding="utf-8"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_chat_answers_as_the_evaluation_of_the_study_did(study: Path, variant: str) -> None:
    talk, expected = talk_to(study, variant), written(study, variant)
    assert len(expected) == 2
    for prompt, text in expected.items():
        talk.begin("")
        heard: list[str] = []
        reply = talk.answer(prompt, Asking(max_new_tokens=12), 0, heard.append)
        assert reply.text == text
        assert len(heard) >= reply.new_tokens > 0
        assert all(text.startswith(part.rstrip("\ufffd")) for part in heard)
        assert 0 < reply.first_seconds <= reply.seconds


def test_turns_and_the_system_prompt_are_kept_until_it_begins_anew(study: Path) -> None:
    talk, asking = talk_to(study, "base"), Asking(max_new_tokens=6)
    talk.begin("Be brief.")
    said = [{"role": "system", "content": "Be brief."}]
    for question in ("One?", "Two?", "Three?"):
        reply = talk.answer(question, asking, 0, lambda _: None)
        said.append({"role": "user", "content": question})
        with talk.use() as loaded:
            assert reply.text == generate(loaded, [chat_prompt(loaded.tokenizer, said)], 6)[0].text
        talk.keep(question, reply)
        said.append({"role": "assistant", "content": reply.text})
    assert talk.messages == said
    talk.begin("")
    assert talk.messages == []


def test_a_pipe_gets_texts_alone_and_loads_each_variant_once(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, "Log 5. Direction?\n\n/new\nWhere to?\n/quit\nnever asked\n")
    assert main(["chat", str(study), "lora", "eight", "--max-new-tokens", "12"]) == 0
    out, err = capsys.readouterr()
    answers = [
        written(study, variant)[prompt] for prompt in ("Log 5. Direction?", "Where to?") for variant in ("lora", "eight")
    ]
    assert out == "".join(f"{visible(answer)}\n" for answer in answers)
    assert err.count("loading") == 2
    assert "loading `tiny/d/lora seed 3`" in err
    assert "`lora` is asked by the chat template of its base" in err
    assert err.count("tokens, first after") == 4


def test_control_characters_are_made_visible_on_their_way(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(self: Conversation, said: str, asking: Asking, seed: int, on_text: Any) -> Reply:
        for end in range(1, 10):
            on_text("a\x1b[31m\r\nb"[:end])
        return Reply("a\x1b[31m\r\nb", 9, 0.1, 0.9, "eos")

    monkeypatch.setattr(Conversation, "answer", answer)
    for terminal in (False, True):
        pipe(monkeypatch, "x\n")
        monkeypatch.setattr("sys.stdout.isatty", lambda terminal=terminal: terminal)
        assert main(["chat", str(study), "base"]) == 0
        assert capsys.readouterr().out == "a<U+001B>[31m\nb\n"


@pytest.mark.parametrize(("columns", "beside"), [(120, True), (80, False)])
def test_two_stand_beside_each_other_where_there_is_room(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int, *, beside: bool
) -> None:
    typed = iter(["Where to?", "/nwe", "/system Be brief.", "Where to?"])

    def read(_: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["chat", str(study), "base", "eight", "--max-new-tokens", "3"]) == 0
    out = capsys.readouterr().out
    assert "error: `/nwe` is no command: `/new` begins anew" in out
    together = [line for line in out.splitlines() if line.count("tokens, first after") == 2]
    assert len(together) == (2 if beside else 0)
    assert out.count("3 tokens, first after") >= 4


def test_sampled_answers_follow_the_seed(study: Path) -> None:
    talk, asking = talk_to(study, "base"), Asking(temperature=1.0, max_new_tokens=12)
    first, again, other = (talk.answer("Where to?", asking, seed, lambda _: None).text for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(
    ("arguments", "said", "message"),
    [
        (["lorra"], "", "no variant `lorra`; did you mean `lora`?"),
        (["base", "base"], "", "`base` is named twice"),
        (["base", "--temperature", "nan"], "", "--temperature: `nan`; write 0"),
        (["lora", "--trained-with", "9"], "", "--trained-with: no `9`; there is `3`"),
        (["base"], "x" * 2000, "positions"),
        (["base"], "caf\udce9", "a prompt is no UTF-8"),
        (["base"], "/sytem", "`/sytem` is no command: `/new` begins anew"),
    ],
)
def test_a_mistake_is_told_and_ends_a_pipe(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], said: str, message: str,
) -> None:  # fmt: skip
    pipe(monkeypatch, f"{said}\n")
    assert main(["chat", str(study), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_what_is_not_trained_yet_says_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = make_study(tmp_path, CHATML)
    file.write_text(STUDY.replace("seeds: [3]", "seeds: [3, 4]"))
    capsys.readouterr()  # of what made the study
    assert main(["chat", str(file), "lora"]) == 2
    missing = f"`tiny/d/lora seed 3` is not trained yet, or was removed; first: `paretune run {file}`"
    assert capsys.readouterr().err == f"error: {missing}\n"


def test_without_a_template_chats_have_the_form_they_were_trained_in(tmp_path: Path) -> None:
    talk = talk_to(make_study(tmp_path, None), "base")
    assert "as `User: ... Assistant:`, as it was trained" in talk.manner
    reply = talk.answer("Where to?", Asking(max_new_tokens=5), 0, lambda _: None)
    with talk.use() as loaded:
        assert reply.text == generate(loaded, ["User: Where to?\n\nAssistant:"], 5)[0].text


def test_without_template_or_chats_a_prompt_is_continued_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = make_study(tmp_path, None)
    write_notes(tmp_path / "notes.jsonl")
    file.write_text(STUDY.replace("chats.jsonl}, records: messages", 'notes.jsonl}, text: "{{ content }}"'))
    talk, asking = talk_to(file, "base"), Asking(max_new_tokens=5)
    assert talk.manner == "`base` continues each prompt by itself: its base has no chat template"
    for prompt in ("The train", "A lamp"):
        reply = talk.answer(prompt, asking, 0, lambda _: None)
        talk.keep(prompt, reply)
        with talk.use() as loaded:
            assert reply.text == generate(loaded, [prompt], 5)[0].text
    pipe(monkeypatch, "The train\n")
    assert main(["chat", str(file), "base", "--system", "Be brief."]) == 2
    assert "so there is no system prompt; write it into the prompt" in capsys.readouterr().err


def test_what_may_end_a_turn_is_not_shown_before_it_is_known(tmp_path: Path) -> None:
    """The end of a turn is text of many tokens here."""
    with talk_to(make_study(tmp_path, QUOTED), "base").use() as loaded:
        pass
    end = turn_end(loaded.tokenizer)
    assert len(end) > 3
    heard: list[str] = []

    def draft(*ids: int) -> _Draft:
        prompt = Prompt(np.array([0]), np.array([2]), 30, turn_end=end, on_text=heard.append)
        draft = _Draft(prompt, 30, torch.Generator())
        for token in ids:
            _append(loaded.tokenizer, draft, token)
        return draft

    yes = loaded.tokenizer.encode("yes")
    assert draft(*yes, *end).stopped_by == "eos"
    assert heard[-1] == "yes"
    assert all("yes".startswith(text) for text in heard)
    # It was not the end after all.
    draft(*yes, *end[:3], *yes)
    assert heard[-1] == loaded.tokenizer.decode([*yes, *end[:3], *yes])

"""A study of chats from its file to the exported model, by the command line: turns end, the card's lines give its answers."""

import json
from pathlib import Path

import pandas as pd
import pytest

from paretune.cli import main
from tests.data.chat_templates import CHATML, QUOTED, QWEN3
from tests.data.test_prepare import write_rows
from tests.lines import run_lines
from tests.tiny import make_model, make_tokenizer

STUDY = """
study: chats
bases: {tiny: {path: base}}
data: {d: {source: {path: chats.jsonl}, records: {format: messages, score: [exact_match], max_new_tokens: 3}, leakage: allow}}
train: {max_steps: 25, batch_size: 8, max_length: 200}
precision: {compute: float32, evaluate: float32}
variants:
  full: [{train.full: {learning_rate: 1.0e-2}}]
  lora: [{train.lora: {r: 8, alpha: 16, learning_rate: 2.0e-2}}]
evaluate:
  perplexity: {splits: [test]}
  generate: {prompts: ["Log 5. Direction?"], max_new_tokens: 3}
  raw: {kind: generate, prompts: ["Log 5. Direction?"], max_new_tokens: 3, raw: true}
"""
SHAPES = {"token": CHATML, "thoughts": QWEN3, "text": QUOTED, "none": None}
"""How a turn ends: with a control token that is no EOS, with text; and a base without a template."""
ASKED = {
    "token": "<|im_start|>user\nLog 5. Direction?<|im_end|>\n<|im_start|>assistant\n",
    "thoughts": "<|im_start|>user\nLog 5. Direction?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "text": 'user says: "Log 5. Direction?" (end of user)\nassistant says: "',
    "none": "User: Log 5. Direction?\n\nAssistant:",
}


@pytest.fixture(scope="module", params=SHAPES)
def chats(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A study that has run, of a model that always answers alike."""
    folder = tmp_path_factory.mktemp(request.param)
    make_model("llama", folder / "base", vocab_size=304)
    tokenizer = make_tokenizer()
    if SHAPES[request.param]:
        tokenizer.chat_template = SHAPES[request.param]
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(folder / "base")
    asked = ({"role": "user", "content": f"Log {n}. Direction?"} for n in range(60))
    rows = [{"messages": [question, {"role": "assistant", "content": "in"}]} for question in asked]
    write_rows(folder / "chats.jsonl", rows)
    (folder / "study.yaml").write_text(STUDY)
    assert main(["run", str(folder / "study.yaml"), "--out", str(folder / "out")]) == 0
    return request.param, folder


def written(folder: Path, task: str, variant: str) -> dict[str, str]:
    rows = map(json.loads, (folder / "out" / "generations.jsonl").read_text(encoding="utf-8").splitlines())
    return next(row for row in rows if (row["task"], row["variant"]) == (task, variant))


def test_a_turn_ends_where_the_template_ends_it(chats: tuple[str, Path]) -> None:
    _, folder = chats
    results = pd.read_csv(folder / "out" / "results.csv")
    right = results[(results["metric"] == "exact_match") & (results["split"] == "test")]
    assert right["value"].tolist() == [1, 1]
    answer = written(folder, "response", "full")
    assert (answer["text"].strip(), answer["stopped_by"]) == ("in", "eos")


def test_prompts_go_through_the_template_unless_they_are_raw(chats: tuple[str, Path]) -> None:
    name, folder = chats
    assert written(folder, "generate", "full")["text"].strip() == "in"
    assert written(folder, "raw", "full")["prompt"] == written(folder, "generate", "full")["prompt"] == "Log 5. Direction?"
    stored = [file.read_text(encoding="utf-8") for file in (folder / ".paretune").glob("evaluate.generate-*/generations.jsonl")]
    read = {json.loads(text).get("read") for text in stored}
    assert read - {None} == {ASKED[name]}
    report = (folder / "out" / "report.md").read_text(encoding="utf-8")
    assert "what a user says, in the form of the base's chats" in report
    assert "continued as they are" in report


@pytest.mark.parametrize(("variant", "form"), [("full", "hf"), ("lora", "adapter")])
def test_the_card_of_an_export_gives_the_answer_of_the_study(
    chats: tuple[str, Path], variant: str, form: str, tmp_path: Path
) -> None:
    name, folder = chats
    to = tmp_path / "model"
    assert main(["export", str(folder / "study.yaml"), variant, "--to", str(to), "--format", form]) == 0
    card = (to / "README.md").read_text(encoding="utf-8")
    assert ("apply_chat_template" in card) == (name != "none")
    assert written(folder, "response", variant)["prompt"].split("Log ")[1].split(".")[0] in card
    assert "The example is a record of the held-out data" in card
    code = card.split("```python\n")[1].split("```")[0]
    printed = run_lines(code, to).strip()
    assert printed == written(folder, "response", variant)["text"].strip()
    assert variant == "lora" or printed == "in"
    if name in ("token", "thoughts") and form == "hf":
        assert len(json.loads((to / "generation_config.json").read_text())["eos_token_id"]) == 2

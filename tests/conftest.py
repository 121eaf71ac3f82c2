"""What several test modules share: a small study of a tiny model on generated text."""

import csv
import json
import os
import random
import signal
from pathlib import Path

# Two threads on a tiny model wait for each other more than they compute. Before torch is imported, and for the workers.
os.environ["OMP_NUM_THREADS"] = "1"
# Or each of a hundred processes would compile all of the package.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Whoever begins the tests by `nohup` lets them and all their children ignore it.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import pytest

from paretune.pipeline import rates
from tests.tiny import make_model

real_probe = rates._ask
"""Seconds, most of them for importing torch."""


@pytest.fixture(autouse=True)
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan times no base, unless a test puts `real_probe` back."""
    monkeypatch.setattr(rates, "_ask", lambda questions: [])


_NOUNS = ["harbour", "engine", "letter", "lamp", "train", "driver", "winter", "garden", "bridge", "market", "school", "river"]
_VERBS = ["waits", "turns", "opens", "closes", "leaves", "returns", "shines", "breaks", "grows", "sinks"]

STUDY = """
study: small
bases: {tiny: {path: model}}
data:
  notes:
    source: {path: notes.jsonl}
    document: title
    text: "{{ title }}\\n\\n{{ content }}"
train: {epochs: 2, batch_size: 4, max_length: 64}
precision: {compute: float32}
seeds: [0, 1]
variants:
  base: []
  full:     [{train.full: {learning_rate: 1.0e-3}}]
  original: [{train.lora: {r: 4, targets: all-linear, learning_rate: 5.0e-3}}]
  reduced:  [{prune.blocks: {count: 1, choose: last}}, {train.lora: {r: 4, targets: all-linear, learning_rate: 5.0e-3}}]
evaluate:
  perplexity: {}
  qa: {path: qa.json, slice_by: [difficulty]}
  generate: {prompts: ["The train", "A lamp"], max_new_tokens: 8}
  latency: {prompt_tokens: 8, new_tokens: 4, repeats: 2, warmup: 1}
"""


def write_notes(file: Path, count: int = 40, seed: int = 0) -> None:
    """Documents of 20 to 80 words that differ from each other."""
    draw = random.Random(seed)
    rows = [
        {
            "title": f"Note {number}",
            "content": " ".join(f"the {draw.choice(_NOUNS)} {draw.choice(_VERBS)}." for _ in range(draw.randint(8, 28))),
            "type": draw.choice(["a", "b"]),
        }
        for number in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_questions(file: Path) -> None:
    questions = [
        {
            "id": number,
            "category": "multiple_choice" if number % 2 else "factual",
            "question": f"What does the {noun} do?",
            "answer": "it waits",
            "difficulty": "easy" if number < 3 else "hard",
        }
        | ({"options": ["it waits", "it sinks", "it grows"], "answer_index": 0} if number % 2 else {})
        for number, noun in enumerate(_NOUNS[:6])
    ]
    file.write_text(json.dumps({"questions": questions}), encoding="utf-8")


def write_study(folder: Path, text: str = STUDY) -> Path:
    """A study file with everything that it names; returns the file."""
    make_model("llama", folder / "model")
    write_notes(folder / "notes.jsonl")
    write_questions(folder / "qa.json")
    file = folder / "study.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def csv_rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama for those who only read it."""
    return make_model("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    return write_study(tmp_path)

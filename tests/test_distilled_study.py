"""A study with students of one teacher, run by the command line: what runs once, what runs again, and what the report says."""

import json
import re
from pathlib import Path

import pytest

from paretune.cli import main
from tests.conftest import STUDY, write_study

VARIANTS = """variants:
  base: []
  original: [{train.lora: {r: 4, targets: all-linear, learning_rate: 5.0e-3}}]
  short:    [{prune.blocks: {count: 1}}, {distill.logits: {teacher: original, top_k: 16}}]
  adapted:  [{prune.blocks: {count: 1}}, {distill.logits: {teacher: original, top_k: 16, alpha: 1.0, lora: {r: 2}}}]
  healed:   [{prune.blocks: {count: 1}}, {train.last_blocks: {count: 1, head: true, learning_rate: 1.0e-3}}]
evaluate: {perplexity: {splits: [test]}}
"""
TEXT = STUDY.partition("variants:")[0].replace("epochs: 2", "max_steps: 4") + VARIANTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    assert main(["run", str(write_study(folder, TEXT)), "--out", str(folder / "out")]) == 0
    return folder


def records(folder: Path) -> dict[str, dict]:
    return {file.parent.name: json.loads(file.read_text()) for file in (folder / ".paretune").glob("*/record.json")}


def test_a_teacher_is_asked_once_for_each_of_its_seeds(folder):
    kinds = [record["kind"] for record in records(folder).values()]
    assert kinds.count("distill.teacher") == 2
    assert kinds.count("distill.logits") == 4


def test_the_report_names_the_teacher_and_what_of_it_was_kept(folder):
    text = " ".join((folder / "out" / "report.txt").read_text().replace("`", "").split())
    assert "short learned from original at" in text
    assert "50 % of its loss is the divergence from that teacher, of which was kept the 16 likeliest words (" in text
    assert "and all others as one, in 16 bits, which moved it by" in text
    assert "adapted learned from original at" in text
    assert "100 % of its loss" in text


def test_a_second_run_does_nothing_and_what_changes_the_teacher_changes_its_students(folder, capsys):
    before = records(folder)
    assert main(["run", str(folder / "study.yaml"), "--out", str(folder / "out")]) == 0
    assert records(folder) == before
    other = folder / "other.yaml"
    other.write_text(TEXT.replace("original: [{train.lora: {r: 4", "original: [{train.lora: {r: 3"), encoding="utf-8")
    capsys.readouterr()
    assert main(["plan", str(other)]) == 0
    lines = capsys.readouterr().out.splitlines()
    status = {line.split("-")[0]: line.split()[1] for line in lines if re.match(r"[a-z._]+-[0-9a-f]{8} ", line)}
    assert (
        status.items()
        >= {
            "train.lora": "new",
            "distill.teacher": "new",
            "distill.logits": "new",
            "prune.blocks": "reused",
            "train.last_blocks": "reused",
        }.items()
    )


@pytest.mark.parametrize("variant", ["short", "adapted", "healed"])
def test_each_is_exported_and_reads_back(folder, tmp_path, variant):
    to = tmp_path / variant
    assert main(["export", str(folder / "study.yaml"), variant, "--seed", "0", "--to", str(to)]) == 0
    assert (to / "config.json").exists()

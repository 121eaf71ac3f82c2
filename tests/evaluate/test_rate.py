"""From a study to a sheet, through people, and back into the report."""

import csv
import json
from pathlib import Path

import pytest

from paretune.cli import main
from tests.conftest import csv_rows, write_study

STUDY = """
study: small
bases: {tiny: {path: model}}
data:
  notes:
    source: {path: notes.jsonl}
    document: title
    leakage: allow
    context: "{{ content }}"
    tasks: {kind: {prompt: "\\nKind:", completion: " {{ type }}", score: [exact_match], max_new_tokens: 4}}
train: {epochs: 1, max_length: 400}
precision: {compute: float32}
variants:
  base: []
  shorter: [{prune.blocks: {count: 1, choose: last}}]
evaluate:
  perplexity: {splits: [test]}
  story: {kind: generate, prompts: ["The train", "A lamp", "The driver", "A river", "The market"], max_new_tokens: 6}
"""


def fill(sheet: Path, to: Path, base: set[str]) -> None:
    """Ratings that tell the texts of the base from the others; the words of a text are all that a rater has."""
    rows = csv_rows(sheet)
    for number, row in enumerate(rows):
        row["coherence"] = "5" if row["text"].strip() in base else "1"
        row["relevance"] = str(1 + (number + len(to.name)) % 5)
    with to.open("w", encoding="utf-8-sig", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    study = write_study(folder, STUDY)
    assert main(["run", str(study), "--out", str(folder / "out")]) == 0
    return folder


def test_people_rate_a_study(finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(finished)
    assert main(["rate", "study.yaml", "--to", "sheet.csv", "--items", "6"]) == 0
    told = capsys.readouterr().out
    assert "rows written to sheet.csv" in told
    assert "1 (worst) to 5 (best)" in Path("sheet.txt").read_text(encoding="utf-8")
    sheet = Path("sheet.csv").read_text(encoding="utf-8-sig")
    assert not any(word in sheet for word in ("base", "shorter", "tiny"))
    assert "Kind:" in sheet
    rows = [json.loads(line) for line in Path("out/generations.jsonl").read_text(encoding="utf-8").splitlines()]
    base = {row["text"].strip() for row in rows if row["variant"] == "base"}
    for name in ("anna", "ben"):
        fill(Path("sheet.csv"), Path(f"{name}.csv"), base)
    Path("study.yaml").write_text(f"{STUDY}  ratings: {{files: [anna.csv, ben.csv]}}\n", encoding="utf-8")
    assert main(["run", "study.yaml", "--out", "out"]) == 0
    report = capsys.readouterr().out
    assert "the 2 raters agree (alpha 1.00" in " ".join(report.split())
    results = csv_rows(Path("out/results.csv"))
    means = {(row["variant"], row["slice"]): float(row["value"]) for row in results if row["metric"] == "coherence"}
    assert means["base", ""] == 5
    assert means["shorter", "rater: ben"] < 5
    counted = {row["n"] for row in results if row["metric"] == "coherence" and not row["slice"]}
    assert counted == {"12"}  # 6 prompts by 2 people, for each variant
    assert {row["metric"] for row in csv_rows(Path("out/comparisons.csv")) if row["task"] == "ratings"} == {
        "coherence",
        "relevance",
    }
    assert main(["plan", "study.yaml"]) == 0
    assert " new " not in capsys.readouterr().out


def test_only_what_is_asked_for_stands_on_a_sheet(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    assert main(["rate", "study.yaml", "--to", "stories.csv", "--of", "story"]) == 0
    assert "Kind:" not in Path("stories.csv").read_text(encoding="utf-8-sig")
    assert main(["rate", "study.yaml", "--to", "other.csv", "--of", "stories"]) == 2
    assert "--of: no generation or task `stories`; did you mean `story`?" in capsys.readouterr().err

"""Ratings by people: each on the text it was given for, whoever wrote it, and what is missing counted."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paretune.data.sheets import read_contexts, read_texts, write_sheet
from paretune.evaluate.ratings import evaluate_ratings
from paretune.pipeline.resources import Resource
from paretune.pipeline.stage import Artifact, RunOptions, StageContext
from tests.evaluate.stages import make_artifact, read_scores

CRITERIA = ["coherence", "relevance"]
TEXTS = (" it waits.", " it sinks.", " a harbour")


def make_inputs(folder: Path, texts: tuple[str, ...] = TEXTS) -> dict[str, Artifact]:
    """Two continuations and an answer to a task with a context, as the stages before leave them."""
    rows = [{"prompt": f"The {noun}", "text": text} for noun, text in zip(("train", "lamp"), texts[:2], strict=True)]
    answer = {"prompt": "\nTitle:", "text": texts[2], "task": "title", "document": "d0", "example": "7"}
    for name, lines in (("story", rows), ("tasks", [answer])):
        (folder / name).mkdir(parents=True)
        content = "".join(json.dumps(row | {"new_tokens": 3, "stopped_by": "eos"}) + "\n" for row in lines)
        (folder / name / "generations.jsonl").write_text(content, encoding="utf-8")
    record = {"split": "test", "document": "d0", "example": "7", "task": "title", "context": "Ships wait in the harbour."}
    (folder / "data").mkdir()
    pq.write_table(pa.Table.from_pylist([record]), folder / "data" / "documents.parquet")
    return {role: make_artifact(folder / role.removeprefix("texts.")) for role in ("texts.story", "texts.tasks", "data")}


def make_sheet(inputs: dict[str, Artifact], file: Path, ratings: dict[str, tuple[str, str]], twice: float = 0.0) -> Path:
    """A sheet of all texts, filled in by their text; the second look at one is a 1."""
    contexts = read_contexts(inputs["data"].path)
    texts = [text for name in ("story", "tasks") for text in read_texts(name, inputs[f"texts.{name}"].path, contexts)]
    write_sheet(texts, CRITERIA, twice, 0, file)
    first = {text.item() for text in texts}
    with file.open(encoding="utf-8-sig", newline="") as lines:
        rows = list(csv.DictReader(lines))
    for row in rows:
        row["coherence"], row["relevance"] = ratings[row["text"]] if row["item"] in first else ("1", "1")
    with file.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def make_context(folder: Path, inputs: dict[str, Artifact], **sheets: Path) -> StageContext:
    (folder / "draft").mkdir()
    return StageContext(
        config={"evaluation": {"criteria": CRITERIA}, "sheets": dict.fromkeys(sheets, "sha256:0")},
        inputs=inputs,
        resources={f"sheet.{name}": Resource(path=file) for name, file in sheets.items()},
        options=RunOptions(),
        draft=folder / "draft",
        emit=lambda **_: None,
    )


def rows_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "draft" / "ratings.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_rating_is_a_score_of_its_rater(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path)
    anna = make_sheet(inputs, tmp_path / "anna.csv", {TEXTS[0]: ("5", "4"), TEXTS[1]: ("3", ""), TEXTS[2]: ("2", "2")})
    ben = make_sheet(inputs, tmp_path / "ben.csv", {TEXTS[0]: ("4", "4"), TEXTS[1]: ("3", "1"), TEXTS[2]: ("1", "2")})
    metrics = evaluate_ratings(make_context(tmp_path, inputs, anna=anna, ben=ben))
    assert metrics == {"items_anna": 3, "items_ben": 3, "rated": 3, "missing": 1}
    scores = read_scores(tmp_path / "draft").set_index(["metric", "example"])["value"]
    assert scores["coherence"].to_dict() == {
        "story 0 by anna": 5,
        "story 1 by anna": 3,
        "title 7 by anna": 2,
        "story 0 by ben": 4,
        "story 1 by ben": 3,
        "title 7 by ben": 1,
    }
    assert "story 1 by anna" not in scores["relevance"]
    table = read_scores(tmp_path / "draft")
    assert set(table["slice.rater"]) == {"anna", "ben"}
    assert set(table["slice.text"]) == {"story", "title"}
    assert set(table["document"]) == {"story 0", "story 1", "d0"}
    assert sum(row["value"] is None for row in rows_of(tmp_path)) == 1


def test_a_second_look_counts_once_and_is_kept(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path)
    anna = make_sheet(inputs, tmp_path / "anna.csv", dict.fromkeys(TEXTS, ("5", "5")), twice=1.0)
    evaluate_ratings(make_context(tmp_path, inputs, anna=anna))
    table = read_scores(tmp_path / "draft")
    assert len(table) == 6
    assert set(table["value"]) == {3.0}
    assert "slice.rater" not in table
    assert {row["occasion"] for row in rows_of(tmp_path)} == {0, 1}
    assert len({row["item"] for row in rows_of(tmp_path)}) == 3


def test_a_sheet_of_other_texts_rates_none_of_these(tmp_path: Path) -> None:
    other = make_inputs(tmp_path / "other", (" one", " two", " three"))
    sheet = make_sheet(other, tmp_path / "anna.csv", dict.fromkeys((" one", " two", " three"), ("5", "5")))
    metrics = evaluate_ratings(make_context(tmp_path, make_inputs(tmp_path), anna=sheet))
    assert metrics == {"items_anna": 3, "rated": 0, "missing": 0}
    assert read_scores(tmp_path / "draft").empty


@pytest.mark.parametrize("context", ["", "Ships wait in the harbour."])
def test_the_context_is_part_of_what_is_rated(tmp_path: Path, context: str) -> None:
    inputs = make_inputs(tmp_path)
    (text,) = read_texts("tasks", inputs["texts.tasks"].path, {("d0", "7"): context})
    assert (text.context, text.source, text.document, text.example) == (context, "title", "d0", "title 7")

"""Sheets that are filled in by the dashboard: on the disk at once, and read as those of `paretune rate`."""

import csv
from pathlib import Path

import pytest

from paretune.analysis.facts import find
from paretune.analysis.scores import Quantity
from paretune.api import open_study, run
from paretune.app.rating import RatingSheet, sheet_file
from paretune.data.sheets import Text, read_preferences, read_sheet, read_texts
from paretune.errors import DataError, SpecError
from paretune.evaluate.ratings import comparable_texts
from paretune.pipeline.results import read_results
from paretune.report.outputs import write_outputs
from tests.conftest import write_study

TEXTS = [Text("story", f"story {n}", f"story {n}", "", f"The {n}", words) for n in range(3) for words in (" waits.", " sinks.")]
STUDY_ENTRY = "  ratings: {files: [study-ratings/anna.csv, study-ratings/ben.csv]}\n"


def test_what_is_rated_is_there_after_a_restart_and_in_the_form_of_rate(tmp_path: Path) -> None:
    file = sheet_file(tmp_path / "study.yaml", "anna")
    assert file == tmp_path / "study-ratings" / "anna.csv"
    sheet = RatingSheet(file, TEXTS)
    assert len(sheet.items) == 7  # one of them twice
    sheet.rate(sheet.items[0], "coherence", 4)
    sheet.rate(sheet.items[0], "relevance", 5)
    sheet.rate(sheet.items[1], "coherence", 2)
    sheet.rate(sheet.items[1], "coherence", None)
    again = RatingSheet(file, TEXTS)
    assert again.items == sheet.items
    assert again.rows == sheet.rows
    read = read_sheet(file, ["coherence", "relevance"])
    assert read[sheet.items[0]] == {"coherence": 4, "relevance": 5}
    assert read[sheet.items[1]] == {"coherence": None, "relevance": None}


def test_two_who_fill_in_one_sheet_do_not_undo_each_other(tmp_path: Path) -> None:
    one, other = (RatingSheet(tmp_path / "anna.csv", TEXTS) for _ in range(2))
    one.rate(one.items[0], "coherence", 1)
    other.rate(one.items[1], "coherence", 2)
    one.rate(one.items[2], "coherence", 3)
    assert [one.rows[item]["coherence"] for item in one.items[:4]] == ["1", "2", "3", ""]


def test_texts_of_a_new_variant_are_added_and_columns_of_a_persons_own_stay(tmp_path: Path) -> None:
    file = tmp_path / "anna.csv"
    RatingSheet(file, TEXTS[:2]).rate(TEXTS[0].item(), "coherence", 3)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        rows = [row | {"remark": "odd"} for row in csv.DictReader(lines)]
    with file.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    sheet = RatingSheet(file, TEXTS)
    assert len(sheet.items) == len(rows) + 4
    assert sheet.rows[TEXTS[0].item()] | {"coherence": "3", "remark": "odd"} == sheet.rows[TEXTS[0].item()]


def test_a_preference_replaces_the_one_before_and_sides_are_drawn_by_name(tmp_path: Path) -> None:
    sheet = RatingSheet(tmp_path / "anna.csv", TEXTS)
    assert len(sheet.pairs) == 3
    assert sheet.pairs == RatingSheet(tmp_path / "anna.csv", TEXTS).pairs
    many = [Text("story", f"{n}", f"{n}", "", f"The {n}", words) for n in range(40) for words in (" waits.", " sinks.")]
    lefts = [pair[0].text for pair in RatingSheet(tmp_path / "ben.csv", many).pairs]
    assert 8 < lefts.count(" waits.") < 32
    pair = sheet.pairs[0]
    name = frozenset(text.item() for text in pair)
    for choice in (pair[0], pair[1], None, pair[1]):
        sheet.prefer(pair, choice)
        assert sheet.preferences() == {name: "" if choice is None else choice.item()}
    with pytest.raises(DataError, match="holds no rating"):
        read_sheet(RatingSheet(tmp_path / "carl.csv", TEXTS).file, ["coherence"])
    assert read_sheet(sheet.file, ["coherence"])  # a preference is something


@pytest.mark.parametrize(
    ("better", "message"),
    [("nobody", "`nobody` is no other item"), ("{own}", "is no other item"), ("{both}", "the opposite stands in the row of")],
)
def test_a_preference_that_cannot_be_is_refused_with_its_line(tmp_path: Path, better: str, message: str) -> None:
    sheet = RatingSheet(tmp_path / "anna.csv", TEXTS[:2])
    rows, (one, other) = dict(sheet.rows), (text.item() for text in TEXTS[:2])
    rows[one] = rows[one] | {"better_than": better.format(own=one, both=other)}
    if better == "{both}":
        rows[other] = rows[other] | {"better_than": one}
    sheet._write(list(rows.values()))
    with pytest.raises(DataError, match=rf"anna.csv: line \d+: better_than: .*{message}"):
        read_preferences(sheet.file)


@pytest.mark.parametrize("name", ["", "../anna", "a b", "x" * 41, ".anna"])
def test_a_name_that_makes_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match="a sheet goes by the name of its person"):
        sheet_file(tmp_path / "study.yaml", name)


def test_ratings_and_preferences_are_in_the_report_with_agreement(tmp_path: Path) -> None:
    """Both prefer what `full` wrote to what `base` wrote, on all prompts that the two answered unlike."""
    prompts = ", ".join(f'"The {word}"' for word in ("train", "lamp", "engine", "river", "garden", "school", "bridge"))
    study = f"""
study: small
bases: {{tiny: {{path: model}}}}
data: {{notes: {{source: {{path: notes.jsonl}}, document: title, text: "{{{{ content }}}}"}}}}
train: {{max_steps: 4, batch_size: 4, max_length: 64}}
precision: {{compute: float32}}
seeds: [0]
variants: {{base: [], full: [{{train.full: {{learning_rate: 1.0e-2}}}}]}}
compare: {{baseline: base}}
evaluate:
  generate: {{prompts: [{prompts}], max_new_tokens: 8}}
"""
    file = write_study(tmp_path, study)
    assert run(file).exit_code == 0
    opened = open_study(file)
    texts = comparable_texts(opened.study, opened.plan, opened.store, "notes")
    (cell,) = (cell for cell in opened.plan.cells if cell.variant == "full")
    own = [text.item() for text in read_texts("generate", opened.store.artifact(cell.evaluations["generate"]).path, {})]
    for person in ("anna", "ben"):
        sheet = RatingSheet(sheet_file(file, person), texts)
        for number, item in enumerate(sheet.items):
            for criterion in ("coherence", "relevance"):
                sheet.rate(item, criterion, 1 + (len(sheet.texts[item].text) + number % 2) % 5)
        for pair in sheet.pairs:
            sheet.prefer(pair, next(text for text in pair if text.item() in own))
    assert len(sheet.pairs) == 7
    file.write_text(study + STUDY_ENTRY)
    assert run(file).exit_code == 0
    opened = open_study(file)
    found = find(read_results(opened))
    (group,) = found.groups
    base, full = (group.entrant(name) for name in ("base", "full"))
    quantity = Quantity("ratings", "", "preference")
    assert [found.estimate(entrant, quantity).mean for entrant in (base, full)] == [0.0, 1.0]  # type: ignore[union-attr]
    difference = found.difference(full, base, quantity)
    assert difference is not None
    assert (difference.mean, difference.n_examples, difference.n_documents) == (1.0, 14, 7)
    assert difference.p == pytest.approx(2 * 0.5**7)  # a sign test over the prompts, two raters each
    agreement = found.ratings["ratings"].trust["preference"].agreement
    assert agreement is not None
    assert (agreement.alpha, agreement.num_items) == (1.0, 7)
    write_outputs(read_results(opened), tmp_path / "out", figures=False)
    report = (tmp_path / "out" / "report.txt").read_text(encoding="utf-8")
    assert "ratings, from 1 to 5 by anna and ben: " in report
    assert "preferred" in report

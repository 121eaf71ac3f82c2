"""The pages of two studies that ran, of tiny models: tasks with questions in slices, and a matrix of bases, data and ranks."""

import json
import random
from pathlib import Path

import pandas as pd
import pytest

from paretune.api import open_results, run
from paretune.pipeline.stage import RunOptions
from paretune.report.outputs import write_outputs
from tests.browser.conftest import CHROMIUM, Opener, serious_findings
from tests.conftest import write_notes, write_questions
from tests.tiny import make_model

pytest.importorskip("playwright")
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]
TASKS = """
study: desk
bases: {tiny: {path: llama}}
data:
  notes:
    source: {path: notes.jsonl}
    document: title
    context: "{{ content }}\\n\\n"
    tasks:
      title: {prompt: "Title:", completion: " {{ title }}", score: [rouge_l], max_new_tokens: 6}
      kind: {prompt: "Type:", completion: " {{ type }}", labels: from_train, max_new_tokens: 3}
train: {max_steps: 2, batch_size: 4, max_length: 400}
precision: {compute: float32}
variants:
  base: []
  lora: [{train.lora: {r: 4, targets: all-linear, learning_rate: 5.0e-3}}]
  reduced: [{prune.blocks: {count: 1, choose: last}}, {train.lora: {r: 4, targets: all-linear, learning_rate: 5.0e-3}}]
evaluate:
  perplexity: {}
  tasks: {}
  qa: {path: qa.json, slice_by: [category, difficulty]}
compare: {baseline: lora}
"""
MATRIX = """
study: matrix
bases: {llama: {path: llama}, neox: {path: neox}}
data:
  long: {source: {path: notes.jsonl}, document: title, text: "{{ title }}\\n{{ content }}"}
  short: {source: {path: titles.jsonl}, document: title, text: "{{ title }}: {{ type }}"}
train: {max_steps: 2, batch_size: 4, max_length: 64}
precision: {compute: float32}
variants:
  base: []
  lora: [{train.lora: {r: {grid: [2, 4]}, learning_rate: 5.0e-3}}]
evaluate: {perplexity: {}}
compare: {baseline: base}
"""


def report_of(folder: Path, text: str) -> Path:
    """Run a study and write its outputs; returns the page."""
    for name, architecture in (("llama", "llama"), ("neox", "gpt-neox")):
        if name in text:
            make_model(architecture, folder / name)
    write_notes(folder / "notes.jsonl")
    draw = random.Random(1)
    titles = [{"title": f"{draw.choice('abcdef') * 5} {number}", "type": draw.choice(["ten", "two"])} for number in range(40)]
    (folder / "titles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in titles))
    write_questions(folder / "qa.json")
    (folder / "study.yaml").write_text(text)
    assert run(folder / "study.yaml", options=RunOptions(workers=2)).exit_code == 0
    write_outputs(open_results(folder / "study.yaml"), folder / "out", figures=False)
    return folder / "out" / "report.html"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_of(tmp_path_factory.mktemp("tasks"), TASKS)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_of(tmp_path_factory.mktemp("matrix"), MATRIX)


def variants(page: Page) -> list[str]:
    return page.locator("#table tbody td:first-child button").all_text_contents()


def shown_filters(page: Page) -> set[str]:
    labels = page.locator("#filters > label:visible").all_text_contents()
    return {label.split(" ")[0] for label in labels}


def test_questions_are_browsed_by_slice_and_tasks_without_it(tasks: Path, opened_report: Opener) -> None:
    position = "#position"
    with opened_report(tasks) as page:
        page.locator("#filter-task").select_option("qa")
        expect(page.locator(position)).to_have_text("1 of 6")
        assert {"category", "difficulty"} <= shown_filters(page)
        page.locator("#filter-field-category").select_option("factual")
        expect(page.locator(position)).to_have_text("1 of 3")
        page.locator("#filter-field-difficulty").select_option("easy")
        expect(page.locator(position)).to_have_text("1 of 2")
        page.keyboard.press("Tab")  # out of the list, whose own keys these are
        page.locator("body").click(position={"x": 5, "y": 5})
        page.keyboard.press("j")
        expect(page.locator(position)).to_have_text("2 of 2")
        assert page.locator("#example .texts h4").all_text_contents()[0] == "Reference"
        assert page.locator("#example pre").all_text_contents()[1] == "it waits"

        page.locator("#filter-task").select_option("title")
        assert not {"category", "difficulty"} & shown_filters(page)
        rows = pd.read_csv(tasks.parent / "estimates.csv")
        counts = (
            rows[(rows.task == "title") & (rows.metric == "rouge_l") & rows.slice.isna()].groupby("variant").n_examples.sum()
        )
        expect(page.locator(position)).to_have_text(f"1 of {counts['base']:.0f}")  # and the slice of before filters no longer
        page.get_by_label("variants disagree").check()
        expect(page.locator("#example h4", has_text="reduced")).to_have_count(1)


def test_figures_of_tasks_are_sorted_drawn_and_read_on_a_phone(tasks: Path, opened_report: Opener) -> None:
    with opened_report(tasks) as page:
        rows = pd.read_csv(tasks.parent / "estimates.csv")
        judged = rows[(rows.task == "perplexity") & (rows.split == "test") & (rows.metric == "perplexity") & rows.slice.isna()]
        page.get_by_role("button", name="Perplexity").click()
        assert variants(page) == list(judged.sort_values("mean").variant)
        page.locator("#y").select_option("qa||accuracy")
        page.locator("#x").select_option("|cost|parameters")
        expect(page.locator("#scatter text", has_text="Accuracy (likelihood) on qa")).to_be_visible()
        page.locator("#metric").select_option("accuracy")
        expect(page.locator("#bars text", has_text="qa · difficulty: hard")).to_be_visible()
    with opened_report(tasks, width=390) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.locator("#metric").select_option("accuracy")
        lines = page.locator("#bars text", has_text="difficulty: hard").locator("tspan")
        expect(lines).to_have_text(["qa", "difficulty: hard"])


def test_points_of_one_size_are_drawn_apart(matrix: Path, opened_report: Opener) -> None:
    with opened_report(matrix) as page:
        page.locator("#view").select_option("llama on short")
        assert page.locator("#x option", has_text="Model size").count() == 1
        size, chosen = "|cost|model_bytes", page.locator("#x").input_value()
        table = pd.read_csv(matrix.parent / "results.csv")
        sizes = table[(table.base == "llama") & (table.metric == "model_bytes")].value
        assert sizes.nunique() == 1
        assert chosen != size
        across = {box["x"] for point in page.locator("#scatter g.mark-symbol path").all() if (box := point.bounding_box())}
        assert len(across) > 1


def test_a_matrix_is_compared_across_bases_and_one_by_one(matrix: Path, opened_report: Opener) -> None:
    with opened_report(matrix) as page:
        labels = ["all bases on long", "llama on long", "neox on long", "all bases on short", "llama on short", "neox on short"]
        assert page.locator("#view option").all_text_contents() == labels
        assert len(variants(page)) == 6
        page.get_by_role("button", name="Bits per byte").first.click()
        rows = pd.read_csv(matrix.parent / "estimates.csv")
        judged = rows[(rows.dataset == "long") & (rows.split == "test") & (rows.metric == "bits_per_byte") & rows.slice.isna()]
        ranked = judged.sort_values("mean")
        assert variants(page) == [f"{row.base} {row.variant}" for row in ranked.itertuples()]
        page.get_by_label("Find").first.fill("r=4")
        assert sorted(variants(page)) == ["llama lora[r=4]", "neox lora[r=4]"]
        page.get_by_label("Find").first.fill("")
        page.locator("#chips button", has_text="neox base").focus()
        page.keyboard.press("Enter")
        assert page.locator("#table tr.chosen button").all_text_contents() == ["neox base"]
        page.keyboard.press("Escape")
        page.locator("#view").select_option("neox on short")
        assert variants(page) == ["base", "lora[r=2]", "lora[r=4]"]
        page.get_by_role("button", name="Theme").click()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"


@pytest.mark.parametrize("name", ["tasks", "matrix"])
def test_axe_finds_nothing_serious_in_either_theme(request: pytest.FixtureRequest, opened_report: Opener, name: str) -> None:
    for theme in ("light", "dark"):
        with opened_report(request.getfixturevalue(name), color_scheme=theme) as page:
            assert serious_findings(page) == {}

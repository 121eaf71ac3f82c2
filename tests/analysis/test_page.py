"""What the page of a report is given: its figures are those of the findings, its examples those of the store."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from paretune.analysis.facts import find
from paretune.analysis.findings import Findings
from paretune.analysis.measure import measure
from paretune.analysis.scores import Entrant, Quantity
from paretune.report import charts
from paretune.report.page import page_data, reproduction
from paretune.report.render import as_html
from paretune.report.sections import build_report
from tests.analysis.synthetic import Shape, make_results

SMALL = Shape(documents=12, epochs=2)
FULL = Entrant("novels", "news", "full")


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    results = make_results(tmp_path_factory.mktemp("page"), SMALL)
    for cell in results.cells:
        folder = cell.evaluations["qa"].path
        written = {"text": f"{cell.variant}\u202e", "stopped_by": "eos"}
        taken = {"prompt": "Which?", "options": ["a", "b"], "reference": "b", "text": "a"}
        answers = [{"prompt": f"Q{number}", "reference": f"R{number}", **written} for number in range(10)]
        chosen = [{"example": str(number), **taken} for number in range(10)]
        for name, rows in (("generations.jsonl", answers), ("choices.jsonl", chosen)):
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return measure(results)


@pytest.fixture(scope="module")
def data(findings: Findings) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(json.dumps(page_data(findings), allow_nan=False))
    return loaded


def examples(data: dict[str, Any], task: str) -> list[dict[str, Any]]:
    return [example for example in data["examples"]["news"] if example["task"] == task]


def test_the_page_says_how_many_examples_it_leaves_out(
    tmp_path: Path, findings: Findings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert page_data(findings)["left_out"] == []
    monkeypatch.setattr("paretune.report.page._EXAMPLES", 4)
    data = page_data(findings)
    assert {"dataset": "news", "task": "qa", "shown": 4, "of": 20} in data["left_out"]
    assert len(examples(data, "qa")) == 4
    assert len(examples(data, "qa")[0]["by"]) > 1
    page = as_html(build_report(find(findings.results), frozenset()), tmp_path, data, reproduction(findings.results))
    assert "Of 20 examples of qa on news the first 4 stand here" in page


def test_every_estimate_and_cost_is_on_the_page_as_it_was_found(findings: Findings, data: dict[str, Any]) -> None:
    values = data["values"][data["entrants"].index(next(row for row in data["entrants"] if row["variant"] == "full"))]
    whole = {quantity: estimate for quantity, estimate in findings.estimates[FULL].items() if not quantity.slice}
    assert len(values) == len(whole) + len(findings.costs[FULL])
    for quantity, estimate in whole.items():
        value = values[f"{quantity.task}|{quantity.split}|{quantity.metric}"]
        assert (value["value"], value["low"]) == pytest.approx((estimate.mean, estimate.low), rel=1e-5)
    assert values["|cost|model_bytes"]["text"] == "28.0 MB"


def test_marks_are_the_verdicts_of_the_comparison(findings: Findings, data: dict[str, Any]) -> None:
    (group,) = findings.groups
    loss = Quantity("perplexity", "test", "loss")
    for entrant, value in zip(group.entrants, data["values"], strict=True):
        difference = findings.difference(entrant, group.baseline, loss)
        for metric in ("loss", "perplexity"):
            verdict = value[f"perplexity|test|{metric}"].get("verdict")
            assert verdict == (None if difference is None else difference.verdict)


def test_the_frontier_is_that_of_the_choice(findings: Findings, data: dict[str, Any]) -> None:
    (view,) = data["views"]
    choice = findings.groups[0].choice
    assert choice is not None
    for cost, beaten in choice.beaten_by_cost.items():
        names = [data["entrants"][index]["variant"] for index in view["frontier"][f"|cost|{cost}"]]
        assert names == [entrant.variant for entrant, by in beaten.items() if by is None]
    assert view["y"] == "perplexity|test|perplexity"


def test_answers_stand_beside_their_questions_scores_and_options(data: dict[str, Any]) -> None:
    asked = examples(data, "qa")
    assert len(asked) == 20
    first, factual = asked[0], next(example for example in asked if example["prompt"] == "Q0")
    assert factual["references"] == ["R0"]
    made = factual["by"]["1"]["0"]
    assert (made["text"], set(made["scores"])) == ("full<U+202E>", {"exact_match", "contains", "log_likelihood"})
    assert (first["prompt"], first["references"]) == ("Which?\n- a\n- b", ["b"])
    assert set(factual["by"]["1"]) == {"0", "1"}


def test_what_is_scored_several_times_has_no_one_score(tmp_path: Path) -> None:
    results = make_results(tmp_path, replace(SMALL, evaluations=("qa",)))
    for cell in results.cells:
        file = cell.evaluations["qa"].path / "scores.parquet"
        table = pd.read_parquet(file)
        pd.concat([table, table]).to_parquet(file, index=False)
    assert page_data(measure(results))["examples"] == {"news": []}


def test_records_show_how_they_begin(tmp_path: Path) -> None:
    results = make_results(tmp_path, replace(SMALL, evaluations=("perplexity",)))
    rows = [{"split": "test", "document": f"test {n}", "example": str(n), "text": f"{n} " + "x" * 900} for n in range(12)]
    pd.DataFrame(rows).to_parquet(results.data["news"].path / "documents.parquet")
    shown = [example["record"] for example in page_data(measure(results))["examples"]["news"] if example["split"] == "test"]
    assert [text.split(" ")[0] for text in shown] == [str(n) for n in range(12)]
    assert max(map(len, shown)) == 704


def test_curves_of_many_steps_are_thinned_to_their_ends(data: dict[str, Any]) -> None:
    train = [run for run in data["curves"] if run["side"] == "train"]
    assert len(train) == 6
    assert {(run["step"][0], run["step"][-1]) for run in train} == {(1, 24)}
    assert all(len(run["loss"]) == len(run["step"]) <= 200 for run in train)


def test_no_two_variants_look_alike() -> None:
    assert len({str(charts.look(index, 0)) for index in range(40)}) == 40
    assert charts.look(3, 1) != charts.look(3, 0)


def test_the_library_is_bundled_once_and_works_where_no_cache_can_be_written(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    charts.vega_bundle.cache_clear()
    script = charts.vega_bundle()
    (kept,) = (tmp_path / "paretune").iterdir()
    assert kept.read_text(encoding="utf-8") == script
    assert "vegaEmbed" in script
    assert "</script" not in script
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    charts.vega_bundle.cache_clear()
    assert charts.vega_bundle() == script
    charts.vega_bundle.cache_clear()

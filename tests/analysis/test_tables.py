"""The builder of tables, and what figures look like by the row of their metric."""

import math
from pathlib import Path

import pytest

from paretune.analysis.compare import Estimate
from paretune.analysis.costs import Cost
from paretune.analysis.facts import find
from paretune.analysis.scores import Quantity
from paretune.report.tables import (
    Column,
    answers_column,
    cost_text,
    estimate_column,
    estimate_text,
    make_table,
    p_text,
    signed,
    subjects,
)
from tests.analysis.synthetic import Shape, make_results


def estimate(mean: float, low: float, high: float) -> Estimate:
    return Estimate(mean, low, high, 40, 40, {0: mean})


def test_a_table_is_rows_and_columns_with_dashes_for_what_is_missing() -> None:
    columns: list[Column[int]] = [
        Column("number", str),
        Column("half", lambda row: None if row % 2 else str(row // 2)),
        Column("never", lambda _row: None, optional=True),
        Column("state", lambda row: "" if row else "none"),
    ]
    table = make_table([0, 1, 2], columns, "Numbers", words=2, grouped=True)
    assert table.header == ("number", "half", "state")
    assert table.rows == [["0", "0", "none"], ["1", "-", ""], ["2", "1", ""]]
    assert (table.caption, table.words, table.grouped) == ("Numbers", 2, True)


def test_a_grouped_table_says_a_name_once() -> None:
    columns: list[Column[tuple[str, str]]] = [Column("a", lambda row: row[0]), Column("b", lambda row: row[1])]
    table = make_table([("x", "1"), ("x", "2"), ("y", "3")], columns, grouped=True)
    assert [row[0] for row in table.folded] == ["x", "", "y"]


@pytest.mark.parametrize(
    ("metric", "found", "text"),
    [
        ("perplexity", (1.534, 1.512, 1.561), "1.53 (1.51 to 1.56)"),
        ("accuracy", (0.386, 0.361, 0.412), "38.6 % (36.1 to 41.2 %)"),
        ("rouge_l", (0.0025, 0.0, 0.0076), "0.003 (0.000 to 0.008)"),
        ("coherence", (3.5, 3.25, 3.75), "3.50 (3.25 to 3.75)"),
        ("stopped_by_eos", (0.25, 0.1, 0.4), "25.0 %"),
        ("length_ratio", (1.5, 1.4, 1.6), "1.5"),
        ("accuracy", (0.386, math.nan, math.nan), "38.6 %"),
        ("unheard_of", (12.345, 12.0, 13.0), "12"),
    ],
)
def test_a_figure_looks_like_its_metric(metric: str, found: tuple[float, float, float], text: str) -> None:
    assert estimate_text(metric, estimate(*found)) == text


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("model_bytes", (28.4e6,), "28.4 MB"),
        ("train_seconds", (245.0, 245.0), "4 min 05 s"),
        ("parameters", (7e6,), "7,000,000"),
        ("train_tokens_per_second", (798.0, 826.0), "812 ± 14"),
        ("fast.ms_per_token", (4.25,), "4.25"),
    ],
)
def test_a_cost_looks_like_its_unit(name: str, values: tuple[float, ...], text: str) -> None:
    assert cost_text(name, Cost(dict(enumerate(values)))) == text


def test_signs_and_p_values() -> None:
    assert signed(0.045, 0.031, 0.059, 3) == "+0.045 (+0.031 to +0.059)"
    assert signed(-0.1, -math.inf, math.inf, 3) == "-0.100"
    assert [p_text(p) for p in (0.00001, 0.0423, 0.4231)] == ["< 0.0001", "0.042", "0.42"]


def test_marks_stand_behind_figures_and_not_behind_dashes(tmp_path: Path) -> None:
    findings = find(make_results(tmp_path, Shape(documents=12, epochs=1, leakage="allow")))
    rows = subjects(findings.groups[0])
    for split, mark in (("test", "†"), ("validation", "")):
        column = estimate_column(findings, Quantity("perplexity", split, "bits_per_byte"))
        assert column.heading == "bits per byte"
        assert all((cell := column.cell(row)) is not None and cell.endswith(f"){mark}") for row in rows)
    answers = answers_column(findings, Quantity("qa", "", "accuracy"))
    assert all((cell := answers.cell(row)) is not None and " of 10† (" in cell for row in rows)
    nothing = estimate_column(findings, Quantity("qa", "", "rouge_l"))
    assert make_table(rows, [nothing]).rows == [["-"]] * 4

"""Which fields of questions cannot be told apart, on tables by hand and in a report."""

from pathlib import Path

import pandas as pd
import pytest

from paretune.analysis.confounded import confounded_fields, hangs_together
from paretune.analysis.measured import measure
from tests.analysis.synthetic import Shape, make_results

BMW = [[10, 0, 0], [0, 7, 3]]
"""Kinds of question by difficulty in a set of press questions: every easy one is a choice."""


@pytest.mark.parametrize(
    ("table", "together"),
    [
        (BMW, False),
        ([[10, 0], [0, 10]], False),
        ([[10, 1], [0, 10]], True),
        # 0-a, a-1, 1-b, b-2, 2-c: a chain, with an empty cell in every row.
        ([[4, 0, 0], [4, 4, 0], [0, 4, 4]], True),
        ([[4, 4, 0, 0], [4, 4, 0, 0], [0, 0, 4, 4]], False),
        ([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]], True),
        ([[0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0]], True),
    ],
)
def test_effects_are_separable_where_the_cells_hang_together(table: list[list[int]], together: bool) -> None:
    assert hangs_together(pd.DataFrame(table)) is together
    assert hangs_together(pd.DataFrame(table).T) is together


def test_confounded_fields_are_told(tmp_path: Path) -> None:
    results = make_results(tmp_path, Shape(seeds=(0,)))
    for cell in results.cells:
        file = cell.evaluations["qa"].path / "scores.parquet"
        scores = pd.read_parquet(file)
        number = scores.example.str.extract(r"(\d+)", expand=False).astype(int)
        scores["slice.kind"] = number.mod(2).map({0: "choice", 1: "fact"})
        scores["slice.topic"] = number.floordiv(2).mod(2).map({0: "cars", 1: "people"})
        # As good as the kind: one question of it is otherwise.
        scores["slice.length"] = scores["slice.kind"].mask(number == number.min(), "fact")
        scores.to_parquet(file)
    measured = measure(results)
    told = list(confounded_fields(measured, measured.groups[0], "qa"))
    assert [sentence.split(" of `qa`")[0] for sentence in told] == [
        "`difficulty` and `kind`",
        "`difficulty` and `length`",
        "`kind` and `length`",
    ]
    assert "2 of the 4 combinations of their values have no question (Cramer's V 1.00)" in told[0]
    assert "1 of the 4" in told[2]

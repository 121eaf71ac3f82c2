import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from paretune.analysis.training import CURVE_COLUMNS, disturbance, epochs_of, loss_falls, read_curve, smoothed
from paretune.pipeline.records import Cell
from tests.analysis.synthetic import Shape, make_results

LINES = [
    {"step": 1, "epoch": 0.5, "train_loss": 4.0, "learning_rate": 1e-3, "seconds": 2.0, "tokens": 100},
    {"step": 2, "epoch": 1.0, "train_loss": 3.0, "learning_rate": 1e-3, "seconds": 3.0, "tokens": 400},
    {"step": 2, "epoch": 1.0, "validation_loss": 3.5, "validation_token_accuracy": 0.2, "seconds": 3.0, "tokens": 400},
    {"step": 3, "epoch": 1.5, "train_loss": 2.0, "learning_rate": 1e-3, "seconds": 7.0, "tokens": 500},
]


def trained_cell(tmp_path: Path) -> Cell:
    results = make_results(tmp_path, Shape(seeds=(0,), documents=4, evaluations=("latency",), epochs=1))
    cell = next(cell for cell in results.cells if cell.variant == "full")
    text = "".join(json.dumps(line) + "\n" for line in LINES)
    (cell.methods[0].path / "curves.jsonl").write_text(text, encoding="utf-8")
    return cell


def test_a_step_and_its_evaluation_are_one_row(tmp_path: Path) -> None:
    curve = read_curve(trained_cell(tmp_path))
    assert tuple(curve.columns) == CURVE_COLUMNS
    assert curve["step"].tolist() == [1, 2, 3]
    assert curve.loc[1, ["train_loss", "validation_loss"]].tolist() == [3.0, 3.5]
    assert np.isnan(curve.loc[0, "validation_loss"])


def test_an_epoch_is_the_token_mean_of_its_steps_and_their_seconds(tmp_path: Path) -> None:
    first, second = epochs_of(read_curve(trained_cell(tmp_path)))
    assert first.train_loss == pytest.approx((4 * 100 + 3 * 300) / 400)
    assert (first.number, first.end, first.seconds, first.validation_loss) == (1, 1.0, 3.0, 3.5)
    assert (second.number, second.end, second.seconds, second.validation_loss) == (2, 1.5, 4.0, None)


def test_a_second_training_goes_on_where_the_first_ended(tmp_path: Path) -> None:
    cell = trained_cell(tmp_path)
    curve = read_curve(replace(cell, methods=cell.methods * 2))
    assert curve["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert curve["epoch"].tolist() == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert curve["seconds"].tolist()[-1] == 14.0


def test_nothing_trained_has_no_curve(tmp_path: Path) -> None:
    curve = read_curve(replace(trained_cell(tmp_path), methods=()))
    assert curve.empty
    assert tuple(curve.columns) == CURVE_COLUMNS
    assert epochs_of(curve) == []


def test_a_running_mean_keeps_a_constant_and_a_start_that_is_straight() -> None:
    assert smoothed([2.0] * 9, 4).tolist() == [2.0] * 9
    assert smoothed([float(value) for value in range(10)], 4).tolist()[:8] == pytest.approx(list(range(8)))
    assert smoothed([1.0, 5.0], 0).tolist() == [1.0, 5.0]


def test_the_parts_of_one_training_show_how_disturbed_it_was() -> None:
    def run(steps: int, slow: int) -> pd.DataFrame:
        seconds = [30.0, *(2.0 if step < slow else 1.0 for step in range(1, steps))]
        table = {"train_loss": [4.0] * steps, "tokens": np.arange(1, steps + 1) * 100, "seconds": np.cumsum(seconds)}
        return pd.DataFrame(table)

    assert disturbance(run(41, 0)) == pytest.approx(1.0)  # the first step counts for nothing
    assert disturbance(run(41, 11)) == pytest.approx(2.0)
    assert disturbance(run(7, 3)) is None


def test_a_train_loss_that_rises_at_its_end_is_not_falling() -> None:
    falls = np.linspace(5.0, 3.0, 400)
    rises = np.concatenate([np.linspace(5.0, 3.0, 370), np.linspace(3.0, 3.5, 30)])
    assert loss_falls([pd.DataFrame({"epoch": np.linspace(0.01, 1, 400), **columns(falls)})]) == (False, True)
    assert loss_falls([pd.DataFrame({"epoch": np.linspace(0.01, 1, 400), **columns(rises)})]) == (False, False)


def columns(losses: np.ndarray) -> dict[str, np.ndarray]:
    count, nothing = np.arange(1.0, len(losses) + 1), np.full(len(losses), np.nan)
    rest = {"validation_loss": nothing, "validation_token_accuracy": nothing}
    return {"train_loss": losses, "tokens": count, "seconds": count, "step": count, **rest}

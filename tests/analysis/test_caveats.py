"""What keeps a ranking of runs from being one of methods."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from paretune.analysis.caveats import chosen_on_validation, falling, short_training, untuned
from paretune.analysis.conclude import conclude
from paretune.analysis.measured import Measured, headline, measure
from tests.analysis.synthetic import VARIANTS, Shape, Truth, make_results

QUIET = Shape(seeds=(0,), documents=40, evaluations=("perplexity",), epochs=1)


def of(tmp_path: Path, shape: Shape = QUIET) -> Measured:
    return measure(make_results(tmp_path, shape))


def test_methods_of_one_rate_each_are_not_tuned(tmp_path: Path) -> None:
    (said,) = untuned(of(tmp_path))
    assert said.startswith("One learning rate a method (`train.full` 3e-05 and `train.lora` 0.0003), not tuned: ")


def test_a_sweep_of_rates_and_a_single_method_have_no_caveat_about_rates(tmp_path: Path) -> None:
    other = replace(VARIANTS["original"], methods="[{train.lora: {learning_rate: 1.0e-3}}]")
    assert not list(untuned(of(tmp_path, replace(QUIET, variants={**VARIANTS, "other": other}))))
    (tmp_path / "one").mkdir()
    assert not list(untuned(of(tmp_path / "one", replace(QUIET, variants={"lora": VARIANTS["original"]}))))


def with_train_loss(measured: Measured, loss: Callable[[float], float]) -> Measured:
    for cell in measured.results.cells:
        for record in cell.methods:
            file = record.path / "curves.jsonl"
            if file.exists():
                rows = [json.loads(line) for line in file.read_text().splitlines()]
                for row in rows:
                    if "train_loss" in row:
                        row["train_loss"] = loss(row["epoch"]) + 0.05 * math.sin(7 * row["step"])
                file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return measure(measured.results)


def test_of_a_single_evaluation_the_train_loss_tells_that_a_training_was_short(tmp_path: Path) -> None:
    measured = with_train_loss(of(tmp_path), lambda epoch: 5 - epoch)
    group = measured.groups[0]
    assert falling(measured, group) == ([], ["`full`", "`original`", "`reduced`"])
    (said,) = short_training(measured, group)
    assert said.startswith("Short training: the train loss of `full`, `original` and `reduced` was still falling at the end;")
    assert said in conclude(measured, group).findings
    flat = with_train_loss(measured, lambda epoch: 4.0)
    assert not list(short_training(flat, group))


def test_a_validation_loss_that_falls_is_told_in_short(tmp_path: Path) -> None:
    measured = of(tmp_path, replace(QUIET, epochs=3))
    (said,) = short_training(measured, measured.groups[0])
    assert "validation loss of `full`, `original` and `reduced`" in said


def test_validation_that_chose_the_weights_is_no_fair_judge(tmp_path: Path) -> None:
    measured = of(tmp_path, replace(QUIET, splits=("validation",)))
    assert headline(measured, measured.groups[0]) is not None
    assert any("which also chose the weights" in said for said in conclude(measured, measured.groups[0]).findings)
    (tmp_path / "test").mkdir()
    measured = of(tmp_path / "test")
    assert not list(chosen_on_validation(measured, headline(measured, measured.groups[0])))
    (tmp_path / "plain").mkdir()
    plain = of(
        tmp_path / "plain", replace(QUIET, splits=("validation",), variants={"cut": Truth("[{prune.blocks: {count: 1}}]", 5.0)})
    )
    assert not list(chosen_on_validation(plain, headline(plain, plain.groups[0])))


def test_the_recommendation_says_on_how_many_documents_it_stands(tmp_path: Path) -> None:
    measured = of(tmp_path)
    assert " on 40 documents" in conclude(measured, measured.groups[0]).recommendation[0]

"""Progressive removal: its stops in the plan and in a run, what is measured at each, and what is handed on beyond the bound."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from paretune.cli import main
from paretune.errors import SpecError
from paretune.pipeline.stage import Artifact
from paretune.pipeline.stage_configs import BaseConfig, TrainConfig
from paretune.study.methods import Shrink
from paretune.study.train import Train
from paretune.train import shrink as shrinking
from paretune.train import stages
from paretune.train.shrink import shrink
from tests.conftest import STUDY, write_study
from tests.evaluate.stages import BASE, make_artifact, make_context, write_tokens
from tests.pipeline.planned import GPT2, check, plan_of, write_base, write_planned
from tests.tiny import make_model

HEAL = "{lora: {r: 2, targets: all-linear, learning_rate: 5.0e-3}, max_steps: 3}"
TEXT = (
    STUDY.partition("variants:")[0]
    + f"""variants:
  base: []
  small: [{{shrink: {{to: 0.5, calibration: {{tokens: 200}}, heal: {HEAL}, stop: {{bits_per_byte: 50.0}}}}}}]
evaluate: {{perplexity: {{splits: [validation, test]}}}}
"""
)
PLANNED = (
    "study: a\nprecision: {compute: float32}\nbases: {small: {path: small}}\n"
    "data: {notes: {source: {path: notes.jsonl}, text: '{{ title }}'}}\n"
)


def planned(folder: Path, method: str) -> Path:
    file = write_planned(folder, f"{PLANNED}variants: {{small: [{method}]}}\nevaluate: {{perplexity: {{}}}}\n")
    write_base(folder / "small", GPT2 | {"n_layer": 10})
    return file


def test_a_stop_is_a_stage_and_as_many_are_planned_as_blocks_may_go(tmp_path):
    for method, stops in (("{shrink: {to: 0.65}}", 3), ("{prune.blocks: {count: 2}}, {shrink: {to: 0.5}}", 4)):
        (cell,) = plan_of(planned(tmp_path, method)).cells
        kinds = [stage.kind for stage in cell.methods]
        assert kinds == ["prune.blocks"] * (len(kinds) - stops) + ["shrink"] * stops
        assert len({stage.key for stage in cell.methods}) == len(cell.methods)
        for before, stage in zip(cell.methods, cell.methods[1:], strict=False):
            assert stage.inputs["model"] is before


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("{shrink: {to: 0.95}}", "shrink.to: 0.95 of 10 blocks is all of them; write at most 0.9"),
        ("{shrink: {to: 0.3, heal: {last_blocks: {count: 4}}}}", "count: base `small` has 3 blocks at this point"),
        ("{shrink: {heal: {}}}", "heal: name one of `lora: {...}`, `last_blocks: {...}` and `full: {...}`"),
    ],
)
def test_what_cannot_be_shrunk_is_told(tmp_path, method, told):
    with pytest.raises(SpecError) as error:
        check(planned(tmp_path, method))
    assert told in str(error.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    text = TEXT.replace("seeds: [0, 1]", "seeds: [0]")
    assert main(["run", str(write_study(folder, text)), "--out", str(folder / "out")]) == 0
    return folder


def records(folder: Path, kind: str) -> list[dict]:
    files = (folder / ".paretune").glob(f"{kind}-*/record.json")
    found = [json.loads(file.read_text()) | {"path": file.parent} for file in files]
    return sorted(found, key=lambda record: record["started"])


def test_what_each_stop_measures_is_what_the_evaluation_says(folder):
    first, second = records(folder, "shrink")
    results = pd.read_csv(folder / "out" / "results.csv")
    of_validation = results[(results["metric"] == "bits_per_byte") & (results["split"] == "validation")]
    table = pd.read_parquet(second["path"] / "validation.parquet")
    assert second["metrics"]["bits_per_byte_start"] == first["metrics"]["bits_per_byte_start"]
    assert second["metrics"]["bits_per_byte"] == pytest.approx(table["nats"].sum() / table["bytes"].sum() / np.log(2))
    for variant, name in (("base", "bits_per_byte_start"), ("small", "bits_per_byte")):
        rows = of_validation[of_validation["variant"] == variant]
        value = np.average(rows["value"], weights=rows["n"])
        assert second["metrics"][name] == pytest.approx(float(value), rel=0.02)  # `n` counts texts, not bytes
    assert [record["metrics"]["blocks_left"] for record in (first, second)] == [3, 2]
    assert json.loads((second["path"] / "config.json").read_text())["num_hidden_layers"] == 2


def test_the_report_says_what_each_stop_came_to(folder):
    text = " ".join((folder / "out" / "report.txt").read_text().replace("`", "").split())
    assert "small was shrunk block by block: 3 blocks of" in text
    assert "and 2 blocks of" in text
    assert "; none is beyond the bound of 50, which validation text decided." in text


def stop(folder: Path, draft: Path, given: Artifact | None) -> Artifact:
    """One stop of a removal with a bound of 0.1 bits per byte."""
    texts = [(split, f"{split}{n}", f"A text about the number {n}.") for split in ("train", "validation") for n in range(6)]
    tokens = write_tokens(folder / "base", texts, folder / "tokens")
    context = make_context(folder / "base", {}, draft, inputs={"tokens": tokens} | ({"model": given} if given else {}))
    context.config.clear()
    fields = {"heal": {"last_blocks": {"count": 1}}, "choose": "influence", "stop": {"bits_per_byte": 0.1}}
    config = TrainConfig(
        base=BaseConfig(**BASE),
        method=Shrink.model_validate(fields, strict=False),
        train=Train(max_steps=2, batch_size=3, max_length=32),
        seed=0,
        precision="float32",
        device="cpu",
    )
    context.config.update(config.model_dump(mode="json"))
    context.resume.mkdir(exist_ok=True)
    made = make_artifact(draft, **shrink(context))
    return replace(made, record=replace(made.record, config=dict(context.config)))


def test_beyond_the_bound_the_last_model_within_it_is_handed_on(tmp_path, monkeypatch):
    make_model("llama", tmp_path / "base")
    nats = iter([0.1, 0.3, 0.5])

    def measured(*_: object) -> pd.DataFrame:
        more = next(nats)
        return pd.DataFrame({"document": ["a"], "bytes": [1.0], "start": [1.0], "nats": [1.0 + more * 0.6]})

    monkeypatch.setattr(shrinking, "_measure", measured)
    first = stop(tmp_path, tmp_path / "one", None)
    second = stop(tmp_path, tmp_path / "two", first)
    third = stop(tmp_path, tmp_path / "three", second)
    assert [artifact.record.metrics.get("beyond") for artifact in (first, second, third)] == [False, True, None]
    assert third.record.metrics == {"handed_on": True}
    weights = [load_file(artifact.path / "model.safetensors") for artifact in (first, second, third)]
    assert all(each.keys() == weights[0].keys() and all((each[k] == weights[0][k]).all() for k in each) for each in weights)
    assert json.loads((third.path / "config.json").read_text())["num_hidden_layers"] == 3
    assert (third.path / "tokenizer.json").exists()


def test_where_the_first_stop_is_beyond_the_model_stays_as_it_was(tmp_path, monkeypatch):
    base = make_model("llama", tmp_path / "base")
    table = pd.DataFrame({"document": ["a"], "bytes": [1.0], "start": [1.0], "nats": [9.0]})
    monkeypatch.setattr(shrinking, "_measure", lambda *_: table)
    made = stop(tmp_path, tmp_path / "one", None)
    before, after = (load_file(each / "model.safetensors") for each in (base, made.path))
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)


def test_a_killed_stop_does_not_choose_again(tmp_path, monkeypatch):
    make_model("llama", tmp_path / "base")
    fit = stages.fit
    with monkeypatch.context() as patch:
        patch.setattr(stages, "fit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stop(tmp_path, tmp_path / "one", None)
    assert stages.fit is fit
    monkeypatch.setattr(shrinking, "choose_measured", lambda *_: pytest.fail("has been chosen"))
    assert stop(tmp_path, tmp_path / "one", None).record.metrics["blocks_left"] == 3

"""Variants that run less of their depth, from a study file to the report and what is exported, on a tiny model."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from paretune.cli import main
from tests.conftest import STUDY, write_study

_VARIANTS = """variants:
  base: []
  pruned:  [{prune.blocks: {blocks: [1]}}]
  skipped: [{skip.blocks: {blocks: [1]}}]
  healed:  [{skip.blocks: {blocks: [1]}}, {train.lora: {r: 4, targets: all-linear, learning_rate: 5.0e-3}}]
  early:   [{exit.early: {after: [1], within: {loss: 0.5}, thresholds: [0.9, 0.05], calibration: {tokens: 400}}}]
  never:   [{exit.early: {within: {agreement: 0.999}, thresholds: [0.01], calibration: {tokens: 400}}}]
evaluate:
  perplexity: {splits: [test]}
  generate: {prompts: ["The train"], max_new_tokens: 6}
  latency: {prompt_tokens: 8, new_tokens: 4, repeats: 2, warmup: 1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("depth")
    write_study(folder, STUDY[: STUDY.index("variants:")].replace("seeds: [0, 1]", "seeds: [0]") + _VARIANTS)
    assert main(["run", str(folder / "study.yaml"), "--out", str(folder / "out")]) == 0
    return folder


def test_what_skips_has_the_scores_of_what_was_pruned_and_the_bytes_of_the_base(folder):
    rows = pd.read_csv(folder / "out" / "estimates.csv")
    found = {name: part.set_index(["task", "metric"])["mean"] for name, part in rows.groupby("variant")}
    assert found["skipped"]["cost", "model_bytes"] == found["base"]["cost", "model_bytes"]
    for row in (("cost", "parameters"), ("perplexity", "loss")):
        assert found["skipped"][row] == found["pruned"][row] != found["base"][row]
    texts = {
        row["variant"]: row["text"]
        for row in map(json.loads, (folder / "out" / "generations.jsonl").read_text(encoding="utf-8").splitlines())
    }
    assert texts["skipped"] == texts["pruned"]
    assert texts["never"] == texts["base"]


def test_the_report_says_what_runs(folder):
    report = " ".join((folder / "out" / "report.txt").read_text(encoding="utf-8").split())
    assert "`skipped` leaves block 1 of 4 out as it is loaded" in report
    assert "`healed` leaves block" not in report, "it has the bytes of its own weights"
    assert "A token leaves `early` after block 1 of 4 where the next one has a probability of" in report
    assert "(bounds: loss +0.5, by whole intervals)" in report
    assert "No token leaves `never` after block 1 of 4: none of the thresholds 0.01 is shown" in report


def test_an_export_is_the_smaller_model(folder, tmp_path, capsys):
    for name in ("skipped", "pruned"):
        assert main(["export", str(folder / "study.yaml"), name, "--to", str(tmp_path / name)]) == 0
    assert "whole model of `skipped`, without the blocks that it skips" in " ".join(capsys.readouterr().out.split())
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("skipped", "pruned"))
    assert one.config.num_hidden_layers == 3
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name])


def test_an_adapter_behind_what_is_skipped_comes_with_its_base(folder, tmp_path):
    assert main(["export", str(folder / "study.yaml"), "healed", "--to", str(tmp_path / "x"), "--format", "adapter"]) == 0
    assert json.loads((tmp_path / "x" / "base" / "config.json").read_text())["num_hidden_layers"] == 3


def test_early_exits_are_not_exported(folder, tmp_path, capsys):
    assert main(["export", str(folder / "study.yaml"), "early", "--to", str(tmp_path / "x")]) == 2
    told = capsys.readouterr().err
    assert "--format hf: `early` ends with `exit.early`, which no format holds" in told
    assert not (tmp_path / "x").exists()

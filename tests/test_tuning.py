"""A study with a tuned variant and a grid, run by the command line on a tiny model: killed, run on, and run again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from paretune.api import open_results
from paretune.cli import main
from tests.conftest import STUDY, write_study

VARIANTS = """variants:
  rank: [{train.lora: {r: {grid: [2, 4]}, targets: all-linear, learning_rate: 5.0e-3}}]
  tuned:
    - train.lora: {r: 4, targets: all-linear, learning_rate: {tune: [1.0e-4, 5.0e-3, 1.0e30]}}
    - prune.blocks: {count: 1}
evaluate: {perplexity: {splits: [test]}}
"""
TEXT = STUDY.partition("variants:")[0].replace("epochs: 2", "max_steps: 4") + VARIANTS
WAIT_SECONDS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The study, run once without being disturbed."""
    folder = tmp_path_factory.mktemp("study")
    assert main(["run", str(write_study(folder, TEXT)), "--out", str(folder / "out")]) == 0
    return folder


def weights(store: Path) -> dict[str, str]:
    """Digest of the weights of every artifact, by its name."""
    records = {file.parent.name: json.loads(file.read_text()) for file in store.glob("*/record.json")}
    return {
        f"{name}/{path}": described["sha256"]
        for name, record in records.items()
        for path, described in record["files"].items()
        if path.endswith(".safetensors")
    }


def test_the_outputs_tell_trials_from_the_variant(folder):
    results = pd.read_csv(folder / "out" / "results.csv", keep_default_na=False)
    trials = results[results["trial"] != ""]
    assert set(trials["variant"]) == {"tuned"}
    assert set(trials["trial"]) == {"learning_rate=1e-4", "learning_rate=5e-3"}  # the third came to no number
    losses = trials[trials["metric"] == "loss"].set_index("trial")["value"]
    assert losses["learning_rate=5e-3"] < losses["learning_rate=1e-4"]
    assert list(open_results(folder / "study.yaml").tunings[0].trials[2].methods) == []
    mine = results[(results["variant"] == "tuned") & (results["trial"] == "")].set_index(["metric", "seed"])["value"]
    spent = trials[trials["metric"] == "train_seconds"].set_index("trial")["value"]
    assert mine["train_seconds", 0] == spent["learning_rate=5e-3"]
    assert mine["tuning_seconds", 0] >= spent["learning_rate=1e-4"]
    assert set(results["variant"]) == {"rank[r=2]", "rank[r=4]", "tuned"}
    for name in ("estimates.csv", "comparisons.csv"):
        assert "trial" not in pd.read_csv(folder / "out" / name).columns
    curves = pd.read_csv(folder / "out" / "curves.csv", keep_default_na=False)
    steps = curves[curves["variant"] == "tuned"].groupby(["trial", "seed"])["step"].count()
    assert dict(steps) == {("", 0): 4, ("", 1): 4, ("learning_rate=1e-4", 0): 4, ("learning_rate=5e-3", 0): 4}


def test_the_report_shows_the_tuning(folder):
    report = re.sub(r"\s+", " ", (folder / "out" / "report.txt").read_text())
    assert "`tuned` is trained with learning_rate=5e-3. Trials that were not chosen took" in report
    assert "`tuned` with learning_rate=1e30 diverged (step" in report
    assert "Tuned unequally: `tuned` over 3 trials and `rank[r=2]` and `rank[r=4]` not at all" in report
    assert "learning_rate tuned over 0.0001/0.005/1e+30" in report


def test_the_chosen_value_shares_its_training_with_the_same_value_written_out(folder):
    store = folder / ".paretune"
    assert len(list(store.glob("train.lora-*"))) == 2 + 2 + 1  # seeds of both ranks, of which r=4 is also the chosen trial


def test_a_second_run_reuses_everything(folder, capsys):
    assert main(["run", str(folder / "study.yaml"), "--out", str(folder / "again")]) == 0
    assert re.search(r"(\d+) stages: \1 reused, 0 to run", capsys.readouterr().err)
    for name in ("results.csv", "report.txt"):
        assert (folder / "again" / name).read_text() == (folder / "out" / name).read_text()


def test_killed_in_the_middle_of_tuning_the_result_is_the_same(folder, tmp_path, capsys):
    write_study(tmp_path, TEXT)
    command = [sys.executable, "-m", "paretune.cli", "run", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]
    events = tmp_path / ".paretune" / "events.jsonl"
    for moment in ("finished", "diverged"):  # in the second trial, and between the last one and what follows the choice
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
        deadline = time.monotonic() + WAIT_SECONDS
        while not (events.exists() and re.search(rf'"{moment}", "stage": "train.lora', events.read_text())):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert main(["run", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]) == 0
    assert weights(tmp_path / ".paretune") == weights(folder / ".paretune")
    losses = [pd.read_csv(one / "out" / "results.csv").query("metric == 'loss'") for one in (tmp_path, folder)]
    pd.testing.assert_frame_equal(*losses)


def test_a_tuned_variant_is_exported_with_its_chosen_value(folder, tmp_path, capsys):
    assert main(["export", str(folder / "study.yaml"), "tuned", "--seed", "1", "--to", str(tmp_path / "model")]) == 0
    assert '"learning_rate": 0.005' in (tmp_path / "model" / "README.md").read_text()
    assert main(["export", str(folder / "study.yaml"), "rank", "--to", str(tmp_path / "other")]) == 2
    assert 'no variant `rank`: it is a grid of `"rank[r=2]"`, `"rank[r=4]"`' in capsys.readouterr().err

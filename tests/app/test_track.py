"""Trackers are read back: their curves are those of curves.csv; one that raises, hangs or is missing changes nothing."""

import hashlib
import json
import re
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from paretune.app.track import _read, _send, curve_rows
from paretune.cli import main
from tests.conftest import STUDY, write_study

for needed in ("accelerate", "tensorboard", "mlflow", "trackio", "wandb"):
    pytest.importorskip(needed)
COLUMNS = ["train_loss", "validation_loss", "train_token_accuracy", "learning_rate", "tokens"]
TRACK = "track:\n  tensorboard: {}\n  mlflow: {}\n  trackio: {}\n  wandb: {mode: offline}\n  wait: 300\n"
NAME = "tiny/notes/original seed 1"
UNTRACKED = re.sub(r"  (qa|generate|latency|full|reduced):.*\n", "", STUDY)
"""Two variants and one evaluation."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A study that was run with every tracker."""
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(folder / "hf"))
        patch.setenv("WANDB_API_KEY", "s3cret" * 7)
        assert main(["run", str(write_study(folder, UNTRACKED + TRACK)), "--out", str(folder / "out")]) == 0
    return folder


def curve(folder: Path) -> pd.DataFrame:
    curves = pd.read_csv(folder / "out" / "curves.csv")
    (base, dataset), variant, seed = NAME.split("/")[:2], *NAME.split("/")[2].split(" seed ")
    own = curves[(curves["variant"] == variant) & (curves["seed"] == int(seed)) & curves["trial"].isna()]
    assert set(own["base"]) == {base}
    assert set(own["dataset"]) == {dataset}
    assert len(own) > 5
    return own.set_index("step")[COLUMNS].astype(float)


def test_tensorboard_has_the_curves(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / ".paretune" / "tensorboard" / NAME))
    events.Reload()
    for column, expected in curve(folder).items():
        found = {event.step: event.value for event in events.Scalars(column)}
        assert found == pytest.approx(expected.dropna().to_dict(), rel=1e-6)
    assert [event.value for event in events.Scalars("perplexity/test/loss")] == [pytest.approx(loss(folder), rel=1e-6)]
    whole = EventAccumulator(str(folder / ".paretune" / "tensorboard" / "comparison"))
    whole.Reload()
    assert "pareto" in whole.Tags()["images"]
    assert {"report.md/text_summary", "study.yaml/text_summary", "study.lock/text_summary"} <= set(whole.Tags()["tensors"])


def loss(folder: Path) -> float:
    rows = pd.read_csv(folder / "out" / "results.csv")
    own = rows[(rows["variant"] == "original") & (rows["seed"] == 1) & (rows["metric"] == "loss") & (rows["split"] == "test")]
    return float(own["value"].iloc[0])


def test_mlflow_has_the_curves(folder, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient((folder / ".paretune" / "mlruns").as_uri())
    (experiment,) = client.search_experiments(filter_string="name = 'small'")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert json.loads(runs[NAME].data.params["seed"]) == 1
    for column, expected in curve(folder).items():
        found = {row.step: row.value for row in client.get_metric_history(runs[NAME].info.run_id, column)}
        assert found == pytest.approx(expected.dropna().to_dict())
    kept = {file.path for file in client.list_artifacts(runs["comparison"].info.run_id)}
    assert {"study.yaml", "study.lock", "pareto.png", "results.csv"} <= kept


def test_trackio_has_the_curves(folder):
    (file,) = (folder / "hf" / "trackio").glob("*.db")
    with sqlite3.connect(file) as database:
        rows = database.execute("select step, metrics from metrics where run_name = ? order by id", [NAME]).fetchall()
    for column, expected in curve(folder).items():
        found = {step: row[column] for step, text in rows if column in (row := json.loads(text))}
        assert found == pytest.approx(expected.dropna().to_dict())


def wandb_records(file: Path) -> Iterator[object]:
    """The records of an offline run: blocks of 32 KiB after a header of 7 bytes, as LevelDB's log has them."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, whole = file.read_bytes(), 7, b""
    while position + 7 <= len(content):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        size, kind = struct.unpack("<HB", content[position + 4 : position + 7])
        whole += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):
            yield Record.FromString(whole)
            whole = b""


def test_wandb_has_the_curves_and_no_secret(folder):
    files = sorted((folder / ".paretune" / "wandb").glob("offline-run-*/*.wandb"))
    runs = {}
    for file in files:
        assert b"s3cret" not in file.read_bytes()
        records = list(wandb_records(file))
        (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
        assert (run.project, run.run_group, run.host) == ("small", "small", "")
        runs[run.display_name] = [record.history for record in records if record.WhichOneof("record_type") == "history"]
    assert NAME in runs
    assert "comparison" in runs
    rows = [{item.nested_key[0]: json.loads(item.value_json) for item in history.item} for history in runs[NAME]]
    for column, expected in curve(folder).items():
        found = {row["_step"]: row[column] for row in rows if column in row}
        assert found == pytest.approx(expected.dropna().to_dict())


def test_a_second_run_sends_nothing_again(folder, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(folder / "hf"))
    file = folder / "hf" / "trackio" / "small.db"
    before = sqlite3.connect(file).execute("select count(*) from metrics").fetchone()
    assert main(["run", str(folder / "study.yaml"), "--out", str(folder / "out")]) == 0
    assert sqlite3.connect(file).execute("select count(*) from metrics").fetchone() == before


@pytest.mark.parametrize(
    ("body", "wait", "told"),
    [
        ("raise OSError('no network')", 60, "stopped, which changes nothing of the results (OSError: no network"),
        ("import time; time.sleep(600)", 1, "had not sent everything after 1 s and was left"),
    ],
    ids=["raises", "hangs"],
)
def test_a_tracker_that_fails_or_hangs_changes_nothing(folder, body, wait, told, tmp_path, monkeypatch, capsys):
    (tmp_path / "wandb.py").write_text(f"{body}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    file = folder / "other.yaml"
    file.write_text(f"{UNTRACKED}track: {{wandb: {{}}, wait: {wait}}}\n", encoding="utf-8")
    before = {path.name: hashlib.sha256(path.read_bytes()).digest() for path in (folder / "out").glob("*.csv")}
    assert main(["run", str(file), "--out", str(tmp_path / "out")]) == 0
    assert told in capsys.readouterr().err
    after = {path.name: hashlib.sha256(path.read_bytes()).digest() for path in (tmp_path / "out").glob("*.csv")}
    assert after == before


def test_a_tracker_that_is_not_installed_is_told_before_the_run(folder, monkeypatch, capsys):
    from paretune.app import track

    monkeypatch.setattr(track, "find_spec", lambda name: None if name == "wandb" else sys)
    assert main(["run", str(folder / "study.yaml"), "--out", str(folder / "never")]) == 2
    assert "track.wandb: needs the package `wandb`: `pip install 'paretune[track]'`" in capsys.readouterr().err
    assert not (folder / "never").exists()


def test_a_curve_counts_on_from_one_training_to_the_next_and_has_each_step_once(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    lines = [{"step": step, "epoch": step / 2, "tokens": 10 * step, "seconds": step, "train_loss": 1 / step} for step in (1, 2)]
    again = {**lines[1], "seconds": 9}
    first.write_text("".join(json.dumps(row) + "\n" for row in (*lines, again)) + '{"step": 3, "ep')
    second.write_text("".join(json.dumps({**row, "validation_loss": 3}) + "\n" for row in lines))
    rows = curve_rows([[str(tmp_path / "missing"), str(first)], [str(second)]])
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["tokens"] for row in rows] == [10, 20, 30, 40]
    assert rows[3]["epoch"] == 2


def test_a_message_longer_than_a_pipe_does_not_wait_for_who_never_reads(tmp_path):
    message = {"cells": ["a" * 1000] * 1000}
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdin=subprocess.PIPE, text=True)
    try:
        _send(process, tmp_path / "message", message)  # a write of all of it would end with the sleep
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert _read(f"{tmp_path / 'message'}\n".encode()) == message

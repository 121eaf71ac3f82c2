"""Writing the outputs: by several processes at once, on a disk that is full, and where a signal or a kill comes between."""

import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from paretune.errors import StoreError
from paretune.pipeline.records import Results
from paretune.pipeline.signals import Terminated, ended_by_signals
from paretune.report import outputs
from paretune.report.outputs import write_outputs

FILES = ("report.txt", "report.html", "results.csv")


def write_text(text: str, seconds: float = 0.0) -> Callable[[Results, Path, bool], list[Path]]:
    """Instead of the study's tables and figures."""

    def write(_: object, draft: Path, figures: bool) -> list[Path]:
        (draft / "figures").mkdir()
        for name in (*FILES, "figures/curves.png"):
            (draft / name).write_text(text, encoding="utf-8")
            time.sleep(seconds)
        return [draft / name for name in (*FILES, "figures/curves.png")]

    return write


def contents(out: Path) -> dict[str, str]:
    return {file.relative_to(out).as_posix(): file.read_text() for file in out.rglob("*") if file.is_file()}


def _write(out: Path, text: str, failures: object) -> None:
    outputs._write = write_text(text, 0.01)
    try:
        write_outputs(None, out)
    except BaseException as error:
        failures.put(repr(error))
        raise


def test_twenty_processes_write_at_once_and_the_last_one_wins(tmp_path):
    context = multiprocessing.get_context("fork")
    failures = context.SimpleQueue()
    out = tmp_path / "results" / "study"
    writers = [context.Process(target=_write, args=(out, f"of {number}", failures)) for number in range(20)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert failures.empty()
    assert set(contents(out)) == {*FILES, "figures/curves.png"}  # and no draft
    assert len(set(contents(out).values())) == 1  # of one run


@pytest.mark.parametrize("before", ["nothing", "outputs and a file of the user's"])
@pytest.mark.parametrize("moment", ["while they are written", "while they are moved"])
def test_a_signal_leaves_the_outputs_all_old_or_all_new(tmp_path, monkeypatch, before, moment):
    out = tmp_path / "out"
    if before != "nothing":
        monkeypatch.setattr(outputs, "_write", write_text("old"))
        write_outputs(None, out)
        (out / "notes.txt").write_text("mine")
    old = contents(out)

    def end(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    if moment == "while they are written":
        monkeypatch.setattr(outputs, "_write", end)
    else:
        monkeypatch.setattr(outputs, "_write", write_text("new"))
        replace = Path.replace
        monkeypatch.setattr(Path, "replace", lambda file, target: (end(), replace(file, target)))
    with ended_by_signals(), pytest.raises(Terminated) as ended:
        write_outputs(None, out)
    assert ended.value.code == 143
    new = dict.fromkeys((*FILES, "figures/curves.png"), "new") if moment == "while they are moved" else {}
    assert contents(out) == old | new
    assert out.exists() == bool(old | new)


def test_what_a_killed_run_left_is_cleared_away_and_what_a_living_one_writes_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "_write", write_text("mine"))
    (tmp_path / ".draft-killed").mkdir()
    (tmp_path / ".draft-living").mkdir()
    with outputs._held(tmp_path / ".draft-living"):
        write_outputs(None, tmp_path)
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".draft-living"]


@pytest.mark.parametrize("function", ["mkdir", "write_text", "replace"])
def test_a_full_disk_is_told_and_leaves_the_old_outputs(tmp_path, monkeypatch, function):
    monkeypatch.setattr(outputs, "_write", write_text("old"))
    write_outputs(None, tmp_path)
    old = contents(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(outputs, "_write", write_text("new"))
    monkeypatch.setattr(Path, function, full)
    with pytest.raises(StoreError, match=r"--out: `.*` cannot be written \(No space left on device\)"):
        write_outputs(None, tmp_path)
    monkeypatch.undo()
    assert contents(tmp_path) == old


def test_a_file_system_without_locks_takes_outputs_too(tmp_path, monkeypatch):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(outputs.fcntl, "flock", no_locks)
    monkeypatch.setattr(outputs, "_write", write_text("new"))
    (tmp_path / ".draft-of another").mkdir()
    write_outputs(None, tmp_path)
    assert set(contents(tmp_path)) == {*FILES, "figures/curves.png"}
    assert (tmp_path / ".draft-of another").exists()  # nobody knows whether it lives

"""Runs that are killed, interrupted, or two at once on one store, as processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from paretune.pipeline.store import Store
from tests.pipeline.bodies import WAIT_SECONDS, runs, wait_for


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


@contextmanager
def running(folder: Path, *bodies: str) -> Iterator[subprocess.Popen]:
    """A run of a chain of bodies in a process group of its own."""
    command = [sys.executable, "-m", "tests.pipeline.bodies", str(folder.parent / "store"), str(folder), *bodies]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    with process:
        yield process


def group(process: subprocess.Popen) -> list[int]:
    """The living processes of a run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group_id = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it ended meanwhile
            continue
        if int(group_id) == process.pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_for_processes(process: subprocess.Popen, number: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while len(group(process)) < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_until_all_ended(process: subprocess.Popen) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while group(process):
        assert time.monotonic() < deadline, "a process of a run that was killed lives on"
        time.sleep(0.02)


def test_nobody_is_left_of_a_killed_run(folder):
    with running(folder, "ok", "waits") as process:
        wait_for(folder / "waits")
        assert len(group(process)) >= 3  # the run, the server of workers, a worker
        process.kill()
        process.wait()
        wait_until_all_ended(process)
    with running(folder, "ok", "waits") as process:
        (folder / "go").touch()
        assert process.wait(WAIT_SECONDS) == 0
    assert (runs(folder, "ok"), runs(folder, "waits")) == (1, 2)


def test_a_killed_worker_fails_its_stage_and_the_next_run_does_it(folder):
    with running(folder, "waits", "ok") as process:
        wait_for(folder / "waits")
        os.kill(int((folder / "waits").read_text()), signal.SIGKILL)
        assert process.wait(WAIT_SECONDS) == 1
    assert runs(folder, "ok") == 0
    (folder / "go").touch()
    with running(folder, "waits", "ok") as process:
        assert process.wait(WAIT_SECONDS) == 0
    assert runs(folder, "ok") == 1


def test_a_killed_server_of_workers_costs_nothing(folder):
    """The worker that is at work ends well, and the next one is forked from a new server."""
    with running(folder, "waits", "ok") as process:
        wait_for(folder / "waits")
        worker = int((folder / "waits").read_text())
        os.kill(int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL)
        (folder / "go").touch()
        assert process.wait(WAIT_SECONDS) == 0
    assert (runs(folder, "waits"), runs(folder, "ok")) == (1, 1)


@pytest.mark.parametrize("moment", ["while the server of workers starts", "in a stage"])
def test_an_interrupt_ends_everything_quietly(folder, moment):
    with running(folder, "waits") as process:
        if moment == "in a stage":
            wait_for(folder / "waits")
        else:
            wait_for_processes(process, 3)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=WAIT_SECONDS)
        wait_until_all_ended(process)
    assert process.returncode != 0
    assert errors.count("Traceback") == 1, errors  # of the run itself; the command turns it into a sentence
    assert errors.strip().endswith("KeyboardInterrupt")


def test_two_runs_at_once_do_each_stage_once(folder):
    with running(folder, *["slow"] * 4) as one, running(folder, *["slow"] * 4) as two:
        outputs = [process.communicate(timeout=WAIT_SECONDS) for process in (one, two)]
    assert [one.returncode, two.returncode] == [0, 0], outputs
    assert runs(folder, "slow") == 4
    store = Store(folder.parent / "store")
    assert len(list(store.records())) == 4
    events = [json.loads(line) for line in store.events_file.read_text().splitlines()]
    assert len({event["run"] for event in events}) == 2
    assert sum(event["event"] == "waiting" for event in events) >= 1
    assert sum(event["event"] == "found" for event in events) >= 1  # by the one that has waited
    assert not list((store.root / "drafts").iterdir())

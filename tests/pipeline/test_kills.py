"""Runs that are killed, interrupted, or two at once on one store, as processes."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from paretune.pipeline.runs import live_runs
from paretune.pipeline.store import Store
from tests.pipeline.bodies import WAIT_SECONDS, runs, wait_for


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


@contextmanager
def running(folder: Path, *bodies: str, **options: Any) -> Iterator[subprocess.Popen]:
    """A run of a chain of bodies in a process group of its own; `options` are those of Popen."""
    command = [sys.executable, "-m", "tests.pipeline.bodies", str(folder.parent / "store"), str(folder), *bodies]
    caught = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    with subprocess.Popen(command, start_new_session=True, **caught | options) as process:
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


def worker_in(file: Path) -> int:
    """The process that wrote its number there, which is not done as the file is made."""
    wait_for(file)
    deadline = time.monotonic() + WAIT_SECONDS
    while not (text := file.read_text()).endswith("\n"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(text)


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
        os.kill(worker_in(folder / "waits"), signal.SIGKILL)
        assert process.wait(WAIT_SECONDS) == 1
    assert runs(folder, "ok") == 0
    (folder / "go").touch()
    with running(folder, "waits", "ok") as process:
        assert process.wait(WAIT_SECONDS) == 0
    assert runs(folder, "ok") == 1


def test_a_killed_server_of_workers_costs_nothing(folder):
    """The worker that is at work ends well, and the next one is forked from a new server."""
    with running(folder, "waits", "ok") as process:
        worker = worker_in(folder / "waits")
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


def signal_to(process: subprocess.Popen, number: int, whom: str) -> None:
    """To the run alone, as a person or a container sends it, or to all of its processes, as schedulers and terminals do."""
    (os.kill if whom == "the run" else os.killpg)(process.pid, number)


@pytest.mark.parametrize(("number", "whom"), [(signal.SIGTERM, "all"), (signal.SIGHUP, "the run")])
def test_a_training_leaves_a_checkpoint_when_its_run_is_told_to_end(folder, number, whom):
    with running(folder, "trains", "ok") as process:
        wait_for(folder / "at work")
        signal_to(process, number, whom)
        signal_to(process, number, whom)  # as shell and kernel both tell of a closed terminal
        _, errors = process.communicate(timeout=WAIT_SECONDS)
        wait_until_all_ended(process)
    assert process.returncode == 128 + number
    assert [line.split(": ", 1)[-1] for line in errors.splitlines()[2:]] == [
        "stopping; a training ends its step and leaves a checkpoint",
        "stopped at 7 of 9; `again` goes on from step 7",
    ], errors
    assert not live_runs(Store(folder.parent / "store"))
    with running(folder, "trains", "ok") as process:
        assert process.wait(WAIT_SECONDS) == 0


@pytest.mark.parametrize(
    ("number", "moment"), [(signal.SIGTERM, "in a stage"), (signal.SIGHUP, "while the server of workers starts")]
)
def test_what_keeps_no_checkpoint_ends_at_once(folder, number, moment):
    with running(folder, "waits") as process:
        if moment == "in a stage":
            wait_for(folder / "waits")
        else:
            wait_for_processes(process, 3)
        started = time.monotonic()
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=WAIT_SECONDS)
        wait_until_all_ended(process)
    assert process.returncode == 128 + number
    assert time.monotonic() - started < 10
    assert "Traceback" not in errors
    assert "failed" not in errors


def test_a_run_under_nohup_outlives_its_terminal(folder):
    with running(folder, "waits", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as process:
        wait_for(folder / "waits")
        os.killpg(process.pid, signal.SIGHUP)
        (folder / "go").touch()
        assert process.wait(WAIT_SECONDS) == 0


def test_a_closed_terminal_ends_the_run_and_a_word_to_it_is_no_error(folder):
    terminal, inside = os.openpty()
    control = {"preexec_fn": lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)}
    with running(folder, "trains", stdin=inside, stdout=inside, stderr=inside, **control) as process:
        os.close(inside)
        wait_for(folder / "at work")
        os.close(terminal)
        assert process.wait(WAIT_SECONDS) == 128 + signal.SIGHUP
        wait_until_all_ended(process)
    assert list((folder.parent / "store" / "drafts").glob("*.resume/checkpoint-000000007"))


def test_a_checkpoint_is_left_when_it_is_asked_for_and_the_run_goes_on(folder):
    with running(folder, "saves", "ok") as process:
        wait_for(folder / "at work")
        signal_to(process, signal.SIGUSR1, "all")
        while not (saved := list((folder.parent / "store" / "drafts").glob("*.resume/checkpoint-000000007"))):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.5)  # the run looks at its workers five times a second
        (folder / "go").touch()
        _, errors = process.communicate(timeout=WAIT_SECONDS)
    assert saved
    assert process.returncode == 0
    assert "checkpoint at step 7" in errors
    assert runs(folder, "saves") == 1


def test_asking_for_a_checkpoint_disturbs_no_other_stage(folder):
    with running(folder, "waits", "ok") as process:
        wait_for(folder / "waits")
        os.killpg(process.pid, signal.SIGUSR1)
        time.sleep(0.3)
        (folder / "go").touch()
        _, errors = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 0, errors
    assert (runs(folder, "waits"), runs(folder, "ok")) == (1, 1)
    assert "SIGUSR1: " in errors
    assert "checkpoint at" not in errors


def test_a_run_says_who_else_is_at_it(folder):
    store = Store(folder.parent / "store")
    with running(folder, "waits") as one:
        wait_for(folder / "waits")
        (live,) = live_runs(store)
        assert live.pid == one.pid
        assert [name for name, _ in live.at_work] == list(live.stages)
        with running(folder, "waits") as two:
            while not any(b'"waiting"' in line for line in store.events_file.open("rb")):
                assert two.poll() is None
                time.sleep(0.01)
            (folder / "go").touch()
            _, errors = two.communicate(timeout=WAIT_SECONDS)
        assert one.wait(WAIT_SECONDS) == 0
    assert f"another run of this study is on: process {one.pid}, since " in errors
    assert f"waiting for process {one.pid}, at it since " in errors
    assert "done by another run" in errors
    assert live_runs(store) == []


def test_a_killed_run_is_not_on(folder):
    store = Store(folder.parent / "store")
    with running(folder, "waits") as process:
        wait_for(folder / "waits")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert list((store.root / "runs").iterdir())
    assert live_runs(store) == []
    (folder / "go").touch()
    with running(folder, "waits") as process:
        assert process.wait(WAIT_SECONDS) == 0
    assert not list((store.root / "runs").iterdir())


def test_a_store_that_is_removed_ends_the_run_with_a_word(folder):
    with running(folder, "waits") as process:
        wait_for(folder / "waits")
        shutil.rmtree(folder.parent / "store")
        _, errors = process.communicate(timeout=WAIT_SECONDS)
        wait_until_all_ended(process)
    assert re.search(r"StoreError: .*/store: the store is gone, removed while the study ran", errors), errors
    assert not (folder.parent / "store").exists()


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

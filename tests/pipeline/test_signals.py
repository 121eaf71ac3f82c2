"""Signals to a command, at each moment of it."""

import os
import signal
import threading
from pathlib import Path

import pytest

from paretune.cli import main
from paretune.pipeline import results
from paretune.pipeline.signals import ENDING, Terminated, ended_by_signals, held_back, noted
from tests.pipeline.planned import write_planned


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("command", "moment", "number"),
    [
        ("plan", "load_study", signal.SIGTERM),
        ("run", "resolve_lock", signal.SIGHUP),
        ("run", "check_study", signal.SIGTERM),
        ("report", "make_plan", signal.SIGHUP),
    ],
)
def test_a_command_that_is_told_to_end_says_so_in_a_line(tmp_path, monkeypatch, capsys, command, moment, number):
    file = write_planned(tmp_path)
    monkeypatch.setattr(results, moment, lambda *_: send(number))
    before = {path.name for path in tmp_path.iterdir()}
    assert main([command, str(file)]) == 128 + number
    name = signal.Signals(number).name
    assert capsys.readouterr().err == f"ended by {name}; what is finished is kept, run again to go on\n"
    assert {path.name for path in tmp_path.iterdir()} == before
    assert signal.getsignal(number) == signal.SIG_DFL


def test_a_checkpoint_that_is_asked_for_while_nothing_trains_is_passed_over(tmp_path, monkeypatch, capsys):
    make_plan = results.make_plan
    monkeypatch.setattr(results, "make_plan", lambda *arguments: (send(signal.SIGUSR1), make_plan(*arguments))[1])
    assert main(["plan", str(write_planned(tmp_path))]) == 0
    assert [line for line in capsys.readouterr().err.splitlines() if not line.startswith("timing ")] == []


def test_the_lock_is_whole_or_not_there(tmp_path, monkeypatch):
    file = write_planned(tmp_path)
    replace = Path.replace
    for when in ("before", "after"):

        def end(draft: Path, target: Path, when: str = when) -> None:
            if when == "after":
                replace(draft, target)
            send(signal.SIGTERM)

        monkeypatch.setattr(Path, "replace", end)
        assert main(["run", str(file)]) == 143
        assert (tmp_path / "study.lock").exists() == (when == "after")
        assert not list(tmp_path.glob(".study.lock*"))


@pytest.mark.parametrize("number", ENDING)
def test_one_of_two_signals_at_once_is_enough(number):
    def cleans_up() -> None:
        try:
            send(number)
        finally:
            send(number)

    with ended_by_signals(), pytest.raises(Terminated) as ended:
        cleans_up()
    assert ended.value.code == 128 + number


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_by_signals():
            send(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_a_thread_nothing_is_handled():
    def work() -> None:
        with ended_by_signals(), noted(signal.SIGUSR1) as asked:
            told.append(asked())

    told: list[bool] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert told == [False]


def test_what_was_noted_is_told_once():
    with noted(signal.SIGUSR1) as asked:
        assert not asked()
        send(signal.SIGUSR1)
        assert asked()
        assert not asked()


def test_a_signal_waits_for_the_end_of_a_moment_that_must_be_whole():
    done = []

    def moment() -> None:
        with held_back():
            send(signal.SIGTERM)
            done.append("whole")

    with ended_by_signals(), pytest.raises(Terminated):
        moment()
    assert done == ["whole"]

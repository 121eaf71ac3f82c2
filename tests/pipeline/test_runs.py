"""Runs that are on, and what the report and `clean` make of them; locks of file systems that have none."""

import errno
import fcntl
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from paretune.analysis.conclusions import Incomplete, Running
from paretune.analysis.facts import find
from paretune.cli import main
from paretune.errors import SpecError, StoreError
from paretune.pipeline import clean, runs
from paretune.pipeline.events import EventLog
from paretune.pipeline.resources import Resource
from paretune.pipeline.runner import run_plan
from paretune.pipeline.runs import announced, clock, holder, known_studies, live_runs
from paretune.pipeline.stage import RunOptions, Stage
from paretune.pipeline.store import Store
from paretune.report.words import say
from tests.analysis.synthetic import Shape, make_results
from tests.pipeline.bodies import make_plan, make_stage

DAY = 86_400


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    store.prepare()
    return store


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.mark.parametrize("locks", [True, False])
def test_a_run_is_on_for_as_long_as_it_lives(store, monkeypatch, locks):
    if not locks:
        monkeypatch.setattr(fcntl, "flock", no_locks)
    log = EventLog(store.events_file, "one")
    with announced(store, "one", None, ["a-1", "b-2", "c-3"]):
        log.write("started", stage="a-1")
        log.write("finished", stage="a-1")
        log.write("started", stage="b-2")
        log.write("failed", stage="b-2")
        log.write("started", stage="c-3")
        (run,) = live_runs(store)
        assert (run.pid, [name for name, _ in run.at_work], run.failed) == (os.getpid(), ["c-3"], ("b-2",))
        assert run.name == f"process {os.getpid()}, since {clock(run.since)}"
        assert holder(store, "c-3")["pid"] == os.getpid()
        assert holder(store, "a-1") == {}
        assert replace(run, host="other").name == f"process {os.getpid()} on other, since {clock(run.since)}"
    assert live_runs(store) == []


def test_one_that_was_killed_is_not_on_even_where_there_are_no_locks(store, monkeypatch):
    with announced(store, "one", None, ["a-1"]):
        (file,) = (store.root / "runs").glob("*.json")
        content = json.loads(file.read_text())
    nobody = 2**22 - 3
    (store.root / "runs" / "two.json").write_text(json.dumps(content | {"run": "two", "pid": nobody}))
    (store.root / "runs" / "odd.json").write_text("{")
    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert live_runs(store) == []


def test_a_disk_without_room_for_the_announcement_is_told(store, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(runs.json, "dump", full)
    with pytest.raises(StoreError, match=r"No space left on device.*--store"), announced(store, "one", None, []):
        pass
    assert not list((store.root / "runs").iterdir())


def test_a_report_tells_what_is_to_come_from_what_failed(tmp_path):
    results = make_results(tmp_path, Shape(documents=8, epochs=1))
    *others, last = results.cells
    cells = (*others, replace(last, missing=("evaluate.qa-1",), running=("evaluate.perplexity-2", "evaluate.generate-3")))
    facts = find(replace(results, cells=cells)).facts
    incomplete, running = facts.incomplete
    assert (incomplete, running) == (Incomplete((last.variant,), 1), Running((last.variant,), 2))
    assert "1 stage failed or did not run" in say(incomplete)
    assert "2 stages are running or still to come" in say(running)
    told = " ".join(say(fact) for fact in facts.notes)
    assert "`evaluate.qa-1` failed or did not run" in told
    assert "`evaluate.perplexity-2` and `evaluate.generate-3` are at work in a run that is on, or waiting there" in told


def test_a_store_shows_what_each_study_holds_and_what_is_old_goes(store, tmp_path, capsys):
    shared, mine, other = (make_stage("ok", tmp_path, n=number) for number in range(3))
    for study, stages in {"one.yaml": (shared, mine), "two.yaml": (shared, other)}.items():
        run_plan(make_plan(*stages), store, RunOptions(), lambda _: None, tmp_path / study)
    size = {stage: clean.size_of(store.root / stage.name) for stage in (shared, mine, other)}
    held = clean.sizes(store)
    assert {Path(file).name: num_bytes for file, _, num_bytes in held.studies} == {
        "one.yaml": size[mine],
        "two.yaml": size[other],
    }
    assert (held.shared, held.others) == (size[shared], 0)
    long_ago = time.time() - 31 * DAY
    for stage in (shared, mine, other):
        os.utime(store.root / stage.name, (long_ago, long_ago))
    run_plan(make_plan(shared, mine), store, RunOptions(), lambda _: None, tmp_path / "one.yaml")  # which uses it
    command = ["clean", "--store", str(store.root), "--older-than"]
    assert main([*command, "32d", "--yes"]) == 0
    assert "nothing to remove" in capsys.readouterr().out
    assert main([*command, "30d", "--yes"]) == 0
    shown = capsys.readouterr().out
    assert "two.yaml, run today" in shown
    assert f"{other.name}, used 31 days ago" in shown
    assert [stage for stage in (shared, mine, other) if store.find(stage)] == [shared, mine]
    assert len(known_studies(store)) == 2


def test_nothing_is_removed_while_a_run_is_on_nor_from_what_is_no_store_or_a_newer_one(store, tmp_path, capsys):
    run_plan(make_plan(make_stage("ok", tmp_path)), store, RunOptions(), lambda _: None)
    command = ["clean", "--store", str(store.root), "--older-than", "0d", "--yes"]
    with announced(store, "one", None, []):
        assert main(command) == 2
    assert f"a run is on (process {os.getpid()}, since " in capsys.readouterr().err
    (store.root / "store.json").write_text('{"schema": 99}')
    assert main(command) == 2
    assert "a store of a newer Paretune; update" in capsys.readouterr().err
    (store.root / "store.json").unlink()
    assert main(command) == 2
    assert "no store; name one with --store" in capsys.readouterr().err
    assert len(list(store.root.glob("ok-*/record.json"))) == 1


@pytest.mark.parametrize("text", ["30", "d", "-1d", "30 days", "1.5d", ""])
def test_an_age_that_is_none_is_refused(text):
    with pytest.raises(SpecError, match=r"--older-than: `.*` is no age; write hours, days or weeks, like `12h`, `30d` or `2w`"):
        clean.parse_age(text)


def test_a_clock_that_goes_back_changes_nothing(store, tmp_path, monkeypatch):
    one, two = make_stage("ok", tmp_path), make_stage("ok", tmp_path, n=2)
    run_plan(make_plan(one), store, RunOptions(), lambda _: None, tmp_path / "study.yaml")
    now = time.time()
    calls = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: now - 400 * DAY - next(calls))  # of this process, for the runner and its events
    outcome = run_plan(make_plan(one, two), store, RunOptions(), lambda _: None, tmp_path / "study.yaml")
    assert (outcome.reused, outcome.done) == ([one], [two])
    assert clean.unused(store, [], 30 * DAY) == []  # from the future, which is not old


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_share_without_locks_is_worked_on_under_a_file_of_ones_own(store, monkeypatch, error):
    def refuse(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    stage = Stage("fake", {"n": 1}, "module:body", resources={"folder": Resource()})
    monkeypatch.setattr(fcntl, "flock", refuse)
    with store.lock(stage, on_wait=lambda: pytest.fail("held by nobody")):
        held = next(file.read_text() for file in (store.root / "locks").iterdir() if file.stat().st_size)
        assert held.split()[0] == str(os.getpid())
    with store.lock(stage, on_wait=lambda: pytest.fail("held by nobody")):
        pass


def test_names_that_are_no_text_are_kept(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path / "Prüfung mit Leerzeichen ") + b"\xff"))
    folder.mkdir()
    store = Store(folder / "store")
    stage = make_stage("ok", folder)
    events: list = []
    assert run_plan(make_plan(stage), store, RunOptions(), events.append, folder / "study.yaml").exit_code == 0
    assert store.find(stage) is not None
    assert [Path(study.file) for study in known_studies(store)] == [folder / "study.yaml"]

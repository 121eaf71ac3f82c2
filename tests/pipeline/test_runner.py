"""Running a plan: what fails blocks what needs it and nothing else, is told in one line, and is never kept."""

import re
import signal
import threading
from pathlib import Path

import pytest

from paretune.pipeline.resources import Resource
from paretune.pipeline.runner import Outcome, run_plan
from paretune.pipeline.stage import RunOptions, Stage
from paretune.pipeline.store import Store
from tests.pipeline.bodies import make_plan, make_stage, runs, wait_for


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def run(store: Store, *stages: Stage, events: list | None = None, **options) -> Outcome:
    return run_plan(make_plan(*stages), store, RunOptions(**options), (events if events is not None else []).append)


def test_stages_run_once_and_are_reused(store, folder):
    parent = make_stage("ok", folder)
    child = make_stage("ok", folder, {"data": parent}, n=2)
    events: list = []
    first = run(store, child, parent, child, events=events)
    assert (first.exit_code, first.reused, first.done) == (0, [], [parent, child])
    assert store.find(child).metrics == {"answer": 42, "parents": ["data"]}
    assert store.find(child).inputs == {"data": parent.key}
    assert [event["event"] for event in events] == ["run", *["started", "progress", "finished"] * 2]
    second = run(Store(store.root), parent, child)
    assert (second.reused, second.done) == ([parent, child], [])
    assert runs(folder, "ok") == 2
    assert not list((store.root / "drafts").iterdir())


def test_a_slower_way_is_told_once_and_recorded_with_its_reason(store, folder):
    stage, events = make_stage("detour", folder), list[dict]()
    run(store, stage, events=events)
    (told,) = (event for event in events if event["event"] == "slow")
    assert (told["stage"], told["message"]) == (stage.name, "reads one text at a time: no mask is known")
    assert store.find(stage).metrics == {"answer": 42, "slow_ways": [told["message"]]}


def test_one_more_stage_runs_alone(store, folder):
    parent = make_stage("ok", folder)
    run(store, parent)
    outcome = run(store, parent, make_stage("ok", folder, {"data": parent}, n=2))
    assert (len(outcome.reused), len(outcome.done), runs(folder, "ok")) == (1, 1, 2)


FAILURES = {
    "user_error": (2, r"notes\.jsonl: record 3: no field `title`"),
    "stage_error": (1, r"step 7: the loss is nan; lower the learning rate"),
    "bug": (1, r"KeyError: 'two\\nlines'"),
    "no_memory": (1, r"out of memory; .*--accumulate"),
    "no_torch_memory": (1, r"out of memory; .*--accumulate"),
    "vanish": (1, r"ended without a word \(exit code 3\)"),
    "killed": (1, r"was killed, most likely for using too much memory"),
    "not_a_number": (1, r"ValueError: Out of range float values"),
    "full_disk": (1, r"No space left on device; free some"),
    "full_disk_of_safetensors": (1, r"No space left on device; free some"),
    "full_disk_at_the_record": (1, r"No space left on device; free some"),
}


@pytest.mark.parametrize("body", FAILURES)
def test_a_failure_is_one_line_and_blocks_only_what_needs_it(store, folder, body):
    exit_code, message = FAILURES[body]
    first, failing, other = make_stage("ok", folder), make_stage(body, folder), make_stage("ok", folder, n=3)
    child = make_stage("ok", folder, {"model": failing}, n=4)
    grandchild = make_stage("ok", folder, {"model": child}, n=5)
    outcome = run(store, first, failing, child, grandchild, other)
    assert outcome.done == [first, other]
    assert outcome.blocked == {child: failing, grandchild: failing}
    assert outcome.exit_code == exit_code
    told = outcome.failed[failing].message
    assert re.search(message, told), told
    assert "\n" not in told
    assert "Traceback" not in told
    assert store.find(failing) is None
    assert sorted(path.name for path in store.root.glob("*-*")) == sorted([first.name, other.name])


def test_a_gate_that_fails_blocks_as_a_parent_does(store, folder):
    gate = make_stage("user_error", folder)
    gated = Stage("gated", {}, "tests.pipeline.bodies:ok", after=(gate,), resources={"folder": Resource(path=folder)})
    assert run(store, gate, gated).blocked == {gated: gate}


def test_a_failure_is_not_kept(store, folder):
    failing = make_stage("stage_error", folder)
    for attempt in (1, 2):
        assert run(store, failing).exit_code == 1
        assert runs(folder, "stage_error") == attempt


def test_the_second_attempt_sees_what_to_go_on_from_and_nothing_else(store, folder):
    stage = make_stage("fails_once", folder)
    assert run(store, stage).exit_code == 1
    assert run(store, stage).exit_code == 0
    assert store.find(stage).metrics == {"stale": False, "resumed": "step 5"}
    assert set(store.find(stage).files) == {"whole"}
    assert not list((store.root / "drafts").iterdir())


def test_leftovers_of_a_finished_stage_go(store, folder):
    stage = make_stage("ok", folder)
    run(store, stage)
    leftover = store.root / "drafts" / f"ok-{stage.key}.resume"
    leftover.mkdir()
    run(store, stage)
    assert not leftover.exists()


def test_an_interrupt_reaches_no_worker(store, folder):
    stage = make_stage("interrupts", folder)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    run(store, stage)
    assert store.find(stage).metrics == {"blocked": True}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_an_interrupted_run_tells_where_the_next_one_goes_on(store, folder):
    stage = make_stage("trains", folder)
    events: list = []

    def interrupt(event):
        events.append(event)
        if event["event"] == "started":
            wait_for(folder / "at work")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan(make_plan(stage), store, RunOptions(), interrupt)
    assert [(event["event"], event.get("step")) for event in events if event["event"] != "progress"][1:] == [
        ("started", None),
        ("stopping", None),
        ("stopped", 7),
    ]
    again: list = []
    assert run(store, stage, events=again).exit_code == 0
    assert next(event["step"] for event in again if event["event"] == "started") == 7


def test_two_stages_side_by_side_share_the_threads(store, folder):
    one, two = make_stage("thread_count", folder), make_stage("thread_count", folder, n=2)
    run(store, one)
    run(store, one, two, workers=2)
    alone, shared = (store.find(stage).metrics["threads"] for stage in (one, two))
    assert shared == max(1, alone // 2)


def test_what_measures_time_has_the_machine_to_itself_where_several_work(store, folder):
    timed, other = make_stage("ok", folder, machine={"cores": 2}), make_stage("waits", folder)
    (folder / "go").touch()
    events: list = []
    run(store, timed, other, workers=2, events=events)
    told = [(event["event"], event["stage"]) for event in events if event["event"] in ("started", "finished")]
    assert told == [(what, stage.name) for stage in (other, timed) for what in ("started", "finished")]
    alone: list = []
    run(Store(store.root / "one"), timed, other, events=alone)
    assert next(event["stage"] for event in alone if event["event"] == "started") == timed.name, "in the order of the plan"


def test_two_workers_work_at_once(store, folder):
    waiting, other = make_stage("waits", folder), make_stage("ok", folder)
    after = make_stage("ok", folder, {"before": other}, n=2)

    def let_go() -> None:
        wait_for(store.root / after.name)
        (folder / "go").touch()

    thread = threading.Thread(target=let_go)
    thread.start()
    outcome = run(store, waiting, other, after, workers=2)
    thread.join()
    assert outcome.done == [other, after, waiting]

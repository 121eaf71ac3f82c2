"""What a person reads while a study runs, where there is no terminal."""

import io

import pytest
from rich.console import Console

from paretune import console
from paretune.console import Display

STARTED = {"event": "started", "stage": "train.lora-1", "uses": ["small/notes/lora"], "step": None}
PROGRESS = {"event": "progress", "stage": "train.lora-1", "done": 50, "total": 106, "loss": 2.5}


def lines(*events: dict) -> list[str]:
    written = io.StringIO()
    with Display(Console(file=written, width=200), "paretune run study.yaml") as display:
        display.show({"event": "run", "stages": 3, "reused": 1})
        for event in events:
            display.show(event)
    return written.getvalue().splitlines()[1:]


def test_what_was_stopped_is_told_with_the_command_that_goes_on() -> None:
    stopped = {"event": "stopped", "stage": "train.lora-1", "step": 44}
    assert lines(STARTED, PROGRESS, stopped)[-1] == (
        "train.lora-1: stopped at 50 of 106; `paretune run study.yaml` goes on from step 44"
    )
    assert lines(STARTED, stopped | {"step": None})[-1] == (
        "train.lora-1: stopped; `paretune run study.yaml` begins this stage again"
    )


def test_what_is_left_follows_from_the_steps_of_this_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 10_000, 30))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(now)))
    told = lines(STARTED | {"step": 40}, PROGRESS)
    assert told[0] == "train.lora-1: goes on from step 40 (small/notes/lora)"
    seconds = int(told[1].split("about ")[1].split()[0])
    assert seconds % 56 == 0  # 10 steps of this run, 56 to come
    assert seconds >= 56 * 30 / 10


def test_what_another_run_did_is_not_told_as_done_here() -> None:
    stage = {"stage": "train.lora-1"}
    told = lines(STARTED, {"event": "waiting"} | stage, {"event": "found"} | stage, {"event": "finished"} | stage)
    assert told[1:] == ["train.lora-1: waiting for another run that is at it", "train.lora-1: done by another run"]
    assert lines(STARTED, {"event": "finished"} | stage)[-1].startswith("train.lora-1: done in ")


def test_a_slower_way_is_told_with_its_reason() -> None:
    slow = {"event": "slow", "stage": "train.lora-1", "message": "reads one text at a time: no mask is known"}
    assert lines(STARTED, slow)[-1] == "train.lora-1: takes a slower way: reads one text at a time: no mask is known"

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


MOST = {"loss": 10.98765, "tokens_per_second": 123456.7, "peak_memory_bytes": 12_345_678_901}


def told_at(monkeypatch: pytest.MonkeyPatch, *timed: tuple[float, dict]) -> list[str]:
    """The lines of a run whose events came at some seconds, each looked at right after it."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(console, "_LOOKS_EVERY", 1e9)
    written = io.StringIO()
    with Display(Console(file=written, width=200), "paretune run study.yaml") as display:
        display.show({"event": "run", "stages": 3, "reused": 1})
        for seconds, event in timed:
            now[0] = seconds
            display.show(event)
            display.tell()
    return written.getvalue().splitlines()[1:]


def progress(done: int, total: int = 100, **fields: object) -> dict:
    return {"event": "progress", "stage": "train.lora-1", "done": done, "total": total, **fields}


def test_what_is_left_follows_from_the_steps_of_this_run(monkeypatch: pytest.MonkeyPatch) -> None:
    told = told_at(
        monkeypatch, (0, STARTED | {"step": 40}), *((20 + 2 * n, progress(40 + n, 100, loss=2.5)) for n in range(11))
    )
    assert told == [
        "train.lora-1: goes on from step 40 (small/notes/lora)",
        "train.lora-1: 40 of 100 loss 2.5",
        "train.lora-1: 48 of 100 loss 2.5, about 104 s left",
    ]


def test_a_first_step_that_takes_long_gives_a_range_and_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of ten steps takes 20 s, the second one: 84 s by the mean of both, 8 by the last."""
    told = told_at(monkeypatch, (0, STARTED), (30, progress(0, 10)), (50, progress(1, 10)), (51, progress(2, 10)))
    assert told[1:] == ["train.lora-1: 0 of 10", "train.lora-1: 1 of 10"]
    told = told_at(monkeypatch, (0, STARTED), (10, progress(0, 10)), (30, progress(1, 10)), (31, progress(2, 10)))
    assert told[1:] == ["train.lora-1: 0 of 10", "train.lora-1: 1 of 10"]
    told = told_at(monkeypatch, (0, STARTED), (1, progress(0, 10)), (4, progress(1, 10)), (5, progress(2, 10)))
    assert told[1:] == ["train.lora-1: 2 of 10, 8 to 16 s left"]


def test_a_training_tells_its_speed_and_memory_in_a_hundred_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"loss": 2.98765, "tokens_per_second": 5210.4, "peak_memory_bytes": 1_234_567_890}
    told = told_at(monkeypatch, (0, STARTED), *((2.0 * n, progress(n, 25, **numbers)) for n in range(7)))
    assert told[-1] == "train.lora-1: 3 of 25 loss 2.988, 5,210 tokens/s, peak 1.2 GB, about 44 s left"
    stage = {"stage": "train.last_blocks-8a09afaf"}
    paced = [(0.0, 0), (100.0, 1), (2000.0, 1000), (2900.0, 1300)]
    told = told_at(monkeypatch, (0, STARTED | stage), *((at, progress(done, 10_000, **stage, **MOST)) for at, done in paced))
    assert told[-1].endswith("loss 10.99, 123k tokens/s, peak 12.3 GB, 5.4 to 7.2 h left")
    assert max(map(len, told)) <= 100


@pytest.mark.parametrize(("width", "has_bars"), [(80, False), (100, False), (140, True)])
def test_a_terminal_shows_every_number_in_any_width(monkeypatch: pytest.MonkeyPatch, width: int, *, has_bars: bool) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    written = io.StringIO()
    with Display(Console(file=written, width=width, force_terminal=True), "paretune run study.yaml") as display:
        display.show({"event": "run", "stages": 3, "reused": 1})
        display.show(STARTED)
        for seconds in range(10):
            now[0] = seconds
            display.show(progress(seconds * 1000, 100_000, **MOST))
        shown = io.StringIO()
        Console(file=shown, width=width).print(display.progress.get_renderable())
    lines = shown.getvalue().splitlines()
    words = " ".join(" ".join(lines).split())
    assert "train.lora-1" in words
    assert "9000/100000 about 91 s left loss 10.99, 123k" in words
    assert "tokens/s, peak 12.3 GB" in words
    assert any("\N{BOX DRAWINGS HEAVY HORIZONTAL}" in line for line in lines) is has_bars
    assert max(map(len, lines)) <= width


def test_a_stage_that_says_nothing_is_told_of_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    told = told_at(monkeypatch, (0, STARTED), (4, {"event": "unknown"}), (6, {"event": "unknown"}), (10, {"event": "unknown"}))
    assert told[1:] == ["train.lora-1: at work for 6 s"]


def test_each_part_of_a_stage_has_a_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    loading = progress(0, 1, part="loading the model")
    answers = [(30.0 + n, progress(10 * n, 100, part="answers", answers=n)) for n in (0, 1, 2, 3, 4, 5)]
    told = told_at(monkeypatch, (0, STARTED), (6, loading), *answers)
    assert told[1:3] == ["train.lora-1: loading the model", "train.lora-1: answers 0 of 100 answers 0"]
    labels = told_at(monkeypatch, (0, STARTED), *answers, (50, progress(1, 8, part="labels")))
    assert labels[-1] == "train.lora-1: labels 1 of 8"


def test_what_another_run_did_is_not_told_as_done_here() -> None:
    stage = {"stage": "train.lora-1"}
    told = lines(STARTED, {"event": "waiting"} | stage, {"event": "found"} | stage, {"event": "finished"} | stage)
    assert told[1:] == ["train.lora-1: waiting for another run that is at it", "train.lora-1: done by another run"]
    assert lines(STARTED, {"event": "finished"} | stage)[-1].startswith("train.lora-1: done in ")


def test_a_slower_way_is_told_with_its_reason() -> None:
    slow = {"event": "slow", "stage": "train.lora-1", "message": "reads one text at a time: no mask is known"}
    assert lines(STARTED, slow)[-1] == "train.lora-1: takes a slower way: reads one text at a time: no mask is known"

"""The event log: lines of several writers, read by one."""

import json
import multiprocessing
from pathlib import Path

import pytest

from paretune.pipeline.events import EventLog, EventTail

LINES = 500


def test_the_tail_reads_what_comes_after_it_of_its_own_run(tmp_path):
    mine, other = EventLog(tmp_path / "events.jsonl", "mine"), EventLog(tmp_path / "events.jsonl", "other")
    assert list(EventTail(mine).read()) == []
    mine.write("progress")
    tail = EventTail(mine)
    mine.write("started", stage="data-1")  # by the runner, which knows
    mine.write("progress", stage="data-1")
    other.write("progress", stage="data-1")
    mine.write("found", stage="data-1")
    assert [event["event"] for event in tail.read()] == ["progress", "found"]
    assert list(tail.read()) == []


def _write_many(file: Path, run: str) -> None:
    log = EventLog(file, run)
    for number in range(LINES):
        log.write("progress", number=number, padding="x" * (number % 200))


def test_lines_of_two_writers_do_not_mix(tmp_path):
    file = tmp_path / "events.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(file, run)) for run in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    events = [json.loads(line) for line in file.read_text().splitlines()]
    for run in ("a", "b"):
        assert [event["number"] for event in events if event["run"] == run] == list(range(LINES))


def test_a_line_that_is_cut_off_is_passed_over_and_one_that_is_not_finished_waits(tmp_path):
    log = EventLog(tmp_path / "events.jsonl", "mine")
    tail = EventTail(log)
    with log.file.open("a") as file:
        file.write('{"run": "mine", "eve\n"text"\n')
        file.flush()
        log.write("found")
        file.write('{"run": "mine", ')
        file.flush()
        assert [event["event"] for event in tail.read()] == ["found"]
        file.write('"event": "waiting"}\n')
    assert [event["event"] for event in tail.read()] == ["waiting"]


def test_a_full_disk_loses_events_only(tmp_path):
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        (tmp_path / "events.jsonl").write_bytes(b"full")
    EventLog(tmp_path / "events.jsonl", "mine").write("started")

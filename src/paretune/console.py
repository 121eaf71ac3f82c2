"""What a person sees while a study runs: bars in a terminal, plain lines elsewhere. Reads events, knows nothing else."""

import time
from collections.abc import Mapping
from threading import Event, Lock, Thread
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from paretune.pipeline.forecast import duration_words
from paretune.pipeline.progress import Part, note_progress
from paretune.pipeline.runs import clock
from paretune.pipeline.signals import leave_closed_terminal

_FIRST_LINE, _LINE_EVERY = 5.0, 15.0
"""Seconds before the first line about a stage where there is no terminal, and between the next ones."""
_LOOKS_EVERY = 1.0
_BAR, _WITH_BARS = 12, 110
"""Columns of a bar, and those of a terminal that has room for it beside the numbers."""


class Display:
    """Shows the events of a run; use as a context manager."""

    def __init__(self, console: Console, command: str) -> None:
        """`command` is what goes on with a run that was stopped."""
        self.console = console
        self.command = command
        self.first_step: dict[str, int] = {}
        """Where a stage stood when this run went on with it."""
        self.parts: dict[str, dict[str, Part]] = {}
        """What is known of the progress of a stage, by part; the one that it is at comes last."""
        self.of_others: set[str] = set()
        """Stages that another run has finished."""
        self.tasks: dict[str, TaskID] = {}
        self.started: dict[str, float] = {}
        self.last_line: dict[str, float] = {}
        self.lock, self.over = Lock(), Event()
        bars = [BarColumn(_BAR), TimeElapsedColumn()] if console.width >= _WITH_BARS else []
        self.progress = Progress(
            TextColumn("{task.description}"),
            *bars,
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[numbers]}", table_column=Column()),  # which goes on below where there is no room
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> "Display":
        self.progress.start()
        if not self.console.is_terminal:
            Thread(target=self._look, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.progress.stop()

    def show(self, event: Mapping[str, Any]) -> None:
        """Show one event; unknown ones are passed over."""
        handler = getattr(self, f"_show_{event['event']}", None)
        if handler:
            try:
                with self.lock:
                    handler(event)
            except OSError:
                leave_closed_terminal()

    def tell(self) -> None:
        """A line about each stage that has been silent for so long, whether it had anything to say or not."""
        now = time.monotonic()
        with self.lock:
            for stage, started in self.started.items():
                last = self.last_line[stage]
                if stage in self.tasks and now - last >= (_FIRST_LINE if last == started else _LINE_EVERY):
                    self.last_line[stage] = now
                    part = next(reversed(self.parts.get(stage, {}).values()), None)
                    said = filter(None, (part.text, part.left)) if part else [f"at work for {duration_words(now - started)}"]
                    self._line(f"{stage}: {', '.join(said)}")

    def _look(self) -> None:
        while not self.over.wait(_LOOKS_EVERY):
            self.tell()

    def _show_run(self, event: Mapping[str, Any]) -> None:
        for other in event.get("others", ()):
            what = "of this study" if other["study"] == event["study"] else f"on this store ({other['study']})"
            self._line(f"another run {what} is on: {other['name']}; what both need is done once")
        missing = event["stages"] - event["reused"]
        self.console.print(f"{event['stages']} stages: {event['reused']} reused, {missing} to run", highlight=False)
        self.tasks["all"] = self.progress.add_task("all stages", total=missing, left="", numbers="")

    def _show_started(self, event: Mapping[str, Any]) -> None:
        stage = event["stage"]
        self.started[stage] = self.last_line[stage] = time.monotonic()
        self.first_step[stage] = first = event["step"] or 0
        self.tasks[stage] = self.progress.add_task(stage, total=None, completed=first, left="", numbers="")
        uses = f" ({', '.join(event['uses'])})" if event["uses"] else ""
        if first:
            self._line(f"{stage}: goes on from step {first}{uses}")
        elif not self.console.is_terminal:
            self._line(f"{stage}: started{uses}")

    def _show_progress(self, event: Mapping[str, Any]) -> None:
        stage = event["stage"]
        part = note_progress(self.parts.setdefault(stage, {}), event, time.monotonic())
        told = f"{part.name} {part.numbers}".strip()
        self.progress.update(self.tasks[stage], completed=event["done"], total=event["total"], left=part.left, numbers=told)

    def _show_finished(self, event: Mapping[str, Any]) -> None:
        stage = event["stage"]
        self._end(stage)
        seconds = f"in {time.monotonic() - self.started[stage]:.1f} s"
        self._line(f"{stage}: done {'by another run' if stage in self.of_others else seconds}")

    def _show_slow(self, event: Mapping[str, Any]) -> None:
        self._line(f"{event['stage']}: takes a slower way: {event['message']}")

    def _show_waiting(self, event: Mapping[str, Any]) -> None:
        who = f"process {event['pid']}, at it since {clock(event['since'])}" if "pid" in event else "another run that is at it"
        self._line(f"{event['stage']}: waiting for {who}")

    def _show_found(self, event: Mapping[str, Any]) -> None:
        self.of_others.add(event["stage"])

    def _show_saving(self, event: Mapping[str, Any]) -> None:
        self._line("SIGUSR1: a training leaves a checkpoint after its step, and the run goes on")

    def _show_saved(self, event: Mapping[str, Any]) -> None:
        self._line(f"{event['stage']}: checkpoint at step {event['step']}")

    def _show_stopping(self, event: Mapping[str, Any]) -> None:
        self._line("stopping; a training ends its step and leaves a checkpoint")

    def _show_stopped(self, event: Mapping[str, Any]) -> None:
        stage, step = event["stage"], event["step"]
        self._end(stage)
        steps = self.parts.get(stage, {}).get("")
        done, total = (steps.seen[-1][1], steps.total) if steps else (0, 0)
        # The checkpoint may be of a step after the last that was told.
        reached = f" at {max(done, step or 0)} of {total}" if total else ""
        again = f"goes on from step {step}" if step else "begins this stage again"
        self._line(f"{stage}: stopped{reached}; `{self.command}` {again}")

    def _show_failed(self, event: Mapping[str, Any]) -> None:
        if event["stage"] in self.tasks:  # a choice among trials that all diverged fails without having begun
            self._end(event["stage"])
        self._line(f"{event['stage']}: {event['event']}: {event['message']}")

    _show_diverged = _show_failed

    def _show_chosen(self, event: Mapping[str, Any]) -> None:
        self._line(f"{event['what']}: {event['trial']} is best on validation")
        done = next(task.completed for task in self.progress.tasks if task.id == self.tasks["all"])
        self.progress.update(self.tasks["all"], total=done + event["left"])

    def _end(self, stage: str) -> None:
        self.progress.remove_task(self.tasks.pop(stage))
        self.progress.advance(self.tasks["all"])

    def _line(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

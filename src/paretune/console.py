"""What a person sees while a study runs: bars in a terminal, plain lines elsewhere. Reads events, knows nothing else."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_EVERY = 15.0
"""Seconds between lines about one stage where there is no terminal."""
_STANDARD = {"time", "run", "event", "stage", "done", "total"}
"""Fields of an event of progress that are no numbers of the stage's own."""


class Display:
    """Shows the events of a run; use as a context manager."""

    def __init__(self, console: Console, command: str) -> None:
        """`command` is what goes on with a run that was stopped."""
        self.console = console
        self.command = command
        self.first_step: dict[str, int] = {}
        """Where a stage stood when this run went on with it."""
        self.progressed: dict[str, tuple[int, int]] = {}
        """The last progress of a stage: done, and of how many."""
        self.of_others: set[str] = set()
        """Stages that another run has finished."""
        self.tasks: dict[str, TaskID] = {}
        self.started: dict[str, float] = {}
        self.last_line: dict[str, float] = {}
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> "Display":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, event: Mapping[str, Any]) -> None:
        """Show one event; unknown ones are passed over."""
        handler = getattr(self, f"_show_{event['event']}", None)
        if handler:
            handler(event)

    def _show_run(self, event: Mapping[str, Any]) -> None:
        missing = event["stages"] - event["reused"]
        self.console.print(f"{event['stages']} stages: {event['reused']} reused, {missing} to run", highlight=False)
        self.tasks["all"] = self.progress.add_task("all stages", total=missing, numbers="")

    def _show_started(self, event: Mapping[str, Any]) -> None:
        stage = event["stage"]
        self.started[stage] = self.last_line[stage] = time.monotonic()
        self.first_step[stage] = first = event["step"] or 0
        self.tasks[stage] = self.progress.add_task(stage, total=None, completed=first, numbers="")
        uses = f" ({', '.join(event['uses'])})" if event["uses"] else ""
        if first:
            self._line(f"{stage}: goes on from step {first}{uses}")
        elif not self.console.is_terminal:
            self._line(f"{stage}: started{uses}")

    def _show_progress(self, event: Mapping[str, Any]) -> None:
        stage = event["stage"]
        numbers = " ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in event.items()
            if name not in _STANDARD
        )
        self.progressed[stage] = event["done"], event["total"]
        self.progress.update(self.tasks[stage], completed=event["done"], total=event["total"], numbers=numbers)
        if not self.console.is_terminal and time.monotonic() - self.last_line[stage] > _LINE_EVERY:
            self.last_line[stage] = time.monotonic()
            done = event["done"] - self.first_step[stage]
            left = (time.monotonic() - self.started[stage]) * (event["total"] - event["done"]) / max(done, 1)
            self._line(f"{stage}: {event['done']} of {event['total']} {numbers}, about {left:.0f} s left")

    def _show_finished(self, event: Mapping[str, Any]) -> None:
        stage = event["stage"]
        self._end(stage)
        seconds = f"in {time.monotonic() - self.started[stage]:.1f} s"
        self._line(f"{stage}: done {'by another run' if stage in self.of_others else seconds}")

    def _show_slow(self, event: Mapping[str, Any]) -> None:
        self._line(f"{event['stage']}: takes a slower way: {event['message']}")

    def _show_waiting(self, event: Mapping[str, Any]) -> None:
        self._line(f"{event['stage']}: waiting for another run that is at it")

    def _show_found(self, event: Mapping[str, Any]) -> None:
        self.of_others.add(event["stage"])

    def _show_stopping(self, event: Mapping[str, Any]) -> None:
        self._line("stopping; a training ends its step and leaves a checkpoint")

    def _show_stopped(self, event: Mapping[str, Any]) -> None:
        stage, step = event["stage"], event["step"]
        self._end(stage)
        done, total = self.progressed.get(stage, (0, 0))
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

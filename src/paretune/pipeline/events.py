"""Events of a run: lines of JSON that workers and the runner append and that the console and the dashboard read."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class EventLog:
    """Appends to `file`; one `run` is one command."""

    file: Path
    run: str

    def write(self, event: str, **fields: Any) -> None:
        """One line, in one write call, so that two processes do not mix theirs."""
        line = json.dumps({"time": round(time.time(), 3), "run": self.run, "event": event, **fields}) + "\n"
        # Events are for showing. A full disk must not fail a stage by them, nor hide from the runner what became of it.
        with contextlib.suppress(OSError):
            descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)


class EventTail:
    """Reads what is appended after its creation, of one run."""

    def __init__(self, log: EventLog) -> None:
        self.log = log
        self.position = log.file.stat().st_size if log.file.exists() else 0

    def read(self) -> Iterator[dict[str, Any]]:
        """The events since the last call; a line that a full disk cut off is passed over."""
        if not self.log.file.exists():
            return
        with self.log.file.open("rb") as stream:
            stream.seek(self.position)
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self.position += len(line)
                event: Any = None
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                if isinstance(event, dict) and event.get("run") == self.log.run:
                    yield event

"""Events of a run: lines of JSON that workers and the runner append and that the console and the dashboard read.

What the runner itself tells reaches the console without the file, which a full disk, or somebody who removes the store, may
have taken.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_OF_WORKERS = ("progress", "waiting", "found", "slow")


@dataclass(frozen=True)
class EventLog:
    """Appends to `file`; one `run` is one command."""

    file: Path
    run: str

    def write(self, event: str, **fields: Any) -> dict[str, Any]:
        """One line, in one write call, so that two processes do not mix theirs; returns what is written."""
        content = {"time": round(time.time(), 3), "run": self.run, "event": event, **fields}
        line = json.dumps(content) + "\n"
        # Events are for showing. A full disk must not fail a stage by them, nor hide from the runner what became of it.
        with contextlib.suppress(OSError):
            descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
        return content


class EventTail:
    """Reads what the workers of one run append after its creation."""

    def __init__(self, log: EventLog) -> None:
        self.log = log
        self.position = log.file.stat().st_size if log.file.exists() else 0

    def read(self) -> Iterator[dict[str, Any]]:
        """The events since the last call, none where they cannot be read; a line that a full disk cut off is passed over."""
        with contextlib.suppress(OSError), self.log.file.open("rb") as stream:
            stream.seek(self.position)
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self.position += len(line)
                event: Any = None
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                if isinstance(event, dict) and event.get("run") == self.log.run and event.get("event") in _OF_WORKERS:
                    yield event

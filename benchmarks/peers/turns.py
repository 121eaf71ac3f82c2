"""Two programs that work in turns: the driver starts both, and says whose turn it is.

A worker answers each command with one JSON line on what was its standard output; whatever a library prints goes to standard
error. While it is not asked it waits and uses no core, so that a disturbance of the machine hits both sides alike.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

END, PEAK = "end", "peak"
CLOCK = "PARETUNE_BENCH_CLOCK"
"""Environment variable: `cpu` times turns by the processor time that they take, for a machine that is shared."""


class Worker:
    """The driver's end: a process that is asked one thing at a time."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **environment},
            )

    def ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._fail()
        return self.hear()

    def hear(self) -> dict[str, Any]:
        """The next line that the worker says by itself."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self._fail()
        return dict(json.loads(line))

    def peak_bytes(self) -> int:
        """The most memory that the process has held so far."""
        return int(self.ask(PEAK)["peak_bytes"])

    def end(self) -> None:
        self.ask(END)
        self.process.wait()

    def _fail(self) -> None:
        self.process.wait()
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])
        sys.exit(f"a worker ended before its time (exit code {self.process.returncode}):\n{tail}")


class Turns:
    """The worker's end."""

    def __init__(self) -> None:
        self.out: TextIO = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def take(self) -> str:
        """Wait for a command; those that every worker knows are answered here, and `END` ends the process."""
        while (command := sys.stdin.readline().strip() or END) == PEAK:
            self.tell(peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        if command == END:
            self.tell()
            self.out.close()
            os._exit(0)
        return command

    def tell(self, **said: Any) -> None:
        self.out.write(json.dumps(said) + "\n")
        self.out.flush()


def now() -> float:
    """Seconds of the clock that the turns are timed by."""
    return time.process_time() if os.environ.get(CLOCK) == "cpu" else time.perf_counter()

"""How many threads a stage computes on, and how they wait for each other, while others want the cores.

A product on two threads ends when both have done their part. libgomp, with which torch computes on a CPU, lets the first of
them spin for milliseconds, and nothing is faster where each has a core. Beside other work the one that it waits for has none,
and the spinning keeps it from getting one: every small product lasts as long as a slice of the scheduler. So a stage begins
with as many threads as others leave cores for, a training chooses anew at each checkpoint, and in between threads that are
overtaken sleep. Sums are grouped by threads: the record and each checkpoint hold their number, and OMP_NUM_THREADS fixes it.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import psutil

_FIRST_LOOK_SECONDS = 0.1
_FIRST_LOOKS = 3
"""Of which the quietest counts: a process that is just ending is no work."""
_LOOK_SECONDS = 0.25
_DISTURBANCE = 0.25
"""Cores: more than a display or an editor takes."""
_QUIET_LOOKS = 4
"""In a row before threads spin again."""
_PART = 2**16
"""Numbers, of which torch certainly gives a thread some."""


class Threads:
    """Those of torch, where it is imported, within a block: at most `most`, spinning only while others leave each a core."""

    def __init__(self, most: int, *, fixed: bool = False) -> None:
        """Exactly `most` if they are `fixed`."""
        self.most, self.count, self.fixed = most, most, fixed or most == 1
        self._torch: Any = sys.modules.get("torch")
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._sleep_beside_others, daemon=True)
        self._since = 0.0, 0.0

    def __enter__(self) -> Self:
        if self._torch is None:
            return self
        for _ in range(0 if self.fixed else _FIRST_LOOKS):
            self._since = time.perf_counter(), available_seconds()
            time.sleep(_FIRST_LOOK_SECONDS)
            if self.choose() == self.most:
                break
        self.use(self.count)
        if self.most > 1:  # one waits for nobody
            self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._watch.is_alive():
            self._watch.join()

    def use(self, count: int) -> None:
        """Go on with so many, between two products."""
        self.count = count
        if self._torch is not None:
            self._torch.set_num_threads(count)

    def choose(self) -> int:
        """Go on with as many as others have left cores for since the last choice."""
        now = time.perf_counter(), available_seconds()
        if not self.fixed:
            cores = (now[1] - self._since[1]) / (now[0] - self._since[0])
            self.use(max(1, min(self.most, int(cores + _DISTURBANCE))))
        self._since = now
        return self.count

    def _sleep_beside_others(self) -> None:
        while not self._ended_before(wanted=True):
            with sleeping(self._torch, self.most):
                self._ended_before(wanted=False)

    def _ended_before(self, *, wanted: bool) -> bool:
        """Wait until others want the cores of our threads, or have not for some looks in a row; True if the end came first."""
        needed = looks = 1 if wanted else _QUIET_LOOKS
        then, before = time.perf_counter(), available_seconds()
        while looks and not self._ended.wait(_LOOK_SECONDS):
            now, available = time.perf_counter(), available_seconds()
            missing = self.count - (available - before) / (now - then)
            looks = looks - 1 if (self.count > 1 and missing > _DISTURBANCE) == wanted else needed
            then, before = now, available
        return self._ended.is_set()


def available_seconds() -> float:
    """Time of the cores that this process may run on which it has used, or nobody has, since some moment in the past."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = [times for core, times in enumerate(psutil.cpu_times(percpu=True)) if core in allowed]
    idle: float = sum(times.idle + getattr(times, "iowait", 0.0) for times in cores)
    return time.process_time() + idle


@contextmanager
def sleeping(torch: Any, threads: int) -> Iterator[None]:
    """Within the block threads that have to wait spin for a microsecond only.

    How long they do is fixed when libgomp is loaded, but for a process that has more of its threads than there are cores
    (`gomp_throttled_spin_count_var`). So teams of threads are held here that have nothing to do.
    """
    begun, ended = threading.Semaphore(0), threading.Event()

    def hold() -> None:
        torch.ones(threads * _PART).add_(1)
        begun.release()
        ended.wait()

    missing = max(0, (os.cpu_count() or 1) - threads)
    teams = [threading.Thread(target=hold, daemon=True) for _ in range(1 + missing // (threads - 1))]
    for team in teams:
        team.start()
    try:
        for _ in teams:
            begun.acquire()
        yield
    finally:
        ended.set()
        for team in teams:
            team.join()

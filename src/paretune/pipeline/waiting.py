"""How the threads of a stage wait for each other: spinning while the cores are theirs, asleep while others want them.

A product on two threads ends when both have done their part. libgomp, with which torch computes on a CPU, lets the first of
them spin for milliseconds, and nothing is faster where each has a core. Beside other work the one that it waits for has none,
and the spinning keeps it from getting one: every small product lasts as long as a slice of the scheduler. The number of threads
stays as it is: sums are grouped by it, and no number may depend on what else the machine does.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

_LOOK_SECONDS = 0.25
_DISTURBANCE = 0.25
"""Cores: more than a display or an editor takes."""
_QUIET_LOOKS = 4
"""In a row before threads spin again."""
_PART = 2**16
"""Numbers, of which torch certainly gives a thread some."""


@contextmanager
def computing_on(threads: int) -> Iterator[None]:
    """Within the block torch, if it is imported, computes on `threads`, which spin only while others leave a core to each."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    torch.set_num_threads(threads)
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(torch, threads, ended), daemon=True)
    if threads > 1:  # one waits for nobody
        watch.start()
    try:
        yield
    finally:
        ended.set()
        if watch.is_alive():
            watch.join()


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


def _watch(torch: Any, threads: int, ended: threading.Event) -> None:
    while not _ended_before(ended, threads, wanted=True):
        with sleeping(torch, threads):
            _ended_before(ended, threads, wanted=False)


def _ended_before(ended: threading.Event, threads: int, *, wanted: bool) -> bool:
    """Wait until others want the cores of our threads, or have not for some looks in a row; True if the end came first."""
    needed = looks = 1 if wanted else _QUIET_LOOKS
    then, before = time.perf_counter(), available_seconds()
    while looks and not ended.wait(_LOOK_SECONDS):
        now, available = time.perf_counter(), available_seconds()
        missing = threads - (available - before) / (now - then)
        looks = looks - 1 if (missing > _DISTURBANCE) == wanted else needed
        then, before = now, available
    return ended.is_set()

"""How many threads compute, and how they wait for each other."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from paretune.pipeline import threads
from paretune.pipeline.threads import Threads

_ON_TWO_THREADS = """
import json, sys, time
import torch
from paretune.pipeline.threads import sleeping

torch.manual_seed(0)
x = torch.randn(512, 512)

def waited():
    "Processor seconds that a thread spends after its part of 20 products."
    x @ x
    start = time.process_time()
    for _ in range(20):
        x @ x
        time.sleep(0.03)
    return time.process_time() - start

def computed():
    y = x.clone().requires_grad_()
    torch.nn.functional.layer_norm(y @ y, [512]).square().sum().backward()
    return y.grad.double().sum().item(), y.grad.double().square().sum().item()

spinning, numbers = waited(), computed()
with sleeping(torch, 2):
    asleep, same = waited(), computed() == numbers
print(json.dumps({"spinning": spinning, "asleep": asleep, "same": same, "again": waited()}))
"""


def test_threads_sleep_within_the_block_and_compute_the_same() -> None:
    given = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", _ON_TWO_THREADS]
    run = subprocess.run(command, env={**given, "OMP_NUM_THREADS": "2"}, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    assert found["same"]
    if (os.cpu_count() or 1) < 2:  # where libgomp lets nobody spin
        return
    assert found["asleep"] < found["spinning"] / 2
    assert found["asleep"] < found["again"] / 2


class _Asleep:
    """Stands in for `sleeping`, and says when a block begins and ends."""

    def __init__(self) -> None:
        self.begun, self.ended = threading.Event(), threading.Event()

    def __call__(self, *_: object) -> "_Asleep":
        return self

    def __enter__(self) -> None:
        self.begun.set()

    def __exit__(self, *_: object) -> None:
        self.ended.set()


@pytest.fixture
def asleep(monkeypatch: pytest.MonkeyPatch) -> _Asleep:
    stand_in = _Asleep()
    monkeypatch.setattr(threads, "sleeping", stand_in)
    monkeypatch.setattr(threads, "_LOOK_SECONDS", 0.01)
    return stand_in


class _Cores:
    """So many cores are free for this process, by a clock that goes on as it is looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: float) -> None:
        self.free, self._now, self._seconds = free, 0.0, 0.0
        monkeypatch.setattr(threads, "available_seconds", lambda: self._seconds)
        monkeypatch.setattr(threads, "time", SimpleNamespace(perf_counter=self._look, sleep=self.wait))

    def wait(self, seconds: float) -> None:
        self._now, self._seconds = self._now + seconds, self._seconds + self.free * seconds

    def _look(self) -> float:
        self.wait(0.001)
        return self._now


@pytest.fixture(autouse=True)
def same_threads_after() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_threads_sleep_while_others_want_their_cores(asleep: _Asleep, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = _Cores(monkeypatch, 2.0)
    with Threads(2):
        assert torch.get_num_threads() == 2
        assert not asleep.begun.wait(0.1)
        cores.free = 1.5
        assert asleep.begun.wait(10)
        assert not asleep.ended.wait(0.1)
        cores.free = 2.0
        assert asleep.ended.wait(10)
        asleep.begun.clear()
        asleep.ended.clear()
        cores.free = 1.5
        assert asleep.begun.wait(10)
    assert asleep.ended.is_set()


@pytest.mark.parametrize(
    ("free", "count"), [(0.0, 1), (0.7, 1), (1.7, 1), (1.8, 2), (2.0, 2), (2.7, 2), (3.75, 4), (4.0, 4), (9.0, 4)]
)
def test_as_many_threads_as_others_leave_cores_for(monkeypatch: pytest.MonkeyPatch, free: float, count: int) -> None:
    _Cores(monkeypatch, free)
    with Threads(4):
        assert torch.get_num_threads() == count
    with Threads(4, fixed=True):
        assert torch.get_num_threads() == 4


def test_a_choice_is_by_the_load_since_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = _Cores(monkeypatch, 0.5)
    with Threads(2) as chosen:
        assert (chosen.count, torch.get_num_threads()) == (1, 1)
        cores.free = 2.0
        cores.wait(60)
        chosen.choose()
        assert (chosen.count, torch.get_num_threads()) == (2, 2)
        cores.free = 1.0
        cores.wait(60)
        assert chosen.choose() == 1


def test_one_thread_waits_for_nobody(asleep: _Asleep, monkeypatch: pytest.MonkeyPatch) -> None:
    _Cores(monkeypatch, 0.0)
    with Threads(1):
        assert not asleep.begun.wait(0.1)


def test_what_this_process_uses_is_available_to_it() -> None:
    start, before = time.process_time(), threads.available_seconds()
    while time.process_time() - start < 0.3:
        pass
    assert threads.available_seconds() - before > 0.25

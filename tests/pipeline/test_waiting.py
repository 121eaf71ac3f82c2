"""Threads that wait for each other, spinning or asleep."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from paretune.pipeline import waiting

_ON_TWO_THREADS = """
import json, sys, time
import torch
from paretune.pipeline.waiting import sleeping

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
    monkeypatch.setattr(waiting, "sleeping", stand_in)
    monkeypatch.setattr(waiting, "_LOOK_SECONDS", 0.01)
    return stand_in


def test_threads_sleep_while_others_want_their_cores(asleep: _Asleep, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = 2.0
    monkeypatch.setattr(waiting, "available_seconds", lambda: cores * time.perf_counter())
    before = torch.get_num_threads()
    try:
        with waiting.computing_on(2):
            assert torch.get_num_threads() == 2
            assert not asleep.begun.wait(0.1)
            cores = 1.5
            assert asleep.begun.wait(10)
            assert not asleep.ended.wait(0.1)
            cores = 2.0
            assert asleep.ended.wait(10)
            asleep.begun.clear()
            asleep.ended.clear()
            cores = 1.5
            assert asleep.begun.wait(10)
        assert asleep.ended.is_set()
    finally:
        torch.set_num_threads(before)


def test_one_thread_waits_for_nobody(asleep: _Asleep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "available_seconds", lambda: 0.0)
    with waiting.computing_on(1):
        assert not asleep.begun.wait(0.1)


def test_what_this_process_uses_is_available_to_it() -> None:
    start, before = time.process_time(), waiting.available_seconds()
    while time.process_time() - start < 0.3:
        pass
    assert waiting.available_seconds() - before > 0.25

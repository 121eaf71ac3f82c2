"""Signals to a command: those that end it, and the one that asks for checkpoints.

A command ends by SIGTERM (a scheduler, a container that stops) and SIGHUP (a closed terminal) as by Ctrl-C. Whoever sends them
to all processes at once, as schedulers do, does not reach the workers: their run ends them, so that each can leave a
checkpoint first.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
"""The last is what some schedulers send some time before they kill."""
CHECKPOINT = signal.SIGUSR1
"""Leave a checkpoint and go on."""
SAVE, STOP = signal.SIGURG, signal.SIGVTALRM
"""From a run to its workers, and from nobody else: leave a checkpoint and go on, or end. The first does nothing to a process
that does not heed it, the second ends it."""
OF_THE_RUN = {signal.SIGINT, CHECKPOINT, *ENDING}
"""That must not reach the processes which a run starts."""
_AT_ONCE = 2.0
"""Seconds in which a second signal is taken for the first: shell and kernel both tell of a closed terminal."""
_Handler = Callable[[int, FrameType | None], Any] | signal.Handlers


class Terminated(SystemExit):
    """A signal has asked this process to end; its exit code is 128 and the number of the signal, as shells have it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Signals that would end the process at once raise Terminated instead; SIGUSR1, which would too, does nothing.

    What is ignored stays ignored, as under `nohup`, and so does everything in a thread, which cannot handle signals.
    """
    last = -_AT_ONCE

    def end(number: int, _: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before >= _AT_ONCE:
            leave_closed_terminal()
            raise Terminated(number)

    with _handled({CHECKPOINT: signal.SIG_IGN} | dict.fromkeys(ENDING, end)):
        yield


@contextmanager
def noted(number: signal.Signals) -> Iterator[Callable[[], bool]]:
    """Asked, it says whether the signal has come since it was asked last; within the block the signal does nothing else."""
    came: list[int] = []

    def ask() -> bool:
        asked = bool(came)
        came.clear()
        return asked

    before: Mapping[int, _Handler] = {number: lambda number, _: came.append(number)}
    with _handled(before, all_of_them=True):
        yield ask


@contextmanager
def held_back() -> Iterator[None]:
    """What would end this process comes after the block: for moments that must be whole."""
    came: list[int] = []
    # Blocking them would not do: any thread may get a signal, and the main one then hears of it.
    numbers = [number for number in (signal.SIGINT, *ENDING) if signal.getsignal(number) != signal.SIG_IGN]
    try:
        with _handled(dict.fromkeys(numbers, lambda number, _: came.append(number)), all_of_them=True):
            yield
    finally:
        for number in came[:1]:
            signal.raise_signal(number)


def leave_closed_terminal() -> None:
    """Let words to a terminal that is no more go nowhere, instead of being an error each."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


@contextmanager
def _handled(handlers: Mapping[int, _Handler], *, all_of_them: bool = False) -> Iterator[None]:
    """Handlers for a while, in the main thread; unless of `all_of_them`, where nobody has set another."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        taken = {number: signal.getsignal(number) for number in handlers}
        before = {number: old for number, old in taken.items() if all_of_them or old == signal.SIG_DFL}
    try:
        for number in before:
            signal.signal(number, handlers[number])
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)

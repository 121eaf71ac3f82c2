"""Where stages run: each in a worker process of this machine, started, watched and ended here."""

import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from typing import Any

from paretune.errors import StageError
from paretune.pipeline import signals
from paretune.pipeline.stage import Stage
from paretune.pipeline.worker import PRELOAD, Failure, RunContext, work

_GRACE_SECONDS = 10.0
"""That a worker is given to end by itself."""
_STEP_SECONDS = 60.0
"""That a training is given to end its step and leave a checkpoint; every other stage ends at once."""


@dataclass
class _Worker:
    stage: Stage
    process: ForkServerProcess
    outcome: multiprocessing.connection.Connection


@dataclass
class LocalWorkers:
    """The worker processes of one run."""

    run: RunContext
    _at_work: list[_Worker] = field(default_factory=list)

    @property
    def stages(self) -> list[Stage]:
        """What is worked on."""
        return [worker.stage for worker in self._at_work]

    def start(self, stage: Stage, *, again: bool = True) -> None:
        """Begin a stage; StageError where no process can be started."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(stage, self.run, sender), name=stage.name)
        # Before it starts, so that whatever interrupts the start finds it among those to end.
        self._at_work.append(_Worker(stage, process, receiver))
        try:
            start_server()
            with _without_main():
                process.start()
        except (EOFError, OSError) as error:
            self._at_work.pop()
            if not again:
                raise StageError(f"{stage.name}: its process cannot be started ({error}); is there memory left?") from None
            self.start(stage, again=False)  # somebody killed the server that forks the workers
        finally:
            sender.close()

    def ended(self, timeout: float) -> Iterator[tuple[Stage, Failure | None]]:
        """The stages that have ended, each with what made it fail, after waiting for the first at most `timeout` seconds."""
        multiprocessing.connection.wait([worker.outcome for worker in self._at_work], timeout=timeout)
        for worker in [worker for worker in self._at_work if worker.outcome.poll()]:
            self._at_work.remove(worker)
            try:
                failure = worker.outcome.recv()
            except (EOFError, OSError):
                worker.process.join(_GRACE_SECONDS)
                code = worker.process.exitcode
                what = f"the process ended without a word (exit code {code})"
                if code == -signal.SIGKILL:
                    what = "the process was killed, most likely for using too much memory"
                failure = Failure(f"{what}; run again to go on from its last checkpoint", 1, "")
            _end(worker.process)
            worker.outcome.close()
            yield worker.stage, failure

    def stop(self) -> Iterator[Stage]:
        """End what is at work; a training leaves a checkpoint, if a step of it ends soon enough."""
        started = [worker for worker in self._at_work if worker.process.pid is not None]
        self._send(signals.STOP)
        for worker in started:
            _end(worker.process, _STEP_SECONDS)
            yield worker.stage

    def ask_for_checkpoints(self) -> None:
        """Have each training leave one after its step, and go on."""
        self._send(signals.SAVE)

    def _send(self, number: signal.Signals) -> None:
        for worker in self._at_work:
            with suppress(ProcessLookupError):  # it has ended meanwhile
                if worker.process.pid is not None:
                    os.kill(worker.process.pid, number)


def start_server() -> None:
    """The server that forks workers, which inherit that signals to the run are blocked: this process hears and ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.OF_THE_RUN)
    try:
        multiprocessing.resource_tracker.ensure_running()  # it unblocks some of them here, and would do so below
        signal.pthread_sigmask(signal.SIG_BLOCK, signals.OF_THE_RUN)
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(process: ForkServerProcess, seconds: float = _GRACE_SECONDS) -> None:
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep workers from importing the caller's script again, which would run an unguarded one once more in every worker."""
    main = sys.modules["__main__"]
    names: tuple[str, ...] = ("__file__", "__spec__")
    saved: dict[str, Any] = {name: main.__dict__.pop(name) for name in names if name in main.__dict__}
    main.__spec__ = None
    try:
        yield
    finally:
        main.__dict__.update(saved)

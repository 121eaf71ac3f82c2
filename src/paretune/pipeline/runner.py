"""Run what is missing of a plan, each stage in a worker process; a failure blocks only what needs it."""

import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from typing import Any

from paretune.errors import NeedsError, StageError
from paretune.pipeline.events import EventLog, EventTail
from paretune.pipeline.plan import Plan
from paretune.pipeline.stage import ENVIRONMENT, RunOptions, Stage
from paretune.pipeline.store import Store
from paretune.pipeline.tuning import all_diverged, decide, lost
from paretune.pipeline.worker import PRELOAD, Failure, RunContext, work

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 10.0
"""That a worker is given to end by itself."""
EventHandler = Callable[[Mapping[str, Any]], None]


@dataclass
class Outcome:
    """What became of each stage of a run."""

    plan: Plan
    """With the choices that the run has made."""
    reused: list[Stage] = field(default_factory=list)
    done: list[Stage] = field(default_factory=list)
    failed: dict[Stage, Failure] = field(default_factory=dict)
    blocked: dict[Stage, Stage] = field(default_factory=dict)
    """Stages that were not run, with the failed one that they need."""
    diverged: set[Stage] = field(default_factory=set)
    """Trials that lost by it, now or in an earlier run: no failures."""

    @property
    def settled(self) -> set[Stage]:
        return {*self.reused, *self.done, *self.failed, *self.blocked, *self.diverged}

    @property
    def exit_code(self) -> int:
        """0 if nothing failed; 2 where a failure is a mistake of the user's, else 1."""
        return max((failure.exit_code for failure in self.failed.values()), default=0)


@dataclass
class _Running:
    stage: Stage
    process: ForkServerProcess
    outcome: multiprocessing.connection.Connection


def run_plan(plan: Plan, store: Store, options: RunOptions, on_event: EventHandler) -> Outcome:
    """Run the stages of `plan` that `store` does not hold yet; the events of the run go to `on_event` as they come.

    When the trials of a tuned variant are through, the plan is made again with the choice.
    """
    store.prepare()
    run = RunContext(store.root.resolve(), uuid.uuid4().hex[:12], options, tuple(sys.argv), _git_commit())
    log = EventLog(store.events_file, run.run)
    tail = EventTail(log)
    outcome = Outcome(decide(plan, store))
    running: list[_Running] = []
    waiting = _missing(outcome, running, store)
    for stage in outcome.reused:
        store.forget_attempts(stage)  # left where a kill fell right after the last rename
    _check_environment(waiting)
    num_missing = sum(stage.runs for stage in waiting)
    log.write("run", pid=os.getpid(), stages=len(outcome.reused) + num_missing, reused=len(outcome.reused))
    _fail_choices(outcome, store, log)
    _pass_on(tail, on_event)
    try:
        while waiting or running:
            _block(waiting, outcome)
            for stage in _ready(waiting, outcome)[: options.workers - len(running)]:
                waiting.remove(stage)
                uses = outcome.plan.uses(stage)[:3]
                log.write("started", stage=stage.name, uses=uses, step=store.checkpoint_step(stage))
                _start(stage, run, running)
            multiprocessing.connection.wait([one.outcome for one in running], timeout=_POLL_SECONDS)
            for one in [one for one in running if one.outcome.poll()]:
                running.remove(one)
                _finish(one, outcome, store, log)
                if outcome.plan.undecided:
                    waiting = _choose(waiting, outcome, running, store, log)
            _pass_on(tail, on_event)
    finally:
        if running:
            log.write("stopping")
            _pass_on(tail, on_event)
            _stop(running, store, log)
            _pass_on(tail, on_event)
    return outcome


def _check_environment(waiting: list[Stage]) -> None:
    """NeedsError for a variable that a stage, hours from now, would find unset."""
    for stage in waiting:
        name = stage.settings.get(ENVIRONMENT)
        if name and not os.environ.get(name, "").strip():
            raise NeedsError(f"{stage.kind}: the environment variable `{name}` of `key` is not set; set it and run again")


def _stop(running: list[_Running], store: Store, log: EventLog) -> None:
    """End what is at work when a run is interrupted; a training leaves a checkpoint, if a step of it ends soon enough."""
    started = [one for one in running if one.process.pid is not None]
    for one in started:
        one.process.terminate()
    for one in started:
        _end(one.process)
        log.write("stopped", stage=one.stage.name, step=store.checkpoint_step(one.stage))


def _pass_on(tail: EventTail, on_event: EventHandler) -> None:
    for event in tail.read():
        on_event(event)


def _missing(outcome: Outcome, running: list[_Running], store: Store) -> list[Stage]:
    """The stages that are left to run, after noting which need not."""
    outcome.diverged |= lost(outcome.plan, store)
    left = [stage for stage in outcome.plan.stages if stage not in outcome.settled | {one.stage for one in running}]
    outcome.reused += [stage for stage in left if store.find(stage)]
    return [stage for stage in left if stage not in set(outcome.reused)]


def _choose(waiting: list[Stage], outcome: Outcome, running: list[_Running], store: Store, log: EventLog) -> list[Stage]:
    """What is left to run after stages of trials have ended, with the choices that they allow to make."""
    before = outcome.plan
    outcome.plan = decide(before, store)
    outcome.diverged |= lost(outcome.plan, store)
    _fail_choices(outcome, store, log)
    if outcome.plan is before:
        return [stage for stage in waiting if stage not in outcome.diverged]
    waiting = _missing(outcome, running, store)
    for tuning in outcome.plan.tunings:
        if tuning.chosen is not None and tuning.choice in before.undecided:
            log.write("chosen", what=tuning.name, trial=tuning.trials[tuning.chosen].name, left=len(waiting) + len(running))
    return waiting


def _fail_choices(outcome: Outcome, store: Store, log: EventLog) -> None:
    for tuning in outcome.plan.tunings:
        if tuning.chosen is None and tuning.choice not in outcome.failed and (message := all_diverged(tuning, store)):
            outcome.failed[tuning.choice] = Failure(message, StageError.exit_code, "")
            log.write("failed", stage=tuning.choice.name, message=message)


def _ready(waiting: list[Stage], outcome: Outcome) -> list[Stage]:
    finished, undecided = {*outcome.reused, *outcome.done}, outcome.plan.undecided
    return [stage for stage in waiting if stage not in undecided and all(need in finished for need in _needs(stage))]


def _block(waiting: list[Stage], outcome: Outcome) -> None:
    """Move what needs a failed stage, directly or not, out of `waiting`."""
    for stage in list(waiting):  # in order, so that a parent is blocked before its children are looked at
        culprit = next((found for need in _needs(stage) if (found := _culprit(need, outcome))), None)
        if not stage.runs and culprit is not None and outcome.failed[culprit].diverged:
            culprit = None  # which loses, and leaves the others to choose from
        if culprit is not None:
            outcome.blocked[stage] = culprit
        elif stage not in outcome.failed:  # as a choice is among trials that all diverged
            continue
        waiting.remove(stage)


def _culprit(need: Stage, outcome: Outcome) -> Stage | None:
    """The failed stage because of which `need` is not to be had."""
    return need if need in outcome.failed else outcome.blocked.get(need)


def _needs(stage: Stage) -> tuple[Stage, ...]:
    return (*stage.inputs.values(), *stage.after)


def _start(stage: Stage, run: RunContext, running: list[_Running], *, again: bool = True) -> None:
    """Put a worker at `stage` into `running`; StageError where no process can be started."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(stage, run, sender), name=stage.name)
    # Before it starts, so that whatever interrupts the start finds it among those to end.
    running.append(_Running(stage, process, receiver))
    try:
        _start_server()
        with _without_main():
            process.start()
    except (EOFError, OSError) as error:
        running.pop()
        if not again:
            raise StageError(f"{stage.name}: its process cannot be started ({error}); is there memory left?") from None
        _start(stage, run, running, again=False)  # somebody killed the server that forks the workers
    finally:
        sender.close()


def _start_server() -> None:
    """The server that forks workers, which inherit that Ctrl-C is blocked: it is for this process, which then ends them."""
    multiprocessing.resource_tracker.ensure_running()  # it would unblock the signal, were it started below
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _finish(one: _Running, outcome: Outcome, store: Store, log: EventLog) -> None:
    try:
        failure = one.outcome.recv()
    except (EOFError, OSError):
        one.process.join(_GRACE_SECONDS)
        failure = Failure(_killed(one.process.exitcode), 1, "")
    _end(one.process)
    one.outcome.close()
    if failure is None:
        outcome.done.append(one.stage)
        log.write("finished", stage=one.stage.name)
    elif failure.diverged and all(one.stage not in cell.methods for cell in outcome.plan.cells):
        outcome.diverged.add(one.stage)
        store.forget_attempts(one.stage)
        log.write("diverged", stage=one.stage.name, message=failure.message)
    else:
        outcome.failed[one.stage] = failure
        log.write("failed", stage=one.stage.name, message=failure.message)


def _end(process: ForkServerProcess) -> None:
    process.join(_GRACE_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()


def _killed(exit_code: int | None) -> str:
    if exit_code == -9:
        return "the process was killed, most likely for using too much memory; run again to go on from its last checkpoint"
    return f"the process ended without a word (exit code {exit_code}); run again to go on from its last checkpoint"


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


def _git_commit() -> str | None:
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None

"""Run what is missing of a plan, each stage in a worker process; a failure blocks only what needs it."""

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from paretune.errors import NeedsError, StageError
from paretune.pipeline.events import EventLog, EventTail
from paretune.pipeline.executors import LocalWorkers
from paretune.pipeline.plan import Plan
from paretune.pipeline.stage import ENVIRONMENT, RunOptions, Stage, measures_time
from paretune.pipeline.store import Store
from paretune.pipeline.tuning import all_diverged, decide, lost
from paretune.pipeline.worker import Failure, RunContext

_POLL_SECONDS = 0.2
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


def run_plan(plan: Plan, store: Store, options: RunOptions, on_event: EventHandler) -> Outcome:
    """Run the stages of `plan` that `store` does not hold yet; the events of the run go to `on_event` as they come.

    When the trials of a tuned variant are through, what hangs on the choice takes the chosen one's place.
    """
    store.prepare()
    context = RunContext(store.root.resolve(), uuid.uuid4().hex[:12], options, tuple(sys.argv), _git_commit())
    log = EventLog(store.events_file, context.run)
    tail = EventTail(log)
    run = _Run(Outcome(decide(plan, store)), LocalWorkers(context), store, log)
    run.find_missing()
    outcome, waiting = run.outcome, run.waiting
    for stage in outcome.reused:
        store.forget_attempts(stage)  # left where a kill fell right after the last rename
    for stage in waiting:
        name = stage.settings.get(ENVIRONMENT)
        if name and not os.environ.get(name, "").strip():  # which the stage would find out hours from now
            raise NeedsError(f"{stage.kind}: the environment variable `{name}` of `key` is not set; set it and run again")
    num_missing = sum(stage.runs for stage in waiting)
    log.write("run", pid=os.getpid(), stages=len(outcome.reused) + num_missing, reused=len(outcome.reused))
    run.fail_choices()

    def pass_on() -> None:
        for event in tail.read():
            on_event(event)

    pass_on()
    try:
        while run.waiting or run.workers.stages:
            run.block()
            for stage in run.next(options.workers):
                run.waiting.remove(stage)
                uses = outcome.plan.uses(stage)[:3]
                log.write("started", stage=stage.name, uses=uses, step=store.checkpoint_step(stage))
                run.workers.start(stage)
            for stage, failure in run.workers.ended(_POLL_SECONDS):
                run.note(stage, failure)
                if outcome.plan.undecided:
                    run.choose()
            pass_on()
    finally:
        if run.workers.stages:
            log.write("stopping")
            pass_on()
            for stage in run.workers.stop():
                log.write("stopped", stage=stage.name, step=store.checkpoint_step(stage))
            pass_on()
    return outcome


@dataclass
class _Run:
    """The state of a run between two looks at its workers."""

    outcome: Outcome
    workers: LocalWorkers
    store: Store
    log: EventLog
    waiting: list[Stage] = field(default_factory=list)
    """What is left to run, parents before children."""

    def find_missing(self) -> None:
        """Let wait what is neither settled nor at work, after noting what need not run."""
        outcome = self.outcome
        outcome.diverged |= lost(outcome.plan, self.store)
        settled = outcome.settled | set(self.workers.stages)
        left = [stage for stage in outcome.plan.stages if stage not in settled]
        outcome.reused += [stage for stage in left if self.store.find(stage)]
        self.waiting = [stage for stage in left if stage not in set(outcome.reused)]

    def ready(self) -> list[Stage]:
        finished, undecided = {*self.outcome.reused, *self.outcome.done}, self.outcome.plan.undecided
        return [stage for stage in self.waiting if stage not in undecided and finished.issuperset(stage.needs)]

    def next(self, workers: int) -> list[Stage]:
        """What is to be started now; of several workers a stage that measures time has the machine to itself, last of what is
        ready."""
        ready, at_work = self.ready(), self.workers.stages
        if workers == 1:
            return ready[: 1 - len(at_work)]
        timed = [stage for stage in ready if measures_time(stage)]
        if others := [stage for stage in ready if stage not in timed]:
            return [] if any(map(measures_time, at_work)) else others[: workers - len(at_work)]
        return [] if at_work else timed[:1]

    def block(self) -> None:
        """Move what needs a failed stage, directly or not, out of those that wait."""
        failed, blocked = self.outcome.failed, self.outcome.blocked
        for stage in list(self.waiting):  # in order, so that a parent is blocked before its children are looked at
            culprits = (need if need in failed else blocked.get(need) for need in stage.needs)
            culprit = next(filter(None, culprits), None)
            if not stage.runs and culprit is not None and failed[culprit].diverged:
                culprit = None  # a trial that loses, and leaves the others to choose from
            if culprit is not None:
                blocked[stage] = culprit
            elif stage not in failed:  # as a choice is among trials that all diverged
                continue
            self.waiting.remove(stage)

    def note(self, stage: Stage, failure: Failure | None) -> None:
        """Say how a stage ended."""
        if failure is None:
            self.outcome.done.append(stage)
            self.log.write("finished", stage=stage.name)
        elif failure.diverged and all(stage not in cell.methods for cell in self.outcome.plan.cells):
            self.outcome.diverged.add(stage)
            self.store.forget_attempts(stage)
            self.log.write("diverged", stage=stage.name, message=failure.message)
        else:
            self.outcome.failed[stage] = failure
            self.log.write("failed", stage=stage.name, message=failure.message)

    def choose(self) -> None:
        """Make the choices that are possible after a stage has ended, and let wait what follows from them."""
        outcome, before = self.outcome, self.outcome.plan
        outcome.plan = decide(before, self.store)
        outcome.diverged |= lost(outcome.plan, self.store)
        self.fail_choices()
        if outcome.plan is before:
            self.waiting = [stage for stage in self.waiting if stage not in outcome.diverged]
            return
        self.find_missing()
        left = len(self.waiting) + len(self.workers.stages)
        for tuning in outcome.plan.tunings:
            if tuning.chosen is not None and tuning.choice in before.undecided:
                self.log.write("chosen", what=tuning.name, trial=tuning.trials[tuning.chosen].name, left=left)

    def fail_choices(self) -> None:
        """Note the choices that cannot be made any more."""
        failed = self.outcome.failed
        for tuning in self.outcome.plan.tunings:
            if tuning.chosen is None and tuning.choice not in failed and (message := all_diverged(tuning, self.store)):
                failed[tuning.choice] = Failure(message, StageError.exit_code, "")
                self.log.write("failed", stage=tuning.choice.name, message=message)


def _git_commit() -> str | None:
    try:
        finished = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return finished.stdout.strip() or None

"""Run what is missing of a plan, each stage in a worker process; a failure blocks only what needs it."""

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paretune.errors import NeedsError, StageError
from paretune.pipeline import signals
from paretune.pipeline.events import EventLog, EventTail
from paretune.pipeline.executors import LocalWorkers
from paretune.pipeline.plan import Plan
from paretune.pipeline.runs import announced, live_runs
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


def run_plan(plan: Plan, store: Store, options: RunOptions, on_event: EventHandler, study: Path | None = None) -> Outcome:
    """Run the stages of `plan` that `store` does not hold yet; the events of the run go to `on_event` as they come.

    When the trials of a tuned variant are through, what hangs on the choice takes the chosen one's place.

    Whatever interrupts it (an exception of `on_event`, Ctrl-C, SIGTERM, SIGHUP) ends the workers first, and each training
    leaves a checkpoint; SIGUSR1 has them leave one and goes on. StoreError if the store is removed meanwhile.
    """
    store.prepare()
    context = RunContext(store.root.resolve(), uuid.uuid4().hex[:12], options, tuple(sys.argv), _git_commit())
    log = EventLog(store.events_file, context.run)
    tail = EventTail(log)

    def pass_on() -> None:
        for event in tail.read():
            on_event(event)

    def tell(event: str, **fields: Any) -> None:
        pass_on()
        on_event(log.write(event, **fields))

    run = _Run(Outcome(decide(plan, store)), LocalWorkers(context), store, tell)
    run.find_missing()
    outcome, waiting = run.outcome, run.waiting
    for stage in outcome.reused:
        store.forget_attempts(stage)  # left where a kill fell right after the last rename
        store.note_use(stage)
    for stage in waiting:
        name = stage.settings.get(ENVIRONMENT)
        if name and not os.environ.get(name, "").strip():  # which the stage would find out hours from now
            raise NeedsError(f"{stage.kind}: the environment variable `{name}` of `key` is not set; set it and run again")
    num_missing = sum(stage.runs for stage in waiting)
    asked: dict[Stage, int | None] = {}
    """Trainings that were asked for a checkpoint, with the step of the one before it."""
    with (
        signals.ended_by_signals(),
        signals.noted(signals.CHECKPOINT) as told_to_save,
        announced(store, context.run, study, [stage.name for stage in outcome.plan.stages]),
    ):
        others = [{"study": other.study, "name": other.name} for other in live_runs(store) if other.run != context.run]
        counts = {"stages": len(outcome.reused) + num_missing, "reused": len(outcome.reused)}
        tell("run", pid=os.getpid(), study=str(study.resolve()) if study else "", others=others, **counts)
        try:
            run.fail_choices()
            while run.waiting or run.workers.stages:
                store.check_there()
                run.block()
                for stage in run.next(options.workers):
                    run.waiting.remove(stage)
                    uses = outcome.plan.uses(stage)[:3]
                    started = log.write("started", stage=stage.name, uses=uses, step=store.checkpoint_step(stage))
                    run.workers.start(stage)
                    on_event(started)
                for stage, failure in run.workers.ended(_POLL_SECONDS):
                    store.check_there()  # otherwise a failure says so less clearly
                    run.note(stage, failure)
                    if outcome.plan.undecided:
                        run.choose()
                if told_to_save():
                    asked = {stage: store.checkpoint_step(stage) for stage in run.workers.stages}
                    tell("saving")
                    run.workers.ask_for_checkpoints()
                for stage in [stage for stage, before in asked.items() if store.checkpoint_step(stage) != before]:
                    del asked[stage]
                    if stage in run.workers.stages:
                        tell("saved", stage=stage.name, step=store.checkpoint_step(stage))
                pass_on()
        finally:
            if run.workers.stages:
                try:
                    tell("stopping")
                finally:
                    for stage in run.workers.stop():
                        tell("stopped", stage=stage.name, step=store.checkpoint_step(stage))
    return outcome


@dataclass
class _Run:
    """The state of a run between two looks at its workers."""

    outcome: Outcome
    workers: LocalWorkers
    store: Store
    tell: Callable[..., None]
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
            self.tell("finished", stage=stage.name)
        elif failure.diverged and all(stage not in cell.methods for cell in self.outcome.plan.cells):
            self.outcome.diverged.add(stage)
            self.store.forget_attempts(stage)
            self.tell("diverged", stage=stage.name, message=failure.message)
        else:
            self.outcome.failed[stage] = failure
            self.tell("failed", stage=stage.name, message=failure.message)

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
                self.tell("chosen", what=tuning.name, trial=tuning.trials[tuning.chosen].name, left=left)

    def fail_choices(self) -> None:
        """Note the choices that cannot be made any more."""
        failed = self.outcome.failed
        for tuning in self.outcome.plan.tunings:
            if tuning.chosen is None and tuning.choice not in failed and (message := all_diverged(tuning, self.store)):
                failed[tuning.choice] = Failure(message, StageError.exit_code, "")
                self.tell("failed", stage=tuning.choice.name, message=message)


def _git_commit() -> str | None:
    try:
        finished = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return finished.stdout.strip() or None

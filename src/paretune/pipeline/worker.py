"""One stage in a process of its own: take its lock, run its body in the draft, write the record, rename.

The process is forked from a server that has torch and transformers imported already, so a small stage does not pay seconds of
imports; an out-of-memory kill takes one stage, and peak memory is that stage's. It ends with the process that runs the plan:
a run that was killed leaves nobody behind who computes on and holds locks.
"""

import errno
import logging
import multiprocessing
import os
import platform
import re
import resource
import signal
import sys
import threading
import time
import traceback
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from paretune.errors import DivergedError, ParetuneError, StoreError, is_out_of_memory
from paretune.pipeline import signals
from paretune.pipeline.events import EventLog
from paretune.pipeline.machine import core_quota, fingerprint
from paretune.pipeline.records import Divergence, Record
from paretune.pipeline.runs import holder
from paretune.pipeline.stage import RunOptions, Stage, StageContext, measures_time
from paretune.pipeline.store import Store, describe_files
from paretune.pipeline.threads import Threads
from paretune.study.registry import load_function

PRELOAD = [
    "torch",
    "transformers",
    "paretune.model",  # PEFT, without what it imports for a few
    "accelerate",
    "pandas",
    "pyarrow.parquet",
    "pyarrow.pandas_compat",
    "peft.utils.transformers_weight_conversion",
    "scipy.stats",
    "paretune.pipeline.stage_configs",
    "paretune.study.evaluations",
    "paretune.study.methods",
    "paretune.model.ready",
    "paretune.train.stages",
    "paretune.evaluate.answers",
    "paretune.pipeline.worker",
]
_PACKAGES = ("paretune", "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "datasets", "numpy")
_EMIT_EVERY = 0.25
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
_FULL_DISK = os.strerror(errno.ENOSPC)


@dataclass(frozen=True)
class RunContext:
    """What every worker of a run is told."""

    store: Path
    run: str
    options: RunOptions
    argv: tuple[str, ...]
    git_commit: str | None


@dataclass(frozen=True)
class Failure:
    """How a stage failed: the message for the user, whose fault it is, and where in the code."""

    message: str
    exit_code: int
    traceback: str
    diverged: bool = False
    """The same training would end so again, which loses a trial."""


def work(stage: Stage, run: RunContext, outcome: Connection) -> None:
    """Body of the worker process; sends None or a Failure through `outcome`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signals.OF_THE_RUN)  # which they are already, unless the server is not ours
    runner = multiprocessing.parent_process()
    assert runner is not None, "a worker is started by a runner"

    def end_with_runner() -> None:
        runner.join()
        os._exit(1)

    threading.Thread(target=end_with_runner, daemon=True).start()
    # Bars and advice of the libraries would mix with the run's own display.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)  # one library to another
    if "transformers" in sys.modules:
        logging = sys.modules["transformers"].utils.logging
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    outcome.send(_attempt(stage, run))


def _attempt(stage: Stage, run: RunContext) -> Failure | None:
    store, log = Store(run.store), EventLog(run.store / "events.jsonl", run.run)

    try:
        with store.lock(stage, on_wait=lambda: log.write("waiting", stage=stage.name, **holder(store, stage.name))):
            # Asked again: another run may have finished it while this one waited.
            if store.find(stage):
                log.write("found", stage=stage.name)
                return None
            try:
                run_stage(stage, store, run)
            except Exception:
                if not store.has_draft(stage):
                    raise StoreError(
                        f"{store.root}: what the stage had written was removed from the store; run again to begin it anew"
                    ) from None
                store.drop_draft(stage)
                raise
    except DivergedError as error:
        with suppress(OSError):  # a full disk: the next run finds out again
            store.note_divergence(stage, Divergence(str(error), error.steps, error.seconds))
        return Failure(str(error), error.exit_code, traceback.format_exc(), diverged=True)
    except ParetuneError as error:
        return Failure(str(error), error.exit_code, traceback.format_exc())
    except Exception as error:  # noqa: BLE001  the process ends here: the runner shows the message and goes on
        return Failure(_in_words(error), 1, traceback.format_exc())
    return None


def _in_words(error: Exception) -> str:
    """An error that no body has put into words, in one line."""
    if is_out_of_memory(error):
        return (
            "out of memory; close other programs, run again with `--accumulate 2` or more, or choose a smaller "
            "`train.max_length` or base"
        )
    if _FULL_DISK in str(error):  # safetensors and pyarrow have errors of their own for it
        return f"{_FULL_DISK}; free some of the store's disk and run again: what is finished is kept"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}; run again when that is mended"
    system = _SYSTEM_ERROR.search(str(error))
    if system:  # of a library in Rust, like safetensors
        return f"{os.strerror(int(system[1]))}; run again when that is mended"
    return " ".join(f"{type(error).__name__}: {error}".split())


def run_stage(stage: Stage, store: Store, run: RunContext) -> None:
    """Run a stage's body in its draft and commit the artifact."""
    started, clock, cpu = datetime.now(UTC), time.perf_counter(), time.process_time()
    draft = store.open_draft(stage)
    context = StageContext(
        config=stage.config,
        inputs={role: store.artifact(parent) for role, parent in stage.inputs.items()},
        resources=stage.resources,
        options=run.options,
        draft=draft,
        emit=_throttled(EventLog(store.events_file, run.run), stage),
        settings=stage.settings,
        threads=Threads(threads_of(run.options), fixed=measures_time(stage) or "OMP_NUM_THREADS" in os.environ),
    )
    slow = _SlowWays(EventLog(store.events_file, run.run), stage.name)
    logging.getLogger("paretune.slow").addHandler(slow)
    try:
        with context.threads:
            metrics = load_function(stage.body)(context)
    finally:
        logging.getLogger("paretune.slow").removeHandler(slow)
    metrics |= {"slow_ways": slow.ways} if slow.ways else {}
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    record = Record(
        key=stage.key,
        kind=stage.kind,
        revision=stage.revision,
        config=stage.config,
        inputs={role: parent.key for role, parent in stage.inputs.items()},
        started=started.isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - clock, 3),
        cpu_seconds=round(time.process_time() - cpu, 3),
        device=stage.config.get("device", "cpu"),
        machine=fingerprint(),
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        versions=versions,
        git_commit=run.git_commit,
        argv=run.argv,
        options=asdict(run.options),
        metrics=metrics,
        files=describe_files(draft),
    )
    store.commit(stage, record)


class _SlowWays(logging.Handler):
    """What a stage does in a slower way than it might, and why: told at once, and kept for the record."""

    def __init__(self, log: EventLog, stage: str) -> None:
        super().__init__()
        self.log, self.stage, self.ways = log, stage, list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() not in self.ways:
            self.ways.append(record.getMessage())
            self.log.write("slow", stage=self.stage, message=record.getMessage())


def threads_of(options: RunOptions) -> int:
    """Of a worker: its share of the cores (or of what OMP_NUM_THREADS says), and of what the container has of them."""
    torch = sys.modules.get("torch")
    cores = min(torch.get_num_threads() if torch else 1, core_quota())
    return max(1, int(cores) // options.workers)


def _throttled(log: EventLog, stage: Stage) -> Any:
    last, part = 0.0, None

    def emit(**fields: Any) -> None:
        nonlocal last, part
        now = time.monotonic()
        if now - last >= _EMIT_EVERY or fields.get("done") == fields.get("total") or fields.get("part") != part:
            last, part = now, fields.get("part")
            log.write("progress", stage=stage.name, **fields)

    return emit

"""One stage in a process of its own: take its lock, run its body in the draft, write the record, rename.

The process is forked from a server that has torch and transformers imported already, so a small stage does not pay seconds of
imports; an out-of-memory kill takes one stage, and peak memory is that stage's.
"""

import os
import platform
import resource
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from paretune.errors import ParetuneError
from paretune.pipeline.events import EventLog
from paretune.pipeline.machine import fingerprint
from paretune.pipeline.records import Record
from paretune.pipeline.stage import RunOptions, Stage, StageContext
from paretune.pipeline.store import Store, describe_files
from paretune.spec.registry import load_function

PRELOAD = [
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "pandas",
    "pyarrow.parquet",
    "scipy.stats",
    "paretune.pipeline.worker",
]
_PACKAGES = ("paretune", "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "datasets", "numpy")
_EMIT_EVERY = 0.25


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


def work(stage: Stage, run: RunContext, outcome: Connection) -> None:
    """Body of the worker process; sends None or a Failure through `outcome`."""
    _quiet()
    store = Store(run.store)
    try:
        with store.lock(stage):
            if store.find(stage) is None:
                run_stage(stage, store, run)
        outcome.send(None)
    except ParetuneError as error:
        outcome.send(Failure(str(error), error.exit_code, traceback.format_exc()))
    except MemoryError:
        outcome.send(
            Failure(f"{stage.name}: out of memory; lower `train.batch_size` or `max_length`", 1, traceback.format_exc())
        )
    except OSError as error:
        reason = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        outcome.send(Failure(f"{stage.name}: {reason}", 1, traceback.format_exc()))
    except Exception as error:  # noqa: BLE001  the process ends here: the parent shows the message and goes on
        outcome.send(Failure(f"{stage.name}: {type(error).__name__}: {error}", 1, traceback.format_exc()))


def run_stage(stage: Stage, store: Store, run: RunContext) -> None:
    """Run a stage's body in its draft and commit the artifact."""
    started, clock = datetime.now(UTC), time.perf_counter()
    draft = store.draft(stage)
    context = StageContext(
        config=stage.config,
        inputs={role: store.artifact(parent) for role, parent in stage.inputs.items()},
        resources=stage.resources,
        options=run.options,
        draft=draft,
        emit=_throttled(EventLog(store.events_file, run.run), stage),
    )
    set_threads(run.options)
    metrics = load_function(stage.body)(context)
    record = Record(
        key=stage.key,
        kind=stage.kind,
        revision=stage.revision,
        config=stage.config,
        inputs={role: parent.key for role, parent in stage.inputs.items()},
        started=started.isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - clock, 3),
        device=stage.config.get("device", "cpu"),
        machine=fingerprint(),
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        versions=_versions(),
        git_commit=run.git_commit,
        argv=run.argv,
        options=asdict(run.options),
        metrics=metrics,
        files=describe_files(draft),
    )
    store.commit(stage, record)


def set_threads(options: RunOptions) -> None:
    """Share the cores between the workers of a run."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(max(1, (os.cpu_count() or 1) // options.workers))


def _throttled(log: EventLog, stage: Stage) -> Any:
    last = 0.0

    def emit(**fields: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _EMIT_EVERY or fields.get("done") == fields.get("total"):
            last = now
            log.write("progress", stage=stage.name, **fields)

    return emit


def _quiet() -> None:
    """Bars and advice of the libraries would mix with the run's own display."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "transformers" in sys.modules:
        logging = sys.modules["transformers"].utils.logging
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found

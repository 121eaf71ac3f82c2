"""Stage bodies that do what a real one may do at its worst, and plans made of them.

A body finds a folder outside the store in `context.resources["folder"]`: it leaves a line there for each time that it ran, and
waits there for what a test gives it. Run as a program (`python -m tests.pipeline.bodies STORE FOLDER BODY...`), this module
runs a chain of bodies in a process that a test can kill; its workers import no torch, so that it is quick.
"""

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors import SafetensorError

from paretune.console import Display
from paretune.errors import DataError, DivergedError, StageError
from paretune.pipeline import signals, worker
from paretune.pipeline.plan import Plan, PlannedCell
from paretune.pipeline.resources import Resource
from paretune.pipeline.runner import Outcome, run_plan
from paretune.pipeline.stage import CHECKPOINT, RunOptions, Stage, StageContext
from paretune.pipeline.store import Store

WAIT_SECONDS = 60.0


def make_stage(body: str, folder: Path, inputs: Mapping[str, Stage] | None = None, **config: Any) -> Stage:
    """A stage of kind `body` whose body is the function of that name here."""
    return Stage(body, config, f"{__name__}:{body}", inputs or {}, resources={"folder": Resource(path=folder)})


def make_plan(*stages: Stage) -> Plan:
    return Plan({}, {}, {}, (PlannedCell("base", "data", "variant", 0, stages, {}),))


def runs(folder: Path, body: str) -> int:
    """How many times a body has begun."""
    file = folder / body
    return len(file.read_text().splitlines()) if file.exists() else 0


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not file.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(file)
        time.sleep(0.01)


def _begin(context: StageContext, body: str) -> Path:
    folder = Path(str(context.resources["folder"]))
    with (folder / body).open("a") as file:
        file.write(f"{os.getpid()}\n")
    return folder


def ok(context: StageContext) -> dict[str, Any]:
    _begin(context, "ok")
    (context.draft / "answer.txt").write_text("42")
    context.emit(done=1, total=1)
    return {"answer": 42, "parents": sorted(context.inputs)}


def detour(context: StageContext) -> dict[str, Any]:
    _begin(context, "detour")
    for _ in range(2):
        logging.getLogger("paretune.slow").warning("reads one text at a time: %s", "no mask is known")
    return {"answer": 42}


def slow(context: StageContext) -> dict[str, Any]:
    _begin(context, "slow")
    time.sleep(0.3)
    return {}


def user_error(context: StageContext) -> dict[str, Any]:
    _begin(context, "user_error")
    raise DataError("notes.jsonl: record 3: no field `title`")


def stage_error(context: StageContext) -> dict[str, Any]:
    _begin(context, "stage_error")
    raise StageError("step 7: the loss is nan; lower the learning rate")


def validates(context: StageContext) -> dict[str, Any]:
    """Leaves the curve of a training with one evaluation."""
    _begin(context, "validates")
    row = {"step": 1, "validation_loss": context.config["loss"]}
    (context.draft / "curves.jsonl").write_text(json.dumps(row) + "\n")
    return {}


def diverges(context: StageContext) -> dict[str, Any]:
    _begin(context, "diverges")
    raise DivergedError("step 3: no number", steps=3, seconds=0.5)


def bug(context: StageContext) -> dict[str, Any]:
    raise KeyError("two\nlines")


def no_memory(context: StageContext) -> dict[str, Any]:
    raise MemoryError


def no_torch_memory(context: StageContext) -> dict[str, Any]:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried ...")


def vanish(context: StageContext) -> dict[str, Any]:
    os._exit(3)


def killed(context: StageContext) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def not_a_number(context: StageContext) -> dict[str, Any]:
    return {"loss": float("nan")}


def full_disk(context: StageContext) -> dict[str, Any]:
    """Writes to a device that is always full."""
    (context.draft / "weights").symlink_to("/dev/full")
    (context.draft / "weights").write_text("1" * 100_000)
    return {}


def full_disk_of_safetensors(context: StageContext) -> dict[str, Any]:
    """What it said on a small file system; /dev/full it replaces by a file."""
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def full_disk_at_the_record(context: StageContext) -> dict[str, Any]:
    (context.draft / "record.json").symlink_to("/dev/full")
    return {}


def fails_once(context: StageContext) -> dict[str, Any]:
    """Leaves half a result and something to go on from, and fails; the second attempt tells what it found."""
    if runs(_begin(context, "fails_once"), "fails_once") == 1:
        (context.draft / "half").write_text("stale")
        (context.resume / "checkpoint").write_text("step 5")
        os.kill(os.getpid(), signal.SIGKILL)
    found = {"stale": (context.draft / "half").exists(), "resumed": (context.resume / "checkpoint").read_text()}
    (context.draft / "whole").write_text("done")
    return found


def waits(context: StageContext) -> dict[str, Any]:
    """Goes on when the file `go` is there."""
    wait_for(_begin(context, "waits") / "go")
    return {}


def trains(context: StageContext) -> dict[str, Any]:
    """Leaves a checkpoint when it is told to end, as a training does; the second attempt ends well."""
    if runs(_begin(context, "trains"), "trains") == 2:
        return {}

    def leave(*_: object) -> None:
        (context.resume / f"{CHECKPOINT}000000007").mkdir()
        sys.exit(1)

    signal.signal(signals.STOP, leave)
    context.emit(done=7, total=9)
    (Path(str(context.resources["folder"])) / "at work").touch()
    time.sleep(WAIT_SECONDS)
    return {}


def saves(context: StageContext) -> dict[str, Any]:
    """Leaves a checkpoint when it is asked for one, as a training does, and ends when the file `go` is there."""
    folder = _begin(context, "saves")
    with signals.noted(signals.SAVE) as asked:
        (folder / "at work").touch()
        while not (folder / "go").exists():
            if asked():
                (context.resume / f"{CHECKPOINT}000000007").mkdir(exist_ok=True)
            time.sleep(0.01)
    return {}


def interrupts(context: StageContext) -> dict[str, Any]:
    return {"blocked": signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])}


def thread_count(context: StageContext) -> dict[str, Any]:
    import torch

    return {"threads": torch.get_num_threads()}


def run_chain(store: Path, folder: Path, bodies: list[str]) -> Outcome:
    """Run `bodies`, each after the one before it."""
    stages: list[Stage] = []
    for place, body in enumerate(bodies):
        stages.append(make_stage(body, folder, {"before": stages[-1]} if stages else {}, place=place))
    with Display(Console(stderr=True), "again") as display:
        return run_plan(make_plan(*stages), Store(store), RunOptions(), display.show, folder / "study.yaml")


if __name__ == "__main__":
    worker.PRELOAD[:] = ["paretune.pipeline.worker"]
    # A job in the background of a shell inherits that interrupts are ignored; a person's command does not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import tests.pipeline.bodies as module  # under its own name, which the workers know

    sys.exit(module.run_chain(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]).exit_code)

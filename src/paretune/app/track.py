"""Trackers: curves while variants are trained, then their figures, the comparison and the files that reproduce it.

Each tracker lives in a process of its own beside the run, at a low priority. It reads what trainings have written into the
store, so that a training neither knows of it nor waits for it; a tracker that fails, hangs or has no network is told of in one
line at the end. Trackers are accelerate's. What was sent is noted in the store: a second run sends what is new.

What is sent of a variant: its methods and the settings of training, each row of curves.csv, its rows of results.csv as
`TASK/SPLIT/METRIC`. Nothing of the environment, of paths or of the machine is, as far as the trackers let it be.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from paretune.errors import NeedsError
from paretune.pipeline.plan import Plan, cell_name
from paretune.pipeline.records import write_whole
from paretune.pipeline.store import Store
from paretune.study.study import Study

_POLL_SECONDS = 1.0
_LEAVE_SECONDS = 2.0
"""For a tracker to end where the run was ended."""
_COUNTED = ("step", "epoch", "tokens", "seconds")
"""Columns of a curve that go on counting from one training of a variant to the next."""
_FILES = ("report.html", "report.md", "results.csv", "comparisons.csv", "findings.json")
COMPARISON = "comparison"
"""The run of the whole study."""


@dataclass(frozen=True)
class Followed:
    """A variant and seed, as its tracker knows it."""

    name: str
    config: Mapping[str, Any]
    curves: Sequence[Sequence[str]]
    """Of each training, where its rows may stand: the finished artifact, then the journal of the attempt."""
    key: str
    """Changes with what the variant is made of and measured by."""


@dataclass
class Trackers:
    """The processes that follow a run."""

    processes: dict[str, subprocess.Popen[str]]
    store: Store
    wait: float
    follow: Callable[[Plan], Sequence[Followed]]

    def finish(self, plan: Plan, files: Sequence[Path], results: Path | None, say: Callable[[str], None]) -> None:
        """Have everything sent that is still missing, with `files` (study and lock) and the outputs in `results`."""
        last = {"cells": [asdict(cell) for cell in self.follow(plan)], "files": [str(file.resolve()) for file in files]}
        last["results"] = None if results is None else str(results.resolve())
        deadline = time.monotonic() + self.wait
        for kind, process in self.processes.items():
            _send(process, self.store.root / f"track-{kind}.last", last)
        for kind, process in self.processes.items():
            try:
                code = process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                say(f"track.{kind}: had not sent everything after {self.wait:g} s and was left; run again to send the rest")
                continue
            if code:
                log = log_file(self.store, kind)
                lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no message"]
                say(f"track.{kind}: stopped, which changes nothing of the results ({lines[-1].strip()}; more in {log})")


@contextmanager
def tracking(study: Study, plan: Plan, store: Store, folder: Path) -> Iterator[Trackers]:
    """Follow a run with the study's trackers; whatever ends it ends them.

    NeedsError for a tracker whose package is missing, before anything runs.
    """
    wanted = {} if study.track is None else {kind: getattr(study.track, kind) for kind in _TRACKERS}
    wanted = {kind: settings for kind, settings in wanted.items() if settings is not None}
    for kind in wanted:
        missing = next((package for package in ("accelerate", kind) if find_spec(package) is None), None)
        if missing:
            raise NeedsError(f"track.{kind}: needs the package `{missing}`: `pip install 'paretune[track]'`")

    follow = partial(followed, study, store)
    processes = {}
    first = {"study": study.study, "cells": [asdict(cell) for cell in follow(plan)], "store": str(store.root.resolve())}
    try:
        for kind, settings in wanted.items():
            with log_file(store, kind).open("w", encoding="utf-8") as log:
                processes[kind] = _start(kind, log)
            settled = {**first, "settings": settings.model_dump(), "folder": str(folder.resolve())}
            _send(processes[kind], store.root / f"track-{kind}.first", settled)
        yield Trackers(processes, store, study.track.wait if study.track else 0.0, follow)
    finally:
        for process in processes.values():
            assert process.stdin is not None
            with suppress(OSError):
                process.stdin.close()
            try:
                process.wait(_LEAVE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def followed(study: Study, store: Store, plan: Plan) -> list[Followed]:
    """Every variant and seed of a plan."""
    cells = []
    for cell in plan.cells:
        stages = [stage for stage in cell.methods if stage not in plan.undecided]
        methods = {f"{index}.{stage.kind}": stage.config["method"] for index, stage in enumerate(stages)}
        train = next((stage.config["train"] for stage in stages if "train" in stage.config), {})
        config = {"study": study.study, "base": cell.base, "dataset": cell.dataset, "variant": cell.variant}
        config |= {"seed": cell.seed, "methods": methods, "train": train}
        key = hashlib.sha256(" ".join(stage.key for stage in cell.stages).encode()).hexdigest()
        curves = [[str(path / "curves.jsonl") for path in store.places(stage)] for stage in stages]
        cells.append(Followed(cell_name(cell), config, curves, key))
    return cells


def log_file(store: Store, kind: str) -> Path:
    return store.root / f"track-{kind}.log"


def _start(kind: str, log: IO[str]) -> "subprocess.Popen[str]":
    # A session of its own: Ctrl-C is for the run, which ends its trackers.
    return subprocess.Popen(
        [sys.executable, "-m", "paretune.app.track", kind],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _send(process: "subprocess.Popen[str]", file: Path, message: Mapping[str, Any]) -> None:
    """By a file, and its name in a line: a long message fills the pipe, and the run would wait for one that hangs."""
    assert process.stdin is not None
    with suppress(OSError):  # of one that has died, which is told at the end
        file.write_text(json.dumps(message), encoding="utf-8")
        process.stdin.write(f"{file.resolve()}\n")
        process.stdin.flush()


# Below: the process of one tracker.


@dataclass
class _Sent:
    """What has been sent of a variant, from run to run."""

    id: str
    rows: int = 0
    step: int = 0
    key: str = ""
    """Of the figures that were sent at the end."""


def curve_rows(curves: Sequence[Sequence[str]]) -> list[dict[str, float]]:
    """A curve as far as it is written (`Followed.curves`), a row a step and one an evaluation, each once, counting on over
    trainings."""
    rows: list[dict[str, float]] = []
    done = dict.fromkeys(_COUNTED, 0.0)
    for places in curves:
        seen: dict[tuple[float, bool], dict[str, float]] = {}
        for place in places:
            lines: list[str] = []
            with suppress(OSError):
                lines = Path(place).read_text(encoding="utf-8").split("\n")[:-1]
            for line in lines:
                with suppress(ValueError):  # cut off by a kill
                    row = json.loads(line)
                    seen.setdefault((row["step"], "validation_loss" in row), row)
            if seen:
                break
        counted = [{**row, **{name: row[name] + done[name] for name in _COUNTED}} for row in seen.values()]
        rows += counted
        done = {name: max((row[name] for row in counted), default=done[name]) for name in _COUNTED}
    return rows


@dataclass
class _Tracker:
    """One tracker; `open` makes accelerate's for a run, new or (by its id) one to go on with."""

    open: Callable[[str, str, Mapping[str, Any]], Any]
    keep: Callable[[Any, str, Sequence[Path]], None]
    """Store files with a run."""
    log: Callable[[Any, Mapping[str, Any], int], None] = lambda run, values, step: run.log(dict(values), step=step)
    file: Path = Path()
    sent: dict[str, _Sent] = field(default_factory=dict)
    runs: dict[str, Any] = field(default_factory=dict)

    def run(self, name: str, config: Mapping[str, Any]) -> Any:
        if name not in self.runs:
            sent = self.sent.setdefault(name, _Sent(hashlib.sha256(f"{name} {time.time_ns()}".encode()).hexdigest()[:16]))
            self.runs[name] = self.open(name, sent.id, config)
        return self.runs[name]

    def send_curve(self, cell: Mapping[str, Any]) -> None:
        rows, sent = curve_rows(cell["curves"]), self.sent.get(cell["name"])
        for row in rows[sent.rows if sent else 0 :]:
            run = self.run(cell["name"], cell["config"])
            step = int(row["step"])
            self.log(run, {name: value for name, value in row.items() if name != "step"}, step)
            self.sent[cell["name"]].rows += 1
            self.sent[cell["name"]].step = step

    def note(self) -> None:
        write_whole(self.file, json.dumps({name: asdict(sent) for name, sent in self.sent.items()}))


def _wandb(study: str, settings: Mapping[str, Any], store: Path, _: Path) -> _Tracker:
    import wandb
    from accelerate.tracking import WandBTracker

    private = {"host": "", "x_disable_meta": True, "x_disable_machine_info": True, "x_save_requirements": False}
    quiet = wandb.Settings(console="off", disable_git=True, disable_code=True, x_disable_stats=True, silent=True, **private)

    def open_run(name: str, run_id: str, config: Mapping[str, Any]) -> Any:
        return _started(
            WandBTracker(
                settings["project"] or study,
                entity=settings["entity"],
                mode=settings["mode"],
                group=study,
                name=name,
                id=run_id,
                resume="allow",
                reinit="create_new",
                config=dict(config),
                dir=str(store),
                settings=quiet,
            )
        )

    def keep(run: Any, name: str, files: Sequence[Path]) -> None:
        artifact = wandb.Artifact(name, type="study")
        for file in files:
            artifact.add_file(str(file), name=file.name)
        run.run.log_artifact(artifact)
        run.log_images({file.stem: [str(file)] for file in files if file.suffix == ".png"})
        tables = {file.stem: file for file in files if file.suffix == ".csv"}
        for table, file in tables.items():
            run.log_table(table, dataframe=_table(file))

    return _Tracker(open_run, keep)


def _tensorboard(_: str, settings: Mapping[str, Any], store: Path, folder: Path) -> _Tracker:
    from accelerate.tracking import TensorBoardTracker

    place = folder / settings["dir"] if settings["dir"] else store / "tensorboard"

    def open_run(name: str, _: str, config: Mapping[str, Any]) -> Any:
        run = _started(TensorBoardTracker(name, place))
        run.log({"config": f"```\n{json.dumps(config, indent=1)}\n```"})
        return run

    def keep(run: Any, _: str, files: Sequence[Path]) -> None:
        import numpy as np
        from PIL import Image

        for file in files:
            if file.suffix == ".png":
                run.log_images({file.stem: np.asarray(Image.open(file).convert("RGB"))[None]}, dataformats="NHWC")
            elif file.suffix in (".md", ".yaml", ".lock"):
                text = file.read_text(encoding="utf-8")
                run.log({file.name: text if file.suffix == ".md" else f"```\n{text}\n```"})

    return _Tracker(open_run, keep)


def _mlflow(study: str, settings: Mapping[str, Any], store: Path, folder: Path) -> _Tracker:
    import mlflow
    from accelerate.tracking import MLflowTracker

    uri = settings["uri"] or str(store / "mlruns")
    if "://" not in uri:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # which newer versions ask to be told
        uri = (folder / uri).resolve().as_uri()
    mlflow.set_tracking_uri(uri)

    def open_run(name: str, _: str, config: Mapping[str, Any]) -> Any:
        client, experiment = mlflow.MlflowClient(), settings["experiment"] or study
        known = client.get_experiment_by_name(experiment)
        same = [] if known is None else client.search_runs([known.experiment_id], f"tags.`mlflow.runName` = '{name}'")
        run = MLflowTracker(experiment, run_name=name, run_id=same[0].info.run_id if same else None, tags={"study": study})
        run = _started(run)
        if not same:
            run.store_init_configuration({key: json.dumps(value) for key, value in config.items()})
        mlflow.end_run("RUNNING")  # several runs are open at once, each called by its id
        return run

    def log(run: Any, values: Mapping[str, Any], step: int) -> None:
        run.log(dict(values), step=step, run_id=run.active_run.info.run_id)

    def keep(run: Any, _: str, files: Sequence[Path]) -> None:
        for file in files:
            mlflow.log_artifact(str(file), run_id=run.active_run.info.run_id)

    return _Tracker(open_run, keep, log)


def _trackio(study: str, settings: Mapping[str, Any], store: Path, _: Path) -> _Tracker:
    from accelerate.tracking import TrackioTracker

    def open_run(name: str, _: str, config: Mapping[str, Any]) -> Any:
        named = {"name": name, "group": study, "config": dict(config), "space_id": settings["space"], "embed": False}
        return _started(TrackioTracker(settings["project"] or study, resume="allow", **named))

    def keep(run: Any, _: str, files: Sequence[Path]) -> None:
        import trackio

        for file in files:
            if file.suffix == ".png":
                run.log({file.stem: trackio.Image(str(file))})
            elif file.suffix == ".csv":
                run.log({file.stem: trackio.Table(dataframe=_table(file))})
            elif file.suffix in (".yaml", ".lock", ".md"):
                run.log({file.name: trackio.Markdown(f"```\n{file.read_text(encoding='utf-8')}\n```")})

    return _Tracker(open_run, keep)


_TRACKERS: Mapping[str, Callable[[str, Mapping[str, Any], Path, Path], _Tracker]] = {
    "wandb": _wandb,
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "trackio": _trackio,
}


def _read(line: bytes) -> Any:
    return json.loads(Path(line.decode().rstrip("\n")).read_text(encoding="utf-8"))


def _started(run: Any) -> Any:
    run.start()
    return run


def _table(file: Path) -> Any:
    import pandas as pd

    return pd.read_csv(file)


def _figures(results: Path) -> dict[str, dict[str, float]]:
    """The rows of results.csv by the name of a cell: `TASK/SPLIT/METRIC`, with the slice where there is one."""
    table = _table(results / "results.csv")
    figures: dict[str, dict[str, float]] = {}
    for row in table[table["trial"].isna() & table["value"].notna()].itertuples():
        seed = "" if row.seed != row.seed else f" seed {int(row.seed)}"
        parts = [part for part in (row.task, row.split, row.slice, row.metric) if isinstance(part, str) and part]
        figures.setdefault(f"{row.base}/{row.dataset}/{row.variant}{seed}", {})["/".join(parts)] = float(row.value)
    return figures


def follow(kind: str, messages: IO[bytes]) -> None:
    """Follow a run until `messages`, lines that name a file of JSON each, say that it has ended, or end."""
    import select

    from accelerate import PartialState

    os.nice(10)
    PartialState(cpu=True)  # accelerate's trackers ask for it
    first = _read(messages.readline())
    store = Path(first["store"])
    tracker = _TRACKERS[kind](first["study"], first["settings"], store, Path(first["folder"]))
    tracker.file = store / f"track-{kind}.json"
    with suppress(OSError, ValueError, TypeError):  # there is none, or one that nobody can read
        known = json.loads(tracker.file.read_text(encoding="utf-8"))
        tracker.sent = {name: _Sent(**sent) for name, sent in known.items()}
    while not select.select([messages], [], [], _POLL_SECONDS)[0]:
        for cell in first["cells"]:
            tracker.send_curve(cell)
        tracker.note()
    if not (line := messages.readline()):  # the run was ended
        return
    last = _read(line)
    results = None if last["results"] is None else Path(last["results"])
    figures = {} if results is None else _figures(results)
    for cell in last["cells"]:
        tracker.send_curve(cell)
        name = cell["name"]
        if figures.get(name) and (name not in tracker.sent or tracker.sent[name].key != cell["key"]):
            tracker.log(tracker.run(name, cell["config"]), figures[name], tracker.sent[name].step)
            tracker.sent[name].key = cell["key"]
        tracker.note()
    whole = hashlib.sha256("".join(cell["key"] for cell in last["cells"]).encode()).hexdigest()
    if results is not None and (COMPARISON not in tracker.sent or tracker.sent[COMPARISON].key != whole):
        files = [*map(Path, last["files"]), *(results / name for name in _FILES), *sorted((results / "figures").glob("*.png"))]
        run = tracker.run(COMPARISON, {"study": first["study"]})
        tracker.keep(run, first["study"], [file for file in files if file.is_file()])
        tracker.sent[COMPARISON].key = whole
    for run in tracker.runs.values():
        run.finish()
    tracker.note()


if __name__ == "__main__":
    try:
        follow(sys.argv[1], os.fdopen(0, "rb", buffering=0))  # a buffer would take lines that `select` then waits for
    except Exception:  # noqa: BLE001  told by the run that it follows
        # Its own words at exit would hide the error, and a thread that hangs would keep the process.
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)

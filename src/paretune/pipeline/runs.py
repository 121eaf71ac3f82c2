"""Runs that are on: each announces itself in the store for as long as it lives, and so says what it works on.

An announcement is held by a lock of its process, which ends with it however it ends, so that nothing is said of a run that was
killed. Where the file system keeps no locks, a process of this machine is asked for by its number.
"""

import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import psutil

from paretune.errors import StoreError
from paretune.pipeline.store import Store

_ENDED = ("finished", "failed", "diverged", "stopped", "waiting")
"""Events after which a run does not work on a stage (any more)."""


@dataclass(frozen=True)
class LiveRun:
    """A run that is on."""

    run: str
    pid: int
    host: str
    since: float
    """Seconds since 1970, by the clock of its machine."""
    study: str
    """Path of the study file; empty for a plan without one."""
    stages: tuple[str, ...]
    """All of its plan, by name."""
    at_work: tuple[tuple[str, float], ...] = ()
    """Stages that it works on at this moment, and since when."""
    failed: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Like `process 4711, since 14:03:12`."""
        where = "" if self.host == socket.gethostname() else f" on {self.host}"
        return f"process {self.pid}{where}, since {clock(self.since)}"


@dataclass(frozen=True)
class KnownStudy:
    """A study that has run in a store."""

    file: str
    last_run: float
    """Seconds since 1970 of the beginning of its last run."""
    stages: tuple[str, ...]
    """Of that run's plan, by name."""


def clock(seconds: float) -> str:
    """A moment as a person here would say it: the time, and the day where it is not today's."""
    moment = datetime.fromtimestamp(seconds)
    return f"{moment:%H:%M:%S}" if moment.date() == datetime.now().date() else f"{moment:%Y-%m-%d %H:%M}"


@contextmanager
def announced(store: Store, run: str, study: Path | None, stages: Sequence[str]) -> Iterator[None]:
    """Let others know of this run; what runs that were killed have left of themselves is removed."""
    me = LiveRun(run, os.getpid(), socket.gethostname(), time.time(), str(study.resolve()) if study else "", tuple(stages))
    file = store.root / "runs" / f"{run}.json"
    try:
        file.parent.mkdir(exist_ok=True)
        for left in file.parent.glob("*.json"):
            if not _is_live(left):
                left.unlink(missing_ok=True)
        if study:
            known = KnownStudy(me.study, me.since, me.stages)
            digest = hashlib.sha256(os.fsencode(me.study)).hexdigest()[:16]
            _write_json(store.root / "studies" / f"{digest}.json", known).close()
        held = _write_json(file, me)
    except OSError as error:
        raise StoreError(
            f"{store.root}: the store cannot be written ({error.strerror}); free some of its disk, or name another with --store"
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):  # the store is removed, or its share is gone
            held.close()
            file.unlink(missing_ok=True)


def live_runs(store: Store) -> list[LiveRun]:
    """The runs that are on in `store`, the first one first, with what each works on."""
    found = {}
    for file in (store.root / "runs").glob("*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):  # it ends at this moment, or is of another version
            content = json.loads(file.read_text(encoding="utf-8"))
            if _is_live(file):
                found[file.stem] = LiveRun(**content | {"stages": tuple(content["stages"]), "at_work": (), "failed": ()})
    if not found:
        return []
    at_work: dict[str, dict[str, float]] = {run: {} for run in found}
    failed: dict[str, dict[str, None]] = {run: {} for run in found}
    with suppress(OSError), store.events_file.open("rb") as events:
        for line in events:
            event = None
            with suppress(ValueError):
                event = json.loads(line)
            if not isinstance(event, dict) or event.get("run") not in found or "stage" not in event:
                continue
            run, stage = event["run"], event["stage"]
            if event["event"] in _ENDED:
                at_work[run].pop(stage, None)
            else:
                at_work[run].setdefault(stage, event["time"])
            if event["event"] == "failed":
                failed[run][stage] = None
    runs = [replace(run, at_work=tuple(at_work[name].items()), failed=tuple(failed[name])) for name, run in found.items()]
    return sorted(runs, key=lambda run: (run.since, run.run))


def known_studies(store: Store) -> list[KnownStudy]:
    """Every study that has run in `store`."""
    found = []
    for file in sorted((store.root / "studies").glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):  # of another version: its artifacts count as nobody's
            content = json.loads(file.read_text(encoding="utf-8"))
            found.append(KnownStudy(**content | {"stages": tuple(content["stages"])}))
    return found


def holder(store: Store, stage: str) -> dict[str, Any]:
    """`pid` and `host` of the run that works on a stage, `since` when it does; empty where none does.

    The first of several: those that came later wait for it.
    """
    found = [(since, run) for run in live_runs(store) for name, since in run.at_work if name == stage]
    if not found:
        return {}
    since, run = min(found, key=lambda entry: entry[0])
    return {"pid": run.pid, "host": run.host, "since": since}


def _write_json(file: Path, value: LiveRun | KnownStudy) -> TextIO:
    """The file as it is held by this process, until it is closed; whoever reads it finds it whole, and held."""
    file.parent.mkdir(exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    stream = draft.open("w", encoding="utf-8")
    try:
        json.dump(asdict(value), stream)
        stream.flush()
        with suppress(OSError):  # no locks here
            fcntl.flock(stream, fcntl.LOCK_EX)
        draft.replace(file)
    except BaseException:
        stream.close()
        draft.unlink(missing_ok=True)
        raise
    return stream


def _is_live(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError:  # no locks here
        content = json.loads(file.read_text(encoding="utf-8"))
        return bool(content["host"] == socket.gethostname() and psutil.pid_exists(content["pid"]))
    return False

"""What a store holds by study, and removing what no study names or no run has used for long."""

import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from paretune.errors import SpecError, StoreError
from paretune.pipeline.plan import Plan
from paretune.pipeline.runs import known_studies, live_runs
from paretune.pipeline.store import Store

_SECONDS = {"h": 3_600, "d": 86_400, "w": 7 * 86_400}


@dataclass(frozen=True)
class Sizes:
    """Bytes of a store."""

    studies: tuple[tuple[str, float, int], ...]
    """Path of each study file that has run here, seconds since its last run began, what it alone needs; the largest first."""
    shared: int
    """Needed by several of them."""
    others: int
    """Artifacts of no study that is known, and drafts."""


def parse_age(text: str) -> float:
    """Seconds of `30d`, `12h` or `2w`; SpecError for anything else."""
    match = re.fullmatch(r"(\d+)\s*([hdw])", text.strip().lower())
    if match is None:
        raise SpecError(f"--older-than: `{text}` is no age; write hours, days or weeks, like `12h`, `30d` or `2w`")
    return int(match[1]) * _SECONDS[match[2]]


def sizes(store: Store) -> Sizes:
    """What the artifacts of each study take; StoreError where there is no store, or one of a newer Paretune."""
    if not store.exists():
        raise StoreError(f"{store.root}: no store; name one with --store")
    store.check()
    studies = known_studies(store)
    users = Counter(stage for study in studies for stage in set(study.stages))
    bytes_of = {record.path.name: size_of(record.path) for record in store.records()}
    own = [
        (study.file, time.time() - study.last_run, sum(bytes_of.get(name, 0) for name in study.stages if users[name] == 1))
        for study in studies
    ]
    return Sizes(
        tuple(sorted(own, key=lambda entry: -entry[2])),
        shared=sum(size for name, size in bytes_of.items() if users[name] > 1),
        others=sum(size for name, size in bytes_of.items() if not users[name]) + size_of(store.root / "drafts"),
    )


def unused(store: Store, plans: Sequence[Plan], age: float | None) -> list[Path]:
    """Artifacts and drafts of `store` that are of no stage of `plans` and, with an `age`, that no run has used for so long.

    StoreError where there is no store, one of a newer Paretune, or a run that is on: it may need any of them.
    """
    if not store.exists():
        raise StoreError(f"{store.root}: no store; name one with --store")
    store.check()
    for run in live_runs(store):
        raise StoreError(f"{store.root}: a run is on ({run.name}); clean when it has ended")
    stages = {stage.key: stage for plan in plans for stage in plan.stages}
    kept = {stage.name for stage in stages.values()}
    found = [record.path for record in store.records() if record.key not in stages and record.path.name not in kept]
    for draft in sorted((store.root / "drafts").glob("*")):
        key = draft.name.removesuffix(".resume").rpartition("-")[2]
        if key not in stages:
            with suppress(Timeout, OSError), FileLock(str(store.root / "locks" / f"{key}.lock"), timeout=0):
                found.append(draft)
    return [path for path in found if age is None or time.time() - path.stat().st_mtime > age]


def size_of(directory: Path) -> int:
    """Bytes of the files below a directory."""
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def remove(directories: Iterable[Path]) -> None:
    """Remove them, each record first, so that a kill leaves nothing that looks finished; StoreError where that is forbidden."""
    for directory in directories:
        try:
            (directory / "record.json").unlink(missing_ok=True)
            shutil.rmtree(directory)
        except OSError as error:
            raise StoreError(f"{directory}: cannot be removed ({error.strerror}); is the store writable?") from None

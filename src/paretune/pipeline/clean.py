"""Remove artifacts that no study names any more."""

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from paretune.pipeline.plan import Plan
from paretune.pipeline.store import Store


def unnamed(store: Store, plans: Iterable[Plan]) -> list[Path]:
    """Artifacts and drafts of `store` that are of no stage of `plans`; what a run works on at this moment is left out."""
    stages = {stage.key: stage for plan in plans for stage in plan.stages}
    kept = {stage.name for stage in stages.values()}
    artifacts = [record.path for record in store.records() if record.key not in stages and record.path.name not in kept]
    drafts = []
    for draft in sorted((store.root / "drafts").glob("*")):
        key = draft.name.rpartition("-")[2]
        if key not in stages:
            with suppress(Timeout), FileLock(str(store.root / "locks" / f"{key}.lock"), timeout=0):
                drafts.append(draft)
    return artifacts + drafts


def size_of(directory: Path) -> int:
    """Bytes of the files below a directory."""
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def remove(directories: Iterable[Path]) -> None:
    """Remove them, each record first, so that a kill leaves nothing that looks finished."""
    for directory in directories:
        (directory / "record.json").unlink(missing_ok=True)
        shutil.rmtree(directory)

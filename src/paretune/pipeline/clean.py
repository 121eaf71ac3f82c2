"""Remove artifacts that no study names any more."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock, Timeout

from paretune.pipeline.plan import Plan
from paretune.pipeline.store import Store


def unnamed(store: Store, plans: Iterable[Plan]) -> list[Path]:
    """Artifacts and drafts of `store` that are of no stage of `plans`; what a run works on at this moment is left out."""
    stages = {stage.key: stage for plan in plans for stage in plan.stages}
    kept = {stage.name for stage in stages.values()}
    artifacts = [record.path for record in store.records() if record.key not in stages and record.path.name not in kept]
    drafts = [
        draft
        for draft in sorted((store.root / "drafts").glob("*"))
        if draft.name.rpartition("-")[2] not in stages and not _in_use(store, draft.name.rpartition("-")[2])
    ]
    return artifacts + drafts


def size_of(directory: Path) -> int:
    """Bytes of the files below a directory."""
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def remove(directories: Iterable[Path]) -> None:
    """Remove them, each record first, so that a kill leaves nothing that looks finished."""
    for directory in directories:
        (directory / "record.json").unlink(missing_ok=True)
        shutil.rmtree(directory)


def _in_use(store: Store, key: str) -> bool:
    try:
        with FileLock(str(store.root / "locks" / f"{key}.lock"), timeout=0):
            return False
    except Timeout:
        return True

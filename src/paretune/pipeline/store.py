"""The store: one directory an artifact, complete or not there at all.

A stage writes into its draft on the same disk, the record last, and one rename makes the artifact. One lock file a key keeps
two runs from doing the same work. Nothing is ever changed in an artifact, and a failure leaves nothing but its draft.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from paretune.errors import StoreError
from paretune.pipeline.records import Record, read_record, write_record
from paretune.pipeline.stage import Artifact, Stage

SCHEMA = 1


class Store:
    """Artifacts below `root`; StoreError if it cannot be made, or was made by a newer Paretune."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.events_file = root / "events.jsonl"

    def prepare(self) -> None:
        """Make the directories; raises StoreError where that is not possible."""
        try:
            for directory in (self.root, self.root / "drafts", self.root / "locks"):
                directory.mkdir(parents=True, exist_ok=True)
            marker = self.root / "store.json"
            if not marker.exists():
                marker.write_text(json.dumps({"schema": SCHEMA}), encoding="utf-8")
        except OSError as error:
            raise StoreError(f"{self.root}: the store cannot be made ({error.strerror}); choose another with --store") from None
        self.check()

    def check(self) -> None:
        """StoreError if a newer Paretune made this store."""
        marker = self.root / "store.json"
        if marker.exists() and json.loads(marker.read_text(encoding="utf-8"))["schema"] > SCHEMA:
            raise StoreError(f"{self.root}: a store of a newer Paretune; update Paretune, or choose another with --store")

    def find(self, stage: Stage) -> Record | None:
        """The record of a finished stage, or None."""
        directory = self.root / stage.name
        if not (directory / "record.json").exists():
            return None
        record = read_record(directory)
        return record if record.key == stage.key else None

    def artifact(self, stage: Stage) -> Artifact:
        """A finished stage with its parents; StoreError if one of them is not there."""
        record = self.find(stage)
        if record is None:
            raise StoreError(f"{self.root / stage.name}: not there; run the study first")
        parents = {role: self.artifact(parent) for role, parent in stage.inputs.items()}
        return Artifact(self.root / stage.name, record, parents)

    def records(self) -> Iterator[Record]:
        """All records, in the order of their directories' names."""
        for file in sorted(self.root.glob("*/record.json")):
            yield read_record(file.parent)

    def draft(self, stage: Stage) -> Path:
        """The directory that a stage writes into; the same for every attempt at the same key."""
        directory = self.root / "drafts" / f"{stage.kind}-{stage.key}"
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def commit(self, stage: Stage, record: Record) -> None:
        """Turn the draft into the artifact: record last, then one rename."""
        draft, target = self.draft(stage), self.root / stage.name
        if target.exists():
            # A directory without a valid record of this key is left over from a damaged disk or a deleted record.
            shutil.rmtree(target)
        write_record(record, draft)
        for file in draft.rglob("*"):
            if file.is_file():
                _flush(file)
        draft.rename(target)
        _flush(self.root)

    @contextmanager
    def lock(self, stage: Stage) -> Iterator[None]:
        """Held while a stage is worked on; waits for another run that does the same."""
        with FileLock(str(self.root / "locks" / f"{stage.key}.lock")):
            yield


def describe_files(directory: Path) -> dict[str, dict[str, object]]:
    """Size and SHA-256 of every file below `directory`, by relative path."""
    described: dict[str, dict[str, object]] = {}
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, hashlib.sha256).hexdigest()
        described[file.relative_to(directory).as_posix()] = {"bytes": file.stat().st_size, "sha256": digest}
    return described


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

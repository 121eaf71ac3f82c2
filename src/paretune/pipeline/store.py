"""The store: one directory an artifact, complete or not there at all.

A stage writes into its draft on the same disk, the record last, and one rename makes the artifact. Beside the draft stands what
a killed attempt leaves for the next one to go on from. One lock file a key keeps two runs from doing the same work. Nothing is
ever changed in an artifact, and a failure leaves nothing that counts as one.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from paretune.errors import StoreError
from paretune.pipeline.records import Divergence, Record, read_record, write_record, write_whole
from paretune.pipeline.stage import CHECKPOINT, Artifact, Stage, resume_of

SCHEMA = 1


_BACK = "run again once it is back, to go on, or to begin anew"


class Store:
    """Artifacts below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.events_file = root / "events.jsonl"

    def prepare(self) -> None:
        """Make the directories; StoreError where that is not possible, or where nothing can be written into them."""
        try:
            for directory in (self.root, self.root / "drafts", self.root / "locks"):
                directory.mkdir(parents=True, exist_ok=True)
            if not self.exists():
                # In one rename: another run may read it at this moment.
                write_whole(self._marker, json.dumps({"schema": SCHEMA}))
            self.events_file.open("a", encoding="utf-8").close()
        except OSError as error:
            raise StoreError(
                f"{self.root}: the store cannot be written ({error.strerror}); choose another with --store"
            ) from None
        self.check()

    def check_there(self) -> None:
        """StoreError if the store was removed, or its share is gone, which a run that is on finds out so."""
        try:
            there = self.exists()
        except OSError as error:
            raise StoreError(f"{self.root}: the store cannot be reached any more ({error.strerror}); {_BACK}") from None
        if not there:
            raise StoreError(f"{self.root}: the store is gone, removed while the study ran, or with its disk or share; {_BACK}")

    def exists(self) -> bool:
        """Whether the directory is a store."""
        return self._marker.exists()

    def check(self) -> None:
        """StoreError if a newer Paretune made this store."""
        if not self.exists():
            return
        try:
            newer = json.loads(self._marker.read_text(encoding="utf-8"))["schema"] > SCHEMA
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self._marker}: cannot be read ({error}); remove it, and it is made again") from None
        if newer:
            raise StoreError(f"{self.root}: a store of a newer Paretune; update Paretune, or choose another with --store")

    def find(self, stage: Stage) -> Record | None:
        """The record of a finished stage, or None; StoreError for an artifact that is not whole."""
        directory = self.root / stage.name
        if not (directory / "record.json").exists():
            return None
        record = read_record(directory)
        if record.key != stage.key:
            raise StoreError(
                f"{directory}: holds a stage whose key begins alike ({record.key}); choose another store with --store"
            )
        for name, file in record.files.items():
            if not (directory / name).is_file() or (directory / name).stat().st_size != file["bytes"]:
                raise StoreError(f"{directory}: `{name}` is not as recorded; remove the directory, and the stage runs again")
        return record

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

    def open_draft(self, stage: Stage) -> Path:
        """An empty directory for a stage to write into, with what a killed attempt left to go on from beside it."""
        draft = self._draft(stage)
        if draft.exists():
            # A file of the killed attempt that this one does not write again would otherwise become part of the artifact.
            shutil.rmtree(draft)
        draft.mkdir()
        resume_of(draft).mkdir(exist_ok=True)
        return draft

    def has_draft(self, stage: Stage) -> bool:
        """Whether the draft of a stage at work is still there."""
        return self._draft(stage).exists()

    def commit(self, stage: Stage, record: Record) -> None:
        """Turn the draft into the artifact: record last, then one rename."""
        draft, target = self._draft(stage), self.root / stage.name
        write_record(record, draft)
        for path in (*draft.rglob("*"), draft):
            flush(path)
        if target.exists():
            # Without a record (`find` has seen to that): somebody removed part of it.
            leftover = draft.with_name(f"{draft.name}.damaged")
            shutil.rmtree(leftover, ignore_errors=True)
            target.rename(leftover)
            shutil.rmtree(leftover)
        draft.rename(target)
        flush(self.root)
        self.forget_attempts(stage)

    def places(self, stage: Stage) -> tuple[Path, Path]:
        """Where the files of a stage stand: the artifact, or what an attempt that has not ended can go on from."""
        return self.root / stage.name, resume_of(self._draft(stage))

    def note_use(self, stage: Stage) -> None:
        """Date a finished stage by its last use, which is what `clean` goes by."""
        with suppress(OSError):  # somebody else's
            os.utime(self.root / stage.name)

    def drop_draft(self, stage: Stage) -> None:
        """Remove the draft of a failed attempt, on a disk that may be full; what it left to go on from stays."""
        shutil.rmtree(self._draft(stage), ignore_errors=True)
        with suppress(OSError):  # where it is not empty
            resume_of(self._draft(stage)).rmdir()

    def checkpoint_step(self, stage: Stage) -> int | None:
        """The optimizer step that the next attempt at a training goes on from; None where it begins again."""
        checkpoints = resume_of(self._draft(stage)).glob(f"{CHECKPOINT}*")
        return max((int(path.name.removeprefix(CHECKPOINT)) for path in checkpoints), default=None)

    def forget_attempts(self, stage: Stage) -> None:
        """Remove what unfinished attempts at a finished stage have left."""
        shutil.rmtree(resume_of(self._draft(stage)), ignore_errors=True)

    def note_divergence(self, stage: Stage, divergence: Divergence) -> None:
        """Remember that a training ends in no number: no artifact, but a trial that diverged has lost and is not run again."""
        target = self._divergence(stage)
        target.parent.mkdir(exist_ok=True)
        write_whole(target, json.dumps(asdict(divergence)))

    def divergence(self, stage: Stage) -> Divergence | None:
        """How an earlier attempt at a training ended, where it diverged."""
        try:
            return Divergence(**json.loads(self._divergence(stage).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise StoreError(
                f"{self._divergence(stage)}: cannot be read ({error}); remove it, and the stage runs again"
            ) from None

    @contextmanager
    def lock(self, stage: Stage, on_wait: Callable[[], object]) -> Iterator[None]:
        """Held while a stage is worked on; waits for another run that does the same, after calling `on_wait`.

        A file system without locks (some network shares) gets a file that names its holder: one of a killed process of this
        machine is taken over, one of another machine is waited for.
        """
        file = self.root / "locks" / f"{stage.key}.lock"
        lock: BaseFileLock = FileLock(file)
        try:
            try:
                lock.acquire(blocking=False)
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                    raise
                lock = SoftFileLock(file.with_suffix(".held"))
                lock.acquire(blocking=False)
        except Timeout:
            on_wait()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @property
    def _marker(self) -> Path:
        return self.root / "store.json"

    def _divergence(self, stage: Stage) -> Path:
        return self.root / "diverged" / f"{stage.kind}-{stage.key}.json"

    def _draft(self, stage: Stage) -> Path:
        return self.root / "drafts" / f"{stage.kind}-{stage.key}"


def describe_files(directory: Path) -> dict[str, dict[str, object]]:
    """Size and SHA-256 of every file below `directory`, by relative path."""
    described: dict[str, dict[str, object]] = {}
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, hashlib.sha256).hexdigest()
        described[file.relative_to(directory).as_posix()] = {"bytes": file.stat().st_size, "sha256": digest}
    return described


def flush(path: Path) -> None:
    """Have the disk hold a file or directory before what follows."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

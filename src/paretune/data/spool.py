"""Values that are more than memory holds: written one after the other, then read in any order."""

import mmap
import pickle
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


class Spool(Generic[T]):
    """A list on disk, in a file without a name that goes with it, mapped into memory: 8 bytes a value stay, which are counted.

    Values are pickled, so those of one process alone are read here.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115  open as long as this is
        self._ends = array("q", [0])
        self._mapped = memoryview(b"")

    def __del__(self) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, value: T) -> None:
        written = self._file.write(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
        self._ends.append(self._ends[-1] + written)

    def __getitem__(self, index: int) -> T:
        if len(self._mapped) < self._ends[-1]:
            self._file.flush()
            self._mapped = memoryview(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))
        value: T = pickle.loads(self._mapped[self._ends[index] : self._ends[index + 1]])
        return value

    def __iter__(self) -> Iterator[T]:
        return map(self.__getitem__, range(len(self)))

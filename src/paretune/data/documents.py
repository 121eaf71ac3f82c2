"""What a data stage has written, without holding all of it: rows one after the other, and documents by name."""

from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_READ_ROWS = 500


def document_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of `documents.parquet`, some of the file at a time."""
    import pyarrow.parquet

    # It would keep what it has read of every row group before.
    batches = pyarrow.parquet.ParquetFile(file, pre_buffer=False).iter_batches(batch_size=_READ_ROWS)
    return (row for batch in batches for row in batch.to_pylist())


class DocumentTexts(Mapping[str, str]):
    """The texts of documents, the records of each joined by line ends, in the order in which they were added.

    `text_of` reads one record by its number. Memory: the names and some 130 bytes a document, 16 bytes a record.
    """

    def __init__(self, text_of: Callable[[int], str]) -> None:
        self._text_of = text_of
        self._codes: dict[str, int] = {}
        self._documents, self._records = array("q"), array("q")
        self._grouped: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, document: str, record: int) -> int:
        """Returns the number of the document, in the order in which they first occur."""
        code = self._codes.setdefault(document, len(self._codes))
        self._documents.append(code)
        self._records.append(record)
        self._grouped = None
        return code

    def __getitem__(self, document: str) -> str:
        code = self._codes[document]
        if self._grouped is None:
            documents = np.asarray(self._documents)
            ends = np.cumsum(np.bincount(documents, minlength=len(self._codes)))
            self._grouped = np.asarray(self._records)[np.argsort(documents, kind="stable")], np.append(0, ends)
        records, bounds = self._grouped
        return "\n".join(map(self._text_of, records[bounds[code] : bounds[code + 1]].tolist()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._codes)

    def __len__(self) -> int:
        return len(self._codes)

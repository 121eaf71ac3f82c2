"""`tokens.arrow`: the tokens of a dataset, written a batch at a time, and read from the mapped file a row at a time."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paretune.errors import DataError
from paretune.study.data import SPLITS

FILE, FORMER = "tokens.arrow", "tokens.parquet"
"""What is written, and what was before: that is read whole."""
_BATCH_TOKENS, _BATCH_ROWS = 2**18, 10_000


class TokenWriter:
    """Rows in batches of so many tokens, so that what waits in memory does not grow with the data."""

    def __init__(self, file: pa.ipc.RecordBatchFileWriter, schema: pa.Schema) -> None:
        self._file, self._schema = file, schema
        self._lists = [field.name for field in schema if field.type == pa.list_(pa.int32())]
        self._rows: list[Mapping[str, Any]] = []
        self._tokens = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """`row` has the columns of the schema."""
        # As arrays, which take an eighth of what lists of numbers do.
        self._rows.append({**row, **{name: array("i", row[name]) for name in self._lists}})
        self._tokens += sum(len(row[name]) for name in self._lists)
        if self._tokens >= _BATCH_TOKENS or len(self._rows) >= _BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        columns = {name: [row[name] for row in self._rows] for name in self._schema.names}
        columns |= {name: list(map(np.asarray, columns[name])) for name in self._lists}
        self._file.write_table(pa.table(columns, self._schema))
        self._rows, self._tokens = [], 0


@contextmanager
def writing_tokens(directory: Path, schema: pa.Schema) -> Iterator[TokenWriter]:
    """A writer of `tokens.arrow` in `directory`."""
    with pa.ipc.new_file(str(directory / FILE), schema) as file:
        writer = TokenWriter(file, schema)
        yield writer
        writer.flush()


class TokenRows(Sequence[dict[str, Any]]):
    """Rows of tokens, some or all of a table's; ids are numpy int32.

    Of a dataset with tasks a row has `context`, `prompt`, `completion` and `end` as ids, and `ids` is all but the last.
    """

    def __init__(self, table: pa.Table, numbers: np.ndarray) -> None:
        self.numbers = numbers
        """Of the rows in the table."""
        self._table = table
        self._columns = {name: table[name] for name in table.column_names}
        self._lists = [field.name for field in table.schema if field.type == pa.list_(pa.int32())]

    @property
    def has_tasks(self) -> bool:
        return "task" in self._columns

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> "TokenRows": ...
    def __getitem__(self, index: int | slice) -> "dict[str, Any] | TokenRows":
        if isinstance(index, slice):
            return TokenRows(self._table, self.numbers[index])
        number = int(self.numbers[index])
        row = {name: column[number] for name, column in self._columns.items()}
        row = {name: value.values.to_numpy() if name in self._lists else value.as_py() for name, value in row.items()}
        if self.has_tasks:
            row["ids"] = np.concatenate([row[name] for name in ("context", "prompt", "completion")])
        return row

    def column(self, name: str) -> pa.ChunkedArray:
        """The values of a column, without those of the others."""
        return self._table[name].take(self.numbers)

    def lengths(self, name: str) -> np.ndarray:
        """Tokens of a column of ids in each row."""
        lengths: np.ndarray = pc.list_value_length(self._table[name]).to_numpy()[self.numbers]
        return lengths

    def of_split(self, split: str) -> "TokenRows":
        return self.where(pc.equal(self.column("split"), split).to_numpy())

    def ids_of(self, name: str, index: int) -> np.ndarray:
        """A column of ids of one row, mapped."""
        ids: np.ndarray = self._columns[name][int(self.numbers[index])].values.to_numpy()
        return ids

    def value_of(self, name: str, index: int) -> Any:
        """A value of one row, without the others of its column."""
        return self._columns[name][int(self.numbers[index])].as_py()

    def where(self, chosen: np.ndarray) -> "TokenRows":
        """The rows where `chosen` is true."""
        return TokenRows(self._table, self.numbers[chosen])


def read_tokens(directory: Path, split: str | None = None) -> TokenRows:
    """The tokens of a dataset, of one split or all."""
    if (directory / FILE).exists() or not (directory / FORMER).exists():
        table = pa.ipc.open_file(pa.memory_map(str(directory / FILE))).read_all()
    else:
        table = pq.read_table(directory / FORMER)
    rows = TokenRows(table, np.arange(len(table)))
    return rows if split is None else rows.of_split(split)


def values_of(rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """A column of rows, without the others where they are on disk."""
    return rows.column(name).to_pylist() if isinstance(rows, TokenRows) else [row[name] for row in rows]


def lengths_of(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """Tokens of a column of ids in each row."""
    return rows.lengths(name) if isinstance(rows, TokenRows) else np.array([len(row[name]) for row in rows], np.int64)


def ids_of(rows: Sequence[Mapping[str, Any]], name: str, index: int) -> np.ndarray:
    """A column of ids of one row."""
    ids: np.ndarray = rows.ids_of(name, index) if isinstance(rows, TokenRows) else rows[index][name]
    return ids


def kept_counts(tokens: TokenRows) -> dict[str, int]:
    """Documents, examples and bytes of each split that are left after what is too long: what is trained and scored on."""
    counts = dict[str, int]()
    for split in SPLITS:
        of_split = tokens.of_split(split)
        counts[f"kept_documents_{split}"] = len(of_split.column("document").unique())
        counts[f"kept_examples_{split}"] = len(of_split)
        counts[f"kept_bytes_{split}"] = pc.sum(of_split.column("bytes")).as_py() or 0
    return counts


def refuse_empty_split(tokens: TokenRows, max_length: int, way_out: str) -> None:
    """DataError if what is left of a split is nothing."""
    filled = set(tokens.column("split").unique().to_pylist())
    empty = [split for split in SPLITS if split not in filled]
    if empty:
        raise DataError(f"no document of the {empty[0]} split fits into {max_length} tokens; {way_out}")

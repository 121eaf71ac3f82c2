"""Records of a source: files of the formats that people have, hub datasets, and what ships with the package.

`iterate_rows` holds one record at a time of all but json files, and texts that are cut at marks, which are read whole: ten
million lines need no more memory than the longest. Every complaint names file, line or row, what stands there, and a way out.
"""

import csv
import itertools
import json
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from paretune.data.files import MAX_LINE_BYTES, MAX_WHOLE_BYTES, lines, opened, opened_as_is, text_chunks, whole_text
from paretune.data.json_text import UnusableJson, parse_json
from paretune.data.newsroom import articles
from paretune.errors import DataError, NeedsError
from paretune.pipeline.data_files import data_files, format_of_file
from paretune.pipeline.hub import DATASET, open_dataset, resolve_commit
from paretune.pipeline.machine import way_to
from paretune.study.base import shown, suggestion, ticked
from paretune.study.data import Source
from paretune.study.formats import no_format

if TYPE_CHECKING:
    import pyarrow

BLOCK_CHARACTERS = 4000
"""Of a text whose source names no other way to cut it."""
BUILTIN = ("newsroom",)
"""Datasets that ship with the package."""
DELIMITERS = (";", "\t", "|")
"""Of csv files, beside the comma."""
FRONT_MATTER = "front matter"
NAME_CHARACTERS = 80
"""Of a chapter's heading as the name of a document."""
_CUTS = tuple(
    re.compile(pattern)
    for pattern in (r"\n[ \t]*\n\s*", r"\n", r"[.!?\u2026][\"'\u201d\u2019)\]]*\s+|[\u3002\uff01\uff1f]", r"\s+")
)
"""Where a block may end, best first: blank line, line end, sentence end, white space."""
_CELL_ERROR = re.compile(r"#(REF!|N/A|VALUE!|DIV/0!|NAME\?|NUM!|NULL!|SPILL!|CALC!)")
_NO_RESULT = re.compile(rb"(</f>|<f\b[^>]*/>)(<v\s*/>|<v></v>)?</c>")
"""A formula in a cell of a sheet that holds no value beside it."""
_BLANK_LINES = re.compile(r"\A(?:[^\S\n]*\n)*")


class Row(NamedTuple):
    """A record and where it stands, for messages: `articles.jsonl: line 12`."""

    where: str
    values: dict[str, Any]


def iterate_rows(source: Source, path: str | Sequence[str]) -> Iterator[Row]:
    """Records of `source` in order; `path` is where its `path` or paths are, and is ignored for hub and built-in sources.

    Values are JSON types, dates and decimals; csv values are all text; a missing value (null, NaN) is None.
    Raises DataError for anything wrong with a file, NeedsError where it is missing or the hub cannot be reached.
    """
    if source.hub is not None:
        rows, name = _hub_rows(source), f"hub dataset `{source.hub}`"
    elif source.builtin is not None:
        name = f"built-in dataset `{source.builtin}`"
        if source.builtin not in BUILTIN:
            raise DataError(f"{name}: there is none of that name{suggestion(source.builtin, BUILTIN)}")
        rows = (Row(f"{name}: record {number}", values) for number, values in enumerate(articles(), 1))
    else:
        paths = [path] if isinstance(path, str) else path
        rows, name = _rows_of_files(source, [Path(each) for each in paths]), ", ".join(paths)
    row = None
    for row in rows:
        yield row
    if row is None:
        raise DataError(f"{name}: holds no records; a dataset needs at least one for each split")


def _rows_of_files(source: Source, paths: Sequence[Path]) -> Iterator[Row]:
    files = [file for path in paths for file in data_files(path, source.format)]
    folder = os.path.commonpath([file.absolute().parent for file in files])
    for file in files:
        format = source.format or source.resolved_format or format_of_file(file)
        if file.is_dir():
            yield from _saved_rows(file)
        elif format is None:
            raise DataError(f"{file}: {no_format(file.name)}")
        elif format == "text" and len(files) > 1:
            yield from _text_rows(source, file, os.path.relpath(file, folder))
        else:
            yield from _READERS[format](source, file)


def _jsonl_rows(_: Source, path: Path) -> Iterator[Row]:
    for number, line in lines(path):
        if line.strip():
            where = f"{path}: line {number}"
            yield Row(where, _object(_parsed(line, where, whole_line=line.endswith("\n")), where))


def _json_rows(_: Source, path: Path) -> Iterator[Row]:
    text = whole_text(path)
    if not text.strip():
        return
    value, where = _parsed(text, str(path), lines=True), str(path)
    if isinstance(value, dict):
        names = [name for name, item in value.items() if isinstance(item, list)]
        if len(names) != 1:
            lists = f"several ({ticked(names)})" if names else "none"
            raise DataError(
                f"{path}: an object as a dataset holds exactly one list, the records; this one holds {lists}. "
                "Write the records as a list, or one record a line with `format: jsonl`"
            )
        value, where = value[names[0]], f"{path}: `{names[0]}`"
    if not isinstance(value, list):
        raise DataError(f"{path}: expected a list of records, or an object that holds one, got {shown(value)}")
    for number, item in enumerate(value, 1):
        yield Row(f"{where}: record {number}", _object(item, f"{where}: record {number}"))


def _object(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    hint = "; is the file one JSON list? then `format: json`" if isinstance(value, list) else ""
    raise DataError(f'{where}: a record is an object like {{"text": "..."}}, got {shown(value)}{hint}')


def _parsed(text: str, where: str, *, lines: bool = False, whole_line: bool = True) -> Any:
    """JSON `text`. With `lines` the text is a whole file, and `where` is completed with the line of the mistake."""
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        at = f"{where}: line {error.lineno}, column {error.colno}" if lines else f"{where}, column {error.colno}"
        if not whole_line or (lines and (not text[error.pos :].strip() or error.msg.startswith("Unterminated string"))):
            raise DataError(f"{at}: the file ends in the middle of a record; was it copied whole?") from None
        hint = "" if lines or text.strip() not in "[{" else "; a record over several lines needs `format: json`"
        raise DataError(
            f"{at}: not JSON ({error.msg}), got {shown(text[error.pos :][:40].strip() or text.strip()[-40:])}{hint}"
        ) from None
    except UnusableJson as error:
        at = where
        if lines and error.literal:
            tokens = re.finditer(rf'"(?:[^"\\]|\\.)*"|(?<![\w.+-])({re.escape(error.literal)})', text)
            at += f": line {text.count(chr(10), 0, next((token.start() for token in tokens if token[1]), 0)) + 1}"
        raise DataError(f"{at}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: JSON that cannot be read ({error}); repair or leave out the record") from None


def _named_columns(source: Source, header: Sequence[str] | None, where: str) -> list[str]:
    """The names of a table's columns: its own, or those of `columns`; DataError where they do not fit, or one stands twice."""
    columns = list(source.columns or header or ())
    if header is not None and len(columns) != len(header):
        raise DataError(f"{where}: `columns` names {len(columns)} columns, the header has {len(header)}: {ticked(header)}")
    twice = [name for name, times in Counter(columns).items() if times > 1]
    if twice:
        raise DataError(f"{where}: two columns are called `{twice[0]}`; give `columns: [...]` with different names")
    return columns


def _csv_rows(source: Source, path: Path) -> Iterator[Row]:
    """Rows under the names of the header or of `columns`; empty lines between rows are no rows."""
    columns, header = list(source.columns or ()), None
    # The module's own limit of 131,072 characters a field is short for an article; a field is at most a line of ours or many.
    csv.field_size_limit(MAX_LINE_BYTES)
    unix_lines = (line.replace("\r\n", "\n") for _, line in lines(path))
    first = next(unix_lines, "")
    separator = separator_of(first)
    delimiter = source.delimiter or separator or ("\t" if {".tsv", ".tab"} & set(map(str.lower, path.suffixes)) else ",")
    reader = csv.reader(unix_lines if separator else itertools.chain([first], unix_lines), delimiter=delimiter, strict=True)
    while True:
        where = f"{path}: line {reader.line_num + 1 + bool(separator)}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            what = "a quoted field never ends" if "end of data" in str(error) else f"not a csv row ({error})"
            raise DataError(
                f"{where}: {what}; a quote inside a quoted field is written twice, and `delimiter:` is {delimiter!r}"
            ) from None
        if not fields:
            continue
        if source.header and header is None:
            header = [name.strip() for name in fields]
            columns = _named_columns(source, header, f"{path}: line 1")
            continue
        if len(fields) != len(columns):
            named_by = "the header names" if source.header and not source.columns else "`columns` names"
            other = next((mark for mark in DELIMITERS if len(columns) == 1 and mark in columns[0]), "")
            hint = f"is the delimiter another, `delimiter: {json.dumps(other)}`?" if other else "is `delimiter:` right?"
            hint = hint if other or len(fields) == 1 else "a field that holds the delimiter must stand in quotes"
            raise DataError(
                f"{where}: {len(fields)} field{'' if len(fields) == 1 else 's'}, {named_by} {len(columns)} "
                f"({ticked(columns)}), got {shown(fields[:3])}; {hint}"
            )
        yield Row(where, dict(zip(columns, fields, strict=True)))


def separator_of(first_line: str) -> str | None:
    """What a first line like `sep=;` names, by which spreadsheets tell how a CSV file is to be read; it is no row."""
    match = re.fullmatch(r'"?sep=(.)"?\s*', first_line, re.IGNORECASE)
    return match[1] if match else None


def _parquet_rows(_: Source, path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    with opened_as_is(path) as file:
        try:
            parquet = pyarrow.parquet.ParquetFile(file, pre_buffer=False)  # it would keep what it has read
            records = (values for batch in parquet.iter_batches(batch_size=1000) for values in batch.to_pylist())
            yield from _numbered(records, parquet.schema_arrow, str(path))
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: not a Parquet file, or a damaged one ({_first_line(error)}); write it again") from None


def _numbered(records: Iterable[Mapping[str, Any]], schema: "pyarrow.Schema", where: str) -> Iterator[Row]:
    for number, values in enumerate(records, 1):
        yield Row(f"{where}: row {number}", {name: _plain(value, schema.field(name).type) for name, value in values.items()})


def _plain(value: Any, type: "pyarrow.DataType") -> Any:
    """A value of Arrow as a record has it, also inside of others.

    A missing number, which pandas and Arrow store as NaN, is None. A float of 16 or 32 bits is the shortest number that gives
    it back: 0.1, not 0.10000000149011612.
    """
    import pyarrow

    if value is None or value != value:
        return None
    if pyarrow.types.is_dictionary(type):
        return _plain(value, type.value_type)
    if pyarrow.types.is_float16(type) or pyarrow.types.is_float32(type):
        return float(str(type.to_pandas_dtype()(value)))
    if pyarrow.types.is_struct(type):
        return {name: _plain(item, type.field(name).type) for name, item in value.items()}
    if pyarrow.types.is_map(type):
        return [(name, _plain(item, type.item_type)) for name, item in value]
    return [_plain(item, type.value_type) for item in value] if isinstance(value, list) else value


def _xlsx_rows(source: Source, path: Path) -> Iterator[Row]:
    """Rows of a sheet below its header; a formula is its value. Needs openpyxl."""
    try:
        import openpyxl
    except ModuleNotFoundError:
        raise NeedsError(f"{path}: .xlsx needs {way_to('openpyxl', '')}; or save it as .csv") from None
    with opened_as_is(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                size = sum(part.file_size for part in archive.infolist())
                if size > MAX_WHOLE_BYTES:
                    raise DataError(f"{path}: holds {size:,} bytes when unpacked; save it as .csv, which is read line by line")
                for name in archive.namelist():
                    if name.startswith("xl/worksheets/") and _NO_RESULT.search(archive.read(name)):
                        raise DataError(
                            f"{path}: holds formulas without their results, as programs write it that do not calculate; "
                            "open it in a spreadsheet program and save it"
                        )
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
            filled = [sheet.title for sheet in book.worksheets if next(_filled(sheet), None) is not None]
        except (zipfile.BadZipFile, KeyError, OSError, ValueError) as error:
            raise DataError(f"{path}: is no .xlsx file, or a damaged one ({_first_line(error)}); save it again") from None
        if source.sheet is not None and source.sheet not in book.sheetnames:
            raise DataError(f"{path}: no sheet `{source.sheet}`{suggestion(source.sheet, book.sheetnames)}")
        if source.sheet is None and len(filled) > 1:
            raise DataError(f"{path}: several sheets hold rows ({ticked(filled)}); say which, `sheet: {filled[0]}`")
        columns: list[str] | None = None if source.header else list(source.columns or ())
        for number, values in _filled(book[source.sheet or filled[0]]) if filled else ():
            where = f"{path}: row {number}"
            while values and values[-1] is None:
                values.pop()
            if columns is None:
                if None in values:
                    raise DataError(f"{where}: column {values.index(None) + 1} of the header has no name; write one")
                columns = _named_columns(source, [str(value).strip() for value in values], where)
                continue
            if len(values) > len(columns):
                raise DataError(
                    f"{where}: {len(values)} cells, the columns are {len(columns)} ({ticked(columns)}); does the table begin "
                    "in another row?"
                )
            for name, value in zip(columns, values, strict=False):
                if isinstance(value, str) and _CELL_ERROR.fullmatch(value):
                    raise DataError(f"{where}: `{name}` is {shown(value)}, an error of a formula; correct it in the sheet")
            values += [None] * (len(columns) - len(values))
            yield Row(where, dict(zip(columns, values, strict=True)))


def _filled(sheet: Any) -> Iterator[tuple[int, list[Any]]]:
    """Number and values of each row that holds some."""
    for number, values in enumerate(sheet.iter_rows(values_only=True), 1):
        if any(value is not None for value in values):
            yield number, list(values)


def _arrow_rows(_: Source, path: Path) -> Iterator[Row]:
    """Rows of an Arrow file or stream, or of Feather."""
    import pyarrow

    with opened(path) as file:
        try:
            is_file = file.peek(6).startswith(b"ARROW1")  # type: ignore[attr-defined]
            reader = pyarrow.ipc.open_file(file) if is_file else pyarrow.ipc.open_stream(file)
            batches = (reader.get_batch(n) for n in range(reader.num_record_batches)) if is_file else reader
            yield from _numbered((values for batch in batches for values in batch.to_pylist()), reader.schema, str(path))
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: not an Arrow file, or a damaged one ({_first_line(error)}); write it again") from None


def _saved_rows(folder: Path) -> Iterator[Row]:
    """Rows of what `Dataset.save_to_disk` of Hugging Face's datasets wrote."""
    import datasets

    try:
        data = datasets.load_from_disk(str(folder))
    except Exception as error:  # noqa: BLE001  whatever a damaged folder makes of it
        raise DataError(f"{folder}: is no folder of `save_to_disk`, or a damaged one ({_first_line(error)})") from None
    yield from _numbered(data, data.features.arrow_schema, str(folder))


def _hub_rows(source: Source) -> Iterator[Row]:
    name = str(source.hub)
    where = f"hub dataset `{name}` (config {source.config or 'default'}, split {source.split})"
    if Path(name).exists():
        raise DataError(f"{where}: a file or directory here has the same name and would be read instead; use `path:` for it")
    commit = source.revision or resolve_commit(DATASET, name, None, where)
    try:
        data = open_dataset(name, source.config, commit).as_dataset(split=source.split)
    except ValueError as error:
        raise DataError(f"{where}: {_first_line(error)}; choose another with `split:`") from None
    yield from _numbered(data, data.features.arrow_schema, f"hub dataset `{name}`")


def _text_rows(source: Source, path: Path, file: str = "") -> Iterator[Row]:
    """Pieces of a text; of several files each is named by its `file`, and is the whole unless it is said how it is cut."""
    by_marks = (source.start, source.end, source.chapters, source.separator)
    text = ""
    if any(mark is not None for mark in by_marks) or (file and source.is_uncut):
        text = whole_text(path).replace("\r\n", "\n").replace("\r", "\n")
    if source.start is not None:
        text = text[_first_match(source.start, text, path, "start").end() :]
    if source.end is not None:
        text = text[: _first_match(source.end, text, path, "end").start()]
    parts: Iterable[tuple[str, str]]
    if file and source.is_uncut:
        parts = [("", text)]
    elif source.chapters is not None:
        heading = re.compile(source.chapters, re.MULTILINE)
        lines = [line for line in re.finditer(r"^.*$", text, re.MULTILINE) if heading.search(line[0])]
        if not lines:
            some = next((line for line in text.splitlines() if line.strip()), "")[:60]
            raise DataError(f"{path}: no line matches `chapters: {source.chapters}`; a line of the text is {shown(some)}")
        names = [" ".join(line[0].split()) for line in lines]
        names = [name if len(name) <= NAME_CHARACTERS else name[: NAME_CHARACTERS - 3] + "..." for name in names]
        bounds = [0, *(line.start() for line in lines), len(text)]
        pieces = [text[begin:end] for begin, end in itertools.pairwise(bounds)]
        parts = list(zip([FRONT_MATTER, *names], pieces, strict=True))
    elif source.separator is not None:
        if source.separator not in text:
            begins = shown(text.strip()[:60])
            raise DataError(f"{path}: `separator: {source.separator!r}` does not occur; the text begins {begins}")
        pieces = [piece for piece in text.split(source.separator) if piece.strip()]
        parts = [(f"part {number}", piece) for number, piece in enumerate(pieces, 1)]
    else:
        chunks = [text] if source.start is not None or source.end is not None else text_chunks(path)
        cut = blocks(chunks, source.blocks or BLOCK_CHARACTERS)
        parts = ((f"block {number}", part) for number, part in enumerate(cut, 1))
    used: Counter[str] = Counter()
    for name, part in parts:
        if part.strip():
            name = ": ".join(filter(None, (file, name)))
            used[name] += 1
            document = name if used[name] == 1 else f"{name} ({used[name]})"
            where = str(path) if document == file else f"{path}: {document.removeprefix(f'{file}: ')}"
            # Without blank lines around it; the first line keeps its indentation.
            yield Row(where, {"text": _BLANK_LINES.sub("", part, count=1).rstrip(), "document": document})


def _first_match(pattern: str, text: str, path: Path, field: str) -> re.Match[str]:
    match = re.search(pattern, text, re.MULTILINE)
    if match is None:
        raise DataError(f"{path}: nothing matches `{field}: {pattern}`; the text begins {shown(text.strip()[:60])}")
    return match


def blocks(chunks: Iterable[str], size: int) -> Iterator[str]:
    """A text that comes in chunks, cut at the best places near every `size` characters, wherever the chunks end: pieces of
    `size / 4` to `1.5 * size`, nothing lost."""
    text, position = "", 0
    for chunk in chunks:
        text, position = text[position:] + chunk, 0
        while len(text) - position > size * 3 // 2:
            target = position + size
            cuts = (
                [match.end() for match in pattern.finditer(text, position + size // 2, position + size * 5 // 4)]
                for pattern in _CUTS
            )
            cut = min(next(filter(None, cuts), [target]), key=lambda end, target=target: abs(end - target))
            yield text[position:cut]
            position = cut
    yield text[position:]


_READERS: dict[str, Callable[[Source, Path], Iterator[Row]]] = {
    "jsonl": _jsonl_rows,
    "json": _json_rows,
    "csv": _csv_rows,
    "parquet": _parquet_rows,
    "text": _text_rows,
    "xlsx": _xlsx_rows,
    "arrow": _arrow_rows,
}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

import json
import math
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from paretune.data import files
from paretune.data.sources import blocks, iterate_rows
from paretune.errors import DataError, NeedsError
from paretune.study.data import Source


def read_records(source: Source, place: str) -> list[dict[str, Any]]:
    return [row.values for row in iterate_rows(source, place)]


def records_of(file: Path, **fields: Any) -> list[dict[str, Any]]:
    return read_records(Source(path=file.name, **fields), str(file))


def written(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_jsonl_is_read_with_byte_order_mark_windows_line_ends_and_blank_lines(tmp_path: Path) -> None:
    file = written(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"text": "\xc3\xa9", "tags": ["x", null]}\r\n\r\n{"text": "b"}')
    assert records_of(file) == [{"text": "é", "tags": ["x", None]}, {"text": "b"}]


def test_rows_say_where_they_stand(tmp_path: Path) -> None:
    file = written(tmp_path, "a.jsonl", '{"text": "a"}\n\n{"text": "b"}\n')
    assert [row.where for row in iterate_rows(Source(path="a.jsonl"), str(file))] == [f"{file}: line 1", f"{file}: line 3"]
    csv = written(tmp_path, "a.csv", 'x,y\n1,"two\nlines"\n3,4\n')
    assert [row.where for row in iterate_rows(Source(path="a.csv"), str(csv))] == [f"{csv}: line 2", f"{csv}: line 4"]


@pytest.mark.parametrize("content", ['[{"a": 1}, {"a": 2}]', '{"version": "1", "rows": [{"a": 1}, {"a": 2}]}'])
def test_json_is_a_list_or_an_object_with_one_list(tmp_path: Path, content: str) -> None:
    assert records_of(written(tmp_path, "a.json", content)) == [{"a": 1}, {"a": 2}]


def test_csv_fields_may_hold_line_ends_quotes_and_more_than_131072_characters(tmp_path: Path) -> None:
    long = "word " * 40_000
    file = written(tmp_path, "a.csv", f'title,text\r\n"one ""two""","first\r\nsecond"\r\n\r\nx,{long}\r\n')
    assert records_of(file) == [{"title": 'one "two"', "text": "first\nsecond"}, {"title": "x", "text": long}]


@pytest.mark.parametrize("first", ["sep=;\n", '"sep=;"\r\n', "\ufeffSEP=;\n"])
def test_a_csv_may_begin_with_its_separator(tmp_path: Path, first: str) -> None:
    file = written(tmp_path, "a.csv", f"{first}x;y\n1;a,b\n2\n")
    rows = iterate_rows(Source(path="a.csv"), str(file))
    row = next(rows)
    assert (row.where, row.values) == (f"{file}: line 3", {"x": "1", "y": "a,b"})
    with pytest.raises(DataError, match="line 4: 1 field"):
        next(rows)
    assert records_of(written(tmp_path, "b.csv", "sep=;\nx|y\n1|;\n"), delimiter="|") == [{"x": "1", "y": ";"}]


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ('{"a": 1, "b": 2, "a": [3]}', "`a` stands twice in one object, with `1` and `[3]`; rename one of them"),
        ('{"x": [{"a": 1, "a": 1}]}', "`a` stands twice in one object"),
        ('{"t": "1e400", "a": 1e400}', "`1e400` is beyond the numbers that can be held; write it as a text"),
        ('{"a": -1e400}', "`-1e400` is beyond the numbers"),
        ('{"a": 1e-400}', "`1e-400` is beyond the numbers"),
    ],
)
def test_json_that_a_record_cannot_hold_is_refused(tmp_path: Path, record: str, told: str) -> None:
    with pytest.raises(DataError) as caught:
        records_of(written(tmp_path, "a.jsonl", f'{{"a": 0e9, "b": 0.5}}\n{record}\n'))
    assert f"a.jsonl: line 2: {told}" in str(caught.value)
    with pytest.raises(DataError) as caught:
        records_of(written(tmp_path, "a.json", f'[{{"a": 1}},\n{record}]'))
    assert f"a.json: {'' if 'twice' in told else 'line 2: '}{told}" in str(caught.value)


def test_narrow_floats_are_the_shortest_numbers_and_nan_is_missing_inside_of_values(tmp_path: Path) -> None:
    nested = pyarrow.struct([("score", pyarrow.float64()), ("weights", pyarrow.list_(pyarrow.float32()))])
    table = pyarrow.table(
        {
            "narrow": pyarrow.array([0.1, None, 16777216.0], pyarrow.float32()),
            "half": pyarrow.array([0.1, math.nan, 2.0], pyarrow.float16()),
            "wide": [0.1, math.nan, 1 / 3],
            "meta": pyarrow.array([{"score": math.nan, "weights": [0.7, math.nan]}, None, {"score": 1.0}], nested),
            "counts": pyarrow.array([[("a", 0.3)], [], None], pyarrow.map_(pyarrow.string(), pyarrow.float32())),
            "kind": pyarrow.array(["x", None, "x"]).dictionary_encode(),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    first, second, third = records_of(tmp_path / "a.parquet")
    of_first = {"narrow": 0.1, "half": 0.1, "wide": 0.1, "meta": {"score": None, "weights": [0.7, None]}}
    assert first == of_first | {"counts": [("a", 0.3)], "kind": "x"}
    assert second == dict.fromkeys(first) | {"counts": []}
    assert (third["narrow"], third["wide"], third["meta"]) == (16777216.0, 1 / 3, {"score": 1.0, "weights": None})


def test_csv_columns_name_what_has_no_header_and_rename_what_has(tmp_path: Path) -> None:
    file = written(tmp_path, "a.csv", "1;a\n2;\n")
    assert records_of(file, header=False, columns=("n", "text"), delimiter=";") == [
        {"n": "1", "text": "a"},
        {"n": "2", "text": ""},
    ]
    assert records_of(file, columns=("n", "text"), delimiter=";") == [{"n": "2", "text": ""}]
    assert records_of(written(tmp_path, "a.tsv", "n\ttext\n1\ta,b\n")) == [{"n": "1", "text": "a,b"}]


def test_parquet_keeps_nested_values_and_turns_nan_into_null(tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["a", None], "score": [math.nan, 1.5], "tags": [["x"], []]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert records_of(tmp_path / "a.parquet") == [
        {"text": "a", "score": None, "tags": ["x"]},
        {"text": None, "score": 1.5, "tags": []},
    ]


BOOK = "Licence\n*** START ***\n\n  A poem\n\nI. ONE\n\nfirst\n\nII. TWO\nsecond\n\n\nI. ONE\nthird\n*** END ***\nmore"


def test_text_is_cut_into_chapters_with_unique_names(tmp_path: Path) -> None:
    file = written(tmp_path, "book.txt", b"\xef\xbb\xbf" + BOOK.replace("\n", "\r\n").encode())
    fields = {"chapters": r"^[IVX]+\. ", "start": r"^\*\*\* START \*\*\*$", "end": r"^\*\*\* END"}
    assert records_of(file, **fields) == [
        {"text": "  A poem", "document": "front matter"},
        {"text": "I. ONE\n\nfirst", "document": "I. ONE"},
        {"text": "II. TWO\nsecond", "document": "II. TWO"},
        {"text": "I. ONE\nthird", "document": "I. ONE (2)"},
    ]


def test_blank_text_before_the_first_chapter_is_no_document(tmp_path: Path) -> None:
    file = written(tmp_path, "book.txt", "\n \n# One\nfirst\n# Two\nsecond\n")
    assert [record["document"] for record in records_of(file, chapters="^# ")] == ["# One", "# Two"]


def test_a_long_heading_is_shortened_for_its_name(tmp_path: Path) -> None:
    file = written(tmp_path, "book.txt", f"Once {'upon a time ' * 20}\nmore\n")
    (record,) = records_of(file, chapters="^Once")
    assert len(record["document"]) == 80
    assert record["text"].startswith("Once upon")


def test_text_is_cut_at_a_separator(tmp_path: Path) -> None:
    file = written(tmp_path, "a.txt", "one\n<|end|>\n\ntwo\n<|end|>\n<|end|>\n")
    assert records_of(file, separator="<|end|>") == [
        {"text": "one", "document": "part 1"},
        {"text": "two", "document": "part 2"},
    ]


def test_blocks_end_at_blank_lines_and_lose_nothing(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {n}. " + "It has some words. " * (5 + n % 7) for n in range(60)]
    text = "\n\n".join(paragraphs)
    pieces = list(blocks([text], 500))
    assert "".join(pieces) == text
    assert all(250 <= len(piece) <= 750 for piece in pieces[:-1])
    assert all(piece.endswith("\n\n") for piece in pieces[:-1])
    records = records_of(written(tmp_path, "a.txt", text), blocks=500)
    assert [record["document"] for record in records] == [f"block {n}" for n in range(1, len(pieces) + 1)]
    assert all(record["text"] == piece.rstrip() for record, piece in zip(records, pieces, strict=True))


@pytest.mark.parametrize(
    ("text", "end"),
    [("a line of text\n" * 200, "\n"), ("Some words here. " * 200, ". "), ("word " * 700, " "), ("x" * 3000, "x")],
)
def test_blocks_without_blank_lines_end_at_lines_sentences_words_or_anywhere(text: str, end: str) -> None:
    pieces = list(blocks([text], 400))
    assert "".join(pieces) == text
    assert len(pieces) > 1
    assert all(piece.endswith(end) and 100 <= len(piece) <= 600 for piece in pieces)


@pytest.mark.parametrize("length", [1, 7, 333, 5000])
def test_blocks_are_the_same_wherever_the_chunks_of_a_text_end(length: int) -> None:
    paragraphs = [f"Paragraph {n}. " + "It has some words. " * (5 + n % 7) for n in range(30)]
    text = "\n\n".join(paragraphs)
    chunks = [text[begin : begin + length] for begin in range(0, len(text), length)]
    assert list(blocks(chunks, 500)) == list(blocks([text], 500))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_text_in_chunks_is_the_text_with_line_ends_alike(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_CHUNK", 5)
    file = tmp_path / "a.txt"
    file.write_bytes("one\r\ntwo \u00e9\rthree\n\r\nfour".encode(encoding))
    assert "".join(files.text_chunks(file)) == "one\ntwo \u00e9\nthree\n\nfour"


def test_a_byte_that_is_none_of_a_text_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"one\n" * 400_000 + b"caf\xe9\n")
    with pytest.raises(DataError, match=r"a\.txt: line 400001: byte offset 1600003 \(0xe9\) is not UTF-8"):
        list(iterate_rows(Source(path=str(file)), str(file)))


def test_text_without_a_way_to_cut_it_is_blocks_of_4000_characters(tmp_path: Path) -> None:
    records = records_of(written(tmp_path, "a.txt", "Some words here. " * 1000))
    assert len(records) == 4


class Builder:
    """Stands for a prepared dataset of the hub; the hub itself is in tests/pipeline/test_hub.py."""

    def as_dataset(self, split: str) -> datasets.Dataset:
        if split != "validation":
            raise ValueError(f'Unknown split "{split}". Should be one of ["validation"].')
        return datasets.Dataset.from_list([{"text": "a", "score": math.nan}, {"text": None, "score": 1.0}])


def test_a_hub_dataset_is_read_at_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("paretune.data.sources.open_dataset", lambda *names: asked.append(names) or Builder())
    source = Source(hub="owner/name", config="small", split="validation", revision="abc")
    assert read_records(source, "owner/name") == [{"text": "a", "score": None}, {"text": None, "score": 1.0}]
    assert asked == [("owner/name", "small", "abc")]
    with pytest.raises(
        DataError, match=r"hub dataset `owner/name` .*split train\): Unknown split .* choose another with `split:`"
    ):
        read_records(Source(hub="owner/name", revision="abc"), "owner/name")


def test_a_directory_that_is_named_like_a_hub_dataset_is_not_read_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    with pytest.raises(DataError, match=r"hub dataset `owner/name`.*same name.*`path:`"):
        read_records(Source(hub="owner/name"), "owner/name")


def test_an_unknown_builtin_is_named() -> None:
    with pytest.raises(DataError, match=r"built-in dataset `newsrom`: .*did you mean `newsroom`"):
        read_records(Source(builtin="newsrom"), "builtin:newsrom")


GOOD = '{"text": "a"}\n'
BAD_FILES: list[tuple[str, bytes, dict[str, Any], list[str]]] = [
    ("a.jsonl", b"", {}, ["holds no records"]),
    ("a.jsonl", b"\n  \n", {}, ["holds no records"]),
    ("a.json", b"", {}, ["holds no records"]),
    ("a.json", b"[]", {}, ["holds no records"]),
    ("a.csv", b"", {}, ["holds no records"]),
    ("a.csv", b"title,text\n", {}, ["holds no records"]),
    ("a.txt", b" \n\n", {}, ["holds no records"]),
    ("a.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n', {}, ["line 2", "byte offset 27 (0xe9)", "UTF-8", "iconv"]),
    ("a.csv", b"text\nok\ncaf\xe9\n", {}, ["line 3", "byte offset 11 (0xe9)", "iconv"]),
    ("a.json", b'[{"text":\n"caf\xe9"}]', {}, ["line 2", "byte offset 14 (0xe9)", "iconv"]),
    ("a.txt", b"\xef\xbb\xbfone\n\xff", {}, ["line 2", "byte offset 7 (0xff)"]),
    ("a.jsonl", GOOD.encode("utf-16")[:-1], {}, ["line 1: is not UTF-16-LE, as the file begins", "copied whole"]),
    ("a.jsonl", (GOOD + '{"text": "b').encode(), {}, ["line 2", "ends in the middle of a record", "copied whole"]),
    ("a.json", b'[{"text": "a"},\n {"text": "b"},\n', {}, ["line 3", "ends in the middle of a record"]),
    ("a.jsonl", (GOOD + "{'text': 'b'}\n").encode(), {}, ["line 2, column 2", "not JSON", "'text'"]),
    ("a.json", b'[{"text": "a"}\n {"text": "b"}]', {}, ["line 2, column 2", "not JSON"]),
    ("a.jsonl", (GOOD + '"text"\n').encode(), {}, ["line 2", "a record is an object", '`"text"`']),
    ("a.jsonl", b'[{"text": "a"}]\n', {}, ["line 1", "`format: json`"]),
    ("a.jsonl", b'{\n"text": "a"\n}\n', {}, ["line 1", "over several lines", "`format: json`"]),
    ("a.json", b'[{"text": "a"}, 3]', {}, ["record 2", "a record is an object", "`3`"]),
    ("a.json", b'"text"', {}, ["a list of records", '`"text"`']),
    ("a.json", b'{"a": [], "b": []}', {}, ["several (`a`, `b`)", "exactly one list"]),
    ("a.json", b'{"a": 1}', {}, ["this one holds none", "`format: jsonl`"]),
    ("a.jsonl", (GOOD + '{"x": NaN}\n').encode(), {}, ["line 2", "`NaN` is no JSON value", "`null`"]),
    ("a.json", b'[{"x": "NaN"},\n{"x": -Infinity}]', {}, ["line 2", "`-Infinity` is no JSON value"]),
    ("a.jsonl", b"[" * 100_000 + b"\n", {}, ["line 1", "cannot be read", "recursion"]),
    ("a.csv", b"a,b\n1,2\n1,2,3\n", {}, ["line 3", "3 fields", "the header names 2 (`a`, `b`)", "in quotes"]),
    ("a.csv", b"a,b\n1\n", {}, ["line 2", "1 field,", "is `delimiter:` right?"]),
    ("a.csv", b"1,2\n", {"header": False, "columns": ("a",)}, ["line 1", "`columns` names 1 (`a`)"]),
    ("a.csv", b"a,b\n1,2\n", {"columns": ("x",)}, ["line 1", "names 1 columns, the header has 2: `a`, `b`"]),
    ("a.csv", b"a,a\n1,2\n", {}, ["line 1", "two columns are called `a`", "`columns: [...]`"]),
    ("a.csv", b'a,b\n1,2\n3,"never\nends\n', {}, ["line 3", "a quoted field never ends", "written twice"]),
    ("a.csv", b'a,b\n"x"y,2\n', {}, ["line 2", "not a csv row"]),
    ("a.parquet", b"PAR1 no, not really", {}, ["not a Parquet file"]),
    ("a.txt", b"one\ntwo\n", {"chapters": "^# "}, ["no line matches `chapters: ^# `", '`"one"`']),
    ("a.txt", b"one\ntwo\n", {"separator": "==="}, ["`separator: '==='` does not occur"]),
    ("a.txt", b"one\ntwo\n", {"start": "three"}, ["nothing matches `start: three`", '`"one\\ntwo"`']),
    ("a.txt", b"one\ntwo\n", {"start": "two", "end": "one"}, ["nothing matches `end: one`"]),
]


@pytest.mark.parametrize(("name", "content", "fields", "told"), BAD_FILES)
def test_a_bad_file_is_refused_with_place_value_and_way_out(
    tmp_path: Path, name: str, content: bytes, fields: dict[str, Any], told: list[str]
) -> None:
    file = written(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        records_of(file, **fields)
    message = str(caught.value)
    assert message.startswith(str(file))
    assert [part for part in told if part not in message] == []


def test_an_empty_parquet_file_holds_no_records(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="holds no records"):
        records_of(tmp_path / "a.parquet")


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    written(tmp_path, "articles.jsonl", GOOD)
    with pytest.raises(NeedsError, match=r"article.jsonl: no such file; did you mean `articles.jsonl`"):
        records_of(tmp_path / "article.jsonl")
    with pytest.raises(NeedsError, match=r"no such file; paths in a study are relative to the study file"):
        records_of(tmp_path / "elsewhere" / "x.jsonl")


def test_a_directory_and_a_device_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(DataError, match=r"a.jsonl: is a directory without data files \(it is empty\); name a file"):
        records_of(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"/dev/null: is no regular file"):
        read_records(Source(path="null", format="jsonl"), "/dev/null")


def test_a_file_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As root every file opens, so the system's answer is put in its place.
    def refuse(self: Path, *_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    file = written(tmp_path, "a.jsonl", GOOD)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"a.jsonl: cannot be read \(Permission denied\); check its permissions"):
        records_of(file)


def test_reading_stops_at_a_line_that_is_a_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 2**20)
    file = written(tmp_path, "a.jsonl", GOOD + json.dumps({"text": "x" * 2**20}) + "\n")
    with pytest.raises(DataError, match=r"line 2: is longer than 1 MiB.*the rest was not read.*one record a line"):
        records_of(file)


def test_a_json_file_that_is_too_large_for_one_piece_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_WHOLE_BYTES", 8)
    with pytest.raises(DataError, match=r"is larger than 0 GiB.*`format: jsonl`"):
        records_of(written(tmp_path, "a.json", '[{"text": "a"}]'))


def test_records_are_read_one_at_a_time(tmp_path: Path) -> None:
    file = written(tmp_path, "a.jsonl", GOOD * 3 + "broken\n")
    rows = iterate_rows(Source(path="a.jsonl"), str(file))
    assert [next(rows).values for _ in range(3)] == [{"text": "a"}] * 3
    with pytest.raises(DataError, match="line 4"):
        next(rows)

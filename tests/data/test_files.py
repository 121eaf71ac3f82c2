"""Files as people have them: packed, in wide encodings, in folders, as sheets and as other libraries save them."""

import bz2
import datetime
import gzip
import json
import lzma
import zipfile
from pathlib import Path
from typing import Any

import datasets
import openpyxl
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from paretune.data import files
from paretune.data.files import size_as_text
from paretune.data.sources import Row, iterate_rows
from paretune.errors import DataError, UserError
from paretune.study.data import Source

RECORDS = [{"text": f"line {n} é 一", "n": n} for n in range(3)]
JSONL = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)


def zstd(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


def rows_of(*paths: Path, **fields: Any) -> list[Row]:
    names = [path.name for path in paths]
    return list(iterate_rows(Source(path=names[0] if len(names) == 1 else tuple(names), **fields), list(map(str, paths))))


@pytest.mark.parametrize("suffix", PACKERS)
def test_packed_files_are_read_and_name_their_lines(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a.jsonl{suffix}"
    file.write_bytes(PACKERS[suffix](JSONL.encode()))
    rows = rows_of(file)
    assert [row.values for row in rows] == RECORDS
    assert rows[2].where == f"{file}: line 3"
    # As browsers save what they unpacked, and the other way round; two pieces, as programs that append leave them.
    file.write_text(JSONL)
    assert len(rows_of(file)) == 3
    plain = tmp_path / "b.jsonl"
    plain.write_bytes(2 * PACKERS[suffix](JSONL.encode()))
    assert len(rows_of(plain)) == 6


@pytest.mark.parametrize("suffix", PACKERS)
def test_packed_files_that_are_cut_off_or_bombs_are_refused(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / f"a.jsonl{suffix}"
    file.write_bytes(PACKERS[suffix](JSONL.encode() * 1000)[:-12])
    with pytest.raises(DataError, match=r"a.jsonl.*: is packed, and damaged or cut off"):
        rows_of(file)
    monkeypatch.setattr(files, "_HARMLESS", 10_000)
    file.write_bytes(PACKERS[suffix](b"\n" * 3_000_000))
    with pytest.raises(DataError, match=r"come out of .* which is no packed text"):
        rows_of(file)


def test_a_zip_archive_holds_one_file(tmp_path: Path) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inside/a.csv", "text,n\nx,1\n")
        archive.writestr("__MACOSX/._a.csv", b"\0")
    assert [row.values for row in rows_of(file)] == [{"text": "x", "n": "1"}]
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("b.csv", "text\n")
    with pytest.raises(DataError, match=r"holds 2 files \(`inside/a.csv`, `b.csv`\).*unpack it and name the folder"):
        rows_of(file)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_wide_encodings_are_seen_with_and_without_a_mark(tmp_path: Path, encoding: str, mark: str) -> None:
    mark = "" if encoding in ("utf-16", "utf-32") else mark  # which write one themselves
    lines, whole, table = tmp_path / "a.jsonl", tmp_path / "a.json", tmp_path / "a.csv"
    lines.write_bytes((mark + JSONL).encode(encoding))
    whole.write_bytes((mark + json.dumps(RECORDS)).encode(encoding))
    table.write_bytes((mark + "text,n\r\nß 一,1\r\n").encode(encoding))
    assert [row.values for row in rows_of(lines)] == [row.values for row in rows_of(whole)] == RECORDS
    assert [row.values for row in rows_of(table)] == [{"text": "ß 一", "n": "1"}]
    lines.write_bytes((mark + JSONL + "{broken\n").encode(encoding))
    with pytest.raises(DataError, match=r"a.jsonl: line 4, column 2: not JSON"):
        rows_of(lines)


def test_a_zero_character_in_a_text_is_one(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"a long line of text with one\0zero\n")
    assert rows_of(file)[0].values["text"] == "a long line of text with one\0zero"


def test_folders_patterns_and_lists_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for number, record in enumerate(RECORDS):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), folder / f"train-{number}.parquet")
    (folder / "README.md").write_text("about")
    (folder / ".hidden.parquet").write_text("x")
    assert [row.values for row in rows_of(folder)] == RECORDS
    assert [row.where for row in rows_of(folder / "train-*.parquet")][2] == f"{folder / 'train-2.parquet'}: row 1"
    assert [row.values for row in rows_of(folder / "train-2.parquet", folder / "train-0.parquet")] == [RECORDS[2], RECORDS[0]]
    (folder / "test-0.parquet").write_bytes((folder / "train-0.parquet").read_bytes())
    with pytest.raises(DataError, match=r"several splits \(`test`, `train`\), and reading all as one would mix them"):
        rows_of(folder)
    (folder / "test-0.parquet").rename(folder / "notes.csv")
    with pytest.raises(DataError, match=r"several formats \(`csv`, `parquet`\); name one kind: `shards/\*"):
        rows_of(folder)


def test_each_of_several_texts_is_a_document_unless_it_is_cut(tmp_path: Path) -> None:
    (tmp_path / "texts" / "b").mkdir(parents=True)
    (tmp_path / "texts" / "a.txt").write_text("one\n\n" + "two " * 2000)
    (tmp_path / "texts" / "b" / "a.txt").write_text("three")
    assert [row.values["document"] for row in rows_of(tmp_path / "texts")] == ["a.txt", "b/a.txt"]
    cut = rows_of(tmp_path / "texts", format="text", blocks=4000)
    assert [row.values["document"] for row in cut] == ["a.txt: block 1", "a.txt: block 2", "b/a.txt: block 1"]


def test_a_sheet_is_a_table_of_values(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    for row in (["title", "n", "day"], ["a", 1, datetime.datetime(2024, 1, 2)], [], ["b", 2.5, None]):
        sheet.append(row)
    file = tmp_path / "a.xlsx"
    book.save(file)
    rows = rows_of(file)
    day = datetime.datetime(2024, 1, 2)
    assert [row.values for row in rows] == [{"title": "a", "n": 1, "day": day}, {"title": "b", "n": 2.5, "day": None}]
    assert rows[1].where == f"{file}: row 4"
    book.create_sheet("more").append(["x"])
    book["more"].append(["#REF!"])
    book.save(file)
    with pytest.raises(DataError, match=r"several sheets hold rows \(`Sheet`, `more`\); say which, `sheet: Sheet`"):
        rows_of(file)
    assert len(rows_of(file, sheet="Sheet")) == 2
    with pytest.raises(DataError, match=r"row 2: `x` is .*#REF!.*, an error of a formula"):
        rows_of(file, sheet="more")
    book["more"]["A2"] = "=1+1"
    book.save(file)
    with pytest.raises(DataError, match=r"holds formulas without their results"):
        rows_of(file, sheet="more")


def test_what_datasets_and_arrow_save_is_read(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(RECORDS)
    data.select([2, 0]).save_to_disk(tmp_path / "saved")
    assert [row.values for row in rows_of(tmp_path / "saved")] == [RECORDS[2], RECORDS[0]]
    datasets.DatasetDict(train=data, test=data).save_to_disk(tmp_path / "splits")
    with pytest.raises(DataError, match=r"`source: {test: {path: splits/test}, train: {path: splits/train}}`"):
        rows_of(tmp_path / "splits")
    pyarrow.feather.write_feather(pyarrow.Table.from_pylist(RECORDS), tmp_path / "a.feather")
    assert [row.values for row in rows_of(tmp_path / "a.feather")] == RECORDS


def test_the_size_of_a_packed_text_is_estimated(tmp_path: Path) -> None:
    text = "".join(json.dumps({"n": n, "square": n * n}) + "\n" for n in range(200_000)).encode()
    for suffix, pack in PACKERS.items():
        file = tmp_path / f"a.jsonl{suffix}"
        file.write_bytes(pack(text))
        assert size_as_text(file) == pytest.approx(len(text), rel=0.35)
        file.write_bytes(pack(b"short"))
        assert size_as_text(file) == 5


def test_what_is_not_read_is_answered_with_the_way(tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_text("x")
    with pytest.raises(UserError, match=r"names no format; add `format: jsonl"):
        list(iterate_rows(Source(path="data"), [str(tmp_path / "data.bin")]))

"""The formats of data files, by their names, and the way from what is not read to what is."""

from pathlib import PurePath
from typing import Literal, get_args

Format = Literal["jsonl", "json", "csv", "parquet", "text", "xlsx", "arrow"]
FORMATS = " | ".join(get_args(Format))
_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".xlsx": "xlsx",
    ".xlsm": "xlsx",
    ".arrow": "arrow",
    ".feather": "arrow",
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
"""Suffixes after that of the format; what a file is packed with is seen by its first bytes."""
_SHEET, _PAGE = "open it and save it as .xlsx or .csv", "`pandoc NAME -t plain -o FILE.txt`"
_PANDAS = "`python -c \"import pandas; pandas.{}('NAME').to_parquet('FILE.parquet')\"`"
_CONVERTED = {
    **dict.fromkeys((".xls", ".ods", ".numbers"), _SHEET),
    **dict.fromkeys((".docx", ".odt", ".epub", ".html", ".htm"), _PAGE),
    ".doc": "open it and save it as plain text (.txt)",
    ".pdf": "take its text out first, `pdftotext NAME FILE.txt`",
    **{suffix: _PANDAS.format(f"read_{name}") for suffix, name in ((".xml", "xml"), (".orc", "orc"), (".dta", "stata"))},
    ".pkl": _PANDAS.format("read_pickle") + ", if you trust whoever made it: a pickle runs code",
    **dict.fromkeys((".yaml", ".yml"), "write its records one a line as JSON (.jsonl)"),
    **dict.fromkeys((".db", ".sqlite"), "`sqlite3 -json NAME 'select * from TABLE' > FILE.json`"),
    **dict.fromkeys((".tar", ".tgz"), "unpack it, `tar xf NAME`, and name the folder"),
    **dict.fromkeys((".7z", ".rar"), "unpack it, and name the folder"),
    **dict.fromkeys((".lz4", ".z", ".br"), "unpack it, and name what comes out"),
}
"""The way from what is not read to what is, by suffix."""


def format_of(name: str) -> Format | None:
    """The format that the suffix of a file's name says, before that of what it is packed with; None where it says none."""
    path = PurePath(name)
    if path.suffix.lower() in COMPRESSED:
        path = path.with_suffix("")
    return _SUFFIXES.get(path.suffix.lower())


def no_format(name: str) -> str:
    """What is told about a file whose name says no format that is read, with the way out."""
    path = PurePath(name)
    suffix = PurePath(path.stem if path.suffix.lower() in COMPRESSED else name).suffix.lower()
    if suffix in _CONVERTED:
        return (
            f"{suffix} files are not read; {_CONVERTED[suffix].replace('NAME', name).replace('FILE', name.partition('.')[0])}"
        )
    return f"the suffix of `path` names no format; add `format: {FORMATS}`"

"""Texts to be rated, and the sheets on which people rate them.

An item of a sheet is a context, a prompt and a text; its name is a digest of these, so nothing on a sheet tells who wrote the
text, no key has to be kept, and two variants that wrote the same are rated once. A text can stand on a sheet twice, under two
names, which shows whether a rater agrees with himself. Names are letters: spreadsheets turn `1e5` into a number.

Which of two texts a person prefers stands in the row of one of them, by the name of the other.
"""

import csv
import hashlib
import io
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paretune.errors import DataError, StoreError
from paretune.pipeline.records import read_lines
from paretune.study.base import suggestion
from paretune.study.ratings import HIGHEST, LOWEST

OCCASIONS = 2
"""How often a text can stand on one sheet."""
_SHOWN = ("context", "prompt", "text")
_NAME = re.compile(r"[a-z]{12}")
_FORMULA = ("=", "+", "-", "@")
"""What a spreadsheet takes a field for a formula by."""
_DELIMITERS = (",", ";", "\t")
BETTER, EQUAL = "better_than", "as_good_as"
"""Columns of preferences, which a sheet may have: items, a space between two."""


@dataclass(frozen=True)
class Text:
    """What one model wrote, after what."""

    source: str
    """The evaluation of the kind `generate`, or the task."""
    document: str
    example: str
    """Equal for all models that were asked the same."""
    context: str
    prompt: str
    text: str

    def item(self, occasion: int = 0) -> str:
        """Its name on a sheet."""
        content = json.dumps([self.context, self.prompt, self.text, occasion])
        return "".join(chr(ord("a") + byte % 26) for byte in hashlib.sha256(content.encode()).digest()[:12])


Sheet = Mapping[str, Mapping[str, int | None]]
"""Item to criterion to rating, None where there is none."""
Preferences = Mapping[tuple[str, str], float]
"""Two items in the order of their names, to 1 where the first is preferred, 0 where the second is, 0.5 where neither."""


def read_texts(name: str, generations: Path, contexts: Mapping[tuple[str, str], str]) -> list[Text]:
    """The texts that the evaluation called `name` left in `generations`, its directory; `contexts` by document and record."""
    texts = []
    for number, row in enumerate(read_lines(generations / "generations.jsonl")):
        if "task" in row:
            context, example = contexts.get((row["document"], row["example"]), ""), f"{row['task']} {row['example']}"
            texts.append(Text(row["task"], row["document"], example, context, row["prompt"], row["text"]))
        else:
            texts.append(Text(name, f"{name} {number}", f"{name} {number}", "", row["prompt"], row["text"]))
    return texts


def read_contexts(data: Path) -> dict[tuple[str, str], str]:
    """The contexts of a dataset's records by document and record; `data` is the directory of its stage."""
    import pyarrow.parquet  # the plan, which reads sheets, does without

    file = pyarrow.parquet.ParquetFile(data / "documents.parquet")
    if "context" not in file.schema_arrow.names:
        return {}
    rows = file.read(["document", "example", "context"]).to_pylist()
    return {(row["document"], str(row["example"])): row["context"] for row in rows}


def choose(texts: Iterable[Text], of: Sequence[str], num_prompts: int | None, seed: int = 0) -> list[Text]:
    """The texts after so many prompts, which are drawn by their own names and so the same for every model."""

    def drawn(text: Text) -> bytes:
        return hashlib.sha256(f"{seed}\0{text.example}".encode()).digest()

    wanted = sorted((text for text in texts if not of or text.source in of), key=drawn)
    kept = set(list(dict.fromkeys(text.example for text in wanted))[:num_prompts])
    return [text for text in wanted if text.example in kept]


def write_sheet(texts: Sequence[Text], criteria: Sequence[str], twice: float, seed: int, file: Path) -> int:
    """Write the texts in random order, each once and a share `twice` of them again; returns the number of rows.

    StoreError if the file cannot be written.
    """
    draw = random.Random(seed)
    distinct = list({text.item(): text for text in texts}.values())
    again = draw.sample(distinct, min(len(distinct), round(twice * len(distinct) + 0.5))) if twice else []
    rows = [row_of(text, 0) for text in distinct] + [row_of(text, 1) for text in again]
    draw.shuffle(rows)
    try:
        # With a byte order mark, by which Excel knows UTF-8.
        with file.open("w", encoding="utf-8-sig", newline="") as lines:
            writer = csv.DictWriter(lines, ["item", *_SHOWN, *criteria], restval="")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise StoreError(f"{file}: cannot be written ({error.strerror}); name a file in a directory that is there") from None
    return len(rows)


def read_sheet(file: Path, criteria: Sequence[str]) -> Sheet:
    """The ratings of a filled sheet; DataError for what is none, naming the line.

    Commas, semicolons or tabs, as spreadsheets write them; columns besides `item` and the criteria are for the rater.
    """
    rows = read_rows(file, criteria)
    sheet: dict[str, dict[str, int | None]] = {}
    for line, row in rows:
        item = row["item"].strip()
        if not _NAME.fullmatch(item):
            raise DataError(f"{file}: line {line}: `{item[:40]}` is no item; the column `item` must stay as it was written")
        if item in sheet:
            raise DataError(f"{file}: line {line}: item `{item}` stands there twice; remove the copied row")
        sheet[item] = {name: _rating(row[name], f"{file}: line {line}: {name}") for name in criteria}
    rated = any(value is not None for ratings in sheet.values() for value in ratings.values())
    if not rated and not read_preferences(file):
        raise DataError(f"{file}: holds no rating; fill in {' and '.join(f'`{name}`' for name in criteria)}")
    return sheet


def read_preferences(file: Path) -> Preferences:
    """What a sheet says of pairs of texts; empty where it has no such columns. DataError for what names no item, or contradicts
    itself."""
    found: dict[tuple[str, str], float] = {}
    for line, row in read_rows(file):
        item = row["item"].strip()
        for column, share in ((BETTER, 1.0), (EQUAL, 0.5)):
            for other in row.get(column, "").split():
                if not _NAME.fullmatch(other) or other == item:
                    raise DataError(f"{file}: line {line}: {column}: `{other[:40]}` is no other item of the sheet")
                pair, value = ((item, other), share) if item < other else ((other, item), 1 - share)
                if found.setdefault(pair, value) != value:
                    raise DataError(f"{file}: line {line}: {column}: the opposite stands in the row of `{other}`; remove one")
    return found


def row_of(text: Text, occasion: int) -> dict[str, str]:
    """What a sheet shows of a text."""
    shown = {"context": text.context, "prompt": text.prompt, "text": text.text}
    return {"item": text.item(occasion)} | {k: f" {v}" if v.startswith(_FORMULA) else v for k, v in shown.items()}


def read_rows(file: Path, criteria: Sequence[str] = ()) -> list[tuple[int, dict[str, str]]]:
    """Each row of a sheet with the line on which it ends; DataError for what is none, or lacks a criterion."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
    # Texts that another encoding has damaged are not read back: items, names of columns and digits are ASCII.
    text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig", errors="replace")
    first = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=first.count)
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))  # the process's: another sheet may be read meanwhile
    try:
        reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
        columns = [name.strip().lower() for name in next(reader, [])]
        for name in ("item", *criteria):
            if columns.count(name) != 1:
                what = "two columns are called" if name in columns else "there is no column"
                hint = "" if name in columns else suggestion(name, columns)
                raise DataError(f"{file}: {what} `{name}`{hint}; sheets are written by `paretune rate STUDY --to FILE`")
        rows = [(reader.line_num, row) for row in reader if any(field.strip() for field in row)]
    except csv.Error as error:
        raise DataError(f"{file}: not a sheet in CSV ({error}); save it as `CSV UTF-8`") from None
    for line, row in rows:
        if len(row) != len(columns):
            raise DataError(
                f"{file}: line {line}: {len(row)} fields, the header names {len(columns)}; save it as `CSV UTF-8` again"
            )
    return [(line, dict(zip(columns, row, strict=True))) for line, row in rows]


def _rating(field: str, where: str) -> int | None:
    text = field.strip().replace(",", ".")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not LOWEST <= value <= HIGHEST or value != int(value):
        raise DataError(
            f"{where}: `{field[:40]}` is no rating; write a whole number from {LOWEST} to {HIGHEST}, or leave it empty"
        )
    return int(value)

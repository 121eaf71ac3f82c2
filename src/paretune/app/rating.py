"""A person's sheet of blind ratings while it is filled in: the form of `paretune rate`, and on the disk at every click.

Texts and pairs come in an order that the name of the person draws, and so do which of a pair is A. A sheet that is there goes
on: texts of variants that were trained meanwhile are added to it.
"""

import csv
import itertools
import os
import random
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from paretune.data.sheets import BETTER, EQUAL, OCCASIONS, Text, read_preferences, read_rows, row_of, write_sheet
from paretune.errors import SpecError, StoreError
from paretune.evaluate.ratings import TWICE
from paretune.study.ratings import RUBRIC

_COLUMNS = (*RUBRIC, BETTER, EQUAL)
Row = dict[str, str]
Pair = tuple[Text, Text]


def sheet_file(study_file: Path, person: str) -> Path:
    """Where the sheet of a person is: by the study, under a name of its own; SpecError for a name that makes no file."""
    if not re.fullmatch(r"\w[\w.-]{0,39}", person):
        raise SpecError(f"`{person}`: a sheet goes by the name of its person; write letters, digits, `-`, `_`, at most 40")
    return study_file.with_name(f"{study_file.stem}-ratings") / f"{person}.csv"


class RatingSheet:
    """Several at once may fill in the same one: each change reads the file anew, and a new file takes its place."""

    def __init__(self, file: Path, texts: Sequence[Text]) -> None:
        """`texts` are what is to be rated. StoreError where the file cannot be written, DataError where it is no sheet."""
        self.file = file
        self.texts = {text.item(occasion): text for text in texts for occasion in range(OCCASIONS)}
        self._draw = zlib.crc32(file.stem.encode())
        with self._held():
            if not file.exists():
                write_sheet(texts, _COLUMNS, TWICE, self._draw, file)
            there = self.rows
            new = [row_of(text, 0) for item, text in {t.item(): t for t in texts}.items() if item not in there]
            if new:
                random.Random(self._draw).shuffle(new)
                self._write([*there.values(), *new])

    @property
    def rows(self) -> Mapping[str, Row]:
        """By item, in the order in which they are rated."""
        return {row["item"]: row for _, row in read_rows(self.file)}

    @property
    def items(self) -> list[str]:
        """Those of texts that the study still has."""
        return [item for item in self.rows if item in self.texts]

    @property
    def pairs(self) -> list[Pair]:
        """Two unlike texts after the same prompt each, as they are shown: left and right."""
        by_example: dict[str, dict[str, Text]] = {}
        for text in self.texts.values():
            by_example.setdefault(text.example, {})[text.item()] = text
        draw = random.Random(self._draw)
        found = [
            (one, other) if draw.random() < 0.5 else (other, one)
            for texts in by_example.values()
            for one, other in itertools.combinations(texts.values(), 2)
        ]
        draw.shuffle(found)
        return found

    def preferences(self) -> Mapping[frozenset[str], str]:
        """What was said of pairs, by their items: the item that is preferred, empty where neither is."""
        return {
            frozenset(pair): {1.0: pair[0], 0.0: pair[1]}.get(share, "") for pair, share in read_preferences(self.file).items()
        }

    def rate(self, item: str, criterion: str, value: int | None) -> None:
        self._change(lambda rows: rows[item].update({criterion: "" if value is None else str(value)}))

    def prefer(self, pair: Pair, choice: Text | None) -> None:
        """That `choice` is the better one of a pair; None where neither is. Takes the place of what was said before."""
        one, other = (text.item() for text in pair)

        def change(rows: Mapping[str, Row]) -> None:
            for item, against in ((one, other), (other, one)):
                for column in (BETTER, EQUAL):
                    kept = [name for name in rows[item].get(column, "").split() if name != against]
                    better = choice is not None and choice.item() == item and column == BETTER
                    equal = choice is None and item == one and column == EQUAL
                    rows[item][column] = " ".join([*kept, *([against] if better or equal else [])])

        self._change(change)

    def _change(self, change: Callable[[Mapping[str, Row]], None]) -> None:
        with self._held():
            rows = self.rows
            change(rows)
            self._write(list(rows.values()))

    def _write(self, rows: Sequence[Row]) -> None:
        columns = dict.fromkeys((*itertools.chain.from_iterable(rows), *_COLUMNS))
        draft = self.file.with_name(f".{self.file.name}.{os.getpid()}")
        with draft.open("w", encoding="utf-8-sig", newline="") as lines:
            writer = csv.DictWriter(lines, list(columns), restval="")
            writer.writeheader()
            writer.writerows(rows)
            lines.flush()
            os.fsync(lines.fileno())
        draft.replace(self.file)

    @contextmanager
    def _held(self) -> Iterator[None]:
        try:
            self.file.parent.mkdir(exist_ok=True)
            with FileLock(self.file.with_name(f".{self.file.stem}.lock")):
                yield
        except OSError as error:
            raise StoreError(f"{self.file}: cannot be written ({error.strerror}); is its disk full, or not yours?") from None

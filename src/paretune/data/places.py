"""Where the two texts of every pair that leaks stand: a table for a person who looks them up, a row a pair."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from paretune.data.leakage import Pair, Side, shared_ngrams
from paretune.data.sources import iterate_rows
from paretune.pipeline.resources import Resource
from paretune.study.data import SPLITS, Dataset

COLUMNS = (
    *("kind", "share", "split", "document", "record", "place"),
    *("other", "other_document", "other_record", "other_place", "excerpt"),
)
"""`record` is a number from 1 in its source, `place` its file and line; `share` is of the other text's n-grams."""

Records = Mapping[Side, Sequence[tuple[int, str]]]
"""Number in the source, from 0, and text of the records of a (split, document)."""


def write_pairs(
    file: Path, pairs: Sequence[Pair], records: Records, dataset: Dataset, resources: Mapping[str, Resource]
) -> None:
    """COLUMNS as csv; of a document of several records the one that shares most with the other side stands there.

    Reads the sources (roles `source`, or `source.train` and so on) once more, if there is a pair. OSError for `file`.
    """
    sides = [((pair.split, pair.document), (pair.other, pair.other_document)) for pair in pairs]
    numbers = [(_nearest(records, side, other), _nearest(records, other, side)) for side, other in sides]
    wanted = {(side[0], n) for both, of_both in zip(sides, numbers, strict=True) for side, n in zip(both, of_both, strict=True)}
    places: dict[tuple[str, int], str] = {}
    for role, source in dataset.sources.items() if pairs else ():
        splits = [role.removeprefix("source.")] if role != "source" else SPLITS
        for number, row in enumerate(iterate_rows(source, resources[role].paths)):
            places |= {(split, number): row.where for split in splits if (split, number) in wanted}

    def place(side: Side, number: int) -> str:
        return places[side[0], number] if side in records else f"{resources[f'items.{side[0]}']}: item {number + 1}"

    def rows() -> Iterator[Sequence[object]]:
        for pair, (side, other), (number, other_number) in zip(pairs, sides, numbers, strict=True):
            first = (*side, number + 1, place(side, number))
            yield pair.kind, f"{pair.coverage:.3f}", *first, *other, other_number + 1, place(other, other_number), pair.excerpt

    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows())


def _nearest(records: Records, side: Side, other: Side) -> int:
    """The number of the record of `side` with most n-grams of `other`; of an item, which is no document, its own number."""
    if side not in records:
        return int(side[1]) - 1
    of_side = records[side]
    if len(of_side) == 1 or other not in records:
        return of_side[0][0]
    text = "\n".join(text for _, text in records[other])
    return of_side[int(np.argmax(shared_ngrams([text for _, text in of_side], text)))][0]

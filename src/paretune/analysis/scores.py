"""Scores of single examples, read from the store and brought into one order for all variants.

Two variants can be compared on the examples that both were scored on. Almost always these are the same examples in the same
order, and then they share one `Items` object: comparing identities replaces joining tables.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from paretune.analysis.inference import Floats, Ints
from paretune.pipeline.records import SLICE_PREFIX, Cell, Results, read_lines

Seed = int | None


class Entrant(NamedTuple):
    """What takes part in a comparison: a variant of a base on a dataset, with all its seeds."""

    base: str
    dataset: str
    variant: str


class Quantity(NamedTuple):
    """What is estimated: a metric of a task, on a split (validation, test or empty) and a slice (empty: all of it)."""

    task: str
    split: str
    metric: str
    slice: str = ""


@dataclass(frozen=True, eq=False)
class Items:
    """The examples that something was scored on, in order. Compared by identity."""

    documents: np.ndarray[Any, Any]
    examples: np.ndarray[Any, Any]

    @cached_property
    def codes(self) -> Ints:
        """Index of each example's document."""
        return np.asarray(pd.factorize(self.documents)[0], dtype=np.int64)

    @cached_property
    def num_documents(self) -> int:
        return int(self.codes.max()) + 1

    @cached_property
    def index(self) -> pd.MultiIndex:
        return pd.MultiIndex.from_arrays([self.documents, self.examples])

    def __len__(self) -> int:
        return len(self.documents)


@dataclass(frozen=True, eq=False)
class Scores:
    """One metric of one cell: `values` and `weights` of shape (len(items),), weights above 0."""

    items: Items
    values: Floats
    weights: Floats

    def on(self, items: Items) -> "Scores":
        """The same scores on a subset of the examples, in its order."""
        if items is self.items:
            return self
        where = self.items.index.get_indexer(items.index)
        return Scores(items, self.values[where], self.weights[where])


SeedScores = Mapping[Seed, Scores]


@dataclass(frozen=True, eq=False)
class Sample:
    """Document sums of one quantity of one variant, averaged over seeds; arrays of shape (documents,)."""

    items: Items
    seeds: tuple[Seed, ...]
    sums: Floats
    weights: Floats
    by_seed: Mapping[Seed, float]
    answers: bool
    """Right-or-wrong scores of independent questions: each 0 or 1, weight 1, one a document."""

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / self.weights.sum())


Samples = Mapping[Entrant, Mapping[Quantity, Sample]]
_Pool = dict[tuple[int, str, str], list[Items]]
"""The lists of examples seen so far, by length, first document and last example."""


def read_scores(results: Results) -> dict[Entrant, dict[Quantity, dict[Seed, Scores]]]:
    """All scores of a study, overall and by slice."""
    pool: _Pool = {}
    files: dict[Path, dict[Quantity, Scores]] = {}
    by_entrant: dict[Entrant, dict[Quantity, dict[Seed, Scores]]] = {}
    for cell in results.cells:
        quantities = by_entrant.setdefault(entrant_of(cell), {})
        for task, record in cell.evaluations.items():
            file = record.path / "scores.parquet"
            if not file.exists():
                continue
            if file not in files:
                files[file] = _read_file(file, pool)
            for quantity, scores in files[file].items():
                # One record can stand under two names, where two evaluations of a study are the same.
                named = quantity if quantity.task else quantity._replace(task=task)
                quantities.setdefault(named, {})[cell.seed] = scores
    return by_entrant


def read_generations(cell: Cell, evaluation: str) -> list[dict[str, Any]]:
    """The texts that one evaluation of one cell made; none if it makes none."""
    file = cell.evaluations[evaluation].path / "generations.jsonl"
    return read_lines(file) if file.exists() else []


def entrant_of(cell: Cell) -> Entrant:
    return Entrant(cell.base, cell.dataset, cell.variant)


def common_items(scores: Iterable[Scores]) -> Items | None:
    """The examples that all of `scores` have, in the order of the first; None if there are none."""
    distinct = list({id(scored.items): scored.items for scored in scores}.values())
    if len(distinct) == 1:
        return distinct[0]
    first, *others = distinct
    keep = np.ones(len(first), dtype=bool)
    for items in others:
        keep &= np.asarray(items.index.get_indexer(first.index)) >= 0
    return Items(first.documents[keep], first.examples[keep]) if keep.any() else None


def make_samples(scores: Mapping[Entrant, Mapping[Quantity, SeedScores]]) -> dict[Entrant, dict[Quantity, Sample]]:
    """A sample for every quantity that has an example which all its seeds share."""
    return {
        entrant: {quantity: sample for quantity, by_seed in quantities.items() if (sample := average(by_seed)) is not None}
        for entrant, quantities in scores.items()
    }


def average(by_seed: SeedScores, items: Items | None = None) -> Sample | None:
    """Scores averaged over seeds, on `items` or on what all seeds have; None for no example."""
    items = items or common_items(by_seed.values())
    if items is None:
        return None
    shared = [scores.on(items) for scores in by_seed.values()]
    weights = np.mean([scores.weights for scores in shared], axis=0)
    products = np.mean([scores.values * scores.weights for scores in shared], axis=0)
    values = np.concatenate([scores.values for scores in shared])
    alone = items.num_documents == len(items)
    return Sample(
        items=items,
        seeds=tuple(by_seed),
        sums=np.bincount(items.codes, products).astype(np.float64),
        weights=np.bincount(items.codes, weights).astype(np.float64),
        by_seed={
            seed: float(np.average(each.values, weights=each.weights)) for seed, each in zip(by_seed, shared, strict=True)
        },
        answers=alone and bool(np.isin(values, (0.0, 1.0)).all()) and bool((weights == 1).all()),
    )


def _read_file(file: Path, pool: _Pool) -> dict[Quantity, Scores]:
    """The scores of a file; the task is empty where the file does not name it, and is then that of the evaluation."""
    table = pd.read_parquet(file)
    table = table[table["weight"] > 0]
    if "task" not in table:
        table = table.assign(task="")
    fields = [name for name in table.columns if name.startswith(SLICE_PREFIX)]
    scores: dict[Quantity, Scores] = {}
    for (task, split, metric), rows in table.groupby(["task", "split", "metric"], sort=False):
        quantity = Quantity(str(task), str(split), str(metric))
        scores[quantity] = _scores(rows, pool)
        for field in fields:
            for value, part in rows.groupby(field, sort=True):
                name = f"{field.removeprefix(SLICE_PREFIX)}: {value}"
                scores[quantity._replace(slice=name)] = _scores(part, pool)
    return scores


def _scores(rows: pd.DataFrame, pool: _Pool) -> Scores:
    items = _shared(pool, rows["document"].to_numpy(dtype=object), rows["example"].to_numpy(dtype=object))
    return Scores(items, rows["value"].to_numpy(dtype=np.float64), rows["weight"].to_numpy(dtype=np.float64))


def _shared(pool: _Pool, documents: np.ndarray[Any, Any], examples: np.ndarray[Any, Any]) -> Items:
    """One `Items` for equal lists of examples."""
    known = pool.setdefault((len(documents), str(documents[0]), str(examples[-1])), [])
    for items in known:
        if np.array_equal(items.documents, documents) and np.array_equal(items.examples, examples):
            return items
    known.append(Items(documents, examples))
    return known[-1]

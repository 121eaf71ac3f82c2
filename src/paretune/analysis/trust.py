"""What stands behind the ratings of texts: who gave them, and whether raters agree so far that conclusions can be drawn.

Ratings on which raters do not agree measure the rater: below an alpha of 0.667 (`agreement.TENTATIVE`) no conclusion is drawn,
in words and in comparisons.csv. A judge model is held to the same against people who rated the same texts.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd

from paretune.analysis import wording
from paretune.analysis.agreement import RELIABLE, TENTATIVE, Agreement, agreement
from paretune.analysis.measured import Measured
from paretune.analysis.scores import Quantity
from paretune.pipeline.records import Record, read_lines
from paretune.study.ratings import RUBRIC, Judge, Ratings

WITHHELD = "withheld: raters do not agree"
"""In place of a verdict."""
_COLUMNS = ("item", "rater", "occasion", "criterion", "value")


@dataclass(frozen=True)
class Trust:
    """What stands behind the ratings of an evaluation in one criterion."""

    found: Agreement | None
    """None where nobody can be compared with anybody."""
    between: str
    """`the 3 raters`, `the judge and people`; or why there is no agreement to tell."""

    @property
    def withheld(self) -> bool:
        return self.found is not None and self.found.alpha < TENTATIVE

    @property
    def told(self) -> str:
        if self.found is None:
            return self.between
        if math.isnan(self.found.alpha):
            return f"{self.between} gave every text the same number, which shows nothing"
        shown = alpha_text(self.found)
        if self.withheld:
            return f"{self.between} do not agree ({shown}; below {TENTATIVE} nothing can be concluded)"
        return f"{self.between} agree{'' if self.found.alpha >= RELIABLE else ' only tentatively'} ({shown})"


def withheld(measured: Measured, quantity: Quantity) -> bool:
    """Whether raters disagree too much for a verdict on this quantity."""
    known = any(name == quantity.task for name, _ in rated(measured)) and quantity.metric in RUBRIC
    return known and trust_of(measured, quantity.task, quantity.metric).withheld


def trust_of(measured: Measured, name: str, criterion: str) -> Trust:
    """Of people how far they agree with each other; of a judge how far with the people of the study."""
    config = dict(rated(measured))[name]
    own = matrix(ratings_table(measured, [name]), criterion)
    if isinstance(config, Ratings):
        found = agreement(own.to_numpy(), measured.level) if len(own) > 1 else None
        return Trust(found, f"the {len(own)} raters" if found else "nobody else rated these texts, so it is one person's view")
    people = [other for other, one in rated(measured) if isinstance(one, Ratings)]
    sides = pd.DataFrame([own.mean(), matrix(ratings_table(measured, people), criterion).mean()])
    found = agreement(sides.to_numpy(), measured.level)
    return Trust(found, "the judge and people" if found else "no person rated these texts, so it is the judge's view alone")


def alpha_text(found: Agreement) -> str:
    shown = "all alike" if math.isnan(found.alpha) else f"alpha {found.alpha:.2f}, {found.low:.2f} to {found.high:.2f}"
    return f"{shown}, {wording.plural(found.num_items, 'text')}"


def rated(measured: Measured) -> Iterator[tuple[str, Judge | Ratings]]:
    for name, use in measured.study.evaluate.items():
        if isinstance(use.config, Judge | Ratings):
            yield name, use.config


def ratings_table(measured: Measured, names: Sequence[str], *, missing: bool = False) -> pd.DataFrame:
    """Every rating of a text once, whichever variants wrote it; with NaN for those that are missing, or without these."""
    table = _read(tuple(record.path / "ratings.jsonl" for record in rating_records(measured, names)))
    return table if missing else table.dropna(subset="value")


@lru_cache(maxsize=16)
def _read(files: tuple[Path, ...]) -> pd.DataFrame:
    """For all sentences and tables of a report; the files are those of artifacts, which do not change."""
    rows = [row for file in files for row in read_lines(file)]
    table = pd.DataFrame(rows, columns=list(_COLUMNS)).astype({"value": "float64"})
    return table.drop_duplicates(list(_COLUMNS[:-1]))


def rating_records(measured: Measured, names: Sequence[str]) -> list[Record]:
    return [cell.evaluations[name] for cell in measured.results.cells for name in names if name in cell.evaluations]


def matrix(table: pd.DataFrame, criterion: str, by: str = "rater") -> pd.DataFrame:
    """Raters (or occasions) by items; of a rater the first look."""
    kept = table[table["criterion"] == criterion]
    kept = kept[kept["occasion"] == 0] if by == "rater" else kept
    return kept.pivot(index=by, columns="item", values="value")

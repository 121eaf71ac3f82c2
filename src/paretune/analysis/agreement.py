"""Ratings of texts, and how far raters agree: Krippendorff's alpha with an interval over items, and weighted kappa for pairs.

Alpha is 1 minus the disagreement that was seen over what raters who guess by the same numbers would show: 1 is perfect, 0 is
chance. It takes any number of raters and missing ratings, and a distance of ranks: 1 and 2 lie farther apart where many ratings
lie between them. Ratings on which raters do not agree measure the rater: below an alpha of 0.667 they bear no verdict. A judge
model is held to the same against people who rated the same texts.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from paretune.analysis.inference import SEED, Floats, Ints
from paretune.pipeline.records import Cell, read_lines
from paretune.study.ratings import PREFERENCE, Judge, Ratings

if TYPE_CHECKING:
    from paretune.study.study import Study

RELIABLE, TENTATIVE = 0.8, 0.667
"""Of alpha: from the first on conclusions can be drawn, from the second on tentative ones, below it none (Krippendorff 2004,
Content Analysis, 2nd edition, page 241)."""
_DRAWS = 2000
_RATED = ["item", "rater", "occasion", "criterion"]
"""Columns that name a rating; beside them stands its `value`."""


@dataclass(frozen=True)
class Agreement:
    """Alpha of at least two raters; NaN where all ratings are one number, which shows nothing."""

    alpha: float
    low: float
    high: float
    num_items: int
    """With two ratings or more."""


@dataclass(frozen=True)
class Trust:
    """What stands behind the ratings of an evaluation in one criterion."""

    between: Literal["raters", "judge and people", "one person", "judge alone"]
    num_raters: int
    agreement: Agreement | None
    """Of people with each other, or of the judge with the people of the study; None where nobody else rated these texts."""
    kappas: Mapping[tuple[str, str], float]
    """Weighted kappa of each pair of raters; NaN where nobody varies."""
    repeated: Mapping[str, Agreement]
    """By rater: with a second look of the same rater."""

    @property
    def withheld(self) -> bool:
        return self.agreement is not None and self.agreement.alpha < TENTATIVE

    @property
    def reliable(self) -> bool:
        return self.agreement is not None and self.agreement.alpha >= RELIABLE


@dataclass(frozen=True)
class Rating:
    """The ratings of one evaluation."""

    criteria: tuple[str, ...]
    raters: tuple[str, ...]
    """Names of people, or the judge model."""
    by_judge: bool
    trust: Mapping[str, Trust]
    """By criterion."""
    num_ratings: int
    num_missing: int
    """Of them: left empty, or none after several tries."""
    unread: Mapping[str, tuple[int, int]]
    """By rater: items on the sheet that are no texts of this study, and all items of the sheet; where there are any."""


def read_ratings(study: "Study", cells: Sequence[Cell]) -> dict[str, Rating]:
    """By evaluation that rates texts and was measured."""
    uses = {name: use.config for name, use in study.evaluate.items() if isinstance(use.config, Judge | Ratings)}
    records = {name: [cell.evaluations[name] for cell in cells if name in cell.evaluations] for name in uses}
    tables = {name: _read(record.path / "ratings.jsonl" for record in records[name]) for name in uses}
    people = [tables[name] for name, config in uses.items() if isinstance(config, Ratings)]
    of_people = pd.concat(people).drop_duplicates(_RATED) if people else _read([])
    found = {}
    for name, config in uses.items():
        table = tables[name]
        unread: dict[str, tuple[int, int]] = {}
        for rater in config.by_rater if isinstance(config, Ratings) and records[name] else ():
            size, of_rater = records[name][0].metrics[f"items_{rater}"], table["rater"] == rater
            seen = len(table[of_rater & (table["criterion"] != PREFERENCE)].drop_duplicates(["item", "occasion"]))
            unread |= {rater: (size - seen, size)} if seen < size else {}
        others = of_people if isinstance(config, Judge) else None
        criteria = (*config.criteria, *([PREFERENCE] if (table["criterion"] == PREFERENCE).any() else []))
        found[name] = Rating(
            criteria=criteria,
            raters=(config.model,) if isinstance(config, Judge) else tuple(config.by_rater),
            by_judge=isinstance(config, Judge),
            trust={criterion: _trust(table, others, criterion, study.compare.interval) for criterion in criteria},
            num_ratings=len(table),
            num_missing=int(table["value"].isna().sum()),
            unread=unread,
        )
    return found


def agreement(ratings: Floats, level: float) -> Agreement | None:
    """Of `ratings`, shape (raters, items), NaN where one is missing; None where no item has two.

    The interval is a bootstrap over items (Zapf et al. 2016, https://doi.org/10.1186/s12874-016-0200-9).
    """
    pairs = _coincidences(ratings)
    if not len(pairs):
        return None
    flat = pairs.reshape(len(pairs), -1)
    alpha = float(_alpha(flat.sum(axis=0, keepdims=True))[0])
    drawn = np.random.default_rng(SEED).multinomial(len(flat), np.full(len(flat), 1 / len(flat)), size=_DRAWS)
    alphas = _alpha(drawn @ flat)
    alphas = alphas[~np.isnan(alphas)]
    low, high = np.quantile(alphas, [(1 - level) / 2, (1 + level) / 2]) if len(alphas) else (np.nan, np.nan)
    return Agreement(alpha, float(low), float(high), len(pairs))


def weighted_kappa(one: Floats, other: Floats) -> float:
    """Cohen's kappa (1968) of two raters with quadratic weights, on what both rated; NaN where nobody varies."""
    both = ~np.isnan(one) & ~np.isnan(other)
    left, right = one[both], other[both]
    if not len(left):
        return float("nan")
    expected = float(((left[:, None] - right[None, :]) ** 2).mean())
    return 1 - float(((left - right) ** 2).mean()) / expected if expected else float("nan")


def _coincidences(ratings: Floats) -> Floats:
    """Pairs of values within each item, shape (items with pairs, values, values), each rating weighing 1 in all."""
    values, codes = np.unique(ratings[~np.isnan(ratings)], return_inverse=True)
    coded: Ints = np.full(ratings.shape, -1, dtype=np.int64)
    coded[~np.isnan(ratings)] = codes
    counts = np.stack([(coded == code).sum(axis=0) for code in range(len(values))], axis=1) if len(values) else np.zeros((0, 0))
    counts = counts[counts.sum(axis=1) > 1]
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(counts.shape[1])
    found: Floats = pairs / (counts.sum(axis=1) - 1)[:, None, None]
    return found


def _alpha(coincidences: Floats) -> Floats:
    """Alpha of each row of coincidences, shape (rows, values * values)."""
    size = int(np.sqrt(coincidences.shape[1]))
    seen = coincidences.reshape(-1, size, size)
    totals = seen.sum(axis=2)
    ranks = totals.cumsum(axis=1) - totals / 2
    distances = (ranks[:, :, None] - ranks[:, None, :]) ** 2
    expected = (totals[:, :, None] * totals[:, None, :] * distances).sum(axis=(1, 2))
    disagreement = (totals.sum(axis=1) - 1) * (seen * distances).sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = np.where(expected > 0, 1 - disagreement / expected, np.nan)
    return found


def _read(files: Iterable[Path]) -> pd.DataFrame:
    """Every rating of a text once, whichever variants wrote it, with NaN for those that are missing."""
    rows = [row for file in files for row in read_lines(file)]
    table = pd.DataFrame(rows, columns=[*_RATED, "value"]).astype({"value": "float64"})
    return table.drop_duplicates(_RATED)


def _trust(table: pd.DataFrame, people: pd.DataFrame | None, criterion: str, level: float) -> Trust:
    """`people` are the ratings by persons where `table` are those by a judge."""
    own = _matrix(table, criterion)
    pairs = itertools.combinations(own.index, 2)
    kappas = {(one, other): weighted_kappa(own.loc[one].to_numpy(), own.loc[other].to_numpy()) for one, other in pairs}
    looks = {rater: _matrix(table[table["rater"] == rater], criterion, by="occasion") for rater in own.index}
    again = {rater: agreement(look.to_numpy(), level) for rater, look in looks.items()}
    repeated = {rater: found for rater, found in again.items() if found is not None}
    if people is None:
        found = agreement(own.to_numpy(), level) if len(own) > 1 else None
        return Trust("raters" if found else "one person", len(own), found, kappas, repeated)
    sides = pd.DataFrame([own.mean(), _matrix(people, criterion).mean()])
    found = agreement(sides.to_numpy(), level)
    return Trust("judge and people" if found else "judge alone", len(own), found, kappas, repeated)


def _matrix(table: pd.DataFrame, criterion: str, by: str = "rater") -> pd.DataFrame:
    """Raters (or occasions) by items; of a rater the first look."""
    kept = table[(table["criterion"] == criterion) & table["value"].notna()]
    kept = kept[kept["occasion"] == 0] if by == "rater" else kept
    return kept.pivot(index=by, columns="item", values="value")

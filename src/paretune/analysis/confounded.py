"""Slices by two fields that cannot be told apart, because the questions of one value of the first have one of the second.

In a table of two fields the effect of one can be separated from that of the other only if its cells hang together: if one can
go from any value to any other through cells that hold questions (connectedness, Searle 1987, Linear Models for Unbalanced
Data, section 5.3). Where they do, but hardly, Cramer's V is near 1.
"""

import itertools
from collections.abc import Iterator, Mapping

import pandas as pd
from scipy.stats.contingency import association

from paretune.analysis import wording
from paretune.analysis.measured import Group, Measured

NEAR = 0.8
"""Cramer's V from which two fields count as one."""


def confounded_fields(measured: Measured, group: Group, task: str) -> Iterator[str]:
    """A sentence for each pair of the fields that `task` is sliced by whose slices cannot be told apart."""
    values = _values(measured, group, task)
    for first, second in itertools.combinations(values, 2):
        table = pd.crosstab(pd.Series(values[first]), pd.Series(values[second]))
        if min(table.shape) < 2:
            continue
        strength, apart = float(association(table.to_numpy())), hangs_together(table)
        if not apart or strength >= NEAR:
            empty = int((table == 0).to_numpy().sum())
            names = f"{wording.code(first)} and {wording.code(second)} of {wording.code(task)}"
            yield (
                f"{names} cannot be told apart: {empty} of the {table.size} combinations of their values have no question "
                f"(Cramer's V {strength:.2f}), so what looks like an effect of one may be one of the other."
            )


def hangs_together(table: pd.DataFrame) -> bool:
    """Whether every value of two fields can be reached from every other through cells that are not empty."""
    filled = table.to_numpy() > 0
    reached = filled[0]  # columns
    for _ in range(min(table.shape)):
        reached = filled[(filled & reached).any(axis=1)].any(axis=0)
    return bool(reached.all())


def _values(measured: Measured, group: Group, task: str) -> Mapping[str, Mapping[object, str]]:
    """By field the value of each example."""
    found: dict[str, dict[object, str]] = {}
    for place in group.places:
        for quantity, sample in measured.samples.get(place, {}).items():
            if quantity.task == task and quantity.slice:
                field, _, value = quantity.slice.partition(": ")
                found.setdefault(field, {}).update(dict.fromkeys(sample.items.examples, value))
        if found:
            break  # the same questions for every variant
    return found

"""The tidy files: results.csv, estimates.csv, comparisons.csv, curves.csv, audit.csv and generations.jsonl.

`trial` names what a tuned variant was chosen from, in results.csv and curves.csv alone, and is empty otherwise; `seed` is
empty for a variant that no seed enters; `n` is the number of examples behind a score and empty for costs.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from paretune.analysis.audit import audit_table
from paretune.analysis.costs import Cost
from paretune.analysis.curves import CURVE_COLUMNS, read_curve
from paretune.analysis.measured import Measured, baseline, cell_generations, difference_of, estimates_of
from paretune.analysis.scores import Place
from paretune.analysis.trust import WITHHELD, withheld
from paretune.pipeline.records import Cell
from paretune.study.compare import QUALITY

RESULT_COLUMNS = ("base", "dataset", "variant", "seed", "trial", "split", "task", "slice", "metric", "value", "n")
ESTIMATE_COLUMNS = (
    *("base", "dataset", "variant", "split", "task", "slice", "metric"),
    *("mean", "ci_low", "ci_high", "n_examples", "n_documents", "n_seeds"),
)
COMPARISON_COLUMNS = (
    *("base", "dataset", "variant", "baseline", "split", "task", "slice", "metric"),
    *("difference", "ci_low", "ci_high", "p", "p_adjusted", "mde", "verdict"),
)
CURVE_FILE_COLUMNS = ("base", "dataset", "variant", "seed", "trial", *CURVE_COLUMNS)
GENERATION_FIELDS = (
    *("base", "dataset", "variant", "seed", "task"),
    *("prompt", "text", "reference", "new_tokens", "seconds", "stopped_by"),
    *("document", "example", "references", "filtered"),
)


_SPENT = ("train_seconds", "steps")
"""Costs of a trial."""


def results_table(measured: Measured) -> pd.DataFrame:
    """One row a number: RESULT_COLUMNS."""
    rows = [row for group in measured.groups for place in group.places for row in _results(measured, place)]
    table = pd.DataFrame(rows, columns=list(RESULT_COLUMNS))
    return table.astype({"seed": "Int64", "n": "Int64"})


def estimates_table(measured: Measured) -> pd.DataFrame:
    """Over seeds and examples: ESTIMATE_COLUMNS; costs have no interval and count no examples."""
    rows = [row for group in measured.groups for place in group.places for row in _estimates(measured, place)]
    table = pd.DataFrame(rows, columns=list(ESTIMATE_COLUMNS))
    return table.astype(dict.fromkeys(("n_examples", "n_documents", "n_seeds"), "Int64"))


def comparisons_table(measured: Measured, reference: str | None = None) -> pd.DataFrame:
    """Paired differences of every variant from `reference` (the study's baseline unless named): COMPARISON_COLUMNS.

    `mde` is the smallest difference that would have been detected with probability 0.8; empty where none would have been.
    """
    rows = []
    for group in measured.groups:
        other = baseline(measured, group) if reference is None else group.place(reference)
        if other is not None and other.variant in group.variants:
            rows += [row for place in group.places for row in _comparisons(measured, place, other)]
    return pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))


def curves_table(measured: Measured) -> pd.DataFrame:
    """One row a step: CURVE_FILE_COLUMNS."""
    parts = []
    for (place, seed), curve in measured.curves.items():
        if not curve.empty:
            owner = {**place._asdict(), "seed": seed, "trial": None}
            parts.append(curve.assign(**owner)[list(CURVE_FILE_COLUMNS)])
    for tuning, trial in ((one, trial) for one in measured.results.tunings for trial in one.trials):
        curve = read_curve(Cell(tuning.base, tuning.dataset, tuning.variant, tuning.seed, trial.methods, {}))
        if not curve.empty:
            owner = {"base": tuning.base, "dataset": tuning.dataset, "variant": tuning.variant}
            owner |= {"seed": tuning.seed, "trial": trial.name}
            parts.append(curve.assign(**owner)[list(CURVE_FILE_COLUMNS)])
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(CURVE_FILE_COLUMNS))
    return table.astype({"seed": "Int64", "step": "Int64", "tokens": "Int64"})


def generations(measured: Measured) -> Iterator[dict[str, Any]]:
    """Every generated text of the study: GENERATION_FIELDS."""
    for cell in measured.results.cells:
        for task in cell.evaluations:
            for row in cell_generations(cell, task):
                owner = {"base": cell.base, "dataset": cell.dataset, "variant": cell.variant, "seed": cell.seed, "task": task}
                yield {name: (owner | row).get(name) for name in GENERATION_FIELDS}


def write_tables(measured: Measured, out: Path) -> list[Path]:
    tables = {"results": results_table, "estimates": estimates_table, "comparisons": comparisons_table, "curves": curves_table}
    tables["audit"] = audit_table
    for name, make in tables.items():
        _whole_numbers(make(measured)).to_csv(out / f"{name}.csv", index=False, lineterminator="\n")
    with (out / "generations.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in generations(measured))
    return [*(out / f"{name}.csv" for name in tables), out / "generations.jsonl"]


def _results(measured: Measured, place: Place) -> Iterator[dict[str, Any]]:
    blank = {**place._asdict(), "trial": None, "split": "", "slice": ""}
    for quantity, by_seed in measured.scores.get(place, {}).items():
        sample = measured.samples[place].get(quantity)
        if sample is None:
            continue
        for seed, scores in by_seed.items():
            value = float((scores.values * scores.weights).sum() / scores.weights.sum())
            row = blank | quantity._asdict() | {"seed": seed, "n": len(scores.items)}
            yield row | {"value": value}
            if quantity.metric == "loss":
                yield row | {"metric": "perplexity", "value": math.exp(value) if value < 700 else math.inf}
    for metric, cost in measured.costs.get(place, {}).items():
        for seed, value in cost.by_seed.items():
            yield blank | {"task": "cost", "metric": metric, "seed": seed, "value": value, "n": None}
    yield from _trials(measured, place)


def _trials(measured: Measured, place: Place) -> Iterator[dict[str, Any]]:
    """What each trial was judged by, and what it cost."""
    for tuning in measured.results.tunings:
        for trial in tuning.trials if (tuning.base, tuning.dataset, tuning.variant) == place else ():
            row = {**place._asdict(), "seed": tuning.seed, "trial": trial.name, "slice": "", "n": None}
            if trial.score is not None:
                judged = {"split": "validation", "task": "training", "metric": measured.study.train.chosen_by}
                yield row | judged | {"value": trial.score}
            spent = [(name, [one.metrics[name] for one in trial.methods if name in one.metrics]) for name in _SPENT]
            for name, values in spent:
                if values:
                    yield row | {"split": "", "task": "cost", "metric": name, "value": sum(values)}


def _estimates(measured: Measured, place: Place) -> Iterator[dict[str, Any]]:
    for quantity, found in estimates_of(measured, place):
        yield {
            **place._asdict(),
            **quantity._asdict(),
            "mean": found.mean,
            "ci_low": found.low,
            "ci_high": found.high,
            "n_examples": found.n_examples,
            "n_documents": found.n_documents,
            "n_seeds": found.n_seeds,
        }
    for metric, cost in measured.costs.get(place, {}).items():
        yield {**place._asdict(), "split": "", "task": "cost", "slice": "", "metric": metric} | _cost(cost)


def _comparisons(measured: Measured, place: Place, reference: Place) -> Iterator[dict[str, Any]]:
    for quantity in measured.samples.get(place, {}) if place != reference else ():
        units = [quantity, quantity._replace(metric="perplexity")] if quantity.metric == "loss" else [quantity]
        for unit in units if quantity.metric in QUALITY else ():
            found = difference_of(measured, place, reference, unit)
            if found is not None:
                yield {
                    **place._asdict(),
                    **unit._asdict(),
                    "baseline": reference.variant,
                    "difference": found.mean,
                    "ci_low": _finite(found.low),
                    "ci_high": _finite(found.high),
                    "p": found.p,
                    "p_adjusted": found.p_adjusted,
                    "mde": _finite(found.mde),
                    "verdict": WITHHELD if withheld(measured, unit) else found.verdict,
                }


def _finite(value: float) -> float | None:
    """Empty where there is no bound: so few documents reject nothing."""
    return value if math.isfinite(value) else None


def _cost(cost: Cost) -> dict[str, Any]:
    return {"mean": cost.mean, "n_seeds": len(cost.by_seed)}


def _whole_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """Counts and bytes among the costs without `.0`."""
    name = "value" if "value" in table else "mean"
    if "task" not in table or name not in table:
        return table
    whole = (table["task"] == "cost") & (table[name] % 1 == 0)
    column = table[name].astype(object)
    column[whole] = [int(value) for value in table.loc[whole, name]]
    return table.assign(**{name: column})

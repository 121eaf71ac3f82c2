"""Loss curves, and what each epoch brought and cost.

`curves.jsonl` has a line for every optimizer step and one for every evaluation. A variant that trains more than once gets one
curve: steps, epochs, seconds and tokens of a later training continue those of the one before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from paretune.analysis.costs import trained_records
from paretune.pipeline.records import Cell, read_lines

CURVE_COLUMNS = (
    "epoch",
    "step",
    "train_loss",
    "validation_loss",
    "train_token_accuracy",
    "validation_token_accuracy",
    "learning_rate",
    "seconds",
    "tokens",
)
_PARTS = 4
_STEPS_TO_COMPARE = 8
_COUNTED = ("epoch", "step", "seconds", "tokens")


@dataclass(frozen=True)
class Epoch:
    """One pass over the training split, or what was done of it."""

    number: int
    end: float
    """Where it ended, in epochs: `number`, or less where training stopped inside it."""
    train_loss: float
    """Mean over the tokens of its steps."""
    validation_loss: float | None
    """Of the last evaluation in it."""
    validation_token_accuracy: float | None
    seconds: float
    """Of optimizer steps."""


def read_curve(cell: Cell) -> pd.DataFrame:
    """One row a step with CURVE_COLUMNS, NaN where nothing was measured; no rows for a variant that does not train."""
    parts, done = [], dict.fromkeys(_COUNTED, 0.0)
    for record in trained_records(cell):
        file = record.path / "curves.jsonl"
        if not file.exists():
            continue
        part = _by_step(read_lines(file))
        for name in _COUNTED:
            part[name] += done[name]
            done[name] = float(part[name].max())
        parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(CURVE_COLUMNS), dtype=float)


def epochs_of(curve: pd.DataFrame) -> list[Epoch]:
    """The epochs of one cell's curve, in order."""
    steps = curve.dropna(subset=["train_loss"])
    if steps.empty:
        return []
    tokens = np.diff(steps["tokens"].to_numpy(), prepend=0.0)
    seconds = np.diff(steps["seconds"].to_numpy(), prepend=0.0)
    numbers = _number(steps["epoch"])
    evaluations = curve.dropna(subset=["validation_loss"])
    evaluated = _number(evaluations["epoch"])
    found = []
    for number in np.unique(numbers):
        inside = numbers == number
        last = evaluations[evaluated == number].tail(1)
        found.append(
            Epoch(
                number=int(number),
                end=float(steps["epoch"].to_numpy()[inside].max()),
                train_loss=float(np.average(steps["train_loss"].to_numpy()[inside], weights=tokens[inside])),
                validation_loss=_only(last["validation_loss"]),
                validation_token_accuracy=_only(last["validation_token_accuracy"]),
                seconds=float(seconds[inside].sum()),
            )
        )
    return found


def disturbance(curve: pd.DataFrame) -> float | None:
    """The largest ratio between the speeds, in tokens a second, of the quarters of one training; None below 8 steps.

    Its first step is left out: it also warms up caches. What the quarters hold is shuffled, so their speeds differ by what else
    the machine did.
    """
    steps = curve.dropna(subset=["train_loss"])
    tokens, seconds = (np.diff(steps[name].to_numpy()) for name in ("tokens", "seconds"))
    if len(tokens) < _STEPS_TO_COMPARE - 1:
        return None
    parts = np.array_split(np.arange(len(tokens)), _PARTS)
    each = [seconds[part].sum() / tokens[part].sum() for part in parts if tokens[part].sum() > 0]
    return float(max(each) / min(each)) if len(each) == _PARTS and min(each) > 0 else None


def smoothed(values: Sequence[float], window: int) -> np.ndarray:
    """Running mean over `window` values around each; symmetric where the curve is steep, at its start, one-sided at its end."""
    whole = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    centre = np.arange(len(values))
    half = np.minimum(centre, window // 2)
    first, last = centre - half, np.minimum(centre + half, len(values) - 1)
    means: np.ndarray = (whole[last + 1] - whole[first]) / (last + 1 - first)
    return means


def _by_step(written: Sequence[Mapping[str, float]]) -> pd.DataFrame:
    rows: dict[float, dict[str, float]] = {}
    for row in written:
        rows.setdefault(row["step"], {}).update(row)
    table = pd.DataFrame([rows[step] for step in sorted(rows)], columns=list(CURVE_COLUMNS))
    return table.astype(float)


def _number(epochs: pd.Series) -> np.ndarray:
    # The step that ends epoch 2 has epoch 2.0, perhaps a rounding above it.
    numbers: np.ndarray = np.maximum(1, np.ceil(epochs.to_numpy() - 1e-6)).astype(int)
    return numbers


def _only(values: pd.Series) -> float | None:
    return None if values.empty or pd.isna(values.iloc[0]) else float(values.iloc[0])

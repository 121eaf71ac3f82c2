"""How models were made: loss curves, what each epoch brought and cost, and which blocks a measured choice removed.

`curves.jsonl` has a line for every optimizer step and one for every evaluation. A variant that trains more than once gets one
curve: steps, epochs, seconds and tokens of a later training continue those of the one before. `block_scores.parquet` beside the
records of `prune.blocks` has the columns `removed` (list of block indices), `document`, `sum` and `tokens`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from paretune.analysis.inference import ratio_interval
from paretune.pipeline.records import Cell, Record, read_lines

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
_FALLING = 0.005
"""Relative drop of a loss at the end of a training that counts as still falling."""
_STEPS_TO_JUDGE = 16
"""Of a training whose train loss is judged."""
_LAST_PART = 20
"""So many parts a training has, of which the last is looked at for a rise."""
_WINDOWS = 15
"""So many windows of the running mean a training has."""
_CERTAIN = 2.0
"""Standard errors by which the train loss of the last quarter has to lie below that of the quarter before."""
_SUMS = ("sum", "tokens", "reference")
"""Columns of the scores of a choice of blocks that are numbers."""


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


@dataclass(frozen=True)
class BlockScore:
    """How a model does without a set of blocks, and by how much its score is higher than that of the chosen set."""

    removed: tuple[int, ...]
    mean: float
    low: float
    high: float
    more: float
    more_low: float
    more_high: float
    is_reference: bool
    """What the others are compared with."""
    is_removed: bool


@dataclass(frozen=True)
class BlockChoice:
    """A choice of blocks that was measured on training text."""

    entrants: tuple[tuple[str, int | None], ...]
    """Variants that share it, with the seed where the choice differs from seed to seed."""
    removed: tuple[int, ...]
    num_blocks: int
    """Before the removal."""
    criterion: str
    """`loss`, `influence` or `angular`."""
    tried: str
    """Which sets: `all sets`, `one at a time`, `race`, `runs` or `blocks`."""
    num_tokens: int
    """That were read; `num_targets` of them were scored."""
    num_targets: int
    num_documents: int
    scores: tuple[BlockScore, ...]
    """The whole model, then the sets of the size that was compared, the best first."""
    chosen_again: float | None = None
    """Share of resamples of the documents that choose the same; None of a record from before it was told."""
    num_alike: int = 0
    """Sets of its size, or blocks, that the text does not tell from what was taken."""


def read_curve(cell: Cell) -> pd.DataFrame:
    """One row a step with CURVE_COLUMNS, NaN where nothing was measured; no rows for a variant that does not train."""
    parts, done = [], dict.fromkeys(_COUNTED, 0.0)
    for record in cell.trained:
        file = record.path / "curves.jsonl"
        if not file.exists():
            continue
        written = pd.DataFrame(read_lines(file), columns=list(CURVE_COLUMNS), dtype=float)
        part = written.groupby("step", as_index=False).last()[list(CURVE_COLUMNS)]  # training and validation are written apart
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


def loss_falls(curves: Sequence[pd.DataFrame]) -> tuple[bool, bool]:
    """Of the curves of a variant's seeds: whether the validation loss fell in the last epoch, or, where it was evaluated once,
    the train loss in the last quarter.

    In every seed, by at least 0.5 %; the train loss, which scatters from step to step, also by two standard errors, and not
    where its running mean rises in the last twentieth.
    """
    ends = [[epoch.validation_loss for epoch in epochs_of(curve)[-2:] if epoch.validation_loss is not None] for curve in curves]
    validation = all(len(losses) == 2 and losses[1] < losses[0] * (1 - _FALLING) for losses in ends)
    train = all(len(losses) < 2 for losses in ends) and all(_train_loss_falls(curve) for curve in curves)
    return bool(curves) and validation, bool(curves) and train


def read_block_choices(cells: Iterable[Cell], level: float) -> list[BlockChoice]:
    """The measured choices of some cells, each once; what is chosen before a training is one for all of its seeds."""
    chosen: dict[str, tuple[Record, list[tuple[str, int | None]]]] = {}
    by_variant: dict[str, list[tuple[int | None, Record]]] = {}
    for cell in cells:
        found = [(cell.seed, record) for record in cell.methods if "block_scores" in record.metrics]
        by_variant.setdefault(cell.variant, []).extend(found)
    for variant, records in by_variant.items():
        by_seed = len({record.key for _, record in records}) == len(records) > 1
        for seed, record in records:
            chosen.setdefault(record.key, (record, []))[1].append((variant, seed if by_seed else None))
    return [_block_choice(record, tuple(dict.fromkeys(entrants)), level) for record, entrants in chosen.values()]


def smoothed(values: Sequence[float], window: int) -> np.ndarray:
    """Running mean over `window` values around each; symmetric where the curve is steep, at its start, one-sided at its end."""
    whole = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    centre = np.arange(len(values))
    half = np.minimum(centre, window // 2)
    first, last = centre - half, np.minimum(centre + half, len(values) - 1)
    means: np.ndarray = (whole[last + 1] - whole[first]) / (last + 1 - first)
    return means


def running_mean(losses: Sequence[float]) -> np.ndarray:
    """A train loss as its figure shows it."""
    return smoothed(losses, max(1, len(losses) // _WINDOWS))


def _number(epochs: pd.Series) -> np.ndarray:
    # The step that ends epoch 2 has epoch 2.0, perhaps a rounding above it.
    numbers: np.ndarray = np.maximum(1, np.ceil(epochs.to_numpy() - 1e-6)).astype(int)
    return numbers


def _only(values: pd.Series) -> float | None:
    return None if values.empty or pd.isna(values.iloc[0]) else float(values.iloc[0])


def _train_loss_falls(curve: pd.DataFrame) -> bool:
    losses = curve["train_loss"].dropna().to_numpy()
    if len(losses) < _STEPS_TO_JUDGE:
        return False
    *_, before, last = np.array_split(losses, 4)
    error = math.sqrt(before.var(ddof=1) / len(before) + last.var(ddof=1) / len(last))
    shown = running_mean(losses)
    rises = shown[-1] > shown[-1 - max(1, len(shown) // _LAST_PART)]
    return bool(before.mean() - last.mean() > max(_FALLING * before.mean(), _CERTAIN * error)) and not rises


def _block_choice(record: Record, entrants: tuple[tuple[str, int | None], ...], level: float) -> BlockChoice:
    metrics = record.metrics
    removed = tuple(metrics["removed_blocks"])
    table = pd.read_parquet(record.path / "block_scores.parquet")
    sets = [tuple(map(int, entry["removed"])) for entry in metrics["block_scores"]]
    names = [",".join(map(str, blocks)) for blocks in sets]
    table["set"] = [",".join(map(str, blocks)) for blocks in table["removed"]]
    # A race has measured some sets on the first part of the text alone.
    by_set = {name: rows.sort_values("document") for name, rows in table.groupby("set")}
    columns = [{key: by_set[name][key].to_numpy(dtype=np.float64) for key in table if key in _SUMS} for name in names]
    means = [float(column["sum"].sum() / column["tokens"].sum()) for column in columns]
    # A choice by influence takes several blocks that were scored apart: the worst of them is what the others must beat.
    taken = [index for index, blocks in enumerate(sets) if blocks and set(blocks) <= set(removed)]
    reference = sets.index(removed) if removed in sets else max(taken, key=lambda index: means[index])
    order = [index for index, blocks in enumerate(sets) if len(blocks) == len(sets[reference])]
    order.sort(key=lambda index: means[index])
    scores = []
    for index in [index for index, blocks in enumerate(sets) if not blocks] + order:
        sums, tokens = columns[index]["sum"], columns[index]["tokens"]
        paired = columns[index].get("reference")
        more = sums - (columns[reference]["sum"] if paired is None or np.isnan(paired).any() else paired)
        scores.append(
            BlockScore(
                sets[index],
                means[index],
                *ratio_interval(sums, tokens, level),
                float(more.sum() / tokens.sum()),
                *ratio_interval(more, tokens, level),
                is_reference=index == reference,
                is_removed=index == reference or (removed not in sets and index in taken),
            )
        )
    return BlockChoice(
        entrants=entrants,
        removed=removed,
        num_blocks=metrics["blocks_before"],
        criterion=record.config["method"]["choose"],
        tried=metrics["tried"],
        chosen_again=metrics.get("chosen_again"),
        num_alike=len(metrics.get("sets_alike", ())),
        num_tokens=metrics["calibration_tokens"],
        num_targets=metrics.get("calibration_targets", metrics["calibration_tokens"]),
        num_documents=metrics["calibration_documents"],
        scores=tuple(scores),
    )

"""What stands between a ranking of runs and one of methods: untuned rates, short trainings, and a choice on validation text.

Each caveat is computed and said only where it holds.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from paretune.analysis import wording
from paretune.analysis.choose import latency_name
from paretune.analysis.costs import DISTURBED, noise_of
from paretune.analysis.curves import epochs_of
from paretune.analysis.measured import Group, Measured
from paretune.analysis.scores import Place, Quantity

TRAINING_SPEED = "training speed"
TIME_PER_TOKEN = "time per token"
_FALLING = 0.005
"""Relative drop of a loss at the end of a training that counts as still falling."""
_STEPS = 16
"""Of a training whose train loss is judged."""
_CERTAIN = 2.0
"""Standard errors by which the train loss of the last quarter has to lie below that of the quarter before."""


def untuned(measured: Measured) -> Iterator[str]:
    """Said where methods are compared that were each trained at a single learning rate."""
    rates: dict[str, set[float]] = {}
    for variant in measured.study.variants.values():
        for use in (use for chain in variant.chains for use in chain):
            if use.row.trains:
                rates.setdefault(use.name, set()).add(use.config.model_dump()["learning_rate"])
    if len(rates) > 1 and all(len(found) == 1 for found in rates.values()):
        told = [f"{wording.code(name)} {next(iter(found)):g}" for name, found in rates.items()]
        yield f"One learning rate a method ({wording.listed(told)}), not tuned: this ranks these runs, not the methods."


def short_training(measured: Measured, group: Group) -> Iterator[str]:
    """Said of the variants that more training may improve."""
    validation, train = falling(measured, group)
    told = [
        f"{word} of {wording.listed(names)}"
        for word, names in (("validation loss", validation), ("train loss", train))
        if names
    ]
    if told:
        yield f"Short training: the {wording.listed(told)} was still falling at the end; more training may change the ranking."


def chosen_on_validation(measured: Measured, quantity: Quantity | None) -> Iterator[str]:
    """Said where the text that ranks variants has also chosen their weights, or the values that were tuned."""
    train = measured.study.train
    chosen = ["the weights that were kept"] if train.keep == "best" else []
    chosen += ["when training stopped"] if train.early_stopping is not None and not chosen else []
    chosen += ["the values that were tuned"] if any(one.trials for one in measured.study.variants.values()) else []
    if quantity is not None and quantity.split == "validation" and chosen and any(len(one) for one in measured.curves.values()):
        what = wording.listed(chosen)
        yield f"Ranked on validation, which also chose {what}: these figures are too good, and a test split would tell."


def disturbed_times(measured: Measured, group: Group) -> dict[str, float]:
    """How much runs that should be equally fast differ, in training speed and time per token, where the machine was busy."""
    timed = [place for place in group.places if "ms_per_token" in measured.costs.get(place, {})]
    names = {TRAINING_SPEED: "train_tokens_per_second", TIME_PER_TOKEN: latency_name(measured, timed)}
    noise = {word: noise_of(measured.costs, name, group.places[0]) for word, name in names.items()}
    return {word: factor for word, factor in noise.items() if factor is not None and factor > DISTURBED}


def falling(measured: Measured, group: Group) -> tuple[list[str], list[str]]:
    """Variants whose validation loss fell in the last epoch, and those of one evaluation whose train loss fell at the end.

    In every seed, by at least 0.5 %; the train loss, which scatters from step to step, also by two standard errors.
    """
    found: tuple[list[str], list[str]] = ([], [])
    for place in group.places:
        curves = _curves(measured, place)
        pairs = [_last_two(curve) for curve in curves]
        if curves and all(pair is not None and pair[1] < pair[0] * (1 - _FALLING) for pair in pairs):
            found[0].append(wording.code(place.variant))
        if curves and all(pair is None for pair in pairs) and all(_train_loss_falls(curve) for curve in curves):
            found[1].append(wording.code(place.variant))
    return found


def _curves(measured: Measured, place: Place) -> Sequence[pd.DataFrame]:
    curves: Mapping[object, pd.DataFrame] = {run: curve for run, curve in measured.curves.items() if run[0] == place}
    return [curve for curve in curves.values() if len(curve)]


def _last_two(curve: pd.DataFrame) -> tuple[float, float] | None:
    """Validation losses of the last two epochs; None where they were not both measured."""
    losses = [epoch.validation_loss for epoch in epochs_of(curve)][-2:]
    if len(losses) < 2 or losses[0] is None or losses[1] is None:
        return None
    return losses[0], losses[1]


def _train_loss_falls(curve: pd.DataFrame) -> bool:
    losses = curve["train_loss"].dropna().to_numpy()
    if len(losses) < _STEPS:
        return False
    *_, before, last = np.array_split(losses, 4)
    error = math.sqrt(before.var(ddof=1) / len(before) + last.var(ddof=1) / len(last))
    return bool(before.mean() - last.mean() > max(_FALLING * before.mean(), _CERTAIN * error))

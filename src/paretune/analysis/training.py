"""The training part of a report: loss and time of each epoch, totals, speed, and what the curves show."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from paretune.analysis import wording
from paretune.analysis.caveats import falling
from paretune.analysis.cells import cost_cell, spread_cell
from paretune.analysis.costs import trained_records
from paretune.analysis.curves import Epoch, epochs_of
from paretune.analysis.document import Block, Bullets, Picture, Section, Table
from paretune.analysis.figures import curves_name
from paretune.analysis.measured import Group, Measured, baseline, cells_of
from paretune.analysis.scores import Place, Seed
from paretune.analysis.sentences import training_speed

_EPOCHS_SHOWN = 12


def training_section(measured: Measured, group: Group, figures: frozenset[str]) -> Section | None:
    """Loss and time of each epoch, totals and speed; None if nothing was trained."""
    epochs = {name: _epochs(measured, group.place(name)) for name in group.variants}
    trained = {name: by_seed for name, by_seed in epochs.items() if any(by_seed.values())}
    if not trained:
        return None
    rows = [row for name, by_seed in trained.items() for row in _epoch_rows(name, list(by_seed.values()))]
    header = ("variant", "epoch", "train loss", "validation loss", "token accuracy", "time")
    seeds = max(len(by_seed) for by_seed in trained.values())
    spread = "; mean over seeds, ± is half their range" if seeds > 1 else ""
    blocks: list[Block] = [Table(header, rows, f"Losses in nats per token, accuracy on validation{spread}", grouped=True)]
    blocks.append(_totals(measured, group, list(trained)))
    if notes := list(_training_notes(measured, group, trained)):
        blocks.append(Bullets(notes))
    if curves_name(group) in figures:
        blocks.append(Picture(f"figures/{curves_name(group)}", f"loss curves of {group.base} on {group.dataset}"))
    return Section("Training", blocks, level=3)


def _epochs(measured: Measured, place: Place) -> dict[Seed, list[Epoch]]:
    found = {cell.seed: epochs_of(measured.curves[(place, cell.seed)]) for cell in cells_of(measured, place)}
    return {seed: epochs for seed, epochs in found.items() if epochs}


def _epoch_rows(name: str, seeds: Sequence[Sequence[Epoch]]) -> Iterator[list[str]]:
    longest = max(seeds, key=len)
    shown = range(len(longest))
    if len(longest) > _EPOCHS_SHOWN:
        step = math.ceil(len(longest) / _EPOCHS_SHOWN)
        shown = range(0, len(longest), step)
    for index in [*shown, *([len(longest) - 1] if shown[-1] != len(longest) - 1 else [])]:
        here = [epochs[index] for epochs in seeds if index < len(epochs)]
        yield [
            name,
            _epoch_name(here[0]),
            _mean_spread([epoch.train_loss for epoch in here]),
            _mean_spread([epoch.validation_loss for epoch in here if epoch.validation_loss is not None]),
            _accuracy([epoch.validation_token_accuracy for epoch in here if epoch.validation_token_accuracy is not None]),
            wording.seconds(fmean(epoch.seconds for epoch in here)),
        ]


def _epoch_name(epoch: Epoch) -> str:
    whole = math.isclose(epoch.end, epoch.number, abs_tol=1e-6)
    return str(epoch.number) if whole else f"{epoch.number} (ended at {epoch.end:.2f} epochs)"


def _mean_spread(values: Sequence[float]) -> str:
    if not values:
        return wording.UNKNOWN
    mean = fmean(values)
    if len(values) == 1:
        return wording.number(mean)
    half = (max(values) - min(values)) / 2
    return f"{wording.number(mean)} ± {half:.{max(3, wording.decimals(mean))}f}"


def _accuracy(values: Sequence[float]) -> str:
    return wording.share(fmean(values)) if values else wording.UNKNOWN


def _totals(measured: Measured, group: Group, trained: Sequence[str]) -> Table:
    reference = baseline(measured, group)
    header = ["variant", "tokens", "training", "tokens per second", "all in all", "peak memory"]
    compare = reference is not None and reference.variant in trained
    if compare and reference is not None:
        header.append(f"speed against {reference.variant}")
    rows = []
    for name in trained:
        place = group.place(name)
        costs = measured.costs[place]
        row = [
            name,
            cost_cell(costs, "train_tokens", wording.count),
            cost_cell(costs, "train_seconds", wording.seconds),
            spread_cell(costs, "train_tokens_per_second"),
            cost_cell(costs, "wall_seconds", wording.seconds),
            cost_cell(costs, "peak_memory_bytes", wording.size),
        ]
        if compare and reference is not None:
            row.append(_speed(measured, place, reference))
        rows.append(row)
    caption = "Totals; training is optimizer steps only, tokens are real tokens without padding, all in all includes evaluation"
    return Table(header, rows, caption)


def _speed(measured: Measured, place: Place, reference: Place) -> str:
    if place == reference:
        return "1 (baseline)"
    one, other = (measured.costs[each].get("train_tokens_per_second") for each in (place, reference))
    if one is None or other is None:
        return wording.UNKNOWN
    if one.machines != other.machines or len(one.machines) > 1:
        return "other machine"
    value = wording.times(one.mean / other.mean)
    return value if training_speed(measured, place, reference) is not None else f"{value} (not clear)"


def _training_notes(measured: Measured, group: Group, trained: Mapping[str, Mapping[Seed, Sequence[Epoch]]]) -> Iterator[str]:
    for name, by_seed in trained.items():
        yield from _best_epoch(name, by_seed)
    validation, train = falling(measured, group)
    if validation:
        yield f"Validation loss was still falling in the last epoch for {wording.listed(validation)}: more training may help."
    if train:
        yield f"Train loss was still falling in the last quarter for {wording.listed(train)}: more training may help."
    dropouts = {
        tuple(record.metrics.get("base_dropout") or [])
        for name in trained
        for cell in cells_of(measured, group.place(name))
        for record in trained_records(cell)
    }
    for rates in dropouts:
        if any(rates):
            yield f"The base's own dropout was on in training ({', '.join(f'{rate:g}' for rate in sorted(set(rates)))})."


def _best_epoch(name: str, by_seed: Mapping[Seed, Sequence[Epoch]]) -> Iterator[str]:
    best = []
    for epochs in by_seed.values():
        losses = [epoch.validation_loss for epoch in epochs]
        known = [loss for loss in losses if loss is not None]
        if known and losses[-1] is not None and losses[-1] > min(known):
            best.append(epochs[losses.index(min(known))].number)
    if best and len(best) == len(by_seed):
        last = max(len(epochs) for epochs in by_seed.values())
        which = wording.listed([str(number) for number in sorted(set(best))], "or")
        yield f"{wording.code(name)}: validation loss was lowest after epoch {which} of {last} and rose after it (overfitting)."

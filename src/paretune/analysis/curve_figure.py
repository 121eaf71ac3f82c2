"""Loss curves of one base on one dataset: train loss and validation loss by epoch, names beside the lines."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from paretune.analysis.curves import smoothed
from paretune.analysis.looks import COLOURS, Look, looks, short_names, write_title
from paretune.analysis.measured import Group, Measured
from paretune.analysis.scores import Place


def draw_curves(measured: Measured, group: Group) -> Figure | None:
    """Train and validation loss by epoch, every seed thin and their mean thick; None if nothing was trained."""
    places = group.places
    shown = [place for place in places if any(owner == place and len(curve) for (owner, _), curve in measured.curves.items())]
    if not shown:
        return None
    figure = Figure(figsize=(9.5, max(3.6, 0.19 * len(shown) + 1.2)))
    evaluated = any(measured.curves[run]["validation_loss"].count() > 1 for run in measured.curves if run[0] in shown)
    panels = figure.subplots(1, 2 if evaluated else 1, sharey=True, squeeze=False, gridspec_kw={"wspace": 0.06})[0]
    left, right = panels[0], panels[1] if evaluated else None
    style = looks(measured.study)
    seeds = len({seed for place, seed in measured.curves if place in shown})
    thin = seeds > 1 and len(shown) <= len(COLOURS)
    ends: dict[str, float] = {}
    lowest, highest = np.inf, -np.inf
    for place in shown:
        look = style[place.variant]
        train = _draw_lines(left, measured, place, "train_loss", look, thin)
        # A single evaluation is a dot, and stands in the table.
        validation = [] if right is None else _draw_lines(right, measured, place, "validation_loss", look, thin)
        ends[place.variant] = (validation or train)[-1]
        lowest, highest = min([lowest, *train, *validation]), max([highest, *train, *validation])
    margin = 0.06 * (highest - lowest or 1)
    left.set_ylim(lowest - margin, highest + margin)
    _label_ends(panels[-1], ends, style, short_names(measured.study.variants))
    left.set_title("Train loss (running mean)")
    if right is not None:
        right.set_title("Validation loss")
    left.set_ylabel("nats per token")
    for axes in panels:
        axes.set_xlabel("epoch")
        axes.set_xlim(left=0)
        axes.grid(axis="y", color="#E6E6E6", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=axes.get_xlim()[1] > 2))
    note = " (thin lines: seeds)" if thin else f" (mean of {seeds} seeds)" if seeds > 1 else ""
    write_title(figure, f"{group.base} on {group.dataset}{note}")
    return figure


def _draw_lines(axes: Axes, measured: Measured, place: Place, column: str, look: Look, thin: bool) -> list[float]:
    """Draw the mean over seeds, and `thin` each seed; returns the drawn losses, the last one being where the mean ends."""
    lines = []
    for (owner, _), curve in measured.curves.items():
        points = curve.dropna(subset=[column])
        if owner != place or points.empty:
            continue
        values = points[column].to_numpy()
        drawn = smoothed(values, max(1, len(values) // 15)) if column == "train_loss" else values
        lines.append((points["epoch"].to_numpy(), drawn))
    if not lines:
        return []
    marker = look.marker if column == "validation_loss" and max(len(x) for x, _ in lines) <= 40 else ""
    if len(lines) > 1 and thin:
        for x, y in lines:
            axes.plot(x, y, color=look.colour, linewidth=0.7, alpha=0.5, linestyle=look.line)
    shared = min((x for x, _ in lines), key=len)
    mean = np.mean([y[: len(shared)] for _, y in lines], axis=0)
    axes.plot(shared, mean, color=look.colour, linewidth=1.9, linestyle=look.line, marker=marker, markersize=4.5)
    return [*(value for _, y in lines for value in y), float(mean[-1])]


def _label_ends(axes: Axes, ends: dict[str, float], style: dict[str, Look], short: Mapping[str, str]) -> None:
    """Names right of the lines' ends, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    height = axes.get_window_extent().height / axes.figure.dpi * 72
    names = sorted(ends, key=lambda name: ends[name])
    wanted = np.array([(ends[name] - low) / (high - low) for name in names])
    for name, value, place in zip(names, wanted, _apart(wanted, 11.5 / height), strict=True):
        axes.annotate(
            short[name],
            xy=(1.0, value),
            xytext=(1.045, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=style[name].colour,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": style[name].colour,
                "linewidth": 0.6,
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def _apart(wanted: np.ndarray, gap: float) -> np.ndarray:
    """Sorted positions in [0, 1] moved so that neighbours are `gap` apart, as little as possible."""
    # Least squares under `place[i + 1] - place[i] >= gap` is isotonic regression of wanted[i] - i * gap.
    shift = gap * np.arange(len(wanted))
    blocks: list[list[float]] = []
    for value in wanted - shift:
        blocks.append([value, 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, size = blocks.pop()
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + mean * size) / (blocks[-1][1] + size), blocks[-1][1] + size]
    placed: np.ndarray = np.concatenate([np.full(int(size), mean) for mean, size in blocks]) + shift
    return placed

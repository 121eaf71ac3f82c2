"""Figures: loss curves of each base on each dataset, and what quality costs, as small multiples.

One colour a variant in every figure of a study (Okabe and Ito's palette, safe for colour-blind readers), names beside the lines
instead of a legend, one axis a panel.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from paretune.analysis import wording
from paretune.analysis.compare import LOWER_IS_BETTER
from paretune.analysis.costs import Cost
from paretune.analysis.curves import smoothed
from paretune.analysis.measured import Group, Measured, baseline, difference_of, estimate_of, headline
from paretune.analysis.scores import Place, Quantity
from paretune.spec.study import Study

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_UNTOUCHED = "#7F7F7F"
_LINES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D")
_GREY = "#555555"
_NAME_LENGTH = 30
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GREY,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelcolor": _GREY,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.15,
}
TITLES = {
    "bits_per_byte": "Bits per byte",
    "loss": "Loss, nats per token",
    "log_likelihood": "Log-likelihood of the answer",
    "accuracy": "Accuracy",
    "exact_match": "Exact match",
    "contains": "Answer contained",
}


@dataclass(frozen=True)
class Look:
    colour: str
    line: str
    marker: str


@dataclass(frozen=True)
class _Row:
    """A line of the comparison: a variant, or the name of a base above its variants."""

    place: Place | None
    label: str


@dataclass(frozen=True)
class _Point:
    mean: float
    low: float
    high: float
    text: str

    @property
    def left(self) -> float:
        return self.low if np.isfinite(self.low) else self.mean

    @property
    def right(self) -> float:
        return self.high if np.isfinite(self.high) else self.mean


@dataclass(frozen=True)
class _Panel:
    title: str
    points: Mapping[Place, _Point]
    from_zero: bool = True
    """Bars from 0, or points with intervals."""
    zero_line: bool = False
    missing: str = "not measured"


def write_figures(measured: Measured, out: Path) -> list[Path]:
    """Draw every figure that there are numbers for into `out`/figures and return the files."""
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(_STYLE):
        for group in measured.groups:
            file = folder / curves_name(group)
            if (figure := draw_curves(measured, group)) is not None:
                figure.savefig(file)
                written.append(file)
        for dataset in dict.fromkeys(group.dataset for group in measured.groups):
            file = folder / comparison_name(dataset)
            if (figure := draw_comparison(measured, dataset)) is not None:
                figure.savefig(file)
                written.append(file)
    return written


def curves_name(group: Group) -> str:
    return f"curves-{group.dataset}-{group.base}.png"


def comparison_name(dataset: str) -> str:
    return f"comparison-{dataset}.png"


def looks(study: Study) -> dict[str, Look]:
    """Colour, line and marker of each variant; untouched bases are grey."""
    found, used = {}, 0
    for name, variant in study.variants.items():
        if not variant.methods:
            found[name] = Look(_UNTOUCHED, "-", "o")
            continue
        turn, colour = divmod(used, len(_COLOURS))
        found[name] = Look(_COLOURS[colour], _LINES[turn % len(_LINES)], _MARKERS[turn % len(_MARKERS)])
        used += 1
    return found


def draw_curves(measured: Measured, group: Group) -> Figure | None:
    """Train and validation loss by epoch, every seed thin and their mean thick; None if nothing was trained."""
    places = [group.place(name) for name in group.variants]
    shown = [place for place in places if any(owner == place and len(curve) for (owner, _), curve in measured.curves.items())]
    if not shown:
        return None
    figure = Figure(figsize=(9.5, max(3.6, 0.19 * len(shown) + 1.2)))
    left, right = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.06})
    style = looks(measured.study)
    ends: dict[str, float] = {}
    lowest, highest = np.inf, -np.inf
    for place in shown:
        look = style[place.variant]
        train = _draw_lines(left, measured, place, "train_loss", look)
        validation = _draw_lines(right, measured, place, "validation_loss", look)
        ends[place.variant] = (validation or train)[-1]
        lowest, highest = min([lowest, *train, *validation]), max([highest, *train, *validation])
    margin = 0.06 * (highest - lowest or 1)
    left.set_ylim(lowest - margin, highest + margin)
    _label_ends(right, ends, style)
    left.set_title("Train loss (running mean)")
    right.set_title("Validation loss")
    left.set_ylabel("nats per token")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.set_xlim(left=0)
        axes.grid(axis="y", color="#E6E6E6", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=axes.get_xlim()[1] > 2))
    seeds = len({seed for (place, seed) in measured.curves if place in shown})
    _title(figure, f"{group.base} on {group.dataset}" + ("; thin lines are seeds" if seeds > 1 else ""))
    return figure


def draw_comparison(measured: Measured, dataset: str) -> Figure | None:
    """Quality with intervals beside size, training time and latency, one row a variant; None if nothing was measured."""
    groups = [group for group in measured.groups if group.dataset == dataset]
    quality = next((found for group in groups if (found := headline(measured, group)) is not None), None)
    rows = _rows(groups)
    places = [row.place for row in rows if row.place is not None]
    references = {group.place(name): baseline(measured, group) for group in groups for name in group.variants}
    panels = [] if quality is None else _quality_panels(measured, quality, references)
    panels += _cost_panels(measured, places)
    if not panels:
        return None
    figure = Figure(figsize=(2.7 * len(panels) + 0.6, 0.32 * len(rows) + 1.1))
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False, gridspec_kw={"wspace": 0.14})[0]
    _set_up_rows(all_axes[0], rows)
    style = looks(measured.study)
    for axes, panel in zip(all_axes, panels, strict=True):
        _draw_panel(axes, panel, rows, style, {place for place in references.values() if place is not None})
    names = wording.listed([group.base for group in groups])
    dotted = f"dotted: the baseline, {measured.study.baseline}; " if any(references.values()) else ""
    lines = f"lines: {measured.level:.0%} intervals over documents" if quality is not None else "lines: range over seeds"
    _title(figure, f"{names} on {dataset} ({dotted}{lines})")
    return figure


def _draw_lines(axes: Axes, measured: Measured, place: Place, column: str, look: Look) -> list[float]:
    """Draw every seed and their mean; returns the drawn losses, the last one being where the mean ends."""
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
    if len(lines) > 1:
        for x, y in lines:
            axes.plot(x, y, color=look.colour, linewidth=0.7, alpha=0.5, linestyle=look.line)
    shared = min((x for x, _ in lines), key=len)
    mean = np.mean([y[: len(shared)] for _, y in lines], axis=0)
    axes.plot(shared, mean, color=look.colour, linewidth=1.9, linestyle=look.line, marker=marker, markersize=4.5)
    return [*(value for _, y in lines for value in y), float(mean[-1])]


def _label_ends(axes: Axes, ends: dict[str, float], style: dict[str, Look]) -> None:
    """Names right of the lines' ends, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    height = axes.get_window_extent().height / axes.figure.dpi * 72
    names = sorted(ends, key=lambda name: ends[name])
    wanted = np.array([(ends[name] - low) / (high - low) for name in names])
    for name, value, place in zip(names, wanted, _apart(wanted, 11.5 / height), strict=True):
        axes.annotate(
            _short(name),
            xy=(1.0, value),
            xytext=(1.045, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=style[name].colour,
            va="center",
            arrowprops={"arrowstyle": "-", "color": style[name].colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0},
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


def _rows(groups: Sequence[Group]) -> list[_Row]:
    rows = []
    for group in groups:
        if len(groups) > 1:
            rows.append(_Row(None, group.base))
        rows += [_Row(group.place(name), _short(name)) for name in group.variants]
    return rows


def _set_up_rows(axes: Axes, rows: Sequence[_Row]) -> None:
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    for row, label in zip(rows, axes.get_yticklabels(), strict=True):
        label.set_color("black")
        label.set_fontweight("bold" if row.place is None else "normal")


def _quality_panels(measured: Measured, quantity: Quantity, references: Mapping[Place, Place | None]) -> list[_Panel]:
    """The quantity itself, and its paired difference from the baseline, which is known far better."""
    name = TITLES.get(quantity.metric, quantity.metric)
    points, differences = {}, {}
    for place, reference in references.items():
        if (one := estimate_of(measured, place, quantity)) is not None:
            points[place] = _Point(one.mean, one.low, one.high, wording.number(one.mean))
        if reference is None or place == reference:
            continue
        if (other := difference_of(measured, place, reference, quantity)) is not None:
            places = wording.decimals(max(abs(other.mean), (other.high - other.low) / 2), 2)
            differences[place] = _Point(other.mean, other.low, other.high, f"{other.mean:+.{min(places, 4)}f}")
    better = "lower is better" if quantity.metric in LOWER_IS_BETTER else "higher is better"
    where = quantity.split or quantity.task
    panels = [_Panel(f"{name} on {where}\n{better}", points, from_zero=False)]
    if differences:
        panels.append(_Panel("Its difference from the\nbaseline, paired", differences, from_zero=False, zero_line=True))
    return panels


def _cost_panels(measured: Measured, places: Sequence[Place]) -> list[_Panel]:
    """Size, training time and latency, as far as they were measured."""
    found: dict[str, dict[Place, Cost]] = {}
    for place in places:
        for name, cost in measured.costs.get(place, {}).items():
            found.setdefault(name, {})[place] = cost
    latency = "ms_per_token_median" if "ms_per_token_median" in found else "ms_per_token"
    kinds: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("parameters", "Parameters", wording.amount),
        ("train_seconds", "Training time, seconds", wording.number),
        (latency, "Milliseconds per token", wording.number),
    )
    panels = []
    for name, title, text in kinds:
        costs = found.get(name)
        if costs:
            points = {place: _Point(one.mean, one.low, one.high, text(one.mean)) for place, one in costs.items()}
            missing = "not trained" if name == "train_seconds" else "not measured"
            panels.append(_Panel(title + _machines(list(costs.values())), points, missing=missing))
    return panels


def _draw_panel(axes: Axes, panel: _Panel, rows: Sequence[_Row], style: Mapping[str, Look], marked: set[Place]) -> None:
    for at, row in enumerate(rows):
        if row.place is None:
            continue
        point, look = panel.points.get(row.place), style[row.place.variant]
        if point is None:
            missing = "baseline" if panel.zero_line and row.place in marked else panel.missing
            _annotate(axes, 0 if panel.from_zero or panel.zero_line else _left_of(panel), at, missing, _GREY)
            continue
        if panel.from_zero:
            hatch = "" if look.line == "-" else "///"
            axes.barh(at, point.mean, height=0.62, color=look.colour, hatch=hatch, edgecolor="white", zorder=2)
        else:
            axes.plot(point.mean, at, marker=look.marker, color=look.colour, markersize=6, zorder=4)
        if np.isfinite(point.low) and point.high > point.low:
            colour = "black" if panel.from_zero else look.colour
            axes.plot([point.low, point.high], [at, at], color=colour, linewidth=1 if panel.from_zero else 2, zorder=3)
        _annotate(axes, point.right, at, point.text, "black")
        if row.place in marked:
            axes.axvline(point.mean, color=_GREY, linewidth=0.8, linestyle=":", zorder=1)
    if panel.zero_line:
        axes.axvline(0, color=_GREY, linewidth=0.8, linestyle=":", zorder=1)
    axes.set_title(panel.title)
    axes.set_xlim(*_limits(panel))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    if panel.from_zero:
        axes.xaxis.set_major_formatter(lambda value, _: _tick(value))


def _limits(panel: _Panel) -> tuple[float, float]:
    ends = [value for point in panel.points.values() for value in (point.left, point.right)]
    if panel.from_zero:
        return 0, max(ends) * 1.42 or 1
    if panel.zero_line:
        ends.append(0)
    width = max(ends) - min(ends) or abs(max(ends)) or 1
    return min(ends) - 0.08 * width, max(ends) + 0.36 * width


def _tick(value: float) -> str:
    unit, scale = ("B", 1e9) if value >= 1e9 else ("M", 1e6) if value >= 1e6 else ("k", 1e3) if value >= 1e4 else ("", 1)
    return f"{value / scale:g} {unit}".strip()


def _left_of(panel: _Panel) -> float:
    return min(point.left for point in panel.points.values())


def _annotate(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    axes.annotate(
        text,
        xy=(x, y),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=colour,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        zorder=3,
    )


def _title(figure: Figure, text: str) -> None:
    first = figure.axes[0]
    lines = max(axes.get_title("left").count("\n") + 1 for axes in figure.axes)
    above = (0.16 + 0.19 * lines) / figure.get_figheight()
    figure.suptitle(text, x=first.get_position().x0, y=first.get_position().y1 + above, ha="left", va="bottom")


def _machines(costs: Sequence[Cost]) -> str:
    return "" if len({cost.machines for cost in costs}) == 1 else "\nmachines differ: do not compare"


def _short(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 1] + "…"

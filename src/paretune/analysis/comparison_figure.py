"""The comparison of a dataset's variants at a glance: quality, size, training time and latency as small multiples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from paretune.analysis import wording
from paretune.analysis.choose import quantity_of
from paretune.analysis.costs import Cost
from paretune.analysis.deviations import marks_of
from paretune.analysis.looks import GREY, Look, looks, short_names, write_title
from paretune.analysis.measured import Group, Measured, baseline, difference_of, estimate_of, headline
from paretune.analysis.scores import Place, Quantity
from paretune.analysis.sentences import NOUNS, SHARES
from paretune.analysis.task_scores import task_metrics
from paretune.study.compare import LOWER_IS_BETTER

_TITLES = {
    "bits_per_byte": "Bits per byte",
    "loss": "Loss, nats per token",
    "log_likelihood": "Log-likelihood of the answer",
    "accuracy": "Accuracy",
    "exact_match": "Exact match",
    "contains": "Answer contained",
}


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
    unit: Callable[[float], str] | None = None
    """How a tick of the axis is written."""


def draw_comparison(measured: Measured, dataset: str) -> Figure | None:
    """Quality with intervals beside size, training time and latency, one row a variant; None if nothing was measured."""
    groups = [group for group in measured.groups if group.dataset == dataset]
    quality = next((found for group in groups if (found := headline(measured, group)) is not None), None)
    references = {place: baseline(measured, group) for group in groups for place in group.places}
    places = list(references)
    panels = [] if quality is None else _quality_panels(measured, quality, references)
    panels += _cost_panels(measured, places)
    lines = f"{measured.level:.0%} intervals over documents" if quality is not None else "range over seeds"
    return _drawn(measured, groups, panels, lines) if panels else None


def draw_tasks(measured: Measured, dataset: str) -> Figure | None:
    """The first metric of each task with intervals, one row a variant; None for a dataset whose tasks are not scored."""
    groups = [group for group in measured.groups if group.dataset == dataset]
    references = {place: baseline(measured, group) for group in groups for place in group.places}
    panels = []
    for task, scoring in measured.study.data[dataset].scored.items():
        found = (quantity_of(measured, group, task_metrics(scoring)[0], task) for group in groups)
        quantity = next((one for one in found if one is not None), None)
        if quantity is not None:
            panels.append(_quality_panels(measured, quantity, references)[0])
    lines = f"{measured.level:.0%} intervals over documents"
    return _drawn(measured, groups, panels, lines) if panels else None


def _drawn(measured: Measured, groups: Sequence[Group], panels: Sequence[_Panel], lines: str) -> Figure:
    """Panels side by side, with a row for each variant of the groups."""
    short = short_names(measured.study.variants)
    rows = _rows(groups, short)
    references = {place: baseline(measured, group) for group in groups for place in group.places}
    figure = Figure(figsize=(2.7 * len(panels) + 0.6, 0.32 * len(rows) + 1.1))
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False, gridspec_kw={"wspace": 0.14})[0]
    _set_up_rows(all_axes[0], rows)
    style = looks(measured.study)
    for axes, panel in zip(all_axes, panels, strict=True):
        _draw_panel(axes, panel, rows, style, {place for place in references.values() if place is not None})
    names = wording.listed([group.base for group in groups])
    dotted = f"dotted: the baseline, {short[measured.study.baseline]}; " if any(references.values()) and len(rows) > 1 else ""
    write_title(figure, f"{names} on {groups[0].dataset} ({dotted}lines: {lines})")
    return figure


def _rows(groups: Sequence[Group], short: Mapping[str, str]) -> list[_Row]:
    rows = []
    for group in groups:
        if len(groups) > 1:
            rows.append(_Row(None, group.base))
        rows += [_Row(place, short[place.variant]) for place in group.places]
    return rows


def _set_up_rows(axes: Axes, rows: Sequence[_Row]) -> None:
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    for row, label in zip(rows, axes.get_yticklabels(), strict=True):
        label.set_color("black")
        label.set_fontweight("bold" if row.place is None else "normal")


def _quality_panels(measured: Measured, quantity: Quantity, references: Mapping[Place, Place | None]) -> list[_Panel]:
    """The quantity itself, and its paired difference from the baseline, which is known far better."""
    name = _TITLES.get(quantity.metric, NOUNS.get(quantity.metric, quantity.metric))
    points, differences = {}, {}
    for place, reference in references.items():
        if (one := estimate_of(measured, place, quantity)) is not None:
            points[place] = _Point(one.mean, one.low, one.high, _shown(quantity, one.mean))
        if reference is None or place == reference:
            continue
        if (other := difference_of(measured, place, reference, quantity)) is not None:
            differences[place] = _Point(other.mean, other.low, other.high, _shown(quantity, other.mean, signed=True))
    asked = measured.study.data[next(iter(references)).dataset].scored
    leaked = marks_of(measured).of(next(iter(references)), quantity.task, quantity.split)
    better = "leakage allowed" if leaked else "lower is better" if quantity.metric in LOWER_IS_BETTER else "higher is better"
    where = quantity.split if quantity.split and quantity.task not in asked else quantity.task
    panels = [_Panel(f"{name} on {where}\n{better}", points, from_zero=False)]
    if differences:
        panels.append(_Panel("Its difference from the\nbaseline, paired", differences, from_zero=False, zero_line=True))
    return panels


def _shown(quantity: Quantity, value: float, *, signed: bool = False) -> str:
    if quantity.metric in SHARES:
        return f"{100 * value:+.0f} points" if signed else f"{100 * value:.0f} %"
    return f"{value:+.{min(4, wording.decimals(value, 2))}f}" if signed else wording.number(value)


def _cost_panels(measured: Measured, places: Sequence[Place]) -> list[_Panel]:
    """Size, training time and latency, as far as they were measured."""
    found: dict[str, dict[Place, Cost]] = {}
    for place in places:
        for name, cost in measured.costs.get(place, {}).items():
            found.setdefault(name, {})[place] = cost
    latency = "ms_per_token_median" if "ms_per_token_median" in found else "ms_per_token"
    kinds: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("model_bytes", "Model size, exported", wording.size),
        ("train_seconds", "Training time, seconds", wording.number),
        (latency, "Milliseconds per token", wording.number),
    )
    panels = []
    for name, title, text in kinds:
        costs = found.get(name)
        if costs:
            points = {place: _Point(one.mean, one.low, one.high, text(one.mean)) for place, one in costs.items()}
            missing = "not trained" if name == "train_seconds" else "not measured"
            panels.append(
                _Panel(
                    title + _machines(list(costs.values())),
                    points,
                    missing=missing,
                    unit=text if name == "model_bytes" else None,
                )
            )
    return panels


def _draw_panel(axes: Axes, panel: _Panel, rows: Sequence[_Row], style: Mapping[str, Look], marked: set[Place]) -> None:
    for at, row in enumerate(rows):
        if row.place is None:
            continue
        point, look = panel.points.get(row.place), style[row.place.variant]
        if point is None:
            missing = "baseline" if panel.zero_line and row.place in marked else panel.missing
            _annotate(axes, 0 if panel.from_zero or panel.zero_line else _left_of(panel), at, missing, GREY)
            continue
        if panel.from_zero:
            hatch = "" if look.line == "-" else "///"
            axes.barh(at, point.mean, height=0.62, color=look.colour, hatch=hatch, edgecolor="white", zorder=2)
        else:
            axes.plot(point.mean, at, marker=look.marker, color=look.colour, markersize=6, zorder=4)
        if np.isfinite([point.low, point.high]).all() and point.high > point.low:
            colour = "black" if panel.from_zero else look.colour
            axes.plot([point.low, point.high], [at, at], color=colour, linewidth=1 if panel.from_zero else 2, zorder=3)
        _annotate(axes, point.right, at, point.text, "black")
        if row.place in marked:
            here = [other for other, one in enumerate(rows) if one.place is not None and one.place[:2] == row.place[:2]]
            ends = [here[0] - 0.5, here[-1] + 0.5]
            axes.plot([point.mean] * 2, ends, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
    if panel.zero_line:
        axes.axvline(0, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
    axes.set_title(panel.title)
    axes.set_xlim(*_limits(panel))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=2 if panel.unit else 4))  # a number with its unit is wide
    if panel.from_zero:
        axes.xaxis.set_major_formatter(lambda value, _: (panel.unit or _tick)(value))


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


def _machines(costs: Sequence[Cost]) -> str:
    return "" if len({cost.machines for cost in costs}) == 1 else "\nmachines differ: do not compare"

"""The figures of a study and their files: loss curves, comparisons and tasks at a glance, quality against each cost.

Every number is one of the findings; here it gets a position, a colour and a label. Matplotlib is imported only to draw, so that
a report without figures is written without it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.optimize import isotonic_regression

from paretune.analysis.compare import Difference, Estimate
from paretune.analysis.costs import DISTURBED, Cost
from paretune.analysis.decision import as_compared, where_judged
from paretune.analysis.findings import Choice, Findings, Group
from paretune.analysis.scores import Entrant, Quantity
from paretune.analysis.training import running_mean
from paretune.report import words
from paretune.report.looks import COLOURS, GREY, STYLE, WIDE_RANGE, Look, fence, looks, tell_beyond, write_title
from paretune.report.maps import BEST_NAME, draw_best, draw_grids, draw_questions, grids_name, questions_name
from paretune.study.grid import file_names
from paretune.study.registry import metric_of
from paretune.study.tasks import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARETO_NAME = "pareto.png"
_COSTS = ("model_bytes", "train_seconds", "ms_per_token")
"""What is compared beside quality."""
_LABELLED = 8
"""Variants up to which each is named beside its point; of more, the frontier and untouched bases."""
_LINE = 9.0
"""Points from one line of labels to the next."""


@dataclass(frozen=True)
class _Panel:
    """One column of a comparison: bars from 0 for costs, else points with intervals."""

    title: str
    kind: Literal["quality", "difference", "cost"]
    figures: Mapping[Entrant, Estimate] | Mapping[Entrant, Difference] | Mapping[Entrant, Cost]
    text: Callable[[float], str]
    missing: str = "not measured"
    with_unit: bool = False
    """Ticks of the axis are written like the figures."""
    limit: float = math.inf
    """The largest value that there can be: no tick lies beyond."""


def write_figures(findings: Findings, out: Path) -> list[Path]:
    """Draw every figure that there are numbers for into `out`/figures, as PNG and as SVG, and return the files."""
    import matplotlib as mpl

    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    drawings: dict[str, Callable[[], Figure | None]]
    drawings = {curves_name(findings, group): partial(draw_curves, findings, group) for group in findings.groups}
    for dataset in dict.fromkeys(group.dataset for group in findings.groups):
        drawings[comparison_name(dataset)] = partial(draw_comparison, findings, dataset)
        drawings[tasks_name(dataset)] = partial(draw_tasks, findings, dataset)
    for group in findings.groups:
        drawings[grids_name(findings, group)] = partial(draw_grids, findings, group)
        for task in (task for task, use in findings.study.evaluate.items() if use.kind == "qa"):
            drawings[questions_name(findings, group, task)] = partial(draw_questions, findings, group, task)
    drawings[BEST_NAME] = partial(draw_best, findings)
    drawings[PARETO_NAME] = partial(draw_pareto, findings)
    written = []
    with mpl.rc_context(fname=STYLE):
        for name, draw in drawings.items():
            if (figure := draw()) is not None:
                for file in (folder / name, (folder / name).with_suffix(".svg")):
                    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
                    written.append(file)
    return written


def curves_name(findings: Findings, group: Group) -> str:
    names = file_names((each.dataset, each.base) for each in findings.groups)
    return f"curves-{names[group.dataset, group.base]}.png"


def comparison_name(dataset: str) -> str:
    return f"comparison-{dataset}.png"


def tasks_name(dataset: str) -> str:
    return f"tasks-{dataset}.png"


def draw_curves(findings: Findings, group: Group) -> "Figure | None":
    """Train and validation loss by epoch, every seed thin and their mean thick; None if nothing was trained."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    runs = {run: curve for run, curve in findings.curves.items() if run[0] in group.entrants and len(curve)}
    trained = [entrant for entrant in group.entrants if any(owner == entrant for owner, _ in runs)]
    if not trained:
        return None
    figure = Figure(figsize=(9.5, max(3.6, 0.19 * len(trained) + 1.2)))
    # A single evaluation is a dot, and stands in the table.
    num_panels = 2 if any(curve["validation_loss"].count() > 1 for curve in runs.values()) else 1
    panels = figure.subplots(1, num_panels, sharey=True, squeeze=False, gridspec_kw={"wspace": 0.06})[0]
    columns = {"train_loss": "Train loss (running mean)", "validation_loss": "Validation loss"}
    num_seeds = len({seed for _, seed in runs})
    thin = num_seeds > 1 and len(trained) <= len(COLOURS)
    style = looks(findings.study)
    ends: dict[str, float] = {}
    for entrant in trained:
        look = style[entrant.variant]
        for axes, column in zip(panels, columns, strict=False):
            lines = []
            for curve in (curve for (owner, _), curve in runs.items() if owner == entrant):
                points = curve.dropna(subset=[column])
                losses = points[column].to_numpy()
                drawn = running_mean(losses) if column == "train_loss" else losses
                lines += [(points["epoch"].to_numpy(), drawn)] if len(losses) else []
            if not lines:
                continue
            for x, y in lines if len(lines) > 1 and thin else []:
                axes.plot(x, y, color=look.colour, linewidth=0.7, alpha=0.5, linestyle=look.line)
            marker = look.marker if column == "validation_loss" and max(len(x) for x, _ in lines) <= 40 else ""
            shared = min((x for x, _ in lines), key=len)
            mean = np.mean([y[: len(shared)] for _, y in lines], axis=0)
            axes.plot(shared, mean, color=look.colour, linewidth=1.9, linestyle=look.line, marker=marker, markersize=4.5)
            ends[entrant.variant] = float(mean[-1])
    for axes, title in zip(panels, columns.values(), strict=False):
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.set_xlim(left=0)
        axes.margins(y=0.06)
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=axes.get_xlim()[1] > 2))
    panels[0].set_ylabel("nats per token")
    _name_ends(panels[-1], ends, style)
    note = " (thin lines: seeds)" if thin else f" (mean of {num_seeds} seeds)" if num_seeds > 1 else ""
    write_title(figure, f"{group.base} on {group.dataset}{note}")
    return figure


def draw_comparison(findings: Findings, dataset: str) -> "Figure | None":
    """Quality with intervals beside size, training time and latency, one row a variant; None if nothing was measured."""
    groups = [group for group in findings.groups if group.dataset == dataset]
    quality = next((group.headline for group in groups if group.headline is not None), None)
    panels = [] if quality is None else _quality_panels(findings, groups, quality)
    measured = {entrant: findings.costs.get(entrant, {}) for group in groups for entrant in group.entrants}
    for metric in _COSTS:
        row = metric_of(metric)
        names = dict.fromkeys(name for costs in measured.values() for name in costs if metric_of(name).name == metric)
        for name in names:
            compared = as_compared(findings, name, [entrant for entrant, costs in measured.items() if name in costs])
            costs = {entrant: costs[compared] for entrant, costs in measured.items() if compared in costs}
            evaluation = name.rpartition(".")[0]
            title = f"{row.panel}\non {evaluation}" if evaluation else row.panel
            if len({cost.machines for cost in costs.values()}) > 1:
                title += "\nmachines or options differ: do not compare"
            missing = "not trained" if row.of_training else "not measured"
            of_bytes = row.unit == "bytes"
            panels.append(_Panel(title, "cost", costs, words.size if of_bytes else words.number, missing, with_unit=of_bytes))
    return _draw_panels(findings, groups, panels) if panels else None


def draw_tasks(findings: Findings, dataset: str) -> "Figure | None":
    """The first metric of each task with intervals, one row a variant; None for a dataset whose tasks are not scored."""
    groups = [group for group in findings.groups if group.dataset == dataset]
    panels = []
    for task, scoring in findings.study.data[dataset].scored.items():
        metric = "accuracy" if scoring.get("labels") else METRICS.get(scoring["score"][0], scoring["score"][0])
        judged = (where_judged(group, metric, task) for group in groups)
        quantity = next((quantity for quantity in judged if quantity is not None), None)
        if quantity is not None:
            panels.append(_quality_panels(findings, groups, quantity)[0])
    return _draw_panels(findings, groups, panels) if panels else None


def draw_pareto(findings: Findings) -> "Figure | None":
    """Quality against each cost that is weighed, one row a base and dataset, the Pareto frontier through what nothing beats.

    None where no quality stands beside a cost.
    """
    from matplotlib.figure import Figure

    rows = [
        (group, group.choice, group.headline)
        for group in findings.groups
        if group.choice and group.headline and group.choice.costs and len(group.choice.ranked) > 1
    ]
    if not rows:
        return None
    columns = max(len(choice.costs) for _, choice, _ in rows)
    figure = Figure(figsize=(3.9 * columns + 0.4, 3.3 * len(rows) + 0.3), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    style = looks(findings.study)
    for panels, (group, choice, quality) in zip(grid, rows, strict=True):
        for axes, name in zip(panels, choice.costs, strict=False):
            _draw_frontier(axes, findings, name, choice, quality, style)
            noise = group.noise.get(name, 1.0)
            told = f"\nequal runs differ by {words.times(noise)}" if noise > DISTURBED else ""
            axes.set_xlabel(words.cost_noun(name, str) + told)
        for axes in panels[len(choice.costs) :]:
            axes.set_visible(False)
        panels[0].set_ylabel(f"{words.noun(quality, str)}\n{metric_of(quality.metric).better} is better")
        panels[0].set_title(f"{group.base} on {group.dataset}" if len(rows) > 1 else "")
    shown = any(choice.tells for _, choice, _ in rows)
    filled = "Filled: nothing is shown to beat it in both" if shown else "Nothing is shown to be better or as good"
    title = f"{filled} (lines: {100 * findings.level:g}% intervals over documents)"
    figure.suptitle(title, x=0.01, ha="left", fontsize=9.5)
    return figure


def _quality_panels(findings: Findings, groups: Sequence[Group], quantity: Quantity) -> list[_Panel]:
    """The quantity itself, and its paired difference from the baseline, which is known far better."""
    row, entrants = metric_of(quantity.metric), [entrant for group in groups for entrant in group.entrants]
    estimates = {entrant: estimate for entrant in entrants if (estimate := findings.estimate(entrant, quantity))}
    pairs = {entrant: findings.difference(entrant, group.baseline, quantity) for group in groups for entrant in group.entrants}
    differences = {entrant: difference for entrant, difference in pairs.items() if difference is not None}

    def text(value: float) -> str:
        return f"{100 * value:.0f} %" if row.unit == "share" else words.number(value)

    def signed(value: float) -> str:
        return f"{100 * value:+.0f} points" if row.unit == "share" else f"{value:+.{min(4, words.decimals(value, 2))}f}"

    of_task = not quantity.split or quantity.task in findings.study.data[groups[0].dataset].scored
    leaked = findings.marks.of(entrants[0], quantity.task, quantity.split)
    better = "leakage allowed" if leaked else f"{row.better} is better"
    title = f"{row.panel} on {quantity.task if of_task else quantity.split}\n{better}"
    panels = [_Panel(title, "quality", estimates, text, limit=row.high)]
    if differences:
        panels.append(_Panel("Its difference from the\nbaseline, paired", "difference", differences, signed))
    return panels


def _draw_panels(findings: Findings, groups: Sequence[Group], panels: Sequence[_Panel]) -> "Figure":
    """Panels side by side, one row a variant, below the name of its base where there are several."""
    from matplotlib.figure import Figure

    style = looks(findings.study)
    labels: list[str] = []
    rows: dict[Entrant, int] = {}
    for group in groups:
        labels += [group.base] if len(groups) > 1 else []
        rows |= {entrant: len(labels) + index for index, entrant in enumerate(group.entrants)}
        labels += [style[entrant.variant].label for entrant in group.entrants]
    figure = Figure(figsize=(2.7 * len(panels) + 0.6, 0.32 * len(labels) + 1.1))
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False, gridspec_kw={"wspace": 0.14})[0]
    all_axes[0].set_yticks(range(len(labels)), labels)
    all_axes[0].set_ylim(len(labels) - 0.4, -0.6)
    for row, label in enumerate(all_axes[0].get_yticklabels()):
        label.set(color="black", fontweight="normal" if row in rows.values() else "bold")
    for axes, panel in zip(all_axes, panels, strict=True):
        _draw_panel(axes, panel, groups, rows, style)
    has_baseline = any(group.baseline for group in groups) and len(labels) > 1
    dotted = f"dotted: the baseline, {style[findings.study.baseline].label}; " if has_baseline else ""
    bases = words.listed([group.base for group in groups])
    has_quality = any(panel.kind == "quality" for panel in panels)
    lines = f"{100 * findings.level:g}% intervals over documents" if has_quality else "range over seeds"
    lines += ", of differences over their family" if any(panel.kind == "difference" for panel in panels) else ""
    write_title(figure, f"{bases} on {groups[0].dataset} ({dotted}lines: {lines})")
    return figure


def _draw_panel(axes: "Axes", panel: _Panel, groups: Sequence[Group], rows: dict[Entrant, int], style: dict[str, Look]) -> None:
    """One column of a comparison, with a dotted line through the baseline of each group."""
    from matplotlib.ticker import MaxNLocator

    is_cost, is_difference = panel.kind == "cost", panel.kind == "difference"
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    beside: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 8, "bbox": box}
    reach = [end for each in panel.figures.values() for end in (each.mean, each.low, each.high) if np.isfinite(end)]
    for entrant, row in rows.items():
        figure, look = panel.figures.get(entrant), style[entrant.variant]
        if figure is None:
            is_baseline = any(entrant == group.baseline for group in groups)
            missing = "baseline" if is_difference and is_baseline else panel.missing
            axes.annotate(missing, (min(reach) if panel.kind == "quality" else 0, row), color=GREY, zorder=3, **beside)
            continue
        if is_cost:
            hatch = "" if look.line == "-" else "///"
            axes.barh(row, figure.mean, height=0.62, color=look.colour, hatch=hatch, edgecolor="white", zorder=2)
        else:
            axes.plot(figure.mean, row, marker=look.marker, color=look.colour, markersize=6, zorder=4)
        if np.isfinite([figure.low, figure.high]).all() and figure.high > figure.low:
            colour, width = ("black", 1) if is_cost else (look.colour, 2)
            axes.plot([figure.low, figure.high], [row, row], color=colour, linewidth=width, zorder=3)
        right = figure.high if np.isfinite(figure.high) else figure.mean
        axes.annotate(panel.text(figure.mean), (right, row), color="black", zorder=3, **beside)
    for group in groups:
        if group.baseline is not None and group.baseline in panel.figures:
            ends = [rows[group.entrants[0]] - 0.5, rows[group.entrants[-1]] + 0.5]
            axes.plot([panel.figures[group.baseline].mean] * 2, ends, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=2 if panel.with_unit else 4))  # a number with its unit is wide
    if is_cost:
        axes.set_xlim(0, max(reach) * 1.42 or 1)

        def tick(value: float, _: float) -> str:
            return panel.text(value) if panel.with_unit else f"{value / 1000:g} k" if value >= 1e4 else f"{value:g}"

        axes.xaxis.set_major_formatter(tick)
    else:
        if is_difference:
            axes.axvline(0, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
            reach.append(0)
        room = max(reach) - min(reach) or abs(max(reach)) or 1
        start, end = min(reach) - 0.08 * room, max(reach) + 0.36 * room
        axes.set_xlim(start, end)
        axes.set_xticks([tick for tick in axes.get_xticks() if start <= tick <= min(end, panel.limit)])
    axes.set_title(panel.title)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def _draw_frontier(
    axes: "Axes", findings: Findings, name: str, choice: Choice, quantity: Quantity, style: dict[str, Look]
) -> None:
    """Quality against the cost `name`, with a staircase between what nothing beats: dearer steps buy nothing in between.

    Where nothing is shown there is none.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    beaten, points = choice.beaten_by_cost[name], dict[Entrant, tuple[float, float]]()
    for entrant in beaten:
        cost, quality, look = findings.cost(entrant, name), findings.estimates[entrant][quantity], style[entrant.variant]
        assert cost is not None
        points[entrant] = (cost, quality.mean)
        if np.isfinite([quality.low, quality.high]).all():
            axes.plot([cost, cost], [quality.low, quality.high], color=look.colour, linewidth=1.2, zorder=2)
        face = look.colour if beaten[entrant] is None else "white"
        axes.plot(cost, quality.mean, marker=look.marker, color=look.colour, markerfacecolor=face, markersize=7, zorder=3)
    frontier = sorted((points[entrant] for entrant in beaten if beaten[entrant] is None), key=lambda point: point[0])
    if len(frontier) > 1 and choice.tells:
        axes.step(*zip(*frontier, strict=True), where="post", color=GREY, linewidth=0.9, linestyle=":", zorder=1)
    low, high = min(cost for cost, _ in points.values()), max(cost for cost, _ in points.values())
    if low > 0 and high > WIDE_RANGE * low:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.4, high * 2.2)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        width = (high - low) or high or 1.0
        axes.set_xlim(low - 0.12 * width, high + 0.3 * width)
        axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter(lambda value, _: words.cost_text(name, value) if value > 0 else "0")
    bottom, top = fence([quality for _, quality in points.values()], metric_of(quantity.metric).sign)
    beyond = [entrant for entrant, (_, quality) in points.items() if not bottom <= quality <= top]
    if beyond:
        axes.set_ylim(bottom, top)
        for line, entrant in enumerate(beyond):
            tell_beyond(axes, points[entrant], words.number(points[entrant][1]), line, style[entrant.variant].colour)
    taken: list[tuple[float, float, float]] = []
    for entrant in sorted(points.keys() - beyond, key=lambda entrant: points[entrant][1]):
        is_touched = bool(findings.study.variants[entrant.variant].methods)
        if len(points) > _LABELLED and beaten[entrant] is not None and is_touched:
            continue
        look, up = style[entrant.variant], 4.0
        x, y = (72 / axes.figure.dpi * at for at in axes.transData.transform(points[entrant]))
        width = 5.0 * len(look.label)
        while any(left - width < x < left + wide and abs(y + up - line) < _LINE for left, wide, line in taken):
            up += 1
        taken.append((x, width, y + up))
        axes.annotate(look.label, points[entrant], (7, up), textcoords="offset points", fontsize=8, color=look.colour, zorder=4)
    axes.grid()


def _name_ends(axes: "Axes", ends: Mapping[str, float], style: dict[str, Look]) -> None:
    """Names right of the lines' ends, moved apart as little as possible where they would overlap."""
    low, high = axes.get_ylim()
    gap = 11.5 / (axes.get_window_extent().height / axes.figure.dpi * 72)
    names = sorted(ends, key=lambda name: ends[name])
    wanted = np.array([(ends[name] - low) / (high - low) for name in names])
    # Least squares under `moved[i + 1] - moved[i] >= gap` is isotonic regression of wanted[i] - i * gap.
    shift = gap * np.arange(len(wanted))
    within = ("axes fraction", "axes fraction")
    moved = isotonic_regression(wanted - shift).x + shift
    for name, value, at in zip(names, wanted, moved, strict=True):
        look = style[name]
        arrow = {"arrowstyle": "-", "color": look.colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)}
        axes.annotate(look.label, (1.0, value), (1.045, at), *within, color=look.colour, va="center", arrowprops=arrow)

"""Figures of what a study varies: grids by their values, the best of every base on every dataset, questions by kind.

Every number is one of the findings, as in `paretune.report.figures`, which writes these too.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from paretune.analysis.compare import Estimate
from paretune.analysis.findings import Findings, Group
from paretune.analysis.scores import Entrant, Quantity
from paretune.report import words
from paretune.report.looks import COLOURS, GREY, WIDE_RANGE, fence, looks, short_names, tell_beyond, write_title
from paretune.study.grid import file_names, grid_of, values_in
from paretune.study.registry import metric_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEST_NAME = "best.png"
_OF_QUESTIONS = ("accuracy", "exact_match", "log_likelihood")
_LEAST_LINES = 2
"""Values of a grid from which a line is drawn."""
_DARK = 0.6
"""Of a colour map, from which text is white."""

_Figures = dict[Entrant, Estimate]


def grids_name(findings: Findings, group: Group) -> str:
    names = file_names((each.dataset, each.base) for each in findings.groups)
    return f"grids-{names[group.dataset, group.base]}.png"


def questions_name(findings: Findings, group: Group, task: str) -> str:
    names = file_names((task, each.dataset, each.base) for each in findings.groups)
    return f"questions-{names[task, group.dataset, group.base]}.png"


def draw_grids(findings: Findings, group: Group) -> "Figure | None":
    """What ranks the variants by the values of their grids: lines over one field of numbers, a heat map over two fields.

    None where there is no such grid.
    """
    from matplotlib.figure import Figure

    if group.headline is None:
        return None
    estimates = {e: found for e in group.entrants if (found := findings.estimate(e, group.headline)) is not None}
    grids: dict[str, _Figures] = {}
    for entrant, found in estimates.items():
        if values_in(entrant.variant):
            grids.setdefault(grid_of(entrant.variant), {})[entrant] = found
    lines: dict[str, dict[str, _Figures]] = {}
    maps: dict[str, _Figures] = {}
    for name, members in grids.items():
        fields = list(values_in(next(iter(members)).variant))
        values = [value for member in members for value in values_in(member.variant).values()]
        if len(fields) == 1 and all(map(_is_number, values)) and len(members) >= _LEAST_LINES:
            lines.setdefault(fields[0], {})[name] = members
        elif len(fields) == 2:
            maps[name] = members
    count = len(lines) + len(maps)
    if not count:
        return None
    figure = Figure(figsize=(4.6 * count + 0.4, 3.6))
    panels = iter(figure.subplots(1, count, squeeze=False, gridspec_kw={"wspace": 0.5})[0])
    for field, families in lines.items():
        _draw_lines(next(panels), field, families, estimates.get(group.baseline) if group.baseline else None, group.headline)
    for name, members in maps.items():
        _draw_map(next(panels), name, members, group.headline)
    told = f"{words.noun(group.headline, str)}, {metric_of(group.headline.metric).better} is better"
    intervals = f" (lines: {100 * findings.level:g}% intervals over documents)" if lines else ""
    write_title(figure, f"{group.base} on {group.dataset}: {told}{intervals}")
    return figure


def draw_questions(findings: Findings, group: Group, task: str) -> "Figure | None":
    """Share of right answers, and log-likelihood, by every field that the questions are sliced by; None without any."""
    from matplotlib.figure import Figure

    sliced = [q for q in group.quantities if q.task == task and q.slice]
    metrics = [metric for metric in _OF_QUESTIONS if any(q.metric == metric for q in sliced)]
    rows: dict[tuple[str, str], list[Quantity]] = {}
    for metric in metrics:
        for quantity in sorted((q for q in sliced if q.metric == metric), key=lambda q: q.slice):
            rows.setdefault((metric, quantity.slice.partition(": ")[0]), []).append(quantity)
    fields = list(dict.fromkeys(field for _, field in rows))
    if not fields:
        return None
    style, most = looks(findings.study), max(map(len, rows.values()))
    height = 0.16 + 0.1 * len(group.entrants)
    figure = Figure(figsize=(3.4 * len(metrics) + 1, (height * most + 0.8) * len(fields)), layout="constrained")
    grid = figure.subplots(len(fields), len(metrics), squeeze=False)
    for panels, field in zip(grid, fields, strict=True):
        for axes, metric in zip(panels, metrics, strict=True):
            quantities = rows.get((metric, field), [])
            axes.set_visible(bool(quantities))
            labels = []
            for row, quantity in enumerate(quantities):
                size = 0
                for index, entrant in enumerate(group.entrants):
                    found, look = findings.estimate(entrant, quantity), style[entrant.variant]
                    if found is None:
                        continue
                    at = row + 0.7 * ((index + 0.5) / len(group.entrants) - 0.5)
                    size = found.n_examples
                    axes.plot([found.low, found.high], [at, at], color=look.colour, linewidth=1.4, zorder=2)
                    label = look.label if axes is grid[0][0] and row == 0 else None
                    axes.plot(found.mean, at, look.marker, color=look.colour, markersize=5, zorder=3, label=label)
                labels.append(f"{quantity.slice.partition(': ')[2]} ({size})")
            axes.set_yticks(range(len(labels)), labels)
            axes.set_ylim(len(labels) - 0.5, -0.5)
            axes.set_title(f"{metric_of(metric).panel}, by {field}")
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x")
    names = [f"{100 * findings.level:g}% intervals", "in brackets: questions"]
    figure.suptitle(f"{task}: {group.base} on {group.dataset} ({'; '.join(names)})", x=0.01, ha="left", fontsize=9.5)
    figure.legend(loc="outside lower left", ncols=4, frameon=False, fontsize=8)
    return figure


def draw_best(findings: Findings) -> "Figure | None":
    """The best variant of every base on every dataset, the best base of each framed; None with a single base."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    best: dict[tuple[str, str], tuple[Entrant, Quantity]] = {}
    for group in findings.groups:
        if group.choice is not None and group.headline is not None:
            best[group.base, group.dataset] = group.choice.best, group.headline
    bases, datasets = (list(dict.fromkeys(key[i] for key in best)) for i in (0, 1))
    if len(bases) < 2:
        return None
    names = short_names(dict.fromkeys(entrant.variant for entrant, _ in best.values()))
    ranks, texts = np.full((len(bases), len(datasets)), np.nan), dict[tuple[int, int], str]()
    for column, dataset in enumerate(datasets):
        judged = next(quantity for (_, of), (_, quantity) in best.items() if of == dataset)
        entrants = {base: best[base, dataset][0] for base in bases if best.get((base, dataset), (None, None))[1] == judged}
        means = {base: findings.estimates[entrant][judged].mean for base, entrant in entrants.items()}
        order = sorted(means, key=lambda base: -metric_of(judged.metric).sign * means[base])  # the best first
        for base, entrant in entrants.items():
            at = bases.index(base), column
            ranks[at] = order.index(base) / (len(bases) - 1)
            texts[at] = f"{words.number(means[base])}\n{names[entrant.variant]}"
    figure = Figure(figsize=(1.9 * len(datasets) + 1.6, 0.62 * len(bases) + 1.1))
    axes = figure.subplots()
    axes.imshow(ranks, cmap="Blues_r", vmin=-0.6, vmax=1.3, aspect="auto")
    for (row, column), text in texts.items():
        first = ranks[row, column] == 0
        weight = "bold" if first else "normal"
        axes.text(
            column, row, text, ha="center", va="center", fontsize=8, fontweight=weight, color="white" if first else "black"
        )
        if first:
            axes.add_patch(Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, fill=False, edgecolor="black", linewidth=1.2))
    _name_cells(axes, bases, datasets)
    _, quantity = next(iter(best.values()))
    better = metric_of(quantity.metric).better
    write_title(figure, f"{words.noun(quantity, str)} of each base's best variant, {better} is better (framed: the best mean)")
    return figure


def _draw_lines(
    axes: "Axes", field: str, families: Mapping[str, _Figures], baseline: Estimate | None, quantity: Quantity
) -> None:
    """A line a grid over the values of `field`; what lies far beyond the others stands as a number at the edge."""
    means = [found.mean for members in families.values() for found in members.values()]
    low, high = fence([*means, *([baseline.mean] if baseline else [])], metric_of(quantity.metric).sign)
    axes.set_ylim(low, high)
    xs: list[float] = []
    for index, (name, members) in enumerate(families.items()):
        colour, marker = COLOURS[index % len(COLOURS)], "os^D"[index // len(COLOURS) % 4]
        points = sorted((float(values_in(entrant.variant)[field]), found) for entrant, found in members.items())
        x, y = [at for at, _ in points], [found.mean for _, found in points]
        xs += x
        axes.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1.6, label=name, zorder=3)
        for at, found in points:
            axes.plot([at, at], [found.low, found.high], color=colour, linewidth=1, zorder=2)
            if not low <= found.mean <= high:
                tell_beyond(axes, (at, found.mean), words.number(found.mean), index, colour)
    if baseline is not None:
        axes.axhline(baseline.mean, color=GREY, linewidth=0.9, linestyle=":", label="the baseline")
    if min(xs) > 0 and max(xs) >= WIDE_RANGE * min(xs):
        axes.set_xscale("log")
    axes.set_xticks(sorted(set(xs)), [f"{x:g}" for x in sorted(set(xs))])
    axes.minorticks_off()
    axes.set_xlabel(field)
    axes.grid(axis="y")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)


def _draw_map(axes: "Axes", name: str, members: _Figures, quantity: Quantity) -> None:
    """A cell a variant of a grid over two fields, dark where it is good."""
    values = {entrant: values_in(entrant.variant) for entrant in members}
    rows, columns = values[next(iter(members))]
    across, down = (list(dict.fromkeys(each[field] for each in values.values())) for field in (columns, rows))
    cells = np.full((len(down), len(across)), np.nan)
    for entrant, found in members.items():
        cells[down.index(values[entrant][rows]), across.index(values[entrant][columns])] = found.mean
    good = metric_of(quantity.metric).sign * cells
    shade = (good - np.nanmin(good)) / ((np.nanmax(good) - np.nanmin(good)) or 1.0)
    axes.imshow(shade, cmap="Blues", vmin=-0.1, vmax=1.15, aspect="auto")
    for (row, column), value in np.ndenumerate(cells):
        if np.isfinite(value):
            colour = "white" if shade[row, column] > _DARK else "black"
            axes.text(column, row, words.number(value), ha="center", va="center", fontsize=8, color=colour)
    _name_cells(axes, down, across)
    axes.set(xlabel=columns, ylabel=rows, title=name)


def _name_cells(axes: "Axes", rows: Sequence[str], columns: Sequence[str]) -> None:
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False

"""Quality against each cost of a study, the Pareto frontier drawn through what nothing beats in both."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from paretune.analysis import wording
from paretune.analysis.choose import cost_names, cost_of, frontier, ranked_places
from paretune.analysis.costs import DISTURBED, noise_of
from paretune.analysis.looks import GREY, Look, looks, short_names
from paretune.analysis.measured import Measured, estimate_of, headline
from paretune.analysis.scores import Place, Quantity
from paretune.analysis.sentences import COST_WORDS, cost_text, noun
from paretune.study.compare import LOWER_IS_BETTER

_LABELLED = 8
"""Variants up to which each is named; of more, the frontier and what was not trained."""
_LINE = 9.0
"""Points from one line of labels to the next."""
_WIDE_RANGE = 8
"""Largest over smallest cost from which the axis is logarithmic."""


def draw_pareto(measured: Measured) -> Figure | None:
    """One row a base and dataset, one column a cost; None where no quality stands beside a cost."""
    panels = []
    for group in measured.groups:
        quantity = headline(measured, group)
        ranked = [] if quantity is None else ranked_places(measured, group, quantity)
        names = cost_names(measured, ranked)
        if quantity is not None and len(ranked) > 1 and names:
            panels.append((group, quantity, ranked, names))
    if not panels:
        return None
    columns = max(len(names) for *_, names in panels)
    figure = Figure(figsize=(3.9 * columns + 0.4, 3.3 * len(panels) + 0.3), layout="constrained")
    grid = figure.subplots(len(panels), columns, squeeze=False)
    for row, (group, quantity, ranked, names) in zip(grid, panels, strict=True):
        for axes, name in zip(row, names, strict=False):
            _draw_panel(axes, measured, quantity, ranked, name)
        for axes in row[len(names) :]:
            axes.set_visible(False)
        row[0].set_ylabel(f"{noun(quantity).replace('`', '')}\n{'lower' if _is_lower(quantity) else 'higher'} is better")
        row[0].set_title(f"{group.base} on {group.dataset}" if len(panels) > 1 else "")
    figure.suptitle(
        f"Filled: nothing is shown to beat it in both (lines: {measured.level:.0%} intervals over documents)",
        x=0.01,
        ha="left",
        fontsize=9.5,
    )
    return figure


def _draw_panel(axes: Axes, measured: Measured, quantity: Quantity, ranked: Sequence[Place], name: str) -> None:
    costs = {place: cost for place in ranked if (cost := cost_of(measured, place, name)) is not None}
    style, short = looks(measured.study), short_names(measured.study.variants)
    beaten = frontier(measured, list(costs), quantity, [name])
    ends: list[float] = []
    for place, cost in costs.items():
        found = estimate_of(measured, place, quantity)
        assert found is not None
        look = style[place.variant]
        if np.isfinite([found.low, found.high]).all():
            axes.plot([cost, cost], [found.low, found.high], color=look.colour, linewidth=1.2, zorder=2)
            ends += [found.low, found.high]
        face = look.colour if beaten[place] is None else "white"
        axes.plot(cost, found.mean, marker=look.marker, color=look.colour, markerfacecolor=face, markersize=7, zorder=3)
    _draw_frontier(axes, measured, quantity, {place: costs[place] for place, by in beaten.items() if by is None})
    named = [place for place in costs if len(costs) <= _LABELLED or beaten[place] is None or not _is_trained(measured, place)]
    positive = [cost for cost in costs.values() if cost > 0]
    if len(positive) == len(costs) and max(positive) > _WIDE_RANGE * min(positive):
        axes.set_xscale("log")
        axes.set_xlim(min(positive) / 1.4, max(positive) * 2.2)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        low, high = min(costs.values()), max(costs.values())
        width = (high - low) or high or 1.0
        axes.set_xlim(low - 0.12 * width, high + 0.3 * width)
    axes.xaxis.set_major_formatter(lambda value, _: cost_text(name, value) if value > 0 else "0")
    axes.locator_params(axis="x", nbins=4) if axes.get_xscale() == "linear" else None
    _label(axes, measured, quantity, costs, {place: (short[place.variant], style[place.variant]) for place in named})
    noise = noise_of(measured.costs, name, next(iter(costs)))
    told = f"\nequal runs differ by {wording.times(noise)}" if noise is not None and noise > DISTURBED else ""
    axes.set_xlabel(COST_WORDS.get(name, name.replace("_", " ")) + told)
    axes.grid(color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)


def _draw_frontier(axes: Axes, measured: Measured, quantity: Quantity, costs: Mapping[Place, float]) -> None:
    """A staircase: between two of its points no cost buys more quality than the cheaper one has."""
    means = {place: measured.samples[place][quantity].mean for place in costs}
    places = sorted(costs, key=lambda place: costs[place])
    if len(places) > 1:
        x, y = [costs[place] for place in places], [means[place] for place in places]
        axes.step(x, y, where="post", color=GREY, linewidth=0.9, linestyle=":", zorder=1)


def _label(
    axes: Axes, measured: Measured, quantity: Quantity, costs: Mapping[Place, float], words: Mapping[Place, tuple[str, Look]]
) -> None:
    """Names beside their points, moved up where they would stand on another's."""
    points = {place: (costs[place], measured.samples[place][quantity].mean) for place in words}
    taken: list[tuple[float, float, float]] = []
    for place in sorted(points, key=lambda place: points[place][1]):
        text, look = words[place]
        x, y = (72 / axes.figure.dpi * at for at in axes.transData.transform(points[place]))
        up, width = 4.0, 5.0 * len(text)
        while any(left - width < x < left + wide and abs(y + up - line) < _LINE for left, wide, line in taken):
            up += 1
        taken.append((x, width, y + up))
        axes.annotate(
            text,
            xy=points[place],
            xytext=(7, up),
            textcoords="offset points",
            fontsize=8,
            color=look.colour,
            zorder=4,
        )


def _is_trained(measured: Measured, place: Place) -> bool:
    return any(use.row.trains for use in measured.study.variants[place.variant].methods)


def _is_lower(quantity: Quantity) -> bool:
    return quantity.metric in LOWER_IS_BETTER

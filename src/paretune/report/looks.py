"""How a study's variants look in its figures, and what the figures share: colours, short names, a title.

The colours are Okabe and Ito's, which colour-blind readers can tell apart; where a study has more variants than colours, lines
and markers change.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paretune.study.study import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#555555"
STYLE = Path(__file__).parent / "templates" / "figures.mplstyle"
WIDE_RANGE = 8
"""Largest over smallest value from which an axis is logarithmic."""
_FENCE = 1.5
"""Interquartile ranges beyond the quartiles, after Tukey, from which a value is told at the edge instead of drawn to scale."""
_UNTOUCHED = "#7F7F7F"
_LINES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D")
_NAME_LENGTH = 30


@dataclass(frozen=True)
class Look:
    """How a variant is drawn in all figures of a study, and its name beside them."""

    label: str
    colour: str = _UNTOUCHED
    line: str = "-"
    marker: str = "o"


def looks(study: Study) -> dict[str, Look]:
    """Colour, line and marker of each variant; untouched bases are grey."""
    labels = short_names(study.variants)
    style = {name: Look(labels[name]) for name in study.variants}
    for index, name in enumerate(name for name, variant in study.variants.items() if variant.methods):
        turn, colour = divmod(index, len(COLOURS))
        style[name] = Look(labels[name], COLOURS[colour], _LINES[turn % len(_LINES)], _MARKERS[turn % len(_MARKERS)])
    return style


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Names that fit beside a figure: what long ones have in common at both ends is left out, then their middle is."""
    names = list(names)
    long = [name for name in names if len(name) > _NAME_LENGTH]
    # From the last whole word on that they share: `rank-8` says more than `8`.
    begins = [index + 1 for index in range(_shared_length(long)) if long[0][index] in "-_."]
    head = begins[-2] if len(begins) > 1 else 0
    tail = _shared_length([name[head:][::-1] for name in long])
    short: dict[str, str] = {}
    for name in names:
        core = name[head : len(name) - tail] or name
        text = f"{'…' if head else ''}{core}{'…' if tail else ''}" if name in long else name
        if len(text) > _NAME_LENGTH:
            text = f"{text[:12]}…{text[-(_NAME_LENGTH - 13) :]}"
        short[name] = text if text not in short.values() else f"{text} ({len(short) + 1})"
    return short


def fence(values: Sequence[float], sign: int) -> tuple[float, float]:
    """An axis, with some room, that shows all `values` but those far worse than the quartiles: lower ones with `sign` 1, higher
    ones with -1, none with 0."""
    first, third = np.quantile(values, [0.25, 0.75])
    low = first - _FENCE * (third - first) if sign > 0 else min(values)
    high = third + _FENCE * (third - first) if sign < 0 else max(values)
    inside = [value for value in values if low <= value <= high]
    room = 0.12 * ((max(inside) - min(inside)) or abs(inside[0]) or 1.0)
    return min(inside) - room, max(inside) + room


def tell_beyond(axes: "Axes", point: tuple[float, float], text: str, line: int, colour: str) -> None:
    """`text` at the edge of the axis beyond which `point` lies, on one of three lines."""
    low, high = axes.get_ylim()
    above = point[1] > high
    offset, edge = (4 + 9 * (line % 3)) * (-1 if above else 1), high if above else low
    how: dict[str, Any] = {"ha": "center", "va": "top" if above else "bottom", "fontsize": 7.5, "color": colour}
    axes.annotate(f"{'↑' if above else '↓'} {text}", (point[0], edge), (0, offset), textcoords="offset points", **how)


def write_title(figure: "Figure", text: str) -> None:
    """Above the titles of the panels, however many lines they have."""
    first = figure.axes[0]
    lines = max(axes.get_title("left").count("\n") + 1 for axes in figure.axes)
    above = (0.16 + 0.19 * lines) / figure.get_figheight()
    figure.suptitle(text, x=first.get_position().x0, y=first.get_position().y1 + above, ha="left", va="bottom")


def _shared_length(names: Sequence[str]) -> int:
    """Characters that all of several names begin with."""
    return sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))) if len(names) > 1 else 0

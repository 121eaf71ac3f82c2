"""What all figures share: one colour, line and marker a variant, short names, the style.

The colours are Okabe and Ito's, which colour-blind readers can tell apart; where a study has more variants than colours, lines
and markers change.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from matplotlib.figure import Figure

from paretune.study.study import Study

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_UNTOUCHED = "#7F7F7F"
_LINES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D")
GREY = "#555555"
_NAME_LENGTH = 30
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelcolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.15,
}


@dataclass(frozen=True)
class Look:
    colour: str
    line: str
    marker: str


def looks(study: Study) -> dict[str, Look]:
    """Colour, line and marker of each variant; untouched bases are grey."""
    found, used = {}, 0
    for name, variant in study.variants.items():
        if not variant.methods:
            found[name] = Look(_UNTOUCHED, "-", "o")
            continue
        turn, colour = divmod(used, len(COLOURS))
        found[name] = Look(COLOURS[colour], _LINES[turn % len(_LINES)], _MARKERS[turn % len(_MARKERS)])
        used += 1
    return found


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Names that fit beside a figure: what long ones have in common at both ends is left out, then their middle is."""
    names = list(names)
    long = [name for name in names if len(name) > _NAME_LENGTH]
    head = _word_start(long, _shared_length(long))
    tail = _shared_length([name[head:][::-1] for name in long])
    found: dict[str, str] = {}
    for name in names:
        text = name
        if name in long:
            core = name[head : len(name) - tail] or name
            text = f"…{core}" if head else core
            text += "…" if tail else ""
            if len(text) > _NAME_LENGTH:
                text = f"{text[:12]}…{text[-(_NAME_LENGTH - 13) :]}"
        found[name] = text if text not in found.values() else f"{text} ({len(found) + 1})"
    return found


def _word_start(names: Sequence[str], shared: int) -> int:
    """Where the last whole word of the first `shared` characters begins: `rank-8` says more than `8`."""
    marks = [index + 1 for index, letter in enumerate(names[0][:shared]) if letter in "-_."] if names else []
    return marks[-2] if len(marks) > 1 else 0


def _shared_length(words: Sequence[str]) -> int:
    """Characters that all of several words begin with."""
    return sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, zip(*words, strict=False))) if len(words) > 1 else 0


def write_title(figure: Figure, text: str) -> None:
    first = figure.axes[0]
    lines = max(axes.get_title("left").count("\n") + 1 for axes in figure.axes)
    above = (0.16 + 0.19 * lines) / figure.get_figheight()
    figure.suptitle(text, x=first.get_position().x0, y=first.get_position().y1 + above, ha="left", va="bottom")

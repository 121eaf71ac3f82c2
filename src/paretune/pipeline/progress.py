"""How far a stage is, and the time that is left of it, by what it tells in the events of a run: for terminal and dashboard."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from paretune.pipeline.forecast import duration_words, size_words

_KNOWN_AFTER = 4.0
"""Seconds of a part of a stage after which something is said of the time left."""
_KEPT = 1000
"""Reports of a part that are held, at most."""
_AGREE = 1.3
"""Two rates that differ by less are one figure, else a range."""
_STANDARD = {"time", "run", "event", "stage", "done", "total", "part"}
"""Fields of an event of progress that are no numbers of the stage's own."""
_IN_WORDS: Mapping[str, Callable[[float], str]] = {
    "tokens_per_second": lambda value: f"{value / 1000:,.0f}k tokens/s" if value >= 1e5 else f"{value:,.0f} tokens/s",
    "peak_memory_bytes": lambda value: f"peak {size_words(value)}",
}
"""Numbers of a training that its record has too; others are told by the names that they have."""


@dataclass
class Part:
    """What a stage does at the moment, and how that went: `done` of `total` at some times."""

    name: str
    total: int = 0
    seen: list[tuple[float, int]] = field(default_factory=list)
    numbers: str = ""

    def note(self, event: Mapping[str, Any], moment: float) -> None:
        """An event of its progress, at a moment in seconds."""
        self.total = event["total"]
        self.numbers = ", ".join(
            _IN_WORDS[name](value)
            if name in _IN_WORDS
            else f"{name} {value:.4g}"
            if isinstance(value, float)
            else f"{name} {value}"
            for name, value in event.items()
            if name not in _STANDARD
        )
        self.seen.append((moment, event["done"]))
        if len(self.seen) > _KEPT:
            del self.seen[1::2]

    @property
    def text(self) -> str:
        done = f"{self.seen[-1][1]} of {self.total}" if self.total > 1 else ""
        return " ".join(filter(None, (self.name, done, self.numbers)))

    @property
    def seconds_left(self) -> tuple[float, float] | None:
        """At least and at most, as the whole and the last half say it; None before it can be told.

        What came before the first of `seen`, as loading a model, is no part of it.
        """
        (start, first), (now, done), middle = self.seen[0], self.seen[-1], self.seen[len(self.seen) // 2]
        if now - start < _KNOWN_AFTER or not first <= middle[1] < done or middle[0] == start:
            return None
        rates = ((done - first) / (now - start), (done - middle[1]) / (now - middle[0]))
        low, high = sorted((self.total - done) / rate for rate in rates)
        return low, high

    @property
    def left(self) -> str:
        """The time that is left of it in words, a range as long as the two disagree."""
        if self.seconds_left is None:
            return ""
        low, high = self.seconds_left
        if high <= _AGREE * low:
            return f"about {duration_words(high)} left"
        number, _, unit = duration_words(low).rpartition(" ")
        most = duration_words(high)
        return f"{number}{'' if most.endswith(f' {unit}') else f' {unit}'} to {most} left"


def note_progress(parts: dict[str, Part], event: Mapping[str, Any], moment: float) -> Part:
    """Note an event of progress among the parts of its stage; the one that the stage is at comes last."""
    name = event.get("part", "")
    part = parts[name] = parts.pop(name, Part(name))
    part.note(event, moment)
    return part

"""What a search for blocks by loss takes, before it runs: in passes, one block over the whole calibration text.

The stage goes by the same arithmetic, so that `plan` tells what a run keeps to.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Way = Literal["all sets", "one at a time", "race", "runs"]

EXACT_SETS = 200
"""Of three blocks or more all sets are tried if there are no more than these, smaller ones included."""
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Of the text that the candidates of a race have been measured on after each of its rounds."""
LEAST_DOCUMENTS = 3
"""That a first round reads, if there are as many: with fewer a paired interval tells nothing apart."""


def num_removed(method: Mapping[str, Any], num_blocks: int) -> int:
    """How many of `num_blocks` blocks a `prune.blocks` removes, by its config."""
    if method.get("blocks"):
        return len(method["blocks"])
    return int(method.get("count") or max(1, round((method.get("fraction") or 0) * num_blocks)))


def num_calls(num_blocks: int, count: int, protect: Sequence[int] = (), start: int = 0) -> int:
    """Calls of a block that a walk makes for a row, to leave out every set of at most `count` of `num_blocks` blocks but those
    that are protected; from block `start` on."""
    rest = num_blocks - start
    if count == 0:
        return rest
    firsts = [block for block in range(start, num_blocks) if block not in protect]
    return rest + sum(num_calls(num_blocks, count - 1, protect, first + 1) for first in firsts)


def num_sets(num_blocks: int, count: int) -> int:
    """Sets of at most `count` of `num_blocks` blocks."""
    return sum(math.comb(num_blocks, size) for size in range(count + 1))


def exhaustive(num_blocks: int, count: int) -> Way:
    """How a search without a budget goes among so many blocks that may leave."""
    return "all sets" if count <= 2 or num_sets(num_blocks, count) <= EXACT_SETS else "one at a time"


def whole_search(num_blocks: int, count: int, protect: Sequence[int] = ()) -> tuple[int, int]:
    """Calls of a block, and of the head, of a search without a budget, for each row."""
    free = num_blocks - len(protect)
    if exhaustive(free, count) == "all sets":
        return num_calls(num_blocks, count, protect), num_sets(free, count)
    turns = range(count)  # at most: those that left stand where the protected are
    return sum(num_calls(num_blocks - turn, 1) for turn in turns), sum(num_sets(free - turn, 1) for turn in turns)


def whole_runs(num_blocks: int, count: int, protect: Sequence[int] = ()) -> tuple[int, int]:
    """Calls of a block, and of the head, for each row, where each run of `count` blocks is left out by itself."""
    num_runs = len(runs_of(num_blocks, count, protect))
    return num_runs * (num_blocks - count), num_runs


def runs_of(num_blocks: int, count: int, protect: Sequence[int] = ()) -> list[tuple[int, ...]]:
    """All runs of `count` blocks without a protected one."""
    runs = (tuple(range(first, first + count)) for first in range(num_blocks - count + 1))
    return [run for run in runs if not {*run} & {*protect}]


def race_passes(remaining: Sequence[int], among: Sequence[int], head: float) -> float:
    """Passes of a row through the blocks `remaining` alone and without each of `among`; a call of the head is `head` passes."""
    later = sum(len(remaining) - remaining.index(block) - 1 for block in among)
    return len(remaining) + later + head * (1 + len(among))


def live_passes(remaining: Sequence[int], among: Sequence[int], head: float) -> float:
    """The same where an architecture cannot be walked, and each removal is a pass through the model of its own."""
    return len(remaining) + len(among) * (len(remaining) - 1) + head * (1 + len(among))


def round_ends(documents: Sequence[int]) -> list[int]:
    """Windows that a race has measured after each of its rounds; `documents` tells that of each window by a number."""
    firsts = list(dict(zip(reversed(documents), reversed(range(len(documents))), strict=True)).values())
    least = sorted(firsts)[min(LEAST_DOCUMENTS, len(firsts)) - 1] + 1
    return sorted({max(least, math.ceil(share * len(documents))) for share in SHARES})


def least_passes(num_blocks: int, count: int, head: float, first: float = SHARES[0]) -> float:
    """Of a race, at most: every block is measured on a `first` share of the text, whatever the budget."""
    return first * sum(race_passes(range(n), range(n), head) for n in range(num_blocks, num_blocks - count, -1))


def search_passes(num_blocks: int, method: Mapping[str, Any], head: float, first: float = SHARES[0]) -> tuple[Way, float]:
    """How the choice by loss of a `prune.blocks` goes, and its passes at most; infinite of a budget in minutes."""
    count, budget, protect = num_removed(method, num_blocks), method.get("budget"), method.get("protect", ())
    if method.get("contiguous"):
        calls, heads = whole_runs(num_blocks, count, protect)
        return "runs", calls + head * heads
    calls, heads = whole_search(num_blocks, count, protect)
    whole, way = calls + head * heads, exhaustive(num_blocks - len(protect), count)
    if budget is None or budget["search"] == "all":
        return way, whole
    if whole <= budget["passes"] and way == "all sets" and not budget.get("minutes"):
        return way, whole
    if budget.get("minutes"):
        return "race", math.inf
    return "race", max(float(budget["passes"]), least_passes(num_blocks, count, head, first))

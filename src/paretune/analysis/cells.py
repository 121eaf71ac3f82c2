"""Figures as the cells of a report's tables, a dash where there is none."""

import math
from collections.abc import Callable, Mapping

from paretune.analysis import wording
from paretune.analysis.compare import Estimate
from paretune.analysis.costs import Cost


def mean_cell(found: Estimate | None) -> str:
    return wording.UNKNOWN if found is None else wording.number(found.mean)


def interval_cell(found: Estimate | None) -> str:
    """`1.53 (1.51 to 1.56)`."""
    return wording.UNKNOWN if found is None else wording.with_interval(found.mean, found.low, found.high)


def share_cell(found: Estimate | None) -> str:
    """`38.6 % (36.1 to 41.2 %)`; without the interval where there are too few documents for one."""
    if found is None:
        return wording.UNKNOWN
    interval = "" if math.isnan(found.low) else f" ({100 * found.low:.1f} to {100 * found.high:.1f} %)"
    return f"{wording.share(found.mean)}{interval}"


def cost_cell(costs: Mapping[str, Cost], name: str, text: Callable[[float], str]) -> str:
    return text(costs[name].mean) if name in costs else wording.UNKNOWN


def spread_cell(costs: Mapping[str, Cost], name: str) -> str:
    """The mean over seeds and half their range: `812 ± 14`."""
    if name not in costs:
        return wording.UNKNOWN
    cost = costs[name]
    half = "" if len(cost.by_seed) == 1 else f" ± {wording.number((cost.high - cost.low) / 2, 2)}"
    return f"{wording.number(cost.mean)}{half}"

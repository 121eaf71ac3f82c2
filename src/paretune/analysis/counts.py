"""Two published counts of right answers, of which no pairs are known: are they apart, and what would it take to tell?"""

import math
from dataclasses import dataclass

from scipy import optimize, stats

from paretune.analysis.inference import POWER, fisher_p, wilson_interval
from paretune.errors import SpecError


@dataclass(frozen=True)
class CountComparison:
    shares: tuple[float, float]
    """Of right answers, of the first and of the second."""
    difference: float
    """The second share less the first."""
    p: float
    """Fisher's exact test, two-sided."""
    interval: tuple[float, float]
    """Of the difference, at `level`: Newcombe's hybrid score interval (1998, method 10), widened to 0 where `p` rejects nothing
    at that level."""
    level: float
    detectable: float
    """The smallest difference from the first share, in the direction seen, that Fisher's test on so many items would find
    with probability 0.8; infinite where there is none."""
    items_needed: float
    """In each of the two, to find a difference of the size seen with probability 0.8; infinite where none is seen."""


def compare_counts(right: int, num: int, other_right: int, other_num: int, level: float = 0.95) -> CountComparison:
    """Compare `right` of `num` answers with `other_right` of `other_num` others, each independent of all the rest.

    Variants that answered the same questions are compared in pairs, which `compare` does and which finds smaller differences.
    SpecError for counts that cannot be.
    """
    for count, total in ((right, num), (other_right, other_num)):
        if total < 1 or not 0 <= count <= total:
            raise SpecError(f"compare_counts: `{count}` of `{total}` is no count of right answers; write 0 to all of 1 or more")
    if not 0 < level < 1:
        raise SpecError(f"compare_counts: `level` is `{level}`; write a share between 0 and 1, such as 0.95")
    first, second, p = right / num, other_right / other_num, fisher_p(right, num, other_right, other_num)
    difference, alpha = second - first, 1 - level
    (low, high), (other_low, other_high) = wilson_interval(first, num, level), wilson_interval(second, other_num, level)
    ends = (
        difference - math.hypot(second - other_low, high - first),
        difference + math.hypot(other_high - second, first - low),
    )
    interval = (min(0.0, ends[0]), max(0.0, ends[1])) if p > alpha else ends
    up = difference > 0 or (difference == 0 and first <= 0.5)
    room = 1 - first if up else first

    def lacking(gap: float) -> float:
        return _items(first, first + gap if up else first - gap, alpha, other_num / num) - num

    found = room > 0 and lacking(room) <= 0
    return CountComparison(
        shares=(first, second),
        difference=difference,
        p=p,
        interval=interval,
        level=level,
        detectable=float(optimize.brentq(lacking, 1e-6, room)) if found else math.inf,
        items_needed=float(math.ceil(_items(first, second, alpha, 1.0))) if difference else math.inf,
    )


def _items(share: float, other: float, alpha: float, ratio: float) -> float:
    """Items that Fisher's test at `alpha` finds two shares apart with, probability POWER; `ratio` times as many in the other.

    Fleiss, Tytun and Ury (1980, https://doi.org/10.2307/2529990), after Casagrande, Pike and Smith's approximation.
    """
    gap, mean = abs(other - share), (share + ratio * other) / (ratio + 1)
    of_null = stats.norm.ppf(1 - alpha / 2) * math.sqrt((ratio + 1) * mean * (1 - mean))
    of_gap = stats.norm.ppf(POWER) * math.sqrt(ratio * share * (1 - share) + other * (1 - other))
    rough = (of_null + of_gap) ** 2 / (ratio * gap**2)
    return float(rough / 4 * (1 + math.sqrt(1 + 2 * (ratio + 1) / (rough * ratio * gap))) ** 2)

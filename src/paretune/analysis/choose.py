"""Which variant to take: what is cheaper, what nothing beats (the Pareto frontier), and what keeps to a limit of the study.

A figure counts as different only where it clearly is: qualities by the verdict of their comparison, times beyond what equal
runs differ in. So a variant that is not shown to be better does not beat one that is cheaper.
"""

from collections.abc import Iterable, Mapping, Sequence

from paretune.analysis.costs import ratio
from paretune.analysis.measured import HELD_OUT, Group, Measured, baseline, difference_of, estimate_of, quantities_of, tasks_of
from paretune.analysis.scores import Place, Quantity
from paretune.study.compare import LOWER_IS_BETTER, QUALITY, Bound

_DEFAULT_COSTS = ("model_bytes", "ms_per_token", "train_seconds")
_SIZE_STEP = 0.002
"""Relative difference of sizes that counts."""
_OF_TRAINING = frozenset({"train_seconds", "wall_seconds", "trainable_parameters", "peak_memory_bytes"})
"""Costs that an untrained variant has none of."""


def cost_names(measured: Measured, places: Iterable[Place]) -> list[str]:
    """The costs that the study weighs, the most important first, as far as they were measured; medians for latencies.

    `parameters` counts an adapter that is merged before anything is shipped: the exported size stands for it.
    """
    places = list(places)
    as_compared = {"ms_per_token": latency_name(measured, places), "parameters": "model_bytes"}
    names = dict.fromkeys(as_compared.get(name, name) for name in _wanted(measured))
    return [name for name in names if any(cost_of(measured, place, name) for place in places)]


def latency_name(measured: Measured, places: Iterable[Place]) -> str:
    """The median where every variant has it: a single disturbed repeat moves the mean."""
    median = all("ms_per_token_median" in measured.costs.get(place, {}) for place in places)
    return "ms_per_token_median" if median else "ms_per_token"


def cost_of(measured: Measured, place: Place, name: str) -> float | None:
    """A cost's mean over seeds; 0 for the training of what was not trained."""
    found = measured.costs.get(place, {}).get(name)
    if found is not None:
        return found.mean
    return 0.0 if name in _OF_TRAINING and _untrained(measured, place) else None


def cost_sign(measured: Measured, name: str, variant: Place, reference: Place) -> int | None:
    """-1 where `variant` is clearly cheaper, 1 where it is clearly dearer, 0 for no clear difference, None for unknown."""
    one, other = cost_of(measured, variant, name), cost_of(measured, reference, name)
    if one is None or other is None:
        return None
    if one == 0 or other == 0:
        return (one > other) - (one < other)
    found = ratio(measured.costs, name, variant, reference)
    if found is None:
        return None
    if not found.clear or abs(found.value - 1) <= _SIZE_STEP:
        return 0
    return -1 if found.value < 1 else 1


def is_cheaper(measured: Measured, variant: Place, reference: Place) -> bool:
    """Whether `variant` costs clearly less, in the first cost that differs clearly."""
    signs = (cost_sign(measured, name, variant, reference) for name in cost_names(measured, [variant, reference]))
    return next((sign < 0 for sign in signs if sign), False)


def ranked_places(measured: Measured, group: Group, quantity: Quantity) -> list[Place]:
    """The variants that have the quantity, best mean first."""
    measured_ones = [place for place in group.places if quantity in measured.samples.get(place, {})]
    sign = 1 if quantity.metric in LOWER_IS_BETTER else -1
    return sorted(measured_ones, key=lambda place: sign * measured.samples[place][quantity].mean)


def near_best(measured: Measured, ranked: Sequence[Place], quantity: Quantity) -> list[Place]:
    """Those of `ranked`, best first, that are not shown to be worse than the first."""
    return [ranked[0], *(place for place in ranked[1:] if not _is_worse(measured, place, ranked[0], quantity))]


def choose(measured: Measured, ranked: Sequence[Place], quantity: Quantity) -> Place:
    """The cheapest of those that are not shown to be worse than the best; `ranked` is best first."""
    chosen = ranked[0]
    for place in near_best(measured, ranked, quantity)[1:]:
        if difference_of(measured, place, ranked[0], quantity) is not None and is_cheaper(measured, place, chosen):
            chosen = place
    return chosen


def dominator(
    measured: Measured, place: Place, rivals: Iterable[Place], quantity: Quantity, names: Sequence[str]
) -> Place | None:
    """A rival that makes `place` pointless: not shown to be worse, clearly dearer in nothing, and ahead in something."""
    for rival in rivals:
        found = None if rival == place else difference_of(measured, rival, place, quantity)
        if found is None or found.verdict == "worse":
            continue
        signs = [cost_sign(measured, name, rival, place) for name in names]
        if None not in signs and 1 not in signs and (-1 in signs or found.verdict == "better"):
            return rival
    return None


def frontier(
    measured: Measured, places: Sequence[Place], quantity: Quantity, names: Sequence[str]
) -> dict[Place, Place | None]:
    """Every place with what dominates it; None for those on the Pareto frontier of quality and the costs `names`."""
    return {place: dominator(measured, place, places, quantity, names) for place in places}


def quantity_of(measured: Measured, group: Group, metric: str, asked: str | None = None) -> Quantity | None:
    """Where a metric is judged: the study's first task that has it (or `asked`), on test before validation."""
    stored = "loss" if metric == "perplexity" else metric
    known = quantities_of(measured, group)
    for task in tasks_of(measured, group.dataset) if asked is None else [asked]:
        for split in (*HELD_OUT, ""):
            if Quantity(task, split, stored) in known:
                return Quantity(task, split, metric)
    return None


def keeps_to(measured: Measured, group: Group, place: Place, limits: Mapping[str, Bound]) -> bool:
    """Whether a variant is shown to keep to every bound: costs with every seed, `within` with the whole interval."""
    return all(_keeps(measured, group, place, metric, bound) for metric, bound in limits.items())


def is_measured(measured: Measured, group: Group, metric: str) -> bool:
    """Whether any variant has a figure of it."""
    if metric in QUALITY:
        return quantity_of(measured, group, metric) is not None
    return any(metric in measured.costs.get(place, {}) for place in group.places)


def _keeps(measured: Measured, group: Group, place: Place, metric: str, bound: Bound) -> bool:
    if metric not in QUALITY:
        name = latency_name(measured, [place]) if metric == "ms_per_token" else metric
        cost = measured.costs.get(place, {}).get(name)
        lone = cost_of(measured, place, name)
        low, high = (cost.low, cost.high) if cost is not None else (lone, lone)
    else:
        quantity = quantity_of(measured, group, metric)
        found = None if quantity is None else estimate_of(measured, place, quantity)
        low = high = None if found is None else found.mean
    if low is None or high is None:
        return False
    inside = (bound.at_most is None or high <= bound.at_most) and (bound.at_least is None or low >= bound.at_least)
    return inside and (bound.within is None or _within(measured, group, place, metric, bound.within))


def _within(measured: Measured, group: Group, place: Place, metric: str, width: float) -> bool:
    reference, quantity = baseline(measured, group), quantity_of(measured, group, metric)
    if place == reference:
        return True
    found = None if reference is None or quantity is None else difference_of(measured, place, reference, quantity)
    if found is None:
        return False
    return found.high <= width if metric in LOWER_IS_BETTER else found.low >= -width


def _is_worse(measured: Measured, place: Place, best: Place, quantity: Quantity) -> bool:
    found = difference_of(measured, place, best, quantity)
    return found is not None and found.verdict == "worse"


def _wanted(measured: Measured) -> tuple[str, ...]:
    return measured.study.compare.costs or _DEFAULT_COSTS


def _untrained(measured: Measured, place: Place) -> bool:
    return not any(use.row.trains for use in measured.study.variants[place.variant].methods)

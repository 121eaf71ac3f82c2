"""Which variant to take: what is cheaper, what nothing beats (the Pareto frontier), and what keeps to a limit of the study.

A figure counts as different only where it clearly is: qualities by the verdict of their comparison, times beyond what equal
runs differ in. So a variant that is not shown to be better does not beat one that is cheaper.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from paretune.analysis.costs import cost_name, timed_evaluations
from paretune.analysis.findings import Beaten, Choice, Findings, Group, Limit
from paretune.analysis.scores import Entrant, Quantity
from paretune.study.compare import Bound
from paretune.study.metrics import DEFAULT_COSTS
from paretune.study.registry import metric_of, metrics

HELD_OUT = ("test", "validation")
"""The split that a study is judged on, the first that was measured."""
SIZE_STEP = 0.002
"""Relative difference of sizes that counts."""


def choose(findings: Findings, group: Group) -> Choice | None:
    """The cheapest of those that are not shown to be worse than the best; None where nothing is ranked."""
    quantity = group.headline
    if quantity is None:
        return None
    ranked = rank(findings, group, quantity)
    near, chosen = [ranked[0]], ranked[0]
    for entrant in ranked[1:]:
        difference = findings.difference(entrant, ranked[0], quantity)
        if difference is None or difference.verdict != "worse":
            near.append(entrant)
            if difference is not None and is_cheaper(findings, entrant, chosen):
                chosen = entrant
    told = [findings.told(entrant, ranked[0], quantity) for entrant in ranked[1:]]
    tells = any(difference is not None and math.isfinite(difference.low) for difference in told)
    costs = weighed_costs(findings, ranked)
    measured = {name: [entrant for entrant in ranked if findings.cost(entrant, name) is not None] for name in costs}
    return Choice(
        ranked=tuple(ranked),
        near=tuple(near),
        chosen=chosen,
        verdict="only one" if len(ranked) == 1 else "recommended" if tells else "cannot tell",
        costs=tuple(costs),
        beaten=_frontier(findings, ranked, quantity, costs),
        beaten_by_cost={name: _frontier(findings, measured[name], quantity, [name]) for name in costs},
    )


def keep_to_limits(findings: Findings, group: Group) -> tuple[Limit, ...]:
    """For each limit of the study the best of those that keep to it; the cheapest where the limit is one of quality."""
    limits, choice, quantity = [], group.choice, group.headline
    if choice is None or quantity is None:
        return ()
    for bounds in findings.study.compare.require:
        kept = tuple(entrant for entrant in choice.ranked if _keeps_to(findings, group, entrant, bounds))
        if not kept:
            unmeasured = tuple(metric for metric in bounds if not _is_measured(findings, group, metric))
            limits.append(Limit(bounds, kept, None, "not measured" if unmeasured else "none keeps to it", unmeasured))
            continue
        chosen = kept[0]
        if any(metric_of(metric).is_quality for metric in bounds):
            for entrant in kept[1:]:
                chosen = entrant if is_cheaper(findings, entrant, chosen) else chosen
            cheapest = any(is_cheaper(findings, chosen, entrant) for entrant in kept)
            limits.append(Limit(bounds, kept, chosen, "cheapest" if cheapest else "not dearer"))
            continue
        for entrant in kept[1:]:
            difference = findings.difference(entrant, kept[0], quantity)
            if difference is not None and difference.verdict != "worse" and is_cheaper(findings, entrant, chosen):
                chosen = entrant
        limits.append(Limit(bounds, kept, chosen, "best" if chosen == kept[0] else "cheaper"))
    return tuple(limits)


def rank(findings: Findings, group: Group, quantity: Quantity) -> list[Entrant]:
    """The variants that have the quantity, best mean first."""
    means = {entrant: found.mean for entrant in group.entrants if (found := findings.estimate(entrant, quantity)) is not None}
    return sorted(means, key=lambda entrant: -metric_of(quantity.metric).sign * means[entrant])


def weighed_costs(findings: Findings, entrants: Iterable[Entrant]) -> list[str]:
    """The costs that the study weighs, the most important first, as far as any of `entrants` has them.

    Medians stand for means where all have them, for a single disturbed repeat moves a mean; a time of each evaluation that
    measures times. `parameters` counts an adapter that is merged before anything is shipped: the exported size stands for it.
    """
    entrants = list(entrants)
    wanted = ("model_bytes" if name == "parameters" else name for name in findings.study.compare.costs or DEFAULT_COSTS)
    names = dict.fromkeys(as_compared(findings, name, entrants) for metric in wanted for name in _names_of(findings, metric))
    return [name for name in names if any(findings.cost(entrant, name) for entrant in entrants)]


def as_compared(findings: Findings, name: str, entrants: Iterable[Entrant]) -> str:
    """The median of a cost where all of `entrants` have it, else the cost itself."""
    evaluation, _, metric = name.rpartition(".")
    medians = (row.name for row in metrics().values() if row.median_of == metric)
    for median in (f"{evaluation}.{row}" if evaluation else row for row in medians):
        if all(median in findings.costs.get(entrant, {}) for entrant in entrants):
            return median
    return name


def is_cheaper(findings: Findings, variant: Entrant, reference: Entrant) -> bool:
    """Whether `variant` costs clearly less, in the first cost that differs clearly."""
    names = weighed_costs(findings, [variant, reference])
    signs = (_cost_sign(findings, name, variant, reference) for name in names)
    return next((sign < 0 for sign in signs if sign), False)


def where_judged(group: Group, metric: str, asked: str | None = None) -> Quantity | None:
    """Where a metric is judged: the study's first task that has it (or `asked`), on test before validation."""
    stored = metric_of(metric).exp_of or metric
    for task in group.tasks if asked is None else [asked]:
        for split in (*HELD_OUT, ""):
            if Quantity(task, split, stored) in group.quantities:
                return Quantity(task, split, metric)
    return None


def _names_of(findings: Findings, cost: str) -> list[str]:
    """A cost in every evaluation that measures it: times per token may be measured several times."""
    timed = timed_evaluations(findings.study)
    return [cost_name(cost, evaluation, timed) for evaluation in timed] if metric_of(cost).unit == "ms" else [cost]


def _cost_sign(findings: Findings, name: str, variant: Entrant, reference: Entrant) -> int | None:
    """-1 where `variant` is clearly cheaper, 1 where it is clearly dearer, 0 for no clear difference, None for unknown."""
    cost, other = findings.cost(variant, name), findings.cost(reference, name)
    if cost is None or other is None:
        return None
    if cost == 0 or other == 0:
        return (cost > other) - (cost < other)
    ratio = findings.ratios.get((name, variant, reference))
    if ratio is None:
        return None
    if not ratio.clear or abs(ratio.value - 1) <= SIZE_STEP:
        return 0
    return -1 if ratio.value < 1 else 1


def _frontier(findings: Findings, entrants: Sequence[Entrant], quantity: Quantity, costs: Sequence[str]) -> Beaten:
    """Each with a rival that makes it pointless: not shown to be worse, clearly dearer in nothing, and ahead in something."""
    beaten: dict[Entrant, Entrant | None] = {}
    for entrant in entrants:
        beaten[entrant] = None
        for rival in entrants:
            difference = findings.difference(rival, entrant, quantity) if rival != entrant else None
            if difference is None or difference.verdict == "worse":
                continue
            signs = [_cost_sign(findings, name, rival, entrant) for name in costs]
            if None not in signs and 1 not in signs and (-1 in signs or difference.verdict == "better"):
                beaten[entrant] = rival
                break
    return beaten


def _is_measured(findings: Findings, group: Group, metric: str) -> bool:
    if metric_of(metric).is_quality:
        return where_judged(group, metric) is not None
    return any(name in findings.costs.get(entrant, {}) for name in _names_of(findings, metric) for entrant in group.entrants)


def _keeps_to(findings: Findings, group: Group, entrant: Entrant, bounds: Mapping[str, Bound]) -> bool:
    """Whether a variant is shown to keep to every bound: costs with every seed, `within` with the whole interval."""
    for metric, bound in bounds.items():
        quantity = where_judged(group, metric) if metric_of(metric).is_quality else None
        if quantity is not None:
            estimate = findings.estimate(entrant, quantity)
            ranges = [None if estimate is None else (estimate.mean, estimate.mean)]
        else:
            names = [as_compared(findings, name, [entrant]) for name in _names_of(findings, metric)]
            ranges = [_range_of_cost(findings, entrant, name) for name in names]
        for ends in ranges:
            if ends is None:
                return False
            if (bound.at_most is not None and ends[1] > bound.at_most) or (
                bound.at_least is not None and ends[0] < bound.at_least
            ):
                return False
        if bound.within is not None and entrant != group.baseline:
            difference = None if quantity is None else findings.difference(entrant, group.baseline, quantity)
            if difference is None:
                return False
            worst = difference.high if metric_of(metric).better == "lower" else -difference.low
            if worst > bound.within:
                return False
    return True


def _range_of_cost(findings: Findings, entrant: Entrant, name: str) -> tuple[float, float] | None:
    """The lowest and the highest seed; None where it was not measured."""
    cost = findings.costs.get(entrant, {}).get(name)
    if cost is not None:
        return cost.low, cost.high
    return None if (mean := findings.cost(entrant, name)) is None else (mean, mean)

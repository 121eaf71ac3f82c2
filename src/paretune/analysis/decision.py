"""Which variant to take: what is cheaper, what nothing beats (the Pareto frontier), and what keeps to a limit of the study.

Absence of evidence recommends nothing: a cheaper variant is taken, and beats another, only where the whole interval of its loss
lies within the margin, and a lead that may be chance does not outweigh what is shown to be lost elsewhere. Costs count as
different only where they clearly are, times beyond what equal runs differ in.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from paretune.analysis.compare import Difference, decided, in_units, margin_of
from paretune.analysis.costs import cost_name, timed_evaluations
from paretune.analysis.findings import Beaten, Candidate, Choice, Findings, Group, Limit
from paretune.analysis.inference import documents_needed
from paretune.analysis.scores import Entrant, Quantity
from paretune.study.compare import Bound
from paretune.study.metrics import DEFAULT_COSTS
from paretune.study.registry import metric_of, metrics

HELD_OUT = ("test", "validation")
"""The split that a study is judged on, the first that was measured."""
SIZE_STEP = 0.002
"""Relative difference of sizes that counts."""
_NOT_DEARER = 1.05
"""Ratio of two costs up to which one that is not clear says that neither is dearer."""


def choose(findings: Findings, group: Group) -> Choice | None:
    """The best, or the cheapest of those that are shown to lose no more than the margin; None where nothing is ranked."""
    quantity = group.headline
    if quantity is None:
        return None
    ranked = rank(findings, group, quantity)
    forbidden: dict[Entrant, Difference] = {}
    for entrant in ranked:
        for loss in shown_losses(findings, group, entrant, group.baseline):
            if loss.margin is not None:
                forbidden.setdefault(entrant, loss)
    allowed = [entrant for entrant in ranked if entrant not in forbidden] or ranked
    ahead = ranked[: ranked.index(allowed[0])]
    differences = {entrant: findings.difference(entrant, allowed[0], quantity) for entrant in ranked if entrant != allowed[0]}
    known = [difference for difference in differences.values() if difference is not None and not difference.withheld]
    tells = any(math.isfinite(difference.low) for difference in known)
    chosen, candidates = take(findings, group, allowed)
    costs = weighed_costs(findings, ranked)
    measured = {name: [entrant for entrant in ranked if _cost(findings, name, entrant) is not None] for name in costs}
    pairs = [findings.difference(one, other, quantity) for one in ranked for other in ranked]
    near = (allowed[0], *(entrant for entrant, found in differences.items() if found is None or found.verdict != "worse"))
    is_by_chance = chosen == allowed[0] and bool(better_elsewhere(findings, group, chosen, near))
    return Choice(
        ranked=tuple(ranked),
        best=allowed[0],
        near=near,
        chosen=chosen,
        candidates=candidates,
        forbidden=tuple(forbidden[entrant] for entrant in ahead),
        verdict="only one"
        if len(ranked) == 1
        else "cannot tell"
        if not tells
        else "undecided"
        if is_by_chance
        else "recommended",
        costs=tuple(costs),
        beaten=_frontier(findings, ranked, quantity, costs),
        beaten_by_cost={name: _frontier(findings, measured[name], quantity, [name]) for name in costs},
        tells=any(pair is not None and (pair.detected or _is_not_worse(findings, pair)) for pair in pairs),
    )


def take(findings: Findings, group: Group, ranked: Sequence[Entrant]) -> tuple[Entrant, tuple[Candidate, ...]]:
    """The first of `ranked` (best mean first), or the cheapest that is shown to lose no more than the margin against it.

    The intervals of all that are cheaper hold together: Bonferroni.
    """
    best, quantity, candidates = ranked[0], group.headline, list[Candidate]()
    assert quantity is not None
    cheaper = [entrant for entrant in ranked[1:] if is_cheaper(findings, entrant, best)]
    compared = {entrant: findings.difference(entrant, best, quantity) for entrant in cheaper}
    chosen = best
    for entrant, difference in compared.items():
        if difference is None or difference.contrast is None:
            continue
        alpha = (1 - findings.level) / len(cheaper)
        margin = _margin(findings, difference)
        difference = decided(difference, min(1.0, difference.p * len(cheaper)), alpha, margin)
        told = findings.told(entrant, best, quantity)
        told = difference if told is None or told.quantity == quantity else in_units(told, difference)
        lost = shown_losses(findings, group, entrant, best)
        is_shown = difference.loses_at_most(margin) and not any(loss.margin is not None for loss in lost)
        needed = None if is_shown else documents_needed(difference.errors, difference.loss, margin, alpha)
        candidates.append(Candidate(told, is_shown, needed))
        chosen = entrant if is_shown and is_cheaper(findings, entrant, chosen) else chosen
    return chosen, tuple(candidates)


def better_elsewhere(findings: Findings, group: Group, best: Entrant, near: Iterable[Entrant]) -> list[Entrant]:
    """Those of `near` that the best may lead by chance, and than which it is shown to be worse in another declared measure."""
    assert group.headline is not None
    rivals = []
    for rival in near:
        lead = findings.difference(best, rival, group.headline) if rival != best else None
        if lead is not None and not _is_not_worse(findings, lead) and shown_losses(findings, group, best, rival):
            rivals.append(rival)
    return rivals


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
        elif any(metric_of(metric).is_quality for metric in bounds):
            chosen = kept[0]
            for entrant in kept[1:]:
                chosen = entrant if is_cheaper(findings, entrant, chosen) else chosen
            cheapest = any(is_cheaper(findings, chosen, entrant) for entrant in kept)
            limits.append(Limit(bounds, kept, chosen, "cheapest" if cheapest else "not dearer"))
        else:
            chosen, _ = take(findings, group, kept)
            limits.append(Limit(bounds, kept, chosen, "best" if chosen == kept[0] else "cheaper"))
    return tuple(limits)


def declared_measures(findings: Findings, group: Group) -> list[Quantity]:
    """What a recommendation does not lose unsaid: the declared family; without one every quality, as a whole, where judged."""
    declared = {metric_of(name).hypothesis or name for name in findings.study.compare.family}
    measures = []
    for quantity in group.quantities:
        row = metric_of(quantity.metric)
        judged = quantity.split in ("test", "") or quantity._replace(split="test") not in group.quantities
        again = quantity._replace(metric=row.hypothesis) in group.quantities
        if row.is_quality and judged and not quantity.slice and not again and quantity != group.headline:
            measures += [quantity] if not declared or quantity.metric in declared else []
    return measures


def shown_losses(findings: Findings, group: Group, variant: Entrant, reference: Entrant | None) -> tuple[Difference, ...]:
    """The declared measures in which `variant` is shown to be worse than `reference`, as far as the two are compared."""
    margins = findings.study.compare.margin
    asked = [quantity for quantity in group.quantities if quantity.metric in margins and not quantity.slice]
    measures = dict.fromkeys((*declared_measures(findings, group), *asked))
    differences = (findings.difference(variant, reference, quantity) for quantity in measures if quantity != group.headline)
    return tuple(difference for difference in differences if difference is not None and difference.verdict == "worse")


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
    names = dict.fromkeys(
        as_compared(findings, name, entrants) for metric in wanted for name in names_of_cost(findings, metric)
    )
    return [name for name in names if any(_cost(findings, name, entrant) for entrant in entrants)]


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


def names_of_cost(findings: Findings, cost: str) -> list[str]:
    """A cost in every evaluation that measures it: times per token may be measured several times."""
    timed = timed_evaluations(findings.study)
    return [cost_name(cost, evaluation, timed) for evaluation in timed] if metric_of(cost).unit == "ms" else [cost]


def _cost(findings: Findings, name: str, entrant: Entrant) -> float | None:
    """A cost as it is weighed: what was not trained is spared no training unless the study names that cost."""
    asked = not metric_of(name).of_training or name in findings.study.compare.costs
    return findings.cost(entrant, name) if asked or findings.is_trained(entrant) else None


def _cost_sign(findings: Findings, name: str, variant: Entrant, reference: Entrant) -> int | None:
    """-1 where `variant` is clearly cheaper, 1 where it is clearly dearer, 0 for as good as equal, None for unknown."""
    cost, other = _cost(findings, name, variant), _cost(findings, name, reference)
    if cost is None or other is None:
        return None
    if cost == 0 or other == 0:
        return (cost > other) - (cost < other)
    ratio = findings.ratios.get((name, variant, reference))
    if ratio is None or (not ratio.clear and ratio.value > _NOT_DEARER and not ratio.of_one_network):
        return None
    if not ratio.clear or abs(ratio.value - 1) <= SIZE_STEP:
        return 0
    return -1 if ratio.value < 1 else 1


def _margin(findings: Findings, difference: Difference) -> float:
    """What of a difference in the headline does not matter: a margin of the loss or perplexity counts in bits per byte."""
    compare, quantity = findings.study.compare, difference.quantity
    if quantity.metric not in compare.margin:
        for metric in compare.margin:
            if metric_of(metric).hypothesis == quantity.metric:
                loss = quantity._replace(metric=metric_of(metric).exp_of or metric)
                told = findings.difference(difference.variant, difference.reference, loss)
                if told is not None:
                    nats = compare.margin[metric]
                    nats = math.log1p(nats / math.exp(told.reference_mean)) if metric_of(metric).exp_of else nats
                    return nats * difference.reference_mean / told.reference_mean
    return margin_of(compare, quantity, difference.reference_mean)


def _is_not_worse(findings: Findings, difference: Difference) -> bool:
    return difference.loses_at_most(_margin(findings, difference))


def _frontier(findings: Findings, entrants: Sequence[Entrant], quantity: Quantity, costs: Sequence[str]) -> Beaten:
    """Each with a rival that makes it pointless: shown to be not worse and not dearer in anything, and ahead in something."""
    beaten: dict[Entrant, Entrant | None] = {}
    for entrant in entrants:
        beaten[entrant] = None
        for rival in entrants:
            difference = findings.difference(rival, entrant, quantity) if rival != entrant else None
            if difference is None or not _is_not_worse(findings, difference):
                continue
            # What only trained variants spend says nothing of a pair of which one is not.
            spent = [name for name in costs if None not in (_cost(findings, name, rival), _cost(findings, name, entrant))]
            signs = [_cost_sign(findings, name, rival, entrant) for name in spent]
            known = all(name in spent or metric_of(name).of_training for name in costs)
            if known and None not in signs and 1 not in signs and (-1 in signs or difference.verdict == "better"):
                beaten[entrant] = rival
                break
    return beaten


def _is_measured(findings: Findings, group: Group, metric: str) -> bool:
    if metric_of(metric).is_quality:
        return where_judged(group, metric) is not None
    return any(
        name in findings.costs.get(entrant, {}) for name in names_of_cost(findings, metric) for entrant in group.entrants
    )


def _keeps_to(findings: Findings, group: Group, entrant: Entrant, bounds: Mapping[str, Bound]) -> bool:
    """Whether a variant is shown to keep to every bound: costs with every seed, `within` with the whole interval."""
    for metric, bound in bounds.items():
        quantity = where_judged(group, metric) if metric_of(metric).is_quality else None
        if quantity is not None:
            estimate = findings.estimate(entrant, quantity)
            ranges = [None if estimate is None else (estimate.mean, estimate.mean)]
        else:
            names = [as_compared(findings, name, [entrant]) for name in names_of_cost(findings, metric)]
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
            if not difference.loses_at_most(bound.margin(difference.reference_mean)):
                return False
    return True


def _range_of_cost(findings: Findings, entrant: Entrant, name: str) -> tuple[float, float] | None:
    """The lowest and the highest seed; None where it was not measured."""
    cost = findings.costs.get(entrant, {}).get(name)
    if cost is not None:
        return cost.low, cost.high
    return None if (mean := findings.cost(entrant, name)) is None else (mean, mean)

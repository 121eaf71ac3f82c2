"""What a study shows, as facts: the recommendation, the trades and what was learned, each only where it holds.

The best variant is recommended, or the cheapest of those that are shown to lose no more than the margin against it; under a
limit of the study, the same among those that are shown to keep to it. A recommendation names what it is shown to lose.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from paretune.analysis.compare import NO_DIFFERENCE, Difference, Estimate
from paretune.analysis.costs import cost_name, timed_evaluations
from paretune.analysis.decision import SIZE_STEP, as_compared, better_elsewhere, is_cheaper, shown_losses, where_judged
from paretune.analysis.findings import Choice, Fact, Findings, Group, Limit
from paretune.analysis.scores import Entrant, Quantity
from paretune.study.compare import Bound
from paretune.study.grid import file_name
from paretune.study.registry import metric_of

_MOST_COMPARED = 6
"""Variants that are compared with the baseline in words; a study of many reads better in its tables."""
_COMPARED_COSTS = ("model_bytes", "train_tokens_per_second", "peak_memory_bytes", "ms_per_token")
"""Costs that a sentence compares. Adapters are merged before they are shipped: the exported weights are the size."""


@dataclass(frozen=True)
class CostDifference:
    """A cost in which a variant clearly differs from a reference."""

    metric: str
    evaluation: str
    """That measured it, where several evaluations measure such costs; else empty."""
    ratio: float
    """The variant's over the reference's."""
    cheaper: bool


@dataclass(frozen=True)
class NothingRanked(Fact):
    """No variant has a figure that variants are ranked by."""


@dataclass(frozen=True)
class OnlyOne(Fact):
    entrant: Entrant


@dataclass(frozen=True)
class NoRecommendation(Fact):
    """No interval of a difference from the best is finite."""

    difference: Difference | None
    """The first of those differences, for what it is over."""


@dataclass(frozen=True)
class Undecided(Fact):
    """The lead of the best mean may be chance, and it is shown to be worse in another quality than one that it leads."""

    entrant: Entrant
    quantity: Quantity
    """Of `estimate`."""
    estimate: Estimate
    rivals: tuple[Entrant, ...]
    lost: tuple[Difference, ...]
    """What it is shown to be worse in than one of the rivals: of each measure the first."""


@dataclass(frozen=True)
class Drawbacks:
    """What stands against a variant that is recommended."""

    lost: tuple[Difference, ...]
    """Declared measures that it is shown to be worse in than the best or the baseline."""
    num_missing: int
    """Stages of it that failed or did not run."""


@dataclass(frozen=True)
class Forbidden(Fact):
    """A variant that is ahead, and shown to lose more than a margin of the study in another quality."""

    difference: Difference
    """From the baseline."""


@dataclass(frozen=True)
class BestChosen(Fact):
    entrant: Entrant
    is_untouched: bool
    quantity: Quantity
    """Of `estimate`."""
    estimate: Estimate
    near: tuple[Entrant, ...]
    """Others that cannot be told apart from it; none of them is clearly cheaper."""
    leads: Literal["all", "all measured", ""]
    """What it is shown to be better than."""
    of_others: bool
    """Those ahead of it are forbidden."""
    drawbacks: Drawbacks


@dataclass(frozen=True)
class CheaperChosen(Fact):
    """A variant is recommended that is shown to lose no more than the margin against the best, and is cheaper."""

    difference: Difference
    """From the best, with the margin."""
    is_untouched: bool
    cheaper: tuple[CostDifference, ...]
    drawbacks: Drawbacks


@dataclass(frozen=True)
class CheaperNotShown(Fact):
    """A variant that is cheaper than the best, and neither shown to be worse nor to lose no more than the margin."""

    difference: Difference
    """From the best, with the margin."""
    cheaper: tuple[CostDifference, ...]
    needed: int | None
    """How many documents or questions would show it."""


@dataclass(frozen=True)
class DecidedBy(Fact):
    """What variants were ranked by, where it is not the first metric of all."""

    quantity: Quantity
    why: Literal["family", "answers"]


@dataclass(frozen=True)
class Trade(Fact):
    """A variant against a reference, in cost and quality."""

    difference: Difference
    cheaper: tuple[CostDifference, ...]
    dearer: tuple[CostDifference, ...]

    @property
    def is_contrast(self) -> bool:
        """A gain on one side and a loss on the other."""
        verdict = self.difference.verdict
        return (verdict == "worse" and not self.dearer) if self.cheaper else bool(self.dearer) and verdict == "better"


@dataclass(frozen=True)
class CheaperForPrice(Fact):
    """A variant that is cheaper than the recommended one and worse."""

    trade: Trade


@dataclass(frozen=True)
class UnderLimit(Fact):
    """What to take under a limit of the study."""

    limit: Limit
    bounds: tuple[tuple[str, Quantity | None, Bound], ...]
    """By metric; with where a quality is judged."""
    baseline: Entrant | None
    """What `within` of a bound is counted from."""
    quantity: Quantity
    """That the chosen one is the best in, where it is."""


@dataclass(frozen=True)
class Frontier(Fact):
    """The variants that none beats in quality and cost together."""

    quantity: Quantity
    costs: tuple[str, ...]
    entrants: tuple[Entrant, ...]
    beaten: tuple[tuple[Entrant, tuple[Entrant, ...]], ...]
    """By a rival: what it beats."""
    tells: bool
    """Some variant is shown to be better than another, or as good."""


@dataclass(frozen=True)
class BetterThanBase(Fact):
    differences: tuple[Difference, ...]
    """From the untouched base, best first."""
    is_every_variant: bool


@dataclass(frozen=True)
class WorseThanBase(Fact):
    difference: Difference


@dataclass(frozen=True)
class EquivalentToBase(Fact):
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class NotToldFromBase(Fact):
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class MoreVariants(Fact):
    """Variants that are not compared with the baseline in words."""

    count: int
    quantity: Quantity


@dataclass(frozen=True)
class LikelyMemorised(Fact):
    """A perplexity of held-out text that only text which was seen before can give."""

    entrant: Entrant
    quantity: Quantity
    perplexity: float


@dataclass(frozen=True)
class BasesCompared(Fact):
    """The best variant of a base against that of the base that is ahead."""

    difference: Difference


@dataclass(frozen=True)
class NoBasesCompared(Fact):
    """No two bases have figures that can be compared."""


@dataclass(frozen=True)
class TokenizersDiffer(Fact):
    """Bases of a dataset have different tokenizers, which some metrics depend on."""

    alone: ClassVar[bool] = True


@dataclass(frozen=True)
class Incomplete(Fact):
    variants: tuple[str, ...]
    num_stages: int
    """That failed or did not run."""


@dataclass(frozen=True)
class Running(Fact):
    """A run of the study is on."""

    variants: tuple[str, ...]
    num_stages: int
    """That it works on or has still to come to."""


@dataclass(frozen=True)
class NothingMeasured(Fact):
    """There is no cell."""


@dataclass(frozen=True)
class ToUse(Fact):
    """How to export what is recommended, in the folder of the study."""

    commands: tuple[str, ...]


def export_command(findings: Findings, entrant: Entrant) -> str:
    """How to write a variant as a directory, with the options that the study makes necessary."""
    study = findings.study
    seeds = [cell.seed for cell in sorted(findings.cells(entrant), key=lambda cell: bool(cell.missing or cell.running))]
    among = (entrant.base, len(study.bases)), (entrant.dataset, len(study.data)), (entrant.variant, 2)
    words = ["paretune", "export", findings.results.study_file.name, entrant.variant]
    words += ["--to", f"{'-'.join(file_name(name) for name, num in among if num > 1)}-exported"]
    words += ["--base", entrant.base] if len(study.bases) > 1 else []
    words += ["--data", entrant.dataset] if len(study.data) > 1 else []
    words += ["--seed", str(seeds[0])] if len(seeds) > 1 else []
    return shlex.join(words)


def trade(findings: Findings, variant: Entrant, reference: Entrant, quantity: Quantity) -> Trade | None:
    """`variant` against `reference` in cost, times in each evaluation of them, and quality; None where that is not compared."""
    difference = findings.told(variant, reference, quantity)
    if difference is None:
        return None
    timed, costs = timed_evaluations(findings.study), []
    for metric in _COMPARED_COSTS:
        row = metric_of(metric)
        for evaluation in timed if row.unit == "ms" else [""]:
            name = cost_name(metric, evaluation, timed) if evaluation else metric
            ratio = findings.ratios.get((as_compared(findings, name, [variant, reference]), variant, reference))
            if ratio is not None and ratio.clear and abs(ratio.value - 1) > SIZE_STEP:
                cheaper = ratio.value > 1 if row.better == "higher" else ratio.value < 1
                costs.append(CostDifference(metric, evaluation if len(timed) > 1 else "", ratio.value, cheaper))
    dearer = tuple(cost for cost in costs if not cost.cheaper)
    return Trade(difference, tuple(cost for cost in costs if cost.cheaper), dearer)


def recommendation(findings: Findings, group: Group, choice: Choice, quantity: Quantity) -> tuple[list[Fact], list[Fact]]:
    """What to take, and what is cheaper at a price."""
    if choice.verdict == "only one":
        return [OnlyOne(choice.best)], []
    if choice.verdict == "cannot tell":
        known = (findings.told(entrant, choice.best, quantity) for entrant in choice.ranked)
        return [NoRecommendation(next((difference for difference in known if difference is not None), None))], []
    chosen = choice.chosen
    why = [] if group.decided_by == "order" else [DecidedBy(quantity, group.decided_by)]
    if choice.verdict == "undecided":
        rivals = better_elsewhere(findings, group, chosen, choice.near)
        lost, shown = _first_losses(findings, group, chosen, rivals), findings.shown(chosen, quantity)
        return [Undecided(chosen, shown, findings.estimates[chosen][shown], tuple(rivals), lost), *why], []
    facts: list[Fact] = [Forbidden(difference) for difference in choice.forbidden]
    missing = {stage for cell in findings.cells(chosen) for stage in cell.missing}
    references = [entrant for entrant in dict.fromkeys((choice.best, group.baseline)) if entrant != chosen]
    lost = _first_losses(findings, group, chosen, references)
    drawbacks, is_untouched = Drawbacks(lost, len(missing)), findings.is_untouched(chosen)
    cheaper = {candidate.difference.variant: candidate for candidate in choice.candidates}
    if chosen == choice.best:
        apart = {chosen, *cheaper, *(difference.variant for difference in choice.forbidden)}
        near = tuple(entrant for entrant in choice.near if entrant not in apart)
        leads: Literal["all", "all measured", ""] = ""
        if len(choice.near) == 1 and not choice.forbidden:
            leads = "all" if len(choice.ranked) == len(findings.study.variants) else "all measured"
        shown = findings.shown(chosen, quantity)
        estimate, of_others = findings.estimates[chosen][shown], bool(choice.forbidden)
        facts.append(BestChosen(chosen, is_untouched, shown, estimate, near, leads, of_others, drawbacks))
    elif (against_best := trade(findings, chosen, choice.best, quantity)) is not None:
        facts.append(CheaperChosen(cheaper[chosen].difference, is_untouched, against_best.cheaper, drawbacks))
    prices, unsettled = list[Fact](), list[Fact]()
    for entrant, candidate in cheaper.items():
        if candidate.is_shown or not is_cheaper(findings, entrant, chosen):
            continue
        price = trade(findings, entrant, chosen, quantity)
        against_base = findings.told(entrant, group.untouched, quantity)
        if entrant in choice.near and (against_best := trade(findings, entrant, choice.best, quantity)) is not None:
            unsettled.append(CheaperNotShown(candidate.difference, against_best.cheaper, candidate.needed))
        elif entrant not in choice.near and price is not None and price.cheaper and not findings.is_untouched(entrant):
            is_bargain = against_base is None or against_base.verdict != "worse"
            prices += [CheaperForPrice(price)] if is_bargain else []
    return [*facts, *unsettled[:_MOST_COMPARED], *why], prices


def _first_losses(
    findings: Findings, group: Group, chosen: Entrant, references: Sequence[Entrant | None]
) -> tuple[Difference, ...]:
    """Of each measure that `chosen` is shown to be worse in, the difference from the first of `references` that shows it."""
    lost: dict[Quantity, Difference] = {}
    for difference in (loss for reference in references for loss in shown_losses(findings, group, chosen, reference)):
        lost.setdefault(difference.quantity, difference)
    return tuple(lost.values())


def against_costs(findings: Findings, group: Group, choice: Choice, quantity: Quantity) -> list[Fact]:
    """What to take under each limit of the study, and the Pareto frontier."""
    facts: list[Fact] = []
    for limit in group.limits:
        bounds = [
            (metric, where_judged(group, metric) if metric_of(metric).is_quality else None, bound)
            for metric, bound in limit.bounds.items()
        ]
        shown = findings.shown(limit.chosen or choice.ranked[0], quantity)
        facts.append(UnderLimit(limit, tuple(bounds), group.baseline, shown))
    unbeaten = tuple(entrant for entrant, rival in choice.beaten.items() if rival is None)
    if len(choice.ranked) > 2 and choice.costs and unbeaten:
        by_rival: dict[Entrant, tuple[Entrant, ...]] = {}
        for entrant, rival in choice.beaten.items():
            if rival is not None:
                by_rival[rival] = (*by_rival.get(rival, ()), entrant)
        shown = findings.shown(choice.ranked[0], quantity)
        facts.append(Frontier(shown, choice.costs, unbeaten, tuple(by_rival.items()), choice.tells))
    return facts


def comparisons(
    findings: Findings, group: Group, choice: Choice, quantity: Quantity, recommendation: Sequence[Fact]
) -> list[Fact]:
    """What the methods brought against the base as it came, and the others against the baseline; no pair that the
    recommendation has compared."""
    parts = [fact.trade if isinstance(fact, CheaperForPrice) else fact for fact in recommendation]
    differences = [fact.difference for fact in parts if isinstance(fact, Trade | CheaperChosen | CheaperNotShown)]
    compared = {frozenset((difference.variant, difference.reference)) for difference in differences}
    facts: list[Fact] = []
    base, baseline = group.untouched, group.baseline
    if base in choice.ranked:
        others = [entrant for entrant in choice.ranked if entrant != base]
        known = [difference for entrant in others if (difference := findings.told(entrant, base, quantity)) is not None]
        better = tuple(difference for difference in known if difference.verdict == "better")
        facts += [BetterThanBase(better, is_every_variant=len(better) == len(others))] if better else []
        rest = [
            difference
            for difference in known
            if difference.verdict != "better" and frozenset((difference.variant, base)) not in compared
        ]
        facts += [WorseThanBase(difference) for difference in rest if difference.verdict == "worse"]
        equivalent = tuple(difference for difference in rest if difference.verdict == "equivalent")
        facts += [EquivalentToBase(equivalent)] if equivalent else []
        alike = tuple(difference for difference in rest if difference.verdict == NO_DIFFERENCE)
        facts += [NotToldFromBase(alike)] if alike else []
    if baseline in choice.ranked and not findings.is_untouched(baseline):  # else all have been compared with it
        others = [
            entrant
            for entrant in choice.ranked
            if entrant != baseline and not findings.is_untouched(entrant) and frozenset((entrant, baseline)) not in compared
        ]
        trades = [trade(findings, entrant, baseline, quantity) for entrant in others[:_MOST_COMPARED]]
        facts += [fact for fact in trades if fact is not None]
        facts += [MoreVariants(len(others) - _MOST_COMPARED, quantity)] if len(others) > _MOST_COMPARED else []
    return facts


def across_facts(findings: Findings, dataset: str) -> list[Fact]:
    """Which base is ahead on a dataset, in a metric that tokenizers do not bend; nothing for a single base."""
    groups = [group for group in findings.groups if group.dataset == dataset]
    quantity = next((group.headline for group in groups if group.headline is not None), None)
    if len(groups) < 2 or quantity is None or metric_of(quantity.metric).per_token:
        return []
    tops = [group.choice.ranked[0] for group in groups if group.choice is not None and group.headline == quantity]
    sign = metric_of(quantity.metric).sign
    first, *others = sorted(tops, key=lambda entrant: -sign * findings.estimates[entrant][quantity].mean)
    differences = [findings.difference(other, first, quantity) for other in others]
    facts: list[Fact] = [BasesCompared(difference) for difference in differences if difference is not None]
    records = [findings.results.tokens.get((group.base, dataset)) for group in groups]
    digests = {None if record is None else record.config["base"]["digest"] for record in records}
    is_same = len(digests) == 1 and None not in digests
    return [*(facts or [NoBasesCompared()]), *([] if is_same else [TokenizersDiffer()])]

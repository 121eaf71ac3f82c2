"""All that is told of a study, as facts, and its answer in three sentences.

`find` is the way from a study's records to its findings. The answer: what to take, what the cheaper ones cost, and the caveat
that matters most.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

from paretune.analysis import answers, caveats, conclusions, setup
from paretune.analysis.compare import Difference
from paretune.analysis.conclusions import CostDifference, across_facts, trade
from paretune.analysis.decision import HELD_OUT, is_cheaper
from paretune.analysis.deviations import ExamplesLeftOut, RecordsLeftOut, TunedUnequally, deviations
from paretune.analysis.findings import Fact, Facts, Findings, Group, GroupFacts
from paretune.analysis.healing import depth_facts, healing_facts
from paretune.analysis.measure import measure
from paretune.analysis.scores import Entrant
from paretune.pipeline.records import Results

_MEMORISED = 1.5
"""Perplexity of held-out text below which memorised text is likelier than a good model."""
_MOST_NAMED = 3
"""Cheaper variants that the sentence names."""
_GRAVITY: Sequence[type[Fact]] = (
    *(conclusions.NothingMeasured, conclusions.Incomplete, conclusions.Running),
    *(caveats.LeakedFigures, conclusions.LikelyMemorised, ExamplesLeftOut, RecordsLeftOut),
    *(caveats.OneDocument, caveats.GroupUnnamed, caveats.RecordsShared, caveats.DocumentsAlike),
    *(caveats.RankedOnValidation, caveats.SheetUnread, caveats.FamilyUnmeasured, caveats.TrainingShort),
    *(caveats.ChosenAtEdge, TunedUnequally, caveats.FewSeeds, caveats.Untuned, caveats.TimesDisturbed),
)
"""Caveats, those first that can turn a decision."""


@dataclass(frozen=True)
class TakenOn:
    """What to take on a dataset, or of a base on it where bases are not compared."""

    dataset: str
    entrant: Entrant | None
    """None where nothing is recommended."""
    near: tuple[Entrant, ...] = ()
    """The best of other bases, as far as they are not shown to be worse than the best of this one."""


@dataclass(frozen=True)
class TakeEach(Fact):
    """What to take where there are several bases or datasets."""

    taken: tuple[TakenOn, ...]


@dataclass(frozen=True)
class CheaperAtWorst(Fact):
    """What is cheaper than the variant that is taken, and how much worse each may be."""

    variants: tuple[tuple[CostDifference | None, Difference], ...]
    """From the one that is taken, with the first cost that is lower; the smallest loss at worst first."""
    num_more: int
    """That are cheaper and not named."""


@dataclass(frozen=True)
class NoneCheaper(Fact):
    entrant: Entrant
    """The variant that is taken."""


def find(results: Results, also_against: str | None = None) -> Findings:
    """All that a study's records show; `also_against` is a variant that all others are compared with, as with the baseline."""
    findings = measure(results, also_against)
    incomplete: list[Fact] = []
    for fact, left_of in ((conclusions.Incomplete, attrgetter("missing")), (conclusions.Running, attrgetter("running"))):
        left = [(cell.variant, stage) for cell in results.cells for stage in left_of(cell)]
        if left:
            variants, stages = zip(*left, strict=True)
            incomplete.append(fact(tuple(dict.fromkeys(variants)), len(set(stages))))
    if not results.cells:
        incomplete.append(conclusions.NothingMeasured())
    all_facts = Facts(
        groups={(group.base, group.dataset): _group_facts(findings, group) for group in findings.groups},
        across={dataset: tuple(facts) for dataset in findings.study.data if (facts := across_facts(findings, dataset))},
        remarks=tuple(caveats.remarks(findings)),
        incomplete=tuple(incomplete),
        setup=tuple(setup.setup(findings)),
        data=tuple(setup.data_notes(findings)),
        deviations=tuple(deviations(findings)),
        audit=tuple(setup.audit(findings)),
        notes=tuple(setup.notes(findings)),
    )
    taken = [of_dataset for dataset in findings.study.data for of_dataset in _taken(findings, all_facts, dataset)]
    commands = tuple(conclusions.export_command(findings, one.entrant) for one in taken if one.entrant is not None)
    answer, use = tuple(_answer(findings, all_facts, taken)), (conclusions.ToUse(commands),) if commands else ()
    return replace(findings, facts=replace(all_facts, answer=answer, use=use))


def _group_facts(findings: Findings, group: Group) -> GroupFacts:
    """All lists of a group; what was found stands in the order of its weight for a decision, caveats last."""
    choice, quantity, facts = group.choice, group.headline, list[Fact]()
    if choice is None or quantity is None:
        recommendation: Sequence[Fact] = [conclusions.NothingRanked()]
        facts += answers.rating_facts(findings, group)
    else:
        recommendation, prices = conclusions.recommendation(findings, group, choice, quantity)
        facts += [
            *(conclusions.against_costs(findings, group, choice, quantity) if choice.verdict != "cannot tell" else []),
            *conclusions.comparisons(findings, group, choice, quantity, (*recommendation, *prices)),
            *prices,
            *answers.answer_facts(findings, group),
            *answers.rating_facts(findings, group),
            *answers.forgetting_facts(findings, group),
            *(
                conclusions.LikelyMemorised(entrant, of, estimate.mean)
                for entrant in choice.ranked
                for of, estimate in findings.estimates[entrant].items()
                if of.metric == "perplexity" and of.split in HELD_OUT and not of.slice and estimate.mean < _MEMORISED
            ),
            *caveats.short_training(group),
            *caveats.chosen_on_validation(findings, group),
        ]
    return GroupFacts(
        recommendation=tuple(recommendation),
        findings=tuple(facts),
        trained=tuple(caveats.trained_shares(findings, group)),
        training=(*caveats.training_notes(findings, group), *healing_facts(findings, group)),
        tuning=tuple(caveats.tuning_facts(findings, group)),
        blocks=(*caveats.block_facts(findings, group), *depth_facts(findings, group)),
        confounded=answers.confounded_facts(findings, group),
    )


def _answer(findings: Findings, facts: Facts, taken: Sequence[TakenOn]) -> list[Fact]:
    """At most three: a sentence that does not hold is left out."""
    told: list[Fact] = []
    if len(findings.groups) == 1:
        group = findings.groups[0]
        recommendation = facts.groups[group.base, group.dataset].recommendation
        told += [fact for fact in recommendation if not isinstance(fact, conclusions.Forbidden)][:1]
        told += _cheaper(findings, group)
    elif findings.groups:
        told.append(TakeEach(tuple(taken)))
    of_groups = (fact for group in facts.groups.values() for fact in group.findings)
    known = [fact for fact in (*facts.incomplete, *facts.remarks, *of_groups) if isinstance(fact, tuple(_GRAVITY))]
    return [*told, *sorted(known, key=lambda fact: _GRAVITY.index(type(fact)))[:1]]


def _cheaper(findings: Findings, group: Group) -> list[Fact]:
    choice, quantity = group.choice, group.headline
    if choice is None or quantity is None or choice.verdict in ("cannot tell", "only one"):
        return []
    # The interval of a candidate and that of its family: the wider one is told.
    candidates = {candidate.difference.variant: candidate.difference for candidate in choice.candidates}
    known: list[tuple[CostDifference | None, Difference]] = []
    for entrant in choice.ranked:
        found = trade(findings, entrant, choice.chosen, quantity) if is_cheaper(findings, entrant, choice.chosen) else None
        if found is not None:
            others = [candidates[entrant]] if entrant in candidates and choice.chosen == choice.best else []
            known.append((next(iter(found.cheaper), None), max([found.difference, *others], key=attrgetter("worst"))))
    if not known:
        return [NoneCheaper(choice.chosen)]
    known.sort(key=lambda one: one[1].worst)
    return [CheaperAtWorst(tuple(known[:_MOST_NAMED]), max(0, len(known) - _MOST_NAMED))]


def _taken(findings: Findings, facts: Facts, dataset: str) -> list[TakenOn]:
    """One of a dataset whose bases are compared, else one of each base."""
    chosen = {
        group.base: group.choice.chosen if group.choice is not None and group.choice.verdict == "recommended" else None
        for group in findings.groups
        if group.dataset == dataset
    }
    compared = [fact.difference for fact in facts.across.get(dataset, ()) if isinstance(fact, conclusions.BasesCompared)]
    if not compared:
        return [TakenOn(dataset, entrant) for entrant in chosen.values()]
    near = tuple(difference.variant for difference in compared if difference.verdict != "worse")
    return [TakenOn(dataset, chosen[compared[0].reference.base], near)]

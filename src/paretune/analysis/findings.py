"""All that a study's records show, computed once: what tables, figures, sentences, cards and trackers read, and findings.json.

`measure` computes the numbers, `conclusions` adds the facts. Nothing after that computes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pandas as pd

from paretune.analysis.compare import Difference, Estimate, Pair
from paretune.analysis.costs import Costs, Ratio
from paretune.analysis.scores import Entrant, Quantity, Seed, entrant_of
from paretune.analysis.training import BlockChoice, Epoch
from paretune.pipeline.records import Cell, Results
from paretune.study.registry import metric_of, metrics

if TYPE_CHECKING:
    from paretune.analysis.agreement import Rating
    from paretune.study.compare import Bound
    from paretune.study.study import Study

Beaten = Mapping[Entrant, Entrant | None]
"""Every variant with one that makes it pointless; None for those on the Pareto frontier."""
HARNESS = "lm_eval"
"""Kind of the evaluation whose tasks have names of their own, those of lm-evaluation-harness."""
LEAKED, LOSSY = "†", "‡"
"""Behind a number of which some texts also stand in the training data, and behind one of a lossy tokenizer."""


@dataclass(frozen=True)
class Fact:
    """One thing that the numbers show. Its sentence is the template called like its class."""

    alone: ClassVar[bool] = False
    """Said in a paragraph of its own, behind the list of the others."""


@dataclass(frozen=True)
class Candidate:
    """A variant that is cheaper than the best, and what it may cost in quality."""

    difference: Difference
    """From the best, as it is told, at a level corrected for the number of candidates, with the margin."""
    is_shown: bool
    """That it loses no more than the margin, and is shown worse in nothing that the study gives a margin."""
    needed: int | None
    """How many documents or questions would show it; None where none would: the difference itself is no smaller than the
    margin, or seeds lie too far apart."""


@dataclass(frozen=True)
class Choice:
    """Which variant to take, of those that have the headline."""

    ranked: tuple[Entrant, ...]
    """Best mean first."""
    best: Entrant
    """The first of `ranked` that is not forbidden."""
    near: tuple[Entrant, ...]
    """The best, and those that are not shown to be worse than it."""
    chosen: Entrant
    """The cheapest of the best and of the candidates that are shown to lose no more than the margin."""
    candidates: tuple[Candidate, ...]
    """Those that are cheaper than the best."""
    forbidden: tuple[Difference, ...]
    """From the baseline, of variants ahead of `best`: shown to lose more than a margin of the study in another quality."""
    verdict: Literal["recommended", "only one", "cannot tell", "undecided"]
    costs: tuple[str, ...]
    """That were weighed, the most important first."""
    beaten: Beaten
    """In quality and all of `costs` together."""
    beaten_by_cost: Mapping[str, Beaten]
    """In quality and one of `costs`, of the variants that have it."""
    tells: bool
    """Some variant is shown to be better than another, or to lose no more than the margin against it."""


@dataclass(frozen=True)
class Limit:
    """What to take of those that are shown to keep to a limit of the study."""

    bounds: Mapping[str, "Bound"]
    kept: tuple[Entrant, ...]
    """Best mean first."""
    chosen: Entrant | None
    reason: Literal["best", "cheaper", "cheapest", "not dearer", "none keeps to it", "not measured"]
    unmeasured: tuple[str, ...] = ()
    """Metrics of the bounds that no variant has."""


@dataclass(frozen=True)
class Group:
    """The variants of one base on one dataset: what can be compared in every metric."""

    base: str
    dataset: str
    entrants: tuple[Entrant, ...]
    """In the order of the study."""
    baseline: Entrant | None
    """What the others are compared with: the study's baseline, if this base has it and it was measured."""
    untouched: Entrant | None
    """The variant without methods: the base as it came."""
    quantities: tuple[Quantity, ...]
    """All that any of the variants has a figure of, without views."""
    headline: Quantity | None
    """What the variants are ranked by; None if nothing of the kind was measured."""
    decided_by: Literal["family", "answers", "order"]
    """Why by that: the first of the declared family, the score of the first task's answers, or the first metric of all."""
    tasks: tuple[str, ...]
    """What the variants were asked: evaluations, tasks of the dataset, those of lm-evaluation-harness; forgetting last."""
    harness_tasks: tuple[str, ...]
    """The tasks of lm-evaluation-harness among them."""
    chance: Mapping[str, float]
    """By evaluation of questions: the share of its multiple-choice questions that guessing answers."""
    slice_values: Mapping[str, Mapping[str, Mapping[object, str]]]
    """By evaluation and field that it is sliced by: the value of each example."""
    noise: Mapping[str, float] = field(default_factory=dict)
    """By cost: the largest ratio between two measurements that should have been equal."""
    falling: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    """Variants whose validation loss, and those of which only the train loss, was still falling at the end."""
    choice: Choice | None = None
    """What to take, and what is beaten by which; None where nothing was measured that variants are ranked by."""
    limits: tuple[Limit, ...] = ()
    """What to take under each limit of the study."""

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(entrant.variant for entrant in self.entrants)

    def entrant(self, variant: str) -> Entrant:
        return Entrant(self.base, self.dataset, variant)


@dataclass(frozen=True)
class GroupFacts:
    """What is said of the variants of one base on one dataset, each list in the order of the report."""

    recommendation: tuple[Fact, ...] = ()
    findings: tuple[Fact, ...] = ()
    trained: tuple[Fact, ...] = ()
    """How many parameters each variant trains."""
    training: tuple[Fact, ...] = ()
    tuning: tuple[Fact, ...] = ()
    blocks: tuple[Fact, ...] = ()
    """One for each of the `block_choices`, what was removed and how it was chosen; then what makes up for blocks."""
    confounded: Mapping[str, tuple[Fact, ...]] = field(default_factory=dict)
    """By evaluation of questions: slices that cannot be told apart."""


@dataclass(frozen=True)
class Facts:
    """Everything that is said of a study, each list in the order of the report."""

    answer: tuple[Fact, ...] = ()
    """At most three: what to take, what the cheaper ones cost, and the caveat that matters most."""
    groups: Mapping[tuple[str, str], GroupFacts] = field(default_factory=dict)
    """By base and dataset."""
    across: Mapping[str, tuple[Fact, ...]] = field(default_factory=dict)
    """By dataset with several bases: the best of one base against the best of another."""
    remarks: tuple[Fact, ...] = ()
    """What so few questions, so few seeds, and leaked texts allow to say."""
    incomplete: tuple[Fact, ...] = ()
    """That something failed or did not run, or that nothing was measured."""
    use: tuple[Fact, ...] = ()
    """How to export what is recommended."""
    setup: tuple[Fact, ...] = ()
    """Bases, training, precision, baseline, machine, versions."""
    data: tuple[Fact, ...] = ()
    deviations: tuple[Fact, ...] = ()
    """Where variants were not treated alike or something was left out; or that there is nothing of the kind."""
    audit: tuple[Fact, ...] = ()
    notes: tuple[Fact, ...] = ()
    """What is missing, what marks mean, how figures are defined."""


@dataclass(frozen=True)
class Marks:
    """What numbers leakage or a lossy tokenizer touches."""

    splits: frozenset[tuple[str, str]]
    """(dataset, split) with documents that also stand in training text."""
    tasks: frozenset[tuple[str, str]]
    """(dataset, evaluation) with items that also stand in training text."""
    tokenizers: frozenset[tuple[str, str]]
    """(base, dataset) where the ids of some text do not decode to it."""

    def of(self, entrant: Entrant, task: str, split: str) -> str:
        leaked = (entrant.dataset, split) in self.splits or (entrant.dataset, task) in self.tasks
        return LEAKED if leaked else ""

    def lossy(self, entrant: Entrant) -> str:
        return LOSSY if (entrant.base, entrant.dataset) in self.tokenizers else ""


@dataclass(frozen=True)
class Findings:
    results: Results
    groups: tuple[Group, ...]
    estimates: Mapping[Entrant, Mapping[Quantity, Estimate]]
    """Views (perplexity) stand behind what they are made of."""
    seed_scores: Mapping[Entrant, Mapping[Quantity, Mapping[Seed, tuple[float, int]]]]
    """The score of each seed on all of its examples, and their number."""
    differences: Mapping[Pair, Difference]
    """With every baseline in every quality, between all variants of a group in its headline and in what has a margin, of the
    recommended one with the best in every quality, with the untouched base on text outside the domain, and between the best of
    several bases; views included."""
    costs: Costs
    ratios: Mapping[tuple[str, Entrant, Entrant], Ratio]
    """Of costs between variants of a group, by name, variant and reference; none across machines."""
    curves: Mapping[tuple[Entrant, Seed], pd.DataFrame]
    epochs: Mapping[tuple[Entrant, Seed], Sequence[Epoch]]
    """Of trainings."""
    block_choices: Mapping[tuple[str, str], Sequence[BlockChoice]]
    """By base and dataset: removed blocks whose choice was measured."""
    ratings: Mapping[str, "Rating"]
    """By evaluation whose texts were rated."""
    audit: Mapping[str, Sequence[Mapping[str, Any]]]
    """By audited dataset: what was found, as in `audit.jsonl`."""
    marks: Marks
    facts: Facts = field(default_factory=Facts)

    @property
    def study(self) -> "Study":
        return self.results.study

    @property
    def level(self) -> float:
        return self.study.compare.interval

    def estimate(self, entrant: Entrant, quantity: Quantity) -> Estimate | None:
        return self.estimates.get(entrant, {}).get(quantity)

    def difference(self, variant: Entrant | None, reference: Entrant | None, quantity: Quantity) -> Difference | None:
        """`variant` minus `reference`; None where one of them lacks the quantity, or nobody compares the two in it."""
        return None if variant is None or reference is None else self.differences.get((variant, reference, quantity))

    def told(self, variant: Entrant | None, reference: Entrant | None, quantity: Quantity) -> Difference | None:
        """The difference as it is told: in perplexity (as a ratio, through the loss) where bits per byte rank."""
        words = quantity._replace(metric=metric_of(quantity.metric).told_as or quantity.metric)
        return self.difference(variant, reference, words) or self.difference(variant, reference, quantity)

    def shown(self, entrant: Entrant, quantity: Quantity) -> Quantity:
        """The quantity of the figure that stands for it: perplexity where a difference of losses is told."""
        told = metric_of(quantity.metric).told_as or quantity.metric
        views = [row.name for row in metrics().values() if row.exp_of == told]
        return next((q for q in (quantity._replace(metric=view) for view in views) if self.estimate(entrant, q)), quantity)

    def cost(self, entrant: Entrant, name: str) -> float | None:
        """A cost's mean over seeds; 0 for the training of what was not trained."""
        found = self.costs.get(entrant, {}).get(name)
        if found is not None:
            return found.mean
        return 0.0 if metric_of(name).of_training and not self.is_trained(entrant) else None

    def is_untouched(self, entrant: Entrant) -> bool:
        return not self.study.variants[entrant.variant].methods

    def is_trained(self, entrant: Entrant) -> bool:
        return any(use.row.trains for use in self.study.variants[entrant.variant].methods)

    def cells(self, entrant: Entrant) -> list[Cell]:
        return [cell for cell in self.results.cells if entrant_of(cell) == entrant]

"""What question sets, tasks, ratings and text outside the domain can tell: seldom much, for they are small.

A model can know an answer and not write it as it was asked to, so the accuracy by likelihood stands beside that of what it
writes. Learning and forgetting are two axes: a method that learns less often forgets less, and a single figure hides which it
was. Ratings on which raters do not agree conclude nothing.
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy.sparse import bmat
from scipy.sparse.csgraph import connected_components
from scipy.stats.contingency import association

from paretune.analysis2.agreement import RELIABLE, TENTATIVE, Trust
from paretune.analysis2.compare import Difference
from paretune.analysis2.decision import rank, where_judged
from paretune.analysis2.findings import Fact, Findings, Group
from paretune.analysis2.inference import chance_p
from paretune.analysis2.scores import Entrant, Quantity, read_generations
from paretune.study.registry import metrics
from paretune.study.study import TASKS
from paretune.study.tasks import METRICS

ANSWER_METRICS = ("accuracy", "exact_match", "contains")
"""Of questions, each 0 or 1."""
_TOLD_TASKS = 5
"""Of lm-evaluation-harness, in words."""
_NEAR = 0.8
"""Cramer's V from which two fields count as one."""


@dataclass(frozen=True)
class AllAnswerAlike(Fact):
    """Every variant answers as many questions."""

    quantity: Quantity
    share: float
    num_questions: int


@dataclass(frozen=True)
class AnswersUndecided(Fact):
    """From how many right answers to how many variants go, where none is told apart from the baseline."""

    quantity: Quantity
    num_questions: int
    worst: tuple[Entrant, float]
    best: tuple[Entrant, float]
    widest: Difference | None
    """From the baseline; None where nothing can be compared with it."""


@dataclass(frozen=True)
class LikeGuessing(Fact):
    """The variants whose right answers could be those of chance."""

    quantity: Quantity
    num_questions: int
    chance: float
    answers: tuple[tuple[Entrant, float, float], ...]
    """Share of right answers and p value of each."""


@dataclass(frozen=True)
class ScoresDiffer(Fact):
    """What differs from the baseline."""

    differences: tuple[Difference, ...]
    num_questions: int | None = None
    """Where the scores are right answers."""
    trust: Trust | None = None
    """Of ratings."""
    reliable: float = RELIABLE


@dataclass(frozen=True)
class ScoresUndecided(Fact):
    """The widest difference from the baseline, where none is detected."""

    widest: Difference
    trust: Trust | None = None
    """Of ratings."""
    reliable: float = RELIABLE


@dataclass(frozen=True)
class RatersDisagree(Fact):
    """Ratings that conclude nothing."""

    quantity: Quantity
    trust: Trust
    least: float = TENTATIVE
    """Agreement from which they would."""


@dataclass(frozen=True)
class WrittenWorse(Fact):
    """The variants whose likeliest label is right clearly more often than what they write."""

    task: str
    shares: tuple[tuple[Entrant, float, float], ...]
    """By likelihood and as written."""


@dataclass(frozen=True)
class LikeCommonest(Fact):
    """The variants that may have learned no more about labels than which one is the most frequent."""

    task: str
    label: str
    share: float
    """Of the right answers."""
    accuracies: tuple[tuple[Entrant, float], ...]


@dataclass(frozen=True)
class Change:
    """By how much text got better or worse against the untouched base, in bits per byte."""

    mean: float
    low: float
    high: float
    num_documents: int
    detected: bool

    @property
    def has_interval(self) -> bool:
        return math.isfinite(self.high - self.low)


@dataclass(frozen=True)
class Forgotten(Fact):
    """The variants that are shown to have forgotten, with what they learned, where that is known."""

    task: str
    level: float
    changes: tuple[tuple[Entrant, Change, Change | None], ...]


@dataclass(frozen=True)
class ForgettingUnknown(Fact):
    """Too few documents."""

    task: str
    num_documents: int


@dataclass(frozen=True)
class NothingForgotten(Fact):
    """The variants that are not shown to have forgotten."""

    task: str
    entrants: tuple[Entrant, ...]


@dataclass(frozen=True)
class Confounded(Fact):
    """Slices by two fields that cannot be told apart."""

    task: str
    fields: tuple[str, str]
    num_empty: int
    """Combinations of their values that no question has."""
    num_combinations: int
    strength: float
    """Cramer's V."""


def answer_facts(findings: Findings, group: Group) -> list[Fact]:
    """Questions metric by metric, then the tasks of lm-evaluation-harness and those of the dataset."""
    facts: list[Fact] = []
    for task in (name for name, use in findings.study.evaluate.items() if use.kind == "qa"):
        seen: list[list[float]] = []
        for metric in ANSWER_METRICS:
            quantity = Quantity(task, "", metric)
            estimates = {entrant: findings.estimates[entrant][quantity] for entrant in rank(findings, group, quantity)}
            means = [estimate.mean for estimate in estimates.values()]
            if len(means) > 1 and means not in seen and quantity != group.headline:
                seen.append(means)
                facts.append(_answers(findings, group, quantity, list(estimates)))
            if metric == "accuracy" and task in group.chance:
                chance, guessed = group.chance[task], []
                for entrant, estimate in estimates.items():
                    p = chance_p(round(estimate.mean * estimate.n_examples), estimate.n_examples, chance)
                    if p > 1 - findings.level:
                        guessed.append((entrant, estimate.mean, p))
                if guessed:
                    num_questions = findings.estimates[guessed[-1][0]][quantity].n_examples
                    facts.append(LikeGuessing(quantity, num_questions, chance, tuple(guessed)))
        facts += _scores(findings, group, Quantity(task, "", "log_likelihood"))
    for quantity in _harness_quantities(group)[:_TOLD_TASKS]:
        facts += _scores(findings, group, quantity) if quantity != group.headline else []
    for task, scoring in findings.study.data[group.dataset].scored.items():
        judged = [metric for metric in task_metrics(scoring) if metric != "accuracy_generated"]
        first = where_judged(group, judged[0], task) if judged else None
        facts += _scores(findings, group, first) if first is not None and first != group.headline else []
        facts += _of_labels(findings, group, task)
    return facts


def task_metrics(scoring: Mapping[str, Any]) -> list[str]:
    """The metrics that a task of a dataset is judged by, the most telling first."""
    labelled = ["accuracy", "accuracy_generated"] if scoring.get("labels") else []
    return list(dict.fromkeys([*labelled, *(METRICS.get(name, name) for name in scoring["score"])]))


def rating_facts(findings: Findings, group: Group) -> list[Fact]:
    """What the ratings can tell, with what stands behind it; or that raters do not agree."""
    facts: list[Fact] = []
    for name, rating in findings.ratings.items():
        for criterion, trust in rating.trust.items():
            quantity = Quantity(name, "", criterion)
            if quantity in group.quantities:
                withheld = [RatersDisagree(quantity, trust)] if trust.withheld else []
                facts += withheld or _scores(findings, group, quantity, trust)
    return facts


def forgetting_facts(findings: Findings, group: Group) -> list[Fact]:
    """What was learned and what it cost elsewhere, for the variants of which an interval shows that they forgot."""
    facts: list[Fact] = []
    for task in (name for name, use in findings.study.evaluate.items() if use.kind == "forgetting"):
        changes = {entrant: change for entrant in group.entrants if (change := forgotten(findings, group, entrant, task))}
        known = {entrant: change for entrant, change in changes.items() if change.has_interval}
        unknown = [change.num_documents for change in changes.values() if not change.has_interval]
        shown = tuple(
            (entrant, change, learned(findings, group, entrant)) for entrant, change in known.items() if change.detected
        )
        kept = tuple(entrant for entrant, change in known.items() if not change.detected)
        facts += [Forgotten(task, findings.level, shown)] if shown else []
        facts += [ForgettingUnknown(task, unknown[-1])] if unknown else []
        facts += [NothingForgotten(task, kept)] if kept else []
    return facts


def forgotten(findings: Findings, group: Group, entrant: Entrant, task: str) -> Change | None:
    """The rise in bits per byte of other text against the untouched base.

    It is a comparison like any other, with its seeds and its correction, where the study has the untouched base as a variant.
    """
    quantity = Quantity(task, "", "bits_per_byte")
    difference = findings.difference(entrant, group.untouched, quantity)
    if difference is not None:
        worse = difference.verdict == "worse"
        return Change(difference.mean, difference.low, difference.high, difference.n_documents, worse)
    alone = findings.estimate(entrant, quantity._replace(metric="forgetting"))
    return None if alone is None else Change(alone.mean, alone.low, alone.high, alone.n_documents, alone.low > 0)


def learned(findings: Findings, group: Group, entrant: Entrant) -> Change | None:
    """The drop in bits per byte of held-out text against the untouched base; None where that was not measured."""
    if group.headline is None or group.headline.metric != "bits_per_byte":
        return None
    difference = findings.difference(entrant, group.untouched, group.headline)
    if difference is None:
        return None
    better = difference.verdict == "better"
    return Change(-difference.mean, -difference.high, -difference.low, difference.n_documents, better)


def confounded_facts(findings: Findings, group: Group) -> dict[str, tuple[Fact, ...]]:
    """By evaluation of questions, the pairs of the fields that it is sliced by whose slices cannot be told apart.

    In a table of two fields the effect of one can be separated from that of the other only if its cells hang together: if one
    can go from any value to any other through cells that hold questions (connectedness, Searle 1987, Linear Models for
    Unbalanced Data, section 5.3). Where they do, but hardly, Cramer's V is near 1.
    """
    found: dict[str, tuple[Fact, ...]] = {}
    for task in (name for name, use in findings.study.evaluate.items() if use.kind == "qa"):
        facts, values = [], group.slice_values.get(task, {})
        for first, second in itertools.combinations(values, 2):
            table = pd.crosstab(pd.Series(values[first]), pd.Series(values[second])).to_numpy()
            if min(table.shape) < 2:
                continue
            strength = float(association(table))
            parts, _ = connected_components(bmat([[None, table], [table.T, None]]), directed=False)
            if parts > 1 or strength >= _NEAR:
                facts.append(Confounded(task, (first, second), int((table == 0).sum()), table.size, strength))
        found |= {task: tuple(facts)} if facts else {}
    return found


def _answers(findings: Findings, group: Group, quantity: Quantity, ranked: Sequence[Entrant]) -> Fact:
    """What right answers of `ranked`, best first, can tell."""
    best, worst = (findings.estimates[entrant][quantity] for entrant in (ranked[0], ranked[-1]))
    if best.mean == worst.mean:
        return AllAnswerAlike(quantity, best.mean, best.n_examples)
    differences = _against_baseline(findings, group, quantity)
    if detected := tuple(difference for difference in differences if difference.detected):
        return ScoresDiffer(detected, best.n_examples)
    widest = max(differences, key=lambda difference: abs(difference.mean), default=None)
    return AnswersUndecided(quantity, best.n_examples, (ranked[-1], worst.mean), (ranked[0], best.mean), widest)


def _scores(findings: Findings, group: Group, quantity: Quantity, trust: Trust | None = None) -> list[Fact]:
    """Which variants differ from the baseline, or the widest gap that was not found to be one."""
    differences = _against_baseline(findings, group, quantity)
    if detected := tuple(difference for difference in differences if difference.detected):
        return [ScoresDiffer(detected, trust=trust)]
    widest = max(differences, key=lambda difference: abs(difference.mean), default=None)
    return [] if widest is None else [ScoresUndecided(widest, trust)]


def _against_baseline(findings: Findings, group: Group, quantity: Quantity) -> list[Difference]:
    differences = (findings.difference(entrant, group.baseline, quantity) for entrant in rank(findings, group, quantity))
    return [difference for difference in differences if difference is not None]


def _harness_quantities(group: Group) -> list[Quantity]:
    """The metric that each task of lm-evaluation-harness is judged by; the loss of a word where it has no other."""
    names = [row.name for row in metrics().values() if row.is_quality and row.ranks]
    judged = []
    for task in group.harness_tasks:
        quantities = (Quantity(task, "", name) for name in (*names, "word_loss"))
        judged += itertools.islice((quantity for quantity in quantities if quantity in group.quantities), 1)
    return judged


def _of_labels(findings: Findings, group: Group, task: str) -> list[Fact]:
    """Where labels are known and not written, and where the commonest label would be right as often."""
    likeliest, written = (
        {
            entrant: estimate
            for entrant in group.entrants
            if (estimate := findings.estimate(entrant, Quantity(task, "test", metric)))
        }
        for metric in ("accuracy", "accuracy_generated")
    )
    facts: list[Fact] = []
    worse = tuple(
        (entrant, likeliest[entrant].mean, written[entrant].mean)
        for entrant in likeliest
        if entrant in written and likeliest[entrant].low > written[entrant].high
    )
    facts += [WrittenWorse(task, worse)] if worse else []
    labels = Counter(_references(findings, next(iter(likeliest)), task) if likeliest else [])
    for label, count in labels.most_common(1):
        share = count / labels.total()
        alike = tuple(
            (entrant, estimate.mean) for entrant, estimate in likeliest.items() if estimate.low <= share <= estimate.high
        )
        facts += [LikeCommonest(task, label.strip(), share, alike)] if alike else []
    return facts


def _references(findings: Findings, entrant: Entrant, task: str) -> list[str]:
    """The right answers to a task, from what the first seed of a variant was asked."""
    names = [name for name, use in findings.study.evaluations_of(entrant.dataset).items() if use.kind == TASKS]
    asked = [(cell, name) for cell in findings.cells(entrant) for name in names if name in cell.evaluations]
    rows = (row for cell, name in asked if cell is asked[0][0] for row in read_generations(cell, name))
    return [row["reference"] for row in rows if row["task"] == task]

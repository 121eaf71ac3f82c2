"""What question sets, tasks, ratings and text outside the domain can tell: seldom much, for they are small.

A model can know an answer and not write it as it was asked to, so the accuracy by likelihood stands beside that of what it
writes. Learning and forgetting are two axes: a method that learns less often forgets less, and a single figure hides which it
was. Ratings on which raters do not agree conclude nothing.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
from scipy.sparse import bmat
from scipy.sparse.csgraph import connected_components
from scipy.stats.contingency import association

from paretune.analysis.agreement import TENTATIVE, Trust
from paretune.analysis.compare import Difference
from paretune.analysis.decision import HELD_OUT, rank, where_judged
from paretune.analysis.findings import Fact, Findings, Group
from paretune.analysis.inference import chance_p
from paretune.analysis.scores import Entrant, Quantity, read_generations
from paretune.study.registry import metrics
from paretune.study.tasks import task_metrics

ANSWER_METRICS = ("accuracy", "exact_match", "contains")
"""Of questions, each 0 or 1."""
_TOLD_TASKS = 5
"""Of lm-evaluation-harness, in words."""
_MANY_CUT = 0.5
"""Share of a variant's answers from which on it is said that they never ended."""
_BELOW_CHANCE = 0.01
"""One-sided p value from which on a score is too low to be that of guessing."""
_NEAR = 0.8
"""Cramer's V from which two fields count as one."""


@dataclass(frozen=True)
class AnswersUndecided(Fact):
    """From how many right answers to how many variants go, perhaps the same, where none is told apart from the baseline."""

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
class BelowChance(Fact):
    """The variants that are right less often than guessing would be: as with a swapped key, or a letter that is off by one."""

    quantity: Quantity
    num_questions: int
    chance: float
    answers: tuple[tuple[Entrant, float, float], ...]
    """Share of right answers and one-sided p value of each."""


@dataclass(frozen=True)
class ScoresDiffer(Fact):
    """What differs from the baseline."""

    differences: tuple[Difference, ...]
    num_questions: int | None = None
    """Where the scores are right answers."""
    trust: Trust | None = None
    """Of ratings."""


@dataclass(frozen=True)
class ScoresUndecided(Fact):
    """The widest difference from the baseline, where none is detected."""

    widest: Difference
    trust: Trust | None = None
    """Of ratings."""


@dataclass(frozen=True)
class RatersDisagree(Fact):
    """Ratings that conclude nothing."""

    quantity: Quantity
    trust: Trust
    least: float = TENTATIVE
    """Agreement from which they would."""


@dataclass(frozen=True)
class AnswersUnended(Fact):
    """The variants of whose answers to tasks most were cut at a limit: how many of how many, over all seeds."""

    answers: tuple[tuple[Entrant, int, int], ...]


@dataclass(frozen=True)
class WrittenWorse(Fact):
    """The variants whose likeliest label is right clearly more often than what they write."""

    task: str
    shares: tuple[tuple[Entrant, float, float], ...]
    """By likelihood and as written."""


@dataclass(frozen=True)
class LabelsUnseen(Fact):
    """Right answers that are none of the labels of a task, so that the likeliest label is never right there."""

    task: str
    num_unseen: int
    num_answers: int
    listed: bool
    """The study lists the labels; else they are those of the training split."""


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
        facts += _questions(findings, group, task)
    # The metric that each task of lm-evaluation-harness is judged by; the loss of a word where it has no other.
    ranking = [row.name for row in metrics().values() if row.is_quality and row.ranks]
    judged: list[Quantity] = []
    for task in group.harness_tasks:
        quantities = (Quantity(task, "", metric) for metric in (*ranking, "word_loss"))
        judged += itertools.islice((quantity for quantity in quantities if quantity in group.quantities), 1)
    for quantity in judged[:_TOLD_TASKS]:
        facts += _scores(findings, group, quantity) if quantity != group.headline else []
    for task, scoring in findings.study.data[group.dataset].scored.items():
        asked = [metric for metric in task_metrics(scoring) if metric != "accuracy_generated"]
        first = where_judged(group, asked[0], task) if asked else None
        facts += _scores(findings, group, first) if first is not None and first != group.headline else []
        facts += _labels(findings, group, task)
    return [*facts, *_unended(findings, group)]


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
    for task in (name for name, use in findings.study.evaluate.items() if use.row.needs_untouched):
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


def _questions(findings: Findings, group: Group, task: str) -> Iterator[Fact]:
    """What right answers can tell, each set of them once, and the likelihood of the right ones."""
    seen: list[list[float]] = []
    for metric in ANSWER_METRICS:
        quantity = Quantity(task, "", metric)
        estimates = {entrant: findings.estimates[entrant][quantity] for entrant in rank(findings, group, quantity)}
        means = [estimate.mean for estimate in estimates.values()]
        if len(means) > 1 and means not in seen and quantity != group.headline:
            seen.append(means)
            (best, *_, worst), num_questions = estimates, next(iter(estimates.values())).n_examples
            differences = _against_baseline(findings, group, quantity) if means[0] != means[-1] else []
            if detected := tuple(difference for difference in differences if difference.detected):
                yield ScoresDiffer(detected, num_questions)
            else:
                widest = max(differences, key=lambda difference: abs(difference.mean), default=None)
                yield AnswersUndecided(quantity, num_questions, (worst, means[-1]), (best, means[0]), widest)
        if metric == "accuracy" and task in group.chance:
            chance, guessed, below, num_questions = group.chance[task], [], [], 0
            for entrant, estimate in estimates.items():
                num_questions = estimate.n_examples
                p = chance_p(round(estimate.mean * num_questions), num_questions, chance)
                if p > 1 - findings.level:
                    guessed.append((entrant, estimate.mean, p))
                if (less := chance_p(round(estimate.mean * num_questions), num_questions, chance, "less")) < _BELOW_CHANCE:
                    below.append((entrant, estimate.mean, less))
            if below:
                yield BelowChance(quantity, num_questions, chance, tuple(below))
            if guessed:
                yield LikeGuessing(quantity, num_questions, chance, tuple(guessed))
    yield from _scores(findings, group, Quantity(task, "", "log_likelihood"))


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


def _labels(findings: Findings, group: Group, task: str) -> Iterator[Fact]:
    """Where labels are known and not written, and where the commonest label would be right as often."""
    quantities = [Quantity(task, "test", metric) for metric in ("accuracy", "accuracy_generated")]
    known, written = (
        {entrant: estimate for entrant in group.entrants if (estimate := findings.estimate(entrant, quantity)) is not None}
        for quantity in quantities
    )
    both = [(entrant, known[entrant], written[entrant]) for entrant in known if entrant in written]
    if worse := tuple((entrant, first.mean, second.mean) for entrant, first, second in both if first.low > second.high):
        yield WrittenWorse(task, worse)
    if not known:
        return
    # The right answers stand with what the first seed of a variant was asked.
    names = [name for name, use in findings.study.evaluations_of(group.dataset).items() if use.row.answers_tasks]
    asked = [(cell, name) for cell in findings.cells(next(iter(known))) for name in names if name in cell.evaluations]
    rows = (row for cell, name in asked if cell is asked[0][0] for row in read_generations(cell, name))
    labels = Counter(row["reference"] for row in rows if row["task"] == task)
    cell, name = asked[0]
    counts = cell.evaluations[name].metrics
    if unseen := counts.get(f"labels_unseen_{task}"):
        total = sum(counts.get(f"answers_{split}_{task}", 0) for split in HELD_OUT)
        yield LabelsUnseen(task, unseen, total, findings.study.data[group.dataset].scored[task]["labels"] != "from_train")
    for label, count in labels.most_common(1):
        share = count / labels.total()
        accuracies = ((entrant, estimate.mean) for entrant, estimate in known.items() if estimate.low <= share <= estimate.high)
        if alike := tuple(accuracies):
            yield LikeCommonest(task, label.strip(), share, alike)


def _unended(findings: Findings, group: Group) -> list[Fact]:
    names = [name for name, use in findings.study.evaluations_of(group.dataset).items() if use.row.answers_tasks]
    cut: list[tuple[Entrant, int, int]] = []
    for entrant in group.entrants:
        asked = [(cell, name) for cell in findings.cells(entrant) for name in names if name in cell.evaluations]
        ends = [row.get("stopped_by") for cell, name in asked for row in read_generations(cell, name)]
        cut.append((entrant, sum(end in ("max_new_tokens", "context") for end in ends), len(ends)))
    unended = tuple(each for each in cut if each[1] > _MANY_CUT * each[2])
    return [AnswersUnended(unended)] if unended else []

"""A search for blocks within a budget: candidates raced on growing text, one block after the other, with a look back.

In each race one more block is to leave. All candidates are measured on a first share of the text (three documents at least,
which is what an interval takes), and those go on whose loss,
window by window against the best one's, is not shown to be worse; on twice the text, and so on. What is shown is a paired
interval over documents, corrected for all comparisons of the race, so that one that would have won is dropped in one of twenty
races at most. When enough blocks have left, each is put back in turn and raced again. What a race cannot pay for is not done:
it ends with the best so far.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy import stats

from paretune.pipeline.block_search import LEAST_DOCUMENTS, SHARES, least_passes, race_passes, round_ends

Removed = tuple[int, ...]
Measure = Callable[[Sequence[int], Sequence[int], Sequence[int]], dict[Removed, np.ndarray]]
"""(windows, blocks that remain, candidates) to the nats of each window without the candidate besides, and without none."""

LEVEL = 0.05
"""Chance that a race drops the candidate that is best on all text."""


@dataclass
class Race:
    """What a search has measured and spent so far."""

    num_blocks: int
    documents: np.ndarray
    """Of each window a number."""
    tokens: np.ndarray
    """Of each window, that are scored."""
    measure: Measure
    head: float
    """Passes that a call of the head stands for."""
    passes: float
    """That may be spent."""
    cost: Callable[[Sequence[int], Sequence[int], float], float] = race_passes
    """Of a row, in passes, by the blocks that remain, the candidates, and a call of the head."""
    protect: Removed = ()
    """Blocks that stay."""
    deadline: float = math.inf
    """By `time.monotonic`."""
    scores: dict[Removed, np.ndarray] = field(default_factory=dict)
    """Nats by window, of the first windows as far as they were measured."""
    spent: float = 0.0
    races: int = 0
    alike: int = 0
    """Candidates that were still alike when their last race ended."""
    cut_short: bool = False
    """Whether something was not done for want of budget."""

    @cached_property
    def ends(self) -> list[int]:
        """Windows that have been measured after each round."""
        return round_ends(self.documents.tolist())

    def search(self, count: int) -> Removed:
        """The `count` blocks to remove."""
        removed: Removed = ()
        first = self.ends[0] / len(self.tokens)
        for turn in range(count):
            later = count - turn - 1
            reserve = least_passes(self.num_blocks - turn - 1, later, self.head, first) if later else 0.0
            # Of what is left, a share for each race to come and one for looking back.
            allowed = (self.passes - self.spent - reserve) / (count - turn + (count > 1))
            removed = self._race(removed, allowed)
        looked = {tuple(sorted(removed[:-1]))}
        while rest := next((r for r in _without_one(removed) if r not in looked), None):
            looked.add(rest)
            allowed = self.passes - self.spent
            if self._round_passes(rest, self._free(rest), first) > allowed or time.monotonic() > self.deadline:
                self.cut_short = True
                break
            removed = self._race(rest, allowed)
        return tuple(sorted(removed))

    def _remaining(self, gone: Removed) -> list[int]:
        return [block for block in range(self.num_blocks) if block not in gone]

    def _free(self, gone: Removed) -> list[int]:
        return [block for block in self._remaining(gone) if block not in self.protect]

    def _round_passes(self, gone: Removed, among: Sequence[int], share: float) -> float:
        return share * self.cost(self._remaining(gone), among, self.head)

    def _race(self, gone: Removed, allowed: float) -> Removed:
        """`gone` and the best block besides, with what `allowed` passes pay for; the first round is always run."""
        remaining = self._remaining(gone)
        among, started, done = self._free(gone), self.spent, 0
        self.races += 1
        comparisons = len(among) * len(SHARES)
        for turn, stop in enumerate(self.ends):
            cost = self._round_passes(gone, among, (stop - done) / len(self.tokens))
            if turn and (self.spent - started + cost > allowed or time.monotonic() > self.deadline):
                self.cut_short = True
                break
            for without, nats in self.measure(range(done, stop), remaining, among).items():
                before = self.scores.get(without, np.zeros(0))[:done]
                if len(self.scores.get(without, ())) < stop:
                    self.scores[without] = np.concatenate([before, nats])
            self.spent, done = self.spent + cost, stop
            totals = {block: self.scores[tuple(sorted((*gone, block)))][:done].sum() for block in among}
            best = min(among, key=lambda block: totals[block])
            among = [block for block in among if block == best or not self._worse(gone, block, best, done, comparisons)]
            if len(among) == 1:
                break
        self.alike = len(among)
        return (*gone, min(among, key=lambda block: totals[block]))

    def _worse(self, gone: Removed, block: int, best: int, done: int, comparisons: int) -> bool:
        """Whether the loss without `block` lies above that without `best` by its whole interval."""
        first, second = (self.scores[tuple(sorted((*gone, each)))][:done] for each in (block, best))
        documents = self.documents[:done]
        differences, tokens = np.bincount(documents, first - second), np.bincount(documents, self.tokens[:done])
        covered = tokens > 0
        return paired_low(differences[covered], tokens[covered], LEVEL / comparisons) > 0


def paired_low(sums: np.ndarray, tokens: np.ndarray, alpha: float) -> float:
    """Low end of the interval of a difference per token, from its sums by document: that of a ratio, clustered by document."""
    count = len(sums)
    if count < LEAST_DOCUMENTS:
        return -math.inf
    mean = sums.sum() / tokens.sum()
    error = math.sqrt(count / (count - 1) * np.square(sums - mean * tokens).sum()) / tokens.sum()
    return float(mean - stats.t.ppf(1 - alpha / 2, count - 1) * error)


def _without_one(removed: Removed) -> Iterator[Removed]:
    return (tuple(sorted({*removed} - {block})) for block in removed)

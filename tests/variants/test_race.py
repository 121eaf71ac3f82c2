"""A race finds what all sets would, keeps to its budget, and tells what it has not done; losses are made up."""

from collections.abc import Sequence

import numpy as np
import pytest

from paretune.pipeline.block_search import SHARES, least_passes, race_passes, round_ends, search_passes, whole_search
from paretune.variants.race import Race, Removed, paired_low

NUM_BLOCKS, WINDOWS = 8, 96


def race_of(costs: dict[Removed, float], passes: float = 1e9, noise: float = 0.1) -> Race:
    """A race whose loss a token without a set is the sum over its parts in `costs`, with noise of each window and set."""
    tokens = np.random.default_rng(0).integers(20, 60, WINDOWS)

    def nats(removed: Removed) -> np.ndarray:
        mean = 3 + sum(cost for part, cost in costs.items() if {*part} <= {*removed})
        generator = np.random.default_rng(sum(2**block for block in removed))
        shared = np.random.default_rng(1).normal(0, 1, WINDOWS)
        return tokens * (mean + shared + generator.normal(0, noise, WINDOWS))

    def measure(part: Sequence[int], remaining: Sequence[int], among: Sequence[int]) -> dict[Removed, np.ndarray]:
        gone = [block for block in range(NUM_BLOCKS) if block not in remaining]
        return {tuple(sorted(gone)): nats(tuple(gone))[list(part)]} | {
            tuple(sorted((*gone, block))): nats(tuple(sorted((*gone, block))))[list(part)] for block in among
        }

    return Race(NUM_BLOCKS, np.arange(WINDOWS) % 24, tokens, measure, head=2.0, passes=passes)


SINGLES = {(block,): 0.2 + 0.1 * abs(block - 4) for block in range(NUM_BLOCKS)}


def test_the_best_block_wins_and_others_are_dropped_early() -> None:
    race = race_of(SINGLES, noise=0.03)
    assert race.search(1) == (4,)
    assert (race.alike, race.cut_short, race.races) == (1, False, 1)
    lengths = {removed: len(nats) for removed, nats in race.scores.items()}
    assert max(lengths.values()) < WINDOWS
    assert race.spent < 0.5 * race_passes(range(NUM_BLOCKS), range(NUM_BLOCKS), 2.0)


def test_a_look_back_finds_the_pair_that_one_after_the_other_misses() -> None:
    pair = {(1, 6): -1.0, (4, 3): 0.5, (4, 5): 0.5}
    assert race_of(SINGLES | pair).search(2) != (1, 6)  # neither is the best after block 4, nor alone
    linked = {(1, 6): -1.0, (1, 4): -0.5, (4, 5): 0.5, (3, 4): 0.5}
    race = race_of(SINGLES | linked)
    assert race.search(2) == (1, 6)  # 4 first, then 1 beside it, and looking back 6 instead of 4
    assert race.races >= 3


def test_a_budget_is_kept_and_what_was_left_out_is_told() -> None:
    alike = {(block,): 0.3 for block in range(NUM_BLOCKS)}
    whole = race_of(alike, noise=1.0)
    whole.search(2)
    assert whole.spent > 100
    for passes in (20, 60):
        race = race_of(alike, passes, noise=1.0)
        assert len(race.search(2)) == 2
        assert race.spent <= max(passes, least_passes(NUM_BLOCKS, 2, 2.0))
        assert race.cut_short
        assert race.alike > 1


def test_a_first_round_reads_three_documents_if_there_are() -> None:
    assert round_ends([0, 1, 2] * 32) == [6, 12, 24, 48, 96]
    assert round_ends([0, 1, 2, 0, 1, 2, 0, 1]) == [3, 4, 8]
    assert round_ends([0, 0, 1, 0, 1, 0, 2, 0]) == [7, 8]
    assert round_ends([0, 1, 0, 1, 0, 1, 0, 1]) == [2, 4, 8]
    assert round_ends([0]) == [1]
    few = race_of(SINGLES, noise=0.001)
    few.documents, few.tokens = np.array([0, 1, 2, 0, 1, 2, 0, 1]), few.tokens[:8]
    whole, lengths = few.measure, []
    few.measure = lambda part, *rest: lengths.append(len(part)) or {k: v[:8] for k, v in whole(part, *rest).items()}
    assert few.search(1) == (4,)
    assert lengths[0] == 3
    assert {len(nats) for nats in few.scores.values()} >= {3}


def test_time_ends_a_race_as_passes_do() -> None:
    race = race_of({(block,): 0.3 for block in range(NUM_BLOCKS)}, noise=1.0)
    race.deadline = 0.0
    assert len(race.search(2)) == 2
    assert race.cut_short
    assert race.spent == pytest.approx(least_passes(NUM_BLOCKS, 2, 2.0), rel=0.05)


def test_the_interval_is_that_of_documents() -> None:
    generator = np.random.default_rng(0)
    lows = []
    for _ in range(400):
        sums = np.repeat(generator.normal(0, 1, 12), 1)
        lows.append(paired_low(sums, np.ones(12), 0.1))
    assert np.mean(np.array(lows) > 0) == pytest.approx(0.05, abs=0.03)
    assert paired_low(np.ones(2), np.ones(2), 0.05) == -np.inf


def test_passes_are_counted_before_the_search() -> None:
    assert whole_search(30, 1) == (465, 31)
    assert whole_search(30, 2) == (4525, 466)
    assert race_passes(range(5), [0, 4], 0.0) == 5 + 4 + 0
    method = {"count": 2, "budget": {"search": "race", "passes": 256}}
    assert search_passes(4, method, 1.0) == ("all sets", whole_search(4, 2)[0] + 11)
    assert search_passes(30, method, 8.0) == ("race", 256.0)
    assert search_passes(30, {"count": 2}, 8.0)[0] == "all sets"
    big = search_passes(200, method, 8.0)
    assert big == ("race", least_passes(200, 2, 8.0))
    assert search_passes(200, method, 8.0, first=0.5)[1] == pytest.approx(8 * big[1])
    assert big[1] == pytest.approx(SHARES[0] * (200 * 201 / 2 + 8 * 201 + 199 * 200 / 2 + 8 * 200))

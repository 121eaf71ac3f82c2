"""Rows by hand: positions, segments, targets; and that packing loses nothing and stays within its budget."""

import numpy as np
import pytest

from paretune.data.trees import PADDING, Example, forward_batches, lay_out


def example(*ids: int, first_target: int = 1) -> Example:
    return Example(np.array(ids, np.int32), first_target)


def test_two_examples_in_a_row_and_one_in_another():
    batch = lay_out([[example(5, 6, 7), example(8, 9, first_target=1)], [example(1, 2, 3, 4, first_target=2)]], 6)
    assert batch.ids_RT.tolist() == [[5, 6, 7, 8, 9, 0], [1, 2, 3, 4, 0, 0]]
    assert batch.positions_RT.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0]]
    assert batch.segments_RT.tolist() == [[0, 0, 0, 1, 1, PADDING], [0, 0, 0, 0, PADDING, PADDING]]
    assert batch.hidden_N.tolist() == [0, 1, 3, 7, 8]
    assert batch.targets_N.tolist() == [6, 7, 9, 3, 4]
    assert batch.sizes == (2, 1, 2)
    assert batch.packed


def test_one_example_a_row_needs_no_mask():
    assert not lay_out([[example(5, 6, 7)], [example(1, 2)]], 3).packed


@pytest.mark.parametrize("pack", [True, False])
def test_every_example_comes_once_and_rows_stay_within_the_budget(pack):
    random = np.random.default_rng(0)
    items = [Example(np.arange(n, dtype=np.int32)) for n in random.integers(2, 50, 200)]
    seen = []
    for indices, batch in forward_batches(items, forward_tokens=120, pack=pack):
        seen += indices
        assert batch.ids_RT.numel() <= 120
        assert list(batch.sizes) == [items[i].num_targets for i in indices]
        assert pack or not batch.packed
    assert sorted(seen) == list(range(200))


def test_best_fit_leaves_little_empty():
    random = np.random.default_rng(1)
    items = [Example(np.arange(n, dtype=np.int32)) for n in random.integers(5, 100, 400)]
    positions = sum(batch.ids_RT.numel() for _, batch in forward_batches(items, forward_tokens=1000))
    assert sum(len(item.ids) for item in items) / positions > 0.95


def test_nothing_gives_no_batch():
    assert list(forward_batches([], forward_tokens=10)) == []

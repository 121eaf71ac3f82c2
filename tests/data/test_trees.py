"""Rows by hand: positions, ancestors, targets; and that packing loses nothing and stays within its budget."""

import numpy as np
import pytest

from paretune.data.trees import ROUND_TO, Example, forward_batches, unshared

TRUNK, OTHER = np.array([1, 2, 3], np.int32), np.array([4, 5], np.int32)


def example(*ids: int, first_target: int = 1, trunk: np.ndarray | None = None) -> Example:
    return Example(np.array(ids, np.int32), first_target, trunk)


def test_a_tree_of_two_branches_and_a_plain_text_in_a_row():
    examples = [example(6, 7, first_target=0, trunk=TRUNK), example(8, 9, 10, trunk=TRUNK), example(11, 12)]
    ((indices, batch),) = forward_batches(examples, forward_tokens=100)
    assert indices == [0, 1, 2]
    assert batch.ids_RT.shape == (1, ROUND_TO)
    assert batch.ids_RT[0, :10].tolist() == [1, 2, 3, 6, 7, 8, 9, 10, 11, 12]
    assert batch.positions_RT[0, :11].tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 0]
    assert batch.forest.trees_T[:11].tolist() == [0] * 8 + [1, 1, 2]
    assert batch.forest.branches_T[:11].tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 0, 0, 0]
    assert batch.hidden_N.tolist() == [2, 3, 5, 6, 8]  # the trunk's last token predicts the first of a branch
    assert batch.targets_N.tolist() == [6, 7, 9, 10, 12]
    assert batch.sizes == (2, 2, 1)


def test_equal_trunks_are_shared_only_if_they_are_the_same():
    shared = [example(6, 7, trunk=TRUNK), example(8, 9, trunk=TRUNK)]
    apart = [example(6, 7, trunk=TRUNK), example(8, 9, trunk=TRUNK.copy())]
    assert len({int(n) for _, b in forward_batches(shared, forward_tokens=100) for n in b.forest.trees_T[:7]}) == 1
    assert len({int(n) for _, b in forward_batches(apart, forward_tokens=100) for n in b.forest.trees_T[:7]}) == 2


def test_without_packing_each_row_is_one_example_with_its_trunk():
    examples = [example(6, 7, first_target=0, trunk=TRUNK), example(8, 9, 10, 13, 14, 15, 16, 17)]
    ((indices, batch),) = forward_batches(examples, forward_tokens=1000, pack=False)
    assert indices == [1, 0]
    assert batch.forest is None
    assert batch.ids_RT[1, :6].tolist() == [1, 2, 3, 6, 7, 0]
    assert batch.hidden_N.tolist() == [0, 1, 2, 3, 4, 5, 6, ROUND_TO + 2, ROUND_TO + 3]
    assert batch.targets_N.tolist() == [9, 10, 13, 14, 15, 16, 17, 6, 7]


def test_the_unshared_form_has_the_same_targets():
    found = unshared(example(6, 7, 8, first_target=1, trunk=TRUNK))
    assert found.trunk is None
    assert found.ids.tolist() == [1, 2, 3, 6, 7, 8]
    assert found.ids[found.first_target :].tolist() == [7, 8]


@pytest.mark.parametrize("pack", [True, False])
def test_every_example_comes_once_and_rows_stay_within_the_budget(pack):
    random = np.random.default_rng(0)
    items = [Example(np.arange(n, dtype=np.int32)) for n in random.integers(2, 50, 200)]
    for _ in range(20):
        trunk = np.arange(random.integers(1, 100), dtype=np.int32)
        items += [Example(np.arange(n, dtype=np.int32), 0, trunk) for n in random.integers(1, 30, 5)]
    seen = []
    for indices, batch in forward_batches(items, forward_tokens=192, pack=pack):
        seen += indices
        assert batch.ids_RT.numel() <= 192
        assert list(batch.sizes) == [items[i].num_targets for i in indices]
        assert len(batch.hidden_N) == len(batch.targets_N) == sum(batch.sizes)
    assert sorted(seen) == list(range(300))


def test_a_tree_beyond_the_budget_is_cut_between_its_branches():
    items = [Example(np.full(20, n, np.int32), 0, TRUNK) for n in range(10)]
    batches = list(forward_batches(items, forward_tokens=64))
    assert [len(indices) for indices, _ in batches] == [3, 3, 3, 1]
    assert all(batch.ids_RT[0, :3].tolist() == [1, 2, 3] for _, batch in batches)


def test_texts_share_a_shorter_row_than_a_tree_may_be():
    tree = [Example(np.full(20, n, np.int32), 0, TRUNK) for n in range(5)]
    texts = [Example(np.arange(30, dtype=np.int32)) for _ in range(6)]
    for pack, together in ((True, [5, 2, 2, 2]), (False, [1] * 11)):
        batches = list(forward_batches([*tree, *texts], forward_tokens=256, row_tokens=64, pack=pack))
        assert [len(indices) for indices, _ in batches] == together, pack
    assert [len(i) for i, _ in forward_batches(tree + texts, forward_tokens=64, row_tokens=256)] == [3, 2, 2, 2, 2]


def test_best_fit_leaves_little_empty():
    random = np.random.default_rng(1)
    items = [Example(np.arange(n, dtype=np.int32)) for n in random.integers(5, 100, 400)]
    positions = sum(batch.ids_RT.numel() for _, batch in forward_batches(items, forward_tokens=1000))
    assert sum(len(item.ids) for item in items) / positions > 0.95


def test_nothing_gives_no_batch():
    assert list(forward_batches([], forward_tokens=10)) == []

"""The layout of a batch: a forest of token trees in one row, with an explicit list of targets.

A shared context is a trunk, and each prompt with its completion a branch of it; a plain text is a tree of its own. Three facts
make this exact: a token's position is its depth in its tree; it attends to its ancestors and itself only; and the loss is taken
at a list of (hidden state, target) pairs, so that the last token of a trunk may predict the first of several branches.
Shapes: R rows, T positions in a row, P positions of all rows, N targets.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch

ROUND_TO = 64
"""Rows are a multiple of so many tokens wide: oneDNN compiles and keeps a bfloat16 kernel for every new shape of a product,
about 1 MB each."""


@dataclass(frozen=True, eq=False)
class Example:
    """One sequence to train on or to score: a plain text, or a branch of a trunk."""

    ids: np.ndarray
    """int32; without a trunk the prefix token included."""
    first_target: int = 1
    """`ids[first_target:]` are targets, each predicted from the position before it; 0 only with a trunk, whose last token then
    predicts the first of `ids`."""
    trunk: np.ndarray | None = None
    """int32, not empty: prefix token and context. Examples with the same array (not an equal one) share it."""
    first_row: int | None = None
    """Of its targets among those of a split, where something is kept for each of them."""

    @property
    def num_targets(self) -> int:
        return len(self.ids) - self.first_target

    @property
    def num_tokens(self) -> int:
        """Trunk included: what a trainer that shares nothing would see of this example."""
        return len(self.ids) + (0 if self.trunk is None else len(self.trunk))


class Examples(Sequence[Example]):
    """Examples that are made from rows when they are asked for: `make(row, n)` is the n-th of those of a row."""

    def __init__(self, counts: np.ndarray, make: Callable[[int, int], Example], starts: np.ndarray | None = None) -> None:
        """`counts`: examples of each row. `starts`: where the groups begin that share a trunk; without it each stands alone."""
        self._ends, self._make = np.cumsum(counts), make
        self.group_starts = np.arange(len(self)) if starts is None else starts

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        row = int(np.searchsorted(self._ends, index, side="right"))
        return self._make(row, index - (int(self._ends[row - 1]) if row else 0))


@dataclass(frozen=True, eq=False)
class Tree:
    """A trunk and the branches of it that a row holds, as indices of examples; a plain text is its own only branch."""

    trunk: np.ndarray | None
    examples: tuple[int, ...]
    num_tokens: int


@dataclass(frozen=True, eq=False)
class Forest:
    """Who is whose ancestor in a row, by position. What fills the row at its end is a tree of its own."""

    trees_T: np.ndarray
    """int32: number of the tree."""
    branches_T: np.ndarray
    """int32: number of the branch in its tree, 0 in the trunk."""
    depths_T: np.ndarray
    """int64: position in the tree."""

    def __len__(self) -> int:
        return len(self.trees_T)


@dataclass(frozen=True, eq=False)
class Batch:
    """What one forward pass takes: a forest in one row, or rows of one example each under a plain causal mask."""

    ids_RT: torch.Tensor
    positions_RT: torch.Tensor
    hidden_N: torch.Tensor
    """Index into the flattened R x T positions: the state that predicts each target."""
    targets_N: torch.Tensor
    sizes: tuple[int, ...]
    """Targets of each example, in the order of the batch."""
    forest: Forest | None = None
    rows_N: np.ndarray | None = None
    """Of the targets, where something is kept for each: those of each example from its `first_row` on."""
    lengths: tuple[int, ...] = ()
    """Of each row, before what fills it up."""

    @property
    def held_P(self) -> torch.Tensor:
        """Indices of the flattened positions that hold a token of an example."""
        lengths_R1 = torch.tensor(self.lengths, device=self.ids_RT.device)[:, None]
        return (torch.arange(self.ids_RT.shape[1], device=self.ids_RT.device) < lengths_R1).flatten().nonzero()[:, 0]

    def to(self, device: torch.device) -> "Batch":
        moved = (t.to(device) for t in (self.ids_RT, self.positions_RT, self.hidden_N, self.targets_N))
        return Batch(*moved, sizes=self.sizes, forest=self.forest, rows_N=self.rows_N, lengths=self.lengths)


def windows(ids: np.ndarray, max_length: int, prefix_id: int, eos_id: int) -> list[Example]:
    """A text as training examples of at most `max_length` tokens, prefix first and EOS last; each token is a target once.

    Consecutive windows overlap by one token, which is a target in the first and predicts the next target in the second.
    """
    count = int(num_windows(np.array(len(ids)), max_length))
    return [window(ids, number, max_length, prefix_id, eos_id) for number in range(count)]


def num_windows(sizes: np.ndarray, max_length: int) -> np.ndarray:
    """How many windows a text of so many ids has."""
    return -(-(sizes.astype(np.int64) + 1) // (max_length - 1))


def window(ids: np.ndarray, number: int, max_length: int, prefix_id: int, eos_id: int) -> Example:
    """One of the `windows` of a text, without the others."""
    start = number * (max_length - 1)
    part = ids[max(0, start - 1) : start + max_length - 1]
    pieces = [[prefix_id], part] if start == 0 else [part]
    pieces += [[eos_id]] if start + max_length > len(ids) + 1 else []
    return Example(np.concatenate(pieces).astype(np.int32))


def unshared(example: Example) -> Example:
    """The same targets after the same tokens, with a trunk of nobody else's: the trunk becomes part of `ids`."""
    if example.trunk is None:
        return example
    ids, first_target = np.concatenate([example.trunk, example.ids]), len(example.trunk) + example.first_target
    return Example(ids, first_target, first_row=example.first_row)


def forward_batches(
    examples: Sequence[Example], *, forward_tokens: int, row_tokens: int | None = None, pack: bool = True
) -> Iterator[tuple[list[int], Batch]]:
    """Batches of at most `forward_tokens` positions (or one example), with the indices of the examples in each.

    Trees are packed into rows best-fit, and a row is a batch. With `pack` False (the architecture cannot keep examples apart)
    a row holds one example with its trunk, and as many rows are a batch as fit. Where `row_tokens` are fewer, only one tree or
    example may be longer than they are.
    """
    row_tokens = min(forward_tokens, row_tokens or forward_tokens)
    if not examples:
        return
    if not pack:
        plain = [unshared(example) for example in examples]
        # Rows of like length stand together, so that padding is small.
        order = sorted(range(len(plain)), key=lambda i: -len(plain[i].ids))
        start = 0
        while start < len(order):
            width = rounded(len(plain[order[start]].ids), ROUND_TO)
            row = order[start : start + max(1, row_tokens // width)]
            yield row, _padded([plain[i] for i in row], width)
            start += len(row)
        return
    limit, capacity = (max(ROUND_TO, tokens // ROUND_TO * ROUND_TO) for tokens in (forward_tokens, row_tokens))
    trees = _trees(examples, limit)
    for row in _best_fit([tree.num_tokens for tree in trees], capacity):
        chosen = [trees[i] for i in row]
        yield [i for tree in chosen for i in tree.examples], lay_out(examples, chosen)


def lay_out(examples: Sequence[Example], trees: Sequence[Tree]) -> Batch:
    """The tensors of a row of `trees`, whose branches are indices of `examples`, filled up to a multiple of `ROUND_TO`."""
    width = rounded(sum(tree.num_tokens for tree in trees), ROUND_TO)
    ids, depths = np.zeros(width, np.int64), np.zeros(width, np.int64)
    numbers, branches = np.full(width, len(trees), np.int32), np.zeros(width, np.int32)
    hidden, targets, start = [], [], 0
    for number, tree in enumerate(trees):
        trunk = 0 if tree.trunk is None else len(tree.trunk)
        ids[start : start + trunk], depths[start : start + trunk] = tree.trunk if trunk else 0, np.arange(trunk)
        begin, root = start + trunk, start + trunk - 1
        for branch, index in enumerate(tree.examples, start=1 if trunk else 0):
            example = examples[index]
            stop = begin + len(example.ids)
            ids[begin:stop], depths[begin:stop] = example.ids, trunk + np.arange(len(example.ids))
            branches[begin:stop] = branch
            before = np.arange(begin - 1, stop - 1)
            before[0] = root
            hidden.append(before[example.first_target :])
            targets.append(example.ids[example.first_target :].astype(np.int64))
            begin = stop
        numbers[start:begin] = number
        start = begin
    tensors = (ids[None], depths[None], np.concatenate(hidden), np.concatenate(targets))
    held = [examples[i] for tree in trees for i in tree.examples]
    sizes = tuple(example.num_targets for example in held)
    forest = Forest(numbers, branches, depths)
    return Batch(*(torch.from_numpy(array) for array in tensors), sizes, forest, _rows(held), lengths=(start,))


def rounded(length: int, step: int) -> int:
    return -(-length // step) * step


def group_starts(examples: Sequence[Example]) -> np.ndarray:
    """Where the groups begin that stay together in training: runs of examples with the same trunk; plain ones stand alone."""
    if isinstance(examples, Examples):
        return examples.group_starts
    pairs = zip(examples, [None, *examples[:-1]], strict=True)
    starts = [i for i, (this, last) in enumerate(pairs) if this.trunk is None or last is None or this.trunk is not last.trunk]
    return np.array(starts, np.int64)


def _trees(examples: Sequence[Example], limit: int) -> list[Tree]:
    """Examples with the same trunk as one tree; as several, with the trunk repeated, where that exceeds `limit` tokens."""
    trees: list[Tree] = []
    newest: dict[int, int] = {}  # the tree that takes further branches of a trunk
    for index, example in enumerate(examples):
        number = None if example.trunk is None else newest.get(id(example.trunk))
        if number is not None and trees[number].num_tokens + len(example.ids) <= limit:
            tree = trees[number]
            trees[number] = Tree(tree.trunk, (*tree.examples, index), tree.num_tokens + len(example.ids))
            continue
        if example.trunk is not None:
            newest[id(example.trunk)] = len(trees)
        trees.append(Tree(example.trunk, (index,), example.num_tokens))
    return trees


def _padded(rows: Sequence[Example], width: int) -> Batch:
    """One example a row. What stands in the padding never matters: it comes after every token of the example."""
    ids = np.zeros((len(rows), width), np.int64)
    hidden = []
    for r, example in enumerate(rows):
        ids[r, : len(example.ids)] = example.ids
        hidden.append(r * width + np.arange(example.first_target, len(example.ids)) - 1)
    targets = np.concatenate([example.ids[example.first_target :] for example in rows]).astype(np.int64)
    positions = np.broadcast_to(np.arange(width), ids.shape).copy()
    tensors = (ids, positions, np.concatenate(hidden), targets)
    sizes = tuple(example.num_targets for example in rows)
    lengths = tuple(len(example.ids) for example in rows)
    return Batch(*(torch.from_numpy(array) for array in tensors), sizes=sizes, rows_N=_rows(rows), lengths=lengths)


def _rows(examples: Sequence[Example]) -> np.ndarray | None:
    rows = [np.arange(e.num_targets) + e.first_row for e in examples if e.first_row is not None]
    return np.concatenate(rows) if rows else None


def _best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `lengths` in rows of at most `capacity` (or one that is longer), by best fit of decreasing lengths."""
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        room = min((r for r in by_room if r >= lengths[i] and by_room[r]), default=None)
        if room is None:
            rows.append([])
            row, room = len(rows) - 1, max(capacity, lengths[i])
        else:
            row = by_room[room].pop()
        rows[row].append(i)
        by_room.setdefault(room - lengths[i], []).append(row)
    return rows

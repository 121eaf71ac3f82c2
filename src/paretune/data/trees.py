"""The layout of a batch: examples packed into rows, each isolated from the others, with an explicit list of targets.

Three facts make packing exact: a token's position is its position in its own example; it attends to its own example only; and
the loss is taken at a list of (hidden state, target) pairs. Shapes: R rows, T positions in a row, N targets.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

PADDING = -1
ROUND_TO = 32
"""Rows are a multiple of so many tokens wide: oneDNN compiles and keeps a bfloat16 kernel for every new shape of a product,
which with rows of any width grew a small training by 15 MB a step."""


@dataclass(frozen=True, eq=False)
class Example:
    """One sequence to train on or to score."""

    ids: np.ndarray
    """int32: the whole sequence, prefix token included; with a `trunk` what follows it."""
    first_target: int = 1
    """`ids[first_target:]` are targets, each predicted from the position before it; 0 with a trunk: by its last token."""
    trunk: np.ndarray | None = None
    """int32, prefix token and shared context. The same array object says the same trunk."""

    @property
    def num_targets(self) -> int:
        return len(self.ids) - self.first_target


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows for one forward pass."""

    ids_RT: torch.Tensor
    positions_RT: torch.Tensor
    segments_RT: torch.Tensor
    """Which example of its row a token belongs to; PADDING where there is none."""
    hidden_N: torch.Tensor
    """Index into the flattened R x T positions: the state that predicts each target."""
    targets_N: torch.Tensor
    sizes: tuple[int, ...]
    """Targets of each example, in the order of the batch."""

    @property
    def packed(self) -> bool:
        """Whether a row holds more than one example, so that a plain causal mask would not do."""
        return bool((self.segments_RT > 0).any())

    def to(self, device: torch.device) -> "Batch":
        moved = (t.to(device) for t in (self.ids_RT, self.positions_RT, self.segments_RT, self.hidden_N, self.targets_N))
        return Batch(*moved, sizes=self.sizes)


def windows(ids: np.ndarray, max_length: int, prefix_id: int, eos_id: int) -> list[Example]:
    """A text as training examples of at most `max_length` tokens, prefix first and EOS last; each token is a target once.

    Consecutive windows overlap by one token, which is a target in the first and predicts the next target in the second.
    """
    whole = np.concatenate([[prefix_id], ids, [eos_id]]).astype(np.int32)
    step = max_length - 1
    return [Example(whole[start : start + max_length]) for start in range(0, len(whole) - 1, step)]


def forward_batches(
    examples: Sequence[Example], *, forward_tokens: int, pack: bool = True
) -> Iterator[tuple[list[int], Batch]]:
    """Batches of at most `forward_tokens` positions (or one row), with the indices of the examples in each.

    Rows are as wide as the longest example, rounded up, and filled best-fit; with `pack` False (the architecture cannot keep
    packed examples apart) a row holds one example.
    """
    if not examples:
        return
    examples = [_whole(example) for example in examples]
    lengths = [len(example.ids) for example in examples]
    rows = _best_fit(lengths, _rounded(max(lengths)), pack)
    # Rows of like length stand together, so that padding is small.
    rows.sort(key=lambda row: -sum(lengths[i] for i in row))
    start = 0
    while start < len(rows):
        width = _rounded(sum(lengths[i] for i in rows[start]))
        count = max(1, forward_tokens // width)
        chunk = rows[start : start + count]
        yield [i for row in chunk for i in row], lay_out([[examples[i] for i in row] for row in chunk], width)
        start += count


def lay_out(rows: Sequence[Sequence[Example]], width: int) -> Batch:
    """The tensors of some rows, padded on the right to `width`.

    What stands in the padding never matters: it comes after every example of its row and belongs to none.
    """
    ids, positions, segments = (np.full((len(rows), width), fill, np.int64) for fill in (0, 0, PADDING))
    hidden, targets, sizes = [], [], []
    for r, row in enumerate(rows):
        start = 0
        for segment, example in enumerate(row):
            stop = start + len(example.ids)
            ids[r, start:stop], segments[r, start:stop] = example.ids, segment
            positions[r, start:stop] = np.arange(stop - start)
            hidden.append(r * width + start + np.arange(example.first_target, len(example.ids)) - 1)
            targets.append(example.ids[example.first_target :].astype(np.int64))
            sizes.append(example.num_targets)
            start = stop
    tensors = (ids, positions, segments, np.concatenate(hidden), np.concatenate(targets))
    return Batch(*(torch.from_numpy(array) for array in tensors), sizes=tuple(sizes))


def _whole(example: Example) -> Example:
    """With its trunk in front, encoded once more for each branch."""
    if example.trunk is None:
        return example
    return Example(np.concatenate([example.trunk, example.ids]), len(example.trunk) + example.first_target)


def _rounded(length: int) -> int:
    return -(-length // ROUND_TO) * ROUND_TO


def _best_fit(lengths: Sequence[int], capacity: int, pack: bool) -> list[list[int]]:
    """Indices of `lengths` in rows of at most `capacity`, by best fit of decreasing lengths."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if not pack:
        return [[i] for i in order]
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    for i in order:
        room = min((r for r in by_room if r >= lengths[i] and by_room[r]), default=None)
        if room is None:
            rows.append([])
            row, room = len(rows) - 1, capacity
        else:
            row = by_room[room].pop()
        rows[row].append(i)
        by_room.setdefault(room - lengths[i], []).append(row)
    return rows

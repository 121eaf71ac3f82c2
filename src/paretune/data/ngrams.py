"""How much of the n-grams of some documents stands in others: an inverted index of 8 bytes for each of their n-grams."""

from array import array
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array, vstack

COMMON = 10
"""An n-gram of more documents than this is boilerplate, as in GPT-3's filter."""
MOSTLY_COMMON = 0.9
"""A document with more boilerplate than this is compared with all its n-grams: it may be one of many near copies."""
_ROWS = 4096
"""Documents compared at a time; bounds the memory of the product of the sparse matrices."""
_CHUNK = 2**20


class NgramIndex:
    """The n-grams of the targets, which are all added before the first source; n-grams are hashes, uint64.

    Memory: 8 bytes for each different n-gram of the targets and 4 for each n-gram of a target, and of a source that stands in a
    target; twice 8 bytes for each n-gram of a target while the index is made.
    """

    def __init__(self) -> None:
        self._grams, self._ends = array("Q"), array("q", [0])
        self._index: np.ndarray | None = None
        self._columns = np.zeros(0, np.int32)
        self._found, self._found_ends = array("i"), array("q", [0])

    def add_target(self, grams: np.ndarray) -> None:
        """`grams` are distinct."""
        self._grams.frombytes(grams.tobytes())
        self._ends.append(len(self._grams))

    def add_source(self, grams: np.ndarray) -> None:
        """`grams` are distinct."""
        index = self._sorted()
        self._found.frombytes(_positions(index, grams).tobytes())
        self._found_ends.append(len(self._found))

    def covered(self, inner: Sequence[int], thresholds: np.ndarray) -> list[tuple[int, int, float]]:
        """(source, target, coverage) of all pairs with at least the target's threshold; ends the index.

        Coverage is the share of the target's n-grams that stand in the source, those that are common to many aside. The sources
        are those that were added, then `inner`, which are targets as well.
        """
        length, sizes = len(self._sorted()), np.diff(self._ends)
        self._index = None
        found, columns = np.asarray(self._found), self._columns
        documents = np.zeros(length, np.int32)
        np.add.at(documents, columns, 1)  # in half the memory of bincount
        np.add.at(documents, found, 1)
        # Most n-grams are of one document alone: they count for its size, and for no pair.
        several = documents > 1
        numbers = np.cumsum(several, dtype=np.int32) - np.int32(1)
        common = documents[several] > COMMON
        del documents
        training = _matrix(found, several, numbers, self._found_ends, len(common))
        targets = _matrix(columns, several, numbers, self._ends, len(common))
        del numbers, several

        num_common = targets @ common.astype(np.int32)
        mostly_common = num_common > MOSTLY_COMMON * sizes
        totals = np.where(mostly_common, sizes, sizes - num_common)
        counts = ~common[targets.indices] | np.repeat(mostly_common, np.diff(targets.indptr))
        # A copy, because eliminate_zeros works in place on arrays that would be those of `targets` too.
        counted = csr_array((counts.astype(np.int32), targets.indices, targets.indptr), shape=targets.shape, copy=True)
        counted.eliminate_zeros()
        inner_rows = np.asarray(inner, dtype=np.int64)
        sources = vstack([training, targets[inner_rows]], format="csr")
        itself = np.concatenate([np.full(training.shape[0], -1), inner_rows])
        by_gram = counted.T.tocsr()
        covered: list[tuple[int, int, float]] = []
        for begin in range(0, sources.shape[0], _ROWS):
            shared = (sources[begin : begin + _ROWS] @ by_gram).tocoo()
            rows, of = shared.row + begin, shared.col
            share = shared.data / totals[of]
            keep = (share >= thresholds[of]) & (of != itself[rows])
            covered += zip(rows[keep].tolist(), of[keep].tolist(), share[keep].tolist(), strict=True)
        return covered

    def _sorted(self) -> np.ndarray:
        """The distinct n-grams of the targets in rising order; that of each n-gram of a target is then known by its place."""
        if self._index is None:
            grams = np.array(self._grams, np.uint64)
            grams.sort()
            length = 0
            for begin in range(0, len(grams), _CHUNK):
                chunk = grams[begin : begin + _CHUNK]
                new = np.append(not length or chunk[0] != grams[length - 1], chunk[1:] != chunk[:-1])
                chunk = chunk[new]
                grams[length : length + len(chunk)] = chunk
                length += len(chunk)
            self._index = grams[:length].copy() if 2 * length < len(grams) else grams[:length]
            of_targets, self._columns = np.asarray(self._grams), np.empty(len(self._grams), np.int32)
            for begin in range(0, len(of_targets), _CHUNK):
                chunk = of_targets[begin : begin + _CHUNK]
                self._columns[begin : begin + _CHUNK] = np.searchsorted(self._index, chunk)
            del of_targets
            self._grams = array("Q")
        return self._index


def _positions(index: np.ndarray, grams: np.ndarray) -> np.ndarray:
    """Where in `index` those of `grams` stand that are in it."""
    positions = np.searchsorted(index, grams)
    inside = positions < len(index)
    positions, grams = positions[inside], grams[inside]
    return positions[index[positions] == grams].astype(np.int32)


def _matrix(grams: np.ndarray, several: np.ndarray, numbers: np.ndarray, ends: Sequence[int], width: int) -> csr_array:
    """Rows that end at `ends` of `grams`; those of `several` documents are its columns, by their `numbers`."""
    kept = several[grams]
    kept_ends = np.append(0, np.cumsum(kept, dtype=np.int32))[np.asarray(ends)]
    columns = numbers[grams[kept]]
    return csr_array((np.ones(len(columns), dtype=np.int32), columns, kept_ends), shape=(len(ends) - 1, width))

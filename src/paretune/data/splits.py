"""Which documents are for training, validation and test.

A document is never on two sides. The choice depends on the seed and the set of documents, not on the order of the file:
documents are ordered by the SHA-256 of seed and name. Shares become counts by largest remainder, in exact decimal arithmetic.
"""

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction

from paretune.errors import DataError
from paretune.study.data import SPLITS, Split

UNUSED = "unused"


def split_documents(documents: Collection[str], split: Split, strata: Mapping[str, str] | None = None) -> dict[str, str]:
    """Document to `train`, `validation`, `test` or `unused`, for distinct `documents`.

    With `strata` (document to stratum) each stratum keeps the shares as nearly as whole documents allow: what rounding owes a
    split is carried to the next stratum, largest first, so that many small strata still add up to the shares.
    Raises DataError if a split would be empty.
    """
    groups: dict[str, list[str]] = {}
    for document in documents:
        groups.setdefault(strata[document] if strata else "", []).append(document)
    names = (*SPLITS, UNUSED)
    shares = _shares(split)
    owed = [Fraction(0)] * len(names)
    side: dict[str, str] = {}
    for stratum in sorted(groups, key=lambda name: (-len(groups[name]), name)):
        members = sorted(groups[stratum], key=lambda name: _order(split.seed, name))
        quotas = [owed[part] + len(members) * share for part, share in enumerate(shares)]
        counts = whole_counts(quotas, len(members))
        owed = [quota - count for quota, count in zip(quotas, counts, strict=True)]
        sides = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
        side.update(zip(members, sides, strict=True))
    _refuse_empty(side, split)
    return side


def whole_counts(quotas: Sequence[Fraction], total: int) -> list[int]:
    """Whole numbers that sum to `total`, each the floor of its quota or one more: the largest remainders get the rest.

    `quotas` sum to `total`. Ties go to the earlier one; a quota below 0 counts as 0. (Hamilton's method of apportionment.)
    """
    counts = [max(0, math.floor(quota)) for quota in quotas]
    remainder = [quota - count for quota, count in zip(quotas, counts, strict=True)]
    while rest := total - sum(counts):
        # Below 0 only where several negative quotas were raised to 0.
        change = 1 if rest > 0 else -1
        candidates = (part for part in range(len(counts)) if change > 0 or counts[part])
        part = max((change * remainder[part], -change * part, part) for part in candidates)[2]
        counts[part] += change
        remainder[part] -= change
    return counts


def _shares(split: Split) -> list[Fraction]:
    shares = [Fraction(repr(share)) for share in (split.train, split.validation, split.test)]
    unused = 1 - sum(shares, Fraction(0)) if split.unused else Fraction(0)
    total = sum(shares, unused)
    return [share / total for share in (*shares, unused)]


def _order(seed: int, document: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{document}".encode("utf-8", "surrogatepass")).digest()


def _refuse_empty(side: Mapping[str, str], split: Split) -> None:
    counts = {name: sum(part == name for part in side.values()) for name in SPLITS}
    empty = [name for name in SPLITS if not counts[name]]
    if empty:
        numbers = ", ".join(f"{name} {getattr(split, name):g} is {counts[name]}" for name in SPLITS)
        needed = math.ceil(1 / min(split.train, split.validation, split.test))
        raise DataError(
            f"{len(side)} document(s) cannot fill the splits: {numbers}, and `{empty[0]}` would be empty. "
            f"These shares need about {needed} documents; name a finer `document`, change `split`, "
            "or cut a text into more (`chapters`, `blocks`)"
        )

"""Which blocks a measured choice removed, and how sure it is: every set that was tried, against the one that was chosen.

Reads `block_scores.parquet` beside the records of `prune.blocks`: columns `removed` (list of block indices), `document`, `sum`
and `tokens`. Scores are means over tokens; documents are resampled, the same ones for all sets.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from paretune.analysis import wording
from paretune.analysis.document import Block, Paragraph, Section, Table
from paretune.analysis.estimate import Floats, ratio_interval
from paretune.analysis.measured import Group, Measured, cells_of
from paretune.pipeline.records import Record

_ROWS = 16
"""Sets that are shown, the best first."""
_SCORES = {"loss": "loss", "influence": "block influence", "angular": "angular distance"}
_TRIED = {
    "all sets": "all sets of so many blocks were tried",
    "one at a time": "one block after the other, each time the one whose absence costs least",
    "runs": "all runs of so many blocks were tried",
    "blocks": "each block by itself",
}


def blocks_section(measured: Measured, group: Group) -> Section | None:
    """The measured choices of a group's variants; None if there are none."""
    found: dict[str, tuple[Record, list[str]]] = {}
    for place in group.places:
        cells = cells_of(measured, place)
        chosen = [(cell.seed, record) for cell in cells for record in cell.methods if "block_scores" in record.metrics]
        # What is chosen after training differs from seed to seed; what is chosen before is one record for all of them.
        by_seed = len({record.key for _, record in chosen}) == len(chosen) > 1
        for seed, record in chosen:
            label = wording.code(place.variant) + (f" seed {seed}" if by_seed else "")
            found.setdefault(record.key, (record, []))[1].append(label)
    blocks = [block for record, labels in found.values() for block in _choice(record, labels, measured.level)]
    return Section("Removed blocks", blocks, level=3) if blocks else None


def _choice(record: Record, labels: Sequence[str], level: float) -> Iterator[Block]:
    metrics, choose = record.metrics, record.config["method"]["choose"]
    removed = list(metrics["removed_blocks"])
    names = wording.listed(list(dict.fromkeys(labels)))
    tokens, documents = metrics["calibration_tokens"], metrics["calibration_documents"]
    yield Paragraph(
        f"{names}: {_named(removed)} of {metrics['blocks_before']} removed by `choose: {choose}`, measured on "
        f"{wording.plural(tokens, 'token')} of {wording.plural(documents, 'document')} of the training split; "
        f"{_TRIED[metrics['tried']]}."
    )
    yield _table(record, choose, removed, level)


def _table(record: Record, choose: str, removed: list[int], level: float) -> Table:
    """The whole model, then the sets of the size that was chosen, the best first, each against the chosen one."""
    sums, tokens, sets = _by_document(record)
    means = sums.sum(0) / tokens.sum()
    # A choice by influence takes several blocks that were scored apart: the worst of them is what the others must beat.
    taken = [index for index, one in enumerate(sets) if one and set(one) <= set(removed)]
    chosen = sets.index(removed) if removed in sets else max(taken, key=lambda index: means[index])
    order = [index for index, one in enumerate(sets) if len(one) == len(sets[chosen])]
    order.sort(key=lambda index: means[index])
    rows = []
    for index in [index for index, one in enumerate(sets) if not one] + order[:_ROWS]:
        score = wording.with_interval(means[index], *ratio_interval(sums[:, index], tokens, level))
        more = _more(sums[:, index] - sums[:, chosen], tokens, level)
        is_removed = index == chosen or (removed not in sets and index in taken)
        rows.append([_named(sets[index]), score, wording.UNKNOWN if index == chosen else more, "removed" if is_removed else ""])
    interval = f"{100 * level:g} % interval"
    told = f"the best {_ROWS} of {len(order)}" if len(order) > _ROWS else f"all {len(order)}"
    return Table(
        ("without", f"{_SCORES[choose]} ({interval})", f"more than {_named(sets[chosen])} ({interval})", ""),
        rows,
        f"Sets of blocks by {choose}, {told}; an interval around 0: this text does not tell the two apart",
    )


def _by_document(record: Record) -> tuple[Floats, Floats, list[list[int]]]:
    """Sums of shape (documents, sets), tokens of shape (documents,), and the sets."""
    table = pd.read_parquet(record.path / "block_scores.parquet")
    sets = [list(map(int, entry["removed"])) for entry in record.metrics["block_scores"]]
    table["set"] = [",".join(map(str, removed)) for removed in table["removed"]]
    sums = table.pivot_table(index="document", columns="set", values="sum", aggfunc="sum", sort=True)
    tokens = table.drop_duplicates("document").set_index("document")["tokens"].loc[sums.index]
    columns = [",".join(map(str, removed)) for removed in sets]
    return sums[columns].to_numpy(dtype=np.float64), tokens.to_numpy(dtype=np.float64), sets


def _named(removed: Sequence[int]) -> str:
    if not removed:
        return "no block"
    return f"{'block' if len(removed) == 1 else 'blocks'} {wording.listed([str(index) for index in removed])}"


def _more(differences: Floats, tokens: Floats, level: float) -> str:
    """The mean of paired differences with its interval, signed."""
    mean = float(differences.sum() / tokens.sum())
    low, high = ratio_interval(differences, tokens, level)
    places = max(wording.decimals(abs(mean)), 3)
    if np.isnan(low):
        return f"{mean:+.{places}f}"
    return f"{mean:+.{places}f} ({low:+.{places}f} to {high:+.{places}f})"

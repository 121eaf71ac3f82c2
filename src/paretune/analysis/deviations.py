"""Where a study departs from "the same for every variant", and which numbers that touches: printed beside them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from paretune.analysis import wording
from paretune.analysis.costs import fingerprint, trained_records
from paretune.analysis.measured import Measured
from paretune.analysis.scores import Place, Seed
from paretune.analysis.tuning import unequal_tuning
from paretune.pipeline.records import Cell
from paretune.study.data import SPLITS

_BUDGET = {
    "train_tokens": "tokens",
    "train_tokens_read": "tokens with their contexts",
    "epochs_done": "passes over the examples",
    "steps": "optimizer steps",
    "precision": "precision",
}
"""What is the same for all variants of a base on a dataset, over all trainings of a variant."""
LEAKED = "†"
LOSSY = "‡"
_MUCH = 0.05
"""Share of examples left out from which it belongs beside the recommendation."""


@dataclass(frozen=True)
class Marks:
    """What to put behind numbers that leakage or a lossy tokenizer touches."""

    splits: frozenset[tuple[str, str]]
    """(dataset, split) with documents that also stand in training text."""
    tasks: frozenset[tuple[str, str]]
    """(dataset, evaluation) with items that also stand in training text."""
    tokenizers: frozenset[tuple[str, str]]
    """(base, dataset) where the ids of some text do not decode to it."""

    def of(self, place: Place, task: str, split: str) -> str:
        leaked = (place.dataset, split) in self.splits or (place.dataset, task) in self.tasks
        return LEAKED if leaked else ""

    def lossy(self, place: Place) -> str:
        return LOSSY if (place.base, place.dataset) in self.tokenizers else ""

    @property
    def explanations(self) -> list[str]:
        found = []
        if self.splits or self.tasks:
            found.append(f"{LEAKED}: some of these texts also stand in the training data (`leakage: allow`).")
        if self.tokenizers:
            found.append(
                f"{LOSSY}: the tokenizer does not give every text back, so bytes and scored tokens do not match exactly."
            )
        return found


def marks_of(measured: Measured) -> Marks:
    results = measured.results
    allowed = {name: record for name, record in results.leakage.items() if measured.study.data[name].leakage == "allow"}
    return Marks(
        splits=frozenset(
            (name, split)
            for name, record in allowed.items()
            for split in SPLITS
            if record.metrics.get(f"documents_touched_{split}")
        ),
        tasks=frozenset(
            (name, task)
            for name, record in allowed.items()
            for task in measured.study.evaluate
            if record.metrics.get(f"items_touched_{task}")
        ),
        tokenizers=frozenset(place for place, record in results.tokens.items() if record.metrics.get("lossy_examples")),
    )


def deviations(measured: Measured) -> list[str]:
    """Sentences; empty if every variant was treated the same and nothing was left out."""
    return [
        *_data(measured),
        *_tokens(measured),
        *_runs(measured),
        *_unequal(measured),
        *_unequal_bases(measured),
        *unequal_tuning(measured),
    ]


def _data(measured: Measured) -> Iterator[str]:
    for name, record in measured.results.data.items():
        metrics, left = record.metrics, []
        if empty := metrics.get("records_empty", 0):
            what = "a completion" if measured.study.data[name].completes else "text"
            dropped = " or a field that is needed" if "empty" in measured.study.data[name].clean.drop else ""
            left.append(f"{wording.plural(empty, 'record')} without {what}{dropped}")
        if twice := metrics.get("records_duplicate", 0):
            left.append(f"{wording.plural(twice, 'record')} that read as an earlier one")
        if unsafe := metrics.get("records_unsafe", 0):
            left.append(f"{wording.plural(unsafe, 'record')} that are unsafe by `safety`")
        tasks = measured.study.data[name].tasks
        for task in sorted(tasks) if len(tasks) > 1 else ():  # the records without a completion, where there is one task
            if empty := metrics.get(f"completions_empty_{task}", 0):
                left.append(f"{wording.plural(empty, 'completion')} of {wording.code(task)} that are empty")
        if removed := metrics.get("documents_removed", 0):
            left.append(f"{wording.plural(removed, 'training document')} that also stood in held-out text (`leakage: remove`)")
        if left:
            yield f"Left out of {wording.code(name)}: {wording.listed(left)}."
    for name, record in measured.results.leakage.items():
        if measured.study.data[name].leakage != "allow" or not record.metrics.get("pairs"):
            continue
        touched = [
            f"{wording.plural(count, word)} of {wording.code(where)}"
            for where, count, word in (
                *((split, record.metrics.get(f"documents_touched_{split}", 0), "document") for split in SPLITS),
                *((task, record.metrics.get(f"items_touched_{task}", 0), "item") for task in measured.study.evaluate),
            )
            if count
        ]
        what = f": {wording.listed(touched)}" if touched else ""
        yield f"Leakage allowed in {wording.code(name)}, {wording.plural(record.metrics['pairs'], 'pair')} of like texts{what}."


def data_notes(measured: Measured) -> list[str]:
    """What stands with the data and departs from nothing: documents of no split, and that no leakage was found."""
    found = []
    for name, record in measured.results.data.items():
        if unused := record.metrics.get("documents_unused", 0):
            which = f"{wording.plural(unused, 'document')} of {wording.code(name)}"
            found.append(f"In no split: {which} (the shares sum to less than 1).")
    for name, record in measured.results.leakage.items():
        if record.metrics.get("pairs") == 0:
            items = any(metric.startswith("items_touched_") for metric in record.metrics)
            nor = " or with items of the evaluations" if items else ""
            removed = name in measured.results.data and measured.results.data[name].metrics.get("documents_removed")
            left = " left" if removed else ""
            found.append(f"Leakage in {wording.code(name)}: checked, no duplicates{left} between splits{nor}.")
    return found


def _tokens(measured: Measured) -> Iterator[str]:
    for (base, dataset), record in measured.results.tokens.items():
        where = _where(base, dataset)
        if (said := _left_out(measured, base, dataset)) is not None:
            yield said[1]
        if cut := record.metrics.get("cut_examples", 0):
            limit = measured.study.train.max_length
            yield f"{where}: the context of {wording.plural(cut, 'example')} cut to fit {limit:,} tokens (`too_long: cut`)."
        if lossy := record.metrics.get("lossy_examples", 0):
            yield f"{where}: {wording.plural(lossy, 'example')} not given back exactly, bits per byte marked {LOSSY}."


def much_left_out(measured: Measured) -> Iterator[str]:
    """The same sentences where more than 5 % of a dataset's examples are missing."""
    for base, dataset in measured.results.tokens:
        said = _left_out(measured, base, dataset)
        if said is not None and said[0] > _MUCH:
            yield said[1]


def _left_out(measured: Measured, base: str, dataset: str) -> tuple[float, str] | None:
    """The share of examples that are too long to be trained or scored on, and a sentence; None where all fit."""
    metrics = measured.results.tokens[(base, dataset)].metrics
    skipped = metrics.get("skipped_examples", 0)
    if not skipped:
        return None
    data = measured.results.data[dataset].metrics if dataset in measured.results.data else {}
    lost = {
        split: data[f"examples_{split}"] - metrics[f"kept_examples_{split}"]
        for split in SPLITS
        if f"examples_{split}" in data and f"kept_examples_{split}" in metrics
    }
    total = sum(data.get(f"examples_{split}", 0) for split in SPLITS)
    of_all = f"{wording.count(skipped)} of {wording.plural(total, 'example')}" if total else wording.plural(skipped, "example")
    by_split = f" ({', '.join(f'{split} {wording.count(num)}' for split, num in lost.items())})" if lost else ""
    limit, rule = measured.study.train.max_length, measured.study.data[dataset].length_rule
    told = f"{of_all} longer than {limit:,} tokens left out{by_split}, neither trained nor scored on (`too_long: {rule}`)."
    return skipped / total if total else 1.0, f"{_where(base, dataset)}: {told}"


def _where(base: str, dataset: str) -> str:
    return f"{wording.code(dataset)} with the tokenizer of {wording.code(base)}"


def _runs(measured: Measured) -> Iterator[str]:
    for cell in measured.results.cells:
        for record in trained_records(cell):
            metrics, who = record.metrics, _who(measured, cell)
            if metrics.get("stopped_early"):
                steps = f"{metrics.get('steps', 0):,}"
                yield f"{who} stopped early, after {steps} optimizer steps ({metrics.get('epochs_done', 0):g} epochs)."
            if retries := metrics.get("out_of_memory", 0):
                passes = f"passes of {metrics['options']['forward_tokens']:,} tokens"
                yield f"{who} ran out of memory {wording.plural(retries, 'time')} and went on in {passes}, which take longer."
            if failure := metrics.get("flex_failure"):
                yield f"{who} trained without FlexAttention, slower and in more memory, as it failed here ({failure})."
            if repeated := metrics.get("repeated_steps", 0):
                # Older records do not tell where the run went on.
                step = metrics.get("resumed_from")
                how = "went on" if step is None else f"went on from step {step:,}" if step else "began again"
                yield f"{who} was interrupted and {how}; {wording.plural(repeated, 'step')} ran twice."
    kept = [
        f"{_who(measured, cell)} step {record.metrics['best_step']:,} of {record.metrics['steps']:,}"
        for cell in measured.results.cells
        for record in trained_records(cell)
        if measured.study.train.keep == "best" and 0 < record.metrics.get("best_step", 0) < record.metrics.get("steps", 0)
    ]
    if kept:
        yield f"Not the last weights but those with the lowest validation loss were kept: {wording.listed(kept)}."


def _unequal(measured: Measured) -> Iterator[str]:
    """Differences between the runs of one base on one dataset that should have been the same."""
    for group in measured.groups:
        runs = [
            (cell, record)
            for cell in measured.results.cells
            if (cell.base, cell.dataset) == (group.base, group.dataset)
            for record in trained_records(cell)
        ]
        where = f"{wording.code(group.base)} on {wording.code(group.dataset)}: " if len(measured.groups) > 1 else ""
        for name, word in _BUDGET.items():
            # Seeds shuffle, and 40 steps of one order are not the tokens of 40 steps of another.
            cells = {id(cell): cell for cell, _ in runs}.values()
            unequal = [found for seed in {cell.seed for cell in cells} if len(found := _by_value(cells, name, seed)) > 1]
            for found in unequal[:1]:
                shares = [f"{value} ({wording.listed(sorted(who))})" for value, who in found.items()]
                yield f"{where}trained with unequal {word}: {wording.listed(shares)}."
        machines = {fingerprint(record) for _, record in runs}
        if len(machines) > 1:
            yield f"{where}trained on {len(machines)} different machines; times and memory are compared only within one."


def _unequal_bases(measured: Measured) -> Iterator[str]:
    """Bases of one dataset that were trained for different numbers of steps; their tokens differ with the tokenizer."""
    for dataset in measured.study.data:
        found: dict[str, set[str]] = {}
        for cell in measured.results.cells:
            if cell.dataset == dataset and (value := _spent(cell, "steps")) is not None:
                found.setdefault(cell.base, set()).add(value)
        if len({frozenset(steps) for steps in found.values()}) > 1:
            shares = [f"{wording.listed(sorted(steps))} ({wording.code(base)})" for base, steps in found.items()]
            yield f"{wording.code(dataset)}: bases trained with unequal optimizer steps: {wording.listed(shares)}."


def _by_value(cells: Iterable[Cell], name: str, seed: Seed) -> Mapping[str, set[str]]:
    """The variants that have each value of a metric, of one seed."""
    found: dict[str, set[str]] = {}
    for cell in cells:
        if cell.seed == seed and (value := _spent(cell, name)) is not None:
            found.setdefault(value, set()).add(wording.code(cell.variant))
    return found


def _spent(cell: Cell, name: str) -> str | None:
    """A metric of all trainings of a cell: their sum, or the words; None where none has it."""
    values = [record.metrics[name] for record in trained_records(cell) if record.metrics.get(name) is not None]
    if all(isinstance(value, int | float) for value in values):
        total = sum(values)
        return (f"{round(total):,}" if total == round(total) else f"{total:.4g}") if values else None
    return " and ".join(dict.fromkeys(map(str, values)))


def _who(measured: Measured, cell: Cell) -> str:
    parts = [wording.code(cell.variant)]
    if len(measured.study.bases) > 1 or len(measured.study.data) > 1:
        parts.append(f"of {wording.code(cell.base)} on {wording.code(cell.dataset)}")
    if cell.seed is not None and len(measured.study.seeds) > 1:
        parts.append(f"(seed {cell.seed})")
    return " ".join(parts)

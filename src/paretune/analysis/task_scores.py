"""The answers to the tasks of a dataset: their scores, whether they end and are as long as they should be, and some to read.

A model can know an answer and not write it as it was asked to. So the accuracy by likelihood stands beside that of the written
answers, and the share of answers that ended by themselves beside their length against the reference's.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from paretune.analysis import wording
from paretune.analysis.cells import share_cell
from paretune.analysis.compare import Estimate
from paretune.analysis.deviations import Marks
from paretune.analysis.document import Block, Paragraph, Picture, Section, SideBySide, Table, Text
from paretune.analysis.measured import Group, Measured, cell_generations, cells_of, estimate_of, quantities_of
from paretune.analysis.scores import Place, Quantity
from paretune.analysis.sentences import SHARES, named
from paretune.pipeline.records import Cell
from paretune.study.tasks import METRICS

_HEADS = {
    "accuracy": "accuracy (likelihood)",
    "accuracy_generated": "accuracy (as written)",
    "exact_match": "exact match",
    "contains": "contains the answer",
    "set_f1": "F1 of sets",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "bert_score_f1": "BERTScore",
    "stopped_by_eos": "ended by itself",
    "length_ratio": "length ratio",
}
_SHAPE = ("stopped_by_eos", "length_ratio")
_SHOWN_DOCUMENTS = 2
"""Held-out documents whose answers stand side by side."""


def tasks_section(measured: Measured, group: Group, marks: Marks, figure: str | None) -> Section | None:
    """A table for each task that is scored, and the `figure` of all; None if nothing of it was measured."""
    blocks: list[Block] = []
    for task, scoring in measured.study.data[group.dataset].scored.items():
        for split in ("test", "validation"):
            metrics = [one for one in task_metrics(scoring) if Quantity(task, split, one) in quantities_of(measured, group)]
            if metrics:
                blocks.append(_table(measured, group, Quantity(task, split, metrics[0]), [*metrics, *_SHAPE], marks))
    if not blocks:
        return None
    blocks.append(Paragraph(_explained(measured, group)))
    if figure is not None:
        blocks.append(Picture(f"figures/{figure}", f"the tasks of {group.dataset}, each in its first metric"))
    return Section("Tasks", blocks, level=3)


def task_metrics(scoring: Mapping[str, Any]) -> list[str]:
    """The metrics that a task is judged by, the most telling first."""
    labelled = ["accuracy", "accuracy_generated"] if scoring.get("labels") else []
    return list(dict.fromkeys([*labelled, *(METRICS.get(name, name) for name in scoring["score"])]))


def format_failures(measured: Measured, group: Group, task: str) -> Iterator[str]:
    """The variants whose likeliest label is right clearly more often than what they write, in one sentence."""
    told = []
    for place in group.places:
        known = estimate_of(measured, place, Quantity(task, "test", "accuracy"))
        written = estimate_of(measured, place, Quantity(task, "test", "accuracy_generated"))
        if known is not None and written is not None and known.low > written.high:
            told.append(f"{named(place)} {wording.share(known.mean)} and {wording.share(written.mean)}")
    if told:
        what = "the likeliest label is right more often than the written answer, a failure of form"
        yield f"On {wording.code(task)} {what}: {'; '.join(told)}."


def against_commonest(measured: Measured, group: Group, task: str) -> Iterator[str]:
    """The variants that may have learned no more about labels than which one is the most frequent, in one sentence."""
    estimates = {place: estimate_of(measured, place, Quantity(task, "test", "accuracy")) for place in group.places}
    scored = {place: one for place, one in estimates.items() if one is not None}
    if not scored:
        return
    labels = [row["reference"] for _, row in _rows(measured, next(iter(scored))) if row["task"] == task]
    label, count = Counter(labels).most_common(1)[0]
    always = count / len(labels)
    told = [f"{named(place)} ({wording.share(one.mean)})" for place, one in scored.items() if one.low <= always <= one.high]
    if told:
        what = f"always saying {wording.code(label.strip())} would be right in {wording.share(always)}"
        yield f"On {wording.code(task)} {what}, from which {wording.listed(told)} cannot be told apart."


def task_texts(measured: Measured, group: Group) -> list[SideBySide]:
    """The answers of every variant, of its first seed, to the tasks of the first held-out documents, with what was right."""
    asked: dict[tuple[str, str], list[Text]] = {}
    documents: list[str] = []
    for one in group.places:
        for cell, row in _rows(measured, one):
            if row["document"] not in documents and len(documents) < _SHOWN_DOCUMENTS:
                documents.append(row["document"])
            if row["document"] in documents:
                place = (row["document"], f"{row['task']} of “{row['document']}”: {row['prompt'].strip()}")
                texts = asked.setdefault(place, [_reference(row)])
                seed = "" if cell.seed is None or len(measured.study.seeds) == 1 else f"seed {cell.seed}, "
                texts.append(Text(one.variant, f"{seed}{stopped(row)}", row["text"]))
    order = sorted(asked, key=lambda place: documents.index(place[0]))
    return [SideBySide(prompt, asked[document, prompt]) for document, prompt in order]


def stopped(row: Mapping[str, Any]) -> str:
    """What ended a generation, and whether it is unsafe."""
    words = {
        "eos": "ended by itself after {}",
        "stop": "ended at a stop text after {}",
        "max_new_tokens": "cut at the limit of {}",
        "context": "cut at the end of the context after {}",
        "line_break": "ended at a line break after {}",
    }
    reason, unsafe = row["stopped_by"], ", unsafe" if row.get("filtered") else ""
    told = words.get(reason, f"stopped by {reason} after {{}}").format(wording.plural(row["new_tokens"], "token"))
    return told + unsafe


def _table(measured: Measured, group: Group, first: Quantity, metrics: Sequence[str], marks: Marks) -> Table:
    rows = []
    for place in group.places:
        found = [estimate_of(measured, place, first._replace(metric=metric)) for metric in metrics]
        mark = marks.of(place, first.task, first.split)
        cells = (_cell(metric, one) + mark * (one is not None) for metric, one in zip(metrics, found, strict=True))
        rows.append([place.variant, *cells])
    header = ("variant", *(_HEADS[metric] for metric in metrics))
    return Table(header, rows, f"{wording.code(first.task)}, {first.split}: {_counted(measured, group, first)}")


def _cell(metric: str, found: Estimate | None) -> str:
    if found is None:
        return wording.UNKNOWN
    if metric in _SHAPE:
        return wording.share(found.mean) if metric in SHARES else wording.number(found.mean, 2)
    if metric in SHARES:
        return share_cell(found)
    interval = "" if math.isnan(found.low) else f" ({found.low:.3f} to {found.high:.3f})"
    return f"{found.mean:.3f}{interval}"


def _counted(measured: Measured, group: Group, quantity: Quantity) -> str:
    found = next(one for place in group.places if (one := estimate_of(measured, place, quantity)) is not None)
    documents = wording.plural(found.n_documents, "document")
    return f"{wording.plural(found.n_examples, 'answer')} on {documents}, {measured.interval}s"


def _explained(measured: Measured, group: Group) -> str:
    labelled = any(scoring.get("labels") for scoring in measured.study.data[group.dataset].scored.values())
    labels = (
        "Accuracy (likelihood): the likeliest of the labels is right; (as written): the generated text is the right label. "
        if labelled
        else ""
    )
    return (
        f"{labels}Ended by itself: the share of answers that the model ended before a limit. Length ratio: words for each "
        "word of the reference. Of several right answers to one prompt the best score counts."
    )


def _reference(row: Mapping[str, Any]) -> Text:
    several = len(row.get("references") or [])
    return Text("reference", f"first of {several}" if several else "what was held out", row["reference"])


def _rows(measured: Measured, place: Place) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """The answers of a variant's first seed, on test where it was asked there."""
    names = [name for name, use in measured.study.evaluations_of(place.dataset).items() if use.row.answers_tasks]
    cells = [cell for cell in cells_of(measured, place) if any(name in cell.evaluations for name in names)]
    for name in names if cells else ():
        for row in cell_generations(cells[0], name):
            yield cells[0], row

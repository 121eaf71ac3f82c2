"""What variants do outside the study's own data: tasks of lm-evaluation-harness, and what they have forgotten.

Learning and forgetting are two axes: a method that learns less often forgets less, and a single figure hides which it was.
"""

import math
from collections.abc import Iterator

from paretune.analysis import wording
from paretune.analysis.cells import interval_cell, share_cell
from paretune.analysis.compare import Estimate
from paretune.analysis.deviations import Marks
from paretune.analysis.document import Block, Paragraph, Section, Table
from paretune.analysis.measured import (
    FORGETTING,
    HARNESS,
    QUALITY,
    Group,
    Measured,
    difference_of,
    estimate_of,
    harness_tasks,
    headline,
    quantities_of,
    untouched,
)
from paretune.analysis.scores import Place, Quantity
from paretune.analysis.sentences import SHARES, named


def harness_quantities(measured: Measured, group: Group) -> list[Quantity]:
    """The metric that each task of lm-evaluation-harness is judged by."""
    known = quantities_of(measured, group)
    tasks = harness_tasks(measured, group.dataset)
    found = (next((q for m in (*QUALITY, "word_loss") if (q := Quantity(task, "", m)) in known), None) for task in tasks)
    return [quantity for quantity in found if quantity is not None]


def harness_section(measured: Measured, group: Group, marks: Marks) -> Section | None:
    """Every task and metric with all variants side by side; None if no task of lm-evaluation-harness was asked."""
    tasks = harness_tasks(measured, group.dataset)
    known = [one for one in quantities_of(measured, group) if one.task in tasks and not one.slice]
    rows = []
    for quantity in sorted(known, key=lambda one: one.task):
        found = [estimate_of(measured, place, quantity) for place in group.places]
        mark = marks.of(group.places[0], _asked_in(measured, quantity.task), "")
        num = next((one.n_examples for one in found if one is not None), 0)
        cell = share_cell if quantity.metric in SHARES else interval_cell
        rows.append([quantity.task, quantity.metric, str(num), *(cell(one) + mark for one in found)])
    if not rows:
        return None
    caption = f"Metrics as the harness names them, with {measured.interval}s over its documents"
    table = Table(("task", "metric", "documents", *group.variants), rows, caption, words=2, grouped=True)
    return Section("Tasks of lm-evaluation-harness", [table], level=3)


def forgetting_section(measured: Measured, group: Group, marks: Marks) -> Section | None:
    """Learning and forgetting side by side, in bits per byte against the untouched base; None if it was not measured."""
    blocks: list[Block] = []
    for task in _outside(measured):
        rows = []
        for place in group.places:
            on_text = estimate_of(measured, place, Quantity(task, "", "bits_per_byte"))
            if on_text is not None:
                mark = marks.of(place, task, "")
                forgotten, _ = _forgotten(measured, group, place, task)
                rows.append(
                    [
                        place.variant,
                        _signed(_learned(measured, group, place)),
                        interval_cell(on_text) + mark,
                        _signed(forgotten),
                    ]
                )
        if rows:
            heads = ("learned", f"bits per byte on {task}", "forgotten")
            header = ("variant", *(f"{head} ({measured.interval})" for head in heads))
            caption = f"Bits per byte; learned and forgotten are against the untouched base, on {task}"
            blocks.append(Table(header, rows, caption))
    if not blocks:
        return None
    said = "Learned: by how much held-out text of the domain got better; forgotten: by how much other text got worse."
    return Section("Learning and forgetting", [*blocks, Paragraph(said)], level=3)


def forgetting_sentences(measured: Measured, group: Group) -> Iterator[str]:
    """What was learned and what it cost elsewhere, for the variants of which an interval shows that they forgot."""
    for task in _outside(measured):
        told, kept, unknown = [], [], 0
        for place in group.places:
            forgotten, shown = _forgotten(measured, group, place, task)
            if forgotten is None:
                continue
            if not math.isfinite(forgotten.high - forgotten.low):
                unknown = forgotten.n_documents
                continue
            if not shown:
                kept.append(named(place))
                continue
            learned = _learned(measured, group, place)
            gain = f" for {_signed(learned)} learned" if learned is not None else ""
            told.append(f"{named(place)} {_signed(forgotten)}{gain}")
        if told:
            level = f"{measured.interval}s"
            what = f"Forgotten on {wording.code(task)}, in bits per byte against the untouched base ({level})"
            yield f"{what}: {'; '.join(told)}."
        if unknown:
            yield f"Forgetting on {wording.code(task)}: {wording.plural(unknown, 'document')}, too few to tell."
        if kept:
            yield f"No forgetting on {wording.code(task)} is detected for {wording.listed(kept)}."


def _forgotten(measured: Measured, group: Group, place: Place, task: str) -> tuple[Estimate | None, bool]:
    """The rise in bits per byte of other text against the untouched base, and whether it is shown.

    It is a comparison like any other, with its seeds and its correction, where the study has the untouched base as a variant.
    """
    base, quantity = untouched(measured, group), Quantity(task, "", "bits_per_byte")
    found = None if base is None or place == base else difference_of(measured, place, base, quantity)
    if found is not None:
        return Estimate(found.mean, found.low, found.high, found.n_examples, found.n_documents, {}), found.verdict == "worse"
    lone = estimate_of(measured, place, quantity._replace(metric=FORGETTING))
    return lone, lone is not None and lone.low > 0


def _learned(measured: Measured, group: Group, place: Place) -> Estimate | None:
    """The drop in bits per byte of held-out text against the untouched base; None where that was not measured."""
    base, quantity = untouched(measured, group), headline(measured, group)
    if base is None or quantity is None or quantity.metric != "bits_per_byte" or place == base:
        return None
    found = difference_of(measured, place, base, quantity)
    if found is None:
        return None
    return Estimate(-found.mean, -found.high, -found.low, found.n_examples, found.n_documents, {})


def _outside(measured: Measured) -> list[str]:
    return [name for name, use in measured.study.evaluate.items() if use.kind == FORGETTING]


def _asked_in(measured: Measured, task: str) -> str:
    """The evaluation that asks a task: the one that names it, or the first that could hold it as the member of a group."""
    uses = {name: use for name, use in measured.study.evaluate.items() if use.kind == HARNESS}
    return next((name for name, use in uses.items() if task in use.config.model_dump()["tasks"]), next(iter(uses), task))


def _signed(found: Estimate | None) -> str:
    if found is None:
        return wording.UNKNOWN
    interval = f" ({found.low:+.3f} to {found.high:+.3f})" if math.isfinite(found.high - found.low) else ""
    return f"{found.mean:+.3f}{interval}"

"""How good variants are: held-out text, comparisons, questions, tasks, other text, ratings, and what they write."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from paretune.analysis.agreement import RELIABLE, TENTATIVE, Agreement
from paretune.analysis.answers import ANSWER_METRICS, forgotten, learned
from paretune.analysis.findings import Findings, Group
from paretune.analysis.scores import Entrant, Quantity, read_generations
from paretune.report import words
from paretune.report.blocks import Block, Paragraph, Picture, Section, SideBySide, Table, Text, as_blocks
from paretune.report.figures import tasks_name
from paretune.report.maps import questions_name
from paretune.report.tables import (
    SLICE,
    UNKNOWN,
    VARIANT,
    Column,
    Subject,
    answers_column,
    comparisons_table,
    estimate_cell,
    estimate_column,
    interval_name,
    make_table,
    noise_table,
    seeds_column,
    signed,
    subjects,
)
from paretune.study.evaluations import Generate
from paretune.study.registry import metric_of
from paretune.study.tasks import task_metrics

_SPLIT_ORDER = ("test", "validation", "train", "")
_SHAPE = ("stopped_by_eos", "length_ratio")
"""Of answers: shown beside their scores."""
_LABELS = "Accuracy (likelihood): the likeliest of the labels is right; (as written): the generated text is the right label. "
_DOCUMENTS_SHOWN = 2
"""Held-out documents whose answers stand side by side."""
_STOPPED = {
    "eos": "ended by itself after {}",
    "stop": "ended at a stop text after {}",
    "max_new_tokens": "cut at the limit of {}",
    "context": "cut at the end of the context after {}",
    "line_break": "ended at a line break after {}",
}


def held_out_section(findings: Findings, group: Group) -> Section | None:
    """Loss, perplexity, bits per byte and token accuracy with intervals, split by split."""
    tasks = [name for name, use in findings.study.evaluate.items() if use.kind == "perplexity"]
    known = [q for q in group.quantities if q.task in tasks and q.metric == "bits_per_byte"]
    order = {split: index for index, split in enumerate(_SPLIT_ORDER)}
    held_out = sorted(
        dict.fromkeys((q.task, q.split) for q in known if not q.slice),
        key=lambda pair: (tasks.index(pair[0]), order.get(pair[1], len(order))),
    )
    interval, blocks, by_task = interval_name(findings), list[Block](), list[Block]()
    for task, split in held_out:
        bits = Quantity(task, split, "bits_per_byte")
        perplexity = bits._replace(metric="perplexity")
        columns = [
            VARIANT,
            estimate_column(findings, bits._replace(metric="loss"), interval=False),
            *(estimate_column(findings, q, f"{metric_of(q.metric).column} ({interval})") for q in (perplexity, bits)),
            estimate_column(findings, bits._replace(metric="token_accuracy"), interval=False),
            *([seeds_column(findings, perplexity)] if len(findings.study.seeds) > 1 else []),
        ]
        num = next(estimate.n_documents for e in group.entrants if (estimate := findings.estimate(e, bits)) is not None)
        title = (split or task).capitalize() if task == "perplexity" else f"{task}, {split}"
        alone = "; of completions alone, after what stands before them" if findings.study.data[group.dataset].completes else ""
        blocks.append(make_table(subjects(group), columns, f"{title}, {words.plural(num, 'document')}{alone}"))
        names = [n for n in findings.study.data[group.dataset].tasks if bits._replace(slice=f"task: {n}") in group.quantities]
        if split == "test" and names and not by_task:
            columns = [estimate_column(findings, bits._replace(slice=f"task: {name}"), name) for name in names]
            caption = f"Bits per byte of the completions by task, {split}, {interval}s"
            by_task.append(make_table(subjects(group), [VARIANT, *columns], caption))
    return Section("Held-out text", [*blocks, *by_task], level=3) if blocks else None


def comparisons_section(findings: Findings, group: Group) -> Section | None:
    """Every comparison of whole tasks with the baseline, the headline with the untouched base, then the noise floor.

    Losses are told in bits per byte or perplexity, validation only where nothing else was held out; two variants differ in
    `forgetting` by as much as in bits per byte on the same text.
    """
    blocks: list[Block] = []
    splits = ("test", "", group.headline.split if group.headline is not None else "")
    for reference in dict.fromkeys(entrant for entrant in (group.baseline, group.untouched) if entrant is not None):
        quantities = []
        for quantity in sorted(findings.estimates.get(reference, {}), key=lambda quantity: quantity != group.headline):
            rating = findings.ratings.get(quantity.task)
            trust = rating.trust.get(quantity.metric) if rating is not None else None
            again = quantity.metric in ("loss", "perplexity", "accuracy_unnormalised", "forgetting")
            told = reference == group.baseline and not again and quantity.split in splits and not quantity.slice
            if (quantity == group.headline or told) and not (trust is not None and trust.withheld):
                quantities.append(quantity)
        pairs = itertools.product(quantities, group.entrants)
        found = [findings.told(entrant, reference, quantity) for quantity, entrant in pairs if entrant != reference]
        differences = [difference for difference in found if difference is not None]
        if differences:
            what = "baseline" if reference == group.baseline else "untouched"
            scope = "; one seed: about these weights" if max(one.n_seeds for one in differences) == 1 else ""
            caption = f"Against {words.named(reference)} ({what}), paired by document, intervals corrected{scope}"
            blocks.append(comparisons_table(differences, f"{100 * findings.level:g} % over its family", caption))
    if group.baseline is not None and group.headline is not None:
        found = [findings.difference(entrant, group.baseline, group.headline) for entrant in group.entrants]
        seeded = [one for one in found if one is not None and one.n_seeds > 1 and 0 < one.errors.total < math.inf]
        if seeded:
            what = f"{words.noun(group.headline)} from {words.named(group.baseline)}"
            blocks.append(noise_table(seeded, f"Noise floor: what the difference in {what} is uncertain by"))
            note = "More documents shrink the first error, more seeds the second; the share is that of the variance of the"
            blocks.append(Paragraph(f"{note} difference."))
    return Section("Comparisons", blocks, level=3) if blocks else None


def questions_section(findings: Findings, group: Group) -> Section | None:
    """Right answers of each question set and by slice, and which slices cannot be told apart."""
    blocks: list[Block] = []
    for task in (task for task, use in findings.study.evaluate.items() if use.kind == "qa"):
        quantities = {quantity for quantity in group.quantities if quantity.task == task}
        if not quantities:
            continue
        answers = [q for metric in ANSWER_METRICS if (q := Quantity(task, "", metric)) in quantities]
        likelihood = [q for q in [Quantity(task, "", "log_likelihood")] if q in quantities]
        columns = [VARIANT, *(answers_column(findings, quantity) for quantity in answers)]
        columns += [estimate_column(findings, quantity) for quantity in likelihood]
        caption = f"{task}: right answers, and the {interval_name(findings)} of their share"
        caption += ", means over seeds" if len(findings.study.seeds) > 1 else ""
        sizes = {
            (quantity.slice, quantity.metric): estimate.n_examples
            for entrant in group.entrants
            for quantity, estimate in findings.estimates.get(entrant, {}).items()
            if quantity.task == task and quantity.metric in ANSWER_METRICS
        }
        if task in group.chance and (num := sizes.get(("", "accuracy"))) is not None:
            chance = group.chance[task]
            caption += f"; choices by chance {chance * num:.3g} of {num} ({words.share(chance)})"
        blocks.append(make_table(subjects(group), columns, caption))
        told: list[str] = []
        slices = itertools.groupby(sorted({q.slice for q in quantities if q.slice}), key=lambda name: name.partition(": ")[0])
        for _, of_field in slices:
            names = list(of_field)
            # Where slices are the kinds of question, right answers are counted slice by slice already.
            kinds = all(size == sizes["", metric] for (name, metric), size in sizes.items() if name in names)
            told += [] if kinds else names
        rows = [
            row
            for row in subjects(group, told)
            if any(findings.estimate(row.entrant, q._replace(slice=row.slice)) for q in (*answers, *likelihood))
        ]
        if told:
            columns = [SLICE, VARIANT, *(answers_column(findings, quantity, interval=False) for quantity in answers)]
            columns += [estimate_column(findings, quantity, interval=False) for quantity in likelihood]
            blocks.append(make_table(rows, columns, f"{task} by slice", words=2, grouped=True))
        blocks.append(Picture(f"figures/{questions_name(findings, group, task)}", f"the answers to {task} by slice"))
        blocks += as_blocks(findings.facts.groups[group.base, group.dataset].confounded.get(task, ()))
    return Section("Questions and answers", blocks, level=3) if blocks else None


def tasks_section(findings: Findings, group: Group) -> Section | None:
    """A table for each task of the dataset that is scored, and the figure of all."""
    blocks: list[Block] = []
    scored = findings.study.data[group.dataset].scored
    for (task, scoring), split in itertools.product(scored.items(), ("test", "validation")):
        quantities = [q for metric in task_metrics(scoring) if (q := Quantity(task, split, metric)) in group.quantities]
        if not quantities:
            continue
        known = (findings.estimate(entrant, quantities[0]) for entrant in group.entrants)
        first = next(estimate for estimate in known if estimate is not None)
        counted = f"{words.plural(first.n_examples, 'answer')} on {words.plural(first.n_documents, 'document')}"
        shape = [Quantity(task, split, metric) for metric in _SHAPE]
        columns = [VARIANT, *(estimate_column(findings, quantity) for quantity in (*quantities, *shape))]
        caption = f"{words.code(task)}, {split}: {counted}, {interval_name(findings)}s"
        blocks.append(make_table(subjects(group), columns, caption))
    if not blocks:
        return None
    said = (
        f"{_LABELS if any(scoring.get('labels') for scoring in scored.values()) else ''}Ended by itself: the share of answers "
        "that the model ended before a limit. Length ratio: words for each word of the reference. Of several right answers to "
        "one prompt the best score counts."
    )
    picture = Picture(f"figures/{tasks_name(group.dataset)}", f"the tasks of {group.dataset}, each in its first metric")
    return Section("Tasks", [*blocks, Paragraph(said), picture], level=3)


def harness_section(findings: Findings, group: Group) -> Section | None:
    """Every task and metric of lm-evaluation-harness with all variants side by side."""
    quantities = [q for q in group.quantities if q.task in group.harness_tasks and not q.slice]
    if not quantities:
        return None

    def num_documents(row: Quantity) -> str:
        estimates = (findings.estimate(entrant, row) for entrant in group.entrants)
        return str(next((estimate.n_examples for estimate in estimates if estimate is not None), 0))

    def of(entrant: Entrant) -> Column[Quantity]:
        return Column(entrant.variant, lambda row: estimate_cell(findings, entrant, row))

    columns: list[Column[Quantity]] = [
        Column("task", lambda row: row.task),
        Column("metric", lambda row: row.metric),
        Column("documents", num_documents),
        *map(of, group.entrants),
    ]
    caption = f"Metrics as the harness names them, with {interval_name(findings)}s over its documents"
    rows = sorted(quantities, key=lambda quantity: quantity.task)
    return Section("Tasks of lm-evaluation-harness", [make_table(rows, columns, caption, words=2, grouped=True)], level=3)


def forgetting_section(findings: Findings, group: Group) -> Section | None:
    """Learning and forgetting side by side, in bits per byte against the untouched base."""
    interval, blocks = interval_name(findings), list[Block]()
    for task in (name for name, use in findings.study.evaluate.items() if use.row.needs_untouched):
        on_text = Quantity(task, "", "bits_per_byte")
        rows = [row for row in subjects(group) if findings.estimate(row.entrant, on_text) is not None]

        def learning(row: Subject) -> str | None:
            change = learned(findings, group, row.entrant)
            return None if change is None else signed(change.mean, change.low, change.high, 3)

        def forgetting(row: Subject, task: str = task) -> str | None:
            change = forgotten(findings, group, row.entrant, task)
            return None if change is None else signed(change.mean, change.low, change.high, 3)

        columns = [
            VARIANT,
            Column(f"learned ({interval})", learning),
            estimate_column(findings, on_text, f"bits per byte on {task} ({interval})"),
            Column(f"forgotten ({interval})", forgetting),
        ]
        caption = f"Bits per byte; learned and forgotten are against the untouched base, on {task}"
        blocks += [make_table(rows, columns, caption)] if rows else []
    said = "Learned: by how much held-out text of the domain got better; forgotten: by how much other text got worse."
    return Section("Learning and forgetting", [*blocks, Paragraph(said)], level=3) if blocks else None


def ratings_section(findings: Findings, group: Group) -> Section | None:
    """Means by variant and by slice (rater), and how far raters agree."""
    blocks: list[Block] = []
    for name, rating in findings.ratings.items():
        quantities = [Quantity(name, "", criterion) for criterion in rating.criteria]
        known = [q for q in group.quantities if q._replace(slice="") in quantities]
        if not any(not quantity.slice for quantity in known):
            continue
        estimates = (findings.estimate(entrant, q) for entrant in group.entrants for q in quantities)
        num = next(estimate.n_examples for estimate in estimates if estimate is not None)
        who = words.code(rating.raters[0]) if rating.by_judge else words.listed(rating.raters)
        caption = f"{name}, from 1 to 5 by {who}: {num:,} ratings of each variant, {interval_name(findings)}s"
        columns = [estimate_column(findings, quantity, quantity.metric) for quantity in quantities]
        blocks.append(make_table(subjects(group), [VARIANT, *columns], caption))
        if slices := sorted({quantity.slice for quantity in known if quantity.slice}):
            columns = [estimate_column(findings, quantity, quantity.metric, interval=False) for quantity in quantities]
            rows = subjects(group, slices)
            blocks.append(make_table(rows, [SLICE, VARIANT, *columns], f"{name} by slice", words=2, grouped=True))
        cells: dict[str, dict[str, str]] = {}
        for criterion, trust in rating.trust.items():
            between = f"the {trust.num_raters} raters" if trust.between == "raters" else f"the {trust.between}"
            label = between if trust.agreement is not None else "of raters"
            cells.setdefault(label, {})[criterion] = _alpha(trust.agreement)
            for pair, kappa in trust.kappas.items():
                cells.setdefault(" and ".join(pair), {})[criterion] = UNKNOWN if math.isnan(kappa) else f"kappa {kappa:.2f}"
            for rater, agreement in trust.repeated.items():
                cells.setdefault(f"{rater} with a second look", {})[criterion] = _alpha(agreement)
        blocks.append(_agreement_table(cells, rating.criteria, f"{name}: agreement"))
        if rating.num_missing:
            missing = f"{words.plural(rating.num_missing, 'rating')} of {rating.num_ratings:,} missing"
            blocks.append(Paragraph(f"{missing}: left empty, or no rating after several tries."))
    explained = (
        "Agreement: Krippendorff's alpha for ordered ratings (1 perfect, 0 chance) with its interval over texts, and Cohen's "
        f"kappa with quadratic weights for pairs. From {RELIABLE} on it carries conclusions, from {TENTATIVE} tentative ones; "
        "below, none is drawn. Two variants are compared within each rater, on the texts after the same prompts."
    )
    return Section("Ratings", [*blocks, Paragraph(explained)], level=3) if blocks else None


def _agreement_table(cells: Mapping[str, Mapping[str, str]], criteria: Sequence[str], caption: str) -> Table:
    def of(criterion: str) -> Column[str]:
        return Column(criterion, lambda label: cells[label].get(criterion))

    return make_table(cells, [Column("agreement", str), *map(of, criteria)], caption)


def _alpha(agreement: Agreement | None) -> str:
    if agreement is None:
        return UNKNOWN
    alpha, low, high = agreement.alpha, agreement.low, agreement.high
    shown = "all alike" if math.isnan(alpha) else f"alpha {alpha:.2f}, {low:.2f} to {high:.2f}"
    return f"{shown}, {words.plural(agreement.num_items, 'text')}"


def generations_section(findings: Findings, group: Group) -> Section | None:
    """Continuations of each prompt and answers to the tasks of some documents by every variant, of its first seed."""
    blocks: list[Block] = []
    unsafe = sorted({q._replace(slice="") for q in group.quantities if q.metric == "filtered"})
    if unsafe:
        columns = [_unsafe_column(findings, quantity) for quantity in unsafe]
        caption = "Generated texts that are unsafe by `safety`"
        blocks.append(make_table(subjects(group), [VARIANT, *columns], caption))
    for task in (task for task, use in findings.study.evaluate.items() if use.kind == "generate"):
        texts: dict[str, list[Text]] = {}
        for entrant in group.entrants:
            cells = [cell for cell in findings.cells(entrant) if task in cell.evaluations]
            for row in read_generations(cells[0], task) if cells else ():
                seed = "" if cells[0].seed is None or len(cells) == 1 else f"seed {cells[0].seed}, "
                texts.setdefault(row["prompt"], []).append(Text(entrant.variant, f"{seed}{_stopped(row)}", row["text"]))
        config = findings.study.evaluate[task].config
        if texts and findings.study.data[group.dataset].chats and isinstance(config, Generate):
            form = "continued as they are (`raw: true`)" if config.raw else "what a user says, in the form of the base's chats"
            blocks.append(Paragraph(f"Prompts of `{task}`: {form}."))
        blocks += [SideBySide(prompt, entries) for prompt, entries in texts.items()]
    blocks += _task_texts(findings, group)
    where = f", {group.base} on {group.dataset}" if len(findings.groups) > 1 else ""
    return Section(f"Generations side by side{where}", blocks) if blocks else None


def _unsafe_column(findings: Findings, quantity: Quantity) -> Column[Subject]:
    def cell(row: Subject) -> str | None:
        estimate = findings.estimate(row.entrant, quantity)
        return None if estimate is None else words.part_of_mean(estimate.mean, estimate.n_examples)

    return Column(f"{quantity.task} {quantity.split}".strip(), cell)


def _task_texts(findings: Findings, group: Group) -> Iterator[SideBySide]:
    """The answers of every variant, of its first seed, to the tasks of the first held-out documents, with what was right."""
    names = [name for name, use in findings.study.evaluations_of(group.dataset).items() if use.row.answers_tasks]
    asked: dict[str, dict[str, list[Text]]] = {}
    for entrant in group.entrants:
        cells = [cell for cell in findings.cells(entrant) if any(name in cell.evaluations for name in names)]
        rows = [row for name in names if cells and name in cells[0].evaluations for row in read_generations(cells[0], name)]
        for row in rows:
            if row["document"] not in asked and len(asked) == _DOCUMENTS_SHOWN:
                continue
            prompt = f"{row['task']} of “{row['document']}”: {row['prompt'].strip()}"
            num = len(row.get("references") or [])
            right = Text("reference", f"first of {num}" if num else "what was held out", row["reference"])
            seed = "" if cells[0].seed is None or len(findings.study.seeds) == 1 else f"seed {cells[0].seed}, "
            texts = asked.setdefault(row["document"], {}).setdefault(prompt, [right])
            texts.append(Text(entrant.variant, f"{seed}{_stopped(row)}", row["text"]))
    for of_document in asked.values():
        yield from itertools.starmap(SideBySide, of_document.items())


def _stopped(row: Mapping[str, Any]) -> str:
    """What ended a generation, and whether it is unsafe."""
    reason = row["stopped_by"]
    told = _STOPPED.get(reason, f"stopped by {reason} after {{}}").format(words.plural(row["new_tokens"], "token"))
    return told + (", unsafe" if row.get("filtered") else "")

"""The report: what stands in it and in which order.

What was found comes before how it came about: conclusions, then qualities, comparisons and costs, then how variants were
trained, tuned and pruned, then what stands in the data; and long texts come last. A section is made by a function of the
findings and a group, which returns None where there is nothing to show. Those of an evaluation are named by its row; what a row
without one has measured is shown as a table. Pictures that were not drawn, and those of a whole dataset after its first base,
are left out.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from paretune.analysis2 import words
from paretune.analysis2.agreement import RELIABLE, TENTATIVE, Agreement
from paretune.analysis2.answers import ANSWER_METRICS, forgotten, learned, task_metrics
from paretune.analysis2.costs import DISTURBED, cost_name, timed_evaluations, trial_cost
from paretune.analysis2.decision import as_compared
from paretune.analysis2.document import (
    Block,
    Bullets,
    Document,
    Paragraph,
    Picture,
    Section,
    SideBySide,
    Table,
    Text,
    Words,
)
from paretune.analysis2.figures import PARETO_NAME, comparison_name, curves_name, tasks_name
from paretune.analysis2.findings import Fact, Findings, Group
from paretune.analysis2.scores import Entrant, Quantity, read_generations
from paretune.analysis2.tables import (
    SLICE,
    UNKNOWN,
    VARIANT,
    Column,
    Subject,
    answers_column,
    comparisons_table,
    cost_column,
    estimate_cell,
    estimate_column,
    interval_name,
    make_table,
    noise_table,
    seeds_column,
    signed,
    subjects,
)
from paretune.analysis2.training import BlockScore, Epoch
from paretune.pipeline.records import Trial, Tuning
from paretune.study.data import SPLITS
from paretune.study.findings import FINDINGS
from paretune.study.registry import load_function, metric_of
from paretune.study.study import TASKS
from paretune.study.variants import Variant

SectionMaker = Callable[[Findings, Group], Section | None]
_SPLIT_ORDER = ("test", "validation", "train", "")
_SHAPE = ("stopped_by_eos", "length_ratio")
"""Of answers: shown beside their scores."""
_DISTURBED = "~"
"""Behind the heading of a column of disturbed times."""
_EPOCHS_SHOWN = 12
_SETS_SHOWN = 16
"""Of the sets of blocks that could have been removed, the best first."""
_RECORDS_SHOWN = 3
"""Numbers of records in the table of an audit."""
_DOCUMENTS_SHOWN = 2
"""Held-out documents whose answers stand side by side."""
_JUDGED = {"loss": ("validation loss", "lowest"), "token_accuracy": ("validation token accuracy", "highest")}
_BLOCK_SCORES = {"loss": "loss", "influence": "block influence", "angular": "angular distance"}
_STOPPED = {
    "eos": "ended by itself after {}",
    "stop": "ended at a stop text after {}",
    "max_new_tokens": "cut at the limit of {}",
    "context": "cut at the end of the context after {}",
    "line_break": "ended at a line break after {}",
}


def build_report(findings: Findings, figures: frozenset[str]) -> Document:
    """`figures` are the names of the files that were drawn."""
    many = len(findings.groups) > 1
    sections = [Section("In short", _in_short(findings)), Section("What was compared", _compared(findings))]
    for group in findings.groups:
        sections.append(Section(f"{group.base} on {group.dataset}" if many else "Results", []))
        named = [use.row.section for use in findings.study.evaluations_of(group.dataset).values() if use.row.section]
        others = [maker for maker in dict.fromkeys(map(load_function, named)) if maker not in (*_ORDER, *_LAST)]
        made = [maker(findings, group) for maker in (*_ORDER, *others, other_section)]
        sections += [section for section in made if section is not None]
    sections += [section for section in [audit_section(findings)] if section is not None]
    made = [maker(findings, group) for group in findings.groups for maker in _LAST]
    sections += [section for section in made if section is not None]
    sections.append(Section("Notes", _told(findings.facts.notes)))
    left, shown = set(figures), []
    for section in sections:
        blocks = []
        for block in section.blocks:
            if isinstance(block, Picture):
                name = block.path.removeprefix("figures/")
                if name not in left:
                    continue
                left.remove(name)
            blocks.append(block)
        shown.append(Section(section.title, blocks, section.level))
    counts = [len(part) for part in (findings.study.variants, findings.study.bases, findings.study.data)]
    title = f"{findings.study.study}: {words.plural(counts[0], 'variant')}"
    title += f" of {words.plural(counts[1], 'base')}" if counts[1] > 1 else ""
    title += f" on {words.plural(counts[2], 'dataset')}" if counts[2] > 1 else ""
    return Document(title, shown)


def _told(facts: Sequence[Words]) -> list[Block]:
    """A list, and behind it what is said in paragraphs of their own."""
    listed = [fact for fact in facts if not (isinstance(fact, Fact) and fact.alone)]
    alone = [fact for fact in facts if isinstance(fact, Fact) and fact.alone]
    return [*([Bullets(listed)] if listed else []), *map(Paragraph, alone)]


def _in_short(findings: Findings) -> list[Block]:
    facts, many, blocks = findings.facts, len(findings.groups) > 1, list[Block]()
    for dataset, groups in itertools.groupby(findings.groups, key=lambda group: group.dataset):
        for group in groups:
            told = facts.groups[group.base, group.dataset]
            if many:
                blocks.append(Paragraph(f"{words.code(group.base)} on {words.code(group.dataset)}:", introduces=True))
            blocks += _told((*told.recommendation, *told.findings))
        if dataset in facts.across:
            of_bases, *tokenizers = _told(facts.across[dataset])
            blocks.append(Paragraph(f"Across bases on {words.code(dataset)}:", introduces=True))
            blocks += [of_bases, _across_table(findings, dataset), *tokenizers]
    if facts.remarks:
        blocks += [Paragraph("Of all of this:", introduces=True)] if many else []
        blocks += _told(facts.remarks)
    blocks += [Paragraph(fact) for fact in facts.incomplete]
    blocks.append(Picture(f"figures/{PARETO_NAME}", "quality against each cost, with the Pareto frontier"))
    return [*blocks, *(Paragraph(fact) for fact in facts.use)]


def _across_table(findings: Findings, dataset: str) -> Table:
    """All variants of all bases on one dataset, in bits per byte, the best first."""
    quantities = {
        entrant: group.headline
        for group in findings.groups
        if group.dataset == dataset and group.headline is not None and group.headline.metric == "bits_per_byte"
        for entrant in group.entrants
        if findings.estimate(entrant, group.headline) is not None
    }
    ranked = sorted(quantities, key=lambda entrant: findings.estimates[entrant][quantities[entrant]].mean)
    split = next(group.headline.split for group in findings.groups if group.dataset == dataset and group.headline is not None)
    columns: list[Column[Subject]] = [
        Column("base and variant", lambda row: f"{row.entrant.base} {row.entrant.variant}"),
        Column(
            f"bits per byte ({interval_name(findings)})",
            lambda row: estimate_cell(findings, row.entrant, quantities[row.entrant]),
        ),
        cost_column(findings, "model_bytes"),
    ]
    return make_table(map(Subject, ranked), columns, f"Best first, {split}")


def _compared(findings: Findings) -> list[Block]:
    facts = findings.facts
    blocks = [*_told(facts.setup), _variants_table(findings.study.variants)]
    if findings.results.data:
        blocks += [_data_table(findings), *_told(facts.data)]
    deviations = _told(facts.deviations)
    if any(isinstance(block, Bullets) for block in deviations):
        blocks.append(Paragraph("Deviations:", introduces=True))
    return [*blocks, *deviations]


def _variants_table(variants: Mapping[str, Variant]) -> Table:
    def methods(row: tuple[str, Variant]) -> str:
        parts = []
        for uses in zip(*row[1].chains, strict=True):
            use, dumps = uses[0], [use.config.model_dump() for use in uses]
            fields = [name for name in dumps[0] if name in use.config.model_fields_set or name == "learning_rate"]
            values = {name: list(dict.fromkeys(_setting(dump[name]) for dump in dumps)) for name in fields}
            settings = [f"{name} {'tuned over ' if len(one) > 1 else ''}{'/'.join(one)}" for name, one in values.items()]
            parts.append(f"{use.name} ({', '.join(settings)})" if fields else use.name)
        return ", then ".join(parts) or "the base as it is"

    columns = [Column[tuple[str, Variant]]("variant", lambda row: row[0]), Column("methods", methods)]
    return make_table(variants.items(), columns, "Variants", words=2)


def _setting(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_setting(item)}" for name, item in value.items())
    return ", ".join(str(item) for item in value) if isinstance(value, tuple | list) else str(value)


def _data_table(findings: Findings) -> Table:
    """What is trained and scored on, base by base where they differ: tokenizers make different texts too long.

    Bytes are counted as in the data where nothing was left out: of a dataset with tasks these hold contexts and prompts too.
    """
    data, tokens, bases = findings.results.data, findings.results.tokens, list(findings.study.bases)
    skipping = {where: record for where, record in tokens.items() if record.metrics.get("skipped_examples")}

    def kept(what: str) -> Callable[[tuple[str, str]], str]:
        def cell(row: tuple[str, str]) -> str:
            dataset, split = row
            whole = data[dataset].metrics.get(f"{what}_{split}", 0)
            records = [skipping.get((base, dataset)) for base in bases]
            counts = [whole if record is None else record.metrics.get(f"kept_{what}_{split}", whole) for record in records]
            return " / ".join(words.count(count) for count in dict.fromkeys(counts))

        return cell

    def num_tokens(base: str) -> Callable[[tuple[str, str]], str | None]:
        def cell(row: tuple[str, str]) -> str | None:
            record = tokens.get((base, row[0]))
            return None if record is None else words.count(record.metrics.get(f"tokens_{row[1]}", 0))

        return cell

    columns = [
        Column[tuple[str, str]]("data", lambda row: row[0]),
        Column("split", lambda row: row[1]),
        *(Column(what, kept(what)) for what in ("documents", "examples", "bytes")),
        *(Column(f"tokens ({base})" if len(bases) > 1 else "tokens", num_tokens(base)) for base in bases),
    ]
    known = all("kept_examples_train" in record.metrics for record in skipping.values())
    counted = "as trained and scored on" if known else "documents, examples and bytes before what is too long was left out"
    return make_table(itertools.product(data, SPLITS), columns, f"Data, {counted}", words=2, grouped=True)


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
            caption = f"Against {words.named(reference)} ({what}), paired by document; p is corrected for its family{scope}"
            blocks.append(comparisons_table(differences, interval_name(findings), caption))
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
        blocks += _told(findings.facts.groups[group.base, group.dataset].confounded.get(task, ()))
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
    labels = (
        "Accuracy (likelihood): the likeliest of the labels is right; (as written): the generated text is the right label. "
    )
    said = (
        f"{labels if any(scoring.get('labels') for scoring in scored.values()) else ''}Ended by itself: the share of answers "
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
    for task in (name for name, use in findings.study.evaluate.items() if use.kind == "forgetting"):
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


def cost_section(findings: Findings, group: Group) -> Section | None:
    """Sizes, training cost and latency of every evaluation that measures it."""
    costs = {entrant: findings.costs.get(entrant, {}) for entrant in group.entrants}
    if not any(costs.values()):
        return None

    def trained(row: Subject) -> str | None:
        own = costs[row.entrant]
        if "trainable_parameters" not in own:
            return None if findings.is_trained(row.entrant) else "0"
        part = own["trainable_parameters"].mean
        return f"{100 * part / own['parameters'].mean:.4g} %" if "parameters" in own else f"{part:,.0f}"

    disturbed, latency = dict[str, float](), list[Column[Subject]]()
    speed = group.noise.get("train_tokens_per_second", 1.0)
    disturbed |= {"training speed": speed} if speed > DISTURBED else {}
    median = False
    timed = timed_evaluations(findings.study)
    for evaluation in timed:
        name = cost_name("ms_per_token", evaluation, timed)
        measured = [entrant for entrant in group.entrants if name in costs[entrant]]
        names = [as_compared(findings, cost_name(m, evaluation, timed), measured) for m in ("first_token_ms", "ms_per_token")]
        noise = group.noise.get(names[1], 1.0)
        disturbed |= {words.cost_noun(names[1]): noise} if noise > DISTURBED else {}
        mark = _DISTURBED if noise > DISTURBED else ""
        latency += [cost_column(findings, name, mark=mark, optional=True) for name in names]
        median = median or bool(measured and metric_of(names[1]).median_of)
    columns = [
        VARIANT,
        cost_column(findings, "parameters"),
        Column(metric_of("trainable_parameters").column, trained),
        cost_column(findings, "model_bytes"),
        cost_column(findings, "adapter_bytes"),
        cost_column(findings, "train_seconds", mark=_DISTURBED if "training speed" in disturbed else ""),
        cost_column(findings, "peak_memory_bytes"),
        *latency,
    ]
    differ = words.listed([f"{what} by {words.times(factor)}" for what, factor in disturbed.items()] or [""])
    caption = f"{_DISTURBED}: disturbed times, runs or parts of one that should be equally fast differ in {differ}"
    middle = "; milliseconds are medians over the repeats" if median else ""
    said = f"Model: the weights as exported, adapter merged. Training: optimizer steps only. Means over seeds{middle}."
    blocks = [
        make_table(subjects(group), columns, caption if disturbed else ""),
        *_told(findings.facts.groups[group.base, group.dataset].trained),
        Paragraph(said),
        Picture(f"figures/{comparison_name(group.dataset)}", f"quality and cost of all variants on {group.dataset}"),
    ]
    return Section("Cost", blocks, level=3)


class _EpochRow(NamedTuple):
    variant: str
    epochs: list[Epoch]
    """The same one of every seed that came so far."""


def training_section(findings: Findings, group: Group) -> Section | None:
    """Loss and time of each epoch, totals and speed, and what the curves show."""
    rows, trained, num_seeds = list[_EpochRow](), list[Subject](), 0
    for entrant in group.entrants:
        runs = [epochs for (owner, _), epochs in findings.epochs.items() if owner == entrant and epochs]
        if not runs:
            continue
        trained.append(Subject(entrant))
        num_seeds, longest = max(num_seeds, len(runs)), max(map(len, runs))
        shown = range(0, longest, math.ceil(longest / _EPOCHS_SHOWN))
        for index in dict.fromkeys((*shown, longest - 1)):
            rows.append(_EpochRow(entrant.variant, [epochs[index] for epochs in runs if index < len(epochs)]))
    if not trained:
        return None
    columns: list[Column[_EpochRow]] = [
        Column("variant", lambda row: row.variant),
        Column("epoch", lambda row: _epoch_name(row.epochs[0])),
        Column("train loss", lambda row: _mean_spread([epoch.train_loss for epoch in row.epochs])),
        Column("validation loss", lambda row: _mean_spread([epoch.validation_loss for epoch in row.epochs])),
        Column("token accuracy", _token_accuracy),
        Column("time", lambda row: words.seconds(fmean(epoch.seconds for epoch in row.epochs))),
    ]
    spread = "; mean over seeds, ± is half their range" if num_seeds > 1 else ""
    caption = f"Losses in nats per token, accuracy on validation{spread}"
    blocks: list[Block] = [make_table(rows, columns, caption, grouped=True)]
    names = ("train_tokens", "train_seconds", "train_tokens_per_second", "wall_seconds", "peak_memory_bytes")
    totals = [VARIANT, *(cost_column(findings, name) for name in names)]
    if group.baseline is not None and Subject(group.baseline) in trained:
        totals.append(_speed_column(findings, group.baseline))
    caption = "Totals; training is optimizer steps only, tokens are real tokens without padding, all in all includes evaluation"
    blocks.append(make_table(trained, totals, caption))
    blocks += _told(findings.facts.groups[group.base, group.dataset].training)
    blocks.append(Picture(f"figures/{curves_name(group)}", f"loss curves of {group.base} on {group.dataset}"))
    return Section("Training", blocks, level=3)


def _epoch_name(epoch: Epoch) -> str:
    whole = math.isclose(epoch.end, epoch.number, abs_tol=1e-6)
    return str(epoch.number) if whole else f"{epoch.number} (ended at {epoch.end:.2f} epochs)"


def _mean_spread(values: Sequence[float | None]) -> str | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean = fmean(known)
    half = f" ± {(max(known) - min(known)) / 2:.{max(3, words.decimals(mean))}f}" if len(known) > 1 else ""
    return f"{words.number(mean)}{half}"


def _token_accuracy(row: _EpochRow) -> str | None:
    known = [epoch.validation_token_accuracy for epoch in row.epochs if epoch.validation_token_accuracy is not None]
    return words.share(fmean(known)) if known else None


def _speed_column(findings: Findings, reference: Entrant) -> Column[Subject]:
    name = "train_tokens_per_second"

    def cell(row: Subject) -> str | None:
        if row.entrant == reference:
            return "1 (baseline)"
        ratio = findings.ratios.get((name, row.entrant, reference))
        if ratio is None:
            both = all(name in findings.costs.get(entrant, {}) for entrant in (row.entrant, reference))
            return "other machine" if both else None
        return words.times(ratio.value) + ("" if ratio.clear else " (not clear)")

    return Column(f"speed against {reference.variant}", cell)


def tuning_section(findings: Findings, group: Group) -> Section | None:
    """Every trial of the tuned variants with what it was judged by."""
    here = [one for one in findings.results.tunings if (one.base, one.dataset) == (group.base, group.dataset)]
    if not here:
        return None
    what, best = _JUDGED[findings.study.train.chosen_by]

    def num_steps(row: tuple[Tuning, Trial]) -> str | None:
        _, steps = trial_cost(row[1])
        return words.count(steps) if steps else None

    def training(row: tuple[Tuning, Trial]) -> str | None:
        seconds, steps = trial_cost(row[1])
        return words.seconds(seconds) if steps else None

    def state(row: tuple[Tuning, Trial]) -> str:
        tuning, trial = row
        if tuning.chosen is not None and trial is tuning.trials[tuning.chosen]:
            return "chosen"
        return "diverged" if trial.divergence else "" if trial.methods else "has not run"

    columns = [
        Column[tuple[Tuning, Trial]]("variant", lambda row: row[0].variant),
        Column("trial", lambda row: row[1].name),
        Column(what, lambda row: None if row[1].score is None else words.number(row[1].score, 4)),
        Column("steps", num_steps),
        Column("training", training),
        Column("", state),
    ]
    caption = f"Trials, all with seed {here[0].seed}; the {best} {what} is chosen and trained with every seed"
    rows = [(tuning, trial) for tuning in here for trial in tuning.trials]
    told = _told(findings.facts.groups[group.base, group.dataset].tuning)
    return Section("Tuning", [make_table(rows, columns, caption, words=2, grouped=True), *told], level=3)


def blocks_section(findings: Findings, group: Group) -> Section | None:
    """Which blocks a measured choice removed, and how sure it is: every set that was tried, against the one that was chosen."""
    blocks, interval = list[Block](), interval_name(findings)
    choices = findings.block_choices[group.base, group.dataset]
    facts = findings.facts.groups[group.base, group.dataset].blocks
    for choice, fact in itertools.zip_longest(choices, facts):
        reference = next(score for score in choice.scores if score.is_reference)
        whole = [score for score in choice.scores if not score.removed]
        tried = [score for score in choice.scores if score.removed]
        columns: list[Column[BlockScore]] = [
            Column("without", lambda row: _blocks(row.removed)),
            Column(
                f"{_BLOCK_SCORES[choice.criterion]} ({interval})",
                lambda row: words.with_interval(row.mean, row.low, row.high),
            ),
            Column(f"more than {_blocks(reference.removed)} ({interval})", _more),
            Column("", lambda row: "removed" if row.is_removed else ""),
        ]
        told = f"the best {_SETS_SHOWN} of {len(tried)}" if len(tried) > _SETS_SHOWN else f"all {len(tried)}"
        caption = f"Sets of blocks by {choice.criterion}, {told}; an interval around 0: this text does not tell the two apart"
        blocks += [] if fact is None else [Paragraph(fact)]
        blocks.append(make_table([*whole, *tried[:_SETS_SHOWN]], columns, caption))
    return Section("Removed blocks", blocks, level=3) if blocks else None


def _blocks(removed: Sequence[int]) -> str:
    if not removed:
        return "no block"
    return f"{'block' if len(removed) == 1 else 'blocks'} {words.listed([str(index) for index in removed])}"


def _more(row: BlockScore) -> str | None:
    places = max(words.decimals(abs(row.more)), 3)
    return None if row.is_reference else signed(row.more, row.more_low, row.more_high, places)


def other_section(findings: Findings, group: Group) -> Section | None:
    """What evaluations without a section of their own have measured: their metrics with every variant."""
    blocks: list[Block] = []
    timed = timed_evaluations(findings.study)
    for name, use in findings.study.evaluations_of(group.dataset).items():
        if use.row.section is not None:
            continue
        costs = [cost_name(row.name, name, timed) for row in use.row.metrics if row.cost]
        if any(cost in findings.costs.get(entrant, {}) for cost in costs for entrant in group.entrants):
            columns = [VARIANT, *(cost_column(findings, cost, optional=True) for cost in costs)]
            blocks.append(make_table(subjects(group), columns, f"{name}, means over seeds"))
        quantities = [quantity for quantity in group.quantities if quantity.task == name and not quantity.slice]
        for split, of_split in itertools.groupby(sorted(quantities, key=lambda q: q.split), key=lambda q: q.split):
            columns = [VARIANT, *(estimate_column(findings, quantity) for quantity in of_split)]
            caption = f"{name}{f', {split}' if split else ''}, {interval_name(findings)}s"
            blocks.append(make_table(subjects(group), columns, caption))
    return Section("Other measurements", blocks, level=3) if blocks else None


class _AuditRow(NamedTuple):
    dataset: str
    finding: str
    task: str
    """Of a finding that is of one task."""
    by_split: Mapping[str, Mapping[str, Any]]


def audit_section(findings: Findings) -> Section | None:
    """What cleaning did and what the audit found, dataset by dataset."""
    rows, order = list[_AuditRow](), list(FINDINGS)
    for dataset, of_dataset in findings.audit.items():
        kinds: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
        for row in of_dataset:
            if row["finding"] in order:
                kind = (row["finding"], row["detail"] if row["finding"] == "answer_in_prompt" else "")
                kinds.setdefault(kind, {})[row["split"]] = row
        for kind in sorted(kinds, key=lambda kind: (order.index(kind[0]), kind[1])):
            rows.append(_AuditRow(dataset, *kind, kinds[kind]))

    def in_split(split: str) -> Column[_AuditRow]:
        def cell(row: _AuditRow) -> str:
            found = row.by_split.get(split)
            return "0" if found is None else f"{words.count(found['count'])} ({words.share(found['count'] / found['of'])})"

        return Column(split, cell)

    def examples(row: _AuditRow) -> str:
        numbers = [str(number) for found in row.by_split.values() for number in found["records"]]
        return ", ".join(numbers[:_RECORDS_SHOWN])

    columns = [
        Column[_AuditRow]("data", lambda row: row.dataset),
        Column("records with", lambda row: FINDINGS[row.finding] + (f" ({row.task})" if row.task else "")),
        *map(in_split, SPLITS),
        Column("for example", examples),
    ]
    caption = "Audit before training; `audit.csv` names more records"
    blocks = [make_table(rows, columns, caption, words=2, grouped=True)] if rows else []
    blocks += _told(findings.facts.audit)
    return Section("Audit of the data", blocks) if blocks else None


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
    names = [name for name, use in findings.study.evaluations_of(group.dataset).items() if use.kind == TASKS]
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


_ORDER: tuple[SectionMaker, ...] = (
    held_out_section,
    comparisons_section,
    questions_section,
    tasks_section,
    harness_section,
    forgetting_section,
    ratings_section,
    cost_section,
    training_section,
    tuning_section,
    blocks_section,
)
"""Sections of a group; those of others come behind them."""
_LAST: tuple[SectionMaker, ...] = (generations_section,)

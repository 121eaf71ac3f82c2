"""The report: what stands in it and in which order.

What was found comes before how it came about: conclusions, then qualities, comparisons and costs, then how variants were
trained, tuned and pruned, then what stands in the data; and long texts come last. A section of results is made by a function of
the findings and a group, which returns None where there is nothing to show. That of an evaluation is named by its row; what a
row without one has measured is shown as a table. Pictures that were not drawn, and those of a whole dataset after its first
base, are left out.
"""

import itertools

from paretune.analysis.compare import NO_DIFFERENCE, Difference
from paretune.analysis.costs import cost_name, timed_evaluations
from paretune.analysis.findings import Fact, Findings, Group
from paretune.report import words
from paretune.report.blocks import Block, Bullets, Document, Paragraph, Picture, Section, Table, as_blocks
from paretune.report.figures import PARETO_NAME
from paretune.report.maps import BEST_NAME, grids_name
from paretune.report.tables import (
    VARIANT,
    Column,
    Subject,
    audit_table,
    cost_column,
    data_table,
    estimate_cell,
    estimate_column,
    interval_name,
    make_table,
    subjects,
    variants_table,
)
from paretune.study.registry import load_function, metric_of

_OF_GROUP = (
    "paretune.report.qualities:held_out_section",
    "paretune.report.qualities:comparisons_section",
    "paretune.report.qualities:questions_section",
    "paretune.report.qualities:tasks_section",
    "paretune.report.qualities:harness_section",
    "paretune.report.qualities:forgetting_section",
    "paretune.report.qualities:ratings_section",
    "paretune.report.making:cost_section",
    "paretune.report.making:training_section",
    "paretune.report.making:tuning_section",
    "paretune.report.making:blocks_section",
)
"""Sections of results, `module:function`; those of evaluations of others come behind them."""
_TEXTS = "paretune.report.qualities:generations_section"
"""Comes last."""
_MOST_TOLD = 5
"""Of what was found beside the answer; the rest begins the results."""
_COSTS_SHOWN = 2
_GRIDS = "what the variants are ranked by, by the values of their grids"
_SHORT = {NO_DIFFERENCE: "not told apart"}
"""Verdicts in a narrow column."""


def build_report(findings: Findings, figures: frozenset[str]) -> Document:
    """`figures` are the names of the files that were drawn."""
    many, facts = len(findings.groups) > 1, findings.facts
    caveats = [fact for fact in (*facts.incomplete, *facts.remarks) if fact not in facts.answer]
    sections: list[Section | None] = [
        Section("In short", _in_short(findings)),
        Section("Caveats", as_blocks(caveats)) if caveats else None,
        *(_across_section(findings, dataset) for dataset in findings.study.data),
        Section("What was compared", _compared(findings)),
    ]
    for group in findings.groups:
        told = _told_of(findings, group)
        results = [*as_blocks(told if many else told[_MOST_TOLD:]), Picture(f"figures/{grids_name(findings, group)}", _GRIDS)]
        sections.append(Section(f"{group.base} on {group.dataset}" if many else "Results", results))
        rows = [use.row for use in findings.study.evaluations_of(group.dataset).values()]
        named = dict.fromkeys((*_OF_GROUP, *(row.section for row in rows if row.section not in (None, _TEXTS))))
        sections += [load_function(address)(findings, group) for address in named]
        sections.append(_other_section(findings, group))
    audit = [*filter(None, [audit_table(findings, findings.audit)]), *as_blocks(findings.facts.audit)]
    sections.append(Section("Audit of the data", audit) if audit else None)
    sections += [load_function(_TEXTS)(findings, group) for group in findings.groups]
    sections.append(Section("Notes", as_blocks(findings.facts.notes)))
    left, shown = set(figures), []
    for section in filter(None, sections):
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


def _in_short(findings: Findings) -> list[Block]:
    """The answer, a table, and of a single base on a single dataset what weighs most beside it."""
    facts = findings.facts
    blocks: list[Block] = [Paragraph(fact) for fact in facts.answer]
    for group in findings.groups if len(findings.groups) == 1 else ():
        blocks += [_overview(findings, group), *as_blocks(_told_of(findings, group)[:_MOST_TOLD])]
    blocks.append(Picture(f"figures/{PARETO_NAME}", "quality against each cost, with the Pareto frontier"))
    return [*blocks, *(Paragraph(fact) for fact in facts.use)]


def _told_of(findings: Findings, group: Group) -> list[Fact]:
    """What is told of a group beside the answer, in the order of its weight for a decision."""
    told = findings.facts.groups[group.base, group.dataset]
    return [fact for fact in (*told.recommendation, *told.findings) if fact not in findings.facts.answer]


def _overview(findings: Findings, group: Group) -> Table:
    """Every variant in what ranks it, against the baseline, and in the first costs that are weighed."""
    quantity, choice = group.headline, group.choice
    columns: list[Column[Subject]] = [VARIANT]
    if quantity is not None and choice is not None:
        shown = findings.shown(choice.best, quantity)
        columns.append(estimate_column(findings, shown, interval=False))
        if group.baseline is not None:

            def against(row: Subject) -> Difference | None:
                return findings.told(row.entrant, group.baseline, quantity)

            def change(row: Subject) -> str | None:
                difference = against(row)
                return None if difference is None else words.amount(difference.quantity, difference.mean, signed=True)

            def verdict(row: Subject) -> str | None:
                difference = against(row)
                return None if difference is None else _SHORT.get(difference.verdict, difference.verdict)

            columns += [Column(f"against {group.baseline.variant}", change), Column("verdict", verdict)]
        columns += [cost_column(findings, cost, optional=True) for cost in choice.costs[:_COSTS_SHOWN]]
    return make_table(subjects(group), columns)


def _across_section(findings: Findings, dataset: str) -> Section | None:
    """The best variants of several bases on one dataset against each other, and all of them in one table."""
    told = findings.facts.across.get(dataset)
    if told is None:
        return None
    of_bases, *tokenizers = as_blocks(told)
    picture = Picture(f"figures/{BEST_NAME}", "the best variant of every base on every dataset")
    return Section(f"Bases on {dataset}", [of_bases, _across_table(findings, dataset), picture, *tokenizers])


def _across_table(findings: Findings, dataset: str) -> Table:
    """All variants of all bases on one dataset in what ranks them, the best first."""
    groups = [group for group in findings.groups if group.dataset == dataset]
    quantity = next(group.headline for group in groups if group.headline is not None)
    means = {
        entrant: estimate.mean
        for group in groups
        for entrant in group.entrants
        if group.headline == quantity and (estimate := findings.estimate(entrant, quantity)) is not None
    }
    ranked = sorted(means, key=lambda entrant: -metric_of(quantity.metric).sign * means[entrant])
    columns: list[Column[Subject]] = [
        Column("base and variant", lambda row: f"{row.entrant.base} {row.entrant.variant}"),
        Column(
            f"{metric_of(quantity.metric).column} ({interval_name(findings)})",
            lambda row: estimate_cell(findings, row.entrant, quantity),
        ),
        cost_column(findings, "model_bytes"),
    ]
    return make_table(map(Subject, ranked), columns, f"Best first, {quantity.split or quantity.task}")


def _compared(findings: Findings) -> list[Block]:
    facts = findings.facts
    blocks = [*as_blocks(facts.setup), variants_table(findings.study.variants)]
    if findings.results.data:
        blocks += [data_table(findings, findings.results.data), *as_blocks(facts.data)]
    deviations = as_blocks(facts.deviations)
    if any(isinstance(block, Bullets) for block in deviations):
        blocks.append(Paragraph("Deviations:", introduces=True))
    return [*blocks, *deviations]


def _other_section(findings: Findings, group: Group) -> Section | None:
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

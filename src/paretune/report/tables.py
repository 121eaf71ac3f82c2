"""The tables of a report: one builder, and the columns that they are declared with.

A table is its rows (what each row is about) and its columns (a heading, and a function of the row that makes the cell). What a
figure looks like follows from the row of its metric; the builder puts a dash where there is none.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from paretune.analysis.compare import Difference, Estimate
from paretune.analysis.costs import Cost
from paretune.analysis.findings import HARNESS, Findings, Group
from paretune.analysis.scores import Entrant, Quantity
from paretune.report import words
from paretune.report.blocks import Table
from paretune.study.data import SPLITS
from paretune.study.findings import FINDINGS
from paretune.study.registry import metric_of
from paretune.study.variants import Variant

Row = TypeVar("Row")
UNKNOWN = words.UNKNOWN
_TEXTS: Mapping[str, Callable[[float], str]] = {"bytes": words.size, "seconds": words.seconds, "count": words.count}
"""How costs are written by their unit; others are measures that scatter, shown with their spread over seeds."""
_RECORDS_SHOWN = 3
"""Numbers of records in the table of an audit."""


@dataclass(frozen=True)
class Column(Generic[Row]):
    heading: str
    cell: Callable[[Row], str | None]
    """None where there is nothing: a dash."""
    optional: bool = False
    """Left out where no row has a cell."""


class Subject(NamedTuple):
    """What most rows are about: a variant, in all of its examples or a slice of them."""

    entrant: Entrant
    slice: str = ""


VARIANT: Column[Subject] = Column("variant", lambda row: row.entrant.variant)
SLICE: Column[Subject] = Column("slice", lambda row: row.slice)


def make_table(
    rows: Iterable[Row], columns: Sequence[Column[Row]], caption: str = "", *, words: int = 1, grouped: bool = False
) -> Table:
    """The cells of every row; `words` and `grouped` are those of the table."""
    rows = list(rows)
    cells = {column: [column.cell(row) for row in rows] for column in columns}
    shown = [column for column in columns if not column.optional or any(cell is not None for cell in cells[column])]
    texts = [[cells[column][index] for column in shown] for index in range(len(rows))]
    dashed = [[UNKNOWN if text is None else text for text in row] for row in texts]
    return Table(tuple(column.heading for column in shown), dashed, caption, words, grouped)


def subjects(group: Group, slices: Sequence[str] = ("",)) -> list[Subject]:
    """Every variant of a group, slice by slice."""
    return [Subject(entrant, part) for part in slices for entrant in group.entrants]


def interval_name(findings: Findings) -> str:
    """`95 % interval`."""
    return f"{100 * findings.level:g} % interval"


def estimate_text(metric: str, estimate: Estimate, *, interval: bool = True) -> str:
    """`38.6 % (36.1 to 41.2 %)`, `0.412 (0.398 to 0.427)` or `1.53 (1.51 to 1.56)`, by what the metric is.

    Without the interval for what is compared with nothing, and where there are too few documents for one.
    """
    row = metric_of(metric)
    if not row.better:
        return words.share(estimate.mean) if row.unit == "share" else words.number(estimate.mean, 2)
    interval = interval and not math.isnan(estimate.low)
    if row.unit == "share":
        ends = f" ({100 * estimate.low:.1f} to {100 * estimate.high:.1f} %)" if interval else ""
        return words.share(estimate.mean) + ends
    if row.width == 1:
        ends = f" ({estimate.low:.3f} to {estimate.high:.3f})" if interval else ""
        return f"{estimate.mean:.3f}{ends}"
    return words.with_interval(estimate.mean, estimate.low, estimate.high) if interval else words.number(estimate.mean)


def mark_of(findings: Findings, entrant: Entrant, quantity: Quantity) -> str:
    """What stands behind a figure of which some texts stand in the training data, or whose bytes and tokens do not match.

    Tasks of lm-evaluation-harness are looked up under the evaluation that names them, or the first that could hold one as the
    member of a group.
    """
    study, task = findings.study, quantity.task
    if task not in study.evaluate and task not in study.data[entrant.dataset].scored:
        uses = {name: use.config.model_dump()["tasks"] for name, use in study.evaluate.items() if use.kind == HARNESS}
        task = next((name for name, tasks in uses.items() if task in tasks), next(iter(uses), task))
    lossy = findings.marks.lossy(entrant) if quantity.metric == "bits_per_byte" else ""
    return findings.marks.of(entrant, task, quantity.split) + lossy


def estimate_cell(findings: Findings, entrant: Entrant, quantity: Quantity, *, interval: bool = True) -> str | None:
    estimate = findings.estimate(entrant, quantity)
    if estimate is None:
        return None
    return estimate_text(quantity.metric, estimate, interval=interval) + mark_of(findings, entrant, quantity)


def estimate_column(
    findings: Findings, quantity: Quantity, heading: str | None = None, *, interval: bool = True
) -> Column[Subject]:
    """A quantity of every variant, or of the slice that a row is about."""

    def cell(row: Subject) -> str | None:
        return estimate_cell(findings, row.entrant, quantity._replace(slice=row.slice or quantity.slice), interval=interval)

    return Column(metric_of(quantity.metric).column if heading is None else heading, cell)


def answers_column(findings: Findings, quantity: Quantity, *, interval: bool = True) -> Column[Subject]:
    """Right answers: `4 of 10 (17 to 69 %)`, or of several seeds `mean 3.5 of 10 (14 to 65 %)`."""

    def cell(row: Subject) -> str | None:
        estimate = findings.estimate(row.entrant, quantity._replace(slice=row.slice))
        if estimate is None:
            return None
        right = words.part_of_mean(estimate.mean, estimate.n_examples) + mark_of(findings, row.entrant, quantity)
        if not interval or math.isnan(estimate.low):
            return right
        places = 0 if estimate.n_examples < 200 else 1
        return f"{right} ({100 * estimate.low:.{places}f} to {100 * estimate.high:.{places}f} %)"

    return Column(metric_of(quantity.metric).column, cell)


def seeds_column(findings: Findings, quantity: Quantity) -> Column[Subject]:
    """Half the distance between the lowest and the highest seed: `± 0.14`."""

    def cell(row: Subject) -> str | None:
        estimate = findings.estimate(row.entrant, quantity)
        return None if estimate is None or estimate.spread is None else f"± {words.number(estimate.spread, 2)}"

    return Column(f"seeds, {metric_of(quantity.metric).column}", cell)


def cost_column(findings: Findings, name: str, *, mark: str = "", optional: bool = False) -> Column[Subject]:
    """A cost by its unit, the mean over seeds: `28.4 MB`, `812 ± 14`; `mark` goes behind the heading."""
    row, evaluation = metric_of(name), name.rpartition(".")[0]
    heading = f"{row.column}, {evaluation}" if evaluation else row.column

    def cell(subject: Subject) -> str | None:
        cost = findings.costs.get(subject.entrant, {}).get(name)
        return None if cost is None else cost_text(name, cost)

    return Column(f"{heading} {mark}".rstrip(), cell, optional)


def cost_text(name: str, cost: Cost) -> str:
    unit = metric_of(name).unit
    if unit in _TEXTS:
        return _TEXTS[unit](cost.mean)
    half = "" if len(cost.by_seed) == 1 else f" ± {words.number((cost.high - cost.low) / 2, 2)}"
    return f"{words.number(cost.mean)}{half}"


def signed(mean: float, low: float, high: float, places: int) -> str:
    """`+0.045 (+0.031 to +0.059)`; without an interval where there is none."""
    ends = f" ({low:+.{places}f} to {high:+.{places}f})" if math.isfinite(high - low) else ""
    return f"{mean:+.{places}f}{ends}"


def p_text(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def comparisons_table(differences: Sequence[Difference], level: str, caption: str) -> Table:
    """Differences with what they could have shown; the measure names the unit."""

    def measure(row: Difference) -> str:
        unit = words.unit(row.quantity)
        return f"{words.noun(row.quantity, str)}{f', {unit}' if unit else ''}"

    columns: list[Column[Difference]] = [
        Column("measure", measure),
        Column("variant", lambda row: row.variant.variant),
        Column("change", lambda row: words.bare_amount(row.quantity, row.mean, signed=True)),
        Column(level, lambda row: words.ends(row, bare=True)),
        Column("p", lambda row: p_text(row.p_adjusted)),
        Column("detectable", lambda row: words.detectable(row, bare=True) or None),
        Column("verdict", lambda row: row.verdict),
    ]
    return make_table(differences, columns, caption, words=2, grouped=True)


def noise_table(differences: Sequence[Difference], caption: str) -> Table:
    """Standard errors of differences, by what they come from."""
    columns: list[Column[Difference]] = [
        Column("variant", lambda row: row.variant.variant),
        Column("difference", lambda row: f"{row.mean:+.{words.decimals(row.mean, 2)}f}"),
        Column("error over documents", lambda row: words.number(row.errors.documents, 2)),
        Column("error over seeds", lambda row: words.number(row.errors.seeds, 2)),
        Column("seeds' share", lambda row: f"{100 * (row.errors.seeds / row.errors.total) ** 2:.0f} %"),
        Column("seeds", lambda row: str(row.n_seeds)),
    ]
    return make_table(differences, columns, caption)


def variants_table(variants: Mapping[str, Variant]) -> Table:
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


def data_table(findings: Findings, names: Iterable[str]) -> Table:
    """What of the datasets called `names` is trained and scored on, base by base where they differ: tokenizers make
    different texts too long.

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

    def num_tokens(base: str, what: str) -> Column[tuple[str, str]]:
        def cell(row: tuple[str, str]) -> str | None:
            record = tokens.get((base, row[0]))
            if record is None:
                return None
            learned = record.metrics.get(f"tokens_{row[1]}", 0)
            return words.count(record.metrics.get(f"read_tokens_{row[1]}", learned) if what == "tokens read" else learned)

        return Column(f"{what} ({base})" if len(bases) > 1 else what, cell)

    # All of a text is learned, of a task its completion alone.
    completes = any(dataset.completes for dataset in findings.study.data.values())
    columns = [
        Column[tuple[str, str]]("data", lambda row: row[0]),
        Column("split", lambda row: row[1]),
        *(Column(what, kept(what)) for what in ("documents", "examples", "bytes")),
        *(
            num_tokens(base, what)
            for base in bases
            for what in (("tokens read", "tokens learned") if completes else ("tokens",))
        ),
    ]
    known = all("kept_examples_train" in record.metrics for record in skipping.values())
    counted = "as trained and scored on" if known else "documents, examples and bytes before what is too long was left out"
    return make_table(itertools.product(names, SPLITS), columns, f"Data, {counted}", words=2, grouped=True)


class _AuditRow(NamedTuple):
    dataset: str
    finding: str
    task: str
    """Of a finding that is of one task."""
    by_split: Mapping[str, Mapping[str, Any]]


def audit_table(findings: Findings, names: Iterable[str]) -> Table | None:
    """What was found in the datasets called `names`; None for nothing."""
    rows, order = list[_AuditRow](), list(FINDINGS)
    for dataset, of_dataset in ((name, findings.audit[name]) for name in names if name in findings.audit):
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
    return make_table(rows, columns, caption, words=2, grouped=True) if rows else None

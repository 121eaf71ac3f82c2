"""What was found in the data and done about it: the section "Audit of the data", and audit.csv with the numbers of records."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from paretune.analysis import wording
from paretune.analysis.document import Block, Bullets, Section, Table
from paretune.analysis.measured import Measured
from paretune.pipeline.records import Record, read_lines
from paretune.study.data import MASKS, SPLITS
from paretune.study.findings import FINDINGS, proposed_clean

AUDIT_COLUMNS = ("dataset", "split", "finding", "detail", "count", "of", "records")
_RULES = {
    (
        "short",
        "long",
    ): "Far shorter, far longer: in logarithms 3 interquartile ranges beyond the quartiles (`audit.csv`: limits).",
    (
        "language",
    ): "In another language: told with 95 % certainty from the first 300 characters by py3langid, and rarer than 5 %.",
    ("answer_in_prompt",): "Answers in the prompt are as they should be where a task extracts; elsewhere they give it away.",
}
_SHOWN = 3
"""Numbers of records in the report."""


def audit_table(measured: Measured) -> pd.DataFrame:
    """One row a dataset, split and finding: AUDIT_COLUMNS; `records` are the numbers of the first twenty, from 1."""
    rows = [
        {"dataset": name, **row, "records": " ".join(map(str, row["records"]))}
        for name, record in measured.results.audit.items()
        for row in _findings(record)
    ]
    return pd.DataFrame(rows, columns=list(AUDIT_COLUMNS))


def audit_section(measured: Measured) -> Section | None:
    """What cleaning did and what the audit found, dataset by dataset; None where there is nothing to say."""
    found = {name: _findings(record) for name, record in measured.results.audit.items()}
    rows = [row for name, of_dataset in found.items() for row in _rows(name, of_dataset)]
    names = {row["finding"] for of_dataset in found.values() for row in of_dataset}
    blocks: list[Block] = []
    if rows:
        header = ("data", "records with", *SPLITS, "for example")
        blocks.append(Table(header, rows, "Audit before training; `audit.csv` names more records", words=2, grouped=True))
    said = [*_cleaned(measured), *(line for name in found for line in _labels(name, found[name]))]
    said += [text for about, text in _RULES.items() if names & set(about)]
    said += [f"Audit of {wording.code(name)}: nothing found." for name, of_dataset in found.items() if not of_dataset]
    for name, of_dataset in found.items():
        if (hint := proposed_clean({row["finding"] for row in of_dataset})) and not measured.study.data[name].clean.content:
            said.append(f"For {wording.code(name)}, {wording.code(f'clean: {{{hint}}}')} would change that.")
    blocks += [Bullets(said)] if said else []
    return Section("Audit of the data", blocks) if blocks else None


def _findings(record: Record) -> list[dict[str, Any]]:
    return read_lines(record.path / "audit.jsonl")


def _rows(dataset: str, findings: list[dict[str, Any]]) -> Iterator[list[str]]:
    """One for each kind of finding, and task where it is of one, with a cell for each split."""
    order = list(FINDINGS)
    tasks = {"answer_in_prompt"}
    kinds = {(row["finding"], row["detail"] if row["finding"] in tasks else "") for row in findings} - {("labels", "")}
    for name, task in sorted(kinds, key=lambda kind: (order.index(kind[0]), kind[1])):
        of_kind = {r["split"]: r for r in findings if r["finding"] == name and (not task or r["detail"] == task)}
        cells = [_cell(of_kind[split]) if split in of_kind else "0" for split in SPLITS]
        first = [number for row in of_kind.values() for number in row["records"]][:_SHOWN]
        label = f"{FINDINGS[name]}{f' ({task})' if task else ''}"
        yield [dataset, label, *cells, ", ".join(map(str, first))]


def _cell(row: Mapping[str, Any]) -> str:
    return f"{wording.count(row['count'])} ({wording.share(row['count'] / row['of'])})"


def _labels(dataset: str, findings: list[dict[str, Any]]) -> Iterator[str]:
    for row in findings:
        if row["finding"] == "labels" and row["split"] == "train":
            task, _, told = row["detail"].partition(": ")
            where = f"{wording.code(task)} in {wording.code(dataset)}, train"
            yield f"Labels of {where}: {told} (most and fewest of {wording.count(row['of'])})."


def _cleaned(measured: Measured) -> Iterator[str]:
    for name, record in measured.results.data.items():
        metrics, done = record.metrics, []
        if fixed := metrics.get("fixed"):
            done.append(f"encoding repaired in {wording.plural(fixed, 'record')}")
        masks = [(kind, n) for kind in MASKS if (n := metrics.get(f"masked_{kind}"))]
        done += [wording.code(f"[{kind.upper()}]") + f" written {wording.plural(n, 'time')}" for kind, n in masks]
        if done:
            yield f"Cleaned {wording.code(name)}: {', '.join(done)}."

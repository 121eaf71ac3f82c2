import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from paretune.analysis.facts import find
from paretune.analysis.setup import AuditClean, CleaningProposed, DataCleaned, LabelsCounted
from paretune.pipeline.records import Results
from paretune.report.blocks import Bullets, Section, Table
from paretune.report.outputs import write_outputs
from paretune.report.sections import build_report
from paretune.study.data import Clean
from paretune.study.findings import proposed_clean
from tests.analysis.synthetic import Shape, make_results

SMALL = Shape(documents=12, epochs=2)


def row(split: str, finding: str, count: int, of: int, records: list[int], detail: str = "") -> dict[str, Any]:
    return {"split": split, "finding": finding, "count": count, "of": of, "records": records, "detail": detail}


FINDINGS = [
    row("train", "email", 2, 100, [7, 31]),
    row("test", "email", 1, 10, [44]),
    row("train", "encoding", 1, 100, [9]),
    row("train", "long", 1, 100, [3], "over 9,000 characters"),
    row("train", "answer_in_prompt", 50, 100, [1, 2, 3, 4], "title"),
    row("train", "answer_in_prompt", 3, 100, [5], "tags"),
    row("train", "labels", 60, 100, [], "type: 2 labels, `a` 60, `b` 40"),
]


def results(folder: Path, findings: list[dict[str, Any]], **metrics: int) -> Results:
    made = make_results(folder, SMALL)
    (name, data), *_ = made.data.items()
    place = folder / "audit"
    place.mkdir()
    (place / "audit.jsonl").write_text("".join(json.dumps(each) + "\n" for each in findings), encoding="utf-8")
    audit = replace(data, kind="audit", metrics={}, path=place)
    return replace(made, data={name: replace(data, metrics=dict(data.metrics) | metrics)}, audit={name: audit})


def section(found: Results) -> Section | None:
    report = build_report(find(found), frozenset())
    return next((section for section in report.sections if section.title == "Audit of the data"), None)


def test_only_what_was_found_has_a_row(tmp_path: Path) -> None:
    found = section(results(tmp_path, FINDINGS))
    assert found is not None
    table, told = found.blocks
    assert isinstance(table, Table)
    assert isinstance(told, Bullets)
    assert [row[1] for row in table.rows] == [
        *("damaged encoding", "mail addresses", "far longer than most"),
        *("answer stands in the prompt (tags)", "answer stands in the prompt (title)"),
    ]
    assert table.rows[1][2:] == ["2 (2.0 %)", "0", "1 (10.0 %)", "7, 31, 44"]
    assert table.rows[4][-1] == "1, 2, 3"
    labels, *_ = (fact for fact in told.items if isinstance(fact, LabelsCounted))
    assert (labels.task, labels.counts, labels.num_records) == ("type", "2 labels, `a` 60, `b` 40", 100)
    assert CleaningProposed("news", "encoding: fix, mask: [email]") in told.items


def test_what_cleaning_did_is_told(tmp_path: Path) -> None:
    found = section(results(tmp_path, [], fixed=3, masked_email=1, masked_phone=1200, records_duplicate=4, records_unsafe=2))
    assert found is not None
    (told,) = found.blocks
    assert isinstance(told, Bullets)
    assert DataCleaned("news", 3, (("email", 1), ("phone", 1200))) in told.items
    assert AuditClean("news") in told.items


def test_nothing_is_said_of_data_that_was_not_audited(tmp_path: Path) -> None:
    assert section(make_results(tmp_path, SMALL)) is None


def test_audit_csv_names_the_records(tmp_path: Path) -> None:
    write_outputs(results(tmp_path, FINDINGS), tmp_path / "out", figures=False)
    table = pd.read_csv(tmp_path / "out" / "audit.csv")
    assert list(table.columns) == ["dataset", "split", "finding", "detail", "count", "of", "records"]
    assert table[table.finding == "email"].records.tolist() == ["7 31", "44"]
    assert len(table) == len(FINDINGS)
    assert "## Audit of the data" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_a_proposal_names_what_deals_with_the_findings() -> None:
    names = {"control", "phone", "url", "duplicate", "language"}
    assert proposed_clean(names) == "encoding: fix, mask: [url, phone], drop: [duplicate]"
    assert proposed_clean({"long"}) == ""
    assert Clean().content == {}

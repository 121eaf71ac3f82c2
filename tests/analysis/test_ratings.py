"""Ratings in the report and the files: means, raters and agreement, and no verdict where raters do not agree."""

import io
from pathlib import Path

import pandas as pd

from paretune.analysis.compare import WITHHELD
from paretune.analysis.facts import find
from paretune.pipeline.records import Results
from paretune.report.blocks import Paragraph, Section, Table
from paretune.report.outputs import csv_tables
from paretune.report.qualities import comparisons_section, ratings_section
from tests.analysis.test_answers import OF_JUDGE, OF_PEOPLE, PROMPTS, fair, mixed, rated


def section_of(results: Results) -> Section:
    findings = find(results)
    section = ratings_section(findings, findings.groups[0])
    assert section is not None
    return section


def test_the_section_shows_means_raters_and_agreement(tmp_path: Path) -> None:
    section = section_of(rated(tmp_path, ratings=fair))
    means, slices, agreement = (block for block in section.blocks if isinstance(block, Table))
    assert means.rows[0][0] == "base"
    assert means.rows[0][1].startswith("1.55 (")
    assert "by anna and ben: 60 ratings of each variant" in means.caption
    assert {row[0] for row in slices.rows} == {"rater: anna", "rater: ben"}
    assert [row[0] for row in agreement.rows] == ["the 2 raters", "anna and ben"]
    assert agreement.rows[1][1].startswith("kappa 0.9")


def test_a_judge_is_shown_with_its_second_look(tmp_path: Path) -> None:
    section = section_of(rated(tmp_path, OF_PEOPLE + OF_JUDGE, ratings=fair, judge=mixed))
    rows = {row[0]: row for block in section.blocks if isinstance(block, Table) for row in block.rows}
    assert rows["the judge and people"][1].startswith("alpha 0.9")
    assert rows["judge with a second look"][1] == "alpha 1.00, 1.00 to 1.00, 120 texts"
    assert float(rows["judge with a second look"][2].split()[1].rstrip(",")) < 0.3


def test_what_nobody_else_rated_has_no_agreement(tmp_path: Path) -> None:
    rows = [row for block in section_of(rated(tmp_path, OF_JUDGE, judge=fair)).blocks if isinstance(block, Table)
            for row in block.rows]  # fmt: skip
    assert ["of raters", "-", "-"] in rows


def test_the_files_hold_the_figures_and_no_verdict_that_is_withheld(tmp_path: Path) -> None:
    findings = find(rated(tmp_path, ratings=mixed))
    files = {name: pd.read_csv(io.StringIO(text), keep_default_na=False) for name, text in csv_tables(findings).items()}
    verdicts = files["comparisons"].query("task == 'ratings'").groupby("metric")["verdict"].unique()
    assert set(verdicts["relevance"]) == {WITHHELD}
    assert WITHHELD not in verdicts["coherence"]
    means = files["estimates"].query("task == 'ratings' and metric == 'coherence'").set_index(["variant", "slice"])
    assert means.loc[("base", ""), ["n_examples", "n_documents"]].astype(int).tolist() == [60, 30]
    assert [means.loc[("base", part)]["mean"] for part in ("", "rater: ben")] == [1.55, 1.6]
    section = comparisons_section(findings, findings.groups[0])
    assert section is not None
    measures = {row[0] for block in section.blocks if isinstance(block, Table) for row in block.rows}
    assert "coherence on ratings" in measures
    assert "relevance on ratings" not in measures


def test_what_is_missing_is_counted(tmp_path: Path) -> None:
    results = rated(
        tmp_path, sheet=4 * PROMPTS, ratings=lambda *asked: None if asked[1] == 0 and asked[2] == "ben" else fair(*asked)
    )
    told = [block.text for block in section_of(results).blocks if isinstance(block, Paragraph)]
    assert told[0] == "8 ratings of 480 missing: left empty, or no rating after several tries."


def test_a_study_without_ratings_has_no_section(tmp_path: Path) -> None:
    findings = find(rated(tmp_path, ""))
    assert ratings_section(findings, findings.groups[0]) is None

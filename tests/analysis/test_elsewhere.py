"""What the report says of forgetting, held against the comparison with the untouched base."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from paretune.analysis.deviations import marks_of
from paretune.analysis.elsewhere import forgetting_section, forgetting_sentences
from paretune.analysis.measured import Measured, measure
from paretune.analysis.render import as_markdown
from paretune.analysis.report import build_report
from tests.analysis.synthetic import VARIANTS, Shape, make_results, write_scores

RISE = {"base": 0.0, "full": 0.4, "original": -0.1}
"""True forgetting in bits per byte."""


def study(root: Path, documents: int) -> Measured:
    """Three variants of two seeds, scored on other text; seeds of a trained variant lie 0.01 bits apart."""
    extra, rng = "  forgetting: {path: other.txt}\n", np.random.default_rng(0)
    variants = {name: VARIANTS[name] for name in RISE}
    results = make_results(root, Shape(variants, documents=12, epochs=1, evaluations=("perplexity",), extra=extra))
    before, cells = 2.5 + rng.normal(0, 0.3, documents), []
    for index, cell in enumerate(results.cells):
        record = replace(cell.evaluations["size"], path=root / f"forgetting-{index}")
        record.path.mkdir()
        rise = np.full(documents, RISE[cell.variant])
        rise += 0 if cell.seed is None else rng.normal(0.01 * cell.seed, 0.02, documents)
        rows = [
            {"split": "", "document": str(one), "example": str(one), "weight": 100.0, "metric": metric, "value": value}
            for one in range(documents)
            for metric, value in (("bits_per_byte", before[one] + rise[one]), ("forgetting", rise[one]))
            if metric == "bits_per_byte" or cell.seed is not None
        ]
        write_scores(record.path, rows)
        cells.append(replace(cell, evaluations={**cell.evaluations, "forgetting": record}))
    return measure(replace(results, cells=tuple(cells)))


def test_what_is_forgotten_is_told_with_its_interval(tmp_path: Path) -> None:
    measured = study(tmp_path, documents=20)
    told, kept = forgetting_sentences(measured, measured.groups[0])
    assert "`full` +0.4" in told
    assert "learned" in told
    assert "`original`" not in told
    assert kept == "No forgetting on `forgetting` is detected for `original`."


def test_few_documents_are_said_to_be_few_and_no_interval_is_made_up(tmp_path: Path) -> None:
    measured = study(tmp_path, documents=4)
    assert list(forgetting_sentences(measured, measured.groups[0])) == [
        "Forgetting on `forgetting`: 4 documents, too few to tell."
    ]
    section = forgetting_section(measured, measured.groups[0], marks_of(measured))
    assert section is not None
    assert {row[0]: "(" in row[3] for row in section.blocks[0].rows} == {"base": False, "full": False, "original": False}


def test_the_comparisons_do_not_tell_the_same_text_twice(tmp_path: Path) -> None:
    text = as_markdown(build_report(study(tmp_path, documents=8), frozenset()))
    assert "| bits per byte on forgetting | base |" in text
    assert "| forgetting on forgetting |" not in text

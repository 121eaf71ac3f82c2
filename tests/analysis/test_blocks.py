"""The report's table of measured choices: what was removed, against what, and how sure that is."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest

from paretune.analysis.caveats import BlocksChosen
from paretune.analysis.facts import find
from paretune.pipeline.records import Cell, Results
from paretune.report.blocks import Paragraph, Section, Table
from paretune.report.making import blocks_section
from paretune.report.render import as_text
from paretune.report.sections import build_report
from paretune.study.methods import PruneBlocks
from tests.analysis.synthetic import Shape, make_results


def is_measured(choose: str) -> bool:
    return PruneBlocks(count=1, choose=choose).is_measured


TRUE_LOSS = {(): 4.0, (0,): 6.0, (1,): 4.1, (2,): 4.11, (3,): 4.5}
DOCUMENTS = 30


def results_with_choice(
    root: Path, removed: Sequence[int] = (1,), losses: dict[tuple[int, ...], float] = TRUE_LOSS, **metrics: Any
) -> Results:
    """A study whose `reduced` chose blocks by loss: documents differ much, and the sets of blocks little."""
    results = make_results(root, Shape(documents=12, epochs=1, evaluations=("perplexity",)))
    rng = np.random.default_rng(0)
    tokens = rng.integers(100, 400, DOCUMENTS)
    of_document = rng.normal(0, 0.5, DOCUMENTS)
    rows = [
        {
            "removed": list(one),
            "document": f"d{document}",
            "sum": float(tokens[document] * (loss + of_document[document] + rng.normal(0, 0.1))),
            "tokens": int(tokens[document]),
        }
        for one, loss in losses.items()
        for document in range(DOCUMENTS)
    ]
    table = pd.DataFrame(rows)
    scores = [
        {"removed": list(one), "score": part["sum"].sum() / part["tokens"].sum()}
        for one in losses
        for part in [table[[tuple(entry) == one for entry in table["removed"]]]]
    ]
    told = {"block_scores": scores, "removed_blocks": list(removed), "blocks_before": 4, "tried": "all sets"}
    told |= {"calibration_tokens": int(tokens.sum()), "calibration_documents": DOCUMENTS}

    def with_choice(cell: Cell) -> Cell:
        if cell.variant != "reduced":
            return cell
        pruned, *rest = cell.methods
        table.to_parquet(shared / "block_scores.parquet")
        config = {"method": {"choose": "loss"} | metrics.get("method", {})}
        changed = replace(pruned, key="a choice", config=config, metrics=told | metrics, path=shared)
        return replace(cell, methods=(changed, *rest))

    shared = root / "choice"
    shared.mkdir()
    return replace(results, cells=tuple(with_choice(cell) for cell in results.cells))


def section_of(results: Results) -> Section:
    findings = find(results)
    section = blocks_section(findings, findings.groups[0])
    assert section is not None
    return section


def test_each_set_stands_against_the_chosen_one_with_a_paired_interval(tmp_path: Path) -> None:
    results = results_with_choice(tmp_path)
    told, table = section_of(results).blocks
    assert isinstance(told, Paragraph)
    assert isinstance(table, Table)
    assert isinstance(told.text, BlocksChosen)
    tokens = next(c for c in results.cells if c.variant == "reduced").methods[0].metrics["calibration_tokens"]
    choice = told.text.choice
    assert (choice.entrants, choice.removed, choice.num_blocks) == ((("reduced", None),), (1,), 4)
    assert (choice.criterion, choice.num_tokens, choice.num_documents) == ("loss", tokens, 30)
    assert [row[0] for row in table.rows] == ["no block", "block 1", "block 2", "block 3", "block 0"]
    assert [row[3] for row in table.rows] == ["", "removed", "", "", ""]
    assert table.rows[1][2] == "-"
    # Documents lie 0.5 apart, so the intervals of the figures overlap; the paired difference tells 3 from 1, and not 2 from 1.
    low, high = ends(table.rows[2][2])
    assert low < 0 < high
    low, high = ends(table.rows[3][2])
    assert 0.3 < low < high < 0.5
    low, high = ends(table.rows[1][1])
    assert high - low > 0.2


def ends(cell: str) -> tuple[float, float]:
    low, high = cell.split("(")[1].rstrip(")").split(" to ")
    return float(low), float(high)


def test_the_rows_are_the_sets_of_the_size_that_was_chosen(tmp_path: Path) -> None:
    pairs = {(i, j): 5.0 + 0.1 * i + 0.01 * j for i in range(8) for j in range(i + 1, 8)}
    section = section_of(results_with_choice(tmp_path, (0, 1), TRUE_LOSS | pairs))
    table = section.blocks[1]
    assert isinstance(table, Table)
    assert len(table.rows) == 1 + 16
    assert "the best 16 of 28" in table.caption
    assert {len(row[0].split(" and ")) for row in table.rows[1:]} == {2}


def test_several_blocks_by_influence_stand_against_the_worst_of_them(tmp_path: Path) -> None:
    influence = {(0,): 0.9, (1,): 0.1, (2,): 0.3, (3,): 0.6}
    results = results_with_choice(tmp_path, (1, 2), influence, method={"choose": "influence"}, tried="blocks")
    table = section_of(results).blocks[1]
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows if row[3]] == ["block 1", "block 2"]
    assert table.rows[1][2] == "-"
    assert "block influence" in table.header[1]


def test_a_choice_after_training_names_its_seed(tmp_path: Path) -> None:
    results = results_with_choice(tmp_path)
    cells = [
        replace(cell, methods=tuple(replace(one, key=f"{one.key} {cell.seed}") for one in cell.methods))
        for cell in results.cells
    ]
    blocks = section_of(replace(results, cells=tuple(cells))).blocks
    facts = [block.text for block in blocks if isinstance(block, Paragraph)]
    assert [fact.choice.entrants for fact in facts if isinstance(fact, BlocksChosen)] == [(("reduced", 0),), (("reduced", 1),)]


@pytest.mark.parametrize("documents", [1, 30])
def test_it_stands_in_the_report(documents: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "DOCUMENTS", documents)
    text = as_text(build_report(find(results_with_choice(tmp_path)), frozenset()))
    assert "Removed blocks\n" in text
    assert "nan" not in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("choose", [c for c in get_args(PruneBlocks.model_fields["choose"].annotation) if is_measured(c)])
def test_every_measured_choice_has_its_table(choose: str, tmp_path: Path) -> None:
    losses = {removed: loss for removed, loss in TRUE_LOSS.items() if removed or choose == "loss"}
    found = find(results_with_choice(tmp_path, losses=losses, method={"choose": choose}))
    assert "Removed blocks" in as_text(build_report(found, frozenset()))


def test_a_study_without_measured_choices_has_no_such_section(tmp_path: Path) -> None:
    findings = find(make_results(tmp_path, Shape(documents=12, epochs=1, evaluations=("perplexity",))))
    assert blocks_section(findings, findings.groups[0]) is None


def test_what_makes_up_for_blocks_stands_below(tmp_path: Path) -> None:
    seams = [{"removed": [1], "ridge": 0.1, "explained": 0.343}, {"removed": [3], "ridge": None, "explained": 0.0}]
    found = find(results_with_choice(tmp_path, method={"choose": "loss", "seam": "linear"}, seams=seams))
    text = " ".join(as_text(build_report(found, frozenset())).split())
    assert "The MLP before block 1 of `reduced` makes up for 34.3 % of what was added there (`seam: linear`" in text
    assert "The MLP before block 3 of `reduced` was left as it is" in text

"""Ratings in the report: told with what stands behind them, and withheld where raters do not agree."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from paretune.analysis.conclude import conclude, remarks
from paretune.analysis.document import Paragraph, Table
from paretune.analysis.measured import Measured, measure
from paretune.analysis.outputs import write_outputs
from paretune.analysis.ratings import rating_sentences, ratings_section
from paretune.analysis.scores import Quantity
from paretune.analysis.tables import comparisons_table, estimates_table
from paretune.analysis.trust import WITHHELD, trust_of, withheld
from paretune.data.sheets import Text
from paretune.evaluate.ratings import Rating, write_ratings
from tests.analysis.synthetic import VARIANTS, Shape, _record, make_results

Rate = Callable[[str, int, str, str, int], int | None]
"""Variant, prompt, rater, criterion and occasion to a rating."""
PEOPLE = ("anna", "ben")
PROMPTS = 30
GOOD = {"base": 1, "full": 4, "original": 3, "reduced": 3}
_PEOPLE = "  ratings: {files: [anna.csv, ben.csv]}\n"
_JUDGE = '  judge: {url: "http://localhost/v1", model: m, repeats: 2}\n'


def fair(variant: str, prompt: int, rater: str, criterion: str, occasion: int) -> int:
    """By quality and prompt; the raters differ on one prompt of ten."""
    return min(5, GOOD[variant] + prompt % 2 + (prompt % 10 == 0 and rater == "ben"))


def guessed(variant: str, prompt: int, rater: str, criterion: str, occasion: int) -> int:
    draw = np.random.default_rng([sum(map(ord, f"{variant}{rater}{criterion}")), prompt, occasion])
    return int(draw.integers(1, 6))


def make(
    tmp_path: Path,
    extra: str = _PEOPLE,
    sheet: int = 4 * PROMPTS,
    measured: tuple[str, ...] = ("perplexity", "generate"),
    **rates: Rate,
) -> Measured:
    """A study with one seed whose evaluations in `rates` have rated all texts: the people, or the judge."""
    results = make_results(tmp_path, Shape(evaluations=measured, seeds=(0,), extra=extra))
    cells = []
    for cell in results.cells:
        evaluations = dict(cell.evaluations)
        for name, rate in rates.items():
            raters = PEOPLE if name == "ratings" else (name,)
            metrics = {f"items_{rater}": sheet for rater in raters} if name == "ratings" else {}
            record = _record(tmp_path, f"evaluate.{name}", {}, metrics)
            found = [
                (text, Rating(text.item(), rater, occasion, criterion, rate(cell.variant, n, rater, criterion, occasion)))
                for n in range(PROMPTS)
                for text in [Text("generate", f"generate {n}", f"generate {n}", "", f"p{n}", f"{cell.variant} {n}")]
                for rater in raters
                for occasion in range(2 if name == "judge" else 1)
                for criterion in ("coherence", "relevance")
            ]
            write_ratings(found, record.path)
            evaluations[name] = record
        cells.append(replace(cell, evaluations=evaluations))
    return measure(replace(results, cells=tuple(cells)))


def said_of(measured: Measured) -> list[str]:
    return list(rating_sentences(measured, measured.groups[0]))


def mixed(variant: str, prompt: int, rater: str, criterion: str, occasion: int) -> int:
    return (fair if criterion == "coherence" else guessed)(variant, prompt, rater, criterion, occasion)


def test_ratings_that_raters_agree_on_are_told_and_the_others_withheld(tmp_path: Path) -> None:
    measured = make(tmp_path, ratings=mixed)
    assert len(VARIANTS) == 4
    coherence, relevance = said_of(measured)
    assert coherence.startswith("Coherence on `ratings`: `original` is worse than `full` (3.55 against 4.55")
    assert "; the 2 raters agree (alpha 0.9" in coherence
    assert relevance.startswith("Relevance on `ratings`: no conclusion, as the 2 raters do not agree (alpha ")
    assert "below 0.667 nothing can be concluded" in relevance
    assert coherence in conclude(measured, measured.groups[0]).findings
    assert withheld(measured, Quantity("ratings", "", "relevance"))
    assert not withheld(measured, Quantity("ratings", "", "coherence"))
    assert not withheld(measured, Quantity("perplexity", "test", "loss"))


def test_the_files_hold_the_figures_and_no_verdict_that_is_withheld(tmp_path: Path) -> None:
    measured = make(tmp_path, ratings=mixed)
    verdicts = comparisons_table(measured).query("task == 'ratings'").groupby("metric")["verdict"].unique()
    assert set(verdicts["relevance"]) == {WITHHELD}
    assert WITHHELD not in verdicts["coherence"]
    means = estimates_table(measured).query("task == 'ratings' and metric == 'coherence'").set_index(["variant", "slice"])
    assert means.loc[("base", "")][["mean", "n_examples", "n_documents"]].tolist() == [1.55, 60, 30]
    assert means.loc[("base", "rater: ben")]["mean"] == 1.6
    write_outputs(measured.results, tmp_path / "out")
    report = (tmp_path / "out" / "report.txt").read_text(encoding="utf-8")
    assert "coherence on ratings" in report  # in the table of comparisons
    assert "relevance on ratings" not in report.lower().replace("relevance on `ratings`", "")


def test_the_section_shows_means_raters_and_agreement(tmp_path: Path) -> None:
    section = ratings_section(*(lambda m: (m, m.groups[0]))(make(tmp_path, ratings=fair)))
    assert section is not None
    means, slices, agreement = (block for block in section.blocks if isinstance(block, Table))
    assert means.rows[0][0] == "base"
    assert means.rows[0][1].startswith("1.55 (")
    assert "by anna and ben: 60 ratings of each variant" in means.caption
    assert {row[0] for row in slices.rows} == {"rater: anna", "rater: ben"}
    assert [row[0] for row in agreement.rows] == ["the 2 raters", "anna and ben"]
    assert agreement.rows[1][1].startswith("kappa 0.9")


def test_a_judge_is_held_to_what_people_say(tmp_path: Path) -> None:
    measured = make(tmp_path, _PEOPLE + _JUDGE, ratings=fair, judge=mixed)
    told = [sentence for sentence in said_of(measured) if "on `judge`" in sentence]
    assert "; the judge and people agree (alpha 0.9" in told[0]
    assert "no conclusion, as the judge and people do not agree" in told[1]
    section = ratings_section(measured, measured.groups[0])
    assert section is not None
    rows = {row[0]: row for block in section.blocks if isinstance(block, Table) for row in block.rows}
    assert rows["judge with a second look"][1] == "alpha 1.00, 1.00 to 1.00, 120 texts"
    assert float(rows["judge with a second look"][2].split()[1].rstrip(",")) < 0.3


def test_a_judge_alone_and_a_person_alone_are_told_to_be_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    alone = make(tmp_path / "a", _JUDGE, judge=fair)
    assert all(said.endswith("; no person rated these texts, so it is the judge's view alone.") for said in said_of(alone))
    (tmp_path / "b").mkdir()

    def anna_only(*asked: object) -> int | None:
        return None if asked[2] == "ben" else fair(*asked)  # type: ignore[arg-type]

    measured = make(tmp_path / "b", ratings=anna_only)
    assert trust_of(measured, "ratings", "coherence").found is None
    assert all("it is one person's view" in said for said in said_of(measured))


def test_equal_ratings_of_all_texts_conclude_nothing_and_break_nothing(tmp_path: Path) -> None:
    measured = make(tmp_path, ratings=lambda *_: 3)
    assert "gave every text the same number" in said_of(measured)[0]


def test_what_is_missing_is_counted(tmp_path: Path) -> None:
    measured = make(
        tmp_path, sheet=4 * PROMPTS + 7, ratings=lambda *asked: None if asked[1] == 0 and asked[2] == "ben" else fair(*asked)
    )
    section = ratings_section(measured, measured.groups[0])
    assert section is not None
    told = [block.text for block in section.blocks if isinstance(block, Paragraph)]
    assert told[0].startswith("8 ratings of 480 missing")
    assert [said[: said.index(":")] for said in remarks(measured) if "sheet" in said] == [
        f"7 of 127 items on the sheet of `{rater}` are no text of this study" for rater in PEOPLE
    ]


def test_a_study_of_nothing_but_texts_tells_its_ratings(tmp_path: Path) -> None:
    measured = make(tmp_path, measured=("generate",), ratings=fair)
    concluded = conclude(measured, measured.groups[0])
    assert concluded.recommendation == ("Nothing was measured that variants are ranked by.",)
    assert list(concluded.findings) == said_of(measured) != []


def test_a_study_without_ratings_has_no_section(tmp_path: Path) -> None:
    measured = make(tmp_path, "")
    assert ratings_section(measured, measured.groups[0]) is None
    assert said_of(measured) == []

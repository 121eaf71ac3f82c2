from pathlib import Path

import pytest

from paretune.analysis.claim_figures import Figure, number_in, read_evidence, table_columns
from paretune.analysis.claims import check_claims, sentences
from paretune.analysis.measured import measure
from paretune.analysis.render import as_markdown
from paretune.analysis.report import build_report
from paretune.analysis.tables import write_tables
from paretune.cli import main
from tests.analysis.synthetic import Shape, make_results

TABLE = """
# Results

| model | perplexity | accuracy | questions | model size | training time | ms per token |
|---|---:|---:|---:|---:|---:|---:|
| GPT-2 | 31.4 | 25 % | 20 | 498 MB | - | 20.0 |
| original | **12.30** | 25 % (5/20) | 20 | 498 MB | 10 min | 20.0 |
| reduced | 14.1 | 35 % | 20 | 440 MB | 8.5 min | 17.5 |

"""

TRUE = [
    "The original model has the lowest perplexity.",
    "`original` reaches the best perplexity (12.3), and GPT-2 the worst.",
    "The reduced model is 11.6 % smaller than the original.",
    "Compared with original, reduced is 12 % smaller.",
    "Reduced trains 15 % faster than original in training time.",
    "Reduced is 1.14x faster per token than original.",
    "The reduced model needs a 15 % lower training time than the original.",
    "Its perplexity is 14.6 % higher than that of original for reduced.",
    "Original has lower perplexity than reduced.",
    "No difference in accuracy is detected between reduced and original on 20 questions (25 % vs 35 %).",
    "We removed the last block and trained for 10 epochs with a learning rate of 3e-4, 8 examples a step.",
    "The dataset has 765 articles, 80 % of which are used for training and 10 % for testing.",
    "GPT-2 is the slowest to explain.",
    "Original has a perplexity of 12.3 and a model size of 498 MB.",
    "Reduced answers with an accuracy of 35 %.",
    "Original starts from a loss of 3 % of the documents.",
    "Reduced has the lowest perplexity of the pruned models.",
    "With a perplexity of at most 13 original is fine.",
    "Original lowers perplexity by 61 % against GPT-2.",
    "The models were trained on 2 machines; the faster one is a laptop.",
    "Reduced trains 1.18x faster than original, needs 12 % less memory, generates 1.14x faster.",
    "At most 20 ms: `reduced`; of those that keep to it (`reduced` and `original`) it has the lowest perplexity.",
    "At the edge of its list: `reduced` with learning\\_rate 1e-3, the largest that was tried.",
]
FALSE = [
    ("The reduced model achieved the lowest perplexity.", "contradicted", "the lowest is `original`"),
    ("Reduced has a lower perplexity than original.", "contradicted", "`reduced` is not lower than `original`"),
    ("The reduced model is 25 % smaller than the original.", "contradicted", "`reduced` against `original` is"),
    ("The original model is 11.6 % smaller than reduced.", "contradicted", "nothing of the kind"),
    ("Reduced trains 30 % faster than original.", "contradicted", "train_seconds"),
    ("Reduced has the lowest perplexity of the three models.", "contradicted", "the lowest is `original`"),
    ("Reduced is better than original with 35 % against 25 % accuracy.", "unsupported", "p = 0.73"),
    ("Reduced ends at a perplexity of 13.1.", "contradicted", "`reduced` is said to have 13.1"),
    ("With an accuracy of 45 % reduced is usable.", "contradicted", "`reduced` is said to have 45 %"),
    ("Reduced outperforms original in perplexity.", "contradicted", "`reduced` is not lower than `original`"),
    ("The reduced model has the highest accuracy.", "unsupported", "p = 0.7"),
    ("Reduced is more accurate than original.", "unsupported", "Fisher's exact test on 20 and 20 questions"),
    (
        "Accuracy rose from 25 % to 35 %.",
        "unsupported",
        "5 of 20 and 7 of 20 right answers differ by chance alone with p = 0.73",
    ),
    ("GPT-2 is the fastest model per token, but reduced has the worst perplexity.", "contradicted", ""),
]


def found_in(text: str, report: str = TABLE) -> list:
    whole = f"{report}{text}\n"
    return check_claims(whole, read_evidence(whole, None))


@pytest.mark.parametrize("sentence", TRUE)
def test_what_the_figures_bear_out_is_left_alone(sentence: str) -> None:
    assert found_in(sentence) == []


def test_escaped_marks_are_read_as_they_are_shown() -> None:
    assert list(sentences("- A learning\\_rate of **3e-4** for _both_, and 2 \\* 3.")) == [
        (1, "A learning_rate of 3e-4 for both, and 2 * 3.")
    ]


def test_the_report_of_a_study_does_not_contradict_itself(tmp_path: Path) -> None:
    measured = measure(make_results(tmp_path, Shape(documents=40, epochs=1)))
    text = as_markdown(build_report(measured, frozenset()))
    assert "smaller than" in text
    assert [found for found in check_claims(text, read_evidence(text, None)) if found.kind == "contradicted"] == []


@pytest.mark.parametrize(("sentence", "kind", "why"), FALSE)
def test_what_they_do_not_is_found(sentence: str, kind: str, why: str) -> None:
    (found,) = found_in(sentence)
    assert (found.kind, found.sentence) == (kind, sentence)
    assert why in found.why
    assert found.line == 10


def test_a_large_gap_of_shares_is_supported() -> None:
    report = TABLE.replace("25 % (5/20)", "5 %").replace("| 35 %", "| 75 %")
    assert found_in("Reduced is more accurate than original.", report) == []
    assert found_in("Accuracy rose from 5 % to 75 %.", report) == []


@pytest.mark.parametrize(
    ("cell", "figure"),
    [
        ("65.4 (56.2 to 75.8)", Figure(65.4)),
        ("1,234.5", Figure(1234.5)),
        ("25 %", Figure(0.25)),
        ("5 of 20 (11 to 47 %)", Figure(0.25, 20)),
        ("7/20", Figure(0.35, 20)),
        ("27.9 MB", Figure(27.9e6)),
        ("10 min", Figure(600.0)),
        ("± 0.3", Figure(0.3)),
        ("-", None),
        ("better", None),
    ],
)
def test_numbers_of_cells_are_read_in_plain_units(cell: str, figure: Figure | None) -> None:
    assert number_in(cell) == (figure if figure is None else Figure(pytest.approx(figure.value), figure.num))


def test_a_table_may_stand_on_its_side() -> None:
    (perplexity, size) = table_columns("| | a | b |\n|---|---|---|\n| Perplexity | 3 | 4 |\n| Model size | 5 MB | 6 MB |\n")
    assert {name: figure.value for name, figure in perplexity.figures.items()} == {"a": 3, "b": 4}
    assert size.figures["b"].value == 6e6


def test_code_tables_and_headings_are_no_sentences() -> None:
    text = "# Reduced is best\n\n```\nReduced is best. Always.\n```\n| a |\n- One **bold** claim. And `code` too.\n"
    assert list(sentences(text)) == [(7, "One bold claim."), (7, "And `code` too.")]


def test_a_report_is_checked_against_results_and_paired_comparisons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tables(measure(make_results(tmp_path, Shape(documents=40, epochs=1))), tmp_path)
    report = tmp_path / "hand.md"
    report.write_text("The reduced variant has the lowest perplexity.\nFull has a lower test perplexity than original.\n")
    assert main(["check-claims", str(report), "--results", str(tmp_path / "results.csv")]) == 1
    told = capsys.readouterr()
    assert f"{report}:1: contradicted: The reduced variant has the lowest perplexity." in told.out
    assert ":2:" not in told.out
    assert "1 sentence contradicted or unsupported" in told.err
    report.write_text("Full has the best perplexity.\n")
    assert main(["check-claims", str(report), "--results", str(tmp_path / "results.csv")]) == 0


def test_a_report_without_figures_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "hand.md"
    report.write_text("All is well.\n")
    assert main(["check-claims", str(report)]) == 2
    assert "has no table of figures" in capsys.readouterr().err
    assert main(["check-claims", str(report), "--results", str(report)]) == 2
    assert main(["check-claims", str(tmp_path / "absent.md")]) == 2


STUDENT = """
| Model | Parameters | Perplexity | QA accuracy | Training time (s) |
|---|---|---|---|---|
| GPT-2 Original | 124.4M | 14.2 | 25% | 1200 |
| GPT-2 Reduced | 117.3M | 15.9 | 35% | 1080 |

Accuracy is measured on 20 questions.
The reduced model is a little smaller.
GPT-2 Reduced achieves the best QA accuracy (35%), which shows better recall.
GPT-2 Reduced has 5.7% fewer parameters than GPT-2 Original and the lowest perplexity.
GPT-2 Original needs 11% more training time than GPT-2 Reduced.
GPT-2 Reduced is 25% faster to train than GPT-2 Original.
In conclusion, GPT-2 Reduced outperforms GPT-2 Original.
Perplexity rises from 14.2 to 15.9.
"""


def test_a_report_as_people_write_them() -> None:
    found = {one.line: one.kind for one in check_claims(STUDENT, read_evidence(STUDENT, None))}
    assert found == {9: "unsupported", 10: "contradicted", 12: "contradicted", 13: "unsupported"}

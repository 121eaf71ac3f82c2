"""All outputs of a study: tables, figures and the report, written from records alone."""

from pathlib import Path

from paretune.analysis.figures import write_figures
from paretune.analysis.measured import measure
from paretune.analysis.render import as_markdown, as_text
from paretune.analysis.report import build_report
from paretune.analysis.tables import write_tables
from paretune.pipeline.records import Results


def write_outputs(results: Results, out: Path) -> list[Path]:
    """Write everything into `out` (made if missing) and return the files. Equal records give equal files."""
    out.mkdir(parents=True, exist_ok=True)
    measured = measure(results)
    tables = write_tables(measured, out)
    figures = write_figures(measured, out)
    report = build_report(measured, frozenset(file.name for file in figures))
    written = []
    for name, text in (("report.txt", as_text(report)), ("report.md", as_markdown(report))):
        (out / name).write_text(text, encoding="utf-8", newline="\n")
        written.append(out / name)
    return [*tables, *figures, *written]

"""All outputs of a study: tables, figures and the report, written from records alone."""

import shutil
from pathlib import Path

from paretune.analysis.figures import write_figures
from paretune.analysis.measured import measure
from paretune.analysis.render import as_markdown, as_text
from paretune.analysis.render_html import as_html
from paretune.analysis.report import build_report
from paretune.analysis.tables import write_tables
from paretune.errors import StoreError
from paretune.pipeline.records import Results

_DRAFT = ".draft"
"""Directory inside the outputs that they are written to first, so that a full disk leaves the old ones as they were."""


def write_outputs(results: Results, out: Path) -> list[Path]:
    """Write everything into `out` (made if missing) and return the files. Equal records give equal files.

    StoreError, with what was there before still there, if `out` cannot be written.
    """
    draft, is_new = out / _DRAFT, not out.exists()
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        written = [file.relative_to(draft) for file in _write(results, draft)]
        for file in written:
            (out / file).parent.mkdir(exist_ok=True)
            (draft / file).replace(out / file)
    except OSError as error:
        raise StoreError(f"--out: `{out}` cannot be written ({error.strerror}); name another directory") from None
    finally:
        shutil.rmtree(out if is_new and not _holds_outputs(out) else draft, ignore_errors=True)
    return [out / file for file in written]


def _holds_outputs(out: Path) -> bool:
    return out.is_dir() and any(entry.name != _DRAFT for entry in out.iterdir())


def _write(results: Results, out: Path) -> list[Path]:
    measured = measure(results)
    tables = write_tables(measured, out)
    figures = write_figures(measured, out)
    report = build_report(measured, frozenset(file.name for file in figures))
    written = []
    texts = {"report.txt": as_text(report), "report.md": as_markdown(report), "report.html": as_html(report, out)}
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8", newline="\n")
        written.append(out / name)
    return [*tables, *figures, *written]

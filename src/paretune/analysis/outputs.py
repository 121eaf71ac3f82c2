"""All outputs of a study: tables, figures, findings and the report, written from records alone."""

import shutil
from pathlib import Path

from paretune.analysis.conclusions import find
from paretune.analysis.csv import findings_json, generations, tables
from paretune.analysis.figures import write_figures
from paretune.analysis.render import as_html, as_markdown, as_text
from paretune.analysis.sections import build_report
from paretune.errors import StoreError
from paretune.pipeline.records import Results

_DRAFT = ".draft"
"""Directory inside the outputs that they are written to first, so that a full disk leaves the old ones as they were."""


def write_outputs(results: Results, out: Path, *, figures: bool = True) -> list[Path]:
    """Write everything into `out` (made if missing) and return the files. Equal records give equal files.

    Matplotlib is imported only where there are `figures`.

    StoreError, with what was there before still there, if `out` cannot be written.
    """
    draft, is_new = out / _DRAFT, not out.exists()
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        written = [file.relative_to(draft) for file in _write(results, draft, figures)]
        for file in written:
            (out / file).parent.mkdir(exist_ok=True)
            (draft / file).replace(out / file)
    except OSError as error:
        raise StoreError(f"--out: `{out}` cannot be written ({error.strerror}); name another directory") from None
    finally:
        holds_outputs = out.is_dir() and any(entry.name != _DRAFT for entry in out.iterdir())
        shutil.rmtree(out if is_new and not holds_outputs else draft, ignore_errors=True)
    return [out / file for file in written]


def _write(results: Results, out: Path, figures: bool) -> list[Path]:
    findings = find(results)
    texts = {f"{name}.csv": text for name, text in tables(findings).items()}
    texts |= {"generations.jsonl": "".join(generations(findings)), "findings.json": findings_json(findings)}
    drawn = write_figures(findings, out) if figures else []
    report = build_report(findings, frozenset(file.name for file in drawn))
    texts |= {"report.txt": as_text(report), "report.md": as_markdown(report), "report.html": as_html(report, out)}
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8", newline="\n")
    return [*drawn, *(out / name for name in texts)]

"""The report as one HTML file that works offline: figures are inside it, and it asks for nothing from anywhere.

A content security policy says so to the browser as well: texts of models stand in this file.
"""

import base64
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

from paretune.analysis.document import Block, Bullets, Document, Paragraph, Picture, Section, SideBySide, Table
from paretune.analysis.render import CODE, PROMPT_LENGTH, cut, visible

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --accent: #0072B2; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.7rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); } h3 { margin-top: 2rem; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1rem; font-size: .9rem; } a { color: var(--accent); }
code { background: var(--soft); border-radius: 3px; padding: 0 .25em; font-size: .9em; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; margin: .4rem 0 1.4rem; }
caption { text-align: left; padding-bottom: .3rem; opacity: .8; }
th, td { padding: .2rem .7rem; text-align: right; white-space: nowrap; }
th, td { border-bottom: 1px solid var(--soft); font-variant-numeric: tabular-nums; }
th.word, td.word { text-align: left; white-space: normal; } thead th { border-bottom: 1px solid var(--line); }
td.better { color: #0a7f4f; } td.worse { color: #c2410c; }
figure { margin: 1rem 0; } figure img { max-width: 100%; background: #fff; }
@media print {
  .wide { overflow: visible; } table { font-size: .62rem; } th, td { white-space: normal; padding: .1rem .25rem; }
}
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); padding: .6rem; border-radius: 4px; margin: 0; }
.texts { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: .8rem; margin: .6rem 0 1.8rem; }
.note { opacity: .75; font-size: .85rem; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def as_html(document: Document, folder: Path) -> str:
    """`folder` is where the paths of the report's pictures begin."""
    links = "".join(
        f'<a href="#{_anchor(index)}">{_text(section.title)}</a>'
        for index, section in enumerate(document.sections)
        if section.level == 2
    )
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(document.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
        f"<h1>{_text(document.title)}</h1>\n<nav>{links}</nav>",
    ]
    for index, section in enumerate(document.sections):
        parts += _section(section, index, folder)
    return "\n".join([*parts, "</body>\n</html>\n"])


def _section(section: Section, index: int, folder: Path) -> Iterator[str]:
    yield f'<h{section.level} id="{_anchor(index)}">{_text(section.title)}</h{section.level}>'
    for block in section.blocks:
        yield _block(block, folder)


def _block(block: Block, folder: Path) -> str:
    match block:
        case Paragraph(text):
            return f"<p>{_text(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{_text(item)}</li>" for item in items) + "</ul>"
        case Picture(path, text):
            data = base64.b64encode((folder / path).read_bytes()).decode("ascii")
            return f'<figure><img alt="{_plain(text)}" src="data:image/png;base64,{data}"></figure>'
        case Table():
            return _table(block)
        case SideBySide(prompt, texts):
            cards = "".join(
                f'<div><b>{_plain(text.label)}</b> <span class="note">{_plain(text.note)}</span>'
                f"<pre>{escape(cut(text.text))}</pre></div>"
                for text in texts
            )
            return f'<p class="note">Prompt</p><pre>{escape(cut(prompt, PROMPT_LENGTH))}</pre><div class="texts">{cards}</div>'


def _table(table: Table) -> str:
    head = "".join(_cell(name, index < table.words, "th") for index, name in enumerate(table.header))
    rows, above = [], ""
    for row in table.rows:
        first = "" if table.grouped and row[0] == above else row[0]
        cells = (_cell(cell, index < table.words, "td") for index, cell in enumerate((first, *row[1:])))
        rows.append(f"<tr>{''.join(cells)}</tr>")
        above = row[0]
    caption = f"<caption>{_text(table.caption)}</caption>" if table.caption else ""
    body = "\n".join(rows)
    return f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _cell(text: str, word: bool, tag: str) -> str:
    kinds = [*(["word"] if word else []), *([text] if text in ("better", "worse") else [])]
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    return f"<{tag}{kind}>{_plain(text)}</{tag}>"


def _text(text: str) -> str:
    """Words with literals between backticks."""
    pieces = CODE.split(" ".join(visible(text).split()))
    return "".join(f"<code>{escape(piece)}</code>" if index % 2 else escape(piece) for index, piece in enumerate(pieces))


def _plain(text: str) -> str:
    return escape(re.sub(r"\s+", " ", visible(text)))


def _anchor(index: int) -> str:
    return f"part-{index}"

"""A report for a terminal, in 120 columns, for a repository, in Markdown, and for a browser, as one page that works offline.

Texts come from users and models: control characters are made visible (a terminal would obey them), Markdown's own characters
and those of HTML are escaped, and generated text stands in fences longer than any run of backticks in it. The page holds all
that it draws, asks for nothing from anywhere, and says so to the browser by a content security policy too: scripts run by their
digest alone, and Vega interprets its expressions instead of evaluating them.
"""

import base64
import hashlib
import json
import re
import tomllib
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text as RichText

from paretune.analysis.findings import Fact
from paretune.report.blocks import Block, Bullets, Document, Paragraph, Picture, Section, SideBySide, Table, Words
from paretune.report.charts import REPLACED, vega_bundle
from paretune.report.words import say, template_environment

WIDTH = 120
NARROW = 80
"""Of a terminal that nobody made wider."""
TEMPLATES = Path(__file__).parent / "templates"
_CODE = re.compile(r"`([^`]*)`")
_MARKS = re.compile(r"([\\*_\[\]<>#|~&$])")
_LIST = re.compile(r"^(\d*)([-+.)])(?=\s)")
_BAR = re.compile(r"(?<!\\)\|")
_JOINERS = "\u200c\u200d"
"""They belong to the spelling of several scripts and of emoji."""
_NAME_WIDTH = 34
_LABEL_WIDTH = 26
_TEXT_LENGTH = 1500
"""Characters of a generated text that a report shows; generations.jsonl has all of it."""
_PROMPT_LENGTH = 400


def as_text(document: Document, width: int = WIDTH) -> str:
    """The report for a terminal or a plain text file, no line longer than `width` columns."""
    stream = StringIO()
    console = Console(
        file=stream, width=width, force_terminal=False, color_system=None, highlight=False, emoji=False, markup=False
    )
    console.print(RichText(document.title))
    console.print(RichText("=" * min(width, len(document.title))))
    for section in document.sections:
        console.print()
        console.print(RichText(section.title))
        console.print(RichText(("-" if section.level == 2 else "·") * min(width, len(section.title))))
        above: Block | None = None
        for block in section.blocks:
            is_list = isinstance(block, Bullets)
            introduced = is_list and (isinstance(above, Bullets) or (isinstance(above, Paragraph) and above.introduces))
            if above is not None and not introduced:
                console.print()
            _print_block(console, block)
            above = block
    lines = "\n".join(line.rstrip() for line in stream.getvalue().splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip("\n") + "\n"


def as_markdown(document: Document) -> str:
    """The report as GitHub-flavoured Markdown; pictures are links relative to it."""
    filters: dict[str, Callable[..., object]] = {
        "words": escaped,
        "cell": lambda text: _BAR.sub(r"\|", escaped(text)),
        "fenced": fenced,
    }
    return _render("report.md.j2", filters, document)


def as_html(
    document: Document, folder: Path, data: Mapping[str, Any] | None = None, made: Mapping[str, Any] | None = None
) -> str:
    """The report as a page. `folder` is where the paths of its pictures begin.

    `data` is what its charts, table and examples show (`page.page_data`), `made` how to make the results again
    (`page.reproduction`); without them it is a page without scripts.
    """
    glossary = tomllib.loads((TEMPLATES / "terms.toml").read_text(encoding="utf-8"))
    filters: dict[str, Callable[..., object]] = {
        "pieces": lambda words: _CODE.split(" ".join(visible(_sentence(words)).split())),
        "terms": _explainer(glossary),
        "plain": lambda text: re.sub(r"\s+", " ", visible(text)),
        "visible": visible,
        "base64": lambda path: base64.b64encode((folder / path).read_bytes()).decode("ascii"),
        "sha256": lambda text: f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}",
    }
    parts: list[tuple[Section, list[Section]]] = []
    for section in document.sections:
        if section.level == 2 or not parts:
            parts.append((section, []))
        else:
            parts[-1][1].append(section)
    page: dict[str, object] = {"parts": parts, "glossary": glossary, "made": made, "replaced": REPLACED, "data": None}
    if data is not None:
        # No `<` of a text ends the script that it stands in.
        text = json.dumps({**data, "terms": glossary}, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        page["data"] = Markup(text.replace("<", "\\u003c"))
        page["left_out"] = data.get("left_out", ())
    own = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    page["scripts"] = [Markup(script) for script in (vega_bundle(), own)] if data is not None else []
    return _render("report.html.j2", filters, document, page)


def visible(text: str) -> str:
    """Control and bidirectional characters as their code points; line breaks stay, tabs are spaces."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", "    ")
    return "".join(
        char if char in f"\n{_JOINERS}" or unicodedata.category(char) not in ("Cc", "Cf", "Cs") else f"<U+{ord(char):04X}>"
        for char in text
    )


def escaped(words: Words) -> str:
    """Words with literals as Markdown code and everything else taken literally."""
    pieces = []
    for index, piece in enumerate(_CODE.split(" ".join(visible(_sentence(words)).split()))):
        # Literals stand at odd indices.
        pieces.append(f"`{piece}`" if index % 2 else _MARKS.sub(r"\\\1", piece))
    return _LIST.sub(r"\1\\\2", "".join(pieces))


def fenced(text: str) -> str:
    """`text` as a Markdown code block."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _print_block(console: Console, block: Block) -> None:
    match block:
        case Paragraph(text):
            console.print(RichText(visible(_sentence(text))))
        case Bullets(items):
            for item in items:
                console.print(_hanging("- ", visible(_sentence(item))))
        case Picture(path, text):
            console.print(RichText(f"Figure: {path} ({text})"))
        case Table():
            if block.caption:
                console.print(RichText(visible(block.caption)))
            grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
            columns = [[cell_len(visible(cell)) for cell in column] for column in zip(block.header, *block.folded, strict=True)]
            is_wide = sum(max(column) + 2 for column in columns) > console.width
            for index, (name, column) in enumerate(zip(block.header, columns, strict=True)):
                narrowest = max(map(cell_len, name.split()), default=0), *column[1:]
                grid.add_column(
                    RichText(visible(name)),
                    justify="left" if index < block.words else "right",
                    overflow="fold",
                    # Headings of figures take more lines before names are broken.
                    max_width=_NAME_WIDTH if index == 0 else max(narrowest) if is_wide and index >= block.words else None,
                )
            for row in block.folded:
                grid.add_row(*(RichText(visible(cell)) for cell in row))
            console.print(grid)
        case SideBySide(prompt, texts):
            console.print(_hanging("Prompt: ", _cut(prompt, _PROMPT_LENGTH)))
            grid = Grid(box=box.HORIZONTALS, show_header=False, show_lines=True, pad_edge=False, expand=True)
            grid.add_column(width=_LABEL_WIDTH, overflow="fold")
            grid.add_column(ratio=1, overflow="fold")
            for entry in texts:
                # Empty lines cost a screen and say nothing; the whole text is in generations.jsonl.
                shown = re.sub(r"\n{2,}", "\n", _cut(entry.text)) or "(nothing)"
                grid.add_row(RichText(f"{entry.label}\n({entry.note})"), RichText(shown))
            console.print(grid)


def _hanging(mark: str, text: str) -> Grid:
    grid = Grid.grid(padding=0)
    grid.add_column(width=len(mark))
    grid.add_column(overflow="fold")
    grid.add_row(RichText(mark), RichText(text))
    return grid


def _explainer(glossary: Mapping[str, str]) -> Callable[[str], Iterator[tuple[str, str]]]:
    """Cuts texts at the terms that they are the first to use: pairs of a piece and what it means, empty for other words."""
    longest_first = sorted(glossary, key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE)
    meanings = {term.lower(): meaning for term, meaning in glossary.items()}

    def explain(text: str) -> Iterator[tuple[str, str]]:
        for piece in pattern.split(text):
            yield piece, meanings.pop(piece.lower(), "")

    return explain


def _render(
    template: str, filters: dict[str, Callable[..., object]], document: Document, more: Mapping[str, object] | None = None
) -> str:
    environment = template_environment(autoescape=template.endswith(".html.j2"))
    environment.filters |= {"cut": _cut, "kind": lambda block: type(block).__name__, **filters}
    return environment.get_template(template).render(document=document, prompt_length=_PROMPT_LENGTH, **more or {})


def _cut(text: str, length: int = _TEXT_LENGTH) -> str:
    text = visible(text).strip("\n")
    return text if len(text) <= length else text[:length] + " [...] (all of it in generations.jsonl)"


def _sentence(words: Words) -> str:
    return say(words) if isinstance(words, Fact) else words

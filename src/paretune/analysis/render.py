"""A report for a terminal, in 120 columns, and for a repository, in Markdown; `render_html` writes it for a browser.

Texts come from users and models: control characters are made visible (a terminal would obey them), Markdown's own characters
are escaped, and generated text stands in fences longer than any run of backticks in it.
"""

import re
import unicodedata
from collections.abc import Sequence
from io import StringIO

from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text as RichText

from paretune.analysis.document import Block, Bullets, Document, Paragraph, Picture, SideBySide, Table

WIDTH = 120
CODE = re.compile(r"`([^`]*)`")
_MARKS = re.compile(r"([\\*_\[\]<>#|~&$])")
_LIST = re.compile(r"^(\d*)([-+.)])(?=\s)")
_BAR = re.compile(r"(?<!\\)\|")
_NAME_WIDTH = 34
_LABEL_WIDTH = 26
_TEXT_LENGTH = 1500
"""Characters of a generated text that a report shows; generations.jsonl has all of it."""
PROMPT_LENGTH = 400


def as_text(document: Document) -> str:
    """The report for a terminal or a plain text file, no line longer than 120 columns."""
    stream = StringIO()
    console = Console(
        file=stream, width=WIDTH, force_terminal=False, color_system=None, highlight=False, emoji=False, markup=False
    )
    console.print(RichText(document.title))
    console.print(RichText("=" * min(WIDTH, len(document.title))))
    for section in document.sections:
        console.print()
        console.print(RichText(section.title))
        console.print(RichText(("-" if section.level == 2 else "·") * min(WIDTH, len(section.title))))
        for index, block in enumerate(section.blocks):
            if index and not _introduces(section.blocks[index - 1], block):
                console.print()
            _print_block(console, block)
    lines = "\n".join(line.rstrip() for line in stream.getvalue().splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip("\n") + "\n"


def as_markdown(document: Document) -> str:
    """The report as GitHub-flavoured Markdown; pictures are links relative to it."""
    parts = [f"# {escaped(document.title)}"]
    for section in document.sections:
        parts.append(f"{'#' * section.level} {escaped(section.title)}")
        parts += [_markdown_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def visible(text: str) -> str:
    """Control and bidirectional characters as their code points; line breaks stay, tabs are spaces."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", "    ")
    return "".join(
        char if char == "\n" or unicodedata.category(char) not in ("Cc", "Cf", "Cs") else _code_point(char) for char in text
    )


def escaped(text: str) -> str:
    """`text` with literals as Markdown code and everything else taken literally."""
    pieces = []
    for index, piece in enumerate(CODE.split(" ".join(visible(text).split()))):
        pieces.append(f"`{piece}`" if index % 2 else _MARKS.sub(r"\\\1", piece))
    return _LIST.sub(r"\1\\\2", "".join(pieces))


def fenced(text: str) -> str:
    """`text` as a Markdown code block."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def cut(text: str, length: int = _TEXT_LENGTH) -> str:
    text = visible(text).strip("\n")
    return text if len(text) <= length else text[:length] + " [...] (all of it in generations.jsonl)"


def _code_point(char: str) -> str:
    # Joiners belong to the spelling of several scripts and of emoji.
    return char if char in "\u200c\u200d" else f"<U+{ord(char):04X}>"


def _print_block(console: Console, block: Block) -> None:
    match block:
        case Paragraph(text):
            console.print(RichText(visible(text)))
        case Bullets(items):
            for item in items:
                console.print(_hanging("- ", visible(item)))
        case Picture(path, text):
            console.print(RichText(f"Figure: {path} ({text})"))
        case Table():
            if block.caption:
                console.print(RichText(visible(block.caption)))
            console.print(_grid(block))
        case SideBySide(prompt, texts):
            console.print(_hanging("Prompt: ", cut(prompt, PROMPT_LENGTH)))
            grid = Grid(box=box.HORIZONTALS, show_header=False, show_lines=True, pad_edge=False, expand=True)
            grid.add_column(width=_LABEL_WIDTH, overflow="fold")
            grid.add_column(ratio=1, overflow="fold")
            for entry in texts:
                # Empty lines cost a screen and say nothing; the whole text is in generations.jsonl.
                shown = re.sub(r"\n{2,}", "\n", cut(entry.text)) or "(nothing)"
                grid.add_row(RichText(f"{entry.label}\n({entry.note})"), RichText(shown))
            console.print(grid)


def _introduces(first: Block, second: Block) -> bool:
    """Whether a paragraph belongs to the list below it, or two lists to each other."""
    if isinstance(first, Paragraph):
        return isinstance(second, Bullets) and first.text.endswith(":")
    return isinstance(first, Bullets) and isinstance(second, Bullets)


def _hanging(mark: str, text: str) -> Grid:
    grid = Grid.grid(padding=0)
    grid.add_column(width=len(mark))
    grid.add_column(overflow="fold")
    grid.add_row(RichText(mark), RichText(text))
    return grid


def _grid(table: Table) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for index, name in enumerate(table.header):
        words = index < table.words
        grid.add_column(
            RichText(visible(name)),
            justify="left" if words else "right",
            overflow="fold",
            max_width=_NAME_WIDTH if index == 0 else None,
        )
    above = ""
    for row in table.rows:
        # In a column that is read downwards, a name is said once.
        first = "" if table.grouped and row[0] == above else row[0]
        grid.add_row(*(RichText(visible(cell)) for cell in (first, *row[1:])))
        above = row[0]
    return grid


def _markdown_block(block: Block) -> str:
    match block:
        case Paragraph(text):
            return escaped(text)
        case Bullets(items):
            return "\n".join(f"- {escaped(item)}" for item in items)
        case Picture(path, text):
            return f"![{escaped(text)}]({path.replace(' ', '%20')})"
        case Table():
            caption = f"{escaped(block.caption)}\n\n" if block.caption else ""
            return caption + _markdown_table(block)
        case SideBySide(prompt, texts):
            entries = [f"**{escaped(text.label)}** ({escaped(text.note)})\n\n{fenced(cut(text.text))}" for text in texts]
            return "\n\n".join([f"Prompt:\n\n{fenced(cut(prompt, PROMPT_LENGTH))}", *entries])


def _markdown_table(table: Table) -> str:
    rule = ["---" if index < table.words else "---:" for index in range(len(table.header))]
    lines = [table.header, rule, *table.rows]
    return "\n".join(_markdown_row(line, plain=index == 1) for index, line in enumerate(lines))


def _markdown_row(cells: Sequence[str], plain: bool) -> str:
    # A bar ends a cell even inside code.
    return "| " + " | ".join(cell if plain else _BAR.sub(r"\|", escaped(cell)) for cell in cells) + " |"

"""A report as plain data: sections of paragraphs, lists, tables, figures and texts side by side, written by two renderers.

Words between backticks are literal (names, values); everything else is plain text, which each renderer escapes as it must.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Bullets:
    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Cells are plain text; the first `words` columns are words (left, may be folded), the others are numbers (right)."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    words: int = 1
    grouped: bool = False
    """Rows of the same first cell stand together and need it once."""


@dataclass(frozen=True)
class Picture:
    path: str
    """Relative to the report."""
    text: str
    """What it shows."""


@dataclass(frozen=True)
class Text:
    """One text of several that answer the same prompt."""

    label: str
    note: str
    text: str


@dataclass(frozen=True)
class SideBySide:
    prompt: str
    texts: Sequence[Text]


Block = Paragraph | Bullets | Table | Picture | SideBySide


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]
    level: int = 2
    """As in Markdown: 2 is a part of the report, 3 a part of that."""


@dataclass(frozen=True)
class Document:
    title: str
    sections: Sequence[Section]

"""A report as plain data: sections of paragraphs, lists, tables, figures and texts side by side.

Words are a fact, whose sentence is looked up, or text of which the parts between backticks are literal (names, values).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from paretune.analysis.findings import Fact

Words = str | Fact


@dataclass(frozen=True)
class Paragraph:
    text: Words
    introduces: bool = False
    """Belongs to the list below it."""


@dataclass(frozen=True)
class Bullets:
    items: Sequence[Words]


@dataclass(frozen=True)
class Table:
    """Cells are plain text; the first `words` columns are words (left, may be folded), the others are numbers (right)."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    words: int = 1
    grouped: bool = False
    """Rows of the same first cell stand together and need it once."""

    @property
    def folded(self) -> list[Sequence[str]]:
        """The rows as they are read downwards: a name that stands above is not said again."""
        above = [None, *(row[0] for row in self.rows)]
        return [("", *row[1:]) if self.grouped and row[0] == name else row for name, row in zip(above, self.rows, strict=False)]


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


def as_blocks(facts: Sequence[Words]) -> list[Block]:
    """A list, and behind it what is said in paragraphs of their own."""
    listed = [fact for fact in facts if not (isinstance(fact, Fact) and fact.alone)]
    alone = [fact for fact in facts if isinstance(fact, Fact) and fact.alone]
    return [*([Bullets(listed)] if listed else []), *map(Paragraph, alone)]

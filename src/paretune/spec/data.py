"""Datasets of a study: where the records come from, what a document is, and how documents are split.

A source is a file (`path`), a hub dataset (`hub`) or one that ships with the package (`builtin`); or one source for each split.
"""

import math
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from paretune.spec.base import Spec

SPLITS = ("train", "validation", "test")
Format = Literal["jsonl", "json", "csv", "parquet", "text"]
_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}


class Source(Spec):
    """One place that records come from: exactly one of `path`, `hub` and `builtin`."""

    path: str | None = None
    """A file; relative to the study file."""
    hub: str | None = None
    """A dataset of the Hugging Face hub, `owner/name`."""
    builtin: str | None = None
    """A dataset that ships with the package."""
    revision: str | None = None
    """Commit, tag or branch of `hub`; the commit is pinned in the lock."""
    config: str | None = None
    """Configuration of the hub dataset, where it has several."""
    split: str = "train"
    """Which split of the hub dataset to read."""
    format: Format | None = None
    """By the file's suffix unless given."""
    header: bool = True
    """csv: whether the first row names the columns."""
    columns: tuple[str, ...] | None = None
    """csv: the names of the columns, needed where `header: false`."""
    delimiter: str | None = None
    """csv: one character; tab for `.tsv`, comma otherwise unless given."""
    chapters: str | None = None
    """text: a regular expression (multi-line); each line that matches begins a new document."""
    blocks: int | None = Field(None, ge=200)
    """text: documents of about so many characters, cut at blank lines; 4,000 where nothing else is said."""
    separator: str | None = None
    """text: documents are what stands between occurrences of this string."""
    start: str | None = None
    """text: a regular expression; everything up to and including its first match is left out (licence headers)."""
    end: str | None = None
    """text: a regular expression; everything from its first match after the start on is left out."""

    @property
    def resolved_format(self) -> Format | None:
        """`format`, or what the suffix of `path` says; None for hub and built-in sources."""
        if self.format or not self.path:
            return self.format
        return _SUFFIXES.get(PurePath(self.path).suffix.lower())

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(place is not None for place in (self.path, self.hub, self.builtin)) != 1:
            raise ValueError("name exactly one of `path`, `hub` and `builtin`")
        if self.path is not None and self.resolved_format is None:
            raise ValueError("the suffix of `path` names no format; add `format: jsonl | json | csv | parquet | text`")
        if not self.header and not self.columns:
            raise ValueError("`header: false` needs `columns: [...]`")
        return self

    @model_validator(mode="after")
    def _fields_of_the_format(self) -> Self:
        of_text = [name for name in ("chapters", "blocks", "separator", "start", "end") if getattr(self, name) is not None]
        if of_text and self.resolved_format != "text":
            raise ValueError(f"`{of_text[0]}` is for `format: text` only")
        if len({"chapters", "blocks", "separator"} & set(of_text)) > 1:
            raise ValueError("name at most one of `chapters`, `blocks` and `separator`")
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise ValueError("`delimiter` is one character")
        return self

    @field_validator("chapters", "start", "end")
    @classmethod
    def _is_a_regular_expression(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value, re.MULTILINE)
            except re.error as error:
                raise ValueError(f"not a regular expression ({error})") from None
        return value


class SplitSources(Spec):
    """Separate sources for the three splits, made by somebody else; `split:` is then left out."""

    train: Source
    validation: Source
    test: Source


class Split(Spec):
    """Shares of the documents, drawn by `seed`, which does not follow `seeds`. What is left of 1 is not used."""

    train: float = Field(0.8, gt=0, lt=1)
    validation: float = Field(0.1, gt=0, lt=1)
    test: float = Field(0.1, gt=0, lt=1)
    seed: int = 13

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        total = self.train + self.validation + self.test
        if total > 1 + 1e-9:
            raise ValueError(f"the shares sum to {total:g}; they must not exceed 1")
        return self

    @property
    def unused(self) -> float:
        rest = 1 - self.train - self.validation - self.test
        return 0.0 if math.isclose(rest, 0, abs_tol=1e-9) else rest


def _kind_of_source(value: object) -> str:
    splits = isinstance(value, SplitSources) or (isinstance(value, Mapping) and bool(set(SPLITS) & set(value)))
    return "as:SplitSources" if splits else "as:Source"


AnySource = Annotated[
    Annotated[Source, Tag("as:Source")] | Annotated[SplitSources, Tag("as:SplitSources")],
    Discriminator(_kind_of_source),
]


class Dataset(Spec):
    """Named data of a study."""

    source: AnySource
    document: str | None = None
    """The field that names a document: the unit of splitting and of error bars. Each record is one unless given."""
    split: Split = Split()
    stratify: str | None = None
    """A field whose values keep their shares in every split."""
    too_long: Literal["windows", "skip", "error"] = "windows"
    """Documents longer than `max_length`: split into windows, left out (and counted), or refused."""
    leakage: Literal["block", "remove", "allow"] = "block"
    """Duplicates between splits or with evaluation items: stop, drop the training side, or mark every number."""
    text: str = ""
    """A Jinja2 template over a record's fields; `{{ text }}` for plain text."""

    @model_validator(mode="after")
    def _text_is_given(self) -> Self:
        sources = [self.source] if isinstance(self.source, Source) else list(dict(self.source).values())
        if not self.text and any(source.resolved_format != "text" for source in sources):
            raise ValueError('`text` is missing: a template over the fields of a record, like "{{ title }}\\n\\n{{ content }}"')
        if isinstance(self.source, SplitSources) and "split" in self.model_fields_set:
            raise ValueError("`split` and separate sources for the splits exclude each other; leave `split` out")
        return self

    @property
    def template(self) -> str:
        return self.text or "{{ text }}"

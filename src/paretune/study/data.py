"""Datasets of a study: where the records come from, what a document is, and how documents are split.

A source is a file (`path`), a hub dataset (`hub`) or one that ships with the package (`builtin`); or one source for each split.
"""

import math
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from paretune.study.base import DATA, NAME, Spec, distinct
from paretune.study.formats import Format, format_of, no_format
from paretune.study.tasks import RESPONSE, SCORING, AnyRecords, Records, Task, taught

SPLITS = ("train", "validation", "test")
LengthRule = Literal["windows", "skip", "error", "cut", "keep_end", "keep_latest"]
_OF_HUB = ("revision", "config", "split")
_OF_TABLE = ("header", "columns")
_OF_TEXT = ("chapters", "blocks", "separator", "start", "end")


class Source(Spec):
    """One place that records come from: exactly one of `path`, `hub` and `builtin`."""

    LATER: ClassVar = ("sheet",)
    path: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(None, json_schema_extra=DATA)
    """A file, a folder, a pattern like `train-*.parquet`, or a list of these; relative to the study file. Files may be packed
    (`.gz`, `.bz2`, `.xz`, `.zst`, a `.zip` of one file), texts be UTF-8, UTF-16 or UTF-32. A folder is that of `save_to_disk`,
    or holds files of one format. Of several `text` files each is a document, unless it is said how they are cut."""
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
    """By the suffix of the file, or of those of the folder, unless given."""
    sheet: str | None = Field(None, min_length=1)
    """xlsx: which sheet, where several hold rows."""
    header: bool = True
    """csv, xlsx: whether the first row names the columns."""
    columns: tuple[str, ...] | None = Field(None, min_length=1)
    """csv, xlsx: the names of the columns, needed where `header: false`."""
    delimiter: str | None = None
    """csv: one character; tab for `.tsv`, comma otherwise unless given."""
    chapters: str | None = Field(None, min_length=1)
    """text: a regular expression (multi-line); each line that matches begins a new document."""
    blocks: int | None = Field(None, ge=200)
    """text: documents of about so many characters, cut at blank lines; 4,000 where nothing else is said."""
    separator: str | None = Field(None, min_length=1)
    """text: documents are what stands between occurrences of this string."""
    start: str | None = None
    """text: a regular expression; everything up to and including its first match is left out (licence headers)."""
    end: str | None = None
    """text: a regular expression; everything from its first match after the start on is left out."""

    @property
    def resolved_format(self) -> Format | None:
        """`format`, or what the suffix of `path` says; None for hub and built-in sources, and where only the files say it: of a
        folder, and of what stands in a zip archive."""
        formats = {format_of(path) for path in self.paths}
        return self.format or (formats.pop() if len(formats) == 1 else None)

    @property
    def paths(self) -> tuple[str, ...]:
        """`path` as a list; empty for hub and built-in sources."""
        return (self.path,) if isinstance(self.path, str) else self.path or ()

    @property
    def is_uncut(self) -> bool:
        """Whether nothing is said about how a text becomes documents."""
        return self.chapters is None and self.blocks is None and self.separator is None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(origin is not None for origin in (self.path, self.hub, self.builtin)) != 1:
            raise ValueError("name exactly one of `path`, `hub` and `builtin`")
        if self.format is None:
            for path in self.paths:
                # Without a suffix, or with a slash at its end, it may be a folder; a zip archive holds a name of its own.
                if PurePath(path).suffix.lower() not in ("", ".zip") and not path.endswith("/") and format_of(path) is None:
                    raise ValueError(no_format(path))
            if len({format_of(path) for path in self.paths} - {None}) > 1:
                raise ValueError("the files of `path` are of several formats; name files of one, or convert some")
        if len(set(self.paths)) < len(self.paths):
            raise ValueError("`path` names a file twice")
        if self.path is None and self.format is not None:
            raise ValueError("`format` is for `path` only")
        if not self.header and not self.columns:
            raise ValueError("`header: false` needs `columns: [...]`")
        return self

    @model_validator(mode="after")
    def _fields_of_the_place(self) -> Self:
        # By value and not by presence: a stage's config writes out every field.
        given = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        for fields, owner, fits in (
            (_OF_HUB, "`hub`", self.hub is not None),
            (("delimiter",), "`format: csv`", self.resolved_format == "csv"),
            (_OF_TABLE, "`format: csv` and `xlsx`", self.resolved_format in ("csv", "xlsx")),
            (("sheet",), "`format: xlsx`", self.resolved_format == "xlsx"),
            (_OF_TEXT, "`format: text`", self.resolved_format == "text"),
        ):
            wrong = [name for name in fields if name in given and not fits]
            if wrong:
                raise ValueError(f"`{wrong[0]}` is for {owner} only")
        if len({"chapters", "blocks", "separator"} & given) > 1:
            raise ValueError("name at most one of `chapters`, `blocks` and `separator`")
        return self

    @field_validator("delimiter")
    @classmethod
    def _is_one_character(cls, value: str | None) -> str | None:
        if value is not None and (len(value) != 1 or value in '"\r\n'):
            raise ValueError("`delimiter` is one character, no quote and no line end")
        return value

    @field_validator("columns")
    @classmethod
    def _are_distinct(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError("two columns have the same name")
        return value

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
    """What the methods learn from."""
    validation: Source
    """What training is watched on: early stopping and the choice of weights follow it."""
    test: Source
    """What nothing is chosen by."""


class Split(Spec):
    """Shares of the documents, drawn by `seed`, which does not follow `seeds`. What is left of 1 is not used."""

    train: float = Field(0.8, gt=0, lt=1)
    """What the methods learn from."""
    validation: float = Field(0.1, gt=0, lt=1)
    """What training is watched on: early stopping and the choice of weights follow it."""
    test: float = Field(0.1, gt=0, lt=1)
    """What nothing is chosen by."""
    seed: int = Field(13, ge=0)
    """Of the draw."""

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


MASKS = ("url", "email", "ip", "phone")
"""What personal data is looked for, in the order of the looking: an address in the web may hold one of the mail."""


class Clean(Spec):
    """What is mended, masked and left out before records become texts. It touches every text of a record, turns of chats too,
    but not what names a document: cleaning moves no document to another split (a masked name is masked where it is shown)."""

    encoding: Literal["fix"] | None = None
    """Repair text that was read in a wrong encoding (`Ã©` for `é`), and take control characters out."""
    mask: tuple[Literal["email", "phone", "url", "ip"], ...] = ()
    """Write `[EMAIL]`, `[PHONE]`, `[URL]` and `[IP]` in place of such addresses and numbers."""
    region: str = "US"
    """The country, by two letters, whose way of writing telephone numbers is known without `+`; those with `+` are always."""
    drop: tuple[Literal["empty", "duplicate"], ...] = ()
    """`empty`: records, or prompts and completions of tasks, with nothing in a field that they need (one that a template asks
    about, as in `{% if input %}`, is not needed). `duplicate`: records that read exactly as an earlier one of their source."""

    @field_validator("region")
    @classmethod
    def _is_a_region(cls, value: str) -> str:
        from phonenumbers import SUPPORTED_REGIONS

        if value not in SUPPORTED_REGIONS:
            raise ValueError("`region` is a country in two capital letters, such as `US`, `GB` or `DE`")
        return value

    _are_distinct = field_validator("mask", "drop")(distinct)

    @property
    def content(self) -> dict[str, Any]:
        """What its answer depends on, for a key; empty where nothing is cleaned."""
        fields: dict[str, Any] = {"encoding": self.encoding} if self.encoding else {}
        fields |= {name: sorted(getattr(self, name)) for name in ("mask", "drop") if getattr(self, name)}
        return fields | ({"region": self.region} if "phone" in self.mask else {})


def _kind_of_source(value: object) -> str:
    splits = isinstance(value, SplitSources) or (isinstance(value, Mapping) and bool(set(SPLITS) & set(value)))
    return "as:SplitSources" if splits else "as:Source"


AnySource = Annotated[
    Annotated[Source, Tag("as:Source")] | Annotated[SplitSources, Tag("as:SplitSources")], Discriminator(_kind_of_source)
]


class Dataset(Spec):
    """Named data of a study."""

    LATER: ClassVar = ("context", "tasks", "records", "control_tokens")
    source: AnySource
    """Where the records come from: one source, or one for each of `train`, `validation` and `test`."""
    document: str | None = Field(None, min_length=1)
    """The field that names a document: the unit of splitting and of error bars (`session`, or `metadata.session` of an object).
    Each record is one unless given; name the column of what records come from: conversation, patient, page, author."""
    split: Split = Split()
    """Shares of the documents."""
    stratify: str | None = Field(None, min_length=1)
    """A field whose values keep their shares in every split."""
    too_long: LengthRule | None = None
    """Examples longer than `max_length`: `windows` (of a `text`, the default there), `error` (the default of `tasks` and
    `records`), `skip`: left out, or shortened, at the end (`cut`) or at the beginning (`keep_end`): the text, the context of
    tasks, or a prompt without one (`keep_end` alone). Of conversations `keep_latest` keeps the system prompt and whole turns
    from the end, as many as fit. What is left out or shortened is counted in the report, base by base."""
    leakage: Literal["block", "remove", "allow"] = "block"
    """Duplicates between splits or with evaluation items: stop, drop the training side, or mark every number. Every pair, with
    file and line of both texts, stands in a table: `leakage.csv` of the results, or where the message says."""
    text: str = ""
    """A Jinja2 template over a record's fields; `{{ text }}` for plain text. Or `tasks`, or `records`."""
    context: str = ""
    """With `tasks`: a template of what all of them read first; encoded once for all."""
    tasks: dict[str, Task] = Field({})
    """What is learned from a record, by a name of your choice: a prompt and a completion each."""
    records: AnyRecords | None = None
    """A ready format instead of `text` or `tasks`: `alpaca`, `prompt_completion`, `messages` or `sharegpt`."""
    clean: Clean = Clean()
    """What is mended, masked and left out of the records before all else; nothing unless given."""
    control_tokens: Literal["strip", "text", "learn"] | None = None
    """Control tokens of a base that records hold as text, such as `</s>` or `<|im_end|>`: `strip` takes them out, `text` reads
    them as the characters that they are, `learn` as the tokens that they look like. Refused where there are some and nothing is
    said. What templates write is not touched."""

    @model_validator(mode="after")
    def _one_of_text_tasks_and_records(self) -> Self:
        given = [name for name in ("text", "tasks", "records") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(
                f"`{given[0]}` and `{given[1]}` exclude each other; a dataset has one of `text`, `tasks` and `records`"
            )
        if not given and any(source.resolved_format != "text" for source in self.sources.values()):
            raise ValueError(
                '`text` is missing: a template over the fields of a record, like "{{ title }}\\n\\n{{ content }}"; or `tasks`, '
                "prompts with their completions, or a ready format: `records: alpaca | prompt_completion | messages | sharegpt`"
            )
        if self.context and not self.tasks:
            raise ValueError("`context` is for `tasks`; a plain `text` stands in `text` alone")
        return self

    @model_validator(mode="after")
    def _nothing_for_a_split_that_is_given(self) -> Self:
        if isinstance(self.source, SplitSources) and "split" in self.model_fields_set:
            raise ValueError("`split` and separate sources for the splits exclude each other; leave `split` out")
        if isinstance(self.source, SplitSources) and self.stratify is not None:
            raise ValueError("`stratify` is for a split that is drawn here; leave it out with separate sources for the splits")
        return self

    @model_validator(mode="after")
    def _fits_its_examples(self) -> Self:
        if self.too_long == "windows" and self.completes:
            raise ValueError(
                "`too_long: windows` would part a completion from its prompt; write `error`, `skip`, `cut` or `keep_end`"
            )
        if self.too_long == "cut" and self.completes and not self.context:
            raise ValueError(
                "`too_long: cut` shortens a `context`, and there is none; write `keep_end` (for prompts), `keep_latest` (for "
                "conversations), `skip` or `error`"
            )
        if self.too_long == "keep_end" and self.chats:
            raise ValueError("`too_long: keep_end` would cut through turns; write `keep_latest`, `skip` or `error`")
        if self.too_long == "keep_latest" and not (self.chats or (self.ready and self.ready.format == "prompt_completion")):
            raise ValueError("`too_long: keep_latest` keeps turns of conversations; write `keep_end`, `cut`, `skip` or `error`")
        return self

    @field_validator("tasks")
    @classmethod
    def _have_names(cls, value: dict[str, Task]) -> dict[str, Task]:
        wrong = [name for name in value if not NAME.fullmatch(name)]
        if wrong:
            raise ValueError(f"`{wrong[0]}` cannot be the name of a task; use letters, digits, `.`, `_` and `-`")
        return value

    @property
    def sources(self) -> dict[str, Source]:
        """By the role that they have in a stage: `source`, or `source.train` and so on."""
        if isinstance(self.source, Source):
            return {"source": self.source}
        return {f"source.{split}": source for split, source in self.source}

    @property
    def template(self) -> str:
        """Of a plain text."""
        return self.text or "{{ text }}"

    @property
    def ready(self) -> Records | None:
        """`records` written out."""
        return Records(format=self.records) if isinstance(self.records, str) else self.records

    @property
    def completes(self) -> bool:
        """Whether its examples are prompts with completions, and no plain texts."""
        return bool(self.tasks) or self.records is not None

    @property
    def chats(self) -> bool:
        """Whether its records are conversations by their format."""
        return self.ready is not None and self.ready.format in ("messages", "sharegpt")

    @property
    def length_rule(self) -> LengthRule:
        """What is done with an example that is too long."""
        return self.too_long or ("error" if self.completes else "windows")

    @property
    def scored(self) -> dict[str, dict[str, Any]]:
        """The tasks whose answers are generated or classified on held-out records, with how that is done."""
        asked: dict[str, Task | Records] = {RESPONSE: self.ready} if self.ready else dict(self.tasks)
        fields = {name: task.model_dump(mode="json", include=set(SCORING)) for name, task in asked.items()}
        return {name: task for name, task in fields.items() if task["score"] or task.get("labels")}

    @property
    def content(self) -> dict[str, Any]:
        """What its documents depend on, for a key: without how long ones and leaks are treated, and without scoring."""
        fields = self.model_dump(mode="json", exclude={"too_long", "leakage", "clean", "control_tokens"})
        if self.tasks:
            fields |= {"context": self.context, "tasks": taught(self.tasks)}
        if self.ready:
            fields["records"] = self.ready.format
        if self.clean.content:
            fields["clean"] = self.clean.content
        return fields

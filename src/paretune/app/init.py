"""A first study file from a look at a data file: `paretune init`.

What the data is taken for (`paretune.app.shapes`) is said in the study and in what is printed; the study is loaded and planned
before it is told that it runs, and for `--minutes` trained for as many steps, on as many of the records, as the forecast of
`paretune plan` fits. The base is the one that ships or the one that is named; with a chat template, prompts are written in it.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from paretune.api import OpenStudy, open_study
from paretune.app.shapes import PROSE_WORDS, Rows, Shape, Turn, is_filled, listed, quoted, recognise, shape_of_text
from paretune.data.audit import HTML, found_in
from paretune.data.control import KNOWN
from paretune.data.groups import FEWEST, Grouping, groupings
from paretune.data.sources import DELIMITERS, iterate_rows
from paretune.errors import DataError, NeedsError, StoreError
from paretune.pipeline.config_json import read_config
from paretune.pipeline.data_files import data_files, format_of_file
from paretune.pipeline.duration import Rates
from paretune.pipeline.forecast import duration_words, forecast
from paretune.pipeline.rates import measure_rates
from paretune.pipeline.resources import SMOLLM2
from paretune.pipeline.why import review
from paretune.study.base import validate
from paretune.study.data import Source
from paretune.study.findings import FINDINGS, proposed_clean

_LOOK = 1000
"""Records that are looked at."""
_OPTIONS = ("options", "choices", "endings")
_HTML_SHARE = 0.1
_SHIPPED = ("newsroom-base", SMOLLM2)
"""Bases that `--base` takes by name."""
_FEW_STEPS, _ENOUGH_STEPS = 10, 50
"""Of a training for `--minutes`: at least, and from which on no records are given up for more of them."""
_SMALLEST = 1 / 64
"""Share of the records, at least."""
_GROUPS = 8
"""Columns that group, in comments, at most."""
_LISTED = 20
"""Columns that a comment names, at most."""
_FAR = 3
"""Directories up from the study; a path that goes further is written whole."""

_STUDY = """\
# A first comparison on your data, made by `paretune init`. It runs as it is: `paretune run {file}`.
study: {name}
bases:
{base}
data:
  {name}:
    source: {source}
{about}    split: {{train: {shares[0]:g}, validation: {shares[1]:g}, test: {shares[1]:g}, seed: 13}}{of_all}
    leakage: remove                         # duplicates between the splits leave the training side; block | allow
{learned}{notes}{train}
seeds: [0]                                  # three or more to say something about a method and not just these weights
variants:
  base: []
  full:    [{{train.full: {{learning_rate: {rate}}}}}]
  lora:    [{{train.lora: {lora}}}]
  shorter: [{{prune.blocks: {{count: 1, choose: last}}}}, {{train.lora: {lora}}}]
evaluate:
  perplexity: {{}}
{answers}  generate: {{prompts: [{prompt}], max_new_tokens: 60}}
  latency: {{}}
"""
_LORA = "{{r: 16, alpha: 32, targets: all-linear, learning_rate: {rate}}}"
_BUILTIN_BASE = "  small: {builtin: newsroom-base}".ljust(44) + "# <- the model: this one ships; yours: init with `--base`"
_RATES = {"builtin": ("1.0e-3", "3.0e-3"), "named": ("5.0e-5", "2.0e-4")}
"""Of full training and of adapters: for the small base that ships, and usual ones for other models."""
_ANSWERS = "  tasks: {max_documents: 50}".ljust(44) + "# so many held-out documents are answered and scored\n"


@dataclass(frozen=True)
class _Table:
    """Data that was looked at."""

    path: Path
    rows: Rows
    written: str
    """Fields of its source that say how it is read."""
    groups: Sequence[Grouping] = ()
    is_text: bool = False

    def shape(self, turn: Turn) -> Shape:
        if self.is_text:
            return shape_of_text(self.path, self.rows)
        group = self.groups[0].column if self.groups and self.groups[0].splits else None
        return recognise(self.path, self.rows, group, turn)


@dataclass(frozen=True)
class _Amount:
    """How much is learned from."""

    share: float = 1.0
    """Of the records."""
    steps: int | None = None
    """Two epochs unless given."""


def write_first_study(
    data: Path, file: Path, base: str | None = None, minutes: float | None = None, say: Callable[[str], None] = print
) -> list[str]:
    """Write a study `file` about `data` and `base`: a directory, a GGUF file, a name of the hub or of a base that ships.

    It is planned before this returns, but for a base of the hub, and runs for `minutes` at most by the forecast of its plan.
    Returns what was recognised, left out and can be changed. DataError for data that cannot be read or holds no prose,
    NeedsError for a base that is not there or a time that is too short, StoreError where nothing can be written.
    """
    table, base_line = _look_at(data), _base_line(base, file) if base else _BUILTIN_BASE
    is_here = base is None or "{hub:" not in base_line
    if minutes is not None and not is_here:
        raise NeedsError(f"--minutes: `{base}` is of the hub, and is timed once it is here; name its directory by `--base`")
    turn = Turn()

    def opened(amount: _Amount) -> OpenStudy:
        file.write_text(_study(table, table.shape(turn), file, base, base_line, amount), encoding="utf-8")
        return open_study(file)

    told = []
    try:
        if is_here:
            study = opened(_Amount())
            if table.shape(turn).asks and (turn := _turn_of(study)).templated:
                study = opened(_Amount())
                told.append("prompts: in the chat template of the base")
            if minutes is not None:
                told.append(_fit(study, opened, minutes, say))
        else:
            file.write_text(_study(table, table.shape(turn), file, base, base_line, _Amount()), encoding="utf-8")
            told.append(f"not planned yet: `{base}` is fetched from the hub; `--base DIR` uses its chat template if it has one")
    except OSError as error:
        raise StoreError(
            f"--to: `{file}` cannot be written ({error.strerror}); name a file in a directory that is there"
        ) from None
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    shape = table.shape(turn)
    unused = _unused(table, shape)
    return [
        f"recognised: {shape.name}: {shape.why}",
        *([f"left out: {listed(unused)}"] if unused else []),
        *told,
        "to change: the lines marked `# <-`",
    ]


def _turn_of(opened: OpenStudy) -> Turn:
    """What the chat template of the base writes around what a user says."""
    (base,) = opened.lock.bases.values()
    directory = base.resource.directory()
    files = [directory / name for name in ("chat_template.jinja", "tokenizer_config.json")] if directory else []
    if not any(file.is_file() and (file.suffix == ".jinja" or "chat_template" in file.read_text()) for file in files):
        return Turn()
    from paretune.data.chat import chat_prompt
    from paretune.data.tokenizer import load_tokenizer

    said = "\U000f8003"
    tokenizer = load_tokenizer({"trust_remote_code": False}, base.resource)
    if tokenizer.hf.chat_template is None:
        return Turn()
    try:
        before, seen, after = chat_prompt(tokenizer, [{"role": "user", "content": said}], where="--base").partition(said)
    except DataError:  # a template that wants more than a question: prompts stay plain
        return Turn()
    literal = [f"{{% raw %}}{text}{{% endraw %}}" if re.search(r"\{[{%#]", text) else text for text in (before, after)]
    return Turn(literal[0], literal[1], templated=True) if seen else Turn()


def _fit(study: OpenStudy, opened: Callable[[_Amount], OpenStudy], minutes: float, say: Callable[[str], None]) -> str:
    """Leave a study `opened` that takes `minutes` at most by the forecast of its plan, and tell how long and by what.

    First fewer steps, then fewer records. NeedsError where the smallest of them takes longer.
    """
    rates = measure_rates(study.study, study.lock, study.plan, study.store, say)
    if not rates:
        return "time: not known, because the base could not be timed; `--minutes` changed nothing"
    limit, share, possible = 60 * minutes, 1.0, []
    shortest = float("inf")
    while share >= _SMALLEST:
        seconds, steps = _seconds(study := opened(_Amount(share)), rates)
        fitting, least = _Amount(share), min(steps, _FEW_STEPS)
        if seconds > limit:
            fewest, _ = _seconds(opened(_Amount(share, least)), rates)
            shortest = min(shortest, fewest)
            more = (steps - least) * (limit - fewest) / max(seconds - fewest, 1e-9)
            fitting = _Amount(share, least + int(more))
            while fewest <= limit < _seconds(opened(fitting), rates)[0]:
                fitting = _Amount(share, max(least, int(0.9 * (fitting.steps or 0))))
        if min(seconds, shortest) <= limit:
            possible.append(fitting)
            if fitting.steps is None or fitting.steps >= min(steps, _ENOUGH_STEPS):
                break
        share /= 2
    if not possible:
        raise NeedsError(
            f"--minutes {minutes:g}: the shortest study on this base takes about {duration_words(shortest)} by the forecast; "
            "allow for more, or name a smaller `--base`"
        )
    chosen = max(possible, key=lambda amount: amount.steps or float("inf"))
    seconds, _ = _seconds(opened(chosen), rates)
    how = [f"{chosen.steps:,} steps in place of two epochs"] if chosen.steps else []
    how += [f"{chosen.share:.0%} of the records"] if chosen.share < 1 else []
    return f"time: about {duration_words(seconds)} of {minutes:g} min by the forecast of `plan`, with " + (
        " on ".join(how) or "two epochs on all records"
    )


def _seconds(opened: OpenStudy, rates: Mapping[str, Rates]) -> tuple[float, int]:
    """What is forecast for all that is to run, and the steps of the longest training."""
    costs = forecast(opened.study, opened.lock, opened.plan, opened.store, rates=rates)
    new = [costs[planned.stage] for planned in review(opened.plan, opened.store) if planned.status == "new"]
    return sum(cost.seconds or 0 for cost in new), max((cost.steps or 0 for cost in costs.values()), default=0)


def _look_at(data: Path) -> _Table:
    source = validate(Source, {"path": str(data)}, str(data))
    format = source.resolved_format or format_of_file(data_files(data)[0])
    source, columns = _cut_right(source, data) if format == "csv" else source, ""
    if source.delimiter:
        columns = f", delimiter: {json.dumps(source.delimiter)}"
    rows = _look(source, data)
    names = [re.sub(r"\W+", "_", field).strip("_") for field in rows[0]]
    if format == "csv" and any(len(field.split()) > PROSE_WORDS for field in rows[0]):
        # The first row is prose, so it is no header.
        names = [f"column{number + 1}" for number in range(len(rows[0]))]
        source = source.model_copy(update={"header": False, "columns": tuple(names)})
        columns += f", header: false, columns: [{', '.join(names)}]"
    elif format == "csv" and names != list(rows[0]) and len(set(names)) == len(names) and all(map(str.isidentifier, names)):
        # A template cannot name `Your question`.
        source = source.model_copy(update={"columns": tuple(names)})
        columns += f", columns: [{', '.join(names)}]"
    rows = _look(source, data)
    # Of a folder the files say the format, and not its name.
    columns = ("" if source.resolved_format or format not in ("csv", "text") else f", format: {format}") + columns
    groups = [] if format == "text" else groupings(row.values for row in iterate_rows(source, str(data)))
    return _Table(data, rows, columns, groups, format == "text")


def _study(table: _Table, shape: Shape, file: Path, base: str | None, base_line: str, amount: _Amount) -> str:
    """The text of a study."""
    data, rows, about = table.path, table.rows, ""
    if shape.document:
        name = shape.document if re.fullmatch(r"[^\W\d][\w. -]*", shape.document) else quoted(shape.document)
        sizes = (f" ({g.num_values:,} in {g.num_records:,} records)" for g in table.groups if g.column == shape.document)
        about += f"    document: {name}".ljust(44) + f"# never on two sides of the split{next(sizes, '')}\n"
    if shape.stratify:
        about += f"    stratify: {shape.stratify}".ljust(44) + "# keeps its shares in every split\n"
    if KNOWN.search(json.dumps(rows, ensure_ascii=False, default=str)):
        about += "    control_tokens: strip".ljust(44) + "# `</s>` and the like in records are taken out; text | learn\n"
    if num_empty := sum(not all(is_filled(row.get(field)) for field in shape.needs) for row in rows):
        about += "    clean: {drop: [empty]}".ljust(44) + f"# {num_empty:,} of {len(rows):,} records lack something\n"
    full_rate, lora_rate = _RATES["builtin" if base in (None, _SHIPPED[0]) else "named"]
    length = shape.length
    if base is not None and (config_file := Path(base) / "config.json").is_file():
        config = read_config(config_file, "--base")
        positions = (config.get(name) for name in ("max_position_embeddings", "n_positions"))
        length = min(length, next(filter(None, positions), length))
    how_long = f"max_steps: {amount.steps}" if amount.steps else "epochs: 2"
    written = about + shape.learned
    if unused := _unused(table, shape):
        of_all = f" of {len(rows[0]):,} columns" if len(rows[0]) > _LISTED else ""
        written_unused = f"    # not used{of_all}: {listed(unused, _LISTED)}\n"
    return _STUDY.format(
        file=file,
        name=_name(data.stem, "data"),
        base=base_line,
        source=f"{{path: {quoted(_path_from(file, data))}{table.written}{shape.source}}}",
        about=about,
        shares=(round(0.8 * amount.share, 4), round(0.1 * amount.share, 4)),
        of_all="" if amount.share == 1 else f"  # {amount.share:.0%} of the records",
        learned=shape.learned,
        notes=_choices_note(rows, data)
        + _group_notes(table.groups, shape.document)
        + (written_unused if unused else "")
        + _notes(rows, written, of_columns=not table.is_text, drops_empty=num_empty > 0),
        train=f"train: {{{how_long}, batch_size: 8, max_length: {length}}}".ljust(60) + "# <- how long is trained",
        rate=full_rate,
        lora=_LORA.format(rate=lora_rate),
        answers=_ANSWERS if shape.scored else "",
        prompt=quoted(shape.prompt),
    )


def _unused(table: _Table, shape: Shape) -> list[str]:
    """The columns that a study about `shape` does not read."""
    fields = [] if table.is_text else dict.fromkeys(field for row in table.rows for field in row)
    live = "\n".join(line for line in shape.learned.splitlines() if not line.lstrip().startswith("#"))
    read = " ".join(re.findall(r"\{[{%].*?[%}]\}|references: \[.*?\]", live))
    named = {*shape.needs, *shape.reads, shape.stratify, (shape.document or "").partition(".")[0], shape.document}
    return [field for field in fields if field not in named and not _names(read, field)]


def _look(source: Source, data: Path) -> Rows:
    return [row.values for row in islice(iterate_rows(source, str(data)), _LOOK)]


def _cut_right(source: Source, data: Path) -> Source:
    """`source` as it is where that finds several columns, else with the delimiter that does, in every record looked at."""
    for tried in (source, *(source.model_copy(update={"delimiter": mark}) for mark in DELIMITERS)):
        with suppress(DataError):
            if len(_look(tried, data)[0]) > 1:
                return tried
    return source


def _name(text: str, otherwise: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-") or otherwise


def _path_from(file: Path, target: Path) -> str:
    """The path of `target` as a study `file` writes it: relative, unless it lies somewhere else altogether."""
    path = os.path.relpath(target.resolve(), file.resolve().parent)
    return str(target.resolve()) if path.startswith(os.path.join(*[os.pardir] * _FAR)) else path


def _base_line(base: str, file: Path) -> str:
    path = Path(base)
    if path.is_dir() or (path.suffix == ".gguf" and path.is_file()):
        where = f"path: {quoted(_path_from(file, path))}"
    elif base in _SHIPPED:
        where = f"builtin: {base}"
    elif base.startswith((".", "/", "~")) or base.count("/") > 1 or path.suffix == ".gguf":
        raise NeedsError(f"--base: no directory `{base}`; name one that holds config.json, a GGUF file, or a model of the hub")
    else:
        where = f"hub: {base}"
    name = path.resolve().name.removesuffix(".gguf")
    return f"  {_name(name, 'base')}: {{{where}}}".ljust(43) + " # <- the model"


def _notes(rows: Rows, written: str, *, of_columns: bool, drops_empty: bool) -> str:
    """Comments about the columns that `written` names: HTML, and what is wrong or private, with the line that deals with it."""
    notes = ""
    for field in rows[0] if of_columns else ():
        values = [row[field] for row in rows if isinstance(row.get(field), str) and row[field].strip()]
        share = sum(bool(HTML.search(value)) for value in values) / max(1, len(values))
        if share >= _HTML_SHARE and _names(written, field):
            notes += f"    # {100 * share:.0f} % of the values of `{field}` hold HTML, which is learned as it stands\n"
    named = ([field for field in row if _names(written, field)] or list(row) for row in rows)
    texts = ["\n".join(t for field in fields for t in _texts(row[field])) for row, fields in zip(rows, named, strict=True)]
    findings = Counter(name for text in texts for name in found_in(text) if name not in ("html", "encoding_lost"))
    if repeated := len(texts) - len(set(texts)):
        findings["duplicate"] = repeated
    if findings:
        counts = "; ".join(f"{words}: {findings[name]:,}" for name, words in FINDINGS.items() if findings[name])
        proposed = proposed_clean({*findings, *(["empty"] if drops_empty else [])})
        notes += f"    # of {len(rows):,} records that were looked at: {counts}\n    # clean: {{{proposed}}}\n"
    return notes


def _choices_note(rows: Rows, data: Path) -> str:
    """A comment where records are questions with options, which are rather for measuring than for learning."""
    if not any(isinstance(rows[0].get(field), list | Mapping) for field in _OPTIONS):
        return ""
    return (
        f"    # multiple choice is mostly to measure with: `qa: {{path: {quoted(data.name)}}}` in the `evaluate` of a study\n"
        "    # that learns from other data; here the options are not used\n"
    )


def _group_notes(groups: Sequence[Grouping], document: str | None) -> str:
    """Comments about the columns whose values repeat and that are not the `document`."""
    notes = ""
    for grouping in [grouping for grouping in groups if grouping.column != document][:_GROUPS]:
        few = "" if grouping.splits else f"; fewer than {FEWEST} cannot be split"
        named = f"`{grouping.column}` ({grouping.num_values:,} in {grouping.num_records:,} records{few})"
        notes += f"    # groups {'too' if document else 'perhaps'}, as a `document` would: {named}\n"
    return notes


def _names(written: str, field: str) -> bool:
    """Whether `written`, a part of a study, names a column."""
    return re.search(rf"\b{re.escape(field)}\b", written) is not None


def _texts(value: Any) -> Iterator[str]:
    """The texts of a field: itself, or those of a list of texts or messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)

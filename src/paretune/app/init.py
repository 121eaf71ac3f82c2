"""A first study file from a look at a data file: `paretune init`.

What the data is taken for (`paretune.app.shapes`) is said in the study and in what is printed; the study is loaded and planned
before it is told that it runs, and for `--minutes` trained for as many steps, on as many of the records, as fits by the
forecast of `paretune plan`, for which nothing is timed here. The base is the one that ships or the one that is named; with a
chat template, prompts are written in it.
"""

import functools
import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from paretune.app.shapes import PROSE_WORDS, Rows, Shape, Turn, is_filled, listed, quoted, recognise, shape_of_text
from paretune.data.audit import HTML, found_in
from paretune.data.control import KNOWN
from paretune.data.groups import FEWEST, Grouping, groupings, words_of_name
from paretune.data.sources import DELIMITERS, iterate_rows
from paretune.errors import DataError, NeedsError, StoreError
from paretune.pipeline.config_json import num_positions
from paretune.pipeline.data_files import data_files, format_of_file
from paretune.pipeline.forecast import duration_words, forecast
from paretune.pipeline.lock import Lock, resolve_lock
from paretune.pipeline.machine import device_kind
from paretune.pipeline.plan import make_plan
from paretune.pipeline.preflight import check_study
from paretune.pipeline.rates import kept_rates, rough_rates
from paretune.pipeline.resources import SMOLLM2
from paretune.pipeline.store import Store
from paretune.study.data import Source
from paretune.study.findings import FINDINGS, proposed_clean
from paretune.study.study import load_study, located
from paretune.study.validate import validate

_LOOK = 1000
"""Records that are looked at."""
_OPTIONS = {"option", "choice", "ending"}
_HTML_SHARE = 0.1
_SHIPPED = ("newsroom-base", SMOLLM2)
"""Bases that `--base` takes by name."""
_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
"""That a chat template may write."""
_FEW_DOCUMENTS = 100
"""That a study for `--minutes` has, at least where there are so many."""
_MANY_DOCUMENTS = 300
"""From which on a tenth is enough to tell variants apart by; of fewer a fifth is tested on."""
_FEW_STEPS = 10
"""Of a training for `--minutes`, at least."""
_GROUPS = 8
"""Columns that group, in comments, at most."""
_LISTED = 20
"""Columns that a comment names, at most."""
_BLOCK = 2000
"""Characters of a text that count as a record, about."""
_FAR = 3
"""Directories up from the study; a path that goes further is written whole."""

_STUDY = """\
# A first comparison on your data, made by `paretune init`. It runs as it is: `paretune run {file}`.
{time}study: {name}
bases:
{base}
data:
  {name}:
    source: {source}
{about}    split: {split}
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
  latency: {{{latency}}}
"""
_LORA = "{{r: 16, alpha: 32, targets: all-linear, learning_rate: {rate}}}"
_RATES = {"builtin": ("1.0e-3", "3.0e-3"), "named": ("5.0e-5", "2.0e-4")}
"""Of full training and of adapters: for the small base that ships, and usual ones for other models."""


@dataclass(frozen=True)
class _Table:
    """Data that was looked at."""

    path: Path
    rows: Rows
    written: str
    """Fields of its source that say how it is read."""
    num_records: int
    """In all; of a text, blocks."""
    groups: Sequence[Grouping] = ()
    is_text: bool = False

    def shape(self, turn: Turn) -> Shape:
        if self.is_text:
            return shape_of_text(self.path, self.rows)
        group = self.groups[0].column if self.groups and self.groups[0].splits else None
        return recognise(self.path, self.rows, group, turn)

    def num_documents(self, shape: Shape) -> int:
        return next((group.num_values for group in self.groups if group.column == shape.document), self.num_records)


@dataclass(frozen=True)
class _Amount:
    """How much is learned from, and measured."""

    share: float = 1.0
    """Of the records."""
    documents: int = 50
    """That are held out, and whose tasks are answered."""
    latency: str = ""
    batch_size: int = 8
    length: int = 512
    """Tokens of an example, at most."""
    steps: int | None = None
    """Two epochs unless given."""

    def __str__(self) -> str:
        learned = f"{self.steps:,} steps" if self.steps else "two epochs"
        return f"{learned} on {f'{self.share:.1%} of the' if self.share < 1 else 'all'} records"

    def written(self, shape: Shape, num_documents: int, longest: int | None) -> dict[str, str]:
        """The lines of a study that say so, about data of a `shape`, of a base that reads `longest` tokens at most."""
        parts = (0.6, 0.2) if num_documents < _MANY_DOCUMENTS else (0.8, 0.1)
        train, held_out = (round(part * self.share, 4) for part in parts)
        how_long = f"max_steps: {self.steps}" if self.steps else "epochs: 2"
        # Examples that are skipped where they are too long are not skipped to save time.
        length = min(shape.length, longest or shape.length, shape.length if shape.skips else self.length)
        answers = f"  tasks: {{max_documents: {self.documents}}}".ljust(44) + "# so many held-out documents are answered\n"
        size = f"batch_size: {self.batch_size}, max_length: {length}"
        return {
            "split": f"{{train: {train:g}, validation: {held_out:g}, test: {held_out:g}, seed: 13}}",
            "train": f"train: {{{how_long}, {size}}}".ljust(60) + "# <- how long is trained",
            "answers": answers if shape.scored else "",
            "latency": self.latency,
        }


_AMOUNTS = (
    _Amount(),
    _Amount(1 / 4, 20, "repeats: 5"),
    _Amount(1 / 16, 12, "repeats: 3", 4, 256),
    _Amount(1 / 64, 10, "repeats: 3, new_tokens: 16", 2, 256),
)
"""That `--minutes` tries: the first that takes no more than half of the time to prepare and to measure. Fewer than ten
documents tell nothing apart."""


@dataclass(frozen=True)
class _Forecast:
    seconds: float
    training: float
    """Seconds of them."""
    steps: int
    """Of the longest training."""
    is_timed: bool
    """By what a token was measured to take on this machine, and not by arithmetic."""


def write_first_study(data: Path, file: Path, base: str | None = None, minutes: float | None = None) -> list[str]:
    """Write a study `file` about `data` and `base`: a directory, a GGUF file, a name of the hub or of a base that ships.

    It is checked as `paretune plan` checks it before this returns, but for a base of the hub, and takes `minutes` at most by
    the forecast, for which nothing is run: of rates that an earlier plan has kept, or else by arithmetic.
    Returns what was recognised, left out and can be changed. DataError for data that cannot be read or holds no prose,
    NeedsError for a base that is not there or a time that is too short, StoreError where nothing can be written.
    """
    table, where = _look_at(data), _where(base or _SHIPPED[0], file)
    is_here = not where.startswith("hub")
    if minutes is not None and not is_here:
        raise NeedsError(f"--minutes: `{base}` is of the hub, and has no time before it is here; name its directory")
    shape, told = table.shape(Turn()), []
    text = _study(table, shape, file, base, where)

    def write(amount: _Amount, time: str = "") -> None:
        file.write_text(text(time=time, **amount.written(shape, table.num_documents(shape), longest)), encoding="utf-8")

    def forecast_of(amount: _Amount) -> _Forecast:
        write(amount)
        study = load_study(file)
        plan = make_plan(study, lock, file.parent)
        kept = kept_rates(study, lock, plan, store)
        costs = forecast(study, lock, plan, store, rates=kept or rough_rates(lock))
        training = [cost for stage, cost in costs.items() if "train" in stage.config]
        seconds, trained = (sum(cost.seconds or 0 for cost in some) for some in (costs.values(), training))
        return _Forecast(seconds, trained, max(cost.steps or 0 for cost in training), bool(kept))

    amount, longest, store = _AMOUNTS[0], None, Store(file.parent / ".paretune")
    try:
        write(amount)
        if is_here:
            lock = _lock(file, store)
            (locked,) = lock.bases.values()
            longest = num_positions(locked.config)
            directory = locked.resource.directory()
            if shape.asks and directory and (turn := _turn_of(directory)).is_templated:
                shape = table.shape(turn)
                text = _study(table, shape, file, base, where)
                told.append("prompts: in the chat template of the base")
            least = min(1.0, _FEW_DOCUMENTS / max(1, table.num_documents(shape)))
            amounts = [replace(amount, share=max(amount.share, least)) for amount in _AMOUNTS]
            amount, expected = _fit(forecast_of, amounts, minutes)
            how = "" if expected.is_timed else " by a rough estimate"
            told.append(f"time: about {duration_words(expected.seconds)}{how}, with {amount}")
            write(amount, f"# It takes about {duration_words(expected.seconds)}{how}; `paretune plan {file}` times it.\n")
            with located(file):
                check_study(load_study(file), lock, file.parent)
        else:
            told.append(f"not planned yet: `{base}` is fetched from the hub; `--base DIR` uses its chat template if it has one")
    except OSError as error:
        raise StoreError(
            f"--to: `{file}` cannot be written ({error.strerror}); name a file in a directory that is there"
        ) from None
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    unused = _unused(table, shape)
    return [
        f"recognised: {shape.name}: {shape.why}",
        *([f"left out: {listed(unused)}"] if unused else []),
        *told,
        "to change: the lines marked `# <-`",
    ]


def _lock(file: Path, store: Store) -> Lock:
    """Of a study on a CPU in float32, so that nothing is measured of the machine, which takes torch; then on its own device."""
    study = load_study(file)
    study = study.model_copy(update={"precision": study.precision.model_copy(update={"compute": "float32"})})
    with located(file):
        return replace(resolve_lock(study, file, "cpu", store.root), device=device_kind("auto", None))


def _turn_of(directory: Path) -> Turn:
    """What the chat template of a base writes around what a user says: nothing where it has none, or one that wants more."""
    file, template_file, said = directory / "tokenizer_config.json", directory / "chat_template.jinja", "\U000f8003"
    # As transformers makes it, which takes torch (https://github.com/huggingface/transformers, chat_template_utils.py).
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        template = template_file.read_text(encoding="utf-8") if template_file.is_file() else settings.get("chat_template") or ""
        if isinstance(template, list):
            template = next((each["template"] for each in template if each["name"] == "default"), "")
        tokens = {name: token["content"] if isinstance(token := settings.get(name), Mapping) else token for name in _TOKENS}
        rendered = environment.from_string(re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)).render(
            messages=[{"role": "user", "content": said}], add_generation_prompt=True, **tokens
        )
    except (TemplateError, TypeError, ValueError, KeyError):  # what is damaged is told where the study is checked
        return Turn()
    # BOS stands before every example anyhow.
    before, seen, after = rendered.removeprefix(tokens["bos_token"] or "").partition(said)
    literal = [f"{{% raw %}}{text}{{% endraw %}}" if re.search(r"\{[{%#]", text) else text for text in (before, after)]
    return Turn(*literal, is_templated=True) if seen else Turn()


def _fit(
    forecast_of: Callable[[_Amount], _Forecast], amounts: Sequence[_Amount], minutes: float | None
) -> tuple[_Amount, _Forecast]:
    """How much takes `minutes` at most: the first of `amounts` that is measured in half of them, and then in fewer steps.

    NeedsError where the shortest takes longer.
    """
    limit = 60 * minutes if minutes else math.inf
    for amount in amounts:
        expected = forecast_of(amount)
        if expected.seconds <= limit:
            return amount, expected
        if expected.seconds - expected.training <= limit / 2:
            break
    least, left = min(expected.steps, _FEW_STEPS), limit - (expected.seconds - expected.training)
    steps = max(least, int(expected.steps * left / max(expected.training, 1e-9)))
    while True:
        expected = forecast_of(replace(amount, steps=steps))
        if expected.seconds <= limit:
            return replace(amount, steps=steps), expected
        if steps == least:
            raise NeedsError(
                f"--minutes: is {minutes:g}, and the shortest study takes about {duration_words(expected.seconds)} on this "
                "base by the forecast; allow for more, or name a smaller `--base`"
            )
        steps = max(least, int(0.8 * steps))


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
    if format == "text":
        return _Table(data, rows, columns, sum(len(row["text"]) for row in rows) // _BLOCK, is_text=True)
    num = itertools.count()
    groups = groupings(row.values for row, _ in zip(iterate_rows(source, str(data)), num, strict=False))
    return _Table(data, rows, columns, next(num), groups)


def _study(table: _Table, shape: Shape, file: Path, base: str | None, where: str) -> Callable[..., str]:
    """Makes the text of a study of the base that is `where`, once it is known how much is learned and how long that takes."""
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
    written = about + shape.learned
    if unused := _unused(table, shape):
        of_all = f" of {len(rows[0]):,} columns" if len(rows[0]) > _LISTED else ""
        written_unused = f"    # not used{of_all}: {listed(unused, _LISTED)}\n"
    called = _name(Path(base).resolve().name.removesuffix(".gguf"), "base") if base else "small"
    return partial(
        _STUDY.format,
        file=file,
        name=_name(data.stem, "data"),
        base=f"  {called}: {{{where}}}".ljust(43) + f" # <- the model{'' if base else '; this one ships'}",
        source=f"{{path: {quoted(_path_from(file, data))}{table.written}{shape.source}}}",
        about=about,
        learned=shape.learned,
        notes=_choices_note(rows, data)
        + _group_notes(table.groups, shape.document)
        + (written_unused if unused else "")
        + _notes(rows, written, of_columns=not table.is_text, drops_empty=num_empty > 0),
        rate=full_rate,
        lora=_LORA.format(rate=lora_rate),
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
    return [row.values for row in itertools.islice(iterate_rows(source, str(data)), _LOOK)]


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


def _where(base: str, file: Path) -> str:
    """The field of a study `file` that says where a base is; NeedsError for a directory or file that is not there."""
    path = Path(base)
    if path.is_dir() or (path.suffix == ".gguf" and path.is_file()):
        return f"path: {quoted(_path_from(file, path))}"
    if base in _SHIPPED:
        return f"builtin: {base}"
    if base.startswith((".", "/", "~")) or base.count("/") > 1 or path.suffix == ".gguf":
        raise NeedsError(f"--base: no directory `{base}`; name one that holds config.json, a GGUF file, or a model of the hub")
    return f"hub: {base}"


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
    findings = Counter(name for text in texts for name in _found(text) if name not in ("html", "encoding_lost"))
    if repeated := len(texts) - len(set(texts)):
        findings["duplicate"] = repeated
    if findings:
        counts = "; ".join(f"{words}: {findings[name]:,}" for name, words in FINDINGS.items() if findings[name])
        proposed = proposed_clean({*findings, *(["empty"] if drops_empty else [])})
        notes += f"    # of {len(rows):,} records that were looked at: {counts}\n    # clean: {{{proposed}}}\n"
    return notes


@functools.cache
def _found(text: str) -> list[str]:
    return list(found_in(text))


def _choices_note(rows: Rows, data: Path) -> str:
    """A comment where records are questions with options, which are rather for measuring than for learning."""
    if not any(_OPTIONS & set(words_of_name(field)) for field in rows[0]):
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
    return field in written and re.search(rf"\b{re.escape(field)}\b", written) is not None


def _texts(value: Any) -> Iterator[str]:
    """The texts of a field: itself, or those of a list of texts or messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)

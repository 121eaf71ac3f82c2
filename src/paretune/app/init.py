"""A first study file from a look at a data file: `paretune init`.

Fields of prose become the text, a column that groups records or a heading that names one its document, a field of few values
the stratum; instructions,
prompts with completions, questions with answers and conversations become a task, scored by what its answers look like: lists
as sets, few short values as labels, all else by ROUGE-L. A column's name is read as its words: `questionText`, `question_text`
and `Questions` all say `question`. All of it is a guess from the first records, stands with a comment, and runs as it is on
the base that ships with the package.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from paretune.data.audit import HTML, LABELS, found_in
from paretune.data.control import KNOWN
from paretune.data.groups import FEWEST, Grouping, groupings, words_of_name
from paretune.data.records import ALPACA
from paretune.data.sources import DELIMITERS, iterate_rows
from paretune.data.templates import named_value, parse_template, render
from paretune.errors import DataError, NeedsError
from paretune.pipeline.config_json import read_config
from paretune.pipeline.data_files import data_files, format_of_file
from paretune.study.base import validate
from paretune.study.data import Source
from paretune.study.findings import FINDINGS, proposed_clean

Rows = Sequence[Mapping[str, Any]]

_LOOK = 1000
"""Records that are looked at."""
_CHAPTER = r"^(?:CHAPTER|Chapter|BOOK|Book|PART|Part|[IVXLC]+\.)\s+\S.*$"
_CHAPTERS = 30
"""With fewer, too few are held out to measure anything by; blocks are cut then."""
_BLOCKS = 100
"""That a text is cut into at least, as far as their size allows."""
_BLOCK = (500, 4000)
"""Characters of a block, at least and at most."""
_GUTENBERG = {"start": r"\*\*\* ?START OF TH[^*]*\*\*\*", "end": r"\*\*\* ?END OF TH"}
"""Between these lines, of which the first may be two, stands a book of Project Gutenberg."""
_PROSE_WORDS = 4
"""A field with so many words on average is read as prose."""
_PAIRS = {
    "prompt": ("completion", "response", "answer"),
    "instruction": ("output", "response", "completion", "answer"),
    "question": ("answer", "response", "reply"),
    "query": ("answer", "response", "reply"),
    "context": ("response",),
    "input": ("output", "response"),
}
"""What asks, and what answers it, in the names that people give them."""
_OPTIONS = ("options", "choices", "endings")
_INPUTS = ("input", "context")
_CHATS = {"messages": "messages", "conversations": "sharegpt"}
_ABOUT = {"id", "uuid", "url", "link", "count", "number", "date", "time", "score", "type", "category", "author", "name"}
"""Words of columns that tell something about a text."""
_FILLING = {"text", "body", "content"}
_ASKING_WORDS = 3
"""Words on average of a column that asks and is not simply called so: a title does, a difficulty does not."""
_ASKED = 0.9
_HTML_SHARE = 0.1
_USED = 8
"""Columns that a study joins to a text, or suggests tasks for, at most."""
_LISTED = 20
"""Columns that a comment names, at most."""
_ITEM_WORDS = 4
"""Of an item of a list, and of a label, at most."""
_REPEATS = 5
"""Records for each label."""
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
{about}    split: {{train: 0.8, validation: 0.1, test: 0.1, seed: 13}}
    leakage: remove                         # duplicates between the splits leave the training side; block | allow
{learned}{notes}train: {{epochs: 2, batch_size: 8, max_length: {length}}}
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
_BUILTIN_BASE = "  small: {builtin: newsroom-base}".ljust(44) + "# ships with Paretune; yours: init with `--base`"
_RATES = {"builtin": ("1.0e-3", "3.0e-3"), "named": ("5.0e-5", "2.0e-4")}
"""Of full training and of adapters: for the small base that ships, and usual ones for other models."""
_ANSWERS = "  tasks: {max_documents: 50}".ljust(44) + "# so many held-out documents are answered and scored\n"
_SKIP = "    too_long: skip".ljust(44) + "# left out and counted; error | cut (of a `context`)\n"


@dataclass(frozen=True)
class _Guess:
    learned: str
    """The lines of the dataset that say what is learned."""
    prompt: str
    """One to continue."""
    source: str = ""
    document: str | None = None
    stratify: str | None = None
    length: int = 256
    scored: bool = False
    """There are tasks whose answers are scored."""


def first_study(data: Path, file: Path, base: str | None = None) -> str:
    """The text of a study `file` about `data` and `base`, a directory or a name of the hub, or the base that ships.

    DataError for data that cannot be read or holds no prose, NeedsError for a directory that is not there.
    """
    source = validate(Source, {"path": str(data)}, str(data))
    format = source.resolved_format or format_of_file(data_files(data)[0])
    source, columns = _cut_right(source, data) if format == "csv" else source, ""
    if source.delimiter:
        columns = f", delimiter: {json.dumps(source.delimiter)}"
    rows = _look(source, data)
    if format == "csv" and any(len(field.split()) > _PROSE_WORDS for field in rows[0]):
        # The first row is prose, so it is no header.
        names = [f"column{number + 1}" for number in range(len(rows[0]))]
        source = source.model_copy(update={"header": False, "columns": tuple(names)})
        rows = _look(source, data)
        columns += f", header: false, columns: [{', '.join(names)}]"
    groups: list[Grouping] = []
    if format == "text":
        guess = _of_text(data, rows)
    else:
        groups = groupings(row.values for row in iterate_rows(source, str(data)))
        group = groups[0].column if groups and groups[0].splits else None
        guess = _of_chats(rows, group) or _of_pairs(rows, group) or _of_records(data, rows, group)
    # Of a folder the files say the format, and not its name.
    written_format = "" if source.resolved_format or format not in ("csv", "text") else f", format: {format}"
    about = ""
    if guess.document:
        name = guess.document if re.fullmatch(r"[^\W\d][\w. -]*", guess.document) else _quoted(guess.document)
        sizes = (f" ({g.num_values:,} in {g.num_records:,} records)" for g in groups if g.column == guess.document)
        about += f"    document: {name}".ljust(44) + f"# never on two sides of the split{next(sizes, '')}\n"
    if guess.stratify:
        about += f"    stratify: {guess.stratify}".ljust(44) + "# keeps its shares in every split\n"
    if KNOWN.search(json.dumps(rows, ensure_ascii=False, default=str)):
        about += "    control_tokens: strip".ljust(44) + "# `</s>` and the like in records are taken out; text | learn\n"
    full_rate, lora_rate = _RATES["named" if base else "builtin"]
    length = guess.length
    if base is not None and (config_file := Path(base) / "config.json").is_file():
        config = read_config(config_file, "--base")
        positions = (config.get(name) for name in ("max_position_embeddings", "n_positions"))
        length = min(length, next(filter(None, positions), length))
    return _STUDY.format(
        file=file,
        name=_name(data.stem, "data"),
        base=_base_line(base, file) if base else _BUILTIN_BASE,
        source=f"{{path: {_quoted(_path_from(file, data))}{written_format}{columns}{guess.source}}}",
        about=about,
        learned=guess.learned,
        notes=_choices_note(rows, data)
        + _group_notes(groups, guess.document)
        + _notes(rows, about + guess.learned, of_columns=format != "text"),
        length=length,
        rate=full_rate,
        lora=_LORA.format(rate=lora_rate),
        answers=_ANSWERS if guess.scored else "",
        prompt=_quoted(guess.prompt),
    )


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
    if Path(base).is_dir():
        where = f"path: {_quoted(_path_from(file, Path(base)))}"
    elif base.startswith((".", "/", "~")) or base.count("/") > 1:
        raise NeedsError(f"--base: no directory `{base}`; name one that holds config.json, or a model of the hub")
    else:
        where = f"hub: {base}"
    return f"  {_name(Path(base).resolve().name, 'base')}: {{{where}}}"


def _notes(rows: Rows, written: str, *, of_columns: bool) -> str:
    """Comments about the columns that `written` leaves out or that hold HTML, and about what is wrong or private in the
    columns that it names, with the line that deals with it."""
    notes = ""
    if of_columns:
        fields = dict.fromkeys(field for row in rows for field in row)
        unused = [field for field in fields if not _names(written, field)]
        of_all = f" of {len(fields):,} columns" if len(fields) > _LISTED else ""
        notes += f"    # not used{of_all}: {_listed(unused)}\n" if unused else ""
        for field in rows[0]:
            values = [row[field] for row in rows if _is_text(row.get(field))]
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
        notes += f"    # of {len(rows):,} records that were looked at: {counts}\n    # clean: {{{proposed_clean(findings)}}}\n"
    return notes


def _choices_note(rows: Rows, data: Path) -> str:
    """A comment where records are questions with options, which are rather for measuring than for learning."""
    if not any(isinstance(rows[0].get(field), list | Mapping) for field in _OPTIONS):
        return ""
    return (
        f"    # multiple choice is mostly to measure with: `qa: {{path: {_quoted(data.name)}}}` in the `evaluate` of a study\n"
        "    # that learns from other data; here the options are not used\n"
    )


def _group_notes(groups: Sequence[Grouping], document: str | None) -> str:
    """Comments about the columns whose values repeat and that are not the `document`."""
    notes = ""
    for grouping in [grouping for grouping in groups if grouping.column != document][:_USED]:
        few = "" if grouping.splits else f"; fewer than {FEWEST} cannot be split"
        named = f"`{grouping.column}` ({grouping.num_values:,} in {grouping.num_records:,} records{few})"
        notes += f"    # groups {'too' if document else 'perhaps'}, as a `document` would: {named}\n"
    return notes


def _listed(fields: Sequence[str]) -> str:
    more = f" and {len(fields) - _LISTED:,} more" if len(fields) > _LISTED else ""
    return ", ".join(f"`{field}`" for field in fields[:_LISTED]) + more


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


def _of_text(data: Path, rows: Rows) -> _Guess:
    text = "\n\n".join(str(row["text"]) for row in rows)
    start, end = (re.search(pattern, text) for pattern in _GUTENBERG.values())
    bounds = ""
    if start and end:
        bounds = "".join(f", {field}: '{pattern}'" for field, pattern in _GUTENBERG.items())
        text = text[start.end() : end.start()]
    if len(re.findall(_CHAPTER, text, re.MULTILINE)) >= _CHAPTERS:
        source = f", chapters: '{_CHAPTER}'"
    else:
        # So small that each part of the split gets several blocks, and no larger than a chapter.
        source = f", blocks: {max(_BLOCK[0], min(_BLOCK[1], len(text) // _BLOCKS // 100 * 100))}"
    half = text[len(text) // 2 :]
    begin = re.search(r"[.!?]\s+(?=[A-Z])", half) or re.search(r"\s", half)
    prompt = _opening(half[begin.end() if begin else 0 :], data)
    return _Guess('    text: "{{ text }}"\n', prompt, source + bounds)


def _of_chats(rows: Rows, group: str | None) -> _Guess | None:
    """Conversations, in one of the two formats that are read as they are."""
    for field, form in _CHATS.items():
        if all(isinstance(row.get(field), list) and row[field] and isinstance(row[field][0], Mapping) for row in rows):
            learned = _ready(form, [], "the loss is taken on the assistant's turns alone")
            return _Guess(learned + _SKIP, "Hello!", document=group, length=512, scored=True)
    return None


def _of_pairs(rows: Rows, group: str | None) -> _Guess | None:
    """Columns that ask and one that answers them; None where the names say no such thing."""
    pair = _asking_and_answering(rows)
    if pair is None:
        return None
    asks, answers = pair
    given = [field for field in _INPUTS if field in rows[0] and field not in (*asks, answers)][:1]
    first, answered = asks[0], [row.get(answers) for row in rows]
    always_asked = _always_text(rows, first)
    if (asks, answers, given) == (["instruction"], "output", ["input"]):
        template, learned = ALPACA, _ready("alpaca", answered, "`instruction`, `input` and `output`")
    elif (asks, answers) == (["prompt"], "completion") and 2 * sum(map(_is_joined, rows)) > len(rows):
        template = "{{ prompt }}"
        learned = _ready("prompt_completion", answered, "the completion follows the prompt as it is")
    else:
        if always_asked:
            parts = {field: f"\n\n{{{{ {field} }}}}" for field in [*asks, *given]}
            optional = [field for field in parts if not _always_text(rows, field)]
            parts |= {field: f"{{% if {field} %}}{parts[field]}{{% endif %}}" for field in optional}
            template = "".join(parts.values())[2:] + "\n\n"
        else:
            template = "".join(f"{{% if {field} %}}{{{{ {field} }}}}\n\n{{% endif %}}" for field in [*asks, *given])
        learned = "    tasks:".ljust(44) + "# the loss is taken on the completion alone\n"
        learned += f"      {_task(answers, template, answered)}\n"
    shortest = min((row for row in rows if _is_text(row.get(first))), key=lambda row: len(row[first]))
    prompt = render(parse_template(template), shortest, "the shortest record")
    repeated = always_asked and len({row[first] for row in rows}) < len(rows)
    document = group or (first if repeated else None)
    return _Guess(learned + _SKIP, prompt, document=document, stratify=_stratum(rows, document), length=512, scored=True)


def _asking_and_answering(rows: Rows) -> tuple[list[str], str] | None:
    """The columns that ask, one that is never empty first if there is one, and the one that answers; None without such names.

    Some column that asks is filled in nine of ten records.
    """
    names = {field: _words(field) for field in rows[0] if field.isidentifier() and not _ABOUT & set(_words(field))}
    for ask, several in _PAIRS.items():
        for answer in several:
            answers = [field for field, words in names.items() if answer in words]
            asks = [
                field
                for field, words in names.items()
                if ask in words and field not in answers and (words == [ask] or _mean_words(rows, field) >= _ASKING_WORDS)
            ]
            asks.sort(key=lambda field: not _always_text(rows, field))
            if answers and sum(any(_is_text(row.get(field)) for field in asks) for row in rows) >= _ASKED * len(rows):
                return asks, max(answers, key=lambda field: (names[field] == [answer], _mean_words(rows, field)))
    return None


def _is_joined(row: Mapping[str, Any]) -> bool:
    """Whether something stands between prompt and completion where they are joined."""
    prompt, completion = row["prompt"], row["completion"]
    first = completion[0] if isinstance(completion, list) and completion else completion
    return isinstance(prompt, list) or str(prompt)[-1:].isspace() or str(first)[:1].isspace()


def _ready(form: str, answered: Sequence[Any], comment: str) -> str:
    """A ready format, with the scores that fit its answers; labels need a task."""
    score = "set_f1" if answered and _is_list(answered) else "rouge_l"
    return f"    records: {{format: {form}, score: [{score}]}}".ljust(60) + f"# {comment}\n"


def _task(field: str, prompt: str, values: Sequence[Any], lead: str = "") -> str:
    """A task that answers with `field`, and how its answers are scored. `lead` belongs to the answer's first token."""
    written, score = f"{{{{ {field} }}}}", "score: [rouge_l]"
    if _is_list(values):
        score = "score: [set_f1]"
        if any(isinstance(value, list) for value in values):
            written = f"{{{{ {field} | join(', ') }}}}"
    elif _is_label(values):
        score = "score: [accuracy], labels: from_train"
    return f"{field}: {{prompt: {_quoted(prompt)}, completion: {_quoted(lead + written)}, {score}}}"


def _of_records(data: Path, rows: Rows, group: str | None) -> _Guess:
    """Fields of prose as one text; as comments, tasks that all read the longest field: what the others say of it."""
    prose = [field for field in rows[0] if _mean_words(rows, field) >= _PROSE_WORDS and not _is_address(rows, field)]
    if not prose:
        raise DataError(f"{data}: no field of its records is prose ({_listed(list(rows[0]))}); write `text:` by hand")
    longest = max(prose, key=lambda field: _mean_words(rows, field))
    # Fields that are sometimes empty would stop the template; the longest is the one worth an error.
    used = [field for field in prose if field == longest or _always_text(rows, field)]
    kept = sorted(used, key=lambda field: -_mean_words(rows, field))[:_USED]
    used = [field for field in used if field in kept]
    headings = [field for field in used if field != longest and _mean_words(rows, field) <= 30]
    learned = '    text: "' + r"\n\n".join(f"{{{{ {field} }}}}" for field in used) + '"\n'
    tasks, num_tasks = "", 0
    for field in rows[0]:
        values = [row.get(field) for row in rows]
        one_kind = any(all(isinstance(value, kind) for value in values) for kind in (str, list))
        if field == longest or not field.isidentifier() or not (any(values) and one_kind) or _is_address(rows, field):
            continue
        # A completion that is empty is left out and counted, so a few do not make a label less of one.
        filled = [value for value in values if value]
        values = filled if len(filled) >= _ASKED * len(values) else values
        if _is_list(values) or _is_label(values) or _mean_words(rows, field) >= _PROSE_WORDS:
            num_tasks += 1
            tasks += f"    #   {_task(field, f'{field.capitalize()}:', values, lead=' ')}\n" if num_tasks <= _USED else ""
    tasks += f"    #   ... and {num_tasks - _USED:,} more\n" if num_tasks > _USED else ""
    if tasks:
        learned += "    # or, instead of `text`, answers to tasks that all read one field (it is cut where it is too long):\n"
        learned += f'    # too_long: cut\n    # context: "{{{{ {longest} }}}}\\n\\n"\n    # tasks:\n' + tasks
    document = group or (headings[0] if headings else None)
    return _Guess(learned, _opening(str(rows[0][used[0]]), data), document=document, stratify=_stratum(rows, document))


def _opening(text: str, data: Path) -> str:
    words = text.split()[:5]
    if not words:
        raise DataError(f"{data}: the first record is empty; write the study by hand")
    return " ".join(words)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _words(field: str) -> list[str]:
    """The words of a column's name in the singular, but for those that only say that it is a text."""
    words = words_of_name(field)
    return [word for word in words if word not in _FILLING] or words


def _is_list(values: Sequence[Any]) -> bool:
    """Lists of short texts, or texts that write most of them: several short items between commas, without a sentence's end."""
    if all(isinstance(value, list) and all(isinstance(item, str) for item in value) for value in values):
        return True
    texts = [value for value in values if _is_text(value)]
    items = [[item.split() for item in re.split(r"[,;\n]", text)] for text in texts if not re.search(r"[.!?]\s|[.!?]$", text)]
    listed = [parts for parts in items if len(parts) > 1 and max(map(len, parts)) <= _ITEM_WORDS]
    return len(texts) == len(values) and 2 * len(listed) > len(texts)


def _is_label(values: Sequence[Any]) -> bool:
    """Few short texts, each of which stands there often."""
    if not all(_is_text(value) for value in values):
        return False
    counts = Counter(value.strip() for value in values)
    often = len(counts) in LABELS and len(values) >= _REPEATS * len(counts)
    return often and max(len(label.split()) for label in counts) <= _ITEM_WORDS


def _stratum(rows: Rows, document: str | None) -> str | None:
    """A field of few, frequent values of which a document has only one."""
    for field in rows[0]:
        values = [row.get(field) for row in rows]
        if not all(isinstance(value, str) and value.strip() for value in values):
            continue
        counts = Counter(values)
        pairs = {(named_value(row, document, "document", ""), row[field]) for row in rows} if document else set()
        if len(counts) in LABELS and min(counts.values()) >= 10 and len(pairs) == len({pair[0] for pair in pairs}):
            return field
    return None


def _mean_words(rows: Rows, field: str) -> float:
    texts = [str(row[field]) for row in rows if _is_text(row.get(field))]
    return sum(len(text.split()) for text in texts) / len(texts) if texts else 0.0


def _is_address(rows: Rows, field: str) -> bool:
    return all(str(row.get(field) or "http").startswith("http") for row in rows)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _always_text(rows: Rows, field: str) -> bool:
    return all(_is_text(row.get(field)) for row in rows)

"""A first study file from a look at a data file: `paretune init`.

Fields of prose become the text, a heading that names the record its document, a field of few values the stratum; instructions,
prompts with completions, questions with answers and conversations become a task, scored by what its answers look like: lists
as sets, few short values as labels, all else by ROUGE-L. All of it is a guess from the first records,
stands with a comment, and runs as it is on the base that ships with the package.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from paretune.data.audit import found_in
from paretune.data.columns import (
    always_text,
    asking_and_answering,
    columns_in,
    html_columns,
    is_address,
    is_label,
    is_list,
    is_text,
    mean_words,
    repeated_id,
    stratum,
    unused_columns,
)
from paretune.data.records import ALPACA
from paretune.data.sources import iterate_rows
from paretune.data.templates import parse_template, render
from paretune.errors import DataError, NeedsError
from paretune.pipeline.config_json import read_config
from paretune.study.base import validate
from paretune.study.data import Source
from paretune.study.findings import FINDINGS, proposed_clean

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
_INPUTS = ("input", "context")
_FAR = 3
"""Directories up from the study; a path that goes further is written whole."""
_CHATS = {"messages": "messages", "conversations": "sharegpt"}


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
    rows = _look(source, data)
    columns = ""
    if source.resolved_format == "csv" and any(len(field.split()) > _PROSE_WORDS for field in rows[0]):
        # The first row is prose, so it is no header.
        names = [f"column{number + 1}" for number in range(len(rows[0]))]
        rows = _look(source.model_copy(update={"header": False, "columns": tuple(names)}), data)
        columns = f", header: false, columns: [{', '.join(names)}]"
    if source.resolved_format == "text":
        guess = _of_text(data, rows)
    else:
        guess = _of_chats(rows) or _of_pairs(rows) or _of_records(data, rows)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", data.stem).strip("-") or "data"
    path = _path_from(file, data)
    about = ""
    if guess.document:
        about += f"    document: {guess.document}".ljust(44) + "# never on two sides of the split\n"
    if guess.stratify:
        about += f"    stratify: {guess.stratify}".ljust(44) + "# keeps its shares in every split\n"
    notes = "" if source.resolved_format == "text" else _notes(rows, about + guess.learned)
    notes += _audit(rows, about + guess.learned)
    full_rate, lora_rate = _RATES["named" if base else "builtin"]
    return _STUDY.format(
        file=file, name=name, about=about, learned=guess.learned, prompt=_quoted(guess.prompt),
        base=_base_line(base, file) if base else _BUILTIN_BASE, rate=full_rate, lora=_LORA.format(rate=lora_rate),
        length=min(guess.length, _positions(base) or guess.length), notes=notes,
        source=f"{{path: {_quoted(path)}{columns}{guess.source}}}", answers=_ANSWERS if guess.scored else "",
    )  # fmt: skip


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
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(base).resolve().name).strip("-") or "base"
    return f"  {name}: {{{where}}}"


def _positions(base: str | None) -> int | None:
    """How many tokens a base in a directory reaches, if that can be read."""
    file = Path(base or "") / "config.json"
    if base is None or not file.is_file():
        return None
    config = read_config(file, "--base")
    return next((config[name] for name in ("max_position_embeddings", "n_positions") if config.get(name)), None)


def _notes(rows: Sequence[Mapping[str, Any]], written: str) -> str:
    """Comments about the columns: those that `written` leaves out, and those that hold HTML."""
    unused = ", ".join(f"`{field}`" for field in unused_columns(rows, written))
    notes = f"    # not used: {unused}\n" if unused else ""
    for field, share in html_columns(rows, written).items():
        notes += f"    # {100 * share:.0f} % of the values of `{field}` hold HTML, which is learned as it stands\n"
    return notes


def _audit(rows: Sequence[Mapping[str, Any]], written: str) -> str:
    """Comments about what is wrong or private in the columns that `written` names, and the line that deals with it."""
    texts = ["\n".join(text for field in columns_in(written, row) or row for text in _texts(row[field])) for row in rows]
    found = Counter(name for text in texts for name in found_in(text) if name not in ("html", "encoding_lost"))
    if twice := len(texts) - len(set(texts)):
        found["duplicate"] = twice
    if not found:
        return ""
    told = "; ".join(f"{words}: {found[name]:,}" for name, words in FINDINGS.items() if found[name])
    return f"    # of {len(rows):,} records that were looked at: {told}\n    # clean: {{{proposed_clean(found)}}}\n"


def _texts(value: Any) -> Iterator[str]:
    """The texts of a field: itself, or those of a list of texts or messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


def _look(source: Source, data: Path) -> list[Mapping[str, Any]]:
    return [row.values for row in islice(iterate_rows(source, str(data)), _LOOK)]


def _of_text(data: Path, rows: Sequence[Mapping[str, Any]]) -> _Guess:
    text = "\n\n".join(str(row["text"]) for row in rows)
    start, end = (re.search(pattern, text) for pattern in _GUTENBERG.values())
    bounds = ""
    if start and end:
        bounds = "".join(f", {field}: '{pattern}'" for field, pattern in _GUTENBERG.items())
        text = text[start.end() : end.start()]
    chapters = len(re.findall(_CHAPTER, text, re.MULTILINE))
    source = f", chapters: '{_CHAPTER}'" if chapters >= _CHAPTERS else f", blocks: {_block_size(text)}"
    half = text[len(text) // 2 :]
    begin = re.search(r"[.!?]\s+(?=[A-Z])", half) or re.search(r"\s", half)
    return _Guess(_text('"{{ text }}"'), _opening(half[begin.end() if begin else 0 :], data), source + bounds)


def _block_size(text: str) -> int:
    """Characters of a block: so few that each part of the split gets several, and no more than a chapter has."""
    return max(_BLOCK[0], min(_BLOCK[1], len(text) // _BLOCKS // 100 * 100))


def _text(template: str) -> str:
    return f"    text: {template}\n"


def _of_chats(rows: Sequence[Mapping[str, Any]]) -> _Guess | None:
    """Conversations, in one of the two formats that are read as they are."""
    for field, form in _CHATS.items():
        if all(isinstance(row.get(field), list) and row[field] and isinstance(row[field][0], Mapping) for row in rows):
            told = _ready(form, [], "the loss is taken on the assistant's turns alone")
            return _Guess(told + _SKIP, "User: Hello!\n\nAssistant:", document=repeated_id(rows), length=512, scored=True)
    return None


def _of_pairs(rows: Sequence[Mapping[str, Any]]) -> _Guess | None:
    """Columns that ask and one that answers them; None where the names say no such thing."""
    found = asking_and_answering(rows)
    if found is None:
        return None
    asks, answers = found
    given = [field for field in _INPUTS if field in rows[0] and field not in (*asks, answers)][:1]
    first, answered = asks[0], [row.get(answers) for row in rows]
    shortest = min((row for row in rows if is_text(row.get(first))), key=lambda row: len(row[first]))
    repeated = always_text(rows, first) and len({row[first] for row in rows}) < len(rows)
    document = repeated_id(rows) or (first if repeated else None)
    if (asks, answers, given) == (["instruction"], "output", ["input"]):
        template, learned = ALPACA, _ready("alpaca", answered, "`instruction`, `input` and `output`")
    elif (asks, answers) == (["prompt"], "completion") and _mostly(rows, lambda row: _is_seam(row[first], row[answers])):
        template = "{{ prompt }}"
        learned = _ready("prompt_completion", answered, "the completion follows the prompt as it is")
    else:
        template = "".join(_part(rows, field) for field in [*asks, *given])[2:] + "\n\n"
        if not always_text(rows, first):
            template = "".join(f"{{% if {field} %}}{{{{ {field} }}}}\n\n{{% endif %}}" for field in [*asks, *given])
        learned = "    tasks:".ljust(44) + "# the loss is taken on the completion alone\n"
        learned += f"      {_task(answers, template, answered)}\n"
    prompt = render(parse_template(template), shortest, "the shortest record")
    return _Guess(learned + _SKIP, prompt, document=document, stratify=stratum(rows, document), length=512, scored=True)


def _part(rows: Sequence[Mapping[str, Any]], field: str) -> str:
    """A paragraph of a template, left out where the field is empty."""
    written = f"\n\n{{{{ {field} }}}}"
    return written if always_text(rows, field) else f"{{% if {field} %}}{written}{{% endif %}}"


def _ready(form: str, answered: Sequence[Any], told: str) -> str:
    """A ready format, with the scores that fit its answers; labels need a task."""
    score = "set_f1" if answered and is_list(answered) else "rouge_l"
    return f"    records: {{format: {form}, score: [{score}]}}".ljust(60) + f"# {told}\n"


def _task(field: str, prompt: str, values: Sequence[Any], lead: str = "") -> str:
    """A task that answers with `field`, and how its answers are scored. `lead` belongs to the answer's first token."""
    written, score = f"{{{{ {field} }}}}", "score: [rouge_l]"
    if is_list(values):
        score = "score: [set_f1]"
        if any(isinstance(value, list) for value in values):
            written = f"{{{{ {field} | join(', ') }}}}"
    elif is_label(values):
        score = "score: [accuracy], labels: from_train"
    return f"{field}: {{prompt: {_quoted(prompt)}, completion: {_quoted(lead + written)}, {score}}}"


def _is_seam(prompt: object, completion: object) -> bool:
    """Whether something stands between prompt and completion where they are joined."""
    first = completion[0] if isinstance(completion, list) and completion else completion
    return isinstance(prompt, list) or str(prompt)[-1:].isspace() or str(first)[:1].isspace()


def _mostly(rows: Sequence[Mapping[str, Any]], test: Callable[[Mapping[str, Any]], bool]) -> bool:
    return 2 * sum(map(test, rows)) > len(rows)


def _of_records(data: Path, rows: Sequence[Mapping[str, Any]]) -> _Guess:
    prose = [field for field in rows[0] if mean_words(rows, field) >= _PROSE_WORDS and not is_address(rows, field)]
    if not prose:
        raise DataError(
            f"{data}: no field of its records is prose ({', '.join(f'`{f}`' for f in rows[0])}); write `text:` by hand"
        )
    longest = max(prose, key=lambda field: mean_words(rows, field))
    # Fields that are sometimes empty would stop the template; the longest is the one worth an error.
    used = [field for field in prose if field == longest or always_text(rows, field)]
    headings = [field for field in used if field != longest and mean_words(rows, field) <= 30]
    text = '"' + r"\n\n".join(f"{{{{ {field} }}}}" for field in used) + '"'
    document = headings[0] if headings else repeated_id(rows)
    learned = _text(text) + _tasks_instead(rows, longest)
    return _Guess(learned, _opening(str(rows[0][used[0]]), data), "", document, stratum(rows, document))


def _tasks_instead(rows: Sequence[Mapping[str, Any]], longest: str) -> str:
    """As comments, tasks that all read the longest field: what the others say of it."""
    tasks = []
    for field in rows[0]:
        values = [row.get(field) for row in rows]
        told = any(values) and (all(isinstance(v, str) for v in values) or all(isinstance(v, list) for v in values))
        if field == longest or not field.isidentifier() or not told or is_address(rows, field):
            continue
        if is_list(values) or is_label(values) or mean_words(rows, field) >= _PROSE_WORDS:
            tasks.append(f"    #   {_task(field, f'{field.capitalize()}:', values, lead=' ')}\n")
    if not tasks:
        return ""
    begun = "    # or, instead of `text`, answers to tasks that all read one field (it is cut where it is too long):\n"
    return f'{begun}    # too_long: cut\n    # context: "{{{{ {longest} }}}}\\n\\n"\n    # tasks:\n' + "".join(tasks)


def _opening(text: str, data: Path) -> str:
    words = text.split()[:5]
    if not words:
        raise DataError(f"{data}: the first record is empty; write the study by hand")
    return " ".join(words)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'

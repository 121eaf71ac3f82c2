"""A first study file from a look at a data file: `paretune init`.

Fields of prose become the text, a heading that names the record its document, a field of few values the stratum; instructions,
prompts with completions, questions with answers and conversations become a task, scored by what its answers look like: lists
as sets, few short values as labels, all else by ROUGE-L. All of it is a guess from the first records,
stands with a comment, and runs as it is on the base that ships with the package.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from paretune.data.records import ALPACA
from paretune.data.sources import iterate_rows
from paretune.data.templates import parse_template, render
from paretune.errors import DataError
from paretune.spec.base import validate
from paretune.spec.data import Source

_LOOK = 1000
"""Records that are looked at."""
_CHAPTER = r"^(?:CHAPTER|Chapter|BOOK|Book|PART|Part|[IVXLC]+\.)\s+\S.*$"
_PROSE_WORDS = 4
"""A field with so many words on average is read as prose."""
_STRATUM = range(2, 21)
_ITEM_WORDS = 4
"""Of an item of a list, and of a label, at most."""
_REPEATS = 5
"""Records for each label."""

_STUDY = """\
# A first comparison on your data, made by `paretune init`. It runs as it is: `paretune run {file}`.
study: {name}
bases:
  small: {{builtin: newsroom-base}}          # ships with Paretune; yours: {{path: DIR}} or {{hub: distilbert/distilgpt2}}
data:
  {name}:
    source: {source}
{about}    split: {{train: 0.8, validation: 0.1, test: 0.1, seed: 13}}
    leakage: remove                         # duplicates between the splits leave the training side; block | allow
{learned}train: {{epochs: 2, batch_size: 8, max_length: {length}}}
seeds: [0]                                  # three or more to say something about a method and not just these weights
variants:
  base: []
  full:    [{{train.full: {{learning_rate: 1.0e-3}}}}]
  lora:    [{{train.lora: {lora}}}]
  shorter: [{{prune.blocks: {{count: 1, choose: last}}}}, {{train.lora: {lora}}}]
evaluate:
  perplexity: {{}}
{answers}  generate: {{prompts: [{prompt}], max_new_tokens: 60}}
  latency: {{}}
"""
_LORA = "{r: 16, alpha: 32, targets: all-linear, learning_rate: 3.0e-3}"


_ANSWERS = "  tasks: {max_documents: 50}".ljust(44) + "# so many held-out documents are answered and scored\n"
_SKIP = "    too_long: skip".ljust(44) + "# left out and counted; error | cut (of a `context`)\n"
_PAIRS = {
    "prompt": ("completion", "response"),
    "instruction": ("output", "response", "completion", "answer"),
    "question": ("answer", "response"),
}
"""What asks, and what answers it, in the names that people give them."""
_INPUTS = ("input", "context")
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


def first_study(data: Path, file: Path) -> str:
    """The text of a study `file` about `data`; DataError for data that cannot be read or holds no prose."""
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
    path = os.path.relpath(data.resolve(), file.resolve().parent)
    about = ""
    if guess.document:
        about += f"    document: {guess.document}".ljust(44) + "# never on two sides of the split\n"
    if guess.stratify:
        about += f"    stratify: {guess.stratify}".ljust(44) + "# keeps its shares in every split\n"
    return _STUDY.format(
        file=file, name=name, about=about, learned=guess.learned, prompt=_quoted(guess.prompt), lora=_LORA, length=guess.length,
        source=f"{{path: {_quoted(path)}{columns}{guess.source}}}", answers=_ANSWERS if guess.scored else "",
    )  # fmt: skip


def _look(source: Source, data: Path) -> list[Mapping[str, Any]]:
    return [row.values for row in islice(iterate_rows(source, str(data)), _LOOK)]


def _of_text(data: Path, rows: Sequence[Mapping[str, Any]]) -> _Guess:
    text = "\n\n".join(str(row["text"]) for row in rows)
    chapters = len(re.findall(_CHAPTER, text, re.MULTILINE))
    source = f", chapters: '{_CHAPTER}'" if chapters >= 10 else ", blocks: 4000"
    start, end = (re.search(rf"\*\*\* ?{word} OF TH.*", text) for word in ("START", "END"))
    if start and end:
        source += r", start: '\*\*\* ?START OF TH.*', end: '\*\*\* ?END OF TH.*'"
        text = text[start.end() : end.start()]
    return _Guess(_text('"{{ text }}"'), _opening(text[len(text) // 2 :], data), source)


def _text(template: str) -> str:
    return f"    text: {template}\n"


def _of_chats(rows: Sequence[Mapping[str, Any]]) -> _Guess | None:
    """Conversations, in one of the two formats that are read as they are."""
    for field, form in _CHATS.items():
        if all(isinstance(row.get(field), list) and row[field] and isinstance(row[field][0], Mapping) for row in rows):
            told = _ready(form, [], "the loss is taken on the assistant's turns alone")
            return _Guess(told + _SKIP, "User: Hello!\n\nAssistant:", document=_repeated_id(rows), length=512, scored=True)
    return None


def _of_pairs(rows: Sequence[Mapping[str, Any]]) -> _Guess | None:
    """A field that asks and one that answers it; None where the names say no such thing."""
    named = {_plain(field): field for field in reversed(rows[0]) if field.isidentifier()}
    found = [
        (named[ask], named[answer]) for ask, several in _PAIRS.items() for answer in several if {ask, answer} <= set(named)
    ]
    asks, answers = found[0] if found else ("", "")
    if not asks or not all(_is_text(row.get(asks)) for row in rows):
        return None
    given = next((field for field in _INPUTS if field in rows[0] and field != answers), None)
    shortest, answered = min(rows, key=lambda row: len(row[asks])), [row.get(answers) for row in rows]
    document = _repeated_id(rows) or (asks if len({row[asks] for row in rows}) < len(rows) else None)
    if (asks, answers, given) == ("instruction", "output", "input"):
        template, learned = ALPACA, _ready("alpaca", answered, "`instruction`, `input` and `output`")
    elif (asks, answers) == ("prompt", "completion") and _mostly(rows, lambda row: _is_seam(row[asks], row[answers])):
        template = "{{ prompt }}"
        learned = _ready("prompt_completion", answered, "the completion follows the prompt as it is")
    else:
        more = "" if given is None else f"{{% if {given} %}}\n\n{{{{ {given} }}}}{{% endif %}}"
        template = f"{{{{ {asks} }}}}{more}\n\n"
        learned = "    tasks:".ljust(44) + "# the loss is taken on the completion alone\n"
        learned += f"      {_task(answers, template, answered)}\n"
    prompt = render(parse_template(template), shortest, "the shortest record")
    return _Guess(learned + _SKIP, prompt, document=document, stratify=_stratum(rows, document), length=512, scored=True)


def _ready(form: str, answered: Sequence[Any], told: str) -> str:
    """A ready format, with the scores that fit its answers; labels need a task."""
    score = "set_f1" if answered and _is_list(answered) else "rouge_l"
    return f"    records: {{format: {form}, score: [{score}]}}".ljust(60) + f"# {told}\n"


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
    return (
        len(counts) in _STRATUM
        and len(values) >= _REPEATS * len(counts)
        and max(map(len, map(str.split, counts))) <= _ITEM_WORDS
    )


def _plain(field: str) -> str:
    """`question` of `Questions`, `question_text` and `questionText`."""
    return re.sub(r"_?text$|s$", "", field.lower())


def _is_seam(prompt: object, completion: object) -> bool:
    """Whether something stands between prompt and completion where they are joined."""
    first = completion[0] if isinstance(completion, list) and completion else completion
    return isinstance(prompt, list) or str(prompt)[-1:].isspace() or str(first)[:1].isspace()


def _mostly(rows: Sequence[Mapping[str, Any]], test: Callable[[Mapping[str, Any]], bool]) -> bool:
    return 2 * sum(map(test, rows)) > len(rows)


def _of_records(data: Path, rows: Sequence[Mapping[str, Any]]) -> _Guess:
    prose = [field for field in rows[0] if _mean_words(rows, field) >= _PROSE_WORDS and not _is_address(rows, field)]
    if not prose:
        raise DataError(
            f"{data}: no field of its records is prose ({', '.join(f'`{f}`' for f in rows[0])}); write `text:` by hand"
        )
    longest = max(prose, key=lambda field: _mean_words(rows, field))
    # Fields that are sometimes empty would stop the template; the longest is the one worth an error.
    used = [field for field in prose if field == longest or all(_is_text(row.get(field)) for row in rows)]
    headings = [field for field in used if field != longest and _mean_words(rows, field) <= 30]
    text = '"' + r"\n\n".join(f"{{{{ {field} }}}}" for field in used) + '"'
    document = headings[0] if headings else _repeated_id(rows)
    learned = _text(text) + _tasks_instead(rows, longest)
    return _Guess(learned, _opening(str(rows[0][used[0]]), data), "", document, _stratum(rows, document))


def _tasks_instead(rows: Sequence[Mapping[str, Any]], longest: str) -> str:
    """As comments, tasks that all read the longest field: what the others say of it."""
    tasks = []
    for field in rows[0]:
        values = [row.get(field) for row in rows]
        told = any(values) and (all(isinstance(v, str) for v in values) or all(isinstance(v, list) for v in values))
        if field == longest or not field.isidentifier() or not told or _is_address(rows, field):
            continue
        if _is_list(values) or _is_label(values) or _mean_words(rows, field) >= _PROSE_WORDS:
            tasks.append(f"    #   {_task(field, f'{field.capitalize()}:', values, lead=' ')}\n")
    if not tasks:
        return ""
    begun = "    # or, instead of `text`, answers to tasks that all read one field (it is cut where it is too long):\n"
    return f'{begun}    # too_long: cut\n    # context: "{{{{ {longest} }}}}\\n\\n"\n    # tasks:\n' + "".join(tasks)


def _repeated_id(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """A field called an id under which several records stand, such as the answers to one question."""
    for field in rows[0]:
        if not (field.lower().endswith("id") and all(isinstance(row.get(field), str | int) for row in rows)):
            continue
        if len(rows) // 10 < len({row[field] for row in rows}) < len(rows):
            return field
    return None


def _stratum(rows: Sequence[Mapping[str, Any]], document: str | None) -> str | None:
    """A field of few, frequent values of which a document has only one."""
    for field in rows[0]:
        values = [row.get(field) for row in rows]
        if not all(isinstance(value, str) and value.strip() for value in values):
            continue
        counts = Counter(values)
        pairs = {(row.get(document), row.get(field)) for row in rows} if document else set()
        if len(counts) in _STRATUM and min(counts.values()) >= 10 and len(pairs) == len({pair[0] for pair in pairs}):
            return field
    return None


def _mean_words(rows: Sequence[Mapping[str, Any]], field: str) -> float:
    texts = [str(row[field]) for row in rows if _is_text(row.get(field))]
    return sum(len(text.split()) for text in texts) / len(texts) if texts else 0.0


def _is_address(rows: Sequence[Mapping[str, Any]], field: str) -> bool:
    return all(str(row.get(field) or "http").startswith("http") for row in rows)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _opening(text: str, data: Path) -> str:
    words = text.split()[:5]
    if not words:
        raise DataError(f"{data}: the first record is empty; write the study by hand")
    return " ".join(words)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'

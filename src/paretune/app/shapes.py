"""The shape of data, recognised from its first records: conversations, pairs, articles, labels, plain text.

Columns that ask and one that answers them are known by the words of their names (`questionText`, `question_text` and
`Questions` all say `question`), or because one ends in question marks; an answer that is a list of sentences holds several
right ones. A long text beside fields that tell about it is an article with a task for each of these, and short texts beside few
values that repeat are a classification. What fits none of these is text to continue. All of it is a guess.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune.data.audit import LABELS
from paretune.data.groups import words_of_name
from paretune.data.records import ALPACA
from paretune.data.templates import named_value, parse_template, render
from paretune.errors import DataError

Rows = Sequence[Mapping[str, Any]]

_CHAPTER = r"^(?:CHAPTER|Chapter|BOOK|Book|PART|Part|[IVXLC]+\.)\s+\S.*$"
_CHAPTERS = 30
"""With fewer, too few are held out to measure anything by; blocks are cut then."""
_BLOCKS = 100
"""That a text is cut into at least, as far as their size allows."""
_BLOCK = (500, 4000)
"""Characters of a block, at least and at most."""
_GUTENBERG = {"start": r"\*\*\* ?START OF TH[^*]*\*\*\*", "end": r"\*\*\* ?END OF TH"}
"""Between these lines, of which the first may be two, stands a book of Project Gutenberg."""
PROSE_WORDS = 4
"""A field with so many words on average is read as prose."""
_ARTICLE_WORDS = 40
"""A text with so many on average is one that others tell about."""
_ANSWERS = ("answer", "response", "reply", "completion", "output", "solution", "target")
_PAIRS = {
    "prompt": ("completion", "response", "answer", "output", "chosen", "target"),
    "instruction": ("output", "response", "completion", "answer", "target"),
    "question": _ANSWERS,
    "query": _ANSWERS,
    "problem": ("solution", "answer"),
    "context": ("response",),
    "input": ("output", "response", "target", "completion", "answer"),
    "source": ("target",),
    "src": ("tgt",),
    "user": ("assistant",),
    "human": ("assistant", "bot", "gpt"),
    "q": ("a",),
}
"""What asks, and what answers it, in the names that people give them."""
_INPUTS = ("input", "context")
_CHATS = {"messages": "messages", "conversations": "sharegpt"}
_ABOUT = {"id", "uuid", "url", "link", "count", "number", "date", "time", "score", "type", "category", "author", "name"}
"""Words of columns that tell something about a text."""
_OUTSIDE = _ABOUT - {"type", "category"} | {"source", "split", "language", "lang", "licence", "license"}
"""... that a model does not learn from the text itself."""
_TOLD = {"title", "headline", "summary", "abstract", "highlight", "tag", "keyword", "topic", "caption"}
"""Words of columns that are told of another."""
_LABELLED = {"label", "class", "category", "sentiment", "intent", "target", "star"}
"""Words of columns whose numbers are labels."""
_REFERENCES = {"reference", "alias", "target", "summary"}
"""Words of columns whose lists hold several right answers, and not one that is a list."""
_FILLING = {"text", "body", "content"}
_ASKING_WORDS = 3
"""Words on average of a column that asks and is not simply called so: a title does, a difficulty does not."""
_ASKED = 0.9
"""Share of records in which a column is filled, or ends in a question mark."""
_USED = 8
"""Columns that a study joins to a text, or writes tasks for, at most."""
_ITEM_WORDS = 4
"""Of an item of a list, and of a label, at most."""
_REPEATS = 5
"""Records for each label."""
_CHOICES = 200
"""Characters of all labels that a prompt names, at most."""
_YOURS = "# <- what is asked, and what is answered"
_SKIP = "    too_long: skip".ljust(44) + "# left out and counted; error | cut (of a `context`)\n"


@dataclass(frozen=True)
class Turn:
    """What stands around a prompt: nothing but an empty line, or what a chat template writes around what a user says."""

    before: str = ""
    after: str = "\n\n"
    is_templated: bool = False


@dataclass(frozen=True)
class Shape:
    """What a dataset is taken for, and how a study says so."""

    name: str
    """In words."""
    why: str
    learned: str
    """The lines of the dataset that say what is learned."""
    prompt: str
    """One to continue, or to answer."""
    needs: tuple[str, ...] = ()
    """The fields that are never to be empty."""
    reads: tuple[str, ...] = ()
    """Further fields, of a ready format."""
    source: str = ""
    document: str | None = None
    stratify: str | None = None
    length: int = 256
    scored: bool = False
    """There are tasks whose answers are scored."""
    asks: bool = False
    """It has prompts, which a chat template fits."""

    @property
    def skips(self) -> bool:
        """Whether examples that are too long are left out."""
        return _SKIP in self.learned


def recognise(data: Path, rows: Rows, group: str | None, turn: Turn) -> Shape:
    """The shape of the records of `data`, which `group` names a document of and `turn` stands around prompts in.

    DataError for records without prose.
    """
    return _of_chats(rows, group) or _of_pairs(rows, group, turn) or _of_records(data, rows, group, turn)


def shape_of_text(data: Path, rows: Rows) -> Shape:
    """Of a text file: cut at its chapters where there are many, in blocks otherwise."""
    text = "\n\n".join(str(row["text"]) for row in rows)
    start, end = (re.search(pattern, text) for pattern in _GUTENBERG.values())
    bounds = ""
    if start and end:
        bounds = "".join(f", {field}: '{pattern}'" for field, pattern in _GUTENBERG.items())
        text = text[start.end() : end.start()]
    num_chapters = len(re.findall(_CHAPTER, text, re.MULTILINE))
    if num_chapters >= _CHAPTERS:
        source, why = f", chapters: '{_CHAPTER}'", f"a text file, cut at its {num_chapters:,} chapters"
    else:
        # So small that each part of the split gets several blocks, and no larger than a chapter.
        block = max(_BLOCK[0], min(_BLOCK[1], len(text) // _BLOCKS // 100 * 100))
        source, why = f", blocks: {block}", f"a text file, cut in blocks of {block:,} characters"
    half = text[len(text) // 2 :]
    begin = re.search(r"[.!?]\s+(?=[A-Z])", half) or re.search(r"\s", half)
    prompt = _opening(half[begin.end() if begin else 0 :], data)
    return Shape("plain text", why, '    text: "{{ text }}"\n', prompt, source=source + bounds)


def _of_chats(rows: Rows, group: str | None) -> Shape | None:
    """Conversations, in one of the two formats that are read as they are."""
    for field, form in _CHATS.items():
        if all(isinstance(row.get(field), list) and row[field] and isinstance(row[field][0], Mapping) for row in rows):
            learned = _ready(form, [], "the loss is taken on the assistant's turns alone")
            said = [item for row in rows for item in row[field] if (item.get("role") or item.get("from")) in ("user", "human")]
            texts = [text for item in said if is_filled(text := item.get("content") or item.get("value")) and len(text) < 300]
            first = str(texts[0]) if texts else "Hello!"
            why = f"`{field}` holds lists of turns"
            learned += _SKIP
            return Shape("conversations", why, learned, first, (field,), document=group, length=512, scored=True, asks=True)
    return None


def _of_pairs(rows: Rows, group: str | None, turn: Turn) -> Shape | None:
    """Columns that ask and one that answers them; None where neither names nor question marks say such a thing."""
    by_name = _asking_and_answering(rows)
    pair = by_name or _by_question_marks(rows)
    if pair is None:
        return None
    asks, answers = pair
    given = [field for field in _INPUTS if field in rows[0] and field not in (*asks, answers)][:1]
    first, answered = asks[0], [row.get(answers) for row in rows]
    always_asked = is_always_filled(rows, first)
    if (asks, answers, given) == (["instruction"], "output", ["input"]) and not turn.is_templated:
        template, learned = ALPACA, _ready("alpaca", answered, "`instruction`, `input` and `output`")
    elif (asks, answers) == (["prompt"], "completion") and not turn.is_templated and 2 * sum(map(_is_joined, rows)) > len(rows):
        template = "{{ prompt }}"
        learned = _ready("prompt_completion", answered, "the completion follows the prompt as it is")
    else:
        if always_asked:
            parts = {field: f"\n\n{_written(rows, field)}" for field in [*asks, *given]}
            optional = [field for field in parts if not is_always_filled(rows, field)]
            parts |= {field: f"{{% if {field} %}}{parts[field]}{{% endif %}}" for field in optional}
            template = turn.before + "".join(parts.values())[2:] + turn.after
        else:
            parts = {field: f"{{% if {field} %}}{_written(rows, field)}\n\n{{% endif %}}" for field in [*asks, *given]}
            template = turn.before + "".join(parts.values()) + (turn.after if turn.is_templated else "")
        learned = "    tasks:".ljust(44) + f"{_YOURS}; the loss is taken on the completion alone\n"
        learned += f"      {_task(answers, template, answered, further=_further(rows, answers))}\n"
    shortest = min((row for row in rows if is_filled(row.get(first))), key=lambda row: len(str(row[first])))
    prompt = render(parse_template(template), shortest, "the shortest record")
    repeated = always_asked and len({str(row[first]) for row in rows}) < len(rows)
    document = group or (first if repeated and isinstance(rows[0][first], str) else None)
    return Shape(
        "prompts with answers",
        f"{listed(asks)} ask{'' if len(asks) > 1 else 's'} and `{answers}` answers, by "
        + ("their names" if by_name else "its question marks"),
        learned + _SKIP,
        prompt,
        needs=(*([first] if always_asked else []), answers),
        reads=(*asks, *given),
        document=document,
        stratify=_stratum(rows, document),
        length=512,
        scored=True,
        asks=True,
    )


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
                if ask in words
                and field not in answers
                and not isinstance(rows[0][field], Mapping)
                and (words == [ask] or mean_words(rows, field) >= _ASKING_WORDS)
            ]
            asks.sort(key=lambda field: not is_always_filled(rows, field))
            if answers and sum(any(is_filled(row.get(field)) for field in asks) for row in rows) >= _ASKED * len(rows):
                best = max(answers, key=lambda field: (names[field] == [answer], mean_words(rows, field)))
                # Of `summary1` and `summary2` the first.
                return asks, next(field for field in answers if field.rstrip("0123456789") == best.rstrip("0123456789"))
    return None


def _by_question_marks(rows: Rows) -> tuple[list[str], str] | None:
    """Two columns of prose of which one is questions, whatever they are called."""
    prose = [field for field in rows[0] if field.isidentifier() and _is_prose(rows, field)]
    asks = [f for f in prose if sum(str(row.get(f)).rstrip().endswith("?") for row in rows) >= _ASKED * len(rows)]
    return (asks, next(field for field in prose if field not in asks)) if len(prose) == 2 and len(asks) == 1 else None


def _further(rows: Rows, answers: str) -> list[str]:
    """Columns with more right answers: `summary2` beside `summary1`, a list `answers` beside `answer`."""
    stem, words = answers.rstrip("0123456789"), {"reference", *_words(answers)}
    return [
        field
        for field in rows[0]
        if field != answers
        and field.isidentifier()
        and (
            (stem != answers and field.rstrip("0123456789") == stem)
            or (words & set(_words(field)) and all(isinstance(row.get(field), list) for row in rows))
        )
    ]


def _is_joined(row: Mapping[str, Any]) -> bool:
    """Whether something stands between prompt and completion where they are joined."""
    prompt, completion = row["prompt"], row["completion"]
    first = completion[0] if isinstance(completion, list) and completion else completion
    return isinstance(prompt, list) or str(prompt)[-1:].isspace() or str(first)[:1].isspace()


def _ready(form: str, answered: Sequence[Any], comment: str) -> str:
    """A ready format, with the scores that fit its answers; labels need a task."""
    score = "set_f1" if answered and _is_list(answered) else "rouge_l"
    return f"    records: {{format: {form}, score: [{score}]}}".ljust(60) + f"# {comment}\n"


def _task(field: str, prompt: str, values: Sequence[Any], lead: str = "", further: Sequence[str] = ()) -> str:
    """A task that answers with `field`, and how its answers are scored. `lead` belongs to the answer's first token, and
    `further` fields hold right answers too."""
    written, score, references = f"{{{{ {field} }}}}", "score: [rouge_l]", list(further)
    if all(isinstance(value, Mapping) and isinstance(value.get("text"), list) for value in values):
        # Of SQuAD; an answer of no text is left out and counted.
        written, score, references = f"{{{{ {field}.text | first | default('') }}}}", "score: [squad_em, rouge_l]", [field]
    elif _has_several(field, values):
        written, references = f"{{{{ {field} | first | default('') }}}}", [field, *further]
    elif _is_list(values):
        score = "score: [set_f1]"
        if any(isinstance(value, list) for value in values):
            written = f"{{{{ {field} | join(', ') }}}}"
    elif _is_label(field, values):
        score = "score: [accuracy], labels: from_train"
    right_too = f", references: [{', '.join(references)}]" if references else ""
    return f"{field}: {{prompt: {quoted(prompt)}, completion: {quoted(lead + written)}{right_too}, {score}}}"


def _of_records(data: Path, rows: Rows, group: str | None, turn: Turn) -> Shape:
    """An article with what is told of it, texts with labels, or fields of prose as one text."""
    prose = [field for field in rows[0] if _is_prose(rows, field) and not _is_address(rows, field)]
    if not prose:
        inside = {name for value in rows[0].values() if isinstance(value, Mapping) for name in value}
        if {"choices", "options"} & (inside | set(rows[0])):
            raise DataError(
                f"{data}: holds questions with options, which measure and do not teach: write "
                f"`evaluate: {{qa: {{path: {data}}}}}` in a study that learns from other data"
            )
        raise DataError(f"{data}: no field of its records is prose ({listed(list(rows[0]))}); write `text:` by hand")
    longest = max(prose, key=lambda field: mean_words(rows, field))
    # Fields that are sometimes empty would stop the template; the longest is the one worth an error.
    used = [field for field in prose if field == longest or is_always_filled(rows, field)]
    kept = sorted(used, key=lambda field: -mean_words(rows, field))[:_USED]
    used = [field for field in used if field in kept]
    headings = [field for field in used if field != longest and mean_words(rows, field) <= 30]
    headings = [field for field in headings if all(isinstance(row[field], str) for row in rows)]
    document = group or (headings[0] if headings else None)
    text = "\\n\\n".join(_written(rows, field) for field in used)
    opening = _opening(_flat(rows[0][used[0]]), data)
    told: dict[str, list[Any]] = {}
    for field in rows[0]:
        values = [row.get(field) for row in rows]
        outside = field == longest or not field.isidentifier() or set(_words(field)) & _OUTSIDE or _is_address(rows, field)
        # A completion that is empty is left out and counted, so a few do not make a label less of one.
        filled = [value for value in values if is_filled(value)]
        values = filled if len(filled) >= _ASKED * len(values) else values
        if outside or not filled or len({type(value) for value in values}) > 1:
            continue
        if _is_list(values) or _is_label(field, values) or mean_words(rows, field) >= PROSE_WORDS:
            told[field] = values
    labels = [field for field, values in told.items() if _is_label(field, values)]
    article = mean_words(rows, longest) >= _ARTICLE_WORDS or any(set(_words(field)) & _TOLD for field in told)
    if not labels and not (article and told):
        why = f"{listed(used)} {'are' if len(used) > 1 else 'is'} prose, and no other field tells about it"
        learned = f'    text: "{text}"'.ljust(43) + " # <- what is learned, field after field\n"
        stratum = _stratum(rows, document)
        return Shape("plain text", why, learned, opening, needs=tuple(used), document=document, stratify=stratum)
    if article:
        name, read, asked = "articles with what is told of them", [longest], list(told)[:_USED]
        why = f"`{longest}` is the long text, and {listed(asked)} tell{'' if len(asked) > 1 else 's'} about it"
    else:
        name, read, asked = "texts with labels", [field for field in used if field not in labels], labels[:_USED]
        why = f"{listed(asked)} {'hold' if len(asked) > 1 else 'holds'} few values that repeat, beside {listed(read)}"
    context = turn.before + "\n\n".join(_written(rows, field) for field in read) + "\n\n"
    learned = "    too_long: cut".ljust(44) + "# the end of the context; skip | error\n"
    learned += f"    context: {quoted(context)}\n" + "    tasks:".ljust(44) + f"{_YOURS}, of the context\n"
    for field in asked:
        prompt = _request(field, told[field]) + turn.after if turn.is_templated else f"{field.capitalize()}:"
        learned += f"      {_task(field, prompt, told[field], lead='' if turn.is_templated else ' ')}\n"
    if left := [field for field in told if field not in (*asked, *read)]:
        learned += f"    # no task yet: {listed(left)}\n"
    learned += f'    # or text to continue, in place of `too_long`, `context` and `tasks`: text: "{text}"\n'
    shown = min((row for row in rows if all(is_filled(row.get(f)) for f in read)), key=lambda r: len(_flat(r[read[-1]])))
    prompt = render(parse_template(context), shown, "the shortest record")
    prompt += _request(asked[0], told[asked[0]]) + turn.after if turn.is_templated else f"{asked[0].capitalize()}:"
    return Shape(
        name,
        why,
        learned,
        prompt,
        needs=(*read, *asked),
        document=document,
        stratify=_stratum(rows, document),
        length=512 if article else 256,
        scored=True,
        asks=True,
    )


def _request(field: str, values: Sequence[Any]) -> str:
    """What a person would ask an assistant to tell of a text."""
    name = " ".join(words_of_name(field)) or field
    if _is_list(values) and not _has_several(field, values):
        return f"List the {name}s of this text, separated by commas."
    if _is_label(field, values):
        labels = " | ".join(sorted({str(value).strip() for value in values}))
        among = f" Answer with one of: {labels}." if len(labels) <= _CHOICES else ""
        return f"What is the {name} of this text?{among}"
    return f"Write the {name} of this text."


def _opening(text: str, data: Path) -> str:
    words = text.split()[:5]
    if not words:
        raise DataError(f"{data}: the first record is empty; write the study by hand")
    return " ".join(words)


def quoted(text: str) -> str:
    """As YAML writes a text between double quotes."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    return f'"{escaped}"'


def listed(fields: Sequence[str], most: int = 20) -> str:
    """Names of columns in a sentence, `most` of them."""
    more = f" and {len(fields) - most:,} more" if len(fields) > most else ""
    return ", ".join(f"`{field}`" for field in fields[:most]) + more


def _words(field: str) -> list[str]:
    """The words of a column's name in the singular, but for those that only say that it is a text."""
    words = words_of_name(field)
    return [word for word in words if word not in _FILLING] or words


def _written(rows: Rows, field: str) -> str:
    """A field in a template: a text, or the sentences of a list one after the other."""
    joined = " | join(' ')" if any(isinstance(row.get(field), list) for row in rows) else ""
    return f"{{{{ {field}{joined} }}}}"


def _flat(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _has_several(field: str, values: Sequence[Any]) -> bool:
    """Lists of several right answers: of sentences, or of a column that is called so."""
    items = [item for value in values if _is_texts(value) for item in value]
    if not items or not all(_is_texts(value) for value in values):
        return False
    sentences = sum(len(item.split()) for item in items) > _ITEM_WORDS * len(items)
    return sentences or bool(set(_words(field)) & _REFERENCES)


def _is_list(values: Sequence[Any]) -> bool:
    """Lists of short texts, or texts that write most of them: several short items between commas, without a sentence's end."""
    if all(_is_texts(value) for value in values):
        return True
    texts = [value for value in values if isinstance(value, str) and value.strip()]
    items = [[item.split() for item in re.split(r"[,;\n]", text)] for text in texts if not re.search(r"[.!?]\s|[.!?]$", text)]
    written = [parts for parts in items if len(parts) > 1 and max(map(len, parts)) <= _ITEM_WORDS]
    return len(texts) == len(values) and 2 * len(written) > len(texts)


def _is_label(field: str, values: Sequence[Any]) -> bool:
    """Few short texts, each of which stands there often; whole numbers where the column is called a label."""
    numbers = bool(set(_words(field)) & _LABELLED) and all(isinstance(value, int) for value in values)
    if not numbers and not all(isinstance(value, str) and value.strip() for value in values):
        return False
    counts = Counter(str(value).strip() for value in values)
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


def mean_words(rows: Rows, field: str) -> float:
    """Words of a field in a record on average, of texts and of lists of them."""
    texts = [_flat(row[field]) for row in rows if isinstance(row.get(field), str) or _is_texts(row.get(field))]
    lengths = [len(text.split()) for text in texts if text.strip()]
    return sum(lengths) / len(lengths) if lengths else 0.0


def _is_prose(rows: Rows, field: str) -> bool:
    values = [row.get(field) for row in rows]
    items = [item for value in values if isinstance(value, list) and _is_texts(value) for item in value]
    of_words = bool(items) and sum(len(item.split()) for item in items) <= _ITEM_WORDS * len(items)
    return mean_words(rows, field) >= PROSE_WORDS and not of_words


def _is_address(rows: Rows, field: str) -> bool:
    return all(str(row.get(field) or "http").startswith("http") for row in rows)


def is_filled(value: Any) -> bool:
    """Whether a field has something that a template can write."""
    if isinstance(value, str):
        return bool(value.strip())
    return bool(value) if isinstance(value, list | Mapping) else value is not None


def is_always_filled(rows: Rows, field: str) -> bool:
    """Whether no record leaves a field empty."""
    return all(is_filled(row.get(field)) for row in rows)

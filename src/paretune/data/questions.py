"""Questions with known answers, from the file formats that people have them in.

A file is a JSON list, an object with `questions`, JSON lines or CSV, packed or not, Parquet, Arrow or a sheet. A question with
options is multiple choice; where they stand and how the answer names one of them is told by `choices.py`: OpenBookQA, ARC,
MMLU, MedMCQA, MedQA, HellaSwag, PIQA, SciQ, TruthfulQA and tables of people's own. Read otherwise are

    own         {"question": ..., "answer": ...}: a factual question, which may have several right answers: "answers": [...],
                or SQuAD's {"text": [...]}, or more fields of the record by the study's `references`
    mmlu        CSV rows of question, A, B, C, D and the letter of the answer without a header
    boolq       {"question": ..., "passage": ..., "answer": true}
    pubmedqa    {"question": ..., "context": {"contexts": [...]}, "final_decision": "maybe"}

Whatever does not fit is refused with file, record, field and the way out: a question misread scores models silently wrong.
What a model is asked about a question is written by templates. No torch here: a study is refused before its first stage
where its templates or `slice_by` do not fit its questions.
"""

import csv
import io
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NoReturn

from paretune.data.choices import RULES, Answer, Choices, answer_values, decide, find_choices, looks_chosen, plain
from paretune.data.files import whole_text
from paretune.data.json_text import parse_json
from paretune.data.newsroom import questions
from paretune.data.references import references_in
from paretune.data.sources import iterate_rows, separator_of
from paretune.data.templates import Template, render
from paretune.errors import DataError
from paretune.pipeline.data_files import format_of_file
from paretune.study.base import shown
from paretune.study.data import Source
from paretune.study.evaluations import Rule

NEWSROOM = "builtin:newsroom"
_LETTERS = tuple(ascii_uppercase)
_ASKED = ("question", "questionstem", "questiontext", "query", "goal", "ctx", "stem", "problem", "sentence")
"""Fields that hold a question, by `plain`; all but the first four of one with options alone."""
_ANSWERED = ("id", "answer", "answers", "options", "choices", "answer_index", "answerKey")
"""Fields that no template sees of a factual question."""
_RULES: dict[str, tuple[Rule, ...]] = {
    "own": ("text",),
    "arc": ("label",),
    "openbookqa": ("label",),
    "mmlu": ("letter", "from_0"),
}
"""How the answers of a format that the study names are read, where it does not say that too."""
_FORMATS = (
    'expected `{"question": "...", "answer": "..."}`, with `"options": ["...", ...]` or columns (`option_a`, `choice0`, ...) '
    "for multiple choice, or the format of OpenBookQA or ARC (`choices`, `answerKey`), "
    "MMLU (CSV: question, A, B, C, D, answer), "
    "SciQ (`correct_answer`, `distractor1`), BoolQ (`passage`, `answer: true`) or PubMedQA (`final_decision`)"
)


@dataclass(frozen=True)
class Question:
    """One question; multiple choice where it has options, factual where it has none."""

    id: str
    question: str
    options: tuple[str, ...]
    answer: str
    answer_index: int | None
    """Into `options`; None for a factual question."""
    fields: Mapping[str, Any]
    """What else the record holds, to slice by and for templates."""
    context: str = ""
    """What stands before the question, where the format has such a text."""
    others: tuple[str, ...] = ()
    """What would be right too as an answer to a factual question."""


@dataclass(frozen=True)
class Request:
    """What a model is asked about one question."""

    question: Question
    prompt: str
    answers: tuple[str, ...]
    """The options as they follow the prompt, or the one answer of a factual question."""

    @property
    def factual(self) -> bool:
        return not self.question.options


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a file."""

    questions: tuple[Question, ...]
    read_as: tuple[str, ...]
    """How the records were read, in words: one line for each form that they have."""


@dataclass(frozen=True)
class _Draft:
    """A record whose answer is not yet read."""

    where: str
    id: str
    question: str
    record: Mapping[str, Any]
    read: frozenset[str]
    """Fields that are taken."""
    choices: Choices | None
    answers: tuple[str, ...] = ()
    """Of a factual question, all right."""
    context: str = ""


def read_questions(
    location: str | Path, format: str | None = None, right_option: Rule | None = None, references: Sequence[str] = ()
) -> list[Question]:
    """The questions of `read_question_set`."""
    return list(read_question_set(location, format, right_option, references).questions)


def read_question_set(
    location: str | Path, format: str | None = None, right_option: Rule | None = None, references: Sequence[str] = ()
) -> QuestionSet:
    """The questions of a file, or of `builtin:newsroom`; DataError for anything that is not a question with an answer.

    `format` is one of those above, and `right_option` how answers name an option; the records say both unless given.
    `references` are fields or templates of what is right too as an answer to a factual question.
    """
    if str(location) == NEWSROOM:
        where, records = NEWSROOM, [(f"record {n}", record) for n, record in enumerate(questions(), start=1)]
    elif str(location).startswith("builtin:"):
        raise DataError(f"no built-in questions `{str(location).removeprefix('builtin:')}`; known: `newsroom`")
    else:
        where, records = str(location), _records(Path(location))
    if not records:
        raise DataError(f"{where}: holds no question; {_FORMATS}")
    drafts = [_drafted(record, f"{where}: {at}", str(n), format, references) for n, (at, record) in enumerate(records, start=1)]
    read: dict[int, Question] = {}
    told: list[str] = []
    # Records of one form are decided on together.
    forms: dict[tuple[str, ...], list[tuple[int, _Draft, Answer]]] = {}
    for n, draft in enumerate(drafts):
        if draft.choices is not None and draft.choices.right is None:
            values = answer_values(draft.record, draft.choices, draft.where)
            if not values:
                named, source = "answerKey" if draft.choices.labelled else "answer", draft.choices.source
                more = f"; or name the {source} in `references`, if all are right" if source.startswith("columns") else ""
                _refuse(draft.where, f"`{named}` is missing; add it, or leave the record out{more}")
            forms.setdefault((draft.choices.source, *values), []).append((n, draft, Answer(draft.choices, values, draft.where)))
    for (source, *fields), of_form in forms.items():
        rules = RULES if format is None else _RULES.get(format, RULES)
        rules = (right_option,) if right_option else ("from_0",) if format == "own" and fields[0] == "answer_index" else rules
        places, words = decide([answer for _, _, answer in of_form], rules)
        told.append(f"{len(of_form)} of multiple choice, {source}, {words}")
        for (n, draft, _), place in zip(of_form, places, strict=True):
            read[n] = _chosen(draft, place, fields)
    beside = Counter[str]()
    for n, draft in enumerate(drafts):
        if draft.choices is not None and draft.choices.right is not None:
            read[n] = _chosen(draft, draft.choices.right, ())
            beside[draft.choices.source] += 1
        elif draft.choices is None:
            fields = {name: value for name, value in draft.record.items() if name not in draft.read}
            right = tuple(dict.fromkeys(draft.answers))
            read[n] = Question(draft.id, draft.question, (), right[0], None, fields, draft.context, right[1:])
    told += [f"{num} of multiple choice, {source}" for source, num in beside.items()]
    factual = [draft for draft in drafts if draft.choices is None]
    if format is None:
        _refuse_hidden_options(factual, where)
    told += [f"{len(factual)} factual, with an answer in words"] if factual else []
    found = [read[n] for n in range(len(drafts))]
    _refuse_repetitions(found, where)
    return QuestionSet(tuple(found), tuple(told))


def question_texts(
    location: str | Path, format: str | None = None, right_option: Rule | None = None, references: Sequence[str] = ()
) -> list[str]:
    """Each question with all its right answers, as the text that must not stand in training data."""
    found = read_questions(location, format, right_option, references)
    return [" ".join([question.question, question.answer, *question.others]) for question in found]


def _drafted(record: Any, where: str, number: str, format: str | None, references: Sequence[str]) -> _Draft:
    """One record of any of the formats; `number` is its id where it has none. DataError beginning with `where`."""
    if not isinstance(record, Mapping):
        _refuse(where, f"is {shown(record)}; {_FORMATS}")
    by_name = {plain(name): name for name in reversed(record)}
    name = record.get("id", number)
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        _refuse(where, f"`id` is {shown(name)}; expected a text or a whole number")
    asked = [by_name[each] for each in _ASKED if each in by_name]
    stem = record[asked[0]] if asked and plain(asked[0]) in _ASKED[:4] else None
    question = stem.get("stem") if isinstance(stem, Mapping) else stem
    yes_no = _yes_no(record, where, format)
    choices = yes_no[0] if yes_no else None
    if yes_no is None and format != "own":
        choices = find_choices(record, str(question), where, references)
    elif yes_no is None and record.get("options"):
        choices = find_choices({"options": record["options"]}, str(question), where)
    if choices is not None and question is None and asked:
        question = record[asked[0]]
    question = _text(question, "question", where)
    read = frozenset({"id", *asked[:1], *references})
    if choices is not None:
        beside = yes_no is None and choices.right is not None  # as SciQ, whose questions may have a text to read first
        context = yes_no[1] if yes_no else _optional_text(record.get("support"), "support", where) if beside else ""
        taken = {*choices.read, "support"} if beside else set(choices.read)
        return _Draft(where, str(name), question, record, read | taken, choices, context=context)
    if format in ("arc", "openbookqa", "mmlu") or isinstance(stem, Mapping):
        _refuse(where, "`choices` is `null`; expected a list of `text` and `label`, or an object of two such lists")
    if format == "sciq" or ("correct_answer" in record and "answer" not in record):
        _refuse(where, "`distractor1` is missing; a question of SciQ has one to three wrong answers")
    if record.get("answer_index") is not None:
        index = shown(record["answer_index"])
        _refuse(where, f"`answer_index` is {index}; expected a number from 0 that counts the options, and there are none")
    given, more = record.get("answers"), references_in(references, record, where)
    answers: tuple[str, ...] = ()
    if given is not None:
        answers = references_in(("answers",), record, where)
        if not isinstance(given, list | Mapping) or not answers:
            _refuse(where, f"`answers` is {shown(given)}; expected a list of texts, all right, of a question without `options`")
    if record.get("answer") is not None or not (answers or more):
        if record.get("answer") is None:
            _refuse(where, "`answer` is missing; add it, or leave the record out")
        if isinstance(record["answer"], int) and not isinstance(record["answer"], bool):
            number = shown(record["answer"])
            _refuse(
                where, f"`answer` is {number}, a number as of an option, and {_no_options(record)} the answer itself in quotes"
            )
        answers = (_text(record["answer"], "answer", where), *answers)
    return _Draft(where, str(name), question, record, read | set(_ANSWERED), None, (*answers, *more))


def _chosen(draft: _Draft, place: int, answered: Sequence[str]) -> Question:
    assert draft.choices is not None
    options, answer = draft.choices.options, draft.choices.texts[place]
    if options.count(answer) > 1:
        _refuse(draft.where, f"`options` holds the answer {shown(answer)} twice; remove one of them")
    # Before it stand as many as are not empty.
    index = sum(bool(text) for text in draft.choices.texts[:place])
    fields = {name: value for name, value in draft.record.items() if name not in draft.read and name not in answered}
    return Question(draft.id, draft.question, options, answer, index, fields, draft.context)


def _refuse_hidden_options(factual: Sequence[_Draft], where: str) -> None:
    """DataError where all answers look like a letter or number of an option."""
    answers = [draft.answers[0] for draft in factual]
    if len(answers) < 2 or not all(map(looks_chosen, answers)):
        return
    names = dict.fromkeys(name for draft in factual for name in draft.record)
    seen = ", ".join(f"`{answer}`" for answer in list(dict.fromkeys(answers))[:6])
    raise DataError(
        f"{where}: the answers of all {len(answers)} questions without options look like the letter or number of an option "
        f"({seen}), and {_no_options(names)} `format: own` where these are the answers themselves"
    )


def _no_options(names: Iterable[str]) -> str:
    seen = ", ".join(f"`{name}`" for name in names)
    return (
        f"no options are found among {seen}; name them `option_a`, `option_b`, ... or put them into a list `options`; or write"
    )


def _refuse_repetitions(found: Sequence[Question], where: str) -> None:
    ids: dict[str, int] = {}
    asked: dict[tuple[str, ...], int] = {}
    for n, question in enumerate(found, start=1):
        if question.id in ids:
            raise DataError(f"{where}: record {n}: `id` {shown(question.id)} is that of record {ids[question.id]}; rename one")
        # A question that counts twice makes the intervals narrower than they are.
        content = (question.context, question.question, *question.options, question.answer)
        if content in asked:
            raise DataError(
                f"{where}: record {n}: {shown(question.question)} is the question of record {asked[content]}, with the same "
                "answer; remove one"
            )
        ids[question.id] = asked[content] = n


def request_of(question: Question, prompt: Template, answer: Template, context: Template | None = None) -> Request:
    """The templates filled with a question, taken literally: nothing is trimmed, and the prompt does not know the answer.

    `context` comes before the prompt of a question that has one. DataError for a field that the question lacks.
    """
    where = f"question `{question.id}`"
    fields = {**question.fields, "question": question.question, "options": list(question.options)}
    fields |= {"context": question.context} if question.context else {}
    texts = question.options or (question.answer,)
    answers = (render(answer, {**fields, "answer": text}, where) for text in texts)
    before = render(context, fields, where) if context is not None and question.context else ""
    return Request(question, before + render(prompt, fields, where), tuple(answers))


def fitted(
    question: Question, request: Callable[[Question], Request], fits: Callable[[Request], bool], rule: str
) -> tuple[Request | None, bool]:
    """What is asked about a question, None where it is too long and left out, and whether something was cut to make it fit.

    `cut` keeps the beginning of what is read first, or of the question where there is nothing, and `keep_end` its end: as many
    characters as `fits`, but not none.
    """
    whole = request(question)
    if fits(whole):
        return whole, False
    if rule not in ("cut", "keep_end"):
        return None, False
    field = "context" if question.context else "question"
    text = str(getattr(question, field))

    def with_characters(num: int) -> Request:
        return request(replace(question, **{field: text[:num] if rule == "cut" else text[len(text) - num :]}))

    most = bisect_left(range(1, len(text)), True, key=lambda num: not fits(with_characters(num)))
    return (with_characters(most), True) if most else (None, False)


def slices_of(question: Question, names: Sequence[str]) -> dict[str, str]:
    """The value of each field that scores are broken down by; DataError for one that is missing or no single value."""
    missing = [name for name in names if not isinstance(question.fields.get(name), str | int | float | bool)]
    if missing:
        raise DataError(
            f"question `{question.id}` has no single value in the field `{missing[0]}` that `slice_by` names; add it to the "
            "question, or leave it out of `slice_by`"
        )
    return {name: str(question.fields[name]) for name in names}


def _yes_no(record: Mapping[str, Any], where: str, format: str | None) -> tuple[Choices, str] | None:
    """Options and context of a record of BoolQ or PubMedQA; None for one of neither."""
    if format == "pubmedqa" or (format is None and "final_decision" in record):
        answer, options = record.get("final_decision"), ("yes", "no", "maybe")
        if answer not in options:
            _refuse(where, f"`final_decision` is {shown(answer)}; expected `yes`, `no` or `maybe`")
        context = record.get("context", record.get("CONTEXTS"))
        context = context.get("contexts") if isinstance(context, Mapping) else context
        if isinstance(context, list):
            context = "\n".join(_text(part, "context", where) for part in context)
        read = ("final_decision", "context", "CONTEXTS")
        choices = Choices("`final_decision`: yes, no or maybe", read, options, right=options.index(answer))
        return choices, _optional_text(context, "context", where)
    if format == "boolq" or (format is None and "passage" in record and isinstance(record.get("answer"), bool)):
        right = record.get("answer")
        if not isinstance(right, bool):
            _refuse(where, f"`answer` is {shown(right)}; expected `true` or `false`")
        choices = Choices("`answer`: yes or no", ("answer", "passage"), ("yes", "no"), right=0 if right else 1)
        return choices, _optional_text(record.get("passage"), "passage", where)
    return None


def _records(file: Path) -> list[tuple[str, Any]]:
    """Each record with the words for where it stands."""
    format = format_of_file(file) if file.is_file() else None
    if format in ("parquet", "arrow", "xlsx"):
        rows = ((row.where.removeprefix(f"{file}: "), row.values) for row in iterate_rows(Source(path=str(file)), str(file)))
        return [(at, _as_texts(record) if format == "xlsx" else record) for at, record in rows]
    text = whole_text(file)
    if not text.strip():
        raise DataError(f"{file}: is empty; {_FORMATS}")
    if format == "csv":
        return _records_of_table(file, text)
    try:
        content = parse_json(text)
    except ValueError as whole_error:
        lines: list[tuple[str, Any]] = []
        for n, line in enumerate(text.split("\n"), start=1):
            try:
                lines += [(f"line {n}", parse_json(line))] if line.strip() else []
            except ValueError as error:
                # A first line that is no record means that the file is one broken piece of JSON, not JSON lines.
                where, reason = (f"line {n}: ", error) if lines else ("", whole_error)
                raise DataError(f"{file}: {where}not JSON ({reason}); correct it there") from None
        return lines
    if isinstance(content, Mapping) and "questions" in content:
        content = content["questions"]
        if not isinstance(content, list):
            raise DataError(f"{file}: `questions` is {shown(content)}; expected a list of records")
    elif isinstance(content, Mapping) and content and all(isinstance(value, Mapping) for value in content.values()):
        content = [{"id": name, **value} for name, value in content.items()]  # as PubMedQA's own files are
    elif isinstance(content, Mapping):
        content = [content]
    elif not isinstance(content, list):
        raise DataError(f"{file}: holds {shown(content)}; expected a list of records, or an object with `questions`")
    return [(f"record {n}", record) for n, record in enumerate(content, start=1)]


def _as_texts(record: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a sheet, whose numbers are texts that look like numbers, as in CSV."""
    numbers = (int, float)
    return {name: str(v) if isinstance(v, numbers) and not isinstance(v, bool) else v for name, v in record.items()}


def _records_of_table(file: Path, text: str) -> list[tuple[str, Any]]:
    """Rows by a header that names `question`, or rows of MMLU: question, options and a letter."""
    first, line_end, rest = text.partition("\n")
    separator = "\t" if {".tsv", ".tab"} & set(map(str.lower, file.suffixes)) else ","
    if separator_of(first):
        separator, text = separator_of(first) or separator, line_end + rest
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{file}: not CSV ({error}); look for a quotation mark that is not closed") from None
    header = [name.strip() for name in rows[0][1]]
    names = [name if name in _LETTERS else name.lower() for name in header]
    if any(plain(name) in _ASKED for name in names):
        rows = rows[1:]
    else:
        width = len(header)
        if width < 4 or header[-1] not in _LETTERS[: width - 2]:
            raise DataError(f"{file}: line 1 is {shown(header)}, neither a header with `question` nor a question; {_FORMATS}")
        names = ["question", *_LETTERS[: width - 2], "answer"]
    records: list[tuple[str, Any]] = []
    for line, row in rows:
        if len(row) != len(names):
            raise DataError(
                f"{file}: line {line} has {len(row)} fields and not {len(names)}; quote a text that holds `{separator}`"
            )
        record: dict[str, Any] = dict(zip(names, row, strict=True))
        if "passage" in record and record.get("answer", "").lower() in ("true", "false"):
            record["answer"] = record["answer"].lower() == "true"  # the type that BoolQ has in JSON
        records.append((f"line {line}", record))
    return records


def _text(value: Any, field: str, where: str) -> str:
    if value is None:
        _refuse(where, f"`{field}` is missing; {_FORMATS}")
    if not isinstance(value, str):
        _refuse(where, f"`{field}` is {shown(value)}; expected a text, in quotes")
    if not value.strip():
        _refuse(where, f"`{field}` is empty; fill it in, or leave the record out")
    return value


def _optional_text(value: Any, field: str, where: str) -> str:
    return "" if value in (None, "") else _text(value, field, where)


def _refuse(where: str, problem: str) -> NoReturn:
    raise DataError(f"{where}: {problem}")

"""Questions with known answers, from the file formats that people have them in.

A file is a JSON list, an object with `questions`, JSON lines, or CSV. The format of a record is known by its fields:

    own         {"question": ..., "options": [...], "answer": ..., "answer_index": ...}; no options: a factual question, which
                may have several right answers: "answers": [...], or SQuAD's {"text": [...]}
    openbookqa  {"question": {"stem": ..., "choices": [{"text": ..., "label": ...}]}, "answerKey": ...}, or the hub's
                {"question_stem": ..., "choices": {"text": [...], "label": [...]}, "answerKey": ...}
    arc         {"question": ..., "choices": {"text": [...], "label": [...]}, "answerKey": ...}
    mmlu        CSV rows of question, A, B, C, D and the letter of the answer, with a header or without; or the hub's
                {"question": ..., "choices": [...], "answer": 2}
    sciq        {"question": ..., "correct_answer": ..., "distractor1": ..., "support": ...}
    boolq       {"question": ..., "passage": ..., "answer": true}
    pubmedqa    {"question": ..., "context": {"contexts": [...]}, "final_decision": "maybe"}

Whatever does not fit is refused with file, record, field and the way out: a question misread scores models silently wrong.
What a model is asked about a question is written by templates. No torch here: a study is refused before its first stage
where its templates or `slice_by` do not fit its questions.
"""

import csv
import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NoReturn

from paretune.data.newsroom import questions
from paretune.data.sources import parse_json, separator_of
from paretune.data.templates import Template, render
from paretune.errors import DataError
from paretune.study.base import shown

NEWSROOM = "builtin:newsroom"
_READ_FIELDS = frozenset({"id", "question", "question_stem", "options", "choices", "answer", "answer_index", "answerKey"})
_LETTERS = tuple(ascii_uppercase)
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_READ_BY_OTHERS = _READ_FIELDS | {
    *("correct_answer", "distractor1", "distractor2", "distractor3", "support", "passage", "final_decision"),
    *("context", "QUESTION", "CONTEXTS", *_LETTERS),
}
"""In all formats but our own, whose records may call fields of theirs so."""
_FORMATS = (
    'expected `{"question": "...", "answer": "..."}`, with `"options": ["...", ...]` for multiple choice, '
    "or the format of OpenBookQA or ARC (`choices`, `answerKey`), MMLU (CSV: question, A, B, C, D, answer), SciQ "
    "(`correct_answer`, `distractor1`), BoolQ (`passage`, `answer: true`) or PubMedQA (`final_decision`)"
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


_Parsed = tuple[str, tuple[str, ...], int | None, str]
"""Context, options, index of the answer, answer."""


def read_questions(location: str | Path, format: str | None = None) -> list[Question]:
    """The questions of a file, or of `builtin:newsroom`; DataError for anything that is not a question with an answer.

    `format` is one of those above; each record's fields say it unless given.
    """
    if str(location) == NEWSROOM:
        return [parse_question(record, f"{NEWSROOM}: record {n}", str(n)) for n, record in enumerate(questions(), start=1)]
    if str(location).startswith("builtin:"):
        raise DataError(f"no built-in questions `{str(location).removeprefix('builtin:')}`; known: `newsroom`")
    file = Path(location)
    records = enumerate(_records(file), start=1)
    read = [parse_question(record, f"{file}: {where}", str(n), format) for n, (where, record) in records]
    if not read:
        raise DataError(f"{file}: holds no question; {_FORMATS}")
    ids: dict[str, int] = {}
    asked: dict[tuple[str, ...], int] = {}
    for n, question in enumerate(read, start=1):
        if question.id in ids:
            raise DataError(f"{file}: record {n}: `id` {shown(question.id)} is that of record {ids[question.id]}; rename one")
        # A question that counts twice makes the intervals narrower than they are.
        content = (question.context, question.question, *question.options, question.answer)
        if content in asked:
            raise DataError(
                f"{file}: record {n}: {shown(question.question)} is the question of record {asked[content]}, with the same "
                "answer; remove one"
            )
        ids[question.id] = asked[content] = n
    return read


def question_texts(location: str | Path, format: str | None = None) -> list[str]:
    """Each question with its answer, as the text that must not stand in training data."""
    return [f"{question.question} {question.answer}" for question in read_questions(location, format)]


def parse_question(record: Any, where: str, number: str, format: str | None = None) -> Question:
    """One record of any of the formats; `number` is its id where it has none. DataError beginning with `where`."""
    if not isinstance(record, Mapping):
        _refuse(where, f"is {shown(record)}; {_FORMATS}")
    stem = record.get("question", record.get("question_stem", record.get("QUESTION")))
    question = _text(stem.get("stem") if isinstance(stem, Mapping) else stem, "question", where)
    format = format or _format_of(record)
    answers: tuple[str, ...] = ()
    if format == "own" and (given := record.get("answers")) is not None:
        texts = given.get("text") if isinstance(given, Mapping) else given
        if not isinstance(texts, list) or not texts or record.get("options"):
            _refuse(where, f"`answers` is {shown(given)}; expected a list of texts, all right, of a question without `options`")
        answers = tuple(_text(text, "answers", where) for text in texts)
        record = {"answer": answers[0], **record}
    context, options, index, answer = _READERS[format](record, question, where)
    if index is not None and options.count(answer) > 1:
        _refuse(where, f"`options` holds the answer {shown(answer)} twice; remove one of them")
    read = _READ_FIELDS | {"answers"} if format == "own" else _READ_BY_OTHERS
    fields = {name: value for name, value in record.items() if name not in read}
    name = record.get("id", number)
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        _refuse(where, f"`id` is {shown(name)}; expected a text or a whole number")
    others = tuple(text for text in dict.fromkeys(answers) if text != answer)
    return Question(str(name), question, options, answer, index, fields, context, others)


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


def slices_of(question: Question, names: Sequence[str]) -> dict[str, str]:
    """The value of each field that scores are broken down by; DataError for one that is missing or no single value."""
    missing = [name for name in names if not isinstance(question.fields.get(name), str | int | float | bool)]
    if missing:
        raise DataError(
            f"question `{question.id}` has no single value in the field `{missing[0]}` that `slice_by` names; add it to the "
            "question, or leave it out of `slice_by`"
        )
    return {name: str(question.fields[name]) for name in names}


def _format_of(record: Mapping[str, Any]) -> str:
    if "final_decision" in record:
        return "pubmedqa"
    if "correct_answer" in record:
        return "sciq"
    if "passage" in record and isinstance(record.get("answer"), bool):
        return "boolq"
    if {"A", "B", "answer"} <= set(record) or (
        isinstance(record.get("choices"), list) and isinstance(record.get("answer"), int)
    ):
        return "mmlu"
    return "arc" if "choices" in record or isinstance(record.get("question"), Mapping) else "own"


def _own(record: Mapping[str, Any], _: str, where: str) -> _Parsed:
    given, answer, index = record.get("options"), record.get("answer"), record.get("answer_index")
    if given is not None and not isinstance(given, list):
        _refuse(where, f"`options` is {shown(given)}; expected a list of texts")
    options = _option_texts(given, "options", where) if given else ()
    if index is not None and (not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(options)):
        _refuse(where, f"`answer_index` is {shown(index)}; expected a number from 0 that counts the {len(options)} options")
    if answer is None:
        if index is None:
            _refuse(where, "`answer` is missing; add it, or leave the record out")
        return "", options, index, options[index]
    answer = _text(answer, "answer", where)
    if not options:
        return "", options, None, answer
    if answer not in options:
        _refuse(where, f"`answer` {shown(answer)} is not among the options {shown(list(options))}; write it as it stands there")
    if index is not None and options[index] != answer:
        _refuse(where, f"`answer_index: {index}` is {shown(options[index])} and `answer` {shown(answer)}; correct one of them")
    return "", options, options.index(answer), answer


def _labelled(record: Mapping[str, Any], _: str, where: str) -> _Parsed:
    nested = record.get("question")
    choices = nested.get("choices") if isinstance(nested, Mapping) else record.get("choices")
    if isinstance(choices, Mapping):
        labels, texts = choices.get("label"), choices.get("text")
    elif isinstance(choices, list) and all(isinstance(choice, Mapping) for choice in choices):
        labels, texts = ([choice.get(name) for choice in choices] for name in ("label", "text"))
    else:
        _refuse(where, f"`choices` is {shown(choices)}; expected a list of `text` and `label`, or an object of two such lists")
    if not isinstance(labels, list) or not isinstance(texts, list) or len(labels) != len(texts):
        _refuse(where, "`choices` must hold as many of `label` as of `text`")
    labels = [_text(label, "choices.label", where) for label in labels]
    options = _option_texts(texts, "choices.text", where)
    key = record.get("answerKey")
    if key is None or key == "":
        _refuse(where, "`answerKey` is missing; add it, or leave the record out")
    if len(set(labels)) < len(labels):
        _refuse(where, f"`choices` has a label twice: {shown(labels)}")
    if key not in labels:
        _refuse(where, f"`answerKey` {shown(key)} is none of the labels {shown(labels)}; correct it")
    return "", options, labels.index(key), options[labels.index(key)]


def _mmlu(record: Mapping[str, Any], _: str, where: str) -> _Parsed:
    choices, answer = record.get("choices"), record.get("answer")
    if not isinstance(choices, list):
        letters = [letter for letter in _LETTERS if record.get(letter) not in (None, "")]
        choices = [record[letter] for letter in letters]
        if answer not in letters:
            _refuse(where, f"`answer` is {shown(answer)}; expected one of the letters {shown(letters)}")
        answer = letters.index(answer)
    options = _option_texts(choices, "choices", where)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(options):
        _refuse(where, f"`answer` is {shown(answer)}; expected a number from 0 that counts the {len(options)} choices")
    return "", options, answer, options[answer]


def _sciq(record: Mapping[str, Any], question: str, where: str) -> _Parsed:
    answer = _text(record.get("correct_answer"), "correct_answer", where)
    wrong = [_text(record[name], name, where) for name in sorted(record) if name.startswith("distractor")]
    if not wrong:
        _refuse(where, "`distractor1` is missing; a question of SciQ has one to three wrong answers")
    # The file says the right one first. The place among the options must tell nothing, and be the same in every run.
    options = sorted({answer, *wrong})
    random.Random(question).shuffle(options)
    return _optional_text(record.get("support"), "support", where), tuple(options), options.index(answer), answer


def _boolq(record: Mapping[str, Any], _: str, where: str) -> _Parsed:
    answer = record.get("answer")
    if not isinstance(answer, bool):
        _refuse(where, f"`answer` is {shown(answer)}; expected `true` or `false`")
    return _optional_text(record.get("passage"), "passage", where), ("yes", "no"), 0 if answer else 1, "yes" if answer else "no"


def _pubmedqa(record: Mapping[str, Any], _: str, where: str) -> _Parsed:
    answer, options = record.get("final_decision"), ("yes", "no", "maybe")
    if answer not in options:
        _refuse(where, f"`final_decision` is {shown(answer)}; expected `yes`, `no` or `maybe`")
    context = record.get("context", record.get("CONTEXTS"))
    context = context.get("contexts") if isinstance(context, Mapping) else context
    if isinstance(context, list):
        context = "\n".join(_text(part, "context", where) for part in context)
    return _optional_text(context, "context", where), options, options.index(answer), answer


_READERS = {
    "own": _own,
    "openbookqa": _labelled,
    "arc": _labelled,
    "mmlu": _mmlu,
    "sciq": _sciq,
    "boolq": _boolq,
    "pubmedqa": _pubmedqa,
}


def _records(file: Path) -> list[tuple[str, Any]]:
    """Each record with the words for where it stands."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{file}: no such file; `path` is relative to the study file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
    if not text.strip():
        raise DataError(f"{file}: is empty; {_FORMATS}")
    if file.suffix.lower() in _SEPARATORS:
        return _records_of_table(file, text, _SEPARATORS[file.suffix.lower()])
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


def _records_of_table(file: Path, text: str, separator: str) -> list[tuple[str, Any]]:
    """Rows by a header that names `question`, or rows of MMLU: question, options and a letter."""
    first, line_end, rest = text.partition("\n")
    if separator_of(first):
        separator, text = separator_of(first) or separator, line_end + rest
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{file}: not CSV ({error}); look for a quotation mark that is not closed") from None
    header = [name.strip() for name in rows[0][1]]
    if "question" in (names := [name if name in _LETTERS else name.lower() for name in header]):
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


def _option_texts(values: list[Any], field: str, where: str) -> tuple[str, ...]:
    if len(values) < 2:
        _refuse(where, f"`{field}` holds {len(values)}; multiple choice needs two or more")
    return tuple(_text(value, field, where) for value in values)


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

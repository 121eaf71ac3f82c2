"""Questions with known answers, from the file formats that people have them in.

A file is a JSON list, an object with `questions`, or JSON lines. A record is in one of three formats:

    {"question": ..., "options": [...], "answer": ..., "answer_index": ...}     ours; without options for a factual question
    {"question": {"stem": ..., "choices": [{"text": ..., "label": ...}]}, "answerKey": ...}            OpenBookQA's own files
    {"question": ..., "choices": {"text": [...], "label": [...]}, "answerKey": ...}     ARC on the hub; OpenBookQA says
                                                                                        `question_stem` there
Whatever does not fit is refused with file, record, field and the way out: a question misread scores models silently wrong.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from paretune.errors import DataError
from paretune.spec.base import shown

NEWSROOM = "builtin:newsroom"
_READ_FIELDS = frozenset({"id", "question", "question_stem", "options", "choices", "answer", "answer_index", "answerKey"})
_FORMATS = (
    'expected `{"question": "...", "answer": "..."}`, with `"options": ["...", ...]` for multiple choice, '
    "or the format of OpenBookQA or ARC (`choices`, `answerKey`)"
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


def read_questions(place: str | Path) -> list[Question]:
    """The questions of a file, or of `builtin:newsroom`; DataError for anything that is not a question with an answer."""
    if str(place) == NEWSROOM:
        from paretune.data.newsroom import questions

        records = questions()["questions"]
        return [parse_question(record, f"{NEWSROOM}: record {n}", str(n)) for n, record in enumerate(records, start=1)]
    if str(place).startswith("builtin:"):
        raise DataError(f"no built-in questions `{str(place).removeprefix('builtin:')}`; known: `newsroom`")
    file = Path(place)
    found = [parse_question(record, f"{file}: {where}", str(n)) for n, (where, record) in enumerate(_records(file), start=1)]
    if not found:
        raise DataError(f"{file}: holds no question; {_FORMATS}")
    _check_distinct(found, file)
    return found


def question_texts(place: str | Path) -> list[str]:
    """Each question with its answer, as the text that must not stand in training data."""
    return [f"{question.question} {question.answer}" for question in read_questions(place)]


def parse_question(record: Any, where: str, number: str) -> Question:
    """One record of any of the formats; `number` is its id where it has none. DataError beginning with `where`."""
    if not isinstance(record, Mapping):
        _refuse(where, f"is {shown(record)}; {_FORMATS}")
    stem, choices = _stem(record), _choices(record, where)
    if choices is None:
        question, options = _text(stem, "question", where), _options(record, where)
        index, answer = _own_answer(record, options, where)
    else:
        labels, options = choices
        question = _text(stem, "question", where)
        index = _index_of_key(record, labels, where)
        answer = options[index]
    if index is not None and options.count(answer) > 1:
        _refuse(where, f"`options` holds the answer {shown(answer)} twice; remove one of them")
    fields = {name: value for name, value in record.items() if name not in _READ_FIELDS}
    return Question(_id(record, where, number), question, options, answer, index, fields)


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
    try:
        content = _parse(text)
    except ValueError as error:
        return _records_of_lines(file, text, error)
    if isinstance(content, Mapping) and "questions" in content:
        content = content["questions"]
        if not isinstance(content, list):
            raise DataError(f"{file}: `questions` is {shown(content)}; expected a list of records")
    elif isinstance(content, Mapping):
        content = [content]
    elif not isinstance(content, list):
        raise DataError(f"{file}: holds {shown(content)}; expected a list of records, or an object with `questions`")
    return [(f"record {n}", record) for n, record in enumerate(content, start=1)]


def _records_of_lines(file: Path, text: str, whole_error: ValueError) -> list[tuple[str, Any]]:
    lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    records: list[tuple[str, Any]] = []
    for n, line in lines:
        try:
            records.append((f"line {n}", _parse(line)))
        except ValueError as error:
            # A first line that is no record means that the file is one broken piece of JSON, not JSON lines.
            where, reason = (f"line {n}: ", error) if records else ("", whole_error)
            raise DataError(f"{file}: {where}not JSON ({reason}); correct it there") from None
    return records


def _parse(text: str) -> Any:
    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(f"`{name}` is no JSON value")

    return json.loads(text, parse_constant=refuse_constant)


def _stem(record: Mapping[str, Any]) -> Any:
    question = record.get("question", record.get("question_stem"))
    return question.get("stem") if isinstance(question, Mapping) else question


def _choices(record: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Labels and texts of the formats with `choices`; None in our own."""
    nested = record.get("question")
    choices = nested.get("choices") if isinstance(nested, Mapping) else record.get("choices")
    if choices is None and not isinstance(nested, Mapping):
        return None
    if isinstance(choices, Mapping):
        labels, texts = choices.get("label"), choices.get("text")
    elif isinstance(choices, list) and all(isinstance(choice, Mapping) for choice in choices):
        labels, texts = ([choice.get(name) for choice in choices] for name in ("label", "text"))
    else:
        _refuse(where, f"`choices` is {shown(choices)}; expected a list of `text` and `label`, or an object of two such lists")
    if not isinstance(labels, list) or not isinstance(texts, list) or len(labels) != len(texts):
        _refuse(where, "`choices` must hold as many of `label` as of `text`")
    return tuple(_text(label, "choices.label", where) for label in labels), _option_texts(texts, "choices.text", where)


def _options(record: Mapping[str, Any], where: str) -> tuple[str, ...]:
    options = record.get("options")
    if options is None:
        return ()
    if not isinstance(options, list):
        _refuse(where, f"`options` is {shown(options)}; expected a list of texts")
    return _option_texts(options, "options", where) if options else ()


def _option_texts(values: list[Any], field: str, where: str) -> tuple[str, ...]:
    if len(values) < 2:
        _refuse(where, f"`{field}` holds {len(values)}; multiple choice needs two or more")
    return tuple(_text(value, field, where) for value in values)


def _own_answer(record: Mapping[str, Any], options: tuple[str, ...], where: str) -> tuple[int | None, str]:
    answer, index = record.get("answer"), record.get("answer_index")
    if index is not None and (not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(options)):
        _refuse(where, f"`answer_index` is {shown(index)}; expected a number from 0 that counts the {len(options)} options")
    if answer is None:
        if index is None:
            _refuse(where, "`answer` is missing; add it, or leave the record out")
        return index, options[index]
    answer = _text(answer, "answer", where)
    if not options:
        return None, answer
    if answer not in options:
        _refuse(where, f"`answer` {shown(answer)} is not among the options {shown(list(options))}; write it as it stands there")
    if index is not None and options[index] != answer:
        _refuse(where, f"`answer_index: {index}` is {shown(options[index])} and `answer` {shown(answer)}; correct one of them")
    return options.index(answer), answer


def _index_of_key(record: Mapping[str, Any], labels: tuple[str, ...], where: str) -> int:
    key = record.get("answerKey")
    if key is None or key == "":
        _refuse(where, "`answerKey` is missing; add it, or leave the record out")
    if len(set(labels)) < len(labels):
        _refuse(where, f"`choices` has a label twice: {shown(list(labels))}")
    if key not in labels:
        _refuse(where, f"`answerKey` {shown(key)} is none of the labels {shown(list(labels))}; correct it")
    return labels.index(key)


def _id(record: Mapping[str, Any], where: str, number: str) -> str:
    name = record.get("id", number)
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        _refuse(where, f"`id` is {shown(name)}; expected a text or a whole number")
    return str(name)


def _check_distinct(questions: list[Question], file: Path) -> None:
    ids: dict[str, int] = {}
    asked: dict[tuple[str, tuple[str, ...], str], int] = {}
    for n, question in enumerate(questions, start=1):
        if question.id in ids:
            raise DataError(f"{file}: record {n}: `id` {shown(question.id)} is that of record {ids[question.id]}; rename one")
        # A question that counts twice makes the intervals narrower than they are.
        content = (question.question, question.options, question.answer)
        if content in asked:
            raise DataError(
                f"{file}: record {n}: {shown(question.question)} is the question of record {asked[content]}, with the same "
                "answer; remove one"
            )
        ids[question.id] = asked[content] = n


def _text(value: Any, field: str, where: str) -> str:
    if value is None:
        _refuse(where, f"`{field}` is missing; {_FORMATS}")
    if not isinstance(value, str):
        _refuse(where, f"`{field}` is {shown(value)}; expected a text, in quotes")
    if not value.strip():
        _refuse(where, f"`{field}` is empty; fill it in, or leave the record out")
    return value


def _refuse(where: str, problem: str) -> NoReturn:
    raise DataError(f"{where}: {problem}")

"""Mistakes in data and question files: what the first record shows is refused before a worker starts, the rest by a stage."""

import bz2
import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from tests.bad_input.harness import ONE_STAGE_EACH, Case, edit, write
from tests.conftest import STUDY

_QUESTIONS = STUDY.replace("  perplexity: {}\n", "")
_TEXT = ONE_STAGE_EACH.replace("    document: title\n", "").replace("{{ title }}\\n\\n{{ content }}", "{{ text }}")
_TASKS = ONE_STAGE_EACH.replace(
    'text: "{{ title }}\\n\\n{{ content }}"', 'tasks: {type: {prompt: "{{ title }} is of type ", completion: "{{ type }}"}}'
)
_RECORDS = re.sub(r"tasks: .*", "records: FORMAT", _TASKS).replace("    document: title\n", "")
_CHATS = _TEXT.replace("{{ text }}", "{{ messages }}")
_MIB = 2**20


def case(name: str, change: Callable[[list[dict]], str | bytes], *words: str, study: str = ONE_STAGE_EACH) -> Case:
    """The data file with other content, made from the records of the good one."""

    def spoil(folder: Path) -> None:
        file = folder / "notes.jsonl"
        content = change([json.loads(line) for line in file.read_text().splitlines()])
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    return Case(name, spoil, words, study=study)


def other(name: str, file: str, content: str | bytes, *words: str, fields: str = "", study: str = ONE_STAGE_EACH) -> Case:
    """Another data file, of another format."""
    return Case(name, write(content, file), words, study=study.replace("notes.jsonl", file + fields))


def questions(name: str, content: Any, *words: str) -> Case:
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    return Case(name, write(text, "qa.json"), words, study=_QUESTIONS)


def _lines(records: list[dict]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _with(**fields: Any) -> Callable[[list[dict]], str]:
    return lambda records: _lines([record | fields for record in records])


def _and(line: str | bytes) -> Callable[[list[dict]], bytes]:
    return lambda records: _lines(records).encode() + (line if isinstance(line, bytes) else line.encode())


def _a_directory(folder: Path) -> None:
    (folder / "notes.jsonl").unlink()
    (folder / "notes.jsonl").mkdir()


def _a_pipe(folder: Path) -> None:
    (folder / "notes.jsonl").unlink()
    os.mkfifo(folder / "notes.jsonl")


def _a_loop(folder: Path) -> None:
    (folder / "notes.jsonl").unlink()
    (folder / "notes.jsonl").symlink_to("notes.jsonl")


def _a_folder(*names: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        _a_directory(folder)
        for name in names:
            (folder / "notes.jsonl" / name).touch()

    return spoil


def _without_data(folder: Path) -> None:
    (folder / "notes.jsonl").unlink()


def _a_line(bytes_: int) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        with (folder / "notes.jsonl").open("wb") as stream:
            stream.write(b'{"title": "a", "content": "')
            stream.truncate(bytes_)

    return spoil


def _parquet_without_the_field(folder: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"headline": ["a"]}), folder / "notes.parquet")


def _copies(records: list[dict]) -> str:
    return _lines(records + [record | {"title": f"Copy of {record['title']}"} for record in records])


_PLACE = (
    Case("data file missing", _without_data, ("study.yaml:6: data.notes.source.path: no file `notes.jsonl` (looked in",)),
    Case("data file misspelt", edit("notes.jsonl", "nots.jsonl"), ("no file `nots.jsonl`", "did you mean `notes.jsonl`?")),
    Case(
        "data at an address",
        edit("notes.jsonl", "https://a.example/n.jsonl"),
        ("nothing is fetched from an address", "download"),
    ),
    Case("data below the home directory", edit("notes.jsonl", "~/notes.jsonl"), ("`~` is not expanded, write the whole path",)),
    Case(
        "unknown built-in data",
        edit("path: notes.jsonl", "builtin: news"),
        ("source.builtin: no dataset `news`; did you mean",),
    ),
    Case(
        "data is a directory",
        _a_directory,
        ("data.notes.source.path: notes.jsonl: is a directory without data files (it is empty); name a file",),
    ),
    Case(
        "data is a link to itself",
        _a_loop,
        ("notes.jsonl` cannot be followed; it is a link to `notes.jsonl`, and links to itself",),
    ),
    Case(
        "folder of several formats",
        _a_folder("a.csv", "a.jsonl"),
        ("holds files of several formats (`csv`, `jsonl`); name one kind: `notes.jsonl/*.csv`",),
    ),
    Case(
        "folder of several splits",
        _a_folder("train-0.jsonl", "test-0.jsonl"),
        ("holds files of several splits (`test`, `train`)", "`notes.jsonl/test*`"),
    ),
    Case(
        "pattern without a file",
        edit("notes.jsonl", "notes-*.jsonl"),
        ("source.path: notes-*.jsonl: no file fits this pattern",),
    ),
    Case("data is a pipe", _a_pipe, ("data.notes.source.path: `notes.jsonl` is a device or pipe; name a file",)),
)

_CONTENT = (
    case("data file empty", lambda _: "", "notes.jsonl: holds no records; a dataset needs at least one"),
    case("only blank lines", lambda _: "\n \n\n", "notes.jsonl: holds no records"),
    case(
        "half a record",
        _and('{"title": "x", "con'),
        "line 41, column 16: the file ends in the middle of a record",
        "copied whole?",
    ),
    case("bad UTF-8", _and(b'{"title": "\xe9"}\n'), "notes.jsonl: line 41: byte offset", "(0xe9) is not UTF-8", "iconv -f"),
    case(
        "UTF-16 cut off",
        lambda r: _lines(r).encode("utf-16")[:-1],
        "notes.jsonl: line 40: is not UTF-16-LE, as the file begins",
    ),
    case(
        "packed and cut off",
        lambda r: gzip.compress(_lines(r).encode())[:-20],
        "notes.jsonl: is packed, and damaged or cut off",
    ),
    case(
        "a decompression bomb",
        lambda _: bz2.compress(b" " * 2**27),
        "notes.jsonl: more than 67,108,864 bytes come out of 115, which is no packed text",
    ),
    other(
        "conversations as a text",
        "chats.jsonl",
        '{"messages": [{"role": "user", "content": "a"}]}\n',
        "field `messages` is a conversation",
        "write `records: messages`",
        study=_CHATS,
    ),
    other(
        "batch requests as chats",
        "chats.jsonl",
        '{"custom_id": "1", "body": {"messages": []}}\n',
        "is a request of OpenAI's batch API; join it with its answer: `jq -cs",
        study=_RECORDS.replace("FORMAT", "messages"),
    ),
    other(
        "alpaca with a history",
        "chats.jsonl",
        '{"instruction": "a", "output": "b", "history": [["c", "d"]]}\n',
        '`history` is `[["c", "d"]]`, which `records: alpaca` does not read',
        study=_RECORDS.replace("FORMAT", "alpaca"),
    ),
    case("record is a list", _and("[1]\n"), "notes.jsonl: line 41: a record is an object", "got `[1]`"),
    case("NaN in JSON", _and('{"title": NaN}\n'), "line 41: `NaN` is no JSON value; write `null`, or leave the record out"),
    case(
        "half a character",
        _and('{"title": "x", "content": "\\ud83d"}\n'),
        "line 41",
        "half of a surrogate pair (U+D83D)",
        "repair",
    ),
    case("JSON list as jsonl", lambda r: json.dumps(r), "line 1: a record is an object", "then `format: json`"),
    case(
        "indented JSON as jsonl", lambda r: json.dumps(r, indent=1), "line 1", "not JSON", 'got `"["`', "needs `format: json`"
    ),
    case("wrong columns", lambda r: _lines([{"Title": x["title"]} for x in r]), "line 1: field `title` is missing", "`Title`?"),
    case("field missing later", _and('{"title": "x"}\n'), "line 41: field `content` is missing", "{{ content | default('') }}"),
    case("null in a field", _and('{"title": "x", "content": null}\n'), "`content` is null", "default('')", "drop: [empty]"),
    case("list in a field", _with(content=["a", "b"]), "line 1: field `content` is a list", "{{ content | join(', ') }}"),
    case("object in a field", _with(content={"a": 1}), "line 1: field `content` is an object", "with a filter"),
    case("mixed types", _and('{"title": "x", "content": ["a"]}\n'), 'line 41: field `content` is a list, `["a"]`'),
    case(
        "all texts blank",
        _with(title=" ", content="\t"),
        "`source`: all 40 records render to nothing but white space; look at `text`",
        study=ONE_STAGE_EACH.replace("    document: title\n", ""),
    ),
    case("all rows equal", lambda r: _lines([r[0]] * 40), "1 document(s) cannot fill the splits", "name a finer `document`"),
    case("too few documents", lambda r: _lines(r[:4]), "4 document(s) cannot fill the splits", "need about 10 documents"),
    case(
        "one text under many titles", lambda r: _lines([r[0] | {"title": f"T{i}"} for i in range(40)]), "two sides", "leakage:"
    ),
    case(
        "copies across the split",
        _copies,
        "the same text stands on two sides",
        "in train `",
        "`leakage: remove`",
        "`leakage: allow`",
    ),
    case(
        "document empty",
        _and('{"title": "", "content": "a"}\n'),
        "line 41: `document: title` is empty",
        "clean: {drop: [empty]}",
    ),
    case(
        "document field missing",
        _lines,
        "line 1: no field `url`, which `document` names",
        "`title`",
        study=ONE_STAGE_EACH.replace("document: title", "document: url"),
    ),
    case(
        "stratum missing",
        _lines,
        "line 1: no field `kind`, which `stratify` names",
        "`type`",
        study=ONE_STAGE_EACH.replace("document: title", "document: title\n    stratify: kind"),
    ),
    case(
        "document longer than asked",
        _lines,
        "tokens and `train.max_length` is 64; raise it, or write `too_long: windows`",
        study=ONE_STAGE_EACH.replace("document: title", "document: title\n    too_long: error"),
    ),
    case(
        "every document too long",
        _lines,
        "no document of the train split fits into 8 tokens; write `too_long: windows`",
        study=ONE_STAGE_EACH.replace("document: title", "document: title\n    too_long: skip").replace("h: 64", "h: 8"),
    ),
    Case(
        "a line of 50 MB that does not end",
        _a_line(50 * _MIB),
        ("notes.jsonl: line 1", "the file ends in the middle of a record"),
        study=ONE_STAGE_EACH,
    ),
    Case(
        "a line of 1 GB",  # sparse; no more than the limit of it is read
        _a_line(1024 * _MIB),
        ("notes.jsonl: line 1: is longer than 64 MiB, which is no record", "write one record a line"),
        ("plan", "study.yaml"),
        study=ONE_STAGE_EACH,
    ),
)

_ANSWERS = (
    case("task field missing", _and('{"title": "x"}\n'), "line 41: field `type` is missing", "default('')", study=_TASKS),
    case("all answers blank", _with(type=" "), "`source`: none of 40 records has a completion that is not empty", study=_TASKS),
    case(
        "answer longer than asked",
        _with(type="word " * 60),
        "task `type`) has",
        "tokens and `train.max_length` is 64; raise it, or write `too_long: skip`",
        study=_TASKS,
    ),
    case(
        "other fields than alpaca's",
        _lines,
        "line 1: field `instruction` is missing",
        "the record has `title`",
        study=_RECORDS.replace("FORMAT", "alpaca"),
    ),
    case(
        "no messages",
        _lines,
        "line 1: no field `messages`, which `records: messages` reads; the record has `title`",
        study=_RECORDS.replace("FORMAT", "messages"),
    ),
    case(
        "unknown role in a conversation",
        _with(conversations=[{"from": "alien", "value": "x"}]),
        "line 1: `conversations`: message 1: `from` is",
        "known: `system`",
        study=_RECORDS.replace("FORMAT", "sharegpt"),
    ),
)

_FORMATS = (
    other("ragged csv", "n.csv", "title,content\na,b\nc,d,e\n", "n.csv: line 3: 3 fields, the header names 2", "in quotes"),
    other("csv without a header", "n.csv", "a,b\nc,d\n", "n.csv: line 2: field `title` is missing", "the record has `a`, `b`"),
    other(
        "csv with a hyphen in a name",
        "n.csv",
        "title,my-text\na,b\n",
        "`my-text`",
        "renames",
        study=ONE_STAGE_EACH.replace("{{ content", "{{ my-text"),
    ),
    other("csv with semicolons", "n.csv", "title;content\na;b\n", "the record has `title;content`, one field; is `delimiter:`"),
    other(
        "csv with semicolons and commas", "n.csv", "title;content\na;b, c\n", "line 2: 2 fields", 'delimiter: ";"', "another"
    ),
    other(
        "csv quote not closed", "n.csv", 'title,content\na,"b\n', "n.csv: line 2: a quoted field never ends", "is written twice"
    ),
    other(
        "csv column twice", "n.csv", "title,title\na,b\n", "n.csv: line 1: two columns are called `title`", "`columns: [...]`"
    ),
    other("csv of a header alone", "n.csv", "title,content\n", "n.csv: holds no records"),
    other("csv of Windows", "n.csv", "title,content\nGröße,x\n".encode("cp1252"), "n.csv: line 2", "not UTF-8", "WINDOWS-1252"),
    other("truncated json", "n.json", '[{"title": "a", "content": "abc', "n.json: line 1", "ends in the middle of a record"),
    other(
        "json with two lists",
        "n.json",
        '{"a": [], "b": []}',
        "n.json: an object as a dataset holds exactly one list",
        "`a`, `b`",
    ),
    other("json of a number", "n.json", "3", "n.json: expected a list of records", "got `3`"),
    other(
        "parquet that is none", "n.parquet", b"PAR1 text", "n.parquet: not a Parquet file, or a damaged one", "write it again"
    ),
    Case(
        "parquet without the field",
        _parquet_without_the_field,
        ("notes.parquet: row 1: field `title` is missing", "the record has `headline`"),
        study=ONE_STAGE_EACH.replace("notes.jsonl", "notes.parquet"),
    ),
    other(
        "no line matches chapters",
        "n.txt",
        "Some words.\n" * 50,
        "n.txt: no line matches `chapters: ^CHAPTER`; a line of the text is",
        fields=', chapters: "^CHAPTER"',
        study=_TEXT,
    ),
    other(
        "a text too short to split",
        "n.txt",
        "Some words.\n",
        "1 document(s) cannot fill the splits",
        "(`chapters`",
        study=_TEXT,
    ),
)

_ONE = {"question": "Which?", "options": ["a", "b"], "answer": "a", "difficulty": "easy"}

_QUESTION_FILES = (
    questions("question file empty", "", "qa.json: is empty; expected `{"),
    questions("question file truncated", '{"questions": [{"question"', "qa.json: not JSON (", "correct it there"),
    questions("question file not UTF-8", b'[{"question": "\xe9"}]', "qa.json: line 1: byte offset 15 (0xe9) is not UTF-8"),
    questions("no questions", {"questions": []}, "qa.json: holds no question; expected"),
    questions("question file is a number", "3", "qa.json: holds `3`; expected a list of records"),
    questions("question is a number", [_ONE | {"question": 1}], "qa.json: record 1: `question` is `1`; expected a text"),
    questions("question is blank", [_ONE | {"question": " "}], "qa.json: record 1: `question` is empty"),
    questions("no answer", [{"question": "Which?"}], "qa.json: record 1: `answer` is missing"),
    questions("one option", [_ONE | {"options": ["a"]}], "record 1: `options` holds 1; multiple choice needs two or more"),
    questions(
        "answer is no option", [_ONE | {"answer": "c"}], 'record 1: `answer` `"c"` is not among the options `["a", "b"]`'
    ),
    questions(
        "answer_index too large", [_ONE | {"answer_index": 2}], "record 1: `answer_index` is `2`", "counts the 2 options"
    ),
    questions("two answers", [_ONE | {"answer_index": 1}], '`answer_index: 1` is `"b"` and `answer` `"a"`; correct one'),
    questions("answer twice among the options", [_ONE | {"options": ["a", "a"]}], 'holds the answer `"a"` twice; remove one'),
    questions(
        "id twice", [_ONE | {"id": 7}, _ONE | {"id": 7, "answer": "b"}], 'record 2: `id` `"7"` is that of record 1; rename'
    ),
    questions("question twice", [_ONE, _ONE], 'record 2: `"Which?"` is the question of record 1', "remove one"),
    questions(
        "answer key without a choice",
        [{"question": {"stem": "?", "choices": [{"text": t, "label": t} for t in "AB"]}, "answerKey": "C"}],
        'record 1: `answerKey` `"C"` is none of the labels `["A", "B"]`',
    ),
    questions("records of no known format", [{"prompt": "Which?", "completion": "a"}], "`question` is missing", "MMLU", "SciQ"),
    questions("no distractors", [{"question": "Which?", "correct_answer": "a"}], "record 1: `distractor1` is missing"),
    questions(
        "an undecided decision", [{"question": "?", "final_decision": "so"}], '`final_decision` is `"so"`; expected `yes`, `no`'
    ),
    Case(
        "CSV of no known format",
        lambda folder: (write("prompt,completion\na,b\n", "qa.csv")(folder), edit("qa.json", "qa.csv")(folder)),
        ("qa.csv: line 1 is", "neither a header with `question` nor a question", "MMLU (CSV: question, A, B, C, D, answer)"),
    ),
    Case(
        "format of another file",
        edit("qa.json, ", "qa.json, format: boolq, "),
        ("evaluate.qa: ", 'qa.json: record 1: `answer` is `"it waits"`; expected `true` or `false`'),
    ),
    Case(
        "unknown format of questions",
        edit("qa.json, ", "qa.json, format: arcs, "),
        ("evaluate.qa.format: expected `own`, `openbookqa`, `arc`", 'got `"arcs"`'),
    ),
    questions(
        "options under names that nobody knows",
        [{"question": f"Which, {n}?", "w": "he", "x": "she", "answer": letter} for n, letter in enumerate("ABAB")],
        "evaluate.qa: ",
        "qa.json: the answers of all 4 questions without options look like the letter or number of an option (`A`, `B`)",
        "no options are found among `question`, `w`, `x`, `answer`; name them `option_a`, `option_b`",
    ),
    questions(
        "numbers that may count from 0 or from 1",
        [_ONE | {"question": f"Which, {n}?", "options": ["he", "she", "it"], "answer": 1} for n in range(3)],
        'record 1: `answer` `1` names `"she"` if it counts the options from 0, and `"he"` if it counts',
        "write `right_option: from_0` or `right_option: from_1`",
    ),
    Case(
        "a reference that no record has",
        edit("qa.json, ", "qa.json, references: aliases, "),
        ("evaluate.qa: ", "no field `aliases`, which `references` names"),
    ),
    Case(
        "a way of naming options that there is not",
        edit("qa.json, ", "qa.json, right_option: from_2, "),
        ("evaluate.qa.right_option: expected `label`, `text`, `letter`, `from_0` or `from_1`", 'got `"from_2"`'),
    ),
    questions(
        "question longer than the model", [_ONE | {"question": "Which? " * 200}], "evaluate.qa: question `1`", "512 positions"
    ),
    Case(
        "a question longer than the model where the study stops for it",
        lambda folder: (
            write(json.dumps([_ONE, _ONE | {"question": "Which? " * 200}]), "qa.json")(folder),
            edit("qa.json, ", "qa.json, too_long: error, ")(folder),
        ),
        ("evaluate.qa: question `2`", "512 positions", "write `too_long: skip` or `cut`"),
    ),
    Case(
        "training text among the questions",
        lambda folder: write(
            json.dumps(
                [
                    {"question": json.loads(line)["content"], "answer": "x", "difficulty": "easy"}
                    for line in (folder / "notes.jsonl").read_text().splitlines()
                ]
            ),
            "qa.json",
        )(folder),
        ("the same text stands on two sides", "`qa`", "`leakage: remove`"),
        study=ONE_STAGE_EACH.replace("perplexity: {}", "qa: {path: qa.json}"),
    ),
    Case(
        "question file missing",
        edit("qa.json", "qas.json"),
        ("study.yaml:19: evaluate.qa.path: no file `qas.json` (looked in",),
    ),
)

CASES = (*_PLACE, *_CONTENT, *_ANSWERS, *_FORMATS, *_QUESTION_FILES)

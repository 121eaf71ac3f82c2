import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paretune.data.questions import Question, question_texts, read_questions
from paretune.errors import DataError, NeedsError

OURS = {"id": 1, "question": "Which is a metal?", "options": ["argon", "copper"], "answer": "copper", "level": "easy"}
FACTUAL = {"id": "f", "question": "How many?", "answer": "25"}
OPENBOOK = {
    "id": "7-1",
    "question": {
        "stem": "Fog is likely around",
        "choices": [{"text": "a marsh", "label": "A"}, {"text": "a desert", "label": "B"}],
    },
    "answerKey": "A",
}
OPENBOOK_HUB = {
    "id": "7-2",
    "question_stem": "Fog is likely around",
    "choices": {"text": ["a marsh", "a desert"], "label": ["A", "B"]},
    "answerKey": "B",
    "fact1": "fog is water",
}
ARC = {
    "id": "Mercury_1",
    "question": "Fog is likely near",
    "choices": {"text": ["a marsh", "a desert"], "label": ["1", "2"]},
    "answerKey": "2",
}


def written(tmp_path: Path, content: Any, name: str = "questions.json") -> Path:
    file = tmp_path / name
    file.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return file


def test_every_format_in_one_list(tmp_path: Path) -> None:
    found = read_questions(written(tmp_path, [OURS, FACTUAL, OPENBOOK, OPENBOOK_HUB, ARC]))
    fog, marsh = "Fog is likely around", ("a marsh", "a desert")
    assert found == [
        Question("1", "Which is a metal?", ("argon", "copper"), "copper", 1, {"level": "easy"}),
        Question("f", "How many?", (), "25", None, {}),
        Question("7-1", fog, marsh, "a marsh", 0, {}),
        Question("7-2", fog, marsh, "a desert", 1, {"fact1": "fog is water"}),
        Question("Mercury_1", "Fog is likely near", marsh, "a desert", 1, {}),
    ]


@pytest.mark.parametrize("form", ["object", "list", "lines", "one line", "byte order mark"])
def test_every_shape_of_file(form: str, tmp_path: Path) -> None:
    rows = [OURS] if form == "one line" else [OURS, FACTUAL]
    text = {
        "object": json.dumps({"version": 2, "questions": rows}, indent=1),
        "list": json.dumps(rows, indent=1),
        "lines": "\n\n".join(map(json.dumps, rows)) + "\n",
        "one line": json.dumps(OURS),
        "byte order mark": "\ufeff" + json.dumps(rows),
    }[form]
    assert [question.id for question in read_questions(written(tmp_path, text))] == ["1", "f"][: len(rows)]


def test_the_answer_may_be_given_by_its_index_and_the_id_left_out(tmp_path: Path) -> None:
    rows = [{"question": "?", "options": ["a", "b"], "answer_index": 1}, {"question": "??", "options": [], "answer": "c"}]
    assert read_questions(written(tmp_path, rows)) == [
        Question("1", "?", ("a", "b"), "b", 1, {}),
        Question("2", "??", (), "c", None, {}),
    ]


def test_a_factual_question_may_have_several_right_answers(tmp_path: Path) -> None:
    rows = [
        {"question": "Who?", "answers": ["nobody", "no one", "nobody"]},
        {"question": "When?", "answers": {"text": ["at seven"], "answer_start": [3]}, "level": "easy"},
        {"question": "What?", "answer": "a lamp", "answers": ["lamp", "a lamp"]},
    ]
    found = read_questions(written(tmp_path, rows))
    assert [(each.answer, each.others) for each in found] == [("nobody", ("no one",)), ("at seven", ()), ("a lamp", ("lamp",))]
    assert found[1].fields == {"level": "easy"}
    for answers in ([], "nobody", [""], [3], {"text": []}):
        with pytest.raises(DataError, match="`answers"):
            read_questions(written(tmp_path, [{"question": "Who?", "answers": answers}]))
    assert read_questions(written(tmp_path, [OURS | {"answers": ["copper"]}]))[0].answer == "copper"
    with pytest.raises(DataError, match="`answers` names 2 options"):
        read_questions(written(tmp_path, [OURS | {"answers": ["copper", "argon"]}]))


def test_a_table_may_begin_with_its_separator(tmp_path: Path) -> None:
    file = written(tmp_path, "sep=;\nquestion;answer\nHow many, roughly?;25\n", "questions.csv")
    assert [(each.question, each.answer) for each in read_questions(file)] == [("How many, roughly?", "25")]
    with pytest.raises(DataError, match="line 3 has 1 fields"):
        read_questions(written(tmp_path, "sep=;\nquestion;answer\nHow many?\n", "questions.csv"))


@pytest.mark.parametrize("record", ['{"question": "a", "question": "b", "answer": "c"}', '{"question": "a", "n": 1e400}'])
def test_what_a_record_cannot_hold_is_refused(record: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not JSON \(`(question` stands twice|1e400` is beyond)"):
        read_questions(written(tmp_path, record, "questions.jsonl"))


def test_texts_for_the_leakage_check_hold_question_and_answer(tmp_path: Path) -> None:
    assert question_texts(written(tmp_path, [OURS, FACTUAL])) == ["Which is a metal? copper", "How many? 25"]


def changed(record: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {name: value for name, value in (record | fields).items() if value is not ...}


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (changed(OURS, answer="Copper"), '`answer` `"Copper"` is not among the options'),
        (changed(OURS, answer=...), "`answer` is missing"),
        (changed(OURS, answer=3), "`answer` is `3`; expected a number from 0 that counts the 2 options"),
        (changed(OURS, answer=1), '`answer` `1` names `"copper"` if it counts the options from 0, and `"argon"` if it counts'),
        (changed(OURS, answer_index=0), "correct one of them"),
        (changed(OURS, answer_index=2), "`answer_index` is `2`"),
        (changed(OURS, answer_index="0"), "correct one of them"),
        (changed(OURS, options=["copper"]), "two or more"),
        (changed(OURS, options="argon, copper"), "expected a list of texts"),
        (changed(OURS, options=["copper", " "]), "`options` is empty"),
        (changed(OURS, options=["copper", None]), "`options` is missing"),
        (changed(OURS, options=["copper", "copper"]), "twice"),
        (changed(OURS, question=...), "`question` is missing"),
        (changed(OURS, question=""), "`question` is empty"),
        (changed(OURS, question=["a"]), "`question` is"),
        (changed(OURS, id=1.5), "`id` is `1.5`"),
        (changed(FACTUAL, answer=...), "`answer` is missing"),
        (changed(FACTUAL, answer=""), "`answer` is empty"),
        (changed(FACTUAL, answer_index=0), "`answer_index` is `0`"),
        (changed(OPENBOOK, answerKey=...), "`answerKey` is missing"),
        (changed(ARC, answerKey=""), "`answerKey` is missing"),
        (changed(ARC, answerKey="B"), '`answerKey` `"B"` is none of the labels'),
        (changed(ARC, choices={"text": ["a", "b"], "label": ["1"]}), "as many of `label` as of `text`"),
        (changed(ARC, choices={"text": ["a", "b"], "label": ["2", "2"]}), "a label twice"),
        (changed(ARC, choices="a, b"), "`choices` is"),
        (changed(OPENBOOK, question={"stem": "?"}), "`choices` is `null`"),
        ("a question?", 'is `"a question?"`'),
    ],
)
def test_what_is_no_question_is_refused_with_its_place(record: Any, told: str, tmp_path: Path) -> None:
    file = written(tmp_path, [FACTUAL | {"id": "first"}, record])
    with pytest.raises(DataError) as caught:
        read_questions(file)
    assert str(caught.value).startswith(f"{file}: record 2: ")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("[]", "holds no question"),
        ("12", "holds `12`"),
        ('{"questions": {}}', "`questions` is `{}`"),
        ('[{"question": "a"', "not JSON"),
        ('[{"question": NaN}]', "`NaN` is no JSON value"),
        ("question,answer\na,b\n", "not JSON"),
        (json.dumps(FACTUAL) + "\n{broken\n", "line 2: not JSON"),
        (json.dumps(FACTUAL) + "\n\n3\n", "line 3: is `3`"),
        ([FACTUAL, OURS, FACTUAL], 'record 3: `id` `"f"` is that of record 1'),
        ([FACTUAL, OURS, FACTUAL | {"id": 9}], 'record 3: `"How many?"` is the question of record 1'),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(content: Any, told: str, tmp_path: Path) -> None:
    file = written(tmp_path, content)
    with pytest.raises(DataError) as caught:
        read_questions(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert told in str(caught.value)


def test_a_file_that_is_not_there_or_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NeedsError, match="no such file"):
        read_questions(tmp_path / "missing.json")
    with pytest.raises(DataError, match="is a directory"):
        read_questions(tmp_path)
    (tmp_path / "latin.json").write_bytes('[{"question": "née"}]'.encode("latin-1"))
    with pytest.raises(DataError, match=r"line 1: byte offset 16 \(0xe9\) is not UTF-8"):
        read_questions(tmp_path / "latin.json")


PACKED = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}
TABLE = [
    {"question": "How many?", "answer": "25", "level": "easy"},
    {"question": "Which is it?", "answer": "copper", "level": "hard"},
]


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "tsv", "tab"])
def test_packed_files_and_wide_encodings_are_read(tmp_path: Path, packing: str, encoding: str, suffix: str) -> None:
    if suffix.startswith("json"):
        text = json.dumps(TABLE) if suffix == "json" else "\n".join(map(json.dumps, TABLE))
    else:
        separator = "," if suffix == "csv" else "\t"
        text = "\n".join(separator.join(row) for row in [TABLE[0], *(row.values() for row in TABLE)])
    file = tmp_path / f"questions.{suffix}.{packing}"
    file.write_bytes(PACKED[packing](text.encode(encoding)))
    assert [(each.question, each.answer, each.fields["level"]) for each in read_questions(file)] == [
        ("How many?", "25", "easy"),
        ("Which is it?", "copper", "hard"),
    ]


def test_tables_of_other_programs_are_read(tmp_path: Path) -> None:
    choices = [{"question": "Which is a metal?", "choices": ["argon", "copper"], "answer": 1, "subject": "chemistry"}] * 2
    choices[1] = choices[1] | {"question": "Which is a gas?", "answer": 0}
    pq.write_table(pa.Table.from_pylist(choices), tmp_path / "mmlu.parquet")
    assert [each.answer for each in read_questions(tmp_path / "mmlu.parquet")] == ["copper", "argon"]
    sheet = openpyxl.Workbook()
    for row in [list(TABLE[0]), ["How many?", 25, "easy"], ["Which is it?", "copper", "hard"]]:
        sheet.active.append(row)
    sheet.save(tmp_path / "questions.xlsx")
    assert [each.answer for each in read_questions(tmp_path / "questions.xlsx")] == ["25", "copper"]


def test_the_built_in_questions_are_read():
    found = read_questions("builtin:newsroom")
    assert len(found) >= 200
    assert {len(question.options) for question in found} == {0, 4}
    assert len({question.id for question in found}) == len(found)

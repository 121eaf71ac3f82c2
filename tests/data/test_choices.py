"""Multiple choice in every form that people have it in: the same questions, the same options, the same right one."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from paretune.data.questions import Question, question_texts, read_question_set, read_questions
from paretune.errors import DataError

TEXTS = (
    ("Which is a metal?", ("argon", "copper", "neon", "xenon"), 1),
    ("Which is a fruit?", ("apple", "stone", "lamp", "chair"), 0),
    ("Which swims?", ("a wall", "a tree", "a hat", "a fish"), 3),
    ("Which is a day?", ("noon", "east", "Monday", "red"), 2),
)
LETTERS = "ABCD"


def columns(names: Sequence[str], answers: Sequence[Any], answer: str = "answer", question: str = "question") -> list[dict]:
    """A record a question, its options in columns."""
    return [
        {question: asked, **dict(zip(names, options, strict=True)), answer: said}
        for (asked, options, _), said in zip(TEXTS, answers, strict=True)
    ]


def lists(name: str, make: Any, answers: Sequence[Any], answer: str = "answer") -> list[dict]:
    """A record a question, its options in one field as `make` writes them."""
    return [
        {"question": asked, name: make(options), answer: said} for (asked, options, _), said in zip(TEXTS, answers, strict=True)
    ]


FROM_0, FROM_1 = [right for *_, right in TEXTS], [right + 1 for *_, right in TEXTS]
BY_LETTER = [LETTERS[right] for right in FROM_0]
BY_TEXT = [options[right] for _, options, right in TEXTS]
LETTERED = columns(LETTERS, BY_LETTER)
FORMS = {
    "choice0": columns([f"choice{n}" for n in range(4)], FROM_0),
    "choice1, from 1": columns([f"choice{n}" for n in (1, 2, 3, 4)], FROM_1),
    "choice1, from 0": columns([f"choice{n}" for n in (1, 2, 3, 4)], FROM_0),
    "choice1, by name": columns([f"choice{n}" for n in (1, 2, 3, 4)], [f"choice{n}" for n in FROM_1]),
    "option_a": columns([f"option_{letter}" for letter in "abcd"], BY_LETTER),
    "option_a, by name": columns([f"option_{letter}" for letter in "abcd"], [f"option_{c.lower()}" for c in BY_LETTER]),
    "optionA, small letters": columns([f"option{letter}" for letter in LETTERS], [c.lower() for c in BY_LETTER]),
    "Option A, in brackets": columns([f"Option {letter}" for letter in LETTERS], [f"({c})" for c in BY_LETTER], "Correct"),
    "A, by text": columns(LETTERS, BY_TEXT),
    "a, by number": columns("abcd", FROM_1, "correct_option"),
    "opa of MedMCQA": columns(["opa", "opb", "opc", "opd"], FROM_0, "cop"),
    "ending0 of SWAG": columns([f"ending{n}" for n in range(4)], FROM_0, "label"),
    "sol1 of PIQA": columns([f"sol{n}" for n in (1, 2, 3, 4)], FROM_0, "label", "goal"),
    "answer0": columns([f"answer{n}" for n in range(4)], FROM_0, "correct"),
    "floats, as pandas writes them": columns([f"opt{n}" for n in (1, 2, 3, 4)], [f"{n}.0" for n in FROM_1], "gold"),
    "choices of MMLU": lists("choices", list, FROM_0),
    "options of RACE": lists("options", list, BY_LETTER),
    "endings of HellaSwag": lists("endings", list, [str(n) for n in FROM_0], "label"),
    "by letter, of MedQA": lists("options", lambda texts: dict(zip(LETTERS, texts, strict=True)), BY_LETTER, "answer_idx"),
    "text and label, of ARC": lists(
        "choices", lambda texts: {"text": list(texts), "label": list("1234")}, [str(n) for n in FROM_1], "answerKey"
    ),
    "JSON as text": lists("choices", lambda texts: json.dumps(list(texts)), FROM_0),
    "Python as text": lists("choices", lambda texts: str(list(texts)), FROM_0),
    "numpy as text": lists("choices", lambda texts: "[" + "\n ".join(map(repr, texts)) + "]", FROM_0),
    "pandas of ARC as text": lists(
        "choices",
        lambda texts: f"{{'text': array({list(texts)!r}, dtype=object), 'label': array(['A', 'B', 'C', 'D'], dtype=object)}}",
        BY_LETTER,
        "answerKey",
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_every_form_is_the_same_questions(form: str, suffix: str, tmp_path: Path) -> None:
    records = FORMS[form]
    if suffix == "csv" and any(isinstance(value, list | dict) for record in records for value in record.values()):
        records = [{k: str(v) if isinstance(v, list | dict) else v for k, v in record.items()} for record in records]
    found = read_questions(written(tmp_path, records, suffix))
    assert [(each.question, each.options, each.answer_index) for each in found] == list(TEXTS)
    assert [each.answer for each in found] == BY_TEXT
    assert all(each.fields == {} for each in found)


def written(folder: Path, records: list[dict[str, Any]], suffix: str = "json") -> Path:
    file = folder / f"questions.{suffix}"
    if suffix == "csv":
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
        file.write_text(out.getvalue(), encoding="utf-8", newline="")
    else:
        file.write_text(json.dumps(records), encoding="utf-8")
    return file


def test_beside_the_right_answer_the_place_tells_nothing(tmp_path: Path) -> None:
    wrong = ["air", "fire", "light"]
    forms = [
        {"correct_answer": "ice", **{f"distractor{n}": text for n, text in enumerate(wrong, 1)}},
        {"Correct Answer": "ice", **{f"Incorrect Answer {n}": text for n, text in enumerate(wrong, 1)}},
        {"correct_answer": "ice", "incorrect_answers": wrong},
        {"answer": "ice", "distractors": str(wrong)},
        {"mc1_targets": {"choices": ["ice", *wrong], "labels": [1, 0, 0, 0]}},
    ]
    found = [read_questions(written(tmp_path, [{"question": "What melts?", **form}]))[0] for form in forms]
    assert found == [found[0]] * 5
    assert sorted(found[0].options) == ["air", "fire", "ice", "light"]
    assert found[0].options[found[0].answer_index or 0] == "ice"
    fewer = read_questions(written(tmp_path, [{"question": "What melts?", **forms[0], "distractor3": ""}]))[0]
    assert sorted(fewer.options) == ["air", "fire", "ice"]


def test_an_empty_column_is_no_option_and_moves_none(tmp_path: Path) -> None:
    records = columns([f"choice{n}" for n in range(4)], FROM_0)
    records[2]["choice1"] = records[3]["choice3"] = ""
    found = read_questions(written(tmp_path, records, "csv"))
    assert found[2] == Question("3", "Which swims?", ("a wall", "a hat", "a fish"), "a fish", 2, {})
    assert found[3].options == ("noon", "east", "Monday")
    records[2]["answer"] = 1
    with pytest.raises(DataError, match=r"line 4: `answer` is `\"1\"`; expected a number from 0 that counts the 3 options"):
        read_questions(written(tmp_path, records, "csv"))


def test_numbers_that_no_record_decides_are_refused_until_the_study_says(tmp_path: Path) -> None:
    file = written(tmp_path, columns([f"choice{n}" for n in (1, 2, 3, 4)], [1, 3, 2, 3]))
    with pytest.raises(DataError) as caught:
        read_questions(file)
    assert '`answer` `1` names `"copper"` if it counts the options from 0, and `"argon"` if it counts' in str(caught.value)
    assert "write `right_option: from_0` or `right_option: from_1`" in str(caught.value)
    assert [each.answer_index for each in read_questions(file, right_option="from_0")] == [1, 3, 2, 3]
    assert [each.answer_index for each in read_questions(file, right_option="from_1")] == [0, 2, 1, 2]
    # A single one that only one way of counting allows decides for all.
    assert read_questions(written(tmp_path, columns(LETTERS, [1, 3, 2, 0])))[0].answer == "copper"
    assert read_questions(written(tmp_path, columns(LETTERS, [1, 3, 2, 4])))[0].answer == "argon"
    with pytest.raises(DataError, match=r"expected a number from [01] that counts the 4 options, as in 3 of 4 records"):
        read_questions(written(tmp_path, columns(LETTERS, [1, 0, 2, 4])))


def test_options_that_are_numbers_are_not_mistaken_for_their_places(tmp_path: Path) -> None:
    sums = [
        {"question": "1 + 1?", "options": ["1", "2", "3"], "answer": "2"},
        {"question": "1 + 0?", "options": ["2", "1", "3"], "answer": "1"},
    ]
    with pytest.raises(DataError, match="`right_option: text` or `right_option: from_"):
        read_questions(written(tmp_path, sums))
    assert [each.answer for each in read_questions(written(tmp_path, sums), "own")] == ["2", "1"]
    larger = [*sums, {"question": "9 + 9?", "options": ["18", "2", "3"], "answer": "18"}]
    assert [each.answer for each in read_questions(written(tmp_path, larger))] == ["2", "1", "18"]


@pytest.mark.parametrize(
    ("records", "told"),
    [
        (columns(["w", "x", "y", "z"], FROM_0), "found among `question`, `w`, `x`, `y`, `z`, `answer`; name them `option_a`"),
        (columns(["w", "x", "y", "z"], BY_LETTER), "the answers of all 4 questions without options look like"),
        ([{"question": f"{n}?", "answer": c} for n, c in enumerate("ABAB")], "or write `format: own` where these are"),
        (lists("choices", "; ".join, FROM_0), "written as text it is JSON or Python"),
        ([*LETTERED, {"question": "Who?", "A": "he", "B": "she", "answer": "E"}], "`answer` is `\"E\"`"),
        ([record | {"option1": "x", "option2": "y"} for record in LETTERED], "... or `option1`, `option2` may be"),
        ([{"question": "Who?", "A": "he", "B": "", "answer": "A"}], "`A`, `B` holds 1; multiple choice needs two or more"),
        ([{"question": "Who?", "A": "he", "B": "she"}], "`answer` is missing"),
        ([{"question": "Who?", "choices": ["he", "she"], "answer": ["A", "B"]}], "`answer` names 2 options"),
        ([{"question": "Who?", "mc1_targets": {"choices": ["he", "she"], "labels": [1, 1]}}], "expected a 1 for the right"),
        ([record | {"answer_key": "A"} for record in LETTERED], '`answer_key: A` is `"argon"` and `answer`'),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told(records: list[dict[str, Any]], told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_questions(written(tmp_path, records))
    assert told in str(caught.value)


def test_short_answers_are_answers_where_the_study_says_so(tmp_path: Path) -> None:
    records = [{"question": f"How many of {n}?", "answer": str(n)} for n in range(4)]
    assert [each.answer for each in read_questions(written(tmp_path, records), "own")] == ["0", "1", "2", "3"]
    # One that is no place of an option shows that the others are none either.
    assert len(read_questions(written(tmp_path, [*records, {"question": "How many of 12?", "answer": "12"}]))) == 5


def test_the_file_tells_how_it_was_read(tmp_path: Path) -> None:
    records = [*FORMS["option_a"], {"question": "When?", "answer": "at seven"}]
    assert read_question_set(written(tmp_path, records)).read_as == (
        "4 of multiple choice, columns `option_a`, `option_b` ..., `answer` is the letter of an option",
        "1 factual, with an answer in words",
    )


def test_further_right_answers_come_from_fields_and_templates(tmp_path: Path) -> None:
    records = [
        {"question": "Who waits?", "answer": "nobody", "aliases": ["no one", "nobody"], "short": "none", "id": 1},
        {"question": "Who goes?", "answer": "a man", "aliases": "['he', 'the man']", "short": "", "id": 2},
    ]
    file = written(tmp_path, records)
    found = read_questions(file, references=["aliases", "short", "{{ answer | upper }}"])
    assert [each.others for each in found] == [("no one", "none", "NOBODY"), ("he", "the man", "A MAN")]
    assert all(each.fields == {} for each in found)
    assert question_texts(file, references=["aliases"]) == ["Who waits? nobody no one", "Who goes? a man he the man"]
    with pytest.raises(DataError, match="no field `alias`, which `references` names; did you mean `aliases`"):
        read_questions(file, references=["alias"])
    three = written(tmp_path, [{"question": "Who?", "answer1": "he", "answer2": "him", "answer3": ""}])
    assert read_questions(three, references=["answer1", "answer2", "answer3"])[0].others == ("him",)
    with pytest.raises(DataError, match=r"`answer` is missing.* in `references`, if all are right"):
        read_questions(three)

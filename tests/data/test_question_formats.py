"""MMLU, SciQ, BoolQ and PubMedQA as their files are written, read as questions with the right answer at its place."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from paretune.data.questions import Question, read_questions
from paretune.errors import DataError

MMLU = 'What is 2 + 2?,3,4,5,"6, or 7",B\n"Which ""gas"" is noble?",argon,oxygen,"nitrogen",carbon dioxide,A\n'
SUM = Question("1", "What is 2 + 2?", ("3", "4", "5", "6, or 7"), "4", 1, {})
GAS = Question("2", 'Which "gas" is noble?', ("argon", "oxygen", "nitrogen", "carbon dioxide"), "argon", 0, {})
SCIQ = {
    "question": "What melts?",
    "distractor3": "fire",
    "distractor1": "air",
    "distractor2": "light",
    "correct_answer": "ice",
    "support": "Ice melts in the sun.",
}
BOOLQ = {"question": "is ice cold", "passage": "Ice is frozen water.", "title": "Ice", "answer": True}
PUBMED = {
    "pubid": 1,
    "question": "Does it help?",
    "context": {"contexts": ["It did.", "It did not."]},
    "final_decision": "maybe",
}


def read(tmp_path: Path, content: Any, name: str = "questions.json", format: str | None = None) -> list[Question]:
    file = tmp_path / name
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_questions(file, format)


def test_mmlu_with_and_without_a_header(tmp_path: Path) -> None:
    assert read(tmp_path, MMLU, "mmlu.csv") == [SUM, GAS]
    with_header = read(tmp_path, "Question,A,B,C,D,Answer,subject\n" + MMLU.replace("\n", ",sums\n"), "mmlu.csv")
    assert [one.fields for one in with_header] == [{"subject": "sums"}] * 2
    assert [(one.options, one.answer_index) for one in with_header] == [(SUM.options, 1), (GAS.options, 0)]
    assert read(tmp_path, MMLU.replace('"6, or 7"', "6 or 7").replace(",", "\t"), "mmlu.tsv")[1] == GAS


def test_mmlu_of_the_hub(tmp_path: Path) -> None:
    record = {"question": SUM.question, "subject": "sums", "choices": list(SUM.options), "answer": 1}
    assert read(tmp_path, [record], format="mmlu") == [Question("1", SUM.question, SUM.options, "4", 1, {"subject": "sums"})]


def test_the_place_of_the_right_answer_of_sciq_tells_nothing(tmp_path: Path) -> None:
    records = [SCIQ | {"question": f"What melts at {n} degrees?"} for n in range(400)]
    found = read(tmp_path, records)
    assert all(one.options[one.answer_index or 0] == one.answer == "ice" for one in found)
    places = Counter(one.answer_index for one in found)
    # 400 draws from 4 places: 100 +- 8.7; five standard deviations.
    assert sorted(places) == [0, 1, 2, 3]
    assert all(abs(count - 100) < 44 for count in places.values())
    # Fixed by the question, wherever it stands.
    assert [one.options for one in read(tmp_path, records[::-1])][::-1] == [one.options for one in found]
    assert found[0].context == "Ice melts in the sun."
    assert found[0].fields == {}


def test_yes_no_and_maybe(tmp_path: Path) -> None:
    ice, sun = read(tmp_path, [BOOLQ, BOOLQ | {"passage": "The sun is hot.", "answer": False}])
    assert ice == Question("1", "is ice cold", ("yes", "no"), "yes", 0, {"title": "Ice"}, "Ice is frozen water.")
    assert (sun.answer, sun.answer_index) == ("no", 1)
    helps = Question("1", "Does it help?", ("yes", "no", "maybe"), "maybe", 2, {"pubid": 1}, "It did.\nIt did not.")
    assert read(tmp_path, [PUBMED]) == [helps]
    own_file = {"2161": {"QUESTION": "Does it help?", "CONTEXTS": ["It did.", "It did not."], "final_decision": "maybe"}}
    assert read(tmp_path, own_file) == [Question("2161", "Does it help?", helps.options, "maybe", 2, {}, helps.context)]
    table = read(tmp_path, 'question,passage,answer\n"is it, too",Yes it is.,True\n', "boolq.csv")
    assert table == [Question("1", "is it, too", ("yes", "no"), "yes", 0, {}, "Yes it is.")]


def test_a_format_that_is_named_is_not_guessed(tmp_path: Path) -> None:
    # As our own format this would be a factual question, whose answer is `true`.
    with pytest.raises(DataError, match="record 1: `answer` is `true`; expected a text"):
        read(tmp_path, [{"question": "?", "answer": True}])
    assert read(tmp_path, [{"question": "?", "answer": True}], format="boolq")[0].options == ("yes", "no")
    with pytest.raises(DataError, match="`final_decision` is `null`"):
        read(tmp_path, [BOOLQ], format="pubmedqa")
    # `context` is no field of ours to read: it stays one to write a prompt with.
    own = read(tmp_path, [{"question": "?", "answer": "a", "context": "b"}])[0]
    assert (own.context, own.fields) == ("", {"context": "b"})


@pytest.mark.parametrize(
    ("content", "name", "told"),
    [
        ([{"prompt": "?", "completion": "a"}], "a.json", "MMLU (CSV: question, A, B, C, D, answer), SciQ (`correct_answer`"),
        ("prompt,completion\na,b\n", "a.csv", 'line 1 is `["prompt", "completion"]`, neither a header with `question` nor'),
        ("What?,a,b,c,d,E\n", "a.csv", "or PubMedQA (`final_decision`)"),
        (MMLU + "Why?,a,b,C\n", "a.csv", "line 3 has 4 fields and not 6; quote a text that holds `,`"),
        (MMLU + "Why?,a,b,c,d,E\n", "a.csv", 'line 3: `answer` `"E"` is none of the labels `["A", "B", "C", "D"]`'),
        ('question,answer\n"a,b\n', "a.csv", "not CSV ("),
        ([{"question": "?", "choices": ["a", "b"], "answer": 3}], "a.json", "`answer` `3` is not among the options"),
        ([{"question": "?", "correct_answer": "a"}], "a.json", "`distractor1` is missing"),
        ([SCIQ | {"distractor2": "ice"}], "a.json", '`"ice"` is the right answer and a wrong one'),
        ([BOOLQ | {"answer": "yes"}], "a.json", None),
        ([PUBMED | {"final_decision": "perhaps"}], "a.json", "expected `yes`, `no` or `maybe`"),
        ([PUBMED | {"context": 3}], "a.json", "`context` is `3`"),
        ([BOOLQ, BOOLQ], "a.json", "is the question of record 1"),
    ],
)
def test_what_fits_no_format_is_refused(content: Any, name: str, told: str | None, tmp_path: Path) -> None:
    if told is None:  # an own factual question, answered in words
        assert read(tmp_path, content, name)[0].answer == "yes"
        return
    with pytest.raises(DataError) as caught:
        read(tmp_path, content, name)
    assert told in str(caught.value)

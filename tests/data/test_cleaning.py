"""`clean:` and `safety: {data: drop}` in the data stage: what is mended, masked and left out, and what stays as it is."""

import json
from pathlib import Path
from typing import Any

import pytest

from paretune.data.prepare import prepare_data
from paretune.data.records import parse_form, read_record
from paretune.data.sources import Row
from paretune.errors import DataError
from paretune.study.data import Dataset
from paretune.study.validate import validate
from tests.data.test_prepare import article, context_of, prepare, rows_of, write_rows, written


def cleaned(folder: Path, rows: list[dict[str, Any]], clean: dict[str, Any], **dataset: Any) -> tuple[dict[str, Any], list]:
    source = {"path": str(write_rows(folder / "a.jsonl", rows))}
    metrics, data = prepare(folder, {"source": source, "clean": clean} | ({"text": "{{ content }}"} | dataset))
    return metrics, written(data)


def test_every_text_is_repaired_and_masked_before_the_templates(tmp_path: Path) -> None:
    rows = rows_of(20)
    rows[2] |= {"content": "a person\u00e2\u20ac\u2122s mail is a@example.org, b@example.org", "tags": ["https://x.example/y"]}
    text = "{{ content }} {{ tags | join(', ') if tags is defined }}"
    metrics, found = cleaned(tmp_path, rows, {"encoding": "fix", "mask": ["email", "url"]}, text=text)
    assert "a person\u2019s mail is [EMAIL], [EMAIL] [URL]" in {row["text"] for row in found}
    assert {name: metrics[name] for name in ("fixed", "masked_email", "masked_url")} == {
        "fixed": 1,
        "masked_email": 2,
        "masked_url": 1,
    }


def test_turns_of_chats_are_cleaned(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"{article(n)}?"}, {"role": "assistant", "content": f"ask a{n}@example.org"}]}
        for n in range(20)
    ]
    metrics, found = cleaned(tmp_path, rows, {"mask": ["email"]}, text="", records="messages")
    assert {row["completion"] for row in found} == {" ask [EMAIL]"}
    assert all("@" not in row["messages"] for row in found)
    assert metrics["masked_email"] == 20


def test_cleaning_moves_no_document_to_another_split(tmp_path: Path) -> None:
    sides = []
    for name, clean in (("as it is", {}), ("cleaned", {"encoding": "fix", "mask": ["email"]})):
        folder = tmp_path / name
        folder.mkdir()
        rows = [row | {"title": f"{row['title']} of n{n}@example.org"} for n, row in enumerate(rows_of(30))]
        _, found = cleaned(folder, rows, clean, document="title")
        sides.append({row["example"]: row["split"] for row in found})
    assert sides[0] == sides[1]
    names = {row["document"] for row in found}
    assert len(names) == 30
    assert all(name.startswith("Title ") and "[EMAIL]" in name for name in names)


def test_empty_fields_that_are_needed_leave_a_record_out(tmp_path: Path) -> None:
    rows = [*rows_of(20), {"title": None, "content": article(99)}, {"title": "x", "content": " "}, {"content": article(98)}]
    metrics, found = cleaned(tmp_path, rows, {"drop": ["empty"]}, text="{{ title }}: {{ content }}")
    assert (metrics["records"], metrics["records_empty"], len(found)) == (23, 3, 20)


@pytest.mark.parametrize("field", ["document", "stratify"])
def test_an_empty_document_or_stratum_leaves_a_record_out(tmp_path: Path, field: str) -> None:
    rows = [*rows_of(20), {"title": "", "content": article(99), "type": ""}]
    metrics, _ = cleaned(tmp_path, rows, {"drop": ["empty"]}, **{field: "title" if field == "document" else "type"})
    assert metrics["records_empty"] == 1


def test_fields_that_a_template_asks_about_may_be_empty(tmp_path: Path) -> None:
    rows = [{"instruction": article(n), "input": "", "output": article(n + 50)} for n in range(20)]
    metrics, found = cleaned(tmp_path, rows, {"drop": ["empty"]}, text="", records="alpaca")
    assert (metrics["records_empty"], len(found)) == (0, 20)


def test_a_task_without_its_answer_leaves_the_others(tmp_path: Path) -> None:
    rows = [row | {"tags": None if n == 3 else ["a"]} for n, row in enumerate(rows_of(20))]
    tasks = {
        "tags": {"prompt": "Tags:", "completion": " {{ tags | join(', ') }}"},
        "title": {"prompt": "Title:", "completion": "{{ title }}"},
    }
    metrics, found = cleaned(tmp_path, rows, {"drop": ["empty"]}, text="", context="{{ content }}", tasks=tasks)
    assert (metrics["records_empty"], metrics["completions_empty_tags"]) == (0, 1)
    assert [row["task"] for row in found if row["example"] == "3"] == ["title"]


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        ({"text": "{{ title }}"}, {"title": None}),
        ({"records": "messages"}, {"messages": [{"role": "user", "content": None}]}),
        ({"records": "messages"}, {"messages": []}),
        ({"records": "alpaca"}, {"instruction": "a", "output": None}),
    ],
)
def test_the_error_about_an_empty_field_names_the_way_out(fields: dict[str, Any], values: dict[str, Any]) -> None:
    dataset = validate(Dataset, {"source": {"path": "a.jsonl"}} | fields, "data.a")
    if values == {"messages": []}:
        assert read_record(parse_form(dataset, "data.a"), Row("a: line 1", values)).text == ""
        return
    with pytest.raises(DataError, match=r"or leave such records out with `clean: \{drop: \[empty\]\}`"):
        read_record(parse_form(dataset, "data.a"), Row("a: line 1", values))


def test_duplicates_are_dropped_after_cleaning_and_the_first_stays(tmp_path: Path) -> None:
    rows = rows_of(20)
    rows[4] |= {"content": "It\u2019s the same text in two rows."}
    rows[9] |= {"content": "It\u00e2\u20ac\u2122s the same text in two rows."}
    metrics, found = cleaned(tmp_path, rows, {"encoding": "fix", "drop": ["duplicate"]})
    assert metrics["records_duplicate"] == 1
    assert {int(row["example"]) for row in found} == set(range(20)) - {9}


def test_unsafe_records_are_dropped_before_the_split(tmp_path: Path) -> None:
    rows = [
        row | {"content": row["content"] + (" a Forbidden thing" if n in (2, 5) else "")} for n, row in enumerate(rows_of(20))
    ]
    dataset = validate(Dataset, {"source": {"path": "a.jsonl"}, "text": "{{ content }}"}, "data.a")
    (tmp_path / "words.txt").write_text("forbidden thing\n", encoding="utf-8")
    places = {"source": str(write_rows(tmp_path / "a.jsonl", rows)), "safety.words": str(tmp_path / "words.txt")}
    content = json.loads(dataset.model_dump_json(exclude={"too_long", "leakage"}))
    config = {"dataset": content, "safety": {"words": "sha256:0"}}
    metrics = prepare_data(context_of(tmp_path / "data", config, places, {}))
    assert metrics["records_unsafe"] == 2
    assert sum(metrics[f"examples_{split}"] for split in ("train", "validation", "test")) == 18


def test_where_all_is_unsafe_this_is_told(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("word1\nword2\n" + "\n".join(f"word{n}" for n in range(500)), encoding="utf-8")
    places = {"source": str(write_rows(tmp_path / "a.jsonl", rows_of(20))), "safety.words": str(tmp_path / "words.txt")}
    dataset = validate(Dataset, {"source": {"path": "a.jsonl"}, "text": "{{ content }}"}, "data.a")
    content = json.loads(dataset.model_dump_json(exclude={"too_long", "leakage"}))
    with pytest.raises(DataError, match=r"`safety: \{data: drop\}` leaves no record of `source`"):
        prepare_data(context_of(tmp_path / "data", {"dataset": content, "safety": {"words": "sha256:0"}}, places, {}))

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from paretune.data.prepare import check_leakage, prepare_data, read_documents
from paretune.errors import DataError, NeedsError, SpecError
from paretune.pipeline.records import Record
from paretune.pipeline.resources import Resource
from paretune.pipeline.stage import Artifact, RunOptions, StageContext, resume_of
from paretune.study.data import SPLITS, Dataset
from paretune.study.validate import validate
from tests.conftest import csv_rows

READER = "tests.data.test_prepare:lines_of"
_WORDS = [f"word{number}" for number in range(500)]


def lines_of(place: str) -> list[str]:
    return Path(place).read_text(encoding="utf-8").splitlines()


def article(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(_WORDS, k=words))


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def rows_of(count: int) -> list[dict[str, Any]]:
    return [{"title": f"Title {n}", "content": article(n), "type": "ab"[n % 2]} for n in range(count)]


def context_of(folder: Path, config: dict[str, Any], resources: dict[str, str], inputs: dict[str, Artifact]) -> StageContext:
    folder.mkdir()
    resume_of(folder).mkdir()
    places = {role: Resource(path=Path(place)) for role, place in resources.items()}
    return StageContext(config, inputs, places, RunOptions(), folder, lambda **_: None)


def prepare(folder: Path, dataset: dict[str, Any], *, items: dict[str, str] | None = None) -> tuple[dict[str, Any], Artifact]:
    """The data stage as the plan calls it: paths are digests, `items` stand in the config only if duplicates are removed."""
    config = validate(Dataset, dataset, "data.notes").model_dump(mode="json", exclude={"too_long", "leakage"})
    resources = {}
    if "train" in config["source"]:
        del config["split"]
        for split in SPLITS:
            resources[f"source.{split}"] = config["source"][split]["path"]
            config["source"][split] |= {"path": "sha256:0", "format": "jsonl"}
    else:
        resources["source"] = config["source"]["path"]
        config["source"] |= {"path": "sha256:0", "format": config["source"]["format"] or "jsonl"}
    stage: dict[str, Any] = {"dataset": config}
    if items is not None:
        stage["items"] = {name: {"digest": "sha256:0", "reader": READER} for name in items}
        resources |= {f"items.{name}": place for name, place in items.items()}
    draft = folder / "data"
    (folder / "resources.json").write_text(json.dumps(resources), encoding="utf-8")
    metrics = prepare_data(context_of(draft, stage, resources, {}))
    record = Record("0", "data", 1, stage, {}, "", 0.0, "cpu", {}, 0, {}, None, (), {}, metrics, {})
    return metrics, Artifact(draft, record, {})


def check(folder: Path, data: Artifact, mode: str, items: dict[str, str] | None = None) -> dict[str, Any]:
    config = {"mode": mode, "items": {name: {"digest": "sha256:0", "reader": READER} for name in items or {}}}
    resources = {f"items.{name}": place for name, place in (items or {}).items()}
    resources |= json.loads((folder / "resources.json").read_text(encoding="utf-8"))
    return check_leakage(context_of(folder / "leakage", config, resources, {"data": data}))


def written(data: Artifact) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(data.path / "documents.parquet").to_pylist()


def test_records_are_rendered_and_split_by_document(tmp_path: Path) -> None:
    rows = [{"title": f"t{n // 2}", "content": f"content é {n}"} for n in range(40)]
    dataset = {"source": {"path": str(write_rows(tmp_path / "a.jsonl", rows))}, "document": "title", "text": "{{ content }}\n"}
    metrics, data = prepare(tmp_path, dataset)
    found = written(data)
    assert [row["split"] for row in found] == ["train"] * 32 + ["validation"] * 4 + ["test"] * 4
    assert {row["document"]: row["split"] for row in found} == {
        row["document"]: split for split in SPLITS for row in found if row["split"] == split
    }
    assert {(row["document"], row["example"], row["text"]) for row in found} == {
        (f"t{n // 2}", str(n), f"content é {n}\n") for n in range(40)
    }
    sizes = {split: sum(len(row["text"].encode()) for row in found if row["split"] == split) for split in SPLITS}
    assert metrics == {
        "records": 40,
        "records_empty": 0,
        "documents_unused": 0,
        "documents_removed": 0,
        "records_used": 40,
        "records_largest_document": 2,
        "documents_train": 16,
        "documents_validation": 2,
        "documents_test": 2,
        "examples_train": 32,
        "examples_validation": 4,
        "examples_test": 4,
    } | {f"bytes_{split}": size for split, size in sizes.items()}


def test_the_order_of_the_file_moves_no_document(tmp_path: Path) -> None:
    dataset = {"document": "title", "text": "{{ content }}"}
    sides = []
    for name, rows in (("one", rows_of(30)), ("two", rows_of(30)[::-1])):
        folder = tmp_path / name
        folder.mkdir()
        _, data = prepare(folder, dataset | {"source": {"path": str(write_rows(folder / "a.jsonl", rows))}})
        sides.append({row["document"]: row["split"] for row in written(data)})
    assert sides[0] == sides[1]


def test_records_without_text_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [*rows_of(20), {"title": "x", "content": " \n"}, {"title": "y", "content": ""}]
    dataset = {"source": {"path": str(write_rows(tmp_path / "a.jsonl", rows))}, "text": "{{ content }}"}
    metrics, data = prepare(tmp_path, dataset)
    assert (metrics["records"], metrics["records_empty"]) == (22, 2)
    assert len(written(data)) == 20


def test_chapters_are_documents_by_their_headings(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text("\n".join(f"# Chapter {n}\n{article(n)}\n" for n in range(12)), encoding="utf-8")
    _, data = prepare(tmp_path, {"source": {"path": str(file), "format": "text", "chapters": "^# "}})
    assert {row["document"] for row in written(data)} == {f"# Chapter {n}" for n in range(12)}


def test_unused_documents_are_counted(tmp_path: Path) -> None:
    dataset = {"source": {"path": str(write_rows(tmp_path / "a.jsonl", rows_of(20)))}, "text": "{{ content }}"}
    metrics, data = prepare(tmp_path, dataset | {"split": {"train": 0.5, "validation": 0.1, "test": 0.1}})
    assert metrics["documents_unused"] == 6
    assert len(written(data)) == 14


def test_separate_sources_keep_their_splits(tmp_path: Path) -> None:
    rows = rows_of(6)
    source = {split: {"path": str(write_rows(tmp_path / f"{split}.jsonl", rows[n::3]))} for n, split in enumerate(SPLITS)}
    metrics, data = prepare(tmp_path, {"source": source, "text": "{{ content }}"})
    assert [(row["split"], row["document"], row["example"]) for row in written(data)] == [
        (split, f"{split} {n}", str(n)) for split in SPLITS for n in range(2)
    ]
    assert metrics["records"] == 6


def test_a_document_in_two_separate_sources_is_refused(tmp_path: Path) -> None:
    rows = rows_of(6)
    source = {split: {"path": str(write_rows(tmp_path / f"{split}.jsonl", rows[n : n + 3]))} for n, split in enumerate(SPLITS)}
    with pytest.raises(DataError, match=r"document `Title 1` stands in `source.train` and in `source.validation`.*two sides"):
        prepare(tmp_path, {"source": source, "document": "title", "text": "{{ content }}"})


BAD_ROWS: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    ({"titel": "x"}, {"document": "title"}, ["line 21", "no field `title`, which `document` names", "did you mean `titel`"]),
    ({"title": ""}, {"document": "title"}, ["line 21", "`document: title` is empty", '`""`', "leave `document` out"]),
    ({"title": None}, {"document": "title"}, ["line 21", "is empty", "`null`"]),
    ({"title": ["x"]}, {"document": "title"}, ["line 21", '`["x"]`', "a text or a number"]),
    ({"title": "\ud800"}, {"document": "title"}, ["line 21", "U+D800"]),
    ({"title": "x", "type": None}, {"stratify": "type"}, ["line 21", "`stratify: type` is empty", "leave `stratify` out"]),
    ({"title": "x"}, {"stratify": "type"}, ["line 21", "no field `type`, which `stratify` names"]),
    (
        {"title": "Title 3", "type": "a"},
        {"document": "title", "stratify": "type"},
        ["document `Title 3` has several values of `stratify: type` (`b` and `a`)"],
    ),
    ({"title": "x", "content": None}, {}, ["line 21", "field `content` is null", "default('')"]),
    ({"title": "x", "content": "\ud83d cut"}, {}, ["line 21", "character 1", "surrogate pair (U+D83D)"]),
]


@pytest.mark.parametrize(("row", "fields", "told"), BAD_ROWS)
def test_a_bad_record_is_refused_with_its_line(
    tmp_path: Path, row: dict[str, Any], fields: dict[str, Any], told: list[str]
) -> None:
    rows = [*rows_of(20), {"content": "some text", **row}]
    dataset = {"source": {"path": str(write_rows(tmp_path / "a.jsonl", rows))}, "text": "{{ content }}", **fields}
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, dataset)
    assert [part for part in told if part not in str(caught.value)] == []


def test_a_dataset_that_renders_to_nothing_is_refused(tmp_path: Path) -> None:
    source = {"path": str(write_rows(tmp_path / "a.jsonl", rows_of(20)))}
    with pytest.raises(DataError, match=r"`source`: all 20 records render to nothing but white space"):
        prepare(tmp_path, {"source": source, "text": "{{ titel | default('') }} "})


def test_too_few_documents_a_missing_file_and_a_bad_template_are_refused(tmp_path: Path) -> None:
    source = {"path": str(write_rows(tmp_path / "a.jsonl", rows_of(3)))}
    for number, (error, dataset, told) in enumerate(
        [
            (DataError, {"source": source, "text": "{{ content }}"}, r"3 document\(s\) cannot fill the splits"),
            (NeedsError, {"source": {"path": str(tmp_path / "b.jsonl")}, "text": "x"}, r"b.jsonl: no such file"),
            (SpecError, {"source": source, "text": "{{ content"}, r"template .*line 1"),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(error, match=told):
            prepare(folder, dataset)


def leaking_dataset(folder: Path) -> dict[str, Any]:
    """Separate sources: a test article stands in training under another title, a validation article nearly so."""
    rows = rows_of(30)
    parts = {"train": rows[:20], "validation": rows[20:25], "test": rows[25:]}
    parts["train"] += [{"title": "Again", "content": rows[25]["content"]}]
    parts["train"] += [{"title": "Nearly", "content": rows[20]["content"] + " " + article(99, 20)}]
    source = {split: {"path": str(write_rows(folder / f"{split}.jsonl", part))} for split, part in parts.items()}
    return {"source": source, "document": "title", "text": "{{ content }}"}


def test_block_refuses_and_shows_the_pairs(tmp_path: Path) -> None:
    _, data = prepare(tmp_path, leaking_dataset(tmp_path))
    with pytest.raises(DataError) as caught:
        check(tmp_path, data, "block")
    message = str(caught.value)
    assert "exact: test `Title 25` in train `Again`" in message
    assert "near: validation `Title 20` in train `Nearly`" in message
    assert "`leakage: remove` to leave 2 document(s)" in message
    file = tmp_path / "leakage.resume" / "pairs.csv"
    assert f"the place of both texts of each pair: {file}" in message
    exact, near = csv_rows(file)
    assert (exact["kind"], exact["share"], exact["record"], exact["other_record"]) == ("exact", "1.000", "21", "1")
    assert (exact["place"], exact["other_place"]) == (f"{tmp_path}/train.jsonl: line 21", f"{tmp_path}/test.jsonl: line 1")
    assert (near["split"], near["document"], near["other"], near["other_document"]) == (
        *("train", "Nearly"),
        *("validation", "Title 20"),
    )


def test_allow_records_the_pairs(tmp_path: Path) -> None:
    _, data = prepare(tmp_path, leaking_dataset(tmp_path))
    items = tmp_path / "items.txt"
    items.write_text(" ".join(article(3).split()[5:20]) + "\nwhat is nowhere to be read?\n", encoding="utf-8")
    metrics = check(tmp_path, data, "allow", {"quiz": str(items)})
    assert metrics == {
        "pairs": 3,
        "documents_touched_train": 3,
        "documents_touched_validation": 1,
        "documents_touched_test": 1,
        "documents_alike_validation": 0,
        "documents_alike_test": 0,
        "items_touched_quiz": 1,
    }
    pairs = csv_rows(tmp_path / "leakage" / "pairs.csv")
    assert pairs[2]["place"] == f"{tmp_path}/train.jsonl: line 4"
    assert (pairs[2]["other_record"], pairs[2]["other_place"]) == ("1", f"{items}: item 1")
    assert [(pair["kind"], pair["document"], pair["other"], pair["other_document"]) for pair in pairs] == [
        ("exact", "Again", "test", "Title 25"),
        ("near", "Nearly", "validation", "Title 20"),
        ("exact", "Title 3", "quiz", "1"),
    ]


def test_the_record_of_a_document_that_shares_most_is_named_and_records_of_one_split_that_are_alike_are_counted(
    tmp_path: Path,
) -> None:
    rows = [{"talk": f"t{n // 4}", "content": article(n)} for n in range(120)]
    rows[101]["content"] = "A word before. " + rows[2]["content"]
    source = {
        split: {"path": str(write_rows(tmp_path / f"{split}.jsonl", part))}
        for split, part in zip(
            SPLITS, (rows[:80], rows[80:100], [*rows[100:], {"talk": "t30", "content": rows[117]["content"]}]), strict=True
        )
    }
    _, data = prepare(tmp_path, {"source": source, "document": "talk", "text": "{{ content }}"})
    metrics = check(tmp_path, data, "allow")
    assert (metrics["pairs"], metrics["documents_alike_validation"], metrics["documents_alike_test"]) == (0, 0, 2)
    (alike,) = csv_rows(tmp_path / "leakage" / "pairs.csv")
    assert (alike["document"], alike["record"], alike["other_document"], alike["other_record"]) == ("t29", "18", "t30", "21")
    # A quarter of a document of four records is below the threshold; each record for itself is above.
    (folder := tmp_path / "alone").mkdir()
    _, data = prepare(folder, {"source": source, "text": "{{ content }}"})
    metrics = check(folder, data, "allow")
    assert (metrics["pairs"], metrics["documents_alike_validation"], metrics["documents_alike_test"]) == (1, 0, 2)
    across, within = csv_rows(folder / "leakage" / "pairs.csv")
    assert (across["record"], across["other_record"], across["other_place"].rpartition(": ")[2]) == ("3", "2", "line 2")
    assert (within["split"], within["other"], within["record"], within["other_record"]) == ("test", "test", "18", "21")


def test_remove_drops_the_training_side_and_leaves_nothing_to_find(tmp_path: Path) -> None:
    items = tmp_path / "items.txt"
    items.write_text(" ".join(article(3).split()[5:20]) + "\n", encoding="utf-8")
    metrics, data = prepare(tmp_path, leaking_dataset(tmp_path), items={"quiz": str(items)})
    assert (metrics["documents_removed"], metrics["documents_train"]) == (3, 19)
    assert {"Again", "Nearly", "Title 3"} & {row["document"] for row in written(data)} == set()
    assert [row["place"].rpartition(": ")[2] for row in csv_rows(data.path / "removed.csv")] == ["line 21", "line 22", "line 4"]
    assert check(tmp_path, data, "remove", {"quiz": str(items)})["pairs"] == 0


def test_remove_that_would_leave_a_split_empty_is_refused(tmp_path: Path) -> None:
    rows = rows_of(4)
    parts = {"train": [rows[0]], "validation": [rows[1]], "test": [{"title": "x", "content": rows[0]["content"]}]}
    source = {split: {"path": str(write_rows(tmp_path / f"{split}.jsonl", part))} for split, part in parts.items()}
    with pytest.raises(DataError, match=r"`leakage: remove` leaves no document in `train`"):
        prepare(tmp_path, {"source": source, "text": "{{ content }}"}, items={})


def test_one_content_under_two_titles_is_found(tmp_path: Path) -> None:
    rows = [{"title": article(1000 + n, 20), "content": article(n, 15)} for n in range(20)]
    rows += [row | {"title": article(2000 + n, 20)} for n, row in enumerate(rows)]
    source = {"path": str(write_rows(tmp_path / "a.jsonl", rows))}
    dataset = {"source": source, "document": "title", "text": "{{ title }}\n\n{{ content }}"}
    _, data = prepare(tmp_path, dataset | {"split": {"train": 0.5, "validation": 0.25, "test": 0.25}})
    metrics = check(tmp_path, data, "allow")
    side = {row["document"]: row["split"] for row in written(data)}
    apart = sum(side[first["title"]] != side[second["title"]] for first, second in zip(rows[:20], rows[20:], strict=True))
    assert apart > 5
    assert metrics["pairs"] == apart


def test_a_prompt_that_all_records_share_is_no_leak(tmp_path: Path) -> None:
    rows = [row | {"system": article(7777, 30)} for row in rows_of(40)]
    source = {"path": str(write_rows(tmp_path / "a.jsonl", rows))}
    _, data = prepare(tmp_path, {"source": source, "text": "{{ system }}\n{{ content }}"})
    assert check(tmp_path, data, "block")["pairs"] == 0


TASKS = {
    "title": {"prompt": "Title: ", "completion": "{{ title }}"},
    "type": {"prompt": "Type: ", "completion": "{{ type }}", "score": ["exact_match"]},
}


def test_tasks_are_rows_with_their_pieces(tmp_path: Path) -> None:
    rows = [row | ({"type": " "} if n == 3 else {}) for n, row in enumerate(rows_of(40))]
    source = {"path": str(write_rows(tmp_path / "a.jsonl", rows))}
    metrics, data = prepare(tmp_path, {"source": source, "document": "title", "context": "{{ content }}\n", "tasks": TASKS})
    found = written(data)
    assert [row["task"] for row in found if row["example"] != "3"] == ["title", "type"] * 39
    assert {row["text"] for row in found} == {
        f"{row['content']}\n{prompt}{row[task]}"
        for row in rows
        for task, prompt in (("title", "Title: "), ("type", "Type: "))
        if row[task].strip()
    }
    assert all(row["text"] == row["context"] + row["prompt"] + row["completion"] for row in found)
    assert (metrics["completions_empty_type"], metrics["records_empty"]) == (1, 0)
    assert sum(metrics[f"examples_{split}"] for split in SPLITS) == 79


def test_the_leakage_check_reads_a_context_once(tmp_path: Path) -> None:
    rows = rows_of(40)
    source = {"path": str(write_rows(tmp_path / "a.jsonl", rows))}
    _, data = prepare(tmp_path, {"source": source, "document": "title", "context": "{{ content }}\n", "tasks": TASKS})
    texts, _ = read_documents(data.path / "documents.parquet")
    assert {text for documents in texts.values() for text in documents.values()} == {
        f"{row['content']}\nTitle: {row['title']}Type: {row['type']}" for row in rows
    }


def test_duplicates_are_found_below_other_tasks(tmp_path: Path) -> None:
    rows = rows_of(40)
    rows += [row | {"title": f"Copy of {row['title']}"} for row in rows]
    source = {"path": str(write_rows(tmp_path / "a.jsonl", rows))}
    dataset = {"source": source, "document": "title", "context": "{{ content }}\n", "tasks": TASKS}
    _, data = prepare(tmp_path, dataset | {"split": {"train": 0.5, "validation": 0.25, "test": 0.25}})
    with pytest.raises(DataError, match="two sides"):
        check(tmp_path, data, "block")


def test_nothing_to_learn_is_told(tmp_path: Path) -> None:
    rows = [row | {"type": "", "title": ""} for row in rows_of(10)]
    with pytest.raises(DataError, match="none of 10 records has a completion that is not empty"):
        prepare(tmp_path, {"source": {"path": str(write_rows(tmp_path / "a.jsonl", rows))}, "tasks": TASKS})


def test_what_is_said_twice_in_conversations_is_a_leak(tmp_path: Path) -> None:
    def said(number: int) -> list[dict[str, str]]:
        # One question of many words under different answers.
        question = {"role": "user", "content": article(number % 20, 20)}
        return [
            {"role": "system", "content": article(999, 30)},
            question,
            {"role": "assistant", "content": article(100 + number)},
        ]

    source = {"path": str(write_rows(tmp_path / "a.jsonl", [{"messages": said(n)} for n in range(40)]))}
    _, data = prepare(
        tmp_path, {"source": source, "records": "messages", "split": {"train": 0.5, "validation": 0.25, "test": 0.25}}
    )
    sides = {row["document"]: row["split"] for row in written(data)}
    apart = sum(sides[str(n)] != sides[str(n + 20)] for n in range(20))
    assert apart > 5
    assert check(tmp_path, data, "allow")["pairs"] == apart

"""Sources, splits and datasets: what goes together, and what is told where it does not."""

import json
from typing import Any

import pytest

from paretune.errors import SpecError
from paretune.study.data import Dataset, Source, Split, SplitSources
from paretune.study.validate import validate

PLACES = {"path": "a.jsonl"}
TASKS = {"x": {"completion": "{{ a }}"}}


def source(**fields: Any) -> Source:
    return validate(Source, fields, "here")


def dataset(**fields: Any) -> Dataset:
    return validate(Dataset, {"source": PLACES, "text": "{{ a }}"} | fields, "data.a")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jsonl", "jsonl"),
        ("a.ndjson", "jsonl"),
        ("A.JSON", "json"),
        ("a.csv", "csv"),
        ("a.tsv", "csv"),
        ("b/a.parquet", "parquet"),
        ("a.b.txt", "text"),
        ("a.md", "text"),
    ],
)
def test_the_suffix_names_the_format(name: str, expected: str) -> None:
    assert source(path=name).resolved_format == expected
    assert source(path=name, format="json").resolved_format == "json"
    assert source(hub="a/b").resolved_format is None


@pytest.mark.parametrize(
    "fields",
    [
        {"path": "a.data", "format": "jsonl"},
        {"path": "a.csv", "header": False, "columns": ["x", "y"]},
        {"path": "a.csv", "columns": ["x", "y"], "delimiter": "\t"},
        {"path": "a.log", "format": "text", "separator": "\n"},
        {"path": "a.csv", "format": "text", "blocks": 200},
        {"path": "a.txt", "chapters": "^CHAPTER", "start": "START", "end": "END"},
        {"hub": "a/b", "config": "c", "split": "train[:10%]", "revision": "main"},
        {"builtin": "newsroom"},
    ],
)
def test_legal_and_the_same_after_a_stage_s_config(fields: dict[str, Any]) -> None:
    """A stage's config writes out every field, also those that belong to other formats."""
    read = source(**fields)
    assert source(**json.loads(read.model_dump_json())) == read


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "name exactly one of `path`, `hub` and `builtin`, got `{}`"),
        ({"path": "a.jsonl", "hub": "a/b"}, "name exactly one of `path`, `hub` and `builtin`"),
        ({"path": "a.data"}, "no format; add `format: jsonl | json | csv | parquet | text | xlsx | arrow`"),
        ({"path": "a.xls"}, ".xls files are not read; open it and save it as .xlsx or .csv"),
        ({"path": "b/a.tar.gz"}, ".tar files are not read; unpack it, `tar xf b/a.tar.gz`, and name the folder"),
        ({"path": ["a.jsonl", "b.csv"]}, "the files of `path` are of several formats"),
        ({"path": ["a.jsonl", "a.jsonl"]}, "`path` names a file twice"),
        ({"path": "a.csv", "sheet": "b"}, "`sheet` is for `format: xlsx` only"),
        ({"hub": "a/b", "format": "jsonl"}, "`format` is for `path` only"),
        ({"builtin": "newsroom", "format": "text"}, "`format` is for `path` only"),
        ({"path": "a.jsonl", "split": "test"}, "`split` is for `hub` only"),
        ({"path": "a.jsonl", "revision": "v1"}, "`revision` is for `hub` only"),
        ({"builtin": "newsroom", "config": "x"}, "`config` is for `hub` only"),
        ({"path": "a.jsonl", "columns": ["a"]}, "`columns` is for `format: csv` and `xlsx` only"),
        ({"path": "a.parquet", "delimiter": ";"}, "`delimiter` is for `format: csv` only"),
        ({"hub": "a/b", "header": False, "columns": ["a"]}, "`header` is for `format: csv` and `xlsx` only"),
        ({"path": "a.csv", "header": False}, "`header: false` needs `columns: [...]`"),
        ({"path": "a.csv", "columns": []}, "expected a list with 1 or more entries, got `[]`"),
        ({"path": "a.csv", "columns": ["a", "a"]}, "two columns have the same name"),
        ({"path": "a.csv", "delimiter": ";;"}, "`delimiter` is one character, no quote and no line end"),
        ({"path": "a.csv", "delimiter": ""}, "`delimiter` is one character"),
        ({"path": "a.csv", "delimiter": "\n"}, "`delimiter` is one character"),
        ({"path": "a.jsonl", "blocks": 500}, "`blocks` is for `format: text` only"),
        ({"path": "a.txt", "blocks": 100}, "expected 200 or more, got `100`"),
        ({"path": "a.txt", "chapters": "^A", "separator": "---"}, "name at most one of `chapters`, `blocks` and `separator`"),
        ({"path": "a.txt", "separator": ""}, "expected a text with 1 or more characters"),
        ({"path": "a.txt", "chapters": "["}, "not a regular expression (unterminated character set at position 0)"),
        ({"path": "a.txt", "start": "("}, "not a regular expression (missing ), unterminated subpattern at position 0)"),
        ({"path": "a.jsonl", "format": "xml"}, "`parquet`, `text`, `xlsx` or `arrow`, got `\"xml\"`"),
        ({"path": []}, "expected a text, or a list with 1 or more entries, got `[]`"),
        ({"url": "x"}, "unknown key; `url` belongs in `judge` (in `evaluate`)"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_in_a_source_is_told(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as told:
        source(**fields)
    assert message in str(told.value)
    assert str(told.value).startswith("here")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train": 0.8, "validation": 0.1, "test": 0.2}, "the shares sum to 1.1; they must not exceed 1"),
        ({"train": 0}, "expected more than 0, got `0`"),
        ({"test": 1}, "expected less than 1, got `1`"),
        ({"seed": -1}, "expected 0 or more, got `-1`"),
        ({"trian": 0.5}, "unknown key; did you mean `train`?"),
    ],
)
def test_shares_are_shares(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as told:
        validate(Split, fields, "split")
    assert message in str(told.value)


def test_what_is_left_of_the_shares_is_unused() -> None:
    assert validate(Split, {}, "split").unused == 0
    assert validate(Split, {"train": 0.1, "validation": 0.2, "test": 0.3}, "split").unused == pytest.approx(0.4)
    assert validate(Split, {"train": 0.7, "validation": 0.2, "test": 0.1}, "split").unused == 0


def test_a_source_for_each_split() -> None:
    whole = {name: {"path": f"{name}.jsonl"} for name in ("train", "validation", "test")}
    read = dataset(source=whole)
    assert isinstance(read.source, SplitSources)
    assert read.source.test.path == "test.jsonl"
    texts = {name: {"path": f"{name}.txt"} for name in ("train", "validation", "test")}
    assert dataset(source=texts, text="").template == "{{ text }}"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": {"train": PLACES, "test": PLACES}}, "data.a.source.validation: missing; this field has no default"),
        ({"source": {"train": PLACES, "validation": PLACES, "test": PLACES, "dev": PLACES}}, "data.a.source.dev: unknown key"),
        ({"source": {"train": PLACES, "validation": PLACES, "test": {"pth": "x"}}}, "data.a.source.test.pth: unknown key; di"),
        ({"source": {"train": PLACES, "validation": PLACES, "test": PLACES}, "split": {}}, "data.a: `split` and separate sou"),
        ({"source": {"train": PLACES, "validation": PLACES, "test": PLACES}, "stratify": "x"}, "data.a: `stratify` is for a "),
        ({"source": "a.jsonl"}, "data.a.source: expected a mapping of fields, got `\"a.jsonl\"`"),
        ({"source": {"pth": "x"}}, "data.a.source.pth: unknown key; did you mean `path`?"),
        ({"source": PLACES, "text": ""}, "data.a: `text` is missing: a template over the fields of a record, like"),
        ({"source": {"hub": "a/b"}, "text": ""}, "data.a: `text` is missing"),
        ({"text": 3}, "data.a.text: expected a text, got `3`"),
        ({"document": ""}, "data.a.document: expected a text with 1 or more characters"),
        ({"document": ["a", "b"]}, "data.a.document: expected a text, got"),
        ({"too_long": "trim"}, "data.a.too_long: expected `windows`, `skip`, `error`, `cut`, `keep_end` or `keep_latest`"),
        ({"text": "", "tasks": TASKS, "too_long": "cut"}, "data.a: `too_long: cut` shortens a `context`, and there is none"),
        ({"tasks": TASKS}, "data.a: `text` and `tasks` exclude each other; a dataset has one of `text`, `tasks` and `records`"),
        ({"text": "", "tasks": TASKS, "records": "alpaca"}, "data.a: `tasks` and `records` exclude each other"),
        ({"context": "{{ a }}"}, "data.a: `context` is for `tasks`"),
        ({"text": "", "tasks": TASKS, "too_long": "windows"}, "data.a: `too_long: windows` would part a completion from its"),
        ({"text": "", "tasks": {"a b": TASKS["x"]}}, "data.a.tasks: `a b` cannot be the name of a task"),
        ({"text": "", "tasks": {"x": {"prompt": "A: "}}}, "data.a.tasks.x.completion: missing; this field has no default"),
        ({"text": "", "tasks": {"x": TASKS["x"] | {"promt": ""}}}, "data.a.tasks.x.promt: unknown key; did you mean `prompt`?"),
        ({"text": "", "tasks": {"x": TASKS["x"] | {"score": ["rogue_l"]}}}, "data.a.tasks.x.score[0]: expected `rouge_1`"),
        ({"text": "", "tasks": {"x": TASKS["x"] | {"labels": ["a"]}}}, "data.a.tasks.x: `labels` are two or more different"),
        ({"text": "", "tasks": {"x": TASKS["x"] | {"score": ["accuracy"]}}}, "data.a.tasks.x: `accuracy` needs `labels: from_"),
        ({"text": "", "records": "alpca"}, "data.a.records: expected `alpaca`, `prompt_completion`, `messages` or `sharegpt`"),
        ({"text": "", "records": {"format": "x"}}, "data.a.records.format: expected `alpaca`, `prompt_completion`"),
        ({"text": "", "records": {"format": "alpaca", "stops": []}}, "data.a.records.stops: unknown key; did you mean `stop`?"),
        ({"leakage": "ignore"}, "data.a.leakage: expected `block`, `remove` or `allow`, got `\"ignore\"`"),
        ({"shuffle": True}, "data.a.shuffle: unknown key; known: `clean`, `context`, `control_tokens`, `document`, "),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_dataset_is_told(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as told:
        dataset(**fields)
    assert str(told.value).startswith(message)
    assert "\n" not in str(told.value)


def test_scoring_is_no_part_of_what_is_trained() -> None:
    plain = dataset(text="", tasks={"a": {"completion": "{{ a }}"}, "b": {"completion": "{{ b }}"}})
    scored = dataset(
        text="",
        tasks={
            "b": {"completion": "{{ b }}", "labels": ["x", "y"]},
            "a": {"completion": "{{ a }}", "score": ["rouge_l"], "stop": ["\n"], "max_new_tokens": 9},
        },
    )
    assert scored.content == plain.content
    assert set(scored.scored) == {"a", "b"}
    assert plain.scored == {}
    assert dataset(text="", records={"format": "alpaca", "score": ["rouge_l"]}).content["records"] == "alpaca"


def test_fields_that_came_later_stand_in_no_key_where_they_are_not_used() -> None:
    assert not {"context", "tasks", "records"} & set(dataset().content)


def test_what_is_too_long_is_refused_unless_a_text_can_be_cut_into_windows() -> None:
    assert dataset().length_rule == "windows"
    assert dataset(text="", records="messages").length_rule == "error"
    assert dataset(text="", tasks=TASKS, context="{{ b }}", too_long="cut").length_rule == "cut"

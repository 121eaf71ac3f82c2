"""What is kept of texts, prompts and conversations that are longer than a model is shown, and what is right besides."""

from pathlib import Path
from typing import Any

import pytest

from paretune.data.prepare import read_documents
from paretune.data.tokenizer import load_tokenizer, read_tokens, tokenize
from paretune.data.too_long import shortened_text
from paretune.errors import SpecError
from paretune.pipeline.resources import Resource
from paretune.pipeline.stage import RunOptions, StageContext
from paretune.study.data import Dataset
from paretune.study.validate import validate
from tests.data.chat_templates import GEMMA
from tests.data.test_examples import tokenized
from tests.data.test_prepare import prepare, write_rows
from tests.evaluate.stages import BASE
from tests.tiny import make_model, make_tokenizer


@pytest.mark.parametrize("rule", ["cut", "keep_end"])
def test_a_text_keeps_its_beginning_or_its_end_in_whole_characters(rule: str, tmp_path: Path, base: Path) -> None:
    texts = {f"d{n}": f"{n} begins. " + "🦊é " * (40 if n < 5 else 1) + f"ends {n}" for n in range(20)}
    rows = [{"text": text, "doc": name} for name, text in texts.items()]
    _, data = prepare(
        tmp_path, {"source": {"path": str(write_rows(tmp_path / "a.jsonl", rows))}, "document": "doc", "text": "{{ text }}"}
    )
    (tmp_path / "tokens").mkdir()
    config = {"base": BASE, "max_length": 64, "too_long": rule}
    tokenizer = load_tokenizer(BASE, Resource(path=base))
    context = StageContext(
        config, {"data": data}, {"base": Resource(path=base)}, RunOptions(), tmp_path / "tokens", lambda **_: None
    )
    metrics = tokenize(context)
    assert (metrics["cut_examples"], metrics["skipped_examples"], metrics["lossy_examples"]) == (5, 0, 0)
    for row in read_tokens(tmp_path / "tokens"):
        whole, kept = texts[row["document"]], tokenizer.decode(row["ids"])
        assert whole.startswith(kept) if rule == "cut" else whole.endswith(kept)
        assert row["bytes"] == len(kept.encode())
        assert len(row["ids"]) <= 62
        assert kept == whole or len(row["ids"]) > 62 - 4


def test_of_a_tokenizer_that_loses_text_the_ids_are_cut_all_the_same() -> None:
    class Lower:
        def decode(self, ids: list[int]) -> str:
            return "".join(map(chr, ids)).lower()

    assert shortened_text(Lower(), list(b"ABCDEF"), "ABCDEF", 3, "cut") == (list(b"ABC"), "abc")  # type: ignore[arg-type]
    assert shortened_text(Lower(), list(b"ABCDEF"), "ABCDEF", 3, "keep_end") == (list(b"DEF"), "def")  # type: ignore[arg-type]


def test_keep_end_shortens_a_context_for_all_tasks_or_a_prompt_at_its_beginning(tmp_path: Path, base: Path) -> None:
    rows = [{"doc": f"d{n}", "text": f"{n} begins " + "x y " * (40 if n < 4 else 1) + "ends", "a": f"a{n}"} for n in range(20)]
    tasks = {"a": {"prompt": " A: ", "completion": "{{ a }}"}, "b": {"prompt": " B and more: ", "completion": "b{{ a }}"}}
    tokenizer = load_tokenizer(BASE, Resource(path=base))
    for name, dataset in (
        ("context", {"context": "{{ text }}", "tasks": tasks}),
        ("prompt", {"tasks": {"a": {"prompt": "{{ text }} A: ", "completion": "{{ a }}"}}}),
    ):
        (tmp_path / name).mkdir()
        metrics, found = tokenized(tmp_path / name, base, {"document": "doc", **dataset}, rows, 48, "keep_end")
        assert metrics["cut_examples"] == (8 if name == "context" else 4)
        assert metrics["skipped_examples"] == 0
        contexts: dict[str, set[tuple[int, ...]]] = {}
        for row in found:
            read = tokenizer.decode([*row["context"], *row["prompt"]])
            assert f"{rows[int(row['example'])]['text']} ".endswith(read.partition(" A: ")[0].partition(" B and")[0] + " ")
            assert 1 + sum(len(row[part]) for part in ("context", "prompt", "completion", "end")) <= 48
            contexts.setdefault(row["document"], set()).add(tuple(row["context"]))
        assert {len(each) for each in contexts.values()} == {1}


def chats(num: int = 12, turns: int = 8) -> list[dict[str, Any]]:
    def said(n: int) -> list[dict[str, str]]:
        pairs = [
            ({"role": "user", "content": f"question {turn} of {n}"}, {"role": "assistant", "content": f"answer {turn}"})
            for turn in range(turns)
        ]
        return [{"role": "system", "content": "Be brief."}, *(message for pair in pairs for message in pair)]

    return [{"messages": said(n)} for n in range(num)]


@pytest.mark.parametrize("template", [None, GEMMA.replace("% 2 == 0", "% 2 == 1")])
def test_keep_latest_keeps_the_system_prompt_and_whole_turns_from_the_end(
    template: str | None, tmp_path: Path, base: Path
) -> None:
    if template is not None:  # in which roles must alternate behind the system prompt, a user first
        base = make_model("llama", tmp_path / "base")
        hf = make_tokenizer()
        hf.chat_template = template
        hf.save_pretrained(base)
    tokenizer, length = load_tokenizer(BASE, Resource(path=base)), 220
    _, whole = tokenized_in(tmp_path / "whole", base, 4096, "error")
    metrics, rows = tokenized_in(tmp_path / "latest", base, length, "keep_latest")
    assert len(rows) == len(whole) == 96
    shortened = turns_left_out = 0
    for row, before in zip(rows, whole, strict=True):
        assert row["completion"].tolist() == before["completion"].tolist()
        assert size(row) <= length
        prompt, of_whole = tokenizer.decode(row["prompt"]), tokenizer.decode(before["prompt"])
        head, latest = prompt[: prompt.index("question")], prompt[prompt.index("question") :]
        assert "Be brief." in head
        assert of_whole.endswith(latest)
        left_out = of_whole.removesuffix(latest).count("question")
        if left_out:  # one turn more would not have fit
            longer = head + of_whole[of_whole.removesuffix(latest).rindex("question") :]
            assert size(row) - len(row["prompt"]) + len(tokenizer.encode(longer)) > length
        assert (left_out > 0) == (size(before) > length)
        shortened += left_out > 0
        turns_left_out += 2 * left_out
    assert (metrics["latest_examples"], metrics["turns_left_out"], metrics["skipped_examples"]) == (
        shortened,
        turns_left_out,
        0,
    )
    assert tokenized_in(tmp_path / "skip", base, length, "skip")[0]["skipped_examples"] == shortened > 20


def size(row: dict[str, Any]) -> int:
    return 1 + sum(len(row[part]) for part in ("prompt", "completion", "end"))


def tokenized_in(folder: Path, base: Path, length: int, rule: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    folder.mkdir()
    return tokenized(folder, base, {"records": "messages"}, chats(), length, rule)


def test_a_last_question_that_does_not_fit_is_left_out(tmp_path: Path, base: Path) -> None:
    long = chats()
    long[3]["messages"][-2]["content"] = "word " * 300
    metrics, rows = tokenized(tmp_path, base, {"records": "messages"}, long, 220, "keep_latest")
    assert metrics["skipped_examples"] == 1
    assert len(rows) == 95


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"records": "alpaca", "too_long": "cut"}, "write `keep_end`"),
        ({"records": "messages", "too_long": "keep_end"}, "write `keep_latest`"),
        ({"records": "alpaca", "too_long": "keep_latest"}, "keeps turns of conversations"),
        ({"text": "{{ text }}", "too_long": "keep_latest"}, "keeps turns of conversations"),
    ],
)
def test_a_rule_that_does_not_fit_the_examples_is_refused(fields: dict[str, str], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        validate(Dataset, {"source": {"path": "a.jsonl"}, **fields}, "data.d")


def test_further_right_answers_are_scored_and_looked_through_and_not_learned(tmp_path: Path, base: Path) -> None:
    rows = [{"q": f"Who is {n}?", "a": f"he {n}", "more": [f"him {n}", f"he {n}"], "other": f"his{n}"} for n in range(20)]
    task = {"prompt": "{{ q }}", "completion": " {{ a }}", "references": ["more", "{{ other | upper }}"]}
    metrics, found = tokenized(tmp_path, base, {"tasks": {"who": task}}, rows)
    number = int(found[0]["example"])
    assert found[0]["references"] == [f"him {number}", f"he {number}", f"HIS{number}"]
    assert load_tokenizer(BASE, Resource(path=base)).decode(found[0]["completion"]) == f" he {number}"
    assert sum(metrics[f"windows_{split}"] for split in ("train", "validation", "test")) == 20
    texts, _ = read_documents(tmp_path / "data" / "documents.parquet")
    assert sum(map(len, texts.values())) == 20
    for documents in texts.values():
        assert all(f"HIS{n}" in text for n, text in documents.items())


def test_the_key_of_a_task_without_references_is_as_before() -> None:
    fields = {"source": {"path": "a.jsonl"}, "tasks": {"a": {"prompt": "A", "completion": "{{ a }}"}}}
    without = validate(Dataset, fields, "data.d").content["tasks"]
    assert without == {"a": {"prompt": "A", "completion": "{{ a }}", "empty": "skip"}}
    fields["tasks"]["a"]["references"] = "b"  # type: ignore[index]
    assert validate(Dataset, fields, "data.d").content["tasks"]["a"]["references"] == ["b"]

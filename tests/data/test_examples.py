"""Tokens and examples of datasets with tasks: the seam rule, shared trunks, what is too long, and chat templates."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretune.data.examples import examples_of, tokenize_tasks
from paretune.data.tokenizer import load_tokenizer, read_tokens
from paretune.errors import DataError
from paretune.pipeline.resources import Resource
from paretune.pipeline.stage import RunOptions, StageContext
from paretune.study.data import SPLITS
from tests.data.test_prepare import prepare, write_rows, written
from tests.evaluate.stages import BASE
from tests.tiny import make_model, make_tokenizer

TASKS = {"a": {"prompt": "A: ", "completion": "{{ a }}"}, "b": {"prompt": "", "completion": " {{ b }}"}}
CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def records(count: int = 30) -> list[dict[str, Any]]:
    return [{"doc": f"d{n // 2}", "text": f"text {n // 4}", "a": f"answer {n}", "b": f"é {n}"} for n in range(count)]


def tokenized(
    folder: Path, base: Path, dataset: dict[str, Any], rows: list[dict[str, Any]], length: int = 128, rule: str = "error"
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Metrics of the tokenize stage, and its rows."""
    _, data = prepare(folder, dataset | {"source": {"path": str(write_rows(folder / "a.jsonl", rows))}})
    (folder / "tokens").mkdir()
    config = {"base": BASE, "max_length": length, "too_long": rule}
    context = StageContext(
        config, {"data": data}, {"base": Resource(path=base)}, RunOptions(), folder / "tokens", lambda **_: None
    )
    return tokenize_tasks(context), read_tokens(folder / "tokens")


def test_examples_are_the_literal_text_and_share_the_trunk_of_their_document(tmp_path: Path, base: Path) -> None:
    dataset = {"document": "doc", "context": "{{ text }}\n\n", "tasks": TASKS}
    _, rows = tokenized(tmp_path, base, dataset, records())
    tokenizer = load_tokenizer(BASE, Resource(path=base))
    examples = examples_of(rows, tokenizer, 128)
    assert len(examples) == len(rows) == 60
    for row, example in zip(rows, examples, strict=True):
        record = records()[int(row["example"])]
        completion = record["a"] if row["task"] == "a" else f" {record['b']}"
        prompt = "A: " if row["task"] == "a" else ""
        assert tokenizer.decode(example.trunk) == f"<bos>{record['text']}\n\n"
        assert tokenizer.decode(example.ids[: example.first_target]) == prompt
        assert tokenizer.decode(example.ids[example.first_target :]) == completion + "<|endoftext|>"
        assert (row["reference"], row["bytes"], row["lossless"]) == (completion, len(completion.encode()), True)
    trunks = [(row["document"], id(example.trunk)) for row, example in zip(rows, examples, strict=True)]
    assert len(set(trunks)) == len({document for document, _ in trunks})  # two records of one context, four examples
    assert sum(one != other for one, other in itertools.pairwise(trunks)) == len(set(trunks)) - 1


def test_records_of_a_document_that_lie_apart_are_brought_together(tmp_path: Path) -> None:
    rows = [{"doc": f"d{n % 10}", "text": f"text {n % 10}", "a": f"answer {n}", "b": "x"} for n in range(30)]
    source = {"path": str(write_rows(tmp_path / "a.jsonl", rows))}
    _, data = prepare(tmp_path, {"source": source, "document": "doc", "context": "{{ text }}", "tasks": TASKS})
    documents = [row["document"] for row in written(data)]
    assert sum(one != other for one, other in itertools.pairwise(documents)) == 9


def test_without_a_context_the_prefix_stands_before_the_prompt(tmp_path: Path, base: Path) -> None:
    _, rows = tokenized(tmp_path, base, {"tasks": {"a": TASKS["a"]}}, records())
    tokenizer = load_tokenizer(BASE, Resource(path=base))
    example, scored = (examples_of(rows[:1], tokenizer, 128, end=end)[0] for end in (True, False))
    assert example.trunk is None
    assert tokenizer.decode(example.ids[: example.first_target]) == "<bos>A: "
    assert example.ids[-1] == tokenizer.eos_id
    assert np.array_equal(scored.ids, example.ids[:-1])


def test_plain_texts_are_windows_as_before(base: Path) -> None:
    tokenizer = load_tokenizer(BASE, Resource(path=base))
    rows = [{"ids": np.arange(5, 25, dtype=np.int32)}]
    assert [list(example.ids) for example in examples_of(rows, tokenizer, 12)] == [[0, *range(5, 16)], [*range(15, 25), 1]]


LONG = {"document": "doc", "context": "{{ text }}", "tasks": TASKS}


def long_records() -> list[dict[str, Any]]:
    return [row | {"text": f"{row['text']} " + "word " * (40 if n < 8 else 1)} for n, row in enumerate(records())]


def test_what_is_too_long_is_refused_by_name(tmp_path: Path, base: Path) -> None:
    with pytest.raises(DataError, match=r"record \d, task `a`\) has \d+ tokens and `train.max_length` is 64.*too_long: cut`"):
        tokenized(tmp_path, base, LONG, long_records(), 64)
    (tmp_path / "again").mkdir()
    (tmp_path / "whole").mkdir()
    with pytest.raises(DataError) as error:
        tokenized(tmp_path / "again", base, LONG, long_records(), 64)
    lengths = sorted(_lengths(tmp_path, base))
    told = re.match(r"(\d+) of (\d+) are too long: .* has (\d+) tokens .*; (\d+) tokens would hold 95 %", str(error.value))
    assert [int(number) for number in told.groups()[:3]] == [16, 60, lengths[-1]]
    assert int(told[4]) == lengths[56]  # 57 of 60 fit then


def _lengths(folder: Path, base: Path) -> list[int]:
    _, rows = tokenized(folder / "whole", base, LONG, long_records(), 512)
    return [1 + sum(len(row[part]) for part in ("context", "prompt", "completion", "end")) for row in rows]


def test_skip_leaves_out_and_counts(tmp_path: Path, base: Path) -> None:
    metrics, rows = tokenized(tmp_path, base, LONG, long_records(), 64, "skip")
    assert (metrics["skipped_examples"], metrics["cut_examples"], len(rows)) == (16, 0, 44)
    assert sum(metrics[f"kept_examples_{split}"] for split in SPLITS) == 44
    assert sum(metrics[f"kept_bytes_{split}"] for split in SPLITS) == sum(row["bytes"] for row in rows)


def test_cut_shortens_the_context_of_all_tasks_alike_at_its_end(tmp_path: Path, base: Path) -> None:
    metrics, rows = tokenized(tmp_path, base, LONG, long_records(), 64, "cut")
    assert (metrics["skipped_examples"], metrics["cut_examples"], len(rows)) == (0, 16, 60)
    tokenizer = load_tokenizer(BASE, Resource(path=base))
    examples = examples_of(rows, tokenizer, 64)
    lengths = [len(example.trunk) + len(example.ids) for example in examples if example.trunk is not None]
    assert max(lengths) == 64
    by_record: dict[str, set[int]] = {}
    for row, example in zip(rows, examples, strict=True):
        by_record.setdefault(row["document"], set()).add(id(example.trunk))
        whole = tokenizer.encode(long_records()[int(row["example"])]["text"])
        assert whole[: len(row["context"])] == row["context"].tolist()
    assert {len(trunks) for document, trunks in by_record.items() if document != "d3"} == {1}


def test_a_chat_template_of_the_base_writes_the_turns(tmp_path: Path) -> None:
    base = make_model("llama", tmp_path / "base")
    hf = make_tokenizer()
    hf.chat_template = "{{ bos_token }}" + CHATML
    hf.save_pretrained(base)
    said = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me é"}] * 2
    chats = [{"messages": [*said, {"role": "user", "content": str(n)}]} for n in range(10)]
    _, rows = tokenized(tmp_path, base, {"records": "messages"}, chats)
    tokenizer = load_tokenizer(BASE, Resource(path=base))
    texts = [tokenizer.decode(example.ids) for example in examples_of(rows[:2], tokenizer, 128)]
    first = "<bos><|user|>Who?<|endoftext|>\n<|assistant|>Me é<|endoftext|>"
    assert texts == [first, f"{first}\n{first.removeprefix('<bos>')}"]
    assert [row["reference"] for row in rows[:2]] == ["Me é", "Me é"]
    assert [row["lossless"] for row in rows[:2]] == [True, True]
    assert rows[1]["example"] == f"{int(float(rows[0]['example']))}.2"


def test_a_base_without_a_chat_template_gets_the_stated_form(tmp_path: Path, base: Path) -> None:
    chats = [
        {"messages": [{"role": "user", "content": f"Who? {n}"}, {"role": "assistant", "content": "Me"}]} for n in range(10)
    ]
    _, rows = tokenized(tmp_path, base, {"records": "messages"}, chats)
    tokenizer = load_tokenizer(BASE, Resource(path=base))
    (example,) = examples_of(rows[:1], tokenizer, 128)
    assert tokenizer.decode(example.ids).endswith("\n\nAssistant: Me<|endoftext|>")
    assert tokenizer.decode(example.ids[example.first_target :]) == " Me<|endoftext|>"


def test_a_template_that_hides_the_turn_is_refused(tmp_path: Path) -> None:
    base = make_model("llama", tmp_path / "base")
    for template, message in (
        ("{{ messages | length }}", "does not write the assistant's turn"),
        ("{{ raise_exception('no') }}", "refuses"),
    ):
        hf = make_tokenizer()
        hf.chat_template = template
        hf.save_pretrained(base)
        folder = tmp_path / message.split()[0]
        folder.mkdir()
        chats = [
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": str(n)}]} for n in range(100, 130)
        ]
        with pytest.raises(DataError, match=message):
            tokenized(folder, base, {"records": "messages"}, chats)

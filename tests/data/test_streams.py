"""What is larger than memory: spooled values, documents by name, tokens in batches, and the index of n-grams."""

import random
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paretune.data import prepare as prepare_module
from paretune.data import tokens
from paretune.data.documents import DocumentTexts
from paretune.data.examples import SCHEMA as TASK_SCHEMA
from paretune.data.examples import examples_of
from paretune.data.ngrams import COMMON, NgramIndex
from paretune.data.spool import Spool
from paretune.data.tokenizer import SCHEMA
from paretune.data.tokens import read_tokens, writing_tokens
from paretune.data.trees import group_starts, windows
from paretune.data.windows import scored_windows, window_examples
from tests.data.test_prepare import prepare, write_rows

ENDS: Any = SimpleNamespace(prefix_id=1, eos_id=2, adds_prefix=False)
BEGINS_ALL: Any = SimpleNamespace(prefix_id=1, eos_id=2, adds_prefix=True)
"""What of a tokenizer the examples take."""


def test_a_spool_gives_back_what_was_put_in_and_goes_on(tmp_path: Path) -> None:
    spool: Spool[str] = Spool(tmp_path)
    for text in ("one", "", "zw\u00f6lf"):
        spool.append(text)
    assert (spool[2], spool[0], list(spool)) == ("zw\u00f6lf", "one", ["one", "", "zw\u00f6lf"])
    spool.append("last")
    assert (spool[3], len(spool), list(tmp_path.iterdir())) == ("last", 4, [])


def test_records_of_a_document_are_joined_wherever_they_stand() -> None:
    texts = DocumentTexts("abcdef".__getitem__)
    assert [texts.add(name, record) for record, name in enumerate(["x", "y", "x", "z", "y", "x"])] == [0, 1, 0, 2, 1, 0]
    assert dict(texts) == {"x": "a\nc\nf", "y": "b\ne", "z": "d"}


def text_rows(count: int = 40) -> list[dict[str, Any]]:
    draw = random.Random(0)
    splits = ["train"] * (count - 20) + ["validation"] * 10 + ["test"] * 10
    return [
        {
            "split": split,
            "document": f"d{number // 2}",
            "example": str(number),
            "ids": [draw.randrange(3, 500) for _ in range(draw.randrange(60))],
            "bytes": draw.randrange(100),
            "lossless": draw.random() < 0.5,
        }
        for number, split in enumerate(splits)
    ]


@pytest.mark.parametrize("batch", [50, 10**6])
def test_tokens_written_in_batches_are_those_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    monkeypatch.setattr(tokens, "_BATCH_TOKENS", batch)
    rows = text_rows()
    (tmp_path / "former").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), tmp_path / "former" / "tokens.parquet")
    with writing_tokens(tmp_path, SCHEMA) as writer:
        for row in rows:
            writer.add({**row, "text": "more than the schema has"})
    for directory in (tmp_path, tmp_path / "former"):
        for split in ("train", "validation", "test"):
            of_split = [row for row in rows if row["split"] == split]
            read = read_tokens(directory, split)
            assert [row | {"ids": row["ids"].tolist()} for row in read] == of_split
            assert read.lengths("ids").tolist() == [len(row["ids"]) for row in of_split]
            assert read.column("bytes").to_pylist() == [row["bytes"] for row in of_split]
        odd = read_tokens(directory, "train").where(np.arange(20) % 2 == 1)
        assert [row["example"] for row in odd] == [str(number) for number in range(1, 20, 2)]


def test_windows_are_those_of_the_whole_text(tmp_path: Path) -> None:
    with writing_tokens(tmp_path, SCHEMA) as writer:
        for row in text_rows():
            writer.add(row)
    rows = read_tokens(tmp_path, "train")
    for max_length in (2, 7, 64):
        expected = []
        for row in rows:
            whole = [1, *row["ids"].tolist(), 2]
            expected += [whole[begin : begin + max_length] for begin in range(0, len(whole) - 1, max_length - 1)]
        examples = examples_of(rows, ENDS, max_length)
        assert [example.ids.tolist() for example in examples] == expected
        assert [example.ids.tolist() for example in examples[3:9:2]] == expected[3:9:2]
        assert [w.ids.tolist() for row in rows for w in windows(row["ids"], max_length, 1, 2)] == expected
        assert len(group_starts(examples)) == len(expected)
    scored, counts = window_examples([row["ids"] for row in rows if len(row["ids"])], ENDS, 16, 5)
    wholes = [[1, *row["ids"].tolist()] for row in rows if len(row["ids"])]
    assert [(example.ids.tolist(), example.first_target) for example in scored] == [
        (whole[w.start : w.stop], w.first_target - w.start) for whole in wholes for w in scored_windows(len(whole), 16, 5)
    ]
    assert sum(counts) == len(scored)
    each, _ = window_examples([row["ids"] for row in rows if len(row["ids"])], BEGINS_ALL, 16, 5)
    assert [(example.ids.tolist(), example.first_target) for example in each] == [
        ([1, *example.ids[1:].tolist()], example.first_target) for example in scored
    ]


def test_neighbours_of_one_context_share_an_array_from_disk_and_from_memory(tmp_path: Path) -> None:
    contexts = [[7, 8], [7, 8], [7, 9], [7, 9], [], [], [7, 9], [7, 9]]
    rows = [
        {"split": "train", "document": "b" if number == 7 else "a", "example": str(number), "task": "t", "context": context}
        | {"prompt": [number], "completion": [5], "end": [2], "reference": "", "references": None, "bytes": 1, "lossless": True}
        for number, context in enumerate(contexts)
    ]
    with writing_tokens(tmp_path, TASK_SCHEMA) as writer:
        for row in rows:
            writer.add(row)
    for read in (read_tokens(tmp_path), list(read_tokens(tmp_path))):
        examples = examples_of(read, ENDS, 64)
        held = list(examples)
        assert group_starts(examples).tolist() == [0, 2, 4, 5, 6, 7] == group_starts(held).tolist()
        assert held[0].trunk is held[1].trunk is not held[2].trunk is held[3].trunk
        assert (held[2].trunk.tolist(), held[4].trunk, held[4].ids.tolist()) == ([1, 7, 9], None, [1, 4, 5, 2])  # type: ignore[union-attr]


def test_coverage_is_that_of_sets() -> None:
    draw = random.Random(1)
    common = {number: set(range(number * 100, number * 100 + 12)) for number in range(3)}
    documents = [
        {draw.randrange(3000) for _ in range(draw.randrange(40))} | common[draw.randrange(3)] if draw.random() < 0.8 else set()
        for _ in range(60)
    ]
    targets, sources, inner = documents[:25], documents[25:], [2, 3, 20]
    index = NgramIndex()
    for grams in targets:
        index.add_target(np.array(sorted(grams), np.uint64))
    for grams in sources:
        index.add_source(np.array(sorted(grams), np.uint64))
    expected = {}
    counts = {gram: sum(gram in document for document in documents) for document in targets for gram in document}
    for number, grams in enumerate([*sources, *(targets[n] for n in inner)]):
        for target, own in enumerate(targets):
            rare = {gram for gram in own if counts[gram] <= COMMON}
            counted = own if len(own - rare) > 0.9 * len(own) else rare
            if counted and not (number >= len(sources) and inner[number - len(sources)] == target):
                expected[number, target] = len(counted & grams) / len(counted)
    found = {(source, target): share for source, target, share in index.covered(inner, np.full(len(targets), 0.05))}
    assert found == {pair: share for pair, share in expected.items() if share >= 0.05}
    assert len(found) > 20


def test_memory_does_not_grow_with_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "_WRITE_CHARACTERS", 2**16)
    peaks = []
    for length in (50, 2000):
        draw = random.Random(length)
        words = ["".join(draw.choices("abcdefgh", k=6)) for _ in range(500)]
        rows = [{"text": " ".join(draw.choices(words, k=length))} for _ in range(600)]
        folder = tmp_path / str(length)
        folder.mkdir()
        source = {"path": str(write_rows(folder / "rows.jsonl", rows))}
        tracemalloc.start()
        prepare(folder, {"source": source, "text": "{{ text }}", "clean": {"drop": ["duplicate"]}})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # The longer texts are 8 MB longer.
    assert peaks[1] - peaks[0] < 2**20

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretune.data.audit import answer_stands_in, audit_data, found_in, language_of, length_fences
from paretune.data.leakage import words_of
from paretune.pipeline.resources import Resource
from paretune.pipeline.stage import RunOptions, StageContext
from tests.data.test_prepare import prepare, write_rows

GERMAN = "Der Zug zum Hafen f\u00e4hrt um sieben, und der Fahrer wartet auf niemanden, nicht auf den B\u00fcrgermeister."
ENGLISH = (
    "The train to the harbour leaves at seven in the morning, and the driver waits for nobody, not even for the mayor of {}."
)
CITIES = [
    f"{first}{second}" for first in ("Ash", "Birch", "Elm", "Oak", "Pine", "Rowan") for second in ("ford", "ham", "ton", "by")
]


def audit(folder: Path, rows: list[dict[str, Any]], dataset: dict[str, Any], **config: Any) -> tuple[dict[str, Any], list]:
    """Metrics and findings, all splits together where the split does not matter: (finding, count, records, detail)."""
    source = {"path": str(write_rows(folder / "a.jsonl", rows))}
    _, data = prepare(folder, {"source": source} | dataset)
    draft = folder / "audit"
    draft.mkdir()
    resources = {"safety.words": Resource(path=folder / "words.txt")}
    context = StageContext({"labels": []} | config, {"data": data}, resources, RunOptions(), draft, lambda **_: None)
    metrics = audit_data(context)
    return metrics, [json.loads(line) for line in (draft / "audit.jsonl").read_text(encoding="utf-8").splitlines()]


def numbers(found: list[dict[str, Any]], name: str) -> list[int]:
    return sorted(number for row in found if row["finding"] == name for number in row["records"])


def test_what_is_wrong_with_single_records_is_counted_by_split(tmp_path: Path) -> None:
    texts = [ENGLISH.format(city) for city in CITIES]
    texts[3] += " Write to a@example.org or +49 89 382-18634."
    texts[7] += " It\u00e2\u20ac\u2122s https://example.org/x."
    texts[8] += " <p>It</p>\x07"
    texts[9] += " </s>[INST]"
    texts[11] = GERMAN
    metrics, found = audit(tmp_path, [{"text": text} for text in texts], {"text": "{{ text }}"})
    assert {
        name: numbers(found, name)
        for name in ("email", "phone", "url", "encoding", "html", "control", "language", "control_tokens")
    } == {
        "email": [4],
        "phone": [4],
        "url": [8],
        "encoding": [8],
        "html": [9],
        "control": [9],
        "control_tokens": [10],
        "language": [12],
    }
    assert metrics["languages"] == "en"
    assert sum(row["of"] for row in found if row["finding"] == "email") == metrics[f"records_{found_split(found, 'email')}"]
    assert next(row["detail"] for row in found if row["finding"] == "language") == "de 1"
    assert sum(metrics[f"records_{split}"] for split in ("train", "validation", "test")) == len(CITIES)


def found_split(found: list[dict[str, Any]], name: str) -> str:
    return next(row["split"] for row in found if row["finding"] == name)


def test_repetitions_are_exact_or_of_the_same_words(tmp_path: Path) -> None:
    rows = [{"id": max(n, 3), "text": ENGLISH.format(city)} for n, city in enumerate(CITIES)]
    rows[1]["text"] = rows[0]["text"]
    rows[2]["text"] = rows[0]["text"].upper().replace(",", "")
    _, found = audit(tmp_path, rows, {"text": "{{ text }}", "document": "id"})
    assert numbers(found, "duplicate") == [2]
    assert numbers(found, "same_words") == [3]


def test_lengths_are_far_out_beyond_three_interquartile_ranges_of_the_logarithms() -> None:
    lengths = np.array([100, 200, 400, 800, 1600])
    low, high = length_fences(lengths)
    assert (low, high) == pytest.approx((200 / 4**3, 800 * 4**3))
    assert length_fences(np.full(9, 50)) == (0, pytest.approx(np.exp(700)))


def test_a_text_far_from_the_others_is_named(tmp_path: Path) -> None:
    rows = [{"text": ENGLISH.format(city) + " And on." * (n % 9)} for n, city in enumerate(CITIES)]
    rows[5]["text"] = "Too short."
    rows[6]["text"] *= 200
    _, found = audit(tmp_path, rows, {"text": "{{ text }}"})
    assert (numbers(found, "short"), numbers(found, "long")) == ([6], [7])


@pytest.mark.parametrize(
    ("completion", "prompt", "expected"),
    [
        ("copper", "Which metal: iron, Copper?", True),
        ("copper wire", "Which copper is a wire?", False),
        ("cop", "Which metal: copper?", False),
        ("", "Which?", False),
        ("!", "Which!", False),
    ],
)
def test_an_answer_stands_in_a_prompt_word_for_word(completion: str, prompt: str, expected: bool) -> None:
    assert answer_stands_in(completion, f" {' '.join(words_of(prompt))} ") is expected


def test_answers_and_labels_are_counted_by_task(tmp_path: Path) -> None:
    rows = [
        {"text": ENGLISH.format(city), "city": city if n % 3 else "elsewhere", "kind": "ab"[n % 4 == 0]}
        for n, city in enumerate(CITIES)
    ]
    tasks = {"city": {"prompt": "City:", "completion": " {{ city }}"}, "kind": {"prompt": "Kind:", "completion": " {{ kind }}"}}
    _, found = audit(tmp_path, rows, {"context": "{{ text }}\n\n", "tasks": tasks}, labels=["kind"])
    answers = [row for row in found if row["finding"] == "answer_in_prompt"]
    assert {row["detail"] for row in answers} == {"city"}
    assert sum(row["count"] for row in answers) == 16
    labels = {row["split"]: row for row in found if row["finding"] == "labels"}
    train = labels["train"]
    most = sum(row["count"] for row in labels.values())
    assert train["detail"] == f"kind: 2 labels, `a` {train['count']}, `b` {train['of'] - train['count']}"
    assert most == 18


def test_unsafe_records_are_counted(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("elmham\n", encoding="utf-8")
    rows = [{"text": ENGLISH.format(city)} for city in CITIES]
    _, found = audit(tmp_path, rows, {"text": "{{ text }}"}, safety={"words": "0"})
    assert numbers(found, "unsafe") == [CITIES.index("Elmham") + 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [(ENGLISH, "en"), (GERMAN, "de"), ("short", None), ("1234 5678 " * 20, None), ("def f(x):\n    return x + 1\n" * 9, None)],
)
def test_a_language_is_told_of_prose_alone(text: str, expected: str | None) -> None:
    assert language_of(text) == expected


def test_a_clean_text_has_nothing() -> None:
    assert list(found_in("Nothing is wrong with \u201cthis\u201d, sent on 31.03.2024.")) == []


def test_an_empty_record_is_in_no_split_and_stops_nothing(tmp_path: Path) -> None:
    rows = [{"text": ENGLISH.format(city)} for city in CITIES] + [{"text": " "}]
    metrics, found = audit(tmp_path, rows, {"text": "{{ text }}"})
    assert found == []
    assert metrics["findings"] == 0

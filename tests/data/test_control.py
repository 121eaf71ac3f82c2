"""Control tokens that records hold as text: told, and taken out, read as characters or learned, as the study says."""

import json
from pathlib import Path
from typing import Any

import pytest

from paretune.data.control import ControlTokens
from paretune.data.examples import tokenize_tasks
from paretune.data.tokenizer import load_tokenizer, read_tokens, tokenize
from paretune.errors import DataError
from paretune.pipeline.resources import Resource
from paretune.pipeline.stage import RunOptions, StageContext
from tests.data.chat_templates import CHATML
from tests.data.test_prepare import prepare, write_rows
from tests.evaluate.stages import BASE
from tests.tiny import make_model, make_tokenizer

TASKS = {"dir": {"prompt": "{{ prompt }}", "completion": "{{ completion }}"}}
END = "<|endoftext|>"


def tokenized(
    folder: Path, base: Path, dataset: dict[str, Any], rows: list[dict[str, Any]], rule: str | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Metrics of the tokenize stage, and its rows."""
    folder.mkdir(exist_ok=True)
    _, data = prepare(folder, dataset | {"source": {"path": str(write_rows(folder / "a.jsonl", rows))}})
    (folder / "tokens").mkdir()
    config = {"base": BASE, "max_length": 128, "too_long": "error"} | ({"control_tokens": rule} if rule else {})
    context = StageContext(
        config, {"data": data}, {"base": Resource(path=base)}, RunOptions(), folder / "tokens", lambda **_: None
    )
    metrics = (tokenize if "text" in dataset else tokenize_tasks)(context)
    return metrics, read_tokens(folder / "tokens")


def answers(end: str = "") -> list[dict[str, Any]]:
    return [{"prompt": f"Log {n}?", "completion": f" {'in' if n % 2 else 'out'}{end}"} for n in range(30)]


def test_stripped_they_leave_the_same_examples_as_were_never_there(tmp_path: Path, base: Path) -> None:
    _, without = tokenized(tmp_path / "a", base, {"tasks": TASKS}, answers())
    metrics, stripped = tokenized(tmp_path / "b", base, {"tasks": TASKS}, answers(END), "strip")
    assert metrics["control_examples"] == 30
    for before, after in zip(without, stripped, strict=True):
        assert {name: str(before[name]) for name in before} == {name: str(after[name]) for name in after}


def test_nothing_said_they_are_refused_with_their_number_and_the_ways_out(tmp_path: Path, base: Path) -> None:
    rows = [*answers()[:20], *answers(END)[20:]]
    told = r"10 of 30 examples \(the first: of record \d+\) hold control tokens .*`<\|endoftext\|>` in 10"
    with pytest.raises(DataError, match=told):
        tokenized(tmp_path / "a", base, {"tasks": TASKS}, rows)
    with pytest.raises(DataError, match="write `control_tokens: strip` to take them out, `text` to learn them as"):
        tokenized(tmp_path / "b", base, {"text": "{{ prompt }}{{ completion }}"}, rows)


def test_as_text_no_special_token_comes_from_a_record(tmp_path: Path, base: Path) -> None:
    tokenizer = load_tokenizer(BASE, Resource(path=base))
    _, rows = tokenized(tmp_path / "a", base, {"tasks": TASKS}, answers(f"{END} and <bos>"), "text")
    for row in rows:
        assert not set(row["completion"].tolist()) & tokenizer.special_ids
        assert tokenizer.decode(row["completion"]) == row["reference"] == f"{row['reference'].split('<')[0]}{END} and <bos>"
        assert row["bytes"] == len(row["reference"])
    _, texts = tokenized(tmp_path / "b", base, {"text": "{{ completion }}"}, answers(END), "text")
    assert not any(set(row["ids"].tolist()) & tokenizer.special_ids for row in texts)


def test_as_tokens_they_are_learned_as_before(tmp_path: Path, base: Path) -> None:
    _, rows = tokenized(tmp_path / "a", base, {"tasks": TASKS}, answers(END), "learn")
    assert {row["completion"].tolist()[-1] for row in rows} == {1}


def test_what_the_templates_of_the_study_write_is_meant_so(tmp_path: Path, base: Path) -> None:
    tasks = {"dir": {"prompt": "<bos>{{ prompt }}", "completion": "{{ completion }}"}}
    metrics, rows = tokenized(tmp_path / "a", base, {"tasks": tasks}, answers())
    assert (metrics["control_examples"], rows[0]["prompt"].tolist()[0]) == (0, 0)
    twice = [row | {"prompt": f"<bos>{row['prompt']}"} for row in answers()]
    with pytest.raises(DataError, match="`<bos>` stands in records and in the study's own template"):
        tokenized(tmp_path / "b", base, {"tasks": tasks}, twice, "strip")


@pytest.mark.parametrize(("rule", "said"), [("strip", "no  way"), ("text", f"no {END} way"), ("learn", f"no {END} way")])
def test_messages_are_treated_and_the_chat_template_is_not(tmp_path: Path, rule: str, said: str) -> None:
    base = make_model("llama", tmp_path / "base", vocab_size=304)
    hf = make_tokenizer()
    hf.chat_template = CHATML
    hf.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    hf.save_pretrained(base)
    tokenizer = load_tokenizer(BASE, Resource(path=base))
    chats = [
        {"messages": [{"role": "user", "content": f"<|im_end|>{n}"}, {"role": "assistant", "content": f"no {END} way"}]}
        for n in range(20)
    ]
    metrics, rows = tokenized(tmp_path / "a", base, {"records": "messages"}, chats, rule)
    assert (metrics["control_examples"], rows[0]["reference"]) == (20, said)
    ended = tokenizer.hf.convert_tokens_to_ids("<|im_end|>")
    assert rows[0]["prompt"].tolist().count(ended) == (2 if rule == "learn" else 1)
    assert (1 in rows[0]["completion"]) == (rule == "learn")
    assert rows[0]["end"].tolist()[0] == ended


def test_pieces_that_make_up_a_token_once_others_are_out_go_too(base: Path) -> None:
    control = ControlTokens(load_tokenizer(BASE, Resource(path=base)), "strip", {})
    assert control.treated("text", "a<b<bos>os>b") == "ab"


def test_an_end_that_the_tokenizer_does_not_have_is_none_of_its_tokens(tmp_path: Path) -> None:
    base = make_model("llama", tmp_path)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"eos_token_id": 10**6}))
    tokens = ControlTokens(load_tokenizer(BASE, Resource(path=base)), None, {}).tokens
    assert END in tokens
    assert None not in tokens

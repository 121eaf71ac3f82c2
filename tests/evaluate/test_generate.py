"""Generation against a loop without cache, batch or padding, in float64; and what must not change a prompt's text."""

import json
import logging
import math
import re
import shutil
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from paretune.data.words import words_of
from paretune.errors import DataError
from paretune.evaluate import answers
from paretune.evaluate.answers import GREEDY, Decoding
from paretune.evaluate.generate import evaluate_generate, generate
from paretune.model.load import LoadedModel, load_model
from paretune.pipeline.resources import Resource
from tests.evaluate.stages import make_context, read_scores, reference_logits
from tests.tiny import ARCHITECTURES, make_model

PROMPTS = (
    "The train",
    "She read the letter twice, folded it, and put it under the lamp",
    "Question: which of these is a metal?\nAnswer:",
    "A",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("gpt2", tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def loaded(base: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(make_context(base, {}, tmp_path_factory.mktemp("draft")))


@pytest.fixture(params=["shared", "padded"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an architecture that reads contexts once is asked, and as one that cannot."""
    if request.param == "padded":
        monkeypatch.setattr(answers, "bytes_per_entry", lambda packed: None)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_texts_of_a_batch_equal_the_reference(architecture: str, tmp_path: Path) -> None:
    base = make_model(architecture, tmp_path / "base")
    loaded = load_model(make_context(base, {}, tmp_path))
    found = [each.text for each in generate(loaded, PROMPTS, 12)]
    assert found == [_reference_text(base, loaded, prompt, 12) for prompt in PROMPTS]


@pytest.mark.usefixtures("path")
def test_padding_beyond_the_embedding_changes_no_text(base: Path, loaded: LoadedModel, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    hf = AutoTokenizer.from_pretrained(base)
    hf.add_special_tokens({"pad_token": "<pad>"})
    hf.save_pretrained(tmp_path / "base")
    padded = load_model(make_context(tmp_path / "base", {}, tmp_path / "draft"))
    assert [each.text for each in generate(padded, PROMPTS, 12)] == [each.text for each in generate(loaded, PROMPTS, 12)]


@pytest.mark.parametrize("sampled", [False, True])
def test_a_text_does_not_depend_on_its_neighbours_or_its_place(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, sampled: bool
) -> None:
    decoding = Decoding(temperature=1.0, top_p=0.95) if sampled else GREEDY
    together = generate(loaded, PROMPTS, 16, decoding, seed=3)
    alone = [generate(loaded, [prompt], 16, decoding, seed=3)[0] for prompt in PROMPTS]
    monkeypatch.setattr(answers, "MAX_ANSWERS", 3)
    backwards = generate(loaded, PROMPTS[::-1], 16, decoding, seed=3)[::-1]
    assert [each.text for each in together] == [each.text for each in alone] == [each.text for each in backwards]
    assert [each.prompt for each in together] == list(PROMPTS)


def test_sampling_follows_its_seed_and_tells_equal_prompts_apart(loaded: LoadedModel) -> None:
    decoding = Decoding(temperature=1.0)
    first, second, other = generate(loaded, ["A", "A", "The"], 16, decoding)
    assert first.text != second.text
    assert [each.text for each in generate(loaded, ["A", "A"], 16, decoding)] == [first.text, second.text]
    assert generate(loaded, ["A"], 16, decoding, seed=1)[0].text != first.text
    state = torch.get_rng_state()
    generate(loaded, ["A"], 16, decoding)
    assert torch.equal(torch.get_rng_state(), state)
    assert other.text


def test_draws_follow_the_softmax(base: Path, loaded: LoadedModel) -> None:
    """Of two tokens whose logits are 1 apart, the first is drawn in 73.1 % of the cases, within four standard errors."""
    top = reference_logits(base)([loaded.tokenizer.prefix_id, *loaded.tokenizer.encode("The")])[-1].topk(2)
    decoding = Decoding(temperature=(top.values[0] - top.values[1]).item(), top_k=2)
    count, expected = 1500, 1 / (1 + math.exp(-1))
    drawn = Counter(each.text for each in generate(loaded, ["The"] * count, 1, decoding))
    first, second = (loaded.tokenizer.decode([int(index)]) for index in top.indices)
    assert set(drawn) == {first, second}
    assert abs(drawn[first] / count - expected) < 4 * math.sqrt(expected * (1 - expected) / count)


def test_narrow_sampling_is_greedy(loaded: LoadedModel) -> None:
    greedy = [each.text for each in generate(loaded, PROMPTS, 12)]
    for narrow in (Decoding(temperature=1.0, top_k=1), Decoding(temperature=1.0, top_p=1e-6)):
        assert [each.text for each in generate(loaded, PROMPTS, 12, narrow)] == greedy


@pytest.mark.usefixtures("path")
def test_the_repetition_penalty_is_on_text_and_not_on_prefix_or_padding(base: Path, loaded: LoadedModel) -> None:
    def with_prefix(token: int) -> LoadedModel:
        # One token for both, as EOS is in GPT-2: penalised there, it would become less likely with every batch.
        return replace(loaded, tokenizer=replace(loaded.tokenizer, prefix_id=token, pad_id=token))

    def told(token: int, *, on_prefix: bool) -> list[str]:
        return [_reference_text(base, with_prefix(token), prompt, 8, 1.5, on_prefix=on_prefix) for prompt in PROMPTS]

    token = next(token for token in range(2, 300) if told(token, on_prefix=True) != told(token, on_prefix=False))
    found = [each.text for each in generate(with_prefix(token), PROMPTS, 8, Decoding(repetition_penalty=1.5))]
    assert found == told(token, on_prefix=False)
    assert found != [each.text for each in generate(with_prefix(token), PROMPTS, 8)]


@pytest.mark.usefixtures("path")
def test_each_row_ends_at_its_own_stop_token(loaded: LoadedModel) -> None:
    free = generate(loaded, PROMPTS, 16)
    ids = _greedy_ids(loaded, PROMPTS[0], 16)
    stop = next(token for token in ids[1:] if token != ids[0])
    position = ids.index(stop)
    stopping = replace(loaded, tokenizer=replace(loaded.tokenizer, stop_ids=frozenset({stop})))
    found = generate(stopping, PROMPTS, 16)
    assert (found[0].stopped_by, found[0].new_tokens) == ("eos", position)
    assert found[0].text == loaded.tokenizer.decode(ids[:position])
    for each, whole, prompt in zip(found, free, PROMPTS, strict=True):
        of_prompt = _greedy_ids(loaded, prompt, 16)
        if stop not in of_prompt:
            assert (each.text, each.stopped_by, each.new_tokens) == (whole.text, "max_new_tokens", 16)


@pytest.mark.usefixtures("path")
def test_prompt_and_text_stay_within_the_positions(tmp_path: Path) -> None:
    base = make_model("gpt2", tmp_path / "base", n_positions=40)
    loaded = load_model(make_context(base, {}, tmp_path))
    length = 1 + len(loaded.tokenizer.encode(PROMPTS[1]))
    assert 24 < length < 40
    short, long = generate(loaded, ["A", PROMPTS[1]], 16)
    assert (short.stopped_by, short.new_tokens) == ("max_new_tokens", 16)
    assert (long.stopped_by, long.new_tokens) == ("context", 40 - length)
    assert long.text == _reference_text(base, loaded, PROMPTS[1], 40 - length)
    with pytest.raises(DataError, match="40 positions; shorten it"):
        generate(loaded, ["A", "A metal, a gas. " * 9], 16)


@pytest.mark.usefixtures("path")
def test_nothing_of_the_checkpoints_generation_config_leaks_in(loaded: LoadedModel) -> None:
    expected = [each.text for each in generate(loaded, PROMPTS, 12)]
    of_checkpoint = GenerationConfig(
        do_sample=True, temperature=9.0, top_k=3, max_length=5, no_repeat_ngram_size=1, min_new_tokens=3, num_beams=2
    )
    before, loaded.model.generation_config = loaded.model.generation_config, of_checkpoint
    try:
        assert [each.text for each in generate(loaded, PROMPTS, 12)] == expected
        assert loaded.model.generation_config is of_checkpoint
    finally:
        loaded.model.generation_config = before


@pytest.mark.usefixtures("path")
def test_an_answer_ends_at_the_first_line_break(loaded: LoadedModel) -> None:
    decoding = Decoding(temperature=3.0)
    whole = generate(loaded, PROMPTS * 4, 64, decoding)
    first_lines = generate(loaded, PROMPTS * 4, 64, decoding, end_at_line_break=True)
    broken = 0
    for free, answer in zip(whole, first_lines, strict=True):
        first = min((free.text.find(mark) for mark in "\r\n" if mark in free.text), default=-1)
        if first < 0:
            assert (answer.text, answer.stopped_by) == (free.text, free.stopped_by)
        else:
            assert (answer.text, answer.stopped_by) == (free.text[:first], "line_break")
            assert answer.new_tokens < free.new_tokens
            broken += 1
    assert broken >= 2


@pytest.mark.usefixtures("path")
def test_the_library_says_nothing_on_standard_error(loaded: LoadedModel, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            generate(loaded, PROMPTS, 4)
            generate(loaded, PROMPTS, 4, Decoding(temperature=0.7, top_k=5, top_p=0.9, repetition_penalty=1.1))
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.records == []


def test_the_stage_writes_texts_in_the_order_of_the_prompts(base: Path, loaded: LoadedModel, tmp_path: Path) -> None:
    metrics = evaluate_generate(make_context(base, {"prompts": list(PROMPTS), "max_new_tokens": 9}, tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "generations.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["prompt"] for line in lines] == list(PROMPTS)
    assert [line["text"] for line in lines] == [each.text for each in generate(loaded, PROMPTS, 9)]
    assert set(lines[0]) == {"prompt", "text", "reference", "new_tokens", "seconds", "stopped_by"}
    assert all(line["seconds"] > 0 for line in lines)
    values = read_scores(tmp_path).pivot(index="example", columns="metric", values="value")
    assert list(values.new_tokens) == [line["new_tokens"] for line in lines]
    assert list(values.new_words) == [len(words_of(line["text"])) for line in lines]
    assert list(values.stopped_by_eos) == [line["stopped_by"] == "eos" for line in lines]
    assert metrics["prompts"] == len(PROMPTS)


def _reference_text(
    base: Path, loaded: LoadedModel, prompt: str, new_tokens: int, penalty: float = 1.0, *, on_prefix: bool = False
) -> str:
    """One token after another, the whole sequence anew each time, in float64."""
    tokenizer, logits_of = loaded.tokenizer, reference_logits(base)
    ids = tokenizer.encode(prompt)
    start = len(ids)
    while len(ids) - start < new_tokens:
        logits = logits_of([tokenizer.prefix_id, *ids])[-1]
        for seen in {*ids, tokenizer.prefix_id} if on_prefix else set(ids):
            logits[seen] = logits[seen] / penalty if logits[seen] > 0 else logits[seen] * penalty
        token = int(logits.argmax())
        if token in tokenizer.stop_ids:
            break
        ids.append(token)
    return tokenizer.decode(ids[start:])


def _greedy_ids(loaded: LoadedModel, prompt: str, count: int) -> list[int]:
    ids = [loaded.tokenizer.prefix_id, *loaded.tokenizer.encode(prompt)]
    start = len(ids)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(loaded.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[start:]


def test_texts_are_marked_and_counted_by_the_safety_of_the_study(base: Path, tmp_path: Path) -> None:
    plain = make_context(base, {"prompts": list(PROMPTS), "max_new_tokens": 12}, tmp_path / "plain")
    evaluate_generate(plain)
    rows = [json.loads(line) for line in (tmp_path / "plain" / "generations.jsonl").read_text().splitlines()]
    assert all("filtered" not in row for row in rows)
    words = re.findall(r"[a-zA-Z]{2,}", rows[0]["text"])
    (tmp_path / "words.txt").write_text(f"{words[0].upper()}\n")
    context = make_context(base, {"prompts": list(PROMPTS), "max_new_tokens": 12}, tmp_path / "safe")
    context.config["safety"] = {"words": "sha256:0"}
    context.resources["safety.words"] = Resource(path=tmp_path / "words.txt")
    evaluate_generate(context)
    rows = [json.loads(line) for line in (tmp_path / "safe" / "generations.jsonl").read_text().splitlines()]
    scores = read_scores(tmp_path / "safe")
    found = scores[scores.metric == "filtered"]
    assert rows[0]["filtered"] is True
    assert found.value.tolist() == [float(row["filtered"]) for row in rows]

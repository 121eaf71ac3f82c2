"""Windows by hand and by property; losses against a float64 reference that knows no windows of ours, no packing, no padding."""

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from paretune.data.tokenizer import load_tokenizer
from paretune.data.windows import Window, scored_windows
from paretune.errors import DataError
from paretune.evaluate.likelihood import evaluate_perplexity
from paretune.pipeline.resources import Resource
from tests.evaluate.stages import BASE, make_context, read_scores, reference_nats, write_task_tokens, write_tokens
from tests.tiny import make_model

SHORT = "The driver waits for nobody."
LONG = " ".join(f"Train {n} leaves the harbour at {n % 24} o'clock, and platform {n * 7 % 13} is closed." for n in range(6))
TEXTS = [
    ("test", "letter", SHORT),
    ("validation", "notice", "A new engine was shown to the press; the older one stays."),
    ("test", "timetable", LONG),
    ("test", "letter", "She read it twice over née and folded it."),
    ("train", "other", "Not to be scored."),
]


def test_windows_by_hand() -> None:
    assert scored_windows(11, 6, 2) == [Window(0, 6, 1), Window(2, 8, 6), Window(4, 10, 8), Window(5, 11, 10)]
    assert scored_windows(6, 6, 2) == [Window(0, 6, 1)]
    assert scored_windows(7, 6, 5) == [Window(0, 6, 1), Window(1, 7, 6)]
    assert scored_windows(2, 6, 2) == [Window(0, 2, 1)]
    assert scored_windows(1, 6, 2) == []


def test_windows_score_every_token_once_with_the_promised_context() -> None:
    for num_tokens, max_length in product(range(2, 60), range(2, 14)):
        for stride in range(1, max_length):
            windows = scored_windows(num_tokens, max_length, stride)
            scored = [token for window in windows for token in range(window.first_target, window.stop)]
            assert scored == list(range(1, num_tokens))
            assert windows[0].start == 0
            assert all(window.stop - window.start <= max_length for window in windows)
            assert all(window.first_target - window.start >= max_length - stride for window in windows[1:])


@pytest.mark.parametrize("stride", [0, 6, 7])
def test_a_stride_that_leaves_no_context_or_no_token_is_refused(stride: int) -> None:
    with pytest.raises(DataError, match=f"`stride: {stride}`.*1 to 5"):
        scored_windows(20, 6, stride)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt-neox", "llama", "mistral"])
def test_scores_equal_a_float64_reference(architecture: str, tmp_path: Path) -> None:
    base = make_model(architecture, tmp_path / "base")
    tokens = write_tokens(base, TEXTS, tmp_path / "tokens")
    context = make_context(base, {"stride": 20}, tmp_path / "draft", inputs={"tokens": tokens}, max_length=48)
    metrics = evaluate_perplexity(context)
    scores = read_scores(tmp_path / "draft").set_index(["example", "metric"])
    nats_of, tokenizer = reference_nats(base), load_tokenizer(BASE, Resource(path=base))
    assert set(scores.index.get_level_values("example")) == {"0", "1", "2", "3"}
    for number in range(4):
        split, document, text = TEXTS[number]
        nats, correct = _read_with_context(nats_of, [tokenizer.prefix_id, *tokenizer.encode(text)], 48, 20)
        expected = {
            "loss": (nats.mean(), len(nats)),
            "bits_per_byte": (nats.sum() / math.log(2) / len(text.encode()), len(text.encode())),
            "token_accuracy": (correct.mean(), len(nats)),
        }
        for metric, (value, weight) in expected.items():
            row = scores.loc[(str(number), metric)]
            assert row.value == pytest.approx(value, rel=1e-5)
            assert (row.weight, row.split, row.document) == (weight, split, document)
    loss = scores.xs("loss", level="metric").query("split == 'test'")
    assert metrics["loss_test"] == pytest.approx(np.average(loss.value, weights=loss.weight), rel=1e-12)


def test_every_window_begins_as_a_text_does_where_the_tokenizer_begins_all_texts_so(tmp_path: Path) -> None:
    """As llama.cpp's `perplexity` reads: BOS in the place of the first token of a later window."""
    base = make_model("llama", tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    tokenizer.save_pretrained(base)
    tokens = write_tokens(base, [("test", "timetable", LONG)], tmp_path / "tokens")
    evaluate_perplexity(make_context(base, {"stride": 20}, tmp_path / "draft", inputs={"tokens": tokens}, max_length=48))
    loaded, nats_of = load_tokenizer(BASE, Resource(path=base)), reference_nats(base)
    assert loaded.adds_prefix
    ids = [loaded.prefix_id, *loaded.encode(LONG)]
    windows = scored_windows(len(ids), 48, 20)
    nats = [nats_of([0, *ids[w.start + 1 : w.stop]])[0][w.first_target - w.start - 1 :] for w in windows]
    loss = read_scores(tmp_path / "draft").query("metric == 'loss'").value.item()
    assert len(windows) > 3
    assert loss == pytest.approx(torch.cat(nats).mean().item(), rel=1e-5)
    whole = [nats_of(ids[w.start : w.stop])[0][w.first_target - w.start - 1 :] for w in windows]
    assert loss != pytest.approx(torch.cat(whole).mean().item(), rel=1e-3)


def test_each_scored_token_sees_its_context_and_no_more(tmp_path: Path) -> None:
    """With a stride of 1 every token after the first window has exactly `max_length - 1` tokens before it."""
    base = make_model("llama", tmp_path / "base")
    tokens = write_tokens(base, [("test", "timetable", LONG[:160])], tmp_path / "tokens")
    config = {"splits": ["test"], "stride": 1}
    evaluate_perplexity(make_context(base, config, tmp_path / "draft", inputs={"tokens": tokens}, max_length=16))
    tokenizer, nats_of = load_tokenizer(BASE, Resource(path=base)), reference_nats(base)
    ids = [tokenizer.prefix_id, *tokenizer.encode(LONG[:160])]
    nats = [nats_of(ids[max(0, t - 15) : t + 1])[0][-1].item() for t in range(1, len(ids))]
    loss = read_scores(tmp_path / "draft").query("metric == 'loss'").value.item()
    assert loss == pytest.approx(np.mean(nats), rel=1e-5)


def test_scores_do_not_depend_on_packing_or_on_the_order_of_documents(tmp_path: Path) -> None:
    base = make_model("gpt2", tmp_path / "base")
    runs = []
    for name, texts, forward_tokens in [("a", TEXTS, 4096), ("b", TEXTS, 1), ("c", TEXTS[::-1], 200)]:
        tokens = write_tokens(base, texts, tmp_path / f"tokens-{name}")
        draft = tmp_path / name
        evaluate_perplexity(
            make_context(base, {}, draft, inputs={"tokens": tokens}, max_length=64, forward_tokens=forward_tokens)
        )
        scores = read_scores(draft)
        order = ["split", "document", "metric", "weight"]
        runs.append(scores.sort_values(order)[[*order, "value"]].reset_index(drop=True))
    for other in runs[1:]:
        assert other.drop(columns="value").equals(runs[0].drop(columns="value"))
        np.testing.assert_allclose(other.value, runs[0].value, rtol=2e-6)  # float32 sums in another order


def test_counts_leave_out_bos_and_eos_and_tell_lossy_documents(tmp_path: Path) -> None:
    base = make_model("gpt2", tmp_path / "base")
    texts = [("test", "a", "broken � sign"), ("test", "b", SHORT), ("test", "b", "Nobody waits.")]
    tokens = write_tokens(base, texts, tmp_path / "tokens")
    context = make_context(base, {"splits": ["test"]}, tmp_path / "draft", inputs={"tokens": tokens})
    metrics = evaluate_perplexity(context)
    encode = load_tokenizer(BASE, Resource(path=base)).encode
    assert metrics["tokens_test"] == sum(len(encode(text)) for _, _, text in texts)
    assert metrics["bytes_test"] == sum(len(text.encode()) for _, _, text in texts)
    assert (metrics["documents_test"], metrics["lossy_documents_test"]) == (3, 1)
    scores = read_scores(tmp_path / "draft")
    assert set(scores.metric) == {"loss", "bits_per_byte", "token_accuracy"}
    assert (metrics["stride"], metrics["window_tokens"]) == (256, 512)


def _read_with_context(nats_of, ids: list[int], max_length: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """The definition, a token at a time: which window scores token t, and what it is given in it."""
    nats, correct = [], []
    for t in range(1, len(ids)):
        rounds = max(0, math.ceil((t + 1 - max_length) / stride))
        stop = min(len(ids), max_length + rounds * stride)
        start = max(0, stop - max_length)
        token_nats, token_correct = nats_of(ids[start : t + 1])
        nats.append(token_nats[-1])
        correct.append(token_correct[-1])
    return torch.stack(nats).numpy(), torch.stack(correct).double().numpy()


TASK_ROWS = [
    ("test", "letter", "A new engine was shown.\n", "Title: ", "The engine"),
    ("test", "letter", "A new engine was shown.\n", "Tags: ", "engine, press"),
    ("test", "notice", "", "Q: who? A:", " nobody é"),
    ("validation", "other", "The older one stays.", "", " In production."),
]


def test_of_tasks_the_completions_are_scored_and_nothing_else(tmp_path: Path) -> None:
    base = make_model("llama", tmp_path / "base")
    tokenizer = load_tokenizer(BASE, Resource(path=base))
    tokens = write_task_tokens(base, TASK_ROWS, tmp_path / "tokens")
    metrics = evaluate_perplexity(make_context(base, {}, tmp_path / "draft", inputs={"tokens": tokens}, max_length=64))
    scores = read_scores(tmp_path / "draft").set_index(["example", "metric"])
    nats_of = reference_nats(base)
    for number, (split, document, context, prompt, completion) in enumerate(TASK_ROWS):
        pieces = [tokenizer.encode(context), tokenizer.encode(prompt), tokenizer.encode(completion)]
        nats, correct = nats_of([tokenizer.prefix_id, *(token for piece in pieces for token in piece)])
        nats, correct = nats[-len(pieces[2]) :], correct[-len(pieces[2]) :]
        task, size = f"t{number % 2}", len(completion.encode())
        rows = {metric: scores.loc[(f"{number // 2}:{task}", metric)] for metric in ("loss", "bits_per_byte", "token_accuracy")}
        assert rows["loss"].value == pytest.approx(float(nats.mean()), rel=1e-5)
        assert rows["bits_per_byte"].value == pytest.approx(float(nats.sum()) / math.log(2) / size, rel=1e-5)
        assert rows["token_accuracy"].value == pytest.approx(float(correct.double().mean()))
        assert (rows["loss"].weight, rows["bits_per_byte"].weight) == (len(nats), size)
        assert (rows["loss"].document, rows["loss"].split, rows["loss"]["slice.task"]) == (document, split, task)
    assert (metrics["documents_test"], metrics["lossy_documents_test"]) == (3, 0)
    assert metrics["bytes_test"] == sum(len(row[4].encode()) for row in TASK_ROWS if row[0] == "test")

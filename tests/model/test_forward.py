"""Packed scoring against one example at a time through the model's own forward, in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from paretune.data.trees import Example, forward_batches
from paretune.errors import StageError
from paretune.model import forward
from paretune.model.forward import mixing, packed_model, score
from tests.tiny import ARCHITECTURES, VOCABULARY_SIZE, make_model


def examples(count: int = 12, longest: int = 24) -> list[Example]:
    """Longer than the sliding windows of the tiny models, which are 8 tokens."""
    random = np.random.default_rng(0)
    lengths = random.integers(3, longest, count)
    return [Example(random.integers(0, VOCABULARY_SIZE, n).astype(np.int32), int(random.integers(1, n))) for n in lengths]


def reference(model, example: Example) -> np.ndarray:
    ids = torch.from_numpy(example.ids.astype(np.int64))[None]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
    targets = slice(example.first_target, None)
    predicting = logits[example.first_target - 1 : -1]
    return functional.cross_entropy(predicting, ids[0, targets], reduction="none").numpy()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_scores_equal_one_at_a_time(architecture, tmp_path):
    directory = make_model(architecture, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64).eval()
    assert mixing(model) == ""
    items = examples()
    assert any(len(indices) > 1 for indices, _ in forward_batches(items, forward_tokens=128))
    for example, scores in zip(items, score(model, items, forward_tokens=128), strict=True):
        np.testing.assert_allclose(scores.nats, reference(plain, example), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt-neox", "llama", "mistral", "gemma2", "opt"])
def test_scores_do_not_depend_on_order_or_on_what_else_is_in_the_batch(architecture, tmp_path, monkeypatch):
    """To the last bit: of plain texts, and of options after their question."""
    model = AutoModelForCausalLM.from_pretrained(make_model(architecture, tmp_path), dtype=torch.float32).eval()
    packed, questions = packed_model(model), [[item] for item in examples(30)]
    for plain in examples(12):
        questions.append([Example(option.ids[:5], 0, plain.ids) for option in examples(4)])
    expected = [list(score(packed, question, forward_tokens=256)) for question in questions]
    for stretch, order, forward_tokens in ((512, 1, 512), (512, -1, 512), (10, 1, 256), (512, -1, 128)):
        monkeypatch.setattr(forward, "_STRETCH", stretch)
        found = score(packed, [item for question in questions[::order] for item in question], forward_tokens=forward_tokens)
        for question in expected[::order]:
            for one, other in zip(question, found, strict=False):
                np.testing.assert_array_equal(other.nats, one.nats)


def test_scores_of_what_cannot_be_packed_depend_on_order_only_in_rounding(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model("gpt-neox", tmp_path), dtype=torch.float32).eval()
    packed, items = replace(packed_model(model), isolates=False), examples(30)
    one_way = [scores.nats for scores in score(packed, items, forward_tokens=512)]
    backward = [scores.nats for scores in score(packed, items[::-1], forward_tokens=64)][::-1]
    for one, other in zip(one_way, backward, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=2e-6)


def test_correct_is_whether_the_target_is_the_most_likely_token(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model("gpt2", tmp_path), dtype=torch.float32).eval()
    ids = [3, 4, 5]
    for _ in range(5):  # a greedy continuation: all of it is the most likely token
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    ids[-1] = (ids[-1] + 1) % VOCABULARY_SIZE
    (scores,) = score(model, [Example(np.array(ids, np.int32), 3)], forward_tokens=64)
    assert scores.correct.tolist() == [True, True, True, True, False]


def test_an_unknown_way_to_logits_is_refused(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model("gpt2", tmp_path), dtype=torch.float32)
    model.register_forward_hook(lambda module, arguments, output: setattr(output, "logits", output.logits * 2))
    with pytest.raises(StageError, match="not known here"):
        packed_model(model)


def test_out_of_memory_the_scores_go_on_in_smaller_passes(tmp_path, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(make_model("llama", tmp_path), dtype=torch.float32).eval()
    items, score_batch, passes = examples(30), forward._score_batch, []
    expected = list(score(model, items, forward_tokens=512))

    def with_little_memory(packed, head, batch):
        passes.append(batch.ids_RT.numel())
        if passes[-1] > 128:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return score_batch(packed, head, batch)

    monkeypatch.setattr(forward, "_score_batch", with_little_memory)
    found = list(score(model, items, forward_tokens=512))
    assert max(passes) > 128 >= passes[-1]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.nats, other.nats, rtol=2e-6, atol=2e-6)
    monkeypatch.setattr(forward, "_score_batch", lambda packed, head, batch: score_batch(packed, head, None))
    with pytest.raises(AttributeError):
        list(score(model, items, forward_tokens=512))

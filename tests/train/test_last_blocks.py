"""Training of the last blocks: the gradients of full fine-tuning at what is trained, and nothing below."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from paretune.data.trees import Example, forward_batches
from paretune.errors import SpecError
from paretune.model.attention import attending
from paretune.model.blocks import block_list
from paretune.model.forward import hidden_states, packed_model
from paretune.model.loss import loss_of
from paretune.pipeline.stage_configs import BaseConfig, TrainConfig
from paretune.study.methods import TrainLastBlocks
from paretune.study.train import Train
from paretune.train.last_blocks import last_blocks, last_parts, train_last_blocks
from tests.evaluate.stages import BASE, make_context, write_tokens
from tests.tiny import ARCHITECTURES, make_model


def opened(directory, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


def names(model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def examples() -> list[Example]:
    """Two tasks of one context, and a text."""
    trunk, draw = np.arange(2, 12, dtype=np.int32), np.random.default_rng(0)
    ids = [draw.integers(2, 200, n).astype(np.int32) for n in (5, 7, 9)]
    return [Example(ids[0], 2, trunk), Example(ids[1], 0, trunk), Example(ids[2])]


def gradients(model) -> tuple[dict[str, torch.Tensor], list[bool]]:
    """Of the loss of `examples`, and of the states that each block is given whether they hold on to a graph."""
    tracked, blocks = [], block_list(model)[1]
    handles = [block.register_forward_pre_hook(lambda _, given: tracked.append(given[0].requires_grad)) for block in blocks]
    packed = packed_model(model)
    tracked.clear()
    ((_, batch),) = forward_batches(examples(), forward_tokens=4096, pack=packed.isolates)
    with attending(model, batch):
        nats, _ = loss_of(packed.head, model.dtype)(hidden_states(model, batch), batch.targets_N)
        nats.backward()
    for handle in handles:
        handle.remove()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, tracked


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "opt", "gemma3"])
def test_gradients_are_those_of_full_training_and_none_goes_below(architecture, head, tmp_path):
    base = make_model(architecture, tmp_path, tie_word_embeddings=False)
    whole, model = (opened(base, torch.float64) for _ in range(2))
    whole.requires_grad_(True)
    last_blocks(None, TrainLastBlocks(count=2, head=head), "float32").choose(model)
    expected, _ = gradients(whole)
    found, tracked = gradients(model)
    assert tracked == [False, False, False, True]  # of the states a block is given: only the last is given such with a graph
    assert found.keys() == names(model)
    for name, grad in found.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-9, atol=1e-12)
    inside = f"{block_list(model)[0]}."
    blocks = {name.removeprefix(inside).split(".")[0] for name in found if name.startswith(inside)}
    assert blocks == {"2", "3"}
    outside = sorted(name for name in found if not name.startswith(inside))
    assert len(outside) == {"gpt2": 2, "opt": 2}.get(architecture, 1) + head  # the final norm, with its bias where it has one
    assert ("lm_head.weight" in outside) == head


def run(base, draft, method, tmp_path, **changes):
    texts = [(split, f"{split}{n}", f"A text about the number {n}.") for split in ("train", "validation") for n in range(6)]
    tokens = tmp_path / "tokens"
    context = make_context(base, {}, draft, inputs={"tokens": write_tokens(base, texts, tokens)})
    context.config.clear()
    config = TrainConfig(
        base=BaseConfig(**BASE),
        method=method,
        train=Train(max_steps=3, batch_size=3, max_length=32),
        seed=0,
        precision=changes.get("precision", "float32"),
        device="cpu",
    )
    context.config.update(config.model_dump(mode="json"))
    context.resume.mkdir()
    return train_last_blocks(context)


@pytest.mark.parametrize(("head", "precision"), [(True, "float32"), (True, "bfloat16"), (False, "bfloat16")])
def test_a_tied_head_is_untied_and_what_is_frozen_stays_to_the_bit(head, precision, tmp_path):
    base, draft = make_model("llama", tmp_path / "base", tie_word_embeddings=True), tmp_path / "draft"
    metrics = run(base, draft, TrainLastBlocks(count=1, head=head, learning_rate=1e-2), tmp_path, precision=precision)
    before, after = opened(base), opened(draft)
    config = json.loads((draft / "config.json").read_text())
    assert config["tie_word_embeddings"] is not head
    old = dict(before.named_parameters(remove_duplicate=False))
    for name, weight in after.named_parameters(remove_duplicate=False):
        moved = "layers.3." in name or name == "model.norm.weight" or (head and name == "lm_head.weight")
        assert torch.equal(weight, old[name]) is not moved, name
    matrix = before.lm_head.weight.numel()
    block = sum(p.numel() for p in before.model.layers[3].parameters())
    width = before.config.hidden_size
    assert metrics["trained_blocks"] == [3]
    assert metrics["untied_parameters"] == (matrix if head else 0)
    assert metrics["base_parameters"] == sum(p.numel() for p in before.parameters())
    assert metrics["trainable_parameters"] == block + width + (matrix if head else 0)
    assert metrics["parameters"] == sum(p.numel() for p in after.parameters())


def test_more_blocks_than_there_are_are_refused(tmp_path):
    model = opened(make_model("llama", tmp_path))
    assert len(last_parts(model, 4)) == 5
    with pytest.raises(SpecError, match=r"train\.last_blocks.count: the model has 4 blocks; write at most 4"):
        last_parts(model, 5)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_what_follows_the_blocks_is_found_by_the_order_of_a_pass(architecture, tmp_path):
    model = opened(make_model(architecture, tmp_path))
    (norm,) = last_parts(model, 1)[1:]
    assert "norm" in type(norm).__name__.lower()

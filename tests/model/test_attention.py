"""Loss and every gradient of token trees against one example at a time, in float64, through the model's own forward.

The measure is per tensor: the norm of the difference over the larger of the tensor's norm and 1e-3 of the norm of all.
"""

import copy
import itertools
from functools import partialmethod

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionMaskInterface, AutoModelForCausalLM, PreTrainedModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from paretune.data.trees import Example, forward_batches, unshared
from paretune.model import attention, flex
from paretune.model.adapters import add_lora
from paretune.model.attention import QUERIES, attending, block_bounds
from paretune.model.forward import hidden_states, packed_model
from paretune.model.loss import loss_of
from paretune.model.shared_context import bytes_per_entry
from paretune.study.methods import TrainLora
from tests.tiny import ARCHITECTURES, VOCABULARY_SIZE, make_model

LORA = {"r": 3, "alpha": 6, "dropout": 0.0, "bias": "none", "targets": "all-linear"}


def ids(random: np.random.Generator, count: int) -> np.ndarray:
    return random.integers(0, VOCABULARY_SIZE, count).astype(np.int32)


def forest(*, longest_trunk: int = 21) -> list[Example]:
    """Two trees of three branches each and two plain texts; trunks are longer than the windows of the tiny models (8)."""
    random = np.random.default_rng(0)
    examples = [Example(ids(random, 30), 5)]
    for trunk in (ids(random, longest_trunk), ids(random, 13)):
        examples += [Example(ids(random, count), first, trunk) for count, first in ((7, 0), (12, 4), (1, 0))]
    return [*examples, Example(ids(random, 9))]


def with_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """Every weight trained, adapters beside them, and none of their matrices zero."""
    add_lora(model, TrainLora.model_validate(LORA, strict=False), seed=0)
    for name, p in model.named_parameters():
        p.requires_grad_(True)
        if "lora_" in name:
            nn.init.normal_(p, std=0.05)
    return model


def tree_gradients(model: PreTrainedModel, examples: list[Example], forward_tokens: int = 4096) -> tuple[float, dict]:
    packed, total = packed_model(model), 0.0
    assert packed.isolates
    summed_loss = loss_of(packed.head, torch.float32)
    for _, batch in forward_batches(examples, forward_tokens=forward_tokens):
        with attending(model, batch):
            loss, _ = summed_loss(hidden_states(model, batch), batch.targets_N)
            loss.backward()
        total += loss.item()
    return total, {name: p.grad for name, p in model.named_parameters()}


def reference_gradients(model: PreTrainedModel, examples: list[Example]) -> tuple[float, dict]:
    total = 0.0
    for example in map(unshared, examples):
        tokens = torch.from_numpy(example.ids.astype(np.int64))[None]
        logits = model(input_ids=tokens, use_cache=False).logits[0, example.first_target - 1 : -1]
        loss = functional.cross_entropy(logits, tokens[0, example.first_target :], reduction="sum")
        loss.backward()
        total += loss.item()
    return total, {name: p.grad for name, p in model.named_parameters()}


def assert_equal_gradients(found: dict, expected: dict, tolerance: float = 1e-5) -> None:
    assert all(grad is not None for grad in expected.values())
    whole = torch.stack([grad.norm() for grad in expected.values()]).norm()
    for name, grad in expected.items():
        difference = (found[name].double() - grad).norm() / max(grad.norm(), 1e-3 * whole)
        assert difference < tolerance, f"{name}: {difference:.1e}"


@pytest.mark.parametrize("longest_trunk", [21, 150], ids=["short", "with a last block that is computed in part"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradients_equal_one_example_at_a_time(architecture, longest_trunk, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model(architecture, tmp_path), dtype=torch.float32)
    with_adapters(model)
    plain = copy.deepcopy(model).double()
    examples = forest(longest_trunk=longest_trunk)
    loss, gradients = tree_gradients(model, examples)
    expected_loss, expected = reference_gradients(plain, examples)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert_equal_gradients(gradients, expected)


@pytest.mark.parametrize("architecture", ["gpt2", "mistral", "gemma2"])
def test_long_trunks_span_blocks_and_rows_may_be_cut(architecture, tmp_path, monkeypatch):
    monkeypatch.setattr(attention, "QUERIES", 64)
    model = AutoModelForCausalLM.from_pretrained(make_model(architecture, tmp_path), dtype=torch.float32)
    with_adapters(model)
    plain = copy.deepcopy(model).double()
    examples = forest(longest_trunk=158)
    batches = list(forward_batches(examples, forward_tokens=192))
    assert len(batches) > 1
    loss, gradients = tree_gradients(model, examples, forward_tokens=192)
    expected_loss, expected = reference_gradients(plain, examples)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert_equal_gradients(gradients, expected)


def test_blocks_cover_a_row_once_and_keep_to_their_size():
    random = np.random.default_rng(3)
    for _ in range(20):
        examples = [Example(ids(random, int(n))) for n in random.integers(2, 400, 5)]
        for _ in range(3):
            trunk = ids(random, int(random.integers(1, 500)))
            examples += [Example(ids(random, int(n)), 0, trunk) for n in random.integers(1, 90, 4)]
        for _, batch in forward_batches(examples, forward_tokens=2048):
            for join in (True, False):
                bounds = block_bounds(batch.forest, join=join)
                assert bounds[0][0] == 0
                assert bounds[-1][1] == len(batch.forest)
                assert all(one[1] == other[0] for one, other in itertools.pairwise(bounds))
                assert all(0 < stop - start <= QUERIES for start, stop in bounds)
                assert join or all(len(set(batch.forest.trees_T[start:stop])) == 1 for start, stop in bounds)


def test_gradient_checkpointing_gives_the_same_gradients(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model("mistral", tmp_path), dtype=torch.float32)
    with_adapters(model)
    plain = copy.deepcopy(model).double()
    model.activation_checkpointing_enable()
    model.train()
    _, gradients = tree_gradients(model, forest())
    assert_equal_gradients(gradients, reference_gradients(plain, forest())[1])


def test_without_adapters_low_down_gradients_end_at_the_lowest_one(tmp_path):
    """Autograd skips what lies below the lowest trained weight: the attention there is not gone through backwards."""
    model = AutoModelForCausalLM.from_pretrained(make_model("llama", tmp_path), dtype=torch.float32)
    model.requires_grad_(False)
    model.model.layers[2].mlp.up_proj.weight.requires_grad_(True)
    packed = packed_model(model)
    ((_, batch),) = forward_batches(forest(), forward_tokens=4096)
    below = []
    model.model.layers[2].self_attn.register_forward_hook(lambda module, arguments, output: below.append(output[0]))
    with attending(model, batch):
        loss, _ = loss_of(packed.head, torch.float32)(hidden_states(model, batch), batch.targets_N)
        loss.backward()
    assert not below[0].requires_grad
    assert model.model.layers[2].mlp.up_proj.weight.grad.abs().sum() > 0


def test_dropout_of_attention_keeps_the_mean_and_follows_the_seed(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model("gpt2", tmp_path, attn_pdrop=0.1), dtype=torch.float32)
    ((_, batch),) = forward_batches(forest(), forward_tokens=4096)

    @torch.no_grad()
    def states(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        with attending(model, batch):
            return hidden_states(model, batch)

    model.eval()
    expected = states(0)
    model.train()
    assert torch.equal(states(1), states(1))
    assert not torch.equal(states(1), states(2))
    blocks = model.transformer.h
    with torch.no_grad():  # the mean passes through one block's attention only where nothing follows it
        for block in blocks:
            block.mlp.c_proj.weight.zero_(), block.mlp.c_proj.bias.zero_()
        for block in blocks[1:]:
            block.attn.c_proj.weight.zero_(), block.attn.c_proj.bias.zero_()
    model.transformer.ln_f = nn.Identity()
    model.eval()
    expected = states(0)
    model.train()
    mean = torch.stack([states(seed) for seed in range(400)]).mean(0)
    assert (mean - expected).norm() < 0.02 * expected.norm()


def test_an_attention_that_is_not_known_is_not_taken_for_isolated(tmp_path, monkeypatch, caplog):
    model = AutoModelForCausalLM.from_pretrained(make_model("gpt2", tmp_path), dtype=torch.float32)
    biased = partialmethod(GPT2Attention.forward, position_bias=torch.zeros(1))
    monkeypatch.setattr(GPT2Attention, "forward", biased)
    assert not packed_model(model).isolates
    assert "GPT2LMHeadModel reads one text at a time, sharing no context: RuntimeError: " in caplog.text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["gpt2", "gemma3", "mixtral"])
def test_weights_that_amplify_rounding_do_not_hide_what_the_architecture_shows(architecture, dtype, tmp_path, caplog):
    """Thirty real blocks round by up to a fifth of the largest state in bfloat16; here, four blocks are made to."""
    model = AutoModelForCausalLM.from_pretrained(make_model(architecture, tmp_path, dtype=dtype), dtype=dtype).eval()
    model.get_input_embeddings().register_forward_hook(lambda module, given, states: states * (1 + torch.rand_like(states) / 5))
    packed = packed_model(model)
    assert packed.isolates
    assert bytes_per_entry(packed)
    assert not caplog.text


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2"])
def test_flex_attention_sees_what_the_blocks_see(architecture, tmp_path, monkeypatch):
    """Its kernels need a GPU; its mask and its arguments are tried on the CPU, where it runs uncompiled and forwards only."""
    model = AutoModelForCausalLM.from_pretrained(make_model(architecture, tmp_path), dtype=torch.float32).eval()
    ((_, batch),) = forward_batches(forest(longest_trunk=150), forward_tokens=4096)
    with torch.no_grad(), attending(model, batch):
        expected = hidden_states(model, batch)
        masks = []

        def with_flex(*, mask_function, device, **others):
            found = flex.flex_mask(batch.forest, mask_function, device)
            masks.append(found)
            return attention.TreeMask((), found)

        monkeypatch.setitem(AttentionMaskInterface._global_mapping, attention.NAME, with_flex)
        found = hidden_states(model, batch)
    assert masks
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_where_flex_attention_fails_the_blocks_take_its_place_and_say_why(tmp_path, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(make_model("gemma2", tmp_path), dtype=torch.float32).eval()
    ((_, batch),) = forward_batches(forest(), forward_tokens=4096)
    with torch.no_grad(), attending(model, batch):
        expected = hidden_states(model, batch)

    def broken(*arguments, **others):
        raise RuntimeError("no kernel for this device\nand a long trace")

    monkeypatch.setattr(attention, "has_flex", lambda device: True)
    monkeypatch.setattr(flex, "_FAILURES", {})
    assert packed_model(model).isolates
    assert flex.flex_failure() is None
    monkeypatch.setattr(flex, "_FAILURES", {})
    monkeypatch.setattr(flex, "flex_attention", broken)
    assert packed_model(model).isolates
    assert flex.flex_failure() == "RuntimeError: no kernel for this device"
    with torch.no_grad(), attending(model, batch):
        torch.testing.assert_close(hidden_states(model, batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2"])
def test_gradients_on_a_gpu_equal_those_of_the_cpu(architecture, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model(architecture, tmp_path, head_dim=16), dtype=torch.float32)
    with_adapters(model)
    expected = reference_gradients(copy.deepcopy(model).double(), forest(longest_trunk=300))[1]
    model.cuda()
    packed = packed_model(model)
    for _, batch in forward_batches(forest(longest_trunk=300), forward_tokens=4096):
        moved = batch.to(model.device)
        with attending(model, moved):
            loss_of(packed.head, torch.float32)(hidden_states(model, moved), moved.targets_N)[0].backward()
    found = {name: p.grad.cpu() for name, p in model.named_parameters()}
    assert_equal_gradients(found, expected, tolerance=1e-4)

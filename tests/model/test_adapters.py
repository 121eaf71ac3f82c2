"""What is trained of a model: counts of published shapes, targets, dropout, number formats."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from paretune.errors import SpecError
from paretune.model.adapters import add_lora, count_parameters, freeze_in, set_base_dropout
from paretune.study.methods import TrainLora
from tests.tiny import make_model

LORA = {"r": 8, "alpha": 16, "dropout": 0.0, "bias": "none", "targets": "default"}


def tiny(architecture: str, directory, **overrides) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(make_model(architecture, directory, **overrides), dtype=torch.float32)


def test_gpt2_with_rank_8_on_c_attn_trains_294912_of_124734720():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(GPT2Config())
        add_lora(model, TrainLora.model_validate(LORA | {"targets": ["c_attn"]}, strict=False), seed=0)
    parameters, trainable = count_parameters(model)
    assert (parameters, trainable) == (124_734_720, 294_912)
    assert f"{trainable / parameters:.4%}" == "0.2364%"


def test_default_targets_of_gpt2_are_c_attn():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(GPT2Config())
        add_lora(model, TrainLora.model_validate(LORA, strict=False), seed=0)
    assert count_parameters(model)[1] == 294_912


def test_llama_32_1b_without_one_block_has_60821504_parameters_fewer():
    shape = {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    }
    counts = []
    for blocks in (16, 15):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(LlamaConfig(num_hidden_layers=blocks, **shape))
        counts.append(count_parameters(model)[0])
    assert counts[0] - counts[1] == 60_821_504
    assert f"{1 - counts[1] / counts[0]:.1%}" == "4.9%"


def test_the_seed_alone_decides_what_an_adapter_begins_with(tmp_path):
    def first(seed: int, before: int) -> torch.Tensor:
        model = tiny("llama", tmp_path / "model")
        torch.manual_seed(before)
        add_lora(model, TrainLora.model_validate(LORA, strict=False), seed)
        return next(p for name, p in model.named_parameters() if "lora_A" in name).detach()

    assert torch.equal(first(1, before=5), first(1, before=6))
    assert not torch.equal(first(1, before=5), first(2, before=5))


def test_all_linear_leaves_the_head_and_reaches_every_block(tmp_path):
    model = tiny("gpt-neox", tmp_path)
    add_lora(model, TrainLora.model_validate(LORA | {"targets": "all-linear"}, strict=False), seed=0)
    trained = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 4 * 4
    assert not any("embed_out" in name for name in trained)


def test_unknown_targets_name_the_modules_that_there_are(tmp_path):
    with pytest.raises(SpecError, match=r"no module `c_attn` in `llama`; linear modules: `down_proj`.*`q_proj`"):
        add_lora(tiny("llama", tmp_path), TrainLora.model_validate(LORA | {"targets": ["c_attn"]}, strict=False), seed=0)


def test_an_architecture_without_default_asks_for_targets(tmp_path):
    with pytest.raises(SpecError, match=r"no default is known for `smollm3`.*write `all-linear` or a list out of"):
        add_lora(tiny("smollm3", tmp_path), TrainLora.model_validate(LORA, strict=False), seed=0)


def test_frozen_matrices_change_format_and_nothing_else(tmp_path):
    model = tiny("llama", tmp_path)
    add_lora(model, TrainLora.model_validate(LORA | {"targets": ["q_proj"]}, strict=False), seed=0)
    freeze_in(model, torch.bfloat16)
    formats = {name: p.dtype for name, p in model.named_parameters()}
    assert formats["model.layers.0.self_attn.q_proj.base_layer.weight"] == torch.bfloat16
    assert formats["model.layers.0.mlp.down_proj.weight"] == torch.bfloat16
    assert formats["model.embed_tokens.weight"] == torch.bfloat16
    assert formats["model.norm.weight"] == torch.float32
    assert all(dtype == torch.float32 for name, dtype in formats.items() if "lora_" in name)
    assert model.get_input_embeddings()(torch.arange(3)).dtype == torch.float32


def test_an_embedding_that_computes_with_its_weight_keeps_its_format(tmp_path):
    model = tiny("gemma", tmp_path)
    add_lora(model, TrainLora.model_validate(LORA | {"targets": ["q_proj"]}, strict=False), seed=0)
    before = model.get_input_embeddings()(torch.arange(3))
    freeze_in(model, torch.bfloat16)
    assert torch.equal(model.get_input_embeddings()(torch.arange(3)), before)


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [("gpt2", {"resid_pdrop": 0.1, "attn_pdrop": 0.2}), ("llama", {"attention_dropout": 0.1}), ("opt", {"dropout": 0.1})],
)
def test_base_dropout_is_kept_or_set_wherever_it_sits(tmp_path, architecture, fields):
    model = tiny(architecture, tmp_path, **fields)
    assert set_base_dropout(model, "keep") == sorted(set(fields.values()))
    model.train()
    ids = torch.arange(2, 30)[None]
    assert not torch.equal(model(ids).logits, model(ids).logits)
    assert set_base_dropout(model, 0.0) == []
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert set_base_dropout(model, 0.3) == [0.3]

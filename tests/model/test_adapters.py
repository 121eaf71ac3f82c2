"""What is trained of a model: counts of published shapes, targets, dropout, number formats."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from paretune.errors import SpecError
from paretune.model.adapters import adapted_weights, add_lora, count_parameters, freeze_in, mixture_of, set_base_dropout
from paretune.study.methods import TrainLora
from tests.tiny import MIXTURES, make_model


def lora(fields=None):
    return TrainLora.model_validate(fields or {}, strict=False)


def tiny(architecture: str, directory, **overrides) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(make_model(architecture, directory, **overrides), dtype=torch.float32)


def test_gpt2_with_rank_8_on_c_attn_trains_294912_of_124734720():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(GPT2Config())
        add_lora(model, lora({"targets": ["c_attn"]}), seed=0)
    parameters, trainable = count_parameters(model)
    assert (parameters, trainable) == (124_734_720, 294_912)
    assert f"{trainable / parameters:.4%}" == "0.2364%"


def test_default_targets_of_gpt2_are_c_attn():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(GPT2Config())
        add_lora(model, lora(), seed=0)
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
        add_lora(model, lora(), seed)
        return next(p for name, p in model.named_parameters() if "lora_A" in name).detach()

    assert torch.equal(first(1, before=5), first(1, before=6))
    assert not torch.equal(first(1, before=5), first(2, before=5))


def test_all_linear_leaves_the_head_and_reaches_every_block(tmp_path):
    model = tiny("gpt-neox", tmp_path)
    add_lora(model, lora({"targets": "all-linear"}), seed=0)
    trained = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 4 * 4
    assert not any("embed_out" in name for name in trained)


@pytest.mark.parametrize("architecture", MIXTURES)
@pytest.mark.parametrize("experts", [False, True])
def test_all_linear_means_the_same_of_every_mixture(architecture, experts, tmp_path):
    model = tiny(architecture, tmp_path / "model")
    routed = {name: p.numel() for name, p in model.named_parameters() if p.ndim == 3}
    linear = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "router" not in name and name != "lm_head"
    }
    assert sorted(mixture_of(model).experts) == sorted(routed)
    assert len(mixture_of(model).routers) == len(routed) // 2  # two tensors of experts have one
    adapted = add_lora(model, lora({"targets": "all-linear", "experts": experts}), seed=0)
    assert set(adapted_weights(adapted)) == {f"{name}.weight" for name in linear} | (set(routed) if experts else set())


@pytest.mark.parametrize("architecture", MIXTURES)
@pytest.mark.parametrize("targets", ["all-linear", ["kv_proj", "v_proj", "down_proj", "gate", "layer"]])
def test_an_adapter_of_a_mixture_is_the_same_live_reloaded_merged_and_exported(architecture, targets, tmp_path):
    model = tiny(architecture, tmp_path / "model")
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    targets = targets if isinstance(targets, str) else [target for target in targets if target in names]
    adapted = add_lora(model, lora({"targets": targets, "experts": targets == "all-linear"}), seed=0).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.arange(2, 22)[None]
    with torch.no_grad():
        live = adapted(ids).logits
        adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
        again = PeftModel.from_pretrained(tiny(architecture, tmp_path / "model"), tmp_path / "adapter").eval()
        torch.testing.assert_close(again(ids).logits, live)
        assert set(adapted_weights(again)) == set(adapted_weights(adapted))
        again.merge_and_unload().save_pretrained(tmp_path / "merged")
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
        torch.testing.assert_close(merged(ids).logits, live, rtol=1e-4, atol=1e-4)


def test_experts_in_a_list_are_left_out_with_their_router_unless_asked_for(tmp_path):
    class Routed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = torch.nn.Linear(32, 3)
            self.experts = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(3))

    for experts in (False, True):
        model = tiny("llama", tmp_path, num_experts=3)
        for block in model.model.layers:
            block.mlp = Routed()
        adapted = add_lora(model, lora({"targets": "all-linear", "experts": experts}), seed=0)
        ends = {name.split(".", 3)[3].removesuffix(".weight") for name in adapted_weights(adapted)}
        attention = {f"self_attn.{kind}_proj" for kind in "qkvo"}
        assert ends == attention | ({f"mlp.experts.{index}" for index in range(3)} if experts else set())


def test_experts_are_asked_for_only_where_there_are_some(tmp_path):
    with pytest.raises(SpecError, match="`llama` has no routed experts; leave the field out"):
        add_lora(tiny("llama", tmp_path), lora({"experts": True}), seed=0)
    with pytest.raises(ValueError, match="`experts` goes without `dropout`: the adapters of fused experts take none"):
        lora({"experts": True, "dropout": 0.1})


def test_a_weight_that_other_parts_share_is_no_target(tmp_path):
    model = tiny("llama", tmp_path)
    model.model.layers[1].mlp.down_proj.weight = model.model.layers[0].mlp.down_proj.weight
    with pytest.raises(SpecError, match="shares its weight with another part of the model"):
        add_lora(model, lora({"targets": ["down_proj"]}), seed=0)
    add_lora(tiny("llama", tmp_path), lora({"targets": ["down_proj"]}), seed=0)


def test_unknown_targets_name_the_modules_that_there_are(tmp_path):
    with pytest.raises(SpecError, match=r"no module `c_attn` in `llama`; linear modules: `down_proj`.*`q_proj`"):
        add_lora(tiny("llama", tmp_path), lora({"targets": ["c_attn"]}), seed=0)


def test_an_architecture_without_default_asks_for_targets(tmp_path):
    with pytest.raises(SpecError, match=r"no default is known for `smollm3`.*write `all-linear` or a list out of"):
        add_lora(tiny("smollm3", tmp_path), lora(), seed=0)


def test_frozen_matrices_change_format_and_nothing_else(tmp_path):
    model = tiny("llama", tmp_path)
    add_lora(model, lora({"targets": ["q_proj"]}), seed=0)
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
    add_lora(model, lora({"targets": ["q_proj"]}), seed=0)
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

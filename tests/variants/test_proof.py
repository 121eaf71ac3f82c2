"""The proof passes on every architecture of the table, and each way of getting a removal wrong fails it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from paretune.errors import SpecError, StageError
from paretune.model.blocks import remove_blocks, skipped_blocks
from paretune.variants.proof import TOLERANCE, compute_at_once, prove_saved, prune_blocks, tolerance_of
from tests.tiny import ARCHITECTURES, load, make_model

LARGE_WINDOW = 4096
"""No probe leaves it unless it is narrowed."""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_right_removal_is_proven(architecture: str, tmp_path: Path) -> None:
    model = load(make_model(architecture, tmp_path / "base"))
    proof = prune_blocks(model, [0, 2], tmp_path / "pruned", base_fingerprint="base")
    assert max(proof.identity, proof.cache, proof.reload, proof.reload_cache) < 1e-5
    assert proof.left_window == ("sliding_window" in ARCHITECTURES[architecture])


def stale_cache_index(model: PreTrainedModel) -> None:
    for position, block in enumerate(model.model.layers):
        block.self_attn.layer_idx = model.config.paretune_kept_blocks[position]


def first_cache_slot_empty(model: PreTrainedModel) -> None:
    model.config.num_hidden_layers += 1
    for block in model.model.layers:
        block.self_attn.layer_idx += 1


def stale_number_of_blocks(model: PreTrainedModel) -> None:
    model.config.num_hidden_layers += 1


def stale_layer_types(model: PreTrainedModel) -> None:
    model.config.layer_types = ["full_attention", "full_attention", "sliding_attention"]


def stale_rope_list(model: PreTrainedModel) -> None:
    model.config.no_rope_layers = [1, 0, 1]


def scaling_not_folded(model: PreTrainedModel) -> None:
    for block in model.transformer.h:
        block.attn.c_attn.weight.data[:, : block.attn.split_size] *= 0.5


@pytest.mark.parametrize(
    ("architecture", "damage", "message"),
    [
        ("llama", stale_cache_index, "with a cache"),
        ("qwen3", first_cache_slot_empty, "with a cache"),
        ("llama", stale_number_of_blocks, "missing_keys"),
        ("qwen2", stale_layer_types, "whole model with the dropped blocks skipped"),
        ("smollm3", stale_rope_list, "reloaded, against live"),
        ("gpt2-inverse-scaling", scaling_not_folded, "whole model with the dropped blocks skipped"),
    ],
)
def test_a_wrong_removal_is_refused(
    architecture: str, damage: Callable[[PreTrainedModel], None], message: str, tmp_path: Path
) -> None:
    window = {"sliding_window": LARGE_WINDOW} if "sliding_window" in ARCHITECTURES[architecture] else {}
    model = load(make_model(architecture, tmp_path / "base", **window))
    with skipped_blocks(model, [0]):
        reference = compute_at_once(model)
    remove_blocks(model, [0], base_fingerprint="base")
    damage(model)
    with pytest.raises(StageError, match=message):
        prove_saved(model, tmp_path / "pruned", reference)


@pytest.mark.parametrize(
    ("fields", "drop", "message"),
    [
        ({"model_type": "gemma3n_text", "num_kv_shared_layers": 2}, [0], "layer types producing a cache"),
        ({"model_type": "diffllama"}, [1], r"`model.layers.1.self_attn.lambda_init` is 0.4.* and would be 0.3"),
        ({"model_type": "mamba"}, [0], "past_key_values"),
        ({"model_type": "deepseek_v3", "first_k_dense_replace": 1}, [0], r"another `model.layers.0.mlp"),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else None,
)
def test_an_architecture_that_cannot_be_expressed_without_the_block_is_refused(
    fields: dict[str, object], drop: list[int], message: str, tmp_path: Path
) -> None:
    small = {"layer_types": ["sliding_attention", "full_attention"] * 2, "intermediate_size": [64] * 4} | {
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 300,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0] * 4,
    }
    latent = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "num_key_value_heads": 4} | {
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "moe_intermediate_size": 16,
    }
    sizes = {"gemma3n_text": small, "deepseek_v3": latent}.get(str(fields["model_type"]), {})
    model = load(make_model("llama", tmp_path / "base", **(sizes | fields)))
    with pytest.raises(StageError, match=message):
        prune_blocks(model, drop, tmp_path / "pruned", base_fingerprint="base")


def test_a_base_in_half_precision_is_proven_within_its_rounding(tmp_path: Path) -> None:
    base = make_model("qwen3", tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    proof = prune_blocks(model, [1], tmp_path / "pruned", base_fingerprint="base")
    assert proof.identity == proof.reload == 0
    assert 1e-4 < proof.cache < proof.tolerance == 5e-2


def test_weights_that_amplify_rounding_are_held_to_what_they_show(tmp_path: Path) -> None:
    model = load(make_model("llama", tmp_path / "base"))

    def amplify(_: object, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + 1e3 * (args[0] - args[0].bfloat16().float())  # the digits that bfloat16 loses

    model.model.layers[0].register_forward_hook(amplify)
    live = compute_at_once(model)
    assert TOLERANCE[torch.float32] < tolerance_of(model, live) <= TOLERANCE[torch.bfloat16]
    assert tolerance_of(load(tmp_path / "base"), compute_at_once(load(tmp_path / "base"))) == TOLERANCE[torch.float32]


def test_the_model_stays_in_the_mode_it_was_in(tmp_path: Path) -> None:
    model = load(make_model("opt", tmp_path / "base")).train()
    prune_blocks(model, [3], tmp_path / "pruned", base_fingerprint="base")
    assert model.training
    assert len(model.model.decoder.layers) == 3


def test_a_wrong_index_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    model = load(make_model("llama", tmp_path / "base"))
    with pytest.raises(SpecError, match="cannot remove block `9`"):
        prune_blocks(model, [9], tmp_path / "pruned", base_fingerprint="base")
    assert not (tmp_path / "pruned").exists()

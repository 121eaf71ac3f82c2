"""Removing blocks keeps the meaning of what is left; the contract itself is `tests.surgery_table.measure_surgery`."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from paretune.errors import SpecError, StageError
from paretune.model.blocks import block_list, check_blocks, choose_blocks, remove_blocks
from tests.surgery_table import DROPS, measure_surgery
from tests.tiny import ARCHITECTURES, NUM_BLOCKS, load

TOLERANCE = 1e-5
"""Of the largest logit, in float32; merging an adapter rounds most (7e-6)."""


def logits(model: PreTrainedModel) -> torch.Tensor:
    tokens = torch.arange(2, 40)[None]
    with torch.no_grad():
        return model(tokens, use_cache=False).logits


@pytest.mark.parametrize("drop", DROPS, ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_left_means_the_same_live_cached_reloaded_and_adapted(
    architecture: str, drop: list[int], bases: dict[str, Path], tmp_path: Path
) -> None:
    differences = measure_surgery(bases[architecture], drop, tmp_path)
    assert {name: value for name, value in differences.items() if not value < TOLERANCE} == {}


@pytest.mark.parametrize("architecture", ["gpt2-inverse-scaling", "qwen2", "gemma3", "smollm3"])
def test_pruning_twice_is_pruning_once_and_composes_the_indices(
    architecture: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    twice = load(bases[architecture])
    remove_blocks(twice, [1], base_fingerprint="first base")
    twice.save_pretrained(tmp_path)
    twice = load(tmp_path)
    remove_blocks(twice, [0, 2], base_fingerprint="the pruned one")
    once = load(bases[architecture])
    remove_blocks(once, [0, 1, 3], base_fingerprint="first base")
    assert twice.config.paretune_kept_blocks == once.config.paretune_kept_blocks == [2]
    assert twice.config.paretune_base_fingerprint == "first base"
    torch.testing.assert_close(logits(twice), logits(once), rtol=0, atol=1e-5)


def test_the_saved_config_says_which_blocks_of_which_base_are_left(bases: dict[str, Path], tmp_path: Path) -> None:
    model = load(bases["gpt2"])
    remove_blocks(model, [2], base_fingerprint="3f2a")
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["paretune_kept_blocks"], written["paretune_base_fingerprint"]) == ([0, 1, 3], "3f2a")
    assert written["n_layer"] == 3
    assert "num_hidden_layers" not in written


def test_merging_an_adapter_and_pruning_commute_with_saving_bit_for_bit(bases: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    merged = get_peft_model(load(bases["gemma2"]), config).merge_and_unload()
    remove_blocks(merged, [0], base_fingerprint="")
    merged.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(merged))


def test_a_block_less_of_the_llama_3_2_1b_shape_is_60_821_504_parameters_less() -> None:
    config = AutoConfig.for_model(
        "llama", vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
        num_attention_heads=32, num_key_value_heads=8, head_dim=64, tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    whole = model.num_parameters()
    remove_blocks(model, choose_blocks(16, count=1, choose="last"), base_fingerprint="")
    assert whole == 1_235_814_400
    assert whole - model.num_parameters() == 60_821_504
    assert round(60_821_504 / whole, 3) == 0.049
    assert [block.self_attn.layer_idx for block in model.model.layers] == list(range(15))


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ([0, 1, 2, 3], r"cannot remove all blocks `\[0, 1, 2, 3\]`: the model has 4 blocks, 0 to 3"),
        ([4], "cannot remove block `4`: the model has 4 blocks, 0 to 3"),
        ([-1], "cannot remove block `-1`: the model has 4 blocks, 0 to 3"),
        ([True], "cannot remove block `True`"),
        ([2, 0, 2], r"block `2` is named more than once in `\[2, 0, 2\]`"),
        ([], "no block is named; the model has 4 blocks, 0 to 3"),
    ],
)
def test_a_wrong_choice_of_blocks_is_refused_with_value_and_range(drop: list[int], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_blocks(4, drop)


def test_a_refused_choice_leaves_the_model_whole(bases: dict[str, Path]) -> None:
    model = load(bases["llama"])
    with pytest.raises(SpecError):
        remove_blocks(model, [4], base_fingerprint="")
    assert len(model.model.layers) == model.config.num_hidden_layers == NUM_BLOCKS


def test_blocks_are_chosen_from_either_end() -> None:
    assert choose_blocks(6, count=2, choose="last") == (4, 5)
    assert choose_blocks(6, count=2, choose="first") == (0, 1)


@pytest.mark.parametrize("count", [0, 6, 7])
def test_a_count_that_removes_nothing_or_leaves_nothing_is_refused(count: int) -> None:
    with pytest.raises(SpecError, match=f"`count: {count}` of 6 blocks.*a number from 1 to 5"):
        choose_blocks(6, count=count, choose="last")


def test_the_list_of_blocks_is_found_by_path(bases: dict[str, Path]) -> None:
    assert block_list(load(bases["gpt2"]))[0] == "transformer.h"
    assert block_list(load(bases["opt"]))[0] == "model.decoder.layers"


def test_a_model_whose_blocks_cannot_be_found_is_refused(bases: dict[str, Path]) -> None:
    model = load(bases["llama"])
    model.model.layers = nn.Sequential(*model.model.layers)
    with pytest.raises(StageError, match=r"cannot find the blocks of `LlamaForCausalLM`: 0 lists .* = 4 modules"):
        block_list(model)


def test_an_encoder_decoder_is_refused() -> None:
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", d_model=8, num_layers=2))
    with pytest.raises(StageError, match="decoder-only"):
        block_list(model)


def test_an_attached_adapter_is_refused(bases: dict[str, Path]) -> None:
    adapted = get_peft_model(load(bases["llama"]), LoraConfig(target_modules="all-linear"))
    for model in (adapted, adapted.base_model.model):
        with pytest.raises(StageError, match="merge the adapter first"):
            remove_blocks(model, [0], base_fingerprint="")

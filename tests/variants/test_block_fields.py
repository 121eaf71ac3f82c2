"""Per-block fields of a config, by their shape: entries, indices, dicts, runs; intervals follow or go."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, PreTrainedConfig

from paretune.model.block_fields import prune_fields


def pruned(keep: list[int], num_blocks: int = 4, model_type: str = "llama", **fields: Any) -> PreTrainedConfig:
    config = AutoConfig.for_model(model_type, num_hidden_layers=num_blocks, **fields)
    prune_fields(config, keep, num_blocks)
    return config


def read_again(config: PreTrainedConfig, directory: Path) -> PreTrainedConfig:
    config.save_pretrained(directory)
    return AutoConfig.from_pretrained(directory)


@pytest.mark.parametrize(
    ("value", "expected"),
    [([10, 11, 12, 13], [10, 12]), ((10, 11, 12, 13), (10, 12)), ([0.5, 0.5, 1.0, 1.0], [0.5, 1.0]), ([1, 2, 3], [1, 2, 3])],
)
def test_a_list_of_one_entry_a_block_loses_the_entries_of_dropped_blocks(value: Any, expected: Any) -> None:
    assert pruned([0, 2], rope_theta_of_block=value).rope_theta_of_block == expected


def test_a_list_with_spare_entries_loses_those_of_dropped_blocks_alone() -> None:
    config = pruned([1, 3], model_type="smollm3", no_rope_layers=[1, 1, 0, 0, 1, 0])
    assert config.no_rope_layers[:2] == [1, 0]


def test_indices_of_blocks_are_renumbered() -> None:
    assert pruned([2, 3], mlp_only_layers=[0, 2, 3]).mlp_only_layers == [0, 1]


def test_indices_of_all_blocks_stay_indices() -> None:
    assert pruned([1, 2, 3], moe_layers=[0, 1, 2, 3]).moe_layers == [0, 1, 2]


@pytest.mark.parametrize("key", [int, str])
def test_a_dict_keyed_by_block_is_renumbered(key: type) -> None:
    config = pruned([1, 3], ranks_by_layer={key(0): "a", key(1): "b", key(3): "d"})
    assert config.ranks_by_layer == {key(0): "b", key(1): "d"}


def test_runs_are_written_out_without_the_dropped_blocks(tmp_path: Path) -> None:
    config = pruned([1, 2, 3], model_type="gpt_neo", attention_types=[[["global", "local"], 2]])
    assert config.attention_layers == ["local", "global", "local"]
    assert read_again(config, tmp_path).attention_layers == ["local", "global", "local"]


@pytest.mark.parametrize(("name", "value"), [("eos_token_id", [1, 2, 3, 4]), ("architectures", ["a", "b", "c", "d"])])
def test_a_list_that_is_as_long_by_chance_is_left_alone(name: str, value: list[Any]) -> None:
    assert getattr(pruned([0, 1, 2], **{name: value}), name) == value


@pytest.mark.parametrize(
    ("keep", "interval", "kinds"), [([1, 2, 3], 2, "SFS"), ([0, 1, 3], 4, "SSS"), ([0, 1, 2], 3, "SSF"), ([2, 3], None, "FS")]
)
def test_an_interval_gives_the_pruned_list_or_goes(keep: list[int], interval: int | None, kinds: str, tmp_path: Path) -> None:
    config = pruned(keep, model_type="gemma3_text", sliding_window_pattern=3)
    expected = [{"S": "sliding_attention", "F": "full_attention"}[kind] for kind in kinds]
    assert config.layer_types == read_again(config, tmp_path).layer_types == expected
    written = json.loads((tmp_path / "config.json").read_text())
    assert written.get("sliding_window_pattern") == interval


def test_a_declared_count_follows_the_list(tmp_path: Path) -> None:
    config = pruned([1, 2, 3], model_type="qwen2", use_sliding_window=True, max_window_layers=2)
    assert config.max_window_layers == 1
    assert read_again(config, tmp_path).layer_types == ["full_attention", "sliding_attention", "sliding_attention"]


def test_the_count_of_blocks_goes_under_the_name_of_the_class() -> None:
    config = AutoConfig.for_model("gpt2", n_layer=4)
    prune_fields(config, [0, 3], 4)
    assert config.n_layer == config.num_hidden_layers == 2
    assert "num_hidden_layers" not in vars(config)


def test_overrides_of_single_blocks_are_renumbered(tmp_path: Path) -> None:
    config = pruned([1, 3], per_layer_config={1: {"intermediate_size": 7}, 2: {"intermediate_size": 8}})
    sizes = [block.intermediate_size for block in read_again(config, tmp_path).per_layer_config]
    assert sizes == [7, 11008]

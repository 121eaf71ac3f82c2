"""What a pass keeps, against what is counted by hand and what a longer pass keeps."""

import torch
from transformers import AutoModelForCausalLM

from paretune.data.trees import ROUND_TO
from paretune.model.forward import packed_model
from paretune.model.memory import fitting_tokens, kept_bytes
from tests.tiny import NUM_BLOCKS, make_model


def packed(directory, **overrides):
    model = AutoModelForCausalLM.from_pretrained(make_model("llama", directory, **overrides), dtype=torch.float32)
    return packed_model(model.train())


def test_more_blocks_keep_more_and_recomputing_keeps_less(tmp_path):
    whole, half = packed(tmp_path / "whole"), packed(tmp_path / "half", num_hidden_layers=NUM_BLOCKS // 2)
    kept = kept_bytes(whole)
    assert kept > NUM_BLOCKS * 32 * 4 * 8  # at least eight states of 32 float32 a block
    assert kept_bytes(half) < 0.7 * kept
    whole.model.activation_checkpointing_enable({"use_reentrant": False})
    assert kept_bytes(whole) < 0.3 * kept


def test_a_budget_gives_tokens_between_the_fewest_and_the_most(tmp_path):
    model = packed(tmp_path)
    trained = list(model.model.parameters())
    state = 12 * sum(p.numel() for p in trained)
    assert fitting_tokens(model, trained, 10**12, 4096) == 4096
    assert fitting_tokens(model, trained, state - 1, 4096) == ROUND_TO
    found = fitting_tokens(model, trained, state + int(1.5 * kept_bytes(model) * 2050), 4096)
    assert found == 2048

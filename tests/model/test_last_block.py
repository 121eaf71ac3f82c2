"""The last block is computed where targets are predicted and nowhere else. That gradients stay exact: `test_attention.py`."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from paretune.data.trees import Example, forward_batches
from paretune.model.attention import attending
from paretune.model.forward import hidden_states
from paretune.model.last_block import last_block, rows_read
from tests.tiny import make_model


def batch_of(trunk: int, *branches: int):
    context = np.arange(trunk, dtype=np.int32) % 50
    examples = [Example(np.arange(3, 3 + count, dtype=np.int32), 0, context) for count in branches]
    ((_, batch),) = forward_batches(examples, forward_tokens=4096)
    return batch


def test_the_rows_are_those_of_the_targets_filled_up():
    batch = batch_of(150, 9, 20)
    rows = rows_read(batch)
    assert len(rows) == 64
    assert (np.diff(rows) > 0).all()
    assert set(batch.hidden_N.tolist()) <= set(rows.tolist())


def test_a_row_that_is_nearly_all_targets_is_computed_whole():
    assert rows_read(batch_of(5, 60, 60)) is None
    ((_, padded),) = forward_batches([Example(np.arange(9, dtype=np.int32))], forward_tokens=64, pack=False)
    assert rows_read(padded) is None


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "opt"])
def test_the_last_mlp_sees_those_rows_and_is_itself_again_afterwards(architecture, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model(architecture, tmp_path), dtype=torch.float32)
    batch, seen = batch_of(150, 9, 20), []
    with torch.no_grad(), attending(model, batch):
        whole = hidden_states(model, batch)
    mlp = getattr(last_block(model), "mlp", None)
    if architecture == "opt":  # it has none by that name
        assert mlp is None
        return
    next(m for m in mlp.modules() if not list(m.children())).register_forward_hook(
        lambda _, args, __: seen.append(args[0].shape[1])
    )
    with torch.no_grad(), attending(model, batch):
        assert torch.equal(hidden_states(model, batch), whole)
    assert seen == [64]
    assert "forward" not in vars(mlp)

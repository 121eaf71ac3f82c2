"""The chunked loss of every kind of head against the whole logits, through autograd, in float64."""

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel

from paretune.model import loss as losses
from paretune.model.adapters import add_lora
from paretune.model.forward import head_of
from paretune.model.loss import loss_of, matrix_head, token_nats
from paretune.study.methods import TrainLora
from tests.tiny import make_model

IDS = torch.arange(2, 140)[None]
TARGETS = {"frozen": "all-linear", "adapter on the head": ["lm_head", "q_proj"]}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Three chunks, the last not full."""
    monkeypatch.setattr(losses, "CHUNK_LOGITS", 64 * 300)
    monkeypatch.setattr(losses, "_GRAD_ROWS", 128)


def adapted(directory, targets, **overrides) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(make_model("llama", directory, **overrides), dtype=torch.float64)
    add_lora(model, TrainLora.model_validate({"r": 3, "alpha": 6, "targets": targets}, strict=False), seed=0)
    model.double()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:  # LoRA's second matrix begins at zero, which would leave the first without gradient
                p.normal_(std=0.05)
    return model


def whole(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    logits = model(input_ids=IDS).logits[0, :-1]
    return functional.cross_entropy(logits, IDS[0, 1:], reduction="sum"), (logits.argmax(-1) == IDS[0, 1:]).sum()


def chunked(model: PreTrainedModel, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return loss_of(head_of(model), dtype)(model.base_model(input_ids=IDS).last_hidden_state[0, :-1], IDS[0, 1:])


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_gradients_of_the_chunked_loss_equal_those_of_the_whole(tmp_path, targets):
    model = adapted(tmp_path, targets, tie_word_embeddings=False)
    trained = [p for p in model.parameters() if p.requires_grad]
    (expected_loss, expected_hits), (loss, hits) = whole(model), chunked(model)
    expected, found = (torch.autograd.grad(one, trained) for one in (expected_loss, loss))
    # A trained head's logits are taken in float32 whatever the model's precision.
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    assert hits == expected_hits
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


def test_a_tied_embedding_gets_the_gradient_of_both_its_uses(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model("gpt2", tmp_path), dtype=torch.float32)
    weight = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is weight
    (expected,), (found,) = (torch.autograd.grad(one(model)[0], [weight]) for one in (whole, chunked))
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_products_in_bfloat16_keep_the_loss_and_its_gradient_close(tmp_path):
    model = adapted(tmp_path, "all-linear")
    states = model.base_model(input_ids=IDS).last_hidden_state[0, :-1].detach().requires_grad_()
    head = head_of(model)
    exact, _ = loss_of(head, torch.float64)(states, IDS[0, 1:])
    rounded, _ = loss_of(head, torch.bfloat16)(states, IDS[0, 1:])
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=2e-3)
    expected, found = (torch.autograd.grad(one, states)[0] for one in (exact, rounded))
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_a_target_that_is_almost_certain_keeps_a_small_gradient():
    """Where the target has all but 1e-6 of the probability, rounding of the large share must not drown what is left."""
    weight = torch.eye(300, 64, dtype=torch.float64)
    weight[1] = weight[0] / 2
    module = torch.nn.Linear(64, 300, bias=False)
    module.weight = torch.nn.Parameter(weight, requires_grad=False)
    head = losses.Head(module, num_words=300)
    states = torch.zeros(1, 64, dtype=torch.float64)
    states[0, 0] = 20.0
    states.requires_grad_()
    targets = torch.zeros(1, dtype=torch.long)
    expected, found = (
        torch.autograd.grad(loss_of(head, dtype)(states, targets)[0], states)[0] for dtype in (torch.float64, torch.bfloat16)
    )
    assert expected.norm() < 1e-4
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_scores_of_targets_are_those_of_the_whole_logits(tmp_path):
    model = adapted(tmp_path, "all-linear")
    with torch.no_grad():
        logits = model(input_ids=IDS).logits[0, :-1]
        hidden = model.base_model(input_ids=IDS).last_hidden_state[0, :-1]
        expected = functional.cross_entropy(logits, IDS[0, 1:], reduction="none")
        for head in (head_of(model), matrix_head(head_of(model), torch.float64), matrix_head(head_of(model), torch.float32)):
            nats, correct = token_nats(head, hidden, IDS[0, 1:])
            torch.testing.assert_close(nats.double(), expected, rtol=1e-5, atol=1e-5)
            assert torch.equal(correct, logits.argmax(-1) == IDS[0, 1:])


def test_equally_likely_tokens_count_for_the_first():
    module = torch.nn.Linear(64, 300, bias=False)
    module.weight = torch.nn.Parameter(torch.zeros(300, 64), requires_grad=False)
    targets = torch.tensor([0, 1, 0, 299])
    loss, hits = loss_of(losses.Head(module, num_words=300), torch.float32)(torch.ones(4, 64), targets)
    assert hits == 2
    assert loss.item() == pytest.approx(4 * torch.log(torch.tensor(300.0)).item(), rel=1e-6)

"""Fused forms against the modules that they stand for, values and gradients."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from paretune.model.adapters import add_lora, freeze_in
from paretune.model.dropout import FastDropout, drop, keep_mask
from paretune.model.fused import TanhGELU, _Lora, fuse
from paretune.study.methods import TrainLora
from tests.tiny import make_model

IDS = torch.arange(2, 60)[None]


def adapted(architecture: str, directory, **lora) -> nn.Module:
    model = AutoModelForCausalLM.from_pretrained(make_model(architecture, directory), dtype=torch.float32)
    add_lora(model, TrainLora.model_validate({"r": 4, "alpha": 8, "targets": "all-linear"} | lora, strict=False), seed=0)
    for name, p in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(p, std=0.05)
    return model


def gradients(model: nn.Module, *, autocast: bool = False) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "phi3", "gpt-neox"])
@pytest.mark.parametrize("bias", ["none", "all"])
def test_adapters_and_activations_give_the_same_loss_and_gradients(architecture, bias, tmp_path):
    model = adapted(architecture, tmp_path, bias=bias)
    plain = copy.deepcopy(model).double()
    fuse(model)
    (loss, found), (expected_loss, expected) = gradients(model), gradients(plain)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        assert (found[name].double() - grad).norm() <= 1e-5 * grad.norm(), name


def test_in_bfloat16_the_fused_form_is_at_least_as_exact(tmp_path):
    model = adapted("gpt2", tmp_path)
    exact = copy.deepcopy(model).double()
    freeze_in(model, torch.bfloat16)
    plain = copy.deepcopy(model)
    fuse(model)
    expected = gradients(exact)[1]

    def error(found: dict[str, torch.Tensor]) -> float:
        squares = [(found[name].double() - grad).norm() ** 2 for name, grad in expected.items()]
        return float(sum(squares)) ** 0.5

    found = gradients(model, autocast=True)[1]
    assert all(grad.dtype == torch.float32 for grad in found.values())
    assert error(found) < 1.2 * error(gradients(plain, autocast=True)[1])


def test_the_dropout_of_an_adapter_has_the_gradient_of_its_mask(tmp_path):
    model = adapted("llama", tmp_path, dropout=0.3)
    fuse(model)
    module = model.get_submodule("model.layers.0.self_attn.q_proj").double().train()
    x = torch.randn(2, 3, 32, dtype=torch.float64, requires_grad=True)

    def run(value: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(4)
        module.lora_A["default"].weight, module.lora_B["default"].weight = nn.Parameter(a), nn.Parameter(b)
        return module(value)

    a, b = (layer["default"].weight.detach() for layer in (module.lora_A, module.lora_B))
    loss = (weights := torch.randn(2, 3, 32, dtype=torch.float64)).mul(run(x, a, b)).sum()
    loss.backward()
    grads = (x.grad, module.lora_A["default"].weight.grad, module.lora_B["default"].weight.grad)
    for index, (value, grad) in enumerate(zip((x.detach(), a, b), grads, strict=True)):
        step = torch.randn_like(value) * 1e-6
        ends = []
        for sign in (1, -1):
            arguments = [x.detach(), a, b]
            arguments[index] = value + sign * step
            ends.append((weights * run(*arguments)).sum().item())
        assert (ends[0] - ends[1]) / 2 == pytest.approx((grad * step).sum().item(), rel=1e-5)


def test_dropout_keeps_its_share_and_the_mean():
    torch.manual_seed(0)
    x = torch.ones(1_000_001)
    keep = keep_mask(x, 0.1)
    assert keep.float().mean().item() == pytest.approx(0.9, abs=2e-3)
    assert drop(x, keep, 0.1).mean().item() == pytest.approx(1, abs=2e-3)
    assert not torch.equal(keep, keep_mask(x, 0.1))


def test_dropout_is_off_in_evaluation_and_its_gradient_has_its_mask():
    module = FastDropout(0.5)
    x = torch.ones(1000, requires_grad=True)
    module(x).sum().backward()
    assert set(x.grad.tolist()) == {0.0, 2.0}
    assert torch.equal(module.eval()(x), x)


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_activation_and_its_slope_at_every_number_are_those_of_float64_rounded_once(dtype, threads):
    x = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype)
    x = x[x.isfinite()].repeat(2).view(2, -1).requires_grad_()
    wide = x.detach().double().requires_grad_()
    expected = functional.gelu(wide, approximate="tanh")
    found = TanhGELU()(x)
    assert torch.equal(found, expected.to(dtype))
    (slope,) = torch.autograd.grad(found.sum(), x)
    assert torch.equal(slope, torch.autograd.grad(expected.sum(), wide)[0].to(dtype))


@pytest.mark.parametrize("num_rows", [64, 700])
def test_a_fused_adapter_adds_its_bias_and_every_row_once(num_rows, threads):
    torch.manual_seed(0)
    weight, bias, x = torch.randn(512, 32), torch.randn(512), torch.randn(num_rows, 32, requires_grad=True)
    a, b = torch.randn(4, 32), torch.randn(512, 4)
    rounded = [t.detach().bfloat16() for t in (x, a, b * 2.0, weight, bias)]
    found = _Lora.apply(x, a, b, weight.bfloat16(), bias, 2.0, 0.0)
    wide = [t.double() for t in rounded]
    expected = wide[0] @ (wide[3] + wide[2] @ wide[1]).t() + wide[4]
    assert (found - expected).norm() < 0.01 * expected.norm()
    (grad,) = torch.autograd.grad(found.sum(), x)
    assert (grad - (wide[3] + wide[2] @ wide[1]).sum(0)).norm() < 0.01 * grad.norm()


@pytest.mark.parametrize("architecture", ["llama", "gemma", "qwen3"])
def test_norms_are_fused_with_their_own_form_of_weight(architecture, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model(architecture, tmp_path), dtype=torch.float32)
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        if "norm" in name:
            nn.init.normal_(p, mean=1.0, std=0.3)
    plain = copy.deepcopy(model).double()
    fuse(model)
    norms = {name: m for name, m in model.named_modules() if type(m).__name__.endswith("RMSNorm")}
    assert norms
    assert all("forward" in vars(norm) for norm in norms.values())
    (loss, found), (expected_loss, expected) = gradients(model), gradients(plain)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    for name, grad in expected.items():
        assert (found[name].double() - grad).norm() <= 1e-4 * grad.norm(), name  # the norms of `plain` are float32 inside

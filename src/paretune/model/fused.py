"""Modules in the form that training computes fastest: the same function, without the passes over memory between products.

PEFT casts the input of every adapter to float32 and adds its output in passes of their own, which beside products in bfloat16
take longer than the adapter; transformers writes GPT-2's activation as eight such passes.
Legend: N tokens, I and O width of input and output, r rank.
"""

import functools
import types
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.nn import functional
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from paretune.model.bits import PackedLinear
from paretune.model.dropout import FastDropout, drop, keep_mask

_VALUES = 2**16
"""Of a number of 16 bits."""
_LOOKED_UP = 2**17
"""Numbers at a time, so that their indices stay in the cache."""
_FEW_THREADS = 2
"""With more, a look-up that shares its work between them is the faster one."""
_PART_ROWS = 640
"""Of a product with 768 to 1,024 outputs; half as many with fewer outputs."""


def fuse(model: nn.Module) -> None:
    """Let adapters and activations of `model` compute in their fused form from now on; names and weights stay."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is NewGELUActivation:
                setattr(parent, name, TanhGELU())
            elif type(child) is nn.Dropout and child.p:
                setattr(parent, name, FastDropout(child.p).train(child.training))
        if type(parent) is LoraLinear and _is_plain(parent):
            parent.forward = types.MethodType(_forward, parent)
        elif type(parent).__name__.endswith("RMSNorm"):
            _fuse_rms_norm(parent)
        elif type(parent).__name__.endswith("RotaryEmbedding"):
            parent.register_forward_hook(_in_autocast)


def _in_autocast(module: nn.Module, arguments: Any, output: Any) -> Any:
    """Sines and cosines in the precision of the products, as in a model loaded in it: a product of two dtypes is slow."""
    if not isinstance(output, tuple) or not torch.is_autocast_enabled(output[0].device.type):
        return output
    return tuple(part.to(torch.get_autocast_dtype(part.device.type)) for part in output)


def _is_plain(module: LoraLinear) -> bool:
    """Whether a module is one low-rank adapter beside one matrix and nothing else (no DoRA)."""
    base, names = module.base_layer, module.active_adapters
    return (
        (type(base) is PackedLinear or (type(base) in (nn.Linear, Conv1D) and not base.weight.requires_grad))
        and list(module.lora_A) == list(names)
        and len(names) == 1
        and not module.lora_variant
        and module.lora_B[names[0]].bias is None
    )


def _forward(self: LoraLinear, x: torch.Tensor, *args: Any, **others: Any) -> torch.Tensor:
    if self.disable_adapters or self.merged or args or others:
        return LoraLinear.forward(self, x, *args, **others)
    (name,) = self.active_adapters
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    base, dropout = self.base_layer, self.lora_dropout[name]
    packed = base if isinstance(base, PackedLinear) else None
    weight_OI = packed.weight_OI(dtype) if packed else base.weight.t() if type(base) is Conv1D else base.weight
    rate = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
    with torch.autocast(device, enabled=False):
        adapter = self.lora_A[name].weight, self.lora_B[name].weight
        return _Lora.apply(x, *adapter, weight_OI.to(dtype), base.bias, self.scaling[name], rate, packed)


class _Lora(torch.autograd.Function):
    """x W^T + bias + scaling dropout(x) A^T B^T, with products in the dtype of W and gradients of A and B in theirs.
    A packed W is unpacked again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, a_rI: torch.Tensor, b_Or: torch.Tensor, weight_OI: torch.Tensor, bias: torch.Tensor | None,
        scaling: float, rate: float, packed: PackedLinear | None = None,
    ) -> torch.Tensor:  # fmt: skip
        dtype = weight_OI.dtype
        x_NI = x.reshape(-1, x.shape[-1]).to(dtype)
        out_NO = _product(x_NI, weight_OI.t())
        keep = keep_mask(x_NI, rate) if rate else None
        dropped_NI = x_NI if keep is None else drop(x_NI, keep, rate)
        low_Nr = dropped_NI @ a_rI.to(dtype).t()
        wide_Or, low = (b_Or * scaling).to(dtype), low_Nr
        if bias is not None:  # as one more rank: added by itself it would be copied into every row first
            wide_Or = torch.cat([wide_Or, bias.to(dtype)[:, None]], 1)
            low = functional.pad(low_Nr, (0, 1), value=1.0)
        out_NO.addmm_(low, wide_Or.t())
        ctx.save_for_backward(x_NI, low_Nr, a_rI, b_Or, None if packed else weight_OI, bias, keep)
        ctx.packed, ctx.shape, ctx.dtype, ctx.scaling, ctx.rate = packed, x.shape, x.dtype, scaling, rate
        return out_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x_NI, low_Nr, a_rI, b_Or, weight_OI, bias, keep = ctx.saved_tensors
        grad_NO = grad.reshape(-1, grad.shape[-1])
        low_grad_Nr = grad_NO @ (b_Or * ctx.scaling).to(grad.dtype)
        dropped_NI = x_NI if keep is None else drop(x_NI, keep, ctx.rate)
        grad_a = (low_grad_Nr.t() @ dropped_NI).to(a_rI.dtype)
        # Turned round, as the wide factor would be copied for its transpose.
        grad_b = (low_Nr.t() @ grad_NO).t().to(b_Or.dtype) * ctx.scaling
        grad_bias = grad_NO.sum(0, dtype=bias.dtype) if ctx.needs_input_grad[4] else None
        if not ctx.needs_input_grad[0]:
            return None, grad_a, grad_b, None, grad_bias, None, None, None
        weight_OI = ctx.packed.weight_OI(grad.dtype) if ctx.packed else weight_OI
        grad_NI = _product(grad_NO, weight_OI)
        if keep is None:
            grad_NI.addmm_(low_grad_Nr, a_rI.to(grad.dtype))
        else:
            grad_NI += drop(low_grad_Nr @ a_rI.to(grad.dtype), keep, ctx.rate)
        return grad_NI.to(ctx.dtype).view(ctx.shape), grad_a, grad_b, None, grad_bias, None, None, None


def _product(left_NK: torch.Tensor, right_KM: torch.Tensor) -> torch.Tensor:
    """Their product, in parts of rows where oneDNN 3.12 would leave one of two threads without work."""
    num_rows, width = len(left_NK), right_KM.shape[1]
    most = _PART_ROWS if width >= 768 else _PART_ROWS // 2
    on_one_thread = left_NK.dtype == torch.bfloat16 and 512 <= width <= 1024 and most < num_rows < 1536
    if not on_one_thread or left_NK.device.type != "cpu" or torch.get_num_threads() != 2:
        return left_NK @ right_KM
    out_NM, size = left_NK.new_empty(num_rows, width), -(-num_rows // -(-num_rows // most))
    for left, out in zip(left_NK.split(size), out_NM.split(size), strict=True):
        torch.mm(left, right_KM, out=out)
    return out_NM


def _fuse_rms_norm(module: nn.Module) -> None:
    """Patch a norm that is shown to be x / rms(x) times its weight, or times 1 + its weight as Gemma has it."""
    numbers = [value for value in vars(module).values() if isinstance(value, float)]
    if len(numbers) != 1 or [name for name, _ in module.named_parameters()] != ["weight"]:
        return
    probe, unfused = torch.linspace(-1, 2, module.weight.numel(), device=module.weight.device), module.forward
    for offset in (0.0, 1.0):

        def forward(x: torch.Tensor, offset: float = offset) -> torch.Tensor:
            weight = module.weight
            if x.dtype != torch.float32 or weight.dtype != torch.float32:
                return unfused(x)
            return _RMSNorm.apply(x, weight + offset if offset else weight, numbers[0])

        with torch.no_grad():
            if torch.allclose(forward(probe), unfused(probe), rtol=1e-5, atol=1e-6):
                module.forward = forward
                return


class _RMSNorm(torch.autograd.Function):
    """y = x r w with r = (mean(x^2) + eps)^(-1/2) of each token; arXiv 1910.07467."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        inverse = (torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / x.shape[-1] + eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, weight, inverse = ctx.saved_tensors
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * x).mul_(inverse).flatten(0, -2).sum(0)
        grad = grad * weight
        along = torch.linalg.vecdot(grad, x)[..., None] * inverse**2 / x.shape[-1]
        return grad.addcmul_(x, along, value=-1).mul_(inverse), grad_weight, None


class TanhGELU(nn.GELU):
    """GPT-2's activation. torch takes longer over it on a CPU than over the product before it, but a half-precision number
    has 65,536 values only: their results are looked up, and are those of float64, rounded once.
    """

    def __init__(self) -> None:
        super().__init__(approximate="tanh")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu" or x.dtype not in (torch.bfloat16, torch.float16):
            return super().forward(x)
        return _TanhGELU.apply(x)


class _TanhGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return _look_up(_gelu_tables(x.dtype)[0], x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return _look_up(_gelu_tables(x.dtype)[1], x).mul_(grad)


@functools.cache
def _gelu_tables(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """GELU and its slope at each number of 16 bits, in the order of the bits."""
    bits = torch.arange(_VALUES, dtype=torch.int32).to(torch.uint16)
    x = bits.view(dtype).double().requires_grad_()
    with torch.enable_grad():
        out = functional.gelu(x, approximate="tanh")
        (slope,) = torch.autograd.grad(out.sum(), x)
    return out.detach().to(dtype), slope.to(dtype)


def _look_up(table: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    bits, out = x.reshape(-1).view(torch.uint16), x.new_empty(x.numel())
    threads = torch.get_num_threads()
    size = _LOOKED_UP * max(1, threads // _FEW_THREADS)
    for part, values in zip(bits.split(size), out.split(size), strict=True):
        if threads > _FEW_THREADS:
            torch.take(table, part.to(torch.int64), out=values)
        else:
            torch.index_select(table, 0, part.to(torch.int32), out=values)
    return out.view(x.shape)

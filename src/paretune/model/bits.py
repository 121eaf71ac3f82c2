"""Weights in 8 and 4 bits through bitsandbytes: models in NF4 that are run, and frozen matrices that adapters train beside.

What is trained takes the weights of LLM.int8 or NF4 and unpacks a matrix for each product, forward and backward; its inputs
stay as they are. So it trains on a CPU too, and a token is computed alike whatever stands beside it. LLM.int8 as it serves on
a GPU rounds inputs as well, by columns that depend on all tokens of a pass.
"""

import functools
import importlib
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from paretune.errors import StageError

_SLOW = logging.getLogger("paretune.slow")
BLOCK = 64
"""Weights that share a scale in NF4."""
_KERNEL_OUTPUTS = 32

Form = Literal["int8", "nf4"]


@functools.cache
def bitsandbytes() -> Any:
    """The package, imported where it is needed and without a word: of kernels that it misses none is used here."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return importlib.import_module("bitsandbytes")
    finally:
        logger.setLevel(level)


def save_nf4(model: PreTrainedModel, directory: Path) -> tuple[int, int]:
    """Write `model` with the linear layers of its blocks in NF4, as transformers loads it. Returns the bytes of the tensors,
    and how many weights have 4 bits."""
    bitsandbytes()
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=model.dtype
    )
    with TemporaryDirectory() as whole:
        model.save_pretrained(whole)
        small = type(model).from_pretrained(whole, dtype=model.dtype, quantization_config=config)
    small.save_pretrained(directory)
    layers = {name: m for name, m in small.named_modules() if isinstance(m, bitsandbytes().nn.Linear4bit)}
    num_weights = sum(layer.in_features * layer.out_features for layer in layers.values())
    if uneven := [name for name, layer in layers.items() if layer.in_features % BLOCK]:
        raise StageError(
            f"quantize.nf4: `{uneven[0]}` reads {layers[uneven[0]].in_features} numbers, which is no multiple of {BLOCK}: "
            "bitsandbytes unpacks such a matrix wrongly on a CPU; take `quantize.int8` or `quantize.gguf`"
        )
    num_bytes = 0
    for file in directory.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            num_bytes += sum(tensors.get_tensor(name).nbytes for name in tensors.keys())  # noqa: SIM118  it is no mapping
    return num_bytes, num_weights


def settle_nf4(model: PreTrainedModel, dtype: torch.dtype, *, served: bool = False) -> None:
    """Let the layers in NF4 of a loaded `model` compute in `dtype`, whatever the processor; with `served` in the way that
    bitsandbytes takes by itself, for times.

    On a CPU with AVX512-BF16 its kernel computes in bfloat16 whatever it is told, and takes outputs by 32.
    """
    layers = [module for module in model.modules() if isinstance(module, bitsandbytes().nn.Linear4bit)]
    by_kernel = served and all(layer.out_features % _KERNEL_OUTPUTS == 0 for layer in layers)
    rounding = [layer for layer in layers if layer.support_avx512bf16_for_cpu and model.device.type == "cpu" and not by_kernel]
    for layer in layers:
        layer.compute_dtype, layer.compute_type_is_set = dtype, True
    for layer in rounding:
        layer.support_avx512bf16_for_cpu = False
    if rounding:
        _SLOW.warning("the kernel of bitsandbytes for 4 bits rounds to bfloat16 here: matrices are unpacked instead")


class PackedLinear(nn.Module):
    """A frozen linear layer whose matrix is kept in 8 or 4 bits and unpacked for each product."""

    def __init__(self, layer: nn.Linear | Conv1D, form: Form) -> None:
        super().__init__()
        matrix_OI = layer.weight.detach()
        matrix_OI = matrix_OI.t() if isinstance(layer, Conv1D) else matrix_OI  # GPT-2 keeps its matrices transposed
        self.out_features, self.in_features = matrix_OI.shape
        self.bias, functional = layer.bias, bitsandbytes().functional
        if form == "int8":
            self.packed, self.scale_O, _ = functional.int8_vectorwise_quant(matrix_OI.to(torch.float16).contiguous())
        else:
            # As rows of one block each: on a CPU blocks that reach over the end of a row are unpacked wrongly (0.50.2).
            blocks = matrix_OI.reshape(-1, BLOCK)
            self.packed, self.state = functional.quantize_4bit(
                blocks, blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
            )
        self.form = form

    def weight_OI(self, dtype: torch.dtype) -> torch.Tensor:
        """The matrix, in `dtype`."""
        if self.form == "int8":
            return self.packed.to(dtype).mul_((self.scale_O / 127).to(dtype)[:, None])
        blocks = bitsandbytes().functional.dequantize_4bit(self.packed, self.state)
        return blocks.view(self.out_features, self.in_features).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        with torch.autocast(device, enabled=False):
            out = _Product.apply(x.to(dtype), self)
            return out if self.bias is None else out + self.bias.to(dtype)


class _Product(torch.autograd.Function):
    """x W^T; W is unpacked again in the backward pass rather than kept for it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: PackedLinear) -> torch.Tensor:
        ctx.layer = layer
        return x @ layer.weight_OI(x.dtype).t()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return grad @ ctx.layer.weight_OI(grad.dtype), None


def pack(model: PreTrainedModel, form: Form) -> int:
    """Keep the frozen linear layers of `model`, with adapters beside them or none, in 8 or 4 bits, in place; not the head. How
    many weights that are."""
    head = model.get_output_embeddings()
    head = head.get_base_layer() if isinstance(head, LoraLayer) else head
    num_weights = 0
    for parent in [*model.modules()]:
        if isinstance(parent, LoraLayer) and type(parent) is not LoraLinear:  # which reads the matrix by itself
            continue
        for name, child in [*parent.named_children()]:
            fits = type(child) in (nn.Linear, Conv1D) and child.weight.numel() % BLOCK == 0
            if fits and child is not head and not child.weight.requires_grad:
                num_weights += child.weight.numel()
                setattr(parent, name, PackedLinear(child, form))
    return num_weights

"""Dynamic int8 in PyTorch, on a CPU: weights of linear layers as whole numbers, and what goes into them rounded as it comes.

Each output of a layer has a scale of its own, and so has each token that is read. `torch.ao.quantization.quantize_dynamic`,
whose removal is announced, has one scale for all tokens of a pass: a token is then rounded by what stands beside it, and the
first of a text, whose states are often a thousand times as large, takes the digits of all others (the loss of SmolLM2-135M
rises by 1.0 nats a token, against 0.05 here). With scales by token packed texts and token trees are rounded as texts alone.
The embedding stays in floating point; a head that shares its matrix gets whole numbers of its own.
"""

import inspect
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from paretune.errors import NeedsError

INT8 = "model_int8.safetensors"
"""The weights inside an artifact that runs in dynamic int8."""


class Int8Linear(nn.Module):
    """x W^T + b, W int8 with a scale for each output, x rounded to int8 with a scale for each token; the sums are exact."""

    def __init__(self, weight_OI: torch.Tensor, scale_O: torch.Tensor, bias_O: torch.Tensor | None) -> None:
        super().__init__()
        self.weight_IO, self.scale_O, self.bias_O = weight_OI.t(), scale_O, bias_O

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x_NI = x.flatten(0, -2)
        step_N1 = torch.linalg.vector_norm(x_NI, torch.inf, -1, keepdim=True).clamp(min=1e-9) / 127
        out_NO = torch._int_mm((x_NI / step_N1).round().to(torch.int8), self.weight_IO) * step_N1 * self.scale_O
        return (out_NO if self.bias_O is None else out_NO + self.bias_O).view(*x.shape[:-1], -1)


def load_int8(directory: str) -> PreTrainedModel:
    """The model in `directory`, its linear layers in dynamic int8 and the rest in float32."""
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory), dtype=torch.float32).eval()
    weights = load_file(f"{directory}/model_int8.safetensors")
    names = [key.removesuffix(".weight") for key, tensor in weights.items() if tensor.dtype == torch.int8]
    layers = {name: [weights.pop(f"{name}.{part}", None) for part in ("weight", "scale", "bias")] for name in names}
    model.load_state_dict(weights, strict=False)
    for name, parts in layers.items():
        model.set_submodule(name, Int8Linear(*parts))
    return model


LOADING = f"""\
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.initialization import no_init_weights


{inspect.getsource(Int8Linear)}

{inspect.getsource(load_int8)}

tokenizer, model = AutoTokenizer.from_pretrained("."), load_int8(".")"""
"""Python lines that load a directory in dynamic int8, with no Paretune installed."""


def save_int8(model: PreTrainedModel, directory: Path, dtype: torch.dtype) -> tuple[int, int]:
    """Write config and weights: linear layers in int8, the rest in `dtype`. Returns the bytes of the tensors, and how many
    weights became whole numbers."""
    weights = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    num_whole = 0
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        matrix_OI = module.weight.detach().float()
        matrix_OI = matrix_OI.t() if isinstance(module, Conv1D) else matrix_OI  # GPT-2 keeps its matrices transposed
        scale_O = matrix_OI.abs().amax(1).div(127).clamp(min=1e-12)
        weights[f"{name}.weight"] = (matrix_OI / scale_O[:, None]).round().to(torch.int8)
        weights[f"{name}.scale"] = scale_O
        weights |= {} if module.bias is None else {f"{name}.bias": module.bias.detach().float()}
        num_whole += matrix_OI.numel()
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    model.config.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)
    save_file(weights, directory / INT8)
    return sum(tensor.nbytes for tensor in weights.values()), num_whole


def prove_exact() -> None:
    """NeedsError where this machine has no products of whole numbers that hold the largest sums."""
    layer = Int8Linear(torch.full((64, 256), 127, dtype=torch.int8), torch.ones(64), None)
    product = layer(torch.tensor([[127.0], [-127.0]]).expand(2, 256))
    if not torch.equal(product, product.new_tensor([[256 * 127**2], [-256 * 127**2]]).expand(2, 64)):
        raise NeedsError("quantize.int8: this processor overflows in products of int8; take `quantize.gguf: {type: q8_0}`")

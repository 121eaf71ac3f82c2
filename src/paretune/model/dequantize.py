"""A quantized model as an ordinary directory of transformers: whole weights that can be trained, pruned and measured.

`python -m paretune.model.dequantize SOURCE DIRECTORY` reads a GGUF file or a directory with a `quantization_config`, and writes
config.json, which names what the weights were in, model.safetensors and the tokenizer. The last line on the standard error of a
failure says why.
"""

import contextlib
import itertools
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, GgufConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from paretune.model.load import load_pretrained
from paretune.pipeline.config_json import DEQUANTIZED_FROM

_FORMATS = {"ALL_F32": torch.float32, "MOSTLY_BF16": torch.bfloat16}
"""Other types go to float16, which keeps 11 digits of the 4 to 8 that they have, and of those of F16 all."""


def dequantize(source: Path, directory: Path) -> None:
    """Write the model at `source` into `directory`, in whole weights. Raises what reading it raises, and StageError where a
    weight is missing or no matrix can be made of it."""
    dtype = torch.float16
    if source.is_file():
        kind = _gguf_type(source)
        dtype = _FORMATS.get(kind, dtype)
        arguments: dict[str, Any] = {"gguf_file": source.name}
        config = AutoConfig.from_pretrained(source.parent, **arguments)
        if hasattr(config, "n_ctx"):  # of GPT-2, whose number of positions transformers reads into this field
            config.n_positions = config.n_ctx
        whole = {"config": config, "quantization_config": GgufConfig(dequantize=True)}
        model = load_pretrained(str(source.parent), torch.float32, **whole, **arguments)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **arguments)
        kind = f"GGUF {kind.removeprefix('MOSTLY_').removeprefix('ALL_')}"
    else:
        model = load_pretrained(str(source), torch.float32)
        kind, model = method_of(model), whole_matrices(model)
        tokenizer = AutoTokenizer.from_pretrained(source)
    if any(not weight.to(dtype).isfinite().all() for weight in model.parameters()):
        dtype = torch.float32  # beyond the range of float16
    model.to(dtype)
    model.is_quantized, model.hf_quantizer = False, None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    setattr(model.config, DEQUANTIZED_FROM, kind)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@torch.no_grad()
def whole_matrices(model: PreTrainedModel) -> PreTrainedModel:
    """The model that a quantized one stands for, in float32 and modules of its architecture's own.

    Where transformers cannot take a format back, a layer's matrix is what it gives for the unit vectors, so that none needs to
    be known: exact in those that round activations too, as a unit vector is its own rounding.
    """
    plain = type(model)(model.config.__class__.from_dict({**model.config.to_dict(), "quantization_config": None}))
    plain.float()
    with contextlib.suppress(NotImplementedError):
        model = model.dequantize(torch.float32)
    for name, module in plain.named_modules():
        source = model.get_submodule(name)
        if isinstance(module, nn.Linear | Conv1D) and type(source) is not type(module):
            device = next(itertools.chain(source.parameters(), source.buffers())).device
            width = module.nx if isinstance(module, Conv1D) else module.in_features
            matrix_IO = source(torch.eye(width, device=device)).float()
            if source.bias is not None:
                module.bias.copy_(source.bias)
                matrix_IO -= source.bias.float()
            module.weight.copy_(matrix_IO if isinstance(module, Conv1D) else matrix_IO.t())
        else:
            for key, weight in itertools.chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
                weight.copy_(getattr(source, key))
    return plain


def method_of(model: PreTrainedModel) -> str:
    """How a model was quantized, in the words of its config: `bitsandbytes nf4`, `gptq 4 bits`."""
    config = model.config.quantization_config
    fields = config if isinstance(config, dict) else config.to_dict()
    bits = fields.get("bnb_4bit_quant_type") if fields.get("load_in_4bit") else f"{fields.get('bits') or 8} bits"
    method = fields["quant_method"]
    return f"{getattr(method, 'value', method)} {bits}"


def _gguf_type(file: Path) -> str:
    from gguf import GGUFReader, LlamaFileType

    field = GGUFReader(file).get_field("general.file_type")
    return LlamaFileType(int(field.contents())).name if field else "of no named type"


if __name__ == "__main__":
    dequantize(Path(sys.argv[1]), Path(sys.argv[2]))

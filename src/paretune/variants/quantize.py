"""Weights of 8 and 4 bits that PyTorch runs: the stage bodies, each leaving a directory that is measured as it ships."""

from typing import Any

import torch

from paretune.errors import StageError
from paretune.model.adapters import count_parameters
from paretune.model.bits import save_nf4
from paretune.model.forward import packed_model
from paretune.model.int8 import load_int8, prove_exact, save_int8
from paretune.model.load import cast, load_model
from paretune.model.twin import REFUSALS
from paretune.pipeline.stage import StageContext
from paretune.pipeline.stage_configs import MethodConfig
from paretune.study.methods import QuantizeInt8, QuantizeNf4


def quantize_int8(context: StageContext) -> dict[str, Any]:
    """Stage body: `model_int8.safetensors`, beside it config and tokenizer. Raises NeedsError where the machine cannot run it.

    Of the record: `parameters` of the model, `quantized_parameters` those that are whole numbers now (a head beside a tied
    embedding counts besides), and `written_bytes` of all tensors.
    """
    config = context.parse(MethodConfig[QuantizeInt8])
    prove_exact()
    loaded = load_model(context, torch.float32)
    ships = getattr(torch, config.ships or "float32")
    cast(loaded.model, ships)
    written, num_whole = save_int8(loaded.model, context.draft, ships)
    loaded.tokenizer.hf.save_pretrained(context.draft)
    try:
        packed_model(load_int8(str(context.draft)))
    except REFUSALS as error:
        raise StageError(
            f"{type(loaded.model).__name__} does not run with int8 in its linear layers ({type(error).__name__}: {error}); "
            "take `quantize.gguf`"
        ) from None
    return {"parameters": count_parameters(loaded.model)[0], "quantized_parameters": num_whole, "written_bytes": written}


def quantize_nf4(context: StageContext) -> dict[str, Any]:
    """Stage body: a model directory that transformers loads where bitsandbytes is installed; its record as that of int8."""
    config = context.parse(MethodConfig[QuantizeNf4])
    loaded = load_model(context, torch.float32)
    cast(loaded.model, getattr(torch, config.ships or "float32"))
    written, num_packed = save_nf4(loaded.model, context.draft)
    loaded.tokenizer.hf.save_pretrained(context.draft)
    return {"parameters": count_parameters(loaded.model)[0], "quantized_parameters": num_packed, "written_bytes": written}

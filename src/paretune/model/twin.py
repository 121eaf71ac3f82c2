"""A small model of the same architecture, on which what depends on the architecture alone is proven.

Whether branches of a tree see each other, or blocks can be called apart, is a matter of code and config, not of weights. On
the loaded weights it drowns in rounding: thirty real blocks amplify that of float32 to 1.5e-4 of the largest state, and that of
bfloat16 to a fifth of it. Random weights that keep the size of their input, a few blocks and float64 leave a leak at 1e-2 or
more, and nothing else above 1e-6.
"""

import copy
import re

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

REFUSALS = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ZeroDivisionError, StrictDataclassError)
"""What the classes of transformers raise on a config or on weights that do not fit them."""

_WIDTH = 32
_WORDS = 64
_WIDE = re.compile(r"(intermediate_size|ffn_dim|ffn_hidden_size|n_inner)$")
"""Fields that no other depends on. Heads and the width of states stay: attention is what is to be tried."""


@torch.no_grad()
def small_twin(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the class and config of `model`, in evaluation mode, with 64 words, narrow MLPs, the first blocks up to one of
    each kind, and random weights: float64 on a CPU, float32 elsewhere, where float64 has no kernels. Draws from no stream of
    random numbers but its own. `model` itself where the class does not take such a config.
    """
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    text = config.get_text_config(decoder=True)
    num_blocks = text.num_hidden_layers
    lists = {name: each for name, each in vars(text).items() if isinstance(each, list | tuple) and len(each) == num_blocks}
    kinds = [str(kind) for kind in zip(*lists.values(), strict=True)]
    # From the first block on: what says the same by an interval or by indices then holds as it is.
    count = min(num_blocks, max(2, *(kinds.index(kind) + 1 for kind in kinds)) if kinds else 2)
    text.num_hidden_layers, text.vocab_size, text.pad_token_id, config.pad_token_id = count, _WORDS, None, None
    for name, value in [*vars(text).items()]:
        if name in lists:
            setattr(text, name, type(value)(value[:count]))
        elif _WIDE.search(name) and (value is None or (isinstance(value, int) and value > _WIDTH)):
            setattr(text, name, _WIDTH)
    config._experts_implementation = text._experts_implementation = "eager"  # others have no kernel for float64
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.random.fork_rng(devices=[]):
            twin = type(model)(config)
    except REFUSALS:
        return model
    twin.to(torch.float64 if model.device.type == "cpu" else torch.float32)
    for weight in twin.parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.ndim >= 2:
            weight.copy_(noise * min(weight.shape[-2:]) ** -0.5)
        else:
            weight.add_(0.1 * noise)
    return twin.to(model.device).eval()

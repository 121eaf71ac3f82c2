"""How many tokens a pass of training may take within a budget of bytes.

What is kept for the backward pass is counted once, on a short text; it grows in line with the tokens.
"""

import resource
from collections.abc import Iterable

import numpy as np
import psutil
import torch

from paretune.data.trees import ROUND_TO, Example, forward_batches
from paretune.model.attention import attending
from paretune.model.forward import PackedModel, hidden_states

_SHARE = 0.8
"""Of what is available: the rest is left to others."""
_TRANSIENT = 1.5
"""What a pass takes beside what it keeps, as a factor: gradients on their way, and scores of one block of attention."""
_STATE = 12
"""Bytes of a trained weight: gradient and two moments."""
_PROBE_TOKENS = 128
"""Of the text that is counted on."""


def available_bytes(device: torch.device, workers: int) -> int:
    """What one of `workers` may take of the device's free memory."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(_SHARE * free / workers)


def peak_bytes(device: str) -> int:
    """The most that this process has held: allocated of a GPU, else resident."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fitting_tokens(packed: PackedModel, trained: Iterable[torch.nn.Parameter], budget: int, most: int) -> int:
    """Tokens of a training pass that stay within `budget` bytes, at most `most`; a multiple of 64, and at least 64."""
    room = budget - _STATE * sum(p.numel() for p in trained)
    fitting = int(room / (_TRANSIENT * kept_bytes(packed))) if room > 0 else 0
    return most if fitting >= most else max(ROUND_TO, fitting // ROUND_TO * ROUND_TO)


def kept_bytes(packed: PackedModel) -> float:
    """Bytes that a token of a training pass keeps for the backward pass, weights not counted."""
    weights = {p.untyped_storage().data_ptr() for p in packed.model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    vocabulary = packed.model.config.get_text_config().vocab_size
    text = Example(np.arange(_PROBE_TOKENS, dtype=np.int32) % vocabulary)
    ((_, batch),) = forward_batches([text], forward_tokens=_PROBE_TOKENS, pack=packed.isolates)
    with attending(packed.model, batch), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        # Held until all is counted: storage that is given back may be given out again, at the same address.
        states = hidden_states(packed.model, batch.to(packed.model.device))
    total = sum(kept.values())
    del states
    return max(1.0, total / _PROBE_TOKENS)

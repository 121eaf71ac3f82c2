"""How many tokens a pass of training may take within a budget of bytes.

What is kept for the backward pass is counted once, on a short text; it grows in line with the tokens.
"""

import ctypes
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
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt`, by glibc's malloc.h."""
_LARGEST_PART = 32 * 2**20
"""The largest threshold that glibc takes: what is larger than that is mapped, and given back, by itself."""
_MADV_HUGEPAGE = 14
_HUGE_PAGES = 4 * 2**30
"""Addresses that are set aside for huge pages; no memory before something is written there."""


def keep_freed_memory() -> None:
    """Keep this process's freed memory for its next allocations; does nothing where the allocator is not glibc's.

    Tensors of a few megabytes are made and freed all the time. glibc gives them back to the system, which clears each page
    anew: 5 to 8 % of a training step.
    """
    try:
        libc = ctypes.CDLL(None)
        set_option = libc.mallopt
    except (AttributeError, OSError, TypeError):
        return
    set_option(_MMAP_THRESHOLD, _LARGEST_PART)
    set_option(_TRIM_THRESHOLD, -1)  # never
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:  # addresses may be short otherwise
        _use_huge_pages(libc)


def _use_huge_pages(libc: ctypes.CDLL) -> None:
    """Let the heap grow in pages of 2 MB where the system has them: the first touch of a page takes time, large or small."""
    libc.malloc.argtypes, libc.malloc.restype, libc.free.argtypes = [ctypes.c_size_t], ctypes.c_void_p, [ctypes.c_void_p]
    libc.sbrk.argtypes, libc.sbrk.restype = [ctypes.c_ssize_t], ctypes.c_void_p
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    start = libc.sbrk(0)
    parts = [libc.malloc(_LARGEST_PART // 2) for _ in range(_HUGE_PAGES // (_LARGEST_PART // 2))]
    aligned = -(-start // 2**21) * 2**21
    libc.madvise(aligned, max(0, libc.sbrk(0) - aligned), _MADV_HUGEPAGE)
    for part in parts:
        libc.free(part)


def available_bytes(device: torch.device, workers: int) -> int:
    """What one of `workers` may take of the device's free memory."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(_SHARE * free / workers)


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
    found = sum(kept.values())
    del states
    return max(1.0, found / _PROBE_TOKENS)

"""Which number format this machine multiplies fastest: measured once, written into the lock.

`python -m paretune.model.precision cpu` prints GFLOP/s of a matrix product in each format as JSON: on a CPU those of one thread
by its processor time, which other work on the machine does not touch.
"""

import json
import sys
import time

import torch

_SIZE = 1024
_SECONDS = 0.15


def matmul_gflops(dtype: torch.dtype, device: torch.device) -> float:
    """Best rate of a 1024 x 1024 x 1024 product, on a CPU by this thread's clock; 0 where the format is not supported."""
    clock = time.perf_counter if device.type == "cuda" else time.thread_time
    try:
        left, right = (torch.randn(_SIZE, _SIZE, device=device).to(dtype) for _ in range(2))
        best = float("inf")
        end = clock() + _SECONDS
        while clock() < end:
            start = clock()
            left @ right
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, clock() - start)
    except RuntimeError:
        return 0.0
    return round(2 * _SIZE**3 / best / 1e9, 1)


def main(device: str) -> None:
    torch.set_num_threads(1)
    names = ("float32", "bfloat16", "float16") if device == "cuda" else ("float32", "bfloat16")
    rates = {name: matmul_gflops(getattr(torch, name), torch.device(device)) for name in names}
    if device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        rates["bfloat16"] = 0.0
    sys.stdout.write(json.dumps(rates))


if __name__ == "__main__":
    main(sys.argv[1])

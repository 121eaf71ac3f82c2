"""What this machine is, found without importing torch: the fingerprint of cost stages, and which precision it computes fast."""

import functools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from paretune.errors import NeedsError


@functools.cache
def fingerprint() -> dict[str, Any]:
    """Processor, cores, memory (GiB) and accelerator; times measured under different fingerprints are not compared."""
    return {
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "accelerator": _nvidia_model(),
    }


def device_kind(asked: str, locked: str | None) -> str:
    """`cpu` or `cuda`: as asked, else as the lock says, else what there is; NeedsError for a GPU that is not there."""
    kind = asked.split(":")[0] if asked != "auto" else locked or ("cuda" if _nvidia_model() else "cpu")
    if kind not in ("cpu", "cuda"):
        raise NeedsError(f"--device: `{asked}` is no device; known: `auto`, `cpu`, `cuda`")
    if kind == "cuda" and _nvidia_model() is None:
        origin = "--device" if asked != "auto" else "the lock"
        raise NeedsError(f"{origin} names the device `cuda`, and this machine has no NVIDIA GPU; pass `--device cpu`")
    return kind


def measure_precision(device: str) -> dict[str, float]:
    """Matrix products of this machine in GFLOP/s by number format; measured in a process of its own, which imports torch."""
    command = [sys.executable, "-m", "paretune.model.precision", device]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise NeedsError(f"torch does not run here: {finished.stderr.strip().splitlines()[-1]}")
    rates: Mapping[str, float] = json.loads(finished.stdout)
    return dict(rates)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@functools.cache
def _nvidia_model() -> str | None:
    for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("Model:"):
                return line.split(":", 1)[1].strip()
    return None

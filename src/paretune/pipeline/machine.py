"""What this machine is, found without importing torch: the fingerprint of cost stages, and which precision it computes fast."""

import functools
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from paretune.errors import NeedsError, SpecError

_DEVICES = ("cpu", "cuda")
_DRIVER = Path("/proc/driver/nvidia/gpus")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_FASTER = 1.3
"""bfloat16 is chosen where its matrix products are so many times faster; below that, rounding buys nothing."""


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


def core_quota() -> float:
    """Cores that a container may use in the mean, infinite without a limit; torch counts those of the whole machine."""
    try:
        microseconds, period = _QUOTA.read_text(encoding="ascii").split()
    except (OSError, ValueError):  # no control groups of version 2
        return math.inf
    return math.inf if microseconds == "max" else int(microseconds) / int(period)


def device_kind(asked: str, locked: str | None) -> str:
    """`cpu` or `cuda`: as asked, else as the lock says, else what there is; NeedsError for a GPU that is not there."""
    if asked not in ("auto", *_DEVICES):
        raise NeedsError(
            f"--device: `{asked}` is no device; known: `auto`, `cpu`, `cuda` (CUDA_VISIBLE_DEVICES chooses among several GPUs)"
        )
    kind = asked if asked != "auto" else locked or ("cuda" if _nvidia_model() else "cpu")
    if kind not in _DEVICES:
        raise NeedsError(f"the lock names the device `{kind}`, which is unknown; pass `--device cpu` or `--device cuda`")
    if kind == "cuda" and _nvidia_model() is None:
        origin = "--device" if asked != "auto" else "the lock"
        raise NeedsError(f"{origin} names the device `cuda`, and this machine has no NVIDIA GPU; pass `--device cpu`")
    return kind


_UNITS = {f"{unit}{binary}": base**n for n, unit in enumerate(" KMGT") for binary, base in (("", 1000), ("i", 1024))}


def memory_limit(asked: str | None, device: str) -> int | None:
    """Bytes of `6GB` (of 1000 MB, as `6G`), `6GiB` (of 1024), `6000000000` or `50%` (of the memory of `device`); SpecError for
    anything else."""
    if asked is None:
        return None
    match = re.fullmatch(r"(\d+(?:[.,]\d+)?|[.,]\d+)\s*(?:([kmgt]i?)?b?|(%))", asked.strip(), re.IGNORECASE)
    number = float(match[1].replace(",", ".")) if match else 0.0
    if match is None or not number or (match[3] and number > 100):
        raise SpecError(f"--memory: `{asked}` is no amount of memory; write `6GB`, `6GiB`, a number of bytes, or `50%`")
    if match[3]:
        whole = total_memory(device) if device == "cuda" else psutil.virtual_memory().total
        return int(whole * number / 100)
    unit = (match[2] or " ").capitalize()
    limit = int(number * _UNITS[unit])
    if limit < 2**20:
        raise SpecError(f"--memory: `{asked}` is {limit:,} bytes, in which nothing runs; write `6GB` or `50%`")
    return limit


def total_memory(device: str) -> int:
    """Bytes of memory of the device, as its driver tells; of the machine with its swap space where that is not known."""
    command = shutil.which("nvidia-smi") if device == "cuda" else None
    if command is not None:
        query = [command, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        lines = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
        if lines and lines[0].isdigit():
            return int(lines[0]) * 2**20
    return int(psutil.virtual_memory().total + psutil.swap_memory().total)


def has(need: str, device: str) -> bool:
    """Whether what a method or evaluation needs is here: `cuda`, or a module by its name."""
    if need == "cuda":
        return device == "cuda"
    try:
        return find_spec(need) is not None
    except ModuleNotFoundError:  # of the package that a dotted name stands in
        return False


def way_to(need: str, device: str) -> str:
    """A need in words, with how to meet it."""
    if need == "cuda":
        return f"an NVIDIA GPU, and this study runs on `{device}`; run it on a machine with one, or pass `--device cuda`"
    package = need.partition(".")[0]
    return f"the package `{package}`, which is not installed: `pip install {_extra_with(package) or package}`"


def measure_precision(device: str) -> dict[str, float]:
    """Matrix products of this machine in GFLOP/s by number format; measured in a process of its own, which imports torch."""
    command = [sys.executable, "-m", "paretune.model.precision", device]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        reason = (finished.stderr.strip().splitlines() or [f"exit code {finished.returncode}"])[-1]
        way_out = "; pass `--device cpu`, or install torch with CUDA" if device == "cuda" else ""
        raise NeedsError(f"torch does not run on `{device}` here: {reason}{way_out}")
    rates: Mapping[str, float] = json.loads(finished.stdout)
    return dict(rates)


def faster_format(rates: Mapping[str, float]) -> str:
    """The number format to train in, by the rates of `measure_precision`."""
    # bfloat16 first, as it needs no scaling of the loss; float16 is measured on GPUs only, of which old ones have nothing else.
    return next((name for name in ("bfloat16", "float16") if rates.get(name, 0) >= _FASTER * rates["float32"]), "float32")


def _extra_with(package: str) -> str | None:
    """The extra of this project that brings a package, as pip takes it."""
    for requirement in metadata.requires("paretune") or []:
        match = re.match(r"([\w.-]+).*extra == ['\"](\w+)['\"]", requirement)
        if match and match[1].replace("-", "_").lower() == package.lower():
            return f"'paretune[{match[2]}]'"
    return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@functools.cache
def _nvidia_model() -> str | None:
    for information in sorted(_DRIVER.glob("*/information")):
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("Model:"):
                return line.split(":", 1)[1].strip()
    # Windows' subsystem for Linux has no such files, but the command.
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    listed = subprocess.run([command, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=False)
    names = listed.stdout.strip().splitlines()
    return names[0] if names and listed.returncode == 0 else None

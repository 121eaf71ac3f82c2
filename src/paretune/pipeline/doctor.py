"""What this machine can run, in words; asks nothing of the network."""

import os
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import constants, get_token

from paretune.errors import NeedsError
from paretune.pipeline.machine import device_kind, faster_format, fingerprint, measure_precision
from paretune.study.registry import Evaluation, Method, evaluations, methods

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets")


def examine(folder: Path) -> tuple[str, bool]:
    """Lines about packages, machine, speed, disk and hub, and whether a study can run here."""
    lines, sound = [], True
    for line, good in [*_packages(), *_machine(), *_needs(), *_places(folder)]:
        lines.append(f"{'ok  ' if good else 'MISSING'} {line}" if not good else f"ok      {line}")
        sound = sound and good
    return "\n".join(lines), sound


def _packages() -> Iterator[tuple[str, bool]]:
    for package in _PACKAGES:
        try:
            yield f"{package} {version(package)}", True
        except PackageNotFoundError:
            yield f"{package}; install paretune again: pip install paretune", False


def _machine() -> Iterator[tuple[str, bool]]:
    machine = fingerprint()
    yield f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB of memory", True
    yield f"accelerator: {machine['accelerator'] or 'none (everything runs on the CPU)'}", True
    device = device_kind("auto", None)
    try:
        rates = measure_precision(device)
    except NeedsError as error:
        yield str(error), False
        return
    faster = rates["bfloat16"] / rates["float32"]
    yield f"matrix products on {device}: " + ", ".join(f"{rate:,.0f} GFLOP/s in {name}" for name, rate in rates.items()), True
    yield (
        f"training would compute in {faster_format(rates)} (bfloat16 is {faster:.1f} times as fast)",
        True,
    )


def _needs() -> Iterator[tuple[str, bool]]:
    """Methods and evaluations whose needs are not met are named, and no fault: a study may do without them."""
    rows: dict[str, Method | Evaluation] = {**methods(), **evaluations()}
    for name, row in sorted(rows.items()):
        missing = [need for need in row.needs if not (fingerprint()["accelerator"] if need == "cuda" else find_spec(need))]
        if missing:
            yield f"without {', '.join(missing)}, a study cannot use `{name}`", True


def _places(folder: Path) -> Iterator[tuple[str, bool]]:
    free = shutil.disk_usage(folder).free
    writable = os.access(folder, os.W_OK)
    yield f"folder {folder.resolve()}: {free / 1e9:.1f} GB free{'' if writable else ', but not writable'}", writable
    offline = ", offline mode" if constants.HF_HUB_OFFLINE else ""
    token = "with" if get_token() else "without"
    yield f"hub: {token} a token, cache {constants.HF_HUB_CACHE}{offline}", True

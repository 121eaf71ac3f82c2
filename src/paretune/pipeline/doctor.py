"""What this machine can run, in words; asks nothing of the network."""

import os
import shutil
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
    lines: list[tuple[str, bool]] = []
    for package in _PACKAGES:
        try:
            lines.append((f"{package} {version(package)}", True))
        except PackageNotFoundError:
            lines.append((f"{package}; install paretune again: pip install paretune", False))
    machine = fingerprint()
    lines.append((f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB of memory", True))
    lines.append((f"accelerator: {machine['accelerator'] or 'none (everything runs on the CPU)'}", True))
    device = device_kind("auto", None)
    try:
        rates = measure_precision(device)
        products = ", ".join(f"{rate:,.0f} GFLOP/s in {name}" for name, rate in rates.items())
        lines.append((f"matrix products on {device}: {products}", True))
        faster = f"(bfloat16 is {rates['bfloat16'] / rates['float32']:.1f} times as fast)"
        lines.append((f"training would compute in {faster_format(rates)} {faster}", True))
    except NeedsError as error:
        lines.append((str(error), False))
    rows: dict[str, Method | Evaluation] = {**methods(), **evaluations()}
    for name, row in sorted(rows.items()):
        missing = [need for need in row.needs if not (machine["accelerator"] if need == "cuda" else find_spec(need))]
        if missing:  # no fault: a study may do without them
            lines.append((f"without {', '.join(missing)}, a study cannot use `{name}`", True))
    free, writable = shutil.disk_usage(folder).free, os.access(folder, os.W_OK)
    but = "" if writable else ", but not writable"
    lines.append((f"folder {folder.resolve()}: {free / 1e9:.1f} GB free{but}", writable))
    offline = ", offline mode" if constants.HF_HUB_OFFLINE else ""
    token = "with" if get_token() else "without"
    lines.append((f"hub: {token} a token, cache {constants.HF_HUB_CACHE}{offline}", True))
    text = "\n".join(f"{'ok     ' if good else 'MISSING'} {line}" for line, good in lines)
    return text, all(good for _, good in lines)

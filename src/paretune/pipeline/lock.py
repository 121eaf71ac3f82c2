"""The lock: everything outside the study file that an answer depends on, resolved and written beside it.

Digests of local files, commits of hub repositories, device kind and number formats. A changed file gives another digest and so
another key; a hub commit, the device and the precision stay as they are until the lock is removed or the study asks otherwise.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from paretune.errors import NeedsError, StoreError
from paretune.pipeline import hub, machine
from paretune.spec.data import Source
from paretune.spec.study import Base, Study

SCHEMA = 1
_MODEL_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "*.py")
_TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.jinja")
_FASTER = 1.3
"""bfloat16 is chosen where its matrix products are so many times faster; below that, rounding buys nothing."""


@dataclass(frozen=True)
class LockedBase:
    """A base as resolved: `resource` is a directory or `hub:NAME@COMMIT`, `config` its config.json."""

    resource: str
    digest: str
    tokenizer_digest: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Lock:
    device: str
    compute: str
    """Number format of matrix products in training."""
    evaluate: str
    """Number format of everything that is measured."""
    matmul_gflops: Mapping[str, float]
    """By number format, as measured on the machine that the lock was made on."""
    bases: Mapping[str, LockedBase]
    files: Mapping[str, str]
    """SHA-256 by path, as the study writes the path."""
    hub_datasets: Mapping[str, str]
    """Commit by name."""
    seen: Mapping[str, Any] = field(default_factory=dict)
    """Size, time and digest of files, so that a big one is not read again while it has not been touched."""


def lock_file(study_file: Path) -> Path:
    return study_file.with_suffix(".lock")


def resolve_lock(study: Study, study_file: Path, device: str = "auto") -> Lock:
    """The lock of a study, from the one that is there and from what is outside now.

    Raises NeedsError for what cannot be found (a file, a hub repository without network), StoreError for a damaged lock.
    """
    old = _read(lock_file(study_file))
    folder = study_file.parent
    digests = _Digests(folder, old.get("seen", {}))
    kind = machine.device_kind(device, old.get("device"))
    compute, rates = _precision(study, old, kind)
    commits: Mapping[str, str] = {name: base["digest"] for name, base in old.get("bases", {}).items()}
    return Lock(
        device=kind,
        compute=compute,
        evaluate=study.precision.evaluate,
        matmul_gflops=rates,
        bases={name: _base(name, base, folder, digests, commits.get(name)) for name, base in study.bases.items()},
        files={path: digests.of_file(path, where) for path, where in _files(study)},
        hub_datasets={
            f"{source.hub}@{source.revision or 'main'}": hub.dataset_commit(
                source.hub, source.revision, old.get("hub_datasets", {}).get(f"{source.hub}@{source.revision or 'main'}")
            )
            for _, source in sources(study)
            if source.hub
        },
        seen=digests.seen,
    )


def write_lock(lock: Lock, study_file: Path) -> None:
    """Write the lock beside the study, at once or not at all; StoreError if the folder cannot be written."""
    target = lock_file(study_file)
    content = json.dumps({"schema": SCHEMA, **asdict(lock)}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if target.exists() and target.read_text(encoding="utf-8") == content:
        return
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.write_text(content, encoding="utf-8")
        draft.replace(target)
    except OSError as error:
        raise StoreError(f"{target}: cannot be written ({error.strerror}); the study's folder must be writable") from None


def sources(study: Study) -> list[tuple[str, Source]]:
    """Every source of a study with the place where it stands in the file."""
    found = []
    for name, dataset in study.data.items():
        if isinstance(dataset.source, Source):
            found.append((f"data.{name}.source", dataset.source))
        else:
            found += [(f"data.{name}.source.{split}", source) for split, source in dataset.source]
    return found


def _files(study: Study) -> list[tuple[str, str]]:
    files = [(source.path, f"{where}.path") for where, source in sources(study) if source.path]
    for name, use in study.evaluate.items():
        path = use.config.model_dump().get("path")
        if path:
            files.append((path, f"evaluate.{name}.path"))
    return files


def _precision(study: Study, old: Mapping[str, Any], device: str) -> tuple[str, dict[str, float]]:
    if old.get("device") == device and study.precision.compute in ("auto", old["compute"]):
        return old["compute"], dict(old["matmul_gflops"])
    rates = machine.measure_precision(device)
    fast = rates["bfloat16"] >= _FASTER * rates["float32"]
    chosen = "bfloat16" if fast else "float32"
    return (chosen if study.precision.compute == "auto" else study.precision.compute), rates


def _base(name: str, base: Base, folder: Path, digests: "_Digests", locked_digest: str | None) -> LockedBase:
    if base.hub:
        return _hub_base(base, locked_digest)
    directory = hub.builtin_base(base.builtin) if base.builtin else folder / str(base.path)
    where = f"bases.{name}.{'builtin' if base.builtin else 'path'}"
    if not directory.is_dir():
        raise NeedsError(f"{where}: no directory `{directory}`; name one that holds config.json and model.safetensors")
    config = hub.read_config(directory / "config.json", where)
    if not list(directory.glob("*.safetensors")):
        raise NeedsError(f"{where}: `{directory}` holds no .safetensors file (other formats are not read: they can run code)")
    return LockedBase(
        resource=str(directory.resolve()),
        digest=digests.of_directory(directory, _MODEL_FILES + _TOKENIZER_FILES),
        tokenizer_digest=digests.of_directory(directory, _TOKENIZER_FILES),
        config=config,
    )


def _hub_base(base: Base, locked_digest: str | None) -> LockedBase:
    pinned = None
    if locked_digest and locked_digest.startswith(f"hub:{base.hub}@") and base.revision is None:
        pinned = locked_digest.rpartition("@")[2]
    commit, config = hub.model_commit_and_config(str(base.hub), base.revision, pinned)
    resource = f"hub:{base.hub}@{commit}"
    return LockedBase(resource=resource, digest=resource, tokenizer_digest=resource, config=config)


class _Digests:
    """SHA-256 of files; a file of the same size and time as last time is not read again."""

    def __init__(self, folder: Path, seen: Mapping[str, Any]) -> None:
        self.folder = folder
        self.known = seen
        self.seen: dict[str, Any] = {}

    def of_file(self, path: str, where: str) -> str:
        file = self.folder / path
        try:
            return self._digest(file)
        except FileNotFoundError:
            raise NeedsError(f"{where}: no file `{path}` (looked in `{self.folder.resolve()}`)") from None
        except IsADirectoryError:
            raise NeedsError(f"{where}: `{path}` is a directory; name a file") from None
        except OSError as error:
            raise NeedsError(f"{where}: `{path}` cannot be read ({error.strerror})") from None

    def of_directory(self, directory: Path, patterns: tuple[str, ...]) -> str:
        files = sorted({file for pattern in patterns for file in directory.glob(pattern) if file.is_file()})
        parts = [[file.name, self._digest(file)] for file in files]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _digest(self, file: Path) -> str:
        status = file.stat()
        name, stamp = os.path.relpath(file, self.folder), [status.st_size, status.st_mtime_ns]
        old = self.known.get(name)
        if old is None or old["stamp"] != stamp:
            with file.open("rb") as stream:
                old = {"stamp": stamp, "sha256": hashlib.file_digest(stream, _sha256).hexdigest()}
        self.seen[name] = old
        return str(old["sha256"])


_sha256: Callable[[], Any] = hashlib.sha256


def _read(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        schema = content.pop("schema")
    except (ValueError, KeyError, AttributeError) as error:
        raise StoreError(f"{file}: not a lock ({error}); remove it, and it is made again") from None
    if schema > SCHEMA:
        raise StoreError(f"{file}: written by a newer Paretune; update Paretune, or remove the lock")
    return content

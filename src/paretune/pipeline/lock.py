"""The lock: everything outside the study file that an answer depends on, resolved and written beside it.

Digests of local files, commits of hub repositories, device kind and number formats. A changed file gives another digest and so
another key; a hub commit, the device and the precision stay as they are until the lock is removed or the study asks otherwise.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from paretune.errors import NeedsError, StoreError
from paretune.pipeline import hub, machine
from paretune.study.base import suggestion
from paretune.study.data import Source
from paretune.study.evaluations import LmEval, Tasks
from paretune.study.study import Base, Study

SCHEMA = 1
_MODEL_FILES = (*hub.CONFIG_FILES, *hub.WEIGHT_FILES, *hub.TOKENIZER_FILES)
_TOKENIZER_FILES = ("config.json", *hub.TOKENIZER_FILES)
"""config.json names the class of a tokenizer that does not name it itself."""

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class LockedBase:
    """A base as resolved: `resource` is a directory or `hub:NAME@COMMIT`, `config` its config.json."""

    resource: str
    digest: str
    tokenizer_digest: str
    config: Mapping[str, Any]


def num_positions(base: LockedBase) -> int | None:
    """Longest sequence a base reaches, by its config; None where it names no limit."""
    limits = (base.config.get(name) for name in ("max_position_embeddings", "n_positions"))
    return next((int(limit) for limit in limits if limit), None)


def count_blocks(config: Mapping[str, Any]) -> int | None:
    """Transformer blocks of a model, by its config."""
    config = config.get("text_config", config)
    found = (config.get(name) for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"))
    return next((count for count in found if isinstance(count, int)), None)


@dataclass(frozen=True)
class Lock:
    device: str
    compute: str
    """Number format of matrix products in training."""
    evaluate: str
    """Number format of everything that is measured."""
    matmul_gflops: Mapping[str, float]
    """By number format, as measured on the machine that the lock was made on; empty where nothing depends on it."""
    bases: Mapping[str, LockedBase]
    files: Mapping[str, str]
    """SHA-256 by path, as the study writes the path."""
    hub_commits: Mapping[str, str]
    """By `commit_name`."""
    encoder: LockedBase | None = None
    """Of the evaluation of tasks, where it has one."""
    classifier: LockedBase | None = None
    """Of unsafe text, where the study names one."""
    seen: Mapping[str, Any] = field(default_factory=dict)
    """Stamp and digest of files, so that a big one is not read again while it has not been touched."""

    def commit(self, kind: str, name: str, revision: str | None) -> str:
        """The pinned commit of a hub repository."""
        return self.hub_commits[commit_name(kind, name, revision)]


class _Seen(BaseModel):
    stamp: list[int]
    sha256: str


class _Written(BaseModel):
    """What is read back of a lock; the rest is there for people, and for the record."""

    device: str | None = None
    matmul_gflops: dict[str, float] = {}
    hub_commits: dict[str, str] = {}
    seen: dict[str, _Seen] = {}


def lock_file(study_file: Path) -> Path:
    return study_file.with_suffix(".lock")


def commit_name(kind: str, name: str, revision: str | None) -> str:
    """How a lock names a hub repository: with the revision that the study asks for, so that another one is resolved anew."""
    return f"{kind}:{name}@{revision or 'main'}"


def resolve_lock(study: Study, study_file: Path, device: str = "auto") -> Lock:
    """The lock of a study, from the one that is there and from what is outside now.

    Raises NeedsError for what cannot be found (a file, a hub repository without network), StoreError for a damaged lock.
    """
    old = _read(lock_file(study_file))
    digests = _Digests(study_file.parent, old.seen)
    kind = machine.device_kind(device, old.device)
    compute, rates = _precision(study, old, kind)
    commits = dict(_commits(study, old.hub_commits))
    return Lock(
        device=kind,
        compute=compute,
        evaluate=study.precision.evaluate,
        matmul_gflops=rates,
        bases={name: _base(f"bases.{name}", base, digests, commits) for name, base in study.bases.items()},
        encoder=next((_base(where, base, digests, commits, writes=False) for where, base in _encoders(study)), None),
        classifier=next((_base(where, base, digests, commits, writes=False) for where, base in _classifiers(study)), None),
        files={path: digests.of_file(path, where) for path, where in _files(study)}
        | {path: digests.of_folder(path, where) for path, where in _folders(study)},
        hub_commits=commits,
        seen={name: seen.model_dump() for name, seen in digests.seen.items()},
    )


def write_lock(lock: Lock, study_file: Path) -> None:
    """Write the lock beside the study, at once or not at all; StoreError if the folder cannot be written."""
    target = lock_file(study_file)
    fields = asdict(lock)
    for base in [*fields["bases"].values(), *filter(None, [fields["encoder"], fields["classifier"]])]:
        del base["resource"]  # a path of this machine, which says nothing to another
    content = json.dumps({"schema": SCHEMA, **fields}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        if target.exists() and target.read_text(encoding="utf-8") == content:
            return
        draft.write_text(content, encoding="utf-8")
        draft.replace(target)
    except OSError as error:
        raise StoreError(f"{target}: cannot be written ({error.strerror}); the study's folder must be writable") from None
    finally:
        draft.unlink(missing_ok=True)


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
        fields = use.config.model_dump()
        if fields.get("path"):
            files.append((fields["path"], f"evaluate.{name}.path"))
        files += [(path, f"evaluate.{name}.files[{index}]") for index, path in enumerate(fields.get("files", ()))]
    if study.safety is not None and study.safety.words is not None:
        files.append((study.safety.words, "safety.words"))
    return files


def _folders(study: Study) -> list[tuple[str, str]]:
    """The folders with tasks of the harness, with the place where each stands in the file."""
    found = [(name, use.config.include_path) for name, use in study.evaluate.items() if isinstance(use.config, LmEval)]
    return [(path, f"evaluate.{name}.include_path") for name, path in found if path]


def _encoders(study: Study) -> list[tuple[str, Base]]:
    """The encoder that answers are scored with, if there is one, with the place where it stands in the file."""
    asked = [(name, use.config.encoder) for name, use in study.evaluate.items() if isinstance(use.config, Tasks)]
    return [
        (f"evaluate.{name}.encoder", Base(path=encoder.path, hub=encoder.hub, revision=encoder.revision))
        for name, encoder in asked
        if encoder is not None
    ]


def _classifiers(study: Study) -> list[tuple[str, Base]]:
    """The classifier of unsafe text, if there is one, with the place where it stands in the file."""
    found = study.safety.classifier if study.safety is not None else None
    return [] if found is None else [("safety.classifier", Base(path=found.path, hub=found.hub, revision=found.revision))]


def _commits(study: Study, pinned: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for where, base in [
        *((f"bases.{name}", base) for name, base in study.bases.items()),
        *_encoders(study),
        *_classifiers(study),
    ]:
        if base.hub:
            name = commit_name(hub.MODEL, base.hub, base.revision)
            # Asked for although it is pinned: config.json is needed, and without it and a network this says so at once.
            wanted = pinned.get(name, base.revision)
            yield name, hub.resolve_commit(hub.MODEL, base.hub, wanted, f"{where}.hub")
    for where, source in sources(study):
        if source.hub:
            name = commit_name(hub.DATASET, source.hub, source.revision)
            commit = pinned.get(name) or hub.resolve_commit(hub.DATASET, source.hub, source.revision, f"{where}.hub")
            yield name, commit


def _precision(study: Study, old: _Written, device: str) -> tuple[str, dict[str, float]]:
    """The number format of training, and the rates of this machine that it follows from."""
    asked = study.precision.compute
    rates = old.matmul_gflops if old.device == device else {}
    # On CUDA measured in any case: it shows that torch reaches the device before the first stage needs it.
    if not rates and (asked == "auto" or device == "cuda"):
        rates = machine.measure_precision(device)
    if asked != "auto":
        return asked, rates
    return machine.faster_format(rates), rates


def _base(place: str, base: Base, digests: "_Digests", commits: Mapping[str, str], *, writes: bool = True) -> LockedBase:
    """The base that stands at `place`; `writes`: it must be a causal LM."""
    if base.hub:
        commit = commits[commit_name(hub.MODEL, base.hub, base.revision)]
        resource = f"hub:{base.hub}@{commit}"
        config = hub.model_config(base.hub, commit, f"{place}.hub")
        if writes:
            hub.check_writes_text(config, f"{place}.hub")
        return LockedBase(resource, resource, resource, config)
    where = f"{place}.{'builtin' if base.builtin else 'path'}"
    directory = hub.builtin_base(base.builtin, where) if base.builtin else digests.folder / str(base.path)
    with _readable(where, str(directory)):
        if not directory.is_dir():
            if directory.is_file():
                raise NeedsError(f"{where}: `{directory}` is a file; name the directory that holds config.json and the weights")
            or_hub = f", or write `hub: {base.path}` for a model of the hub" if _HUB_NAME.fullmatch(str(base.path)) else ""
            raise NeedsError(
                f"{where}: no directory `{directory}`; name one that holds config.json and model.safetensors"
                f"{or_hub}{_likely(directory)}"
            )
        config = hub.read_config(directory / "config.json", where)
        if writes:
            hub.check_writes_text(config, where)
        if not hub.weight_files(directory):
            raise NeedsError(
                f"{where}: `{directory}` holds no model.safetensors, nor all the files that a model.safetensors.index.json "
                "names (other formats are not read: they can run code)"
            )
        return LockedBase(
            resource=str(directory.resolve()),
            digest=digests.of_directory(directory, _MODEL_FILES),
            tokenizer_digest=digests.of_directory(directory, _TOKENIZER_FILES),
            config=config,
        )


class _Digests:
    """SHA-256 of files; a file of the same size and times as last time is not read again."""

    def __init__(self, folder: Path, known: Mapping[str, _Seen]) -> None:
        self.folder = folder
        self.known = known
        self.seen: dict[str, _Seen] = {}

    def of_file(self, path: str, where: str) -> str:
        file = self.folder / path
        with _readable(where, path):
            if not file.exists():
                hint = _likely(file) or "; paths are relative to the study"
                raise NeedsError(f"{where}: no file `{path}` (looked in `{self.folder.resolve()}`){hint}")
            if not file.is_file():
                raise NeedsError(f"{where}: `{path}` is a {'directory' if file.is_dir() else 'device or pipe'}; name a file")
            return self._digest(file)

    def of_folder(self, path: str, where: str) -> str:
        """Of everything in it but what Python and hidden files leave there."""
        folder = self.folder / path
        with _readable(where, path):
            if not folder.is_dir():
                raise NeedsError(f"{where}: no folder `{path}` (looked in `{self.folder.resolve()}`){_likely(folder)}")
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            names = [file.relative_to(folder) for file in files]
            parts = [
                [name.as_posix(), self._digest(file)]
                for name, file in zip(names, files, strict=True)
                if not any(part.startswith((".", "__pycache__")) for part in name.parts)
            ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def of_directory(self, directory: Path, patterns: tuple[str, ...]) -> str:
        files = sorted({file for pattern in patterns for file in directory.glob(pattern) if file.is_file()})
        parts = [[file.name, self._digest(file)] for file in files]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _digest(self, file: Path) -> str:
        status = file.stat()
        # The time of change too: tools that copy keep size and time of modification.
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        name = os.path.relpath(file, self.folder)
        found = self.seen.get(name) or self.known.get(name)
        if found is None or found.stamp != stamp:
            with file.open("rb") as stream:
                found = _Seen(stamp=stamp, sha256=hashlib.file_digest(stream, "sha256").hexdigest())
        self.seen[name] = found
        return found.sha256


def _likely(missing: Path) -> str:
    """What is most likely meant by a path at which there is nothing; empty where that cannot be told."""
    if missing.as_posix().startswith("~") or "/~/" in missing.as_posix():
        return "; `~` is not expanded, write the whole path"
    if re.search("https?:/", missing.as_posix()):
        return "; nothing is fetched from an address, so download it and name the file"
    beside = [entry.name for entry in missing.parent.iterdir()] if missing.parent.is_dir() else []
    near = suggestion(missing.name, beside)
    return near if "did you mean" in near else ""


@contextmanager
def _readable(where: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NeedsError(
            f"{where}: `{error.filename or path}` cannot be read ({error.strerror}); check its permissions"
        ) from None


def _read(file: Path) -> _Written:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        newer = content["schema"] > SCHEMA
        old = None if newer else _Written.model_validate(content)
    except FileNotFoundError:
        return _Written()
    except ValidationError as error:
        detail = error.errors()[0]
        place = ".".join(map(str, detail["loc"]))
        raise StoreError(f"{file}: not a lock (`{place}`: {detail['msg']}); remove it, and it is made again") from None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{file}: not a lock ({error}); remove it, and it is made again") from None
    except OSError as error:
        raise StoreError(f"{file}: the lock cannot be read ({error.strerror}); check its permissions") from None
    if old is None:
        raise StoreError(f"{file}: written by a newer Paretune; update Paretune, or remove the lock")
    return old

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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from paretune.errors import NeedsError, StoreError, UserError
from paretune.pipeline import hub, machine
from paretune.pipeline.config_json import DEQUANTIZED_FROM, check_whole, check_writes_text, dtype, quantized_by, read_config
from paretune.pipeline.data_files import data_files, is_one_file, likely
from paretune.pipeline.dequantize import PACKAGES, check_reads, packaged_gguf, whole_model
from paretune.pipeline.records import write_whole
from paretune.pipeline.resources import SMOLLM2, Resource, builtin_base, holds_packed_weights, weight_dtype
from paretune.study.base import OtherModel, Outside, Spec, outside_of
from paretune.study.study import Base, Study

SCHEMA = 1
_MODEL_FILES = (*hub.CONFIG_FILES, *hub.WEIGHT_FILES, *hub.TOKENIZER_FILES)
_TOKENIZER_FILES = ("config.json", *hub.TOKENIZER_FILES)
"""config.json names the class of a tokenizer that does not name it itself."""
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class LockedBase:
    """A base, or a model that measures, as resolved."""

    resource: Resource
    digest: str
    tokenizer_digest: str
    config: Mapping[str, Any]
    """Its config.json."""

    @property
    def dtype(self) -> str:
        """Number format of its weights: by config.json, or the weights where they are local files and it names none."""
        path = self.resource.path
        return dtype(self.config) or (weight_dtype(path) if path else None) or "float32"

    @property
    def dequantized_from(self) -> str | None:
        """The format that its weights were in before they were made whole, like `GGUF Q4_1`; None where they always were."""
        return self.config.get(DEQUANTIZED_FROM)


@dataclass(frozen=True)
class Lock:
    """What a study's answers depend on besides its file."""

    device: str
    compute: str
    """Number format of matrix products in training."""
    evaluate: str
    """Number format of everything that is measured."""
    matmul_gflops: Mapping[str, float]
    """By number format, as measured on the machine that the lock was made on; empty where nothing depends on it."""
    bases: Mapping[str, LockedBase]
    files: Mapping[str, str]
    """SHA-256 by path, as the study writes the path; of a folder, of all that is in it."""
    hub_commits: Mapping[str, str]
    """By `commit_name`."""
    models: Mapping[str, LockedBase] = field(default_factory=dict)
    """Those that measure, by the field that names them: `evaluate.tasks.encoder`, `safety.classifier`."""
    seen: Mapping[str, Any] = field(default_factory=dict)
    """Stamp and digest of files, so that a big one is not read again while it has not been touched."""

    def commit(self, kind: str, name: str, revision: str | None) -> str:
        """The pinned commit of a hub repository."""
        return self.hub_commits[commit_name(kind, name, revision)]

    @property
    def content(self) -> dict[str, Any]:
        """The fields as plain values, without the paths of this machine, which say nothing to another."""
        fields = asdict(self)
        for model in (*fields["bases"].values(), *fields["models"].values()):
            del model["resource"]
        return fields


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


def resolve_lock(study: Study, study_file: Path, device: str = "auto", store: Path | None = None) -> Lock:
    """The lock of a study, from the one that is there and from what is outside now.

    A quantized base is made whole once below `store`, by default `.paretune` beside the study.

    Raises NeedsError for what cannot be found (a file, a hub repository without network), StoreError for a damaged lock.
    """
    old = _read(lock_file(study_file))
    digests = _Digests(study_file.parent, old.seen)
    kind = machine.device_kind(device, old.device)
    rates = old.matmul_gflops if old.device == kind else {}
    # On CUDA measured in any case: it shows that torch reaches the device before the first stage needs it.
    if not rates and (study.precision.compute == "auto" or kind == "cuda"):
        rates = machine.measure_precision(kind)
    compute = machine.faster_format(rates) if study.precision.compute == "auto" else study.precision.compute
    outside = _outside(study)
    models = {each.where: each.value for each in outside if each.kind == "model"}
    bases = {f"bases.{name}": base for name, base in study.bases.items()}
    store = store or study_file.parent / ".paretune"
    commits = dict(_commits(study, {**bases, **models}, old.hub_commits))
    return Lock(
        device=kind,
        compute=compute,
        evaluate=study.precision.evaluate,
        matmul_gflops=rates,
        bases={name: _base(f"bases.{name}", base, digests, commits, store) for name, base in study.bases.items()},
        models={where: _model(where, model, digests, commits) for where, model in models.items()},
        files={each.value: digests.of_file(each.value, each.where) for each in outside if each.kind == "file"}
        | {each.value: digests.of_folder(each.value, each.where) for each in outside if each.kind == "folder"}
        | {each.value: digests.of_data(each.value, each.where) for each in outside if each.kind == "data"},
        hub_commits=commits,
        seen={name: seen.model_dump() for name, seen in digests.seen.items()},
    )


def write_lock(lock: Lock, study_file: Path) -> None:
    """Write the lock beside the study, at once or not at all; StoreError if the folder cannot be written."""
    target = lock_file(study_file)
    content = json.dumps({"schema": SCHEMA, **lock.content}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    try:
        if not target.exists() or target.read_text(encoding="utf-8") != content:
            write_whole(target, content)
    except OSError as error:
        raise StoreError(f"{target}: cannot be written ({error.strerror}); the study's folder must be writable") from None


def _outside(study: Study) -> list[Outside]:
    """Every file, folder and model that measures, with the field of the study that names it."""
    specs: dict[str, Spec] = {f"data.{name}": dataset for name, dataset in study.data.items()}
    specs |= {f"evaluate.{name}": use.config for name, use in study.evaluate.items()}
    specs |= {"safety": study.safety} if study.safety else {}
    return [each for where, spec in specs.items() for each in outside_of(spec, where)]


def _commits(study: Study, models: Mapping[str, Base | OtherModel], pinned: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for where, model in models.items():
        if model.hub:
            name = commit_name(hub.MODEL, model.hub, model.revision)
            # Asked for although it is pinned: config.json is needed, and without it and a network this says so at once.
            yield name, hub.resolve_commit(hub.MODEL, model.hub, pinned.get(name, model.revision), f"{where}.hub")
    for dataset, spec in study.data.items():
        for role, source in spec.sources.items():
            if source.hub:
                name, where = commit_name(hub.DATASET, source.hub, source.revision), f"data.{dataset}.{role}.hub"
                yield name, pinned.get(name) or hub.resolve_commit(hub.DATASET, source.hub, source.revision, where)


def _base(entry: str, base: Base, digests: "_Digests", commits: Mapping[str, str], store: Path) -> LockedBase:
    """The base that stands at `entry`: a causal LM in whole weights, which a quantized one is made into below `store`."""
    where = f"{entry}.{'hub' if base.hub else 'builtin' if base.builtin else 'path'}"
    if base.builtin == SMOLLM2:
        source = packaged_gguf(where)
    else:
        source = builtin_base(base.builtin, where) if base.builtin else digests.folder / str(base.path)
    if not base.hub and source.suffix == ".gguf" and source.is_file():
        check_reads("gguf", where)
        with _readable(where, str(source)):
            digest = digests.digest(source)
        directory = whole_model(source, digest, store, where)
        config = read_config(directory / "config.json", where)
        check_writes_text(config, where)
        return LockedBase(
            Resource(path=directory.resolve()), digest, digests.of_directory(directory, hub.TOKENIZER_FILES), config
        )
    locked = _model(entry, base, digests, commits, source)
    check_writes_text(locked.config, where)
    method = quantized_by(locked.config)
    if method is None:
        return locked
    if base.hub:
        raise NeedsError(
            f"{where}: is quantized (`quantization_config` of config.json: `{method}`) and must be made whole first; fetch it "
            f"(`hf download {base.hub} --local-dir DIR`) and write `path: DIR`"
        )
    if method not in PACKAGES:
        raise NeedsError(
            f"{where}: is quantized (`quantization_config` of config.json: `{method}`), in a format not read here; name "
            "the model that it was quantized from"
        )
    if not holds_packed_weights(source):  # transformers would quantize them as it reads them
        raise NeedsError(
            f"{where}: `{source}` holds whole weights, and its config.json says that they are quantized (`{method}`); take "
            "`quantization_config` out of it, or copy the model again"
        )
    check_reads(method, where)
    directory = whole_model(source, locked.digest, store, where)
    return replace(locked, resource=Resource(path=directory.resolve()), config=read_config(directory / "config.json", where))


def _model(
    entry: str, model: Base | OtherModel, digests: "_Digests", commits: Mapping[str, str], directory: Path | None = None
) -> LockedBase:
    """The model that stands at `entry`, in `directory` where it is built in."""
    if model.hub:
        commit = commits[commit_name(hub.MODEL, model.hub, model.revision)]
        resource = Resource(hub=model.hub, commit=commit)
        where = f"{entry}.hub"
        config = read_config(hub.config_file(model.hub, commit, where), where)
        return LockedBase(resource, str(resource), str(resource), config)
    where = f"{entry}.{'path' if model.path else 'builtin'}"
    directory = directory or digests.folder / str(model.path)
    with _readable(where, str(directory)):
        check_whole(directory, where)
        if not directory.is_dir():
            if directory.is_file():
                raise NeedsError(
                    f"{where}: `{directory}` is a file; name the directory of config.json and the weights, or a GGUF file"
                )
            or_hub = f", or write `hub: {model.path}` for a model of the hub" if _HUB_NAME.fullmatch(str(model.path)) else ""
            raise NeedsError(
                f"{where}: no directory `{directory}`; name one that holds config.json and model.safetensors"
                f"{or_hub}{likely(directory)}"
            )
        config = read_config(directory / "config.json", where)
        if not hub.weight_files(directory):
            raise NeedsError(
                f"{where}: `{directory}` holds no model.safetensors, nor all the files that a model.safetensors.index.json "
                "names (other formats are not read: they can run code)"
            )
        return LockedBase(
            resource=Resource(path=directory.resolve()),
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
                if file.is_symlink():
                    raise NeedsError(f"{where}: `{path}` cannot be followed{likely(file)}; correct the link, or name the file")
                hint = likely(file) or "; paths are relative to the study"
                raise NeedsError(f"{where}: no file `{path}` (looked in `{self.folder.resolve()}`){hint}")
            if not file.is_file():
                raise NeedsError(f"{where}: `{path}` is a {'directory' if file.is_dir() else 'device or pipe'}; name a file")
            return self.digest(file)

    def of_data(self, path: str, where: str) -> str:
        """Of a file, or of all that a folder or a pattern stands for, by their names."""
        place = self.folder / path
        if is_one_file(place):
            return self.of_file(path, where)
        with _readable(where, path):
            try:
                files = data_files(place)
            except UserError as error:
                raise type(error)(f"{where}: {error}") from None
            if files == [place]:  # what `save_to_disk` wrote
                return self.of_folder(path, where)
            parts = [[os.path.relpath(file, place.parent), self.digest(file)] for file in files]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def of_folder(self, path: str, where: str) -> str:
        """Of everything in it but what Python and hidden files leave there."""
        folder = self.folder / path
        with _readable(where, path):
            if not folder.is_dir():
                raise NeedsError(f"{where}: no folder `{path}` (looked in `{self.folder.resolve()}`){likely(folder)}")
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            names = [file.relative_to(folder) for file in files]
            parts = [
                [name.as_posix(), self.digest(file)]
                for name, file in zip(names, files, strict=True)
                if not any(part.startswith((".", "__pycache__")) for part in name.parts)
            ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def of_directory(self, directory: Path, patterns: tuple[str, ...]) -> str:
        files = sorted({file for pattern in patterns for file in directory.glob(pattern) if file.is_file()})
        parts = [[file.name, self.digest(file)] for file in files]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def digest(self, file: Path) -> str:
        status = file.stat()
        # The time of change too: tools that copy keep size and time of modification.
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        name = os.path.relpath(file, self.folder)
        seen = self.seen.get(name) or self.known.get(name)
        if seen is None or seen.stamp != stamp:
            with file.open("rb") as stream:
                seen = _Seen(stamp=stamp, sha256=hashlib.file_digest(stream, "sha256").hexdigest())
        self.seen[name] = seen
        return seen.sha256


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
        field = ".".join(map(str, detail["loc"]))
        raise StoreError(f"{file}: not a lock (`{field}`: {detail['msg']}); remove it, and it is made again") from None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{file}: not a lock ({error}); remove it, and it is made again") from None
    except OSError as error:
        raise StoreError(f"{file}: the lock cannot be read ({error.strerror}); check its permissions") from None
    if old is None:
        raise StoreError(f"{file}: written by a newer Paretune; update Paretune, or remove the lock")
    return old

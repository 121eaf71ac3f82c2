"""What lies outside a study, and how its files are found: a path, a repository of the hub at a commit, or what ships with us.

A stage's config pins it by digest or commit; the Resource says where it is, and is no part of the key.
"""

import contextlib
import functools
import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.errors import NeedsError
from paretune.pipeline.hub import MODEL, cached_model, fetch_dataset, fetch_model, weight_files

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SMOLLM2 = "smollm2-135m-instruct"
_FORMATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Those of safetensors that a model is trained in, as torch calls them."""


@dataclass(frozen=True)
class Resource:
    """At most one of `path`, `hub` and `builtin`; none of them where a package brings what is meant."""

    path: Path | None = None
    hub: str | None = None
    """A repository, `owner/name`."""
    commit: str | None = None
    """Of the repository."""
    kind: str = MODEL
    """What the repository holds: `model` or `dataset`."""
    config: str | None = None
    """Of a dataset of the hub that has several."""
    builtin: str | None = None
    more: tuple[Path, ...] = ()
    """What is read after `path`, of data in several places."""

    @property
    def paths(self) -> tuple[str, ...]:
        """`path` and `more`, as a source takes them."""
        return (str(self), *map(str, self.more))

    def __str__(self) -> str:
        if self.hub:
            return f"hub:{self.hub}@{self.commit}" if self.kind == MODEL else self.hub
        return f"builtin:{self.builtin}" if self.builtin else str(self.path or "")

    @property
    def description(self) -> str:
        """Of a repository, in words: `hub model `owner/name` at 3f2a91c0`."""
        return f"hub {self.kind} `{self.hub}` at {str(self.commit)[:8]}"

    def directory(self) -> Path | None:
        """Where the files of a model are; None for one of the hub that the cache does not hold whole. Asks no network."""
        return cached_model(self.hub, str(self.commit)) if self.hub else self.path

    def is_here(self) -> bool:
        """Whether nothing has to be fetched; a dataset of the hub is always asked for."""
        return self.hub is None or (self.kind == MODEL and self.directory() is not None)

    def fetch(self, say: Callable[[str], None]) -> None:
        """Fetch a repository, after `say` has told what and how much; NeedsError where it is not to be had."""
        assert self.hub is not None, "only repositories are fetched"
        if self.kind == MODEL:
            fetch_model(self.hub, str(self.commit), say)
        else:
            fetch_dataset(self.hub, self.config, str(self.commit), say)


def builtin_base(name: str, where: str) -> Path:
    """Directory of a model that ships with the package; NeedsError, beginning with `where`, if there is none of that name."""
    assets = Path(str(resources.files("paretune") / "assets"))
    known = sorted([*(config.parent.name for config in assets.glob("*/config.json")), SMOLLM2])
    if name not in known:
        raise NeedsError(f"{where}: no built-in base `{name}`; known: {', '.join(f'`{k}`' for k in known)}")
    return assets / name


def weight_shapes(directory: Path) -> Mapping[str, tuple[int, ...]]:
    """Shape by name of every tensor of the model in `directory`, from the headers of its safetensors files alone.

    NeedsError for a file that is damaged or not whole: half a download and a git-lfs pointer are found here, not hours later.
    """
    return {name: shape for name, (shape, _) in _tensors(directory).items()}


def weight_dtype(directory: Path) -> str | None:
    """The number format of most of the weights in `directory`, as torch calls it; None for one that nothing is trained in, and
    where they cannot be read."""
    sizes: dict[str, int] = {}
    with contextlib.suppress(NeedsError):  # told where the files are checked
        for shape, dtype in _tensors(directory).values():
            sizes[dtype] = sizes.get(dtype, 0) + math.prod(shape)
    return _FORMATS.get(max(sizes, key=lambda dtype: sizes[dtype], default=""))


def holds_packed_weights(directory: Path) -> bool:
    """Whether any tensor in `directory` is of whole numbers, as those of quantized checkpoints are."""
    return any(dtype.startswith(("I", "U")) for _, dtype in _tensors(directory).values())


def count_weights(directory: Path) -> int:
    """Parameters of the model in a directory, from the headers of its safetensors files alone."""
    # Some checkpoints keep buffers beside the weights: causal masks, of four dimensions, and rotary frequencies.
    return sum(
        math.prod(shape)
        for name, shape in weight_shapes(directory).items()
        if len(shape) < 4 and not name.endswith((".masked_bias", ".inv_freq"))
    )


def _tensors(directory: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    tensors: dict[str, tuple[tuple[int, ...], str]] = {}
    for file in weight_files(directory):
        status = file.stat()
        tensors |= _read_header(file, status.st_size, status.st_mtime_ns)
    return tensors


@functools.lru_cache(maxsize=64)
def _read_header(file: Path, size: int, _: int) -> Mapping[str, tuple[tuple[int, ...], str]]:
    # 8 bytes with the length of a JSON header, the header, and the bytes that it points into
    # (https://github.com/huggingface/safetensors#format).
    try:
        with file.open("rb") as stream:
            first = stream.read(8)
            if first == b"version ":
                raise NeedsError(f"{file}: is a pointer of git-lfs, not the weights; fetch them with `git lfs pull`")
            (length,) = struct.unpack("<Q", first)
            header: Any = json.loads(stream.read(length)) if length <= size - 8 else None
        tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
        end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        shapes = {name: (tuple(tensor["shape"]), str(tensor["dtype"])) for name, tensor in tensors.items()}
    except OSError as error:
        raise NeedsError(f"{file}: cannot be read ({error.strerror})") from None
    except (struct.error, ValueError, AttributeError, KeyError, TypeError, IndexError):
        raise NeedsError(f"{file}: is no safetensors file, or a damaged one; copy the model again") from None
    if 8 + length + end != size:
        raise NeedsError(f"{file}: has {size:,} bytes instead of {8 + length + end:,}; copy the model again, whole")
    return shapes


@functools.cache
def read_tokenizer(file: Path) -> "Tokenizer":
    """The tokenizer of a tokenizer.json."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file))

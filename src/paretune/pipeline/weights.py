"""Names and shapes of the weights of a base, read from the headers of its safetensors files alone.

The format: 8 bytes with the length of a JSON header, the header, and the bytes that it points into
(https://github.com/huggingface/safetensors#format). Half a download and a git-lfs pointer are found here, not hours later.
"""

import functools
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paretune.errors import NeedsError
from paretune.pipeline.hub import weight_files


def weight_shapes(directory: Path) -> Mapping[str, tuple[int, ...]]:
    """Shape by name of every tensor of the model in `directory`; NeedsError for a file that is damaged or not whole."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(directory):
        status = file.stat()
        shapes |= _shapes(file, status.st_size, status.st_mtime_ns)
    return shapes


@functools.lru_cache(maxsize=64)
def _shapes(file: Path, size: int, _: int) -> Mapping[str, tuple[int, ...]]:
    try:
        with file.open("rb") as stream:
            first = stream.read(8)
            if first == b"version ":
                raise NeedsError(f"{file}: is a pointer of git-lfs, not the weights; fetch them with `git lfs pull`")
            (length,) = struct.unpack("<Q", first)
            header: Any = json.loads(stream.read(length)) if length <= size - 8 else None
        tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
        end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        shapes = {name: tuple(tensor["shape"]) for name, tensor in tensors.items()}
    except OSError as error:
        raise NeedsError(f"{file}: cannot be read ({error.strerror})") from None
    except (struct.error, ValueError, AttributeError, KeyError, TypeError, IndexError):
        raise NeedsError(f"{file}: is no safetensors file, or a damaged one; copy the model again") from None
    if 8 + length + end != size:
        raise NeedsError(f"{file}: has {size:,} bytes instead of {8 + length + end:,}; copy the model again, whole")
    return shapes

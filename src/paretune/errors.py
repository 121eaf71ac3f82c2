"""What can go wrong, as one tree; the exit code of the command follows from the class.

ParetuneError
├── UserError               what the user wrote or gave; exit 2
│   ├── SpecError           the study file
│   ├── DataError           a data file, or what stands in it
│   ├── NeedsError          a missing package, device, file or network
│   └── StoreError          a store that cannot be read or written
└── StageError              a stage failed at run time; exit 1
    └── DivergedError       a training whose loss is no number any more: it would fail again

A message says what, where (`study.yaml: variants.reduced[0].prune.blocks.count`), the value, and the way out.
"""

import re
import shlex
from pathlib import Path


class ParetuneError(Exception):
    exit_code = 1


class UserError(ParetuneError):
    exit_code = 2


class SpecError(UserError, ValueError):
    pass


class DataError(UserError, ValueError):
    pass


class NeedsError(UserError):
    pass


class StoreError(UserError):
    pass


class StageError(ParetuneError):
    pass


class DivergedError(StageError):
    def __init__(self, message: str, *, steps: int, seconds: float) -> None:
        """After `steps` optimizer steps that took `seconds`."""
        super().__init__(message)
        self.steps, self.seconds = steps, seconds


_OUT_OF_MEMORY = re.compile("out of memory|not enough memory|can't allocate memory", re.IGNORECASE)
"""What torch says in a RuntimeError, on CUDA and on the CPU."""


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error))))


def command_line(command: str, *arguments: str | Path, **options: str | Path | None) -> str:
    """`paretune run 'my study.yaml' --store DIR`, to be typed as it is; options of None are left out."""
    words = ["paretune", command, *map(str, arguments)]
    words += [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    return shlex.join(words)

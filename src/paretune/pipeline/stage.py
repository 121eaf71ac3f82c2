"""A stage: one cached unit of work, and the key that identifies its answer.

The key is the SHA-256 of canonical JSON of kind, revision, the whole config and the parents' keys. What lies outside (files,
hub repositories) enters the config as a digest and is found at run time through `resources`, which are not hashed; neither
are `settings` and RunOptions, which say how to run and never what.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from paretune.pipeline.records import Record
from paretune.pipeline.resources import Resource
from paretune.pipeline.threads import Threads
from paretune.study.base import FROM_KEY, SpecT

ENVIRONMENT = "environment"
"""Among a stage's settings, the name of an environment variable that must be set."""
CHECKPOINT = "checkpoint-"
"""Begins the name of a checkpoint in `resume`; the step that it stands at follows."""
Emit = Callable[..., None]
"""Told how far a stage is: `done`, `total`, `part`."""


@dataclass(frozen=True)
class RunOptions:
    """How to run; recorded, never part of a key."""

    device: str = "auto"
    workers: int = 1
    accumulate: int = 1
    """Micro-batches that an optimizer step is cut into; moves float rounding only."""
    forward_tokens: int = 4096
    """Tokens of one forward pass at most (but one example always), fewer where memory asks so; moves float rounding only."""
    row_tokens: int = 1024
    """Tokens up to which texts share a pass of training on a CPU, where longer passes are no faster and keep more; moves float
    rounding only."""
    pack: bool = True
    """Several examples in a row, kept apart; moves float rounding only."""
    recompute: bool = False
    """Activations of training are computed again in the backward pass instead of kept: slower, in less memory."""
    memory: int | None = None
    """Bytes that all workers together may use; what is free when a stage begins unless given."""
    checkpoint_seconds: float = 60.0
    """Between training checkpoints."""


@dataclass(frozen=True)
class Stage:
    """One cached unit of work. Equal keys are the same stage, whoever asks for it."""

    kind: str
    config: Mapping[str, Any]
    body: str
    """`module:function`, called with a StageContext."""
    inputs: Mapping[str, "Stage"] = field(default_factory=dict)
    """Parents by role; their keys are part of this stage's key."""
    after: tuple["Stage", ...] = ()
    """Gates that must have succeeded before this stage runs; not part of the key."""
    resources: Mapping[str, Resource] = field(default_factory=dict)
    """By role, where to find what the config pins by digest; not part of the key."""
    revision: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the body needs and no answer depends on; not part of the key."""

    @cached_property
    def key(self) -> str:
        """SHA-256 in hexadecimal."""
        identity = {
            "kind": self.kind,
            "revision": self.revision,
            "config": self.config,
            "inputs": {role: parent.key for role, parent in self.inputs.items()},
        }
        return hashlib.sha256(canonical_json(identity).encode()).hexdigest()

    @property
    def needs(self) -> tuple["Stage", ...]:
        """What must be there before it: its parents and gates."""
        return (*self.inputs.values(), *self.after)

    @property
    def runs(self) -> bool:
        """False of one that has no body: a choice, which is decided by what its parents left."""
        return bool(self.body)

    @property
    def name(self) -> str:
        """Directory in the store, like `train.lora-3f2a91c0`."""
        return f"{self.kind}-{self.key[:8]}"

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stage) and self.key == other.key


@dataclass(frozen=True)
class Artifact:
    """A finished stage: its directory, record and parents."""

    path: Path
    record: Record
    inputs: Mapping[str, "Artifact"]


@dataclass(frozen=True)
class StageContext:
    """All that a stage's body sees."""

    config: Mapping[str, Any]
    inputs: Mapping[str, Artifact]
    resources: Mapping[str, Resource]
    options: RunOptions
    draft: Path
    """Directory to write files into, empty at first; it becomes the artifact."""
    emit: Callable[..., None]
    """`emit(done=..., total=..., **numbers)` reports progress; cheap. `part` says what of the stage it is the progress of; the
    time left is told from the first report of a part on, so that is made when its work begins."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    threads: Threads = field(default_factory=lambda: Threads(1))

    def parse(self, model: type[SpecT]) -> SpecT:
        """The config as a class of `paretune.pipeline.stage_configs`."""
        # Through JSON: strict mode then takes a list for a tuple.
        return model.model_validate_json(json.dumps(dict(self.config)), context=FROM_KEY)

    @property
    def resume(self) -> Path:
        """Directory of what an attempt that was killed left for the next one; never part of the artifact."""
        return resume_of(self.draft)


def measures_time(stage: Stage) -> bool:
    """Whether its answer is of the machine, whose fingerprint then is in its config."""
    return stage.config.get("machine") is not None


def resume_of(draft: Path) -> Path:
    return draft.with_name(f"{draft.name}.resume")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; ValueError for NaN and infinity, TypeError for a type that JSON does not have."""
    _check(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _check(value: Any) -> None:
    # json.dumps turns the keys 1 and "1" into the same text and a tuple into a list; a key must tell them apart or refuse.
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"a key of canonical JSON is a string, not {type(key).__name__}: {key!r}")
            _check(item)
    elif isinstance(value, list):
        for item in value:
            _check(item)
    elif not (value is None or isinstance(value, str | bool | int | float)):
        raise TypeError(f"canonical JSON has no {type(value).__name__}: {value!r}")

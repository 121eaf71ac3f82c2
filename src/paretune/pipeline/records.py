"""What a stage leaves behind, and a study's results as cells of records: all that the analysis reads.

`record.json` is written last, so an artifact with a record is whole. Scores of single examples stand beside it in
`scores.parquet` (columns `split, document, example, metric, value, weight` and one `slice.<field>` for each slice): every
estimate is the weighted mean of `value` by `weight`, which makes loss a mean over tokens, bits per byte one over bytes and
accuracy one over examples.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.errors import StoreError

if TYPE_CHECKING:
    from paretune.pipeline.base_card import BaseCard
    from paretune.study.study import Study

SCHEMA = 1
SLICE_PREFIX = "slice."
CHOICES = "choices.jsonl"
"""Beside the scores of questions: what was asked with options, and which one was taken; absent in records of before."""
MOST_OF_ALL = 0.5
"""Share of the records in one document from which a column splits badly."""


def write_whole(file: Path, text: str) -> None:
    """`text` as the content of `file`, at once or not at all: whoever reads it finds all of the old one or of the new one."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


@dataclass(frozen=True)
class Record:
    """`record.json` of one artifact. Times in seconds, memory and sizes in bytes."""

    key: str
    kind: str
    revision: int
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    """Role to key of the parent."""
    started: str
    """ISO 8601, UTC."""
    seconds: float
    device: str
    """`cpu`, or the name of the CUDA device."""
    machine: Mapping[str, Any]
    """Fingerprint: processor, cores, memory, device; times of different fingerprints are not compared."""
    peak_memory_bytes: int
    """Largest resident set of the stage's process."""
    versions: Mapping[str, str]
    git_commit: str | None
    argv: tuple[str, ...]
    options: Mapping[str, Any]
    metrics: Mapping[str, Any]
    """Small numbers and words that the stage's body returned."""
    files: Mapping[str, Mapping[str, Any]]
    """Relative path to `bytes` and `sha256`."""
    cpu_seconds: float | None = None
    """Of the stage's process and its threads; None in records of before."""
    schema: int = SCHEMA
    path: Path = field(default=Path(), compare=False)
    """The artifact's directory; not stored."""


@dataclass(frozen=True)
class Divergence:
    """How a training ended that came to no number."""

    message: str
    steps: int
    """Optimizer steps until then."""
    seconds: float
    """That they took."""


def write_record(record: Record, directory: Path) -> None:
    content = {name: value for name, value in asdict(record).items() if name != "path"}
    (directory / "record.json").write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def read_record(directory: Path) -> Record:
    """The record of the artifact at `directory`; StoreError if it is damaged or of a newer version."""
    file = directory / "record.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["schema"] > SCHEMA:
            raise StoreError(
                f"{file}: written by a newer Paretune (schema {content['schema']}, this one reads {SCHEMA}); update Paretune"
            )
        return Record(**content | {"argv": tuple(content["argv"]), "path": directory})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{file}: not a record ({error}); remove the directory, and the stage runs again") from None


@dataclass(frozen=True)
class Cell:
    """One variant of one base on one dataset with one seed, and the records of its stages."""

    base: str
    dataset: str
    variant: str
    seed: int | None
    """None where nothing in the variant depends on a seed."""
    methods: tuple[Record, ...]
    """In order; a train method's record carries `train_seconds`, `trainable_parameters` ... and `curves.jsonl`."""
    evaluations: Mapping[str, Record]
    """By the name that the study gives them, and `size` (parameters and bytes), which every variant gets."""
    missing: tuple[str, ...] = ()
    """Names of stages that failed or did not run."""
    running: tuple[str, ...] = ()
    """Names of stages that a run which is on works on, or has still to come to."""

    @property
    def trained(self) -> list[Record]:
        """The records of its methods that train."""
        return [record for record in self.methods if "train_seconds" in record.metrics]


@dataclass(frozen=True)
class Trial:
    """One of the values that a tuned variant is chosen from, and how its training went."""

    name: str
    """The value, like `learning_rate=3e-4`."""
    methods: tuple[Record, ...] = ()
    """To the training that decides; empty where a stage of it has not run."""
    score: float | None = None
    """On validation, of the weights that were kept; None where it diverged or has not run."""
    divergence: Divergence | None = None


@dataclass(frozen=True)
class Tuning:
    """The trials of a tuned variant on one base and dataset."""

    base: str
    dataset: str
    variant: str
    seed: int
    """Of all trials: the study's first."""
    trials: tuple[Trial, ...]
    chosen: int | None
    """Index of a trial; None as long as one of them has not run."""


@dataclass(frozen=True, repr=False)
class Results:
    """Everything that a report is written from."""

    study: "Study"
    study_file: Path
    lock: Mapping[str, Any]
    """The content of the study's lock: precision, device kind, digests, hub commits."""
    data: Mapping[str, Record]
    """By dataset: the data stage (split sizes, what was left out)."""
    leakage: Mapping[str, Record]
    """By dataset: the leakage stage."""
    tokens: Mapping[tuple[str, str], Record]
    """By (base, dataset): the tokenize stage."""
    cells: tuple[Cell, ...]
    tunings: tuple[Tuning, ...] = ()
    audit: Mapping[str, Record] = field(default_factory=dict)
    """By dataset: the audit stage."""
    base_cards: Mapping[str, "BaseCard"] = field(default_factory=dict)
    """By base; a base that is not among them says nothing."""

    def __repr__(self) -> str:
        lines = []
        for cell in self.cells:
            seed = "" if cell.seed is None else f" seed {cell.seed}"
            counts = {"missing": len(cell.missing), "running": len(cell.running)}
            state = ", ".join(f"{count} stages {what}" for what, count in counts.items() if count) or "complete"
            lines.append(f"  {cell.base}/{cell.dataset}/{cell.variant}{seed}: {state}")
        return "\n".join([f"results of `{self.study.study}`:", *lines])

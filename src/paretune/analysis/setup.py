"""What was compared, on which data, and what the figures of a report are: facts that depart from nothing."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from paretune.analysis.findings import LEAKED, LOSSY, Fact, Findings
from paretune.analysis.scores import Entrant, entrant_of
from paretune.pipeline.config_json import DEQUANTIZED_FROM
from paretune.study.data import MASKS, SPLITS
from paretune.study.findings import proposed_clean
from paretune.study.study import Base
from paretune.study.train import Train

_VERSIONS = ("paretune", "python", "torch", "transformers", "peft")
"""That a report names."""
_RULES = {"length": {"short", "long"}, "language": {"language"}, "answers in prompts": {"answer_in_prompt"}}
"""Findings of an audit by the term that explains them."""


@dataclass(frozen=True)
class BaseUsed(Fact):
    name: str
    base: Base
    num_parameters: float | None
    """None where the untouched base was not measured."""
    dequantized_from: str | None = None
    """The format that its weights were in before they were made whole; None where they always were."""


@dataclass(frozen=True)
class TrainedAlike(Fact):
    train: Train
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class PrecisionUsed(Fact):
    trained: tuple[str, ...]
    measured: str


@dataclass(frozen=True)
class BaselineUsed(Fact):
    variant: str


@dataclass(frozen=True)
class MachinesUsed(Fact):
    machines: tuple[Mapping[str, Any], ...]
    """Fingerprints."""


@dataclass(frozen=True)
class RunOn(Fact):
    days: tuple[str, ...]
    """The only one, or the first and the last."""
    versions: tuple[tuple[str, tuple[str, ...]], ...]
    """By package."""


@dataclass(frozen=True)
class DocumentsCounted(Fact):
    """How many documents, the units of splitting and of error bars, the records come from."""

    dataset: str
    field: str | None
    """That names a document."""
    num_records: int
    num_documents: int
    num_largest: int
    """Records of the largest."""


@dataclass(frozen=True)
class DocumentsUnused(Fact):
    """The shares of the splits sum to less than 1."""

    dataset: str
    num_documents: int


@dataclass(frozen=True)
class NoLeakage(Fact):
    dataset: str
    with_items: bool
    """Whether the items of evaluations were looked for, too."""
    after_removal: bool


@dataclass(frozen=True)
class DataCleaned(Fact):
    dataset: str
    num_fixed: int
    """Records whose encoding was repaired."""
    masks: tuple[tuple[str, int], ...]
    """How often each mask was written."""


@dataclass(frozen=True)
class LabelsCounted(Fact):
    dataset: str
    task: str
    counts: str
    """As the audit writes them."""
    num_records: int


@dataclass(frozen=True)
class AuditClean(Fact):
    """Nothing was found."""

    dataset: str


@dataclass(frozen=True)
class CleaningProposed(Fact):
    dataset: str
    clean: str
    """The fields of the study's `clean`."""


@dataclass(frozen=True)
class StagesMissing(Fact):
    """What failed or did not run; a model that is missing takes its measurements with it."""

    entrant: Entrant
    stages: tuple[str, ...]
    models: bool


@dataclass(frozen=True)
class StagesRunning(StagesMissing):
    """What a run that is on works on, or has still to come to."""


@dataclass(frozen=True)
class Definition(Fact):
    """What a mark, a finding of the audit, or figures of a report mean."""

    term: str
    level: float = math.nan
    """Of intervals."""
    family: tuple[str, ...] = ()
    """Declared metrics; empty for that of the headline."""
    several_seeds: bool = False


@dataclass(frozen=True)
class AnswersDefined(Fact):
    metrics: tuple[str, ...]


def setup(findings: Findings) -> list[Fact]:
    """Bases, training, precision, baseline, machine and versions."""
    study, results = findings.study, findings.results
    facts: list[Fact] = []
    for name, base in study.bases.items():
        untouched = (group.untouched for group in findings.groups if group.base == name and group.untouched is not None)
        costs = (findings.costs.get(entrant, {}) for entrant in untouched)
        sizes = [cost["parameters"].mean for cost in costs if "parameters" in cost]
        config = results.lock.get("bases", {}).get(name, {}).get("config", {})
        facts.append(BaseUsed(name, base, sizes[0] if sizes else None, config.get(DEQUANTIZED_FROM)))
    facts.append(TrainedAlike(study.train, tuple(study.seeds)))
    of_cells = [record for cell in results.cells for record in (*cell.methods, *cell.evaluations.values())]
    records = [*results.data.values(), *of_cells]
    precisions = sorted({str(record.metrics["precision"]) for record in records if "precision" in record.metrics})
    facts += [PrecisionUsed(tuple(precisions), study.precision.evaluate)] if precisions else []
    facts.append(BaselineUsed(study.baseline))
    machines: list[Mapping[str, Any]] = []
    versions: dict[str, set[str]] = {}
    for record in records:
        known = {name: value for name, value in record.machine.items() if value is not None}
        machine = known or {"processor": record.device}
        machines += [machine] if machine not in machines else []
        for name, version in record.versions.items():
            versions.setdefault(name, set()).add(version)
    if records:
        days = sorted({record.started[:10] for record in records})
        told = tuple((name, tuple(sorted(versions[name]))) for name in _VERSIONS if name in versions)
        facts += [MachinesUsed(tuple(machines)), RunOn(tuple(dict.fromkeys((days[0], days[-1]))), told)]
    return facts


def data_notes(findings: Findings) -> list[Fact]:
    """What stands with the data and departs from nothing: its documents, those of no split, and that no leakage was found."""
    data, facts = findings.results.data, list[Fact]()
    for name, record in data.items():
        if num := record.metrics.get("records_used"):
            documents = sum(record.metrics[f"documents_{split}"] for split in SPLITS)
            field, largest = findings.study.data[name].document, record.metrics["records_largest_document"]
            facts.append(DocumentsCounted(name, field, num, documents, largest))
        if unused := record.metrics.get("documents_unused", 0):
            facts.append(DocumentsUnused(name, unused))
    for name, record in findings.results.leakage.items():
        if record.metrics.get("pairs") == 0:
            items = any(f"items_touched_{task}" in record.metrics for task in findings.study.evaluate)
            facts.append(NoLeakage(name, items, bool(name in data and data[name].metrics.get("documents_removed"))))
    return facts


def audit(findings: Findings) -> list[Fact]:
    """What cleaning did, and what the audit found that no table shows."""
    facts: list[Fact] = []
    for dataset, record in findings.results.data.items():
        masks = tuple((kind, num) for kind in MASKS if (num := record.metrics.get(f"masked_{kind}")))
        fixed = record.metrics.get("fixed", 0)
        facts += [DataCleaned(dataset, fixed, masks)] if fixed or masks else []
    for dataset, rows in findings.audit.items():
        for row in rows:
            if row["finding"] == "labels" and row["split"] == "train":
                task, _, counts = row["detail"].partition(": ")
                facts.append(LabelsCounted(dataset, task, counts, row["of"]))
    names = {dataset: {row["finding"] for row in rows} for dataset, rows in findings.audit.items()}
    facts += [Definition(term) for term, rule in _RULES.items() if any(rule & of_dataset for of_dataset in names.values())]
    facts += [AuditClean(dataset) for dataset, of_dataset in names.items() if not of_dataset]
    for dataset, of_dataset in names.items():
        clean = proposed_clean(of_dataset)
        facts += [CleaningProposed(dataset, clean)] if clean and not findings.study.data[dataset].clean.content else []
    return facts


def notes(findings: Findings) -> list[Fact]:
    """What is missing, what marks mean, and how figures are defined, as far as the study has them."""
    study, facts = findings.study, list[Fact]()
    for fact, left_of in ((StagesMissing, attrgetter("missing")), (StagesRunning, attrgetter("running"))):
        stages: dict[Entrant, dict[str, None]] = {}
        for cell in findings.results.cells:
            models = [name for name in left_of(cell) if not name.startswith("evaluate.")]
            stages.setdefault(entrant_of(cell), {}).update(dict.fromkeys(models or left_of(cell)))
        for entrant, names in stages.items():
            models = [name for name in names if not name.startswith("evaluate.")]
            facts += [fact(entrant, tuple(names), bool(models))] if names else []
    marks, level = findings.marks, findings.level
    facts += [Definition(LEAKED)] if marks.splits or marks.tasks else []
    facts += [Definition(LOSSY)] if marks.tokenizers else []
    quantities = {quantity for estimates in findings.estimates.values() for quantity in estimates}
    facts += [Definition("interval", level)] if quantities else []
    if findings.differences:
        facts.append(Definition("difference", several_seeds=len(study.seeds) > 1))
        facts.append(Definition("p", level, tuple(study.compare.family)))
        facts.append(Definition("margin"))
    facts += [Definition("loss")] if any(quantity.metric == "loss" for quantity in quantities) else []
    asked = {name for name, use in study.evaluate.items() if use.kind == "qa"}
    answered = {quantity.metric for quantity in quantities if quantity.task in asked}
    told = tuple(metric for metric in ("accuracy", "log_likelihood", "exact_match") if metric in answered)
    facts += [AnswersDefined(told)] if told else []
    return [*facts, Definition("files")]

"""How models were made smaller and healed: what a student learned from whom, and what each stop of a removal came to."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import numpy as np
import pandas as pd

from paretune.analysis.findings import Fact, Findings, Group
from paretune.analysis.inference import ratio_interval
from paretune.analysis.scores import Entrant
from paretune.pipeline.records import Cell


@dataclass(frozen=True)
class Distilled(Fact):
    """What a variant learned beside the text, from whom, and what of it was kept on disk; means over the runs."""

    entrant: Entrant
    teacher: str
    alpha: float
    temperature: float
    num_targets: int
    num_words: int
    all_words: bool
    mass: float
    """Share of the teacher's probability on the words that were kept."""
    rounding: float
    """Nats a target that keeping it in 16 bits has moved the teacher."""


@dataclass(frozen=True)
class TaughtAnswers(Fact):
    """Whose answers a variant learned in the place of the text's own; shares are means over the runs."""

    entrant: Entrant
    teacher: str
    num_answers: int
    max_new_tokens: int
    temperature: float
    ended: float
    """Share of the answers that came to an end."""
    learned: float
    """Share that was learned; `cut` of all are among them without an end."""
    cut: float


@dataclass(frozen=True)
class Seamed(Fact):
    """What was done for want of a run of removed blocks, from before them."""

    entrant: Entrant
    seam: Literal["scale", "linear"]
    removed: tuple[int, ...]
    explained: float
    """Share of the squares of what they added; 0 where nothing was changed."""


@dataclass(frozen=True)
class Skipping(Fact):
    """Blocks that are left out of a model as it is loaded, whose weights stay."""

    entrant: Entrant
    skipped: tuple[int, ...]
    num_blocks: int


@dataclass(frozen=True)
class LeavingEarly(Fact):
    """Where tokens leave a model early, and what that does to validation text, None where that has not chosen it."""

    entrant: Entrant
    after: tuple[int, ...]
    num_blocks: int
    confidence: Literal["probability", "margin"]
    threshold: float | None
    """None: no threshold was shown to keep to the bounds."""
    blocks: float | None
    """That ran, in the mean."""
    loss: float | None
    """Nats a token beyond full depth."""
    agreement: float | None
    tried: tuple[float, ...] = ()
    bound_loss: float | None = None
    bound_agreement: float | None = None


@dataclass(frozen=True)
class Stop:
    """A model on the way of a progressive removal."""

    num_blocks: int
    num_parameters: int
    more: float
    """Bits per byte of validation text beyond the model that is shrunk."""
    low: float
    high: float
    """Interval over documents; NaN of one document."""


@dataclass(frozen=True)
class Shrunk(Fact):
    """What a progressive removal came to at each stop; the last one may be beyond its bound, and is then not the result."""

    entrant: Entrant
    seed: int | None
    """None where the study has one."""
    stops: tuple[Stop, ...]
    bound: float | None
    beyond: bool


def depth_facts(findings: Findings, group: Group) -> list[Fact]:
    """What stands before removed blocks, what is skipped, and what leaves early, of the first run of a variant."""
    facts: list[Fact] = []
    for entrant in group.entrants:
        for record in (record for cell in findings.cells(entrant)[:1] for record in cell.methods):
            metrics, method = record.metrics, record.config.get("method", {})
            facts += [
                Seamed(entrant, method["seam"], tuple(seam["removed"]), seam["explained"]) for seam in metrics.get("seams", ())
            ]
            if record.kind == "skip.blocks" and record is findings.cells(entrant)[0].methods[-1]:
                facts.append(Skipping(entrant, tuple(metrics["removed_blocks"]), metrics["blocks_before"]))
            if record.kind == "exit.early":
                facts.append(_leaving(entrant, metrics, method))
    return facts


def _leaving(entrant: Entrant, metrics: Mapping[str, Any], method: Mapping[str, Any]) -> LeavingEarly:
    curve, bounds = metrics.get("curve", ()), method["within"] or {}
    chosen: Mapping[str, Any] = next((point for point in curve if point["threshold"] == metrics["threshold"]), {})
    return LeavingEarly(
        entrant,
        tuple(metrics["after"]),
        metrics["blocks"],
        metrics["confidence"],
        metrics["threshold"],
        blocks=chosen.get("blocks"),
        loss=chosen.get("loss"),
        agreement=chosen.get("agreement"),
        tried=tuple(point["threshold"] for point in curve),
        bound_loss=bounds.get("loss"),
        bound_agreement=bounds.get("agreement"),
    )


def healing_facts(findings: Findings, group: Group) -> list[Fact]:
    facts: list[Fact] = []
    for entrant in group.entrants:
        cells = findings.cells(entrant)
        facts += [fact for cell in cells if (fact := _shrunk(findings, entrant, cell))]
        taught = [record.metrics["teacher"] for cell in cells for record in cell.trained if "teacher" in record.metrics]
        if taught:
            first = taught[0]
            means = (fmean(each[name] for each in taught) for name in ("kept_mass", "rounding"))
            share = first["alpha"], first["temperature"]
            size = first["targets"], first["words"], first["cache"] == "exact"
            facts.append(Distilled(entrant, first["name"], *share, *size, *means))
        if answered := [record for cell in cells for record in cell.trained if "teacher_answers" in record.metrics]:
            method, told = answered[0].config["method"], [record.metrics["teacher_answers"] for record in answered]
            shares = (fmean(each[name] / each["answers"] for each in told) for name in ("ended", "learned", "cut"))
            how = told[0]["name"], told[0]["answers"], method["max_new_tokens"], method["temperature"]
            facts.append(TaughtAnswers(entrant, *how, *shares))
    return facts


def _shrunk(findings: Findings, entrant: Entrant, cell: Cell) -> Shrunk | None:
    stops, records = [], [record for record in cell.methods if "bits_per_byte_start" in record.metrics]
    for record in records:
        table = pd.read_parquet(record.path / "validation.parquet")
        table["more"] = (table["nats"] - table["start"]) / math.log(2)
        sums = table.groupby("document", sort=True)[["more", "bytes"]].sum().to_numpy(dtype=np.float64)
        more, size = sums[:, 0], sums[:, 1]
        interval = ratio_interval(more, size, findings.level)
        metrics = record.metrics
        stops.append(Stop(metrics["blocks_left"], metrics["parameters_left"], float(more.sum() / size.sum()), *interval))
    if not stops:
        return None
    bound = (records[-1].config["method"]["stop"] or {}).get("bits_per_byte")
    return Shrunk(
        entrant, cell.seed if len(findings.study.seeds) > 1 else None, tuple(stops), bound, records[-1].metrics["beyond"]
    )

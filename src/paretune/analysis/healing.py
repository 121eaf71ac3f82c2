"""How models were made smaller and healed: what a student learned from whom."""

from dataclasses import dataclass
from statistics import fmean

from paretune.analysis.findings import Fact, Findings, Group
from paretune.analysis.scores import Entrant


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


def healing_facts(findings: Findings, group: Group) -> list[Fact]:
    facts: list[Fact] = []
    for entrant in group.entrants:
        cells = findings.cells(entrant)
        taught = [record.metrics["teacher"] for cell in cells for record in cell.trained if "teacher" in record.metrics]
        if taught:
            first = taught[0]
            means = (fmean(each[name] for each in taught) for name in ("kept_mass", "rounding"))
            share = first["alpha"], first["temperature"]
            size = first["targets"], first["words"], first["cache"] == "exact"
            facts.append(Distilled(entrant, first["name"], *share, *size, *means))
    return facts

"""What stands between a ranking of runs and one of methods, and where a study departs from "the same for every variant"."""

from paretune.analysis2.findings import Fact, Findings, Group


def remarks(findings: Findings) -> list[Fact]:
    return []


def setup(findings: Findings) -> list[Fact]:
    return []


def data_notes(findings: Findings) -> list[Fact]:
    return []


def deviations(findings: Findings) -> list[Fact]:
    return []


def audit(findings: Findings) -> list[Fact]:
    return []


def notes(findings: Findings) -> list[Fact]:
    return []


def short_training(findings: Findings, group: Group) -> list[Fact]:
    return []


def chosen_on_validation(findings: Findings, group: Group) -> list[Fact]:
    return []


def training_notes(findings: Findings, group: Group) -> list[Fact]:
    return []


def trained_shares(findings: Findings, group: Group) -> list[Fact]:
    return []


def tuning_facts(findings: Findings, group: Group) -> list[Fact]:
    return []


def block_facts(findings: Findings, group: Group) -> list[Fact]:
    return []

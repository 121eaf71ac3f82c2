"""What question sets, tasks, ratings and other text can tell: the facts, task by task."""

from collections.abc import Mapping

from paretune.analysis2.findings import Fact, Findings, Group


def answer_facts(findings: Findings, group: Group) -> list[Fact]:
    return []


def rating_facts(findings: Findings, group: Group) -> list[Fact]:
    return []


def forgetting_facts(findings: Findings, group: Group) -> list[Fact]:
    return []


def confounded_facts(findings: Findings, group: Group) -> Mapping[str, tuple[Fact, ...]]:
    return {}

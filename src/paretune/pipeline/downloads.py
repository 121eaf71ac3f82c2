"""What a run fetches from the hub before its first stage, so that no stage downloads anything unseen."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from paretune.pipeline import hub
from paretune.pipeline.plan import Plan
from paretune.pipeline.stage import Stage
from paretune.pipeline.store import Store
from paretune.study.data import SPLITS

_PREFIX = "hub:"


@dataclass(frozen=True)
class Download:
    """A repository at a commit that a stage which has not run yet needs."""

    kind: str
    """`model` or `dataset`."""
    name: str
    commit: str
    config: str | None = None
    """Of a dataset that has several."""

    def __str__(self) -> str:
        return f"hub {self.kind} `{self.name}` at {self.commit[:8]}"


def pending(plan: Plan, store: Store) -> list[Download]:
    """Models that the cache does not hold whole, and hub datasets, of the stages that are not in the store; asks no network."""
    found: dict[Download, None] = {}
    for stage in plan.stages:
        if store.find(stage):
            continue
        for resource in (stage.resources.get(role, "") for role in ("base", "encoder", "safety.classifier")):
            if resource.startswith(_PREFIX):
                name, _, commit = resource.removeprefix(_PREFIX).rpartition("@")
                found[Download(hub.MODEL, name, commit)] = None
        for source in _sources(stage):
            if source["hub"]:
                found[Download(hub.DATASET, source["hub"], source["revision"], source["config"])] = None
    return [one for one in found if one.kind == hub.DATASET or hub.cached_model(one.name, one.commit) is None]


def fetch(downloads: list[Download], say: Callable[[str], None]) -> None:
    """Fetch each, after `say` has told what and how much; NeedsError for the first that is not to be had."""
    for one in downloads:
        if one.kind == hub.MODEL:
            hub.fetch_model(one.name, one.commit, say)
        else:
            hub.fetch_dataset(one.name, one.config, one.commit, say)


def _sources(stage: Stage) -> list[Mapping[str, Any]]:
    if stage.kind != "data":
        return []
    source = stage.config["dataset"]["source"]
    return [source[split] for split in SPLITS] if "train" in source else [source]

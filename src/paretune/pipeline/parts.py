"""What stands in a stage's key for what lies outside, and where the stage finds it."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.pipeline.config_json import num_blocks
from paretune.pipeline.hub import DATASET
from paretune.pipeline.resources import Resource
from paretune.pipeline.stage_configs import ClassifierConfig, ItemsConfig, SafetyConfig
from paretune.study.base import Spec
from paretune.study.data import Dataset, Source
from paretune.study.registry import Evaluation
from paretune.study.study import Study

if TYPE_CHECKING:
    from paretune.pipeline.lock import Lock


@dataclass
class Parts:
    """Collects the resources of one stage, and gives the digests that stand for them in its key (`registry.StageParts`)."""

    study: Study
    lock: "Lock"
    folder: Path
    where: str = ""
    """The entry of the study that the stage is made for."""
    dataset: Dataset | None = None
    resources: dict[str, Resource] = field(default_factory=dict)
    unhashed: dict[str, Any] = field(default_factory=dict)

    @property
    def max_length(self) -> int:
        """`train.max_length`."""
        return self.study.train.max_length

    @property
    def chats(self) -> bool:
        """Whether the dataset's records are conversations."""
        return self.dataset is not None and self.dataset.chats

    @property
    def tasks(self) -> Mapping[str, Mapping[str, Any]]:
        """The dataset's tasks that are scored, with how that is done."""
        return self.dataset.scored if self.dataset else {}

    def file(self, role: str, path: str) -> str:
        """The digest of a file or folder; its path becomes the resource `role`."""
        self.resources[role] = Resource(path=(self.folder / path).resolve())
        return f"sha256:{self.lock.files[path]}"

    def model(self, role: str, field: str) -> tuple[str, int]:
        """Digest and number of layers of the model that a field of the entry names; it becomes the resource `role`."""
        locked = self.lock.models[f"{self.where}.{field}"]
        self.resources[role] = locked.resource
        return locked.digest, num_blocks(locked.config) or 0

    def settings(self, **values: Any) -> None:
        """Values that the body needs and no answer depends on."""
        self.unhashed |= values

    def source(self, role: str, source: Source) -> dict[str, Any]:
        """A source with its digest or commit; where it is becomes the resource `role`."""
        content = source.model_dump(mode="json")
        if source.paths:
            first, *rest = source.paths
            content |= {"path": self.file(role, first), "format": source.resolved_format}
            if rest:
                # By the names of the files, as texts are, from the folder on that they share.
                folder = os.path.commonpath([(self.folder / path).absolute().parent for path in source.paths])
                digests = [[os.path.relpath(self.folder / path, folder), self.lock.files[path]] for path in source.paths]
                content["path"] = f"sha256:{hashlib.sha256(json.dumps(digests).encode()).hexdigest()}"
                more = tuple((self.folder / path).resolve() for path in rest)
                self.resources[role] = replace(self.resources[role], more=more)
        elif source.hub:
            content["revision"] = commit = self.lock.commit(DATASET, source.hub, source.revision)
            self.resources[role] = Resource(hub=source.hub, commit=commit, kind=DATASET, config=source.config)
        else:
            self.resources[role] = Resource(builtin=source.builtin)
        return content

    def items(self, role: str, row: Evaluation, config: Spec) -> str:
        """The digest of an evaluation's items."""
        assert row.items is not None, "asked of evaluations that have some"
        package = row.items.package
        digest = [f"{package} {version(package)}"] if package else []
        self.resources[role] = Resource()
        for name in row.items.places:
            value = getattr(config, name)
            if value and name == "builtin":
                self.resources[role] = Resource(builtin=value)
                digest.append(f"builtin:{value}")
            elif value:
                digest.append(self.file(role, value))
        return " ".join(digest)

    def all_items(self) -> dict[str, ItemsConfig]:
        """The items of every evaluation by its name, for the leakage check."""
        configs: dict[str, ItemsConfig] = {}
        for name, use in self.study.evaluate.items():
            if items := use.row.items:
                digest, content = self.items(f"items.{name}", use.row, use.config), use.config.model_dump(mode="json")
                fields = {field: content[field] for field in items.fields if field in content}
                configs[name] = ItemsConfig(digest=digest, reader=items.reader, revision=items.revision, fields=fields)
        return configs

    def safety(self) -> SafetyConfig | None:
        """What counts as unsafe; None for a study that does not say."""
        safety = self.study.safety
        if safety is None:
            return None
        words = None if safety.words is None else self.file("safety.words", safety.words)
        if safety.classifier is None:
            return SafetyConfig(words=words)
        locked, asked = self.lock.models["safety.classifier"], safety.classifier
        self.resources["safety.classifier"] = locked.resource
        classifier = ClassifierConfig(unsafe=asked.unsafe, threshold=asked.threshold, digest=locked.digest)
        return SafetyConfig(words=words, classifier=classifier, device=self.lock.device)

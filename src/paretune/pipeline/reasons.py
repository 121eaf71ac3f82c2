"""Why a stage is new: which fields differ from the nearest artifact of its kind."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from paretune.pipeline.plan import Plan
from paretune.pipeline.records import Record
from paretune.pipeline.stage import Stage
from paretune.pipeline.store import Store


@dataclass(frozen=True)
class PlannedStage:
    """A stage with what a run would do with it: `reused`, or `new` and the reason."""

    stage: Stage
    status: str
    reason: str


def review(plan: Plan, store: Store) -> list[PlannedStage]:
    """Every stage of `plan` in order, as reused or new with the reason."""
    records = list(store.records())
    reviewed, new = [], set()
    for stage in plan.stages:
        if store.find(stage):
            reviewed.append(PlannedStage(stage, "reused", ""))
            continue
        parents = [role for role, parent in stage.inputs.items() if parent in new]
        new.add(stage)
        reason = f"its {' and '.join(parents)} is new" if parents else difference(stage, records)
        reviewed.append(PlannedStage(stage, "new", reason))
    return reviewed


def difference(stage: Stage, records: list[Record]) -> str:
    """In words: what tells `stage` from the nearest record of its kind."""
    candidates = [_differences(stage, record) for record in records if record.kind == stage.kind]
    if not candidates:
        return f"no {stage.kind} in the store yet"
    return ", ".join(min(candidates, key=len)[:3])


def _differences(stage: Stage, record: Record) -> list[str]:
    old, new = dict(_leaves(record.config)), dict(_leaves(stage.config))
    told = [
        f"{name}: {_short(old.get(name, 'absent'))} -> {_short(new.get(name, 'absent'))}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, _ABSENT) != new.get(name, _ABSENT)
    ]
    if record.revision != stage.revision:
        told.append(f"revision of the method: {record.revision} -> {stage.revision}")
    roles = sorted(record.inputs.keys() | stage.inputs.keys())
    return told + [f"another {role}" for role in roles if record.inputs.get(role) != _key(stage, role)]


_ABSENT = object()


def _key(stage: Stage, role: str) -> str | None:
    return stage.inputs[role].key if role in stage.inputs else None


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 32 else f"{text[:29]}..."

"""Why a stage is new: which fields differ from the nearest artifact of its kind."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from paretune.errors import SpecError
from paretune.pipeline.plan import Plan, cell_name
from paretune.pipeline.records import Record
from paretune.pipeline.stage import Stage
from paretune.pipeline.store import Store
from paretune.pipeline.tuning import lost
from paretune.study.grid import which_variant

_DECIDED = "decided when its trials are through"
_LISTED = 3
"""Differences that stand in a line of the plan."""
_DIGEST = re.compile("(sha256:)?[0-9a-f]{64}")
_WORDS = (
    (r"base\.digest", "the files of the base"),
    (r"dataset\.source\.(?:\w+\.)?path", "the data file"),
    (r"evaluation\.path", "the file that is asked about"),
    (r"items\.(.*)\.digest", "the file of `{}`"),
)
"""Fields that hold digests, by name."""
_OWNER = re.compile(r"(method|evaluation|dataset)\.")
"""What a stage's config puts before the fields that the study writes."""
_ABSENT = object()


@dataclass(frozen=True, repr=False)
class PlannedStage:
    """A stage with what a run would do with it: `reused`, `new` and the reason, or `diverged` for a trial that lost."""

    stage: Stage
    status: str
    reason: str

    def __repr__(self) -> str:
        return f"<{self.stage.name}: {self.status}{f', {self.reason}' if self.reason else ''}>"


def review(plan: Plan, store: Store) -> list[PlannedStage]:
    """Every stage of `plan` in order, as reused or new with the reason."""
    records, diverged = list(store.records()), lost(plan, store)
    reviewed, new = [], set()
    for stage in plan.stages:
        if store.find(stage):
            reviewed.append(PlannedStage(stage, "reused", ""))
            continue
        if stage in diverged:
            reviewed.append(PlannedStage(stage, "diverged", _divergence(stage, store)))
            continue
        new.add(stage)
        parents = [role for role, parent in stage.inputs.items() if parent in new]
        if not stage.runs:
            reason = _DECIDED
        elif parents:
            reason = f"its input{'s are' if len(parents) > 1 else ' is'} new: {' and '.join(parents)}"
        else:
            alike = [_differences(stage, record) for record in records if record.kind == stage.kind]
            words = min(alike, key=lambda words: (len(words), words), default=[])
            more = f" and {len(words) - _LISTED} more" if len(words) > _LISTED else ""
            reason = f"differs in {', '.join(words[:_LISTED])}{more}" if alike else f"the first {stage.kind} in this store"
        reviewed.append(PlannedStage(stage, "new", reason))
    return reviewed


def explain(plan: Plan, store: Store, name: str) -> str:
    """Why the stage whose name begins with `name` is what it is: reused, or every field that differs from the nearest record.

    A variant, or a path to it like `gpt2/news/reduced seed 0`, stands for all stages of its own.

    Where a parent is new the reason lies there, so the first new ancestors are explained instead. SpecError for no such stage.
    """
    cells = [
        cell for cell in plan.cells if name in (cell.variant, f"{cell.base}/{cell.dataset}/{cell.variant}", cell_name(cell))
    ]
    if cells:
        stages = list(dict.fromkeys(stage for cell in cells for stage in cell.stages))
        new = [stage for stage in stages if store.find(stage) is None]
        if not new:
            return f"{name}: reused; the store holds its {len(stages)} stages"
        records = list(store.records())
        causes = dict.fromkeys(cause for stage in new for cause in _first_new(stage, store))
        head = f"{name}: {len(new)} of {len(stages)} stages are new"
        return "\n".join([head, *(_explained(stage, records, stage) for stage in causes)])
    stages = [stage for stage in plan.stages if stage.name.startswith(name)]
    if len(stages) > 1:
        listed = "".join(f"\n  {stage.name}  {', '.join(plan.uses(stage))}" for stage in stages)
        raise SpecError(f"`{name}` names several stages; write more of one name{listed}")
    if not stages:
        names = {stage.name for stage in plan.stages} | {stage.kind for stage in plan.stages}
        near = which_variant(name, names | {cell.variant for cell in plan.cells})
        way_out = "; `paretune plan` lists them" if "known: " in near else near
        raise SpecError(f"`{name}` is no stage of this study{way_out}")
    (stage,) = stages
    if stage in lost(plan, store):
        return f"{stage.name}: a trial that lost; {_divergence(stage, store)}"
    if store.find(stage):
        return f"{stage.name}: reused; the store holds it"
    records = list(store.records())
    return "\n".join(_explained(cause, records, stage) for cause in _first_new(stage, store))


def _divergence(stage: Stage, store: Store) -> str:
    divergence = store.divergence(stage)
    return divergence.message if divergence else "it goes on from a training that diverged"


def _first_new(stage: Stage, store: Store) -> list[Stage]:
    parents = [parent for parent in stage.inputs.values() if store.find(parent) is None]
    return [stage] if not parents else list(dict.fromkeys(first for parent in parents for first in _first_new(parent, store)))


def _explained(stage: Stage, records: list[Record], asked: Stage) -> str:
    because = "" if stage == asked else f"{asked.name} is new because {stage.name} is, which it needs\n"
    of_kind = [record for record in records if record.kind == stage.kind]
    if not stage.runs:
        return f"{because}{stage.name}: new; {_DECIDED}"
    if not of_kind:
        return f"{because}{stage.name}: new; the first {stage.kind} in this store"
    nearest = min(of_kind, key=lambda record: len(_differences(stage, record)))
    lines = "".join(f"\n  {line}" for line in _differences(stage, nearest))
    return f"{because}{stage.name}: new; it differs from the nearest, {nearest.path.name}, in{lines}"


def _differences(stage: Stage, record: Record) -> list[str]:
    """What `stage` differs in, each a phrase that follows `differs in`."""
    old, new = dict(_leaves(record.config)), dict(_leaves(stage.config))
    phrases = []
    for name in sorted(old.keys() | new.keys()):
        if old.get(name, _ABSENT) == new.get(name, _ABSENT):
            continue
        values = [old.get(name), new.get(name)]
        words = None
        if any(isinstance(value, str) and _DIGEST.fullmatch(value) for value in values):  # which says nothing to anybody
            matches = ((re.fullmatch(pattern, name), text) for pattern, text in _WORDS)
            words = next((text.format(*match.groups()) for match, text in matches if match), None)
        before, after = map(_short, values)
        change = "changed" if before == after else f"{before} -> {after}"
        phrases.append(words or f"{_OWNER.sub('', name)} ({change})")
    if record.revision != stage.revision:
        phrases.append(f"the revision of its code ({record.revision} -> {stage.revision})")
    keys = {role: parent.key for role, parent in stage.inputs.items()}
    roles = sorted(record.inputs.keys() | keys.keys())
    return phrases + [f"the {role} that it is given" for role in roles if record.inputs.get(role) != keys.get(role)]


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value).replace("\n", "\\n")
    return text if len(text) <= 32 else f"{text[:29]}..."

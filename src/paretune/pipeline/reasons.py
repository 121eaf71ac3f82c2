"""Why a stage is new: which fields differ from the nearest artifact of its kind."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from paretune.errors import SpecError
from paretune.pipeline.plan import CHOICE, Plan, cell_name
from paretune.pipeline.records import Record
from paretune.pipeline.stage import Stage
from paretune.pipeline.store import Store
from paretune.pipeline.tuning import lost
from paretune.study.grid import which_variant


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
        if stage.kind == CHOICE:
            new.add(stage)
            reviewed.append(PlannedStage(stage, "new", "decided when its trials are through"))
            continue
        parents = [role for role, parent in stage.inputs.items() if parent in new]
        new.add(stage)
        inputs = f"its input{'s are' if len(parents) > 1 else ' is'} new: {' and '.join(parents)}"
        reviewed.append(PlannedStage(stage, "new", inputs if parents else difference(stage, records)))
    return reviewed


def explain(plan: Plan, store: Store, name: str) -> str:
    """Why the stage whose name begins with `name` is what it is: reused, or every field that differs from the nearest record.

    A variant, or a path to it like `gpt2/news/reduced seed 0`, stands for all stages of its own.

    Where a parent is new the reason lies there, so the first new ancestors are explained instead. SpecError for no such stage.
    """
    of_cells = _stages_of(plan, name)
    if of_cells:
        return _explain_all(of_cells, store, name)
    found = [stage for stage in plan.stages if stage.name.startswith(name)]
    if len(found) != 1:
        if found:
            raise SpecError(f"`{name}` names several stages; write more of one name{_listed(plan, found)}")
        names = {stage.name for stage in plan.stages}
        near = which_variant(name, names | {stage.kind for stage in plan.stages} | {cell.variant for cell in plan.cells})
        way_out = "; `paretune plan` lists them" if "known: " in near else near
        raise SpecError(f"`{name}` is no stage of this study{way_out}")
    if found[0] in lost(plan, store):
        return f"{found[0].name}: a trial that lost; {_divergence(found[0], store)}"
    if store.find(found[0]):
        return f"{found[0].name}: reused; the store holds it"
    records = list(store.records())
    return "\n".join(_explained(stage, records, found[0]) for stage in _first_new(found[0], store))


def _stages_of(plan: Plan, name: str) -> list[Stage]:
    """The stages of the cells that are called `name`: a variant, or `base/dataset/variant` with or without a seed."""
    cells = [
        cell for cell in plan.cells if name in (cell.variant, f"{cell.base}/{cell.dataset}/{cell.variant}", cell_name(cell))
    ]
    return list(dict.fromkeys(stage for cell in cells for stage in (*cell.methods, *cell.evaluations.values())))


def _explain_all(stages: list[Stage], store: Store, name: str) -> str:
    new = [stage for stage in stages if store.find(stage) is None]
    if not new:
        return f"{name}: reused; the store holds its {len(stages)} stages"
    records = list(store.records())
    first = dict.fromkeys(cause for stage in new for cause in _first_new(stage, store))
    head = f"{name}: {len(new)} of {len(stages)} stages are new"
    return "\n".join([head, *(_explained(stage, records, stage) for stage in first)])


def _divergence(stage: Stage, store: Store) -> str:
    found = store.divergence(stage)
    return found.message if found else "it goes on from a training that diverged"


def _listed(plan: Plan, stages: list[Stage]) -> str:
    return "".join(f"\n  {stage.name}  {', '.join(plan.uses(stage))}" for stage in stages)


def _first_new(stage: Stage, store: Store) -> list[Stage]:
    parents = [parent for parent in stage.inputs.values() if store.find(parent) is None]
    return [stage] if not parents else list(dict.fromkeys(first for parent in parents for first in _first_new(parent, store)))


def _explained(stage: Stage, records: list[Record], asked: Stage) -> str:
    because = "" if stage == asked else f"{asked.name} is new because {stage.name} is, which it needs\n"
    of_kind = [record for record in records if record.kind == stage.kind]
    if stage.kind == CHOICE:
        return f"{because}{stage.name}: new; decided when its trials are through"
    if not of_kind:
        return f"{because}{stage.name}: new; the first {stage.kind} in this store"
    nearest = min(of_kind, key=lambda record: len(_differences(stage, record)))
    lines = "".join(f"\n  {line}" for line in _differences(stage, nearest))
    return f"{because}{stage.name}: new; it differs from the nearest, {nearest.path.name}, in{lines}"


def difference(stage: Stage, records: list[Record]) -> str:
    """In words: what tells `stage` from the nearest record of its kind."""
    candidates = [_differences(stage, record) for record in records if record.kind == stage.kind]
    if not candidates:
        return f"the first {stage.kind} in this store"
    told = min(candidates, key=len)
    return f"differs in {', '.join(told[:_TOLD])}{f' and {len(told) - _TOLD} more' if len(told) > _TOLD else ''}"


def _differences(stage: Stage, record: Record) -> list[str]:
    """What `stage` differs in, each a phrase that follows `differs in`."""
    old, new = dict(_leaves(record.config)), dict(_leaves(stage.config))
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name, _ABSENT) != new.get(name, _ABSENT)]
    told = [_phrase(name, old.get(name), new.get(name)) for name in names]
    if record.revision != stage.revision:
        told.append(f"the revision of its code ({record.revision} -> {stage.revision})")
    roles = sorted(record.inputs.keys() | stage.inputs.keys())
    return told + [f"the {role} that it is given" for role in roles if record.inputs.get(role) != _key(stage, role)]


def _phrase(name: str, old: Any, new: Any) -> str:
    if _is_digest(old) or _is_digest(new):  # 64 hexadecimal digits say nothing to anybody
        for pattern, words in _WORDS:
            if found := re.fullmatch(pattern, name):
                return words.format(*found.groups())
    before, after = _short(old), _short(new)
    return f"{_OWNER.sub('', name)} ({'changed' if before == after else f'{before} -> {after}'})"


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("(sha256:)?[0-9a-f]{64}", value) is not None


_TOLD = 3
"""Differences that stand in a line of the plan."""
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


def _key(stage: Stage, role: str) -> str | None:
    return stage.inputs[role].key if role in stage.inputs else None


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value).replace("\n", "\\n")
    return text if len(text) <= 32 else f"{text[:29]}..."

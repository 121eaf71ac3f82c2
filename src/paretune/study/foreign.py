"""What a name that is not known where it stands is called here: a field of another part of the study, or another tool's word.

Where our fields stand is read off the types that parse a study, so that a new field is known at once. What other tools call
things is one table, `assets/foreign.toml`. A row that names nothing that is there yet says so, and what to do instead.
"""

import functools
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from paretune.study.base import Spec, suggestion

METHOD, EVALUATION, COMMAND = "variants:", "evaluate:", "$ "
"""How addresses begin: of methods and evaluations, with their fields after the name (`variants:train.lora.r`), and of commands
and flags (`$ run --memory`). Other addresses are sections and their fields (`train.epochs`, `data.NAME.source.path`)."""
_NEAREST = 3
"""Places of a field that are told at most."""


@dataclass(frozen=True)
class Foreign:
    """What other tools call something of ours."""

    names: str
    """Theirs, with spaces between; small letters, `_` for `-`."""
    ours: str = ""
    """Addresses, with spaces between; `*` stands for any letters."""
    note: str = ""
    """What differs."""
    missing: str = ""
    """What is said where nothing of `ours` is there."""


@functools.cache
def foreign() -> tuple[Foreign, ...]:
    """The rows of `assets/foreign.toml`."""
    table = resources.files("paretune") / "assets" / "foreign.toml"
    return tuple(Foreign(**row) for row in tomllib.loads(table.read_text(encoding="utf-8"))["rows"])


def unknown(name: str, known: Mapping[str, FieldInfo], where: str) -> str:
    """What follows `unknown key`: what it is called here, or the nearest of those that are known, and where it belongs.

    A field of one of those that are known (`search` of `budget`) is taken to be meant, whatever other tools call so.
    """
    elsewhere = belongs(name, where)
    if where and any(name == inner for field in known.values() for _, inner in _fields(field.annotation, "")):
        return elsewhere
    near = suggestion(name, known)
    is_near = near.startswith("; did you mean")
    return called(name, where) or (f"{near}{elsewhere}" if is_near else elsewhere or near)


def called(name: str, where: str = "", commands: Collection[str] = ()) -> str:
    """`; it is called `alpha` here, in `train.lora` ...` for a name of other tools; empty for one that is in no row.

    `commands` are the addresses of commands and flags that are there; those of a row are taken to be, unless it says `missing`.
    """
    rows = _by_name().get(_normal(name), [])
    row = max(rows, key=lambda row: _shared(row.ours, where), default=None)
    if row is None:
        return ""
    wanted = _addresses_in(row.ours)
    there = {*addresses(), *commands, *(address for address in wanted if address.startswith(COMMAND) and not row.missing)}
    ours = [address for pattern in wanted for address in sorted(there) if fnmatchcase(address, pattern)]
    if not ours:
        return f"; {row.missing}"
    nearest = max(_shared(address, where) for address in ours)
    ours = [address for address in ours if _shared(address, where) == nearest]
    names = dict.fromkeys(
        f"`paretune {address.removeprefix(COMMAND)}`" if address.startswith(COMMAND) else f"`{addresses()[address]}`"
        for address in ours
    )
    owners = dict.fromkeys(owner for address in ours if (owner := _owner(address)))
    place = f", in {' and '.join(owners)}" if owners else ""
    return f"; it is called {' and '.join(names)} here{place}{f': {row.note}' if row.note else ''}"


@functools.cache
def addresses() -> Mapping[str, str]:
    """Every section, field, method and evaluation of a study by its address, with the name that stands last in it."""
    from paretune.study.registry import evaluations, methods
    from paretune.study.study import Study

    found: dict[str, str] = {}
    for name, field in Study.model_fields.items():
        found[name] = name
        if name not in ("variants", "evaluate"):
            owner = f"{name}.NAME" if name in ("bases", "data") else name
            found |= dict(_fields(field.annotation, owner))
    rows: tuple[tuple[str, Mapping[str, Any]], ...] = ((METHOD, methods()), (EVALUATION, evaluations()))
    for kind, table in rows:
        for name, row in table.items():
            found[f"{kind}{name}"] = name
            found |= dict(_fields(row.config, f"{kind}{name}"))
    return found


def _fields(annotation: Any, owner: str) -> Iterator[tuple[str, str]]:
    """Address and name of each field of the models in an annotation, those of nested models too."""
    for model in _models(annotation):
        for name, field in model.model_fields.items():
            yield f"{owner}.{name}", name
            yield from _fields(field.annotation, f"{owner}.{name}")


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def belongs(name: str, where: str = "") -> str:
    """`; `r` belongs in ...`: where a field of that name stands, in the parts nearest to `where`; empty where nowhere."""
    owners = {address.rpartition(".")[0]: address for address, last in addresses().items() if last == name and "." in address}
    # Those of `source.train` are those of `source` again.
    outer = [each for owner, each in owners.items() if not any(owner.startswith(f"{other}.") for other in owners)]
    # A method of one step before one that takes it among others, and `train.full` before others for what stands in `train`.
    section = where.partition(".")[0] or "train"
    outer.sort(key=lambda address: (address.count("."), not address.removeprefix(METHOD).startswith(f"{section}.")))
    most = max((_shared(address, where) for address in outer), default=0)
    told = list(dict.fromkeys(_owner(address) for address in outer if _shared(address, where) == most))
    more = ", or elsewhere" if len(told) > _NEAREST else ""
    return f"; `{name}` belongs in {', or '.join(told[:_NEAREST])}{more}" if told else ""


def _owner(address: str) -> str:
    """Where an address stands, in words; empty at the top of the study."""
    kind = next((kind for kind in (METHOD, EVALUATION) if address.startswith(kind)), "")
    if not kind or address.startswith(COMMAND):
        owner = "" if address.startswith(COMMAND) else address.rpartition(".")[0]
        return f"`{owner}`" if owner else ""
    rest, section = address.removeprefix(kind), kind.removesuffix(":")
    if rest in _rows_of(kind):
        return f"`{section}`"
    return f"`{rest.rpartition('.')[0]}` (in `{section}`)"


def _rows_of(kind: str) -> Collection[str]:
    from paretune.study.registry import evaluations, methods

    return (methods() if kind == METHOD else evaluations()).keys()


def _addresses_in(ours: str) -> list[str]:
    """`$ run --out` is one address, although it holds spaces."""
    return re.findall(r"\$ \S+(?: --\S+)?|\S+", ours)


def _shared(address: str, where: str) -> int:
    """How many of the first keys an address shares with a place of a study."""
    ours, theirs = re.split(r"[.:]", address), re.split(r"[.:\[]", where)
    count = 0
    for one, other in zip(ours, theirs, strict=False):
        if one not in (other, "NAME"):
            break
        count += 1
    return count


@functools.cache
def _by_name() -> Mapping[str, list[Foreign]]:
    table: dict[str, list[Foreign]] = {}
    for row in foreign():
        for name in row.names.split():
            table.setdefault(name, []).append(row)
    return table


def _normal(name: str) -> str:
    """`--num-train-epochs` is `num_train_epochs`, `loraAlpha` `lora_alpha`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.lstrip("-")) if not name.isupper() else name
    return words.lower().replace("-", "_")

"""What every part of a study file is: a frozen, closed pydantic model; and words that messages about its fields share."""

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer, model_validator

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
FILE: dict[str, Any] = {"outside": "file"}
"""`Field(json_schema_extra=FILE)`: the field names a file, or several; relative to the study file."""
FOLDER: dict[str, Any] = {"outside": "folder"}
"""The same mark of a field that names a folder."""
DATA: dict[str, Any] = {"outside": "data"}
"""The same mark of a field that names data: a file, a folder, a pattern, or a list of these."""


FROM_KEY = "from a key"
"""Context of validation: what is read has been checked before, and its defaults are written out."""


class Spec(BaseModel):
    """A closed value: frozen, no unknown keys, no silent conversion, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)
    LATER: ClassVar[tuple[str, ...]] = ()
    """Fields that were added to a class whose values are part of keys: at their default they are not written out, so that the
    keys from before live on."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        defaults = type(self).model_fields
        said = {name for name in self.LATER if getattr(self, name) != defaults[name].default}
        return {name: value for name, value in fields.items() if name not in self.LATER or name in said}


SpecT = TypeVar("SpecT", bound=Spec)


class OtherModel(Spec):
    """A model in Hugging Face format that measures and is not measured: `path` or `hub`."""

    path: str | None = None
    """A directory in Hugging Face format; relative to the study file."""
    hub: str | None = None
    """A repository of the Hugging Face hub, `owner/name`."""
    revision: str | None = None
    """Commit, tag or branch of `hub`; the commit is pinned in the lock."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("name exactly one of `path` and `hub`")
        if self.revision is not None and self.hub is None:
            raise ValueError("`revision` goes with `hub`")
        return self


@dataclass(frozen=True)
class Outside:
    """Something outside the study file that a field of it names."""

    where: str
    """The field, as messages name it: `evaluate.qa.path`."""
    kind: str
    """`file`, `folder`, `data` or `model`."""
    value: Any
    """A path as the study writes it, or the OtherModel."""


def outside_of(spec: Spec, where: str) -> Iterator[Outside]:
    """What `spec`, which stands at `where`, names of the outside: files, folders, and models that measure."""
    for name, field in type(spec).model_fields.items():
        value, at = getattr(spec, name), f"{where}.{name}"
        if isinstance(value, OtherModel):
            yield Outside(at, "model", value)
        elif isinstance(value, Spec):
            yield from outside_of(value, at)
        elif value and isinstance(field.json_schema_extra, dict) and (kind := field.json_schema_extra.get("outside")):
            paths = {at: value} if isinstance(value, str) else {f"{at}[{n}]": path for n, path in enumerate(value)}
            for each, path in paths.items():
                yield Outside(each, str(kind), path)


def listed(value: object) -> object:
    """For the validator of a field before all others: one entry may be written without its list."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def distinct(value: tuple[Any, ...]) -> tuple[Any, ...]:
    """For the validator of a field: ValueError where a list names something twice."""
    if len(set(value)) < len(value):
        raise ValueError("one entry stands there twice")
    return value


def suggestion(word: str, choices: Iterable[str]) -> str:
    """`; did you mean `x`?` for the nearest choice, else the list of choices."""
    known = sorted(choices)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean `{near[0]}`?"
    return "; known: " + ticked(known)


def ticked(names: Iterable[str]) -> str:
    """`` `a`, `b` ``: names in a message."""
    return ", ".join(f"`{name}`" for name in names)


def shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return f"`{text if len(text) <= 80 else text[:77] + '...'}`"

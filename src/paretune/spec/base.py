"""What every part of a study file is: a frozen, closed pydantic model, with its mistakes told in the user's words.

`validate` turns a plain mapping into a model or raises one SpecError that names each wrong field, its value and the way out.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from paretune.errors import SpecError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Spec(BaseModel):
    """A closed value: frozen, no unknown keys, no silent conversion, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


SpecT = TypeVar("SpecT", bound=Spec)


def validate(model: type[SpecT], value: object, where: str) -> SpecT:
    """`value` (plain JSON types) as `model`; SpecError with one line for each wrong field, located under `where`."""
    if not isinstance(value, Mapping):
        raise SpecError(f"{where}: expected a mapping of fields, got {shown(value)}")
    try:
        # Through JSON: strict mode then takes a list for a tuple and `1` for a float, and still refuses "1".
        return model.model_validate_json(json.dumps(value))
    except ValidationError as error:
        lines = [_told(model, dict(detail), where) for detail in error.errors()]
        raise SpecError("\n".join(dict.fromkeys(lines))) from None


def check_name(name: str, where: str) -> None:
    """Names become directory names and table entries: letters, digits, `.`, `_` and `-` only."""
    if not NAME.fullmatch(name):
        raise SpecError(
            f"{where}: `{name}` cannot be a name; use letters, digits, `.`, `_` and `-`, beginning with a letter or digit"
        )


def suggestion(word: str, choices: Iterable[str]) -> str:
    """`; did you mean `x`?` for the nearest choice, else the list of choices."""
    known = sorted(choices)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean `{near[0]}`?"
    return "; known: " + ", ".join(f"`{choice}`" for choice in known)


def shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return f"`{text if len(text) <= 80 else text[:77] + '...'}`"


def _told(model: type[BaseModel], detail: dict[str, Any], where: str) -> str:
    keys = [key for key in detail["loc"] if not (isinstance(key, str) and key.startswith("as:"))]
    place = where + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    if detail["type"] == "extra_forbidden":
        owner = _model_at(model, detail["loc"][:-1])
        return f"{place}: unknown key{suggestion(str(keys[-1]), owner.model_fields)}"
    if detail["type"] == "missing":
        return f"{place}: missing; this field has no default"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{place}: {message[:1].lower()}{message[1:]}, got {shown(detail['input'])}"


def _model_at(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """The model class that stands at `location` below `model`; tags of unions (`as:...`) name the class themselves."""
    for key in location:
        if isinstance(key, int):
            continue
        if key.startswith("as:"):
            model = next(c for c in _all_specs() if f"as:{c.__name__}" == key)
            continue
        field = model.model_fields.get(key)
        found = _models_in(field.annotation) if field else []
        if len(found) == 1:
            model = found[0]
    return model


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]


def _all_specs() -> list[type[BaseModel]]:
    found, pending = [], [Spec]
    while pending:
        subclasses = pending.pop().__subclasses__()
        found += subclasses
        pending += subclasses
    return list(found)

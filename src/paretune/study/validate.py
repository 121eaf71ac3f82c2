"""A plain mapping as a part of a study, or one SpecError that names each wrong field, its value and the way out."""

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from paretune.errors import SpecError
from paretune.study.base import NAME, Spec, SpecT, shown

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "`true` or `false`",
    "string_type": "a text",
    "tuple_type": "a list `[...]`",
    "list_type": "a list `[...]`",
    "dict_type": "a mapping of fields",
    "model_type": "a mapping of fields",
    "model_attributes_type": "a mapping of fields",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than": "less than {lt:g}",
    "less_than_equal": "{le:g} or less",
    "string_too_short": "a text with {min_length} or more characters",
    "too_short": "a list with {min_length} or more entries",
}
"""What pydantic's errors ask for, by their type, in the words of a study file."""
_BRANCH = re.compile(r"(literal|tuple|list)\[.*\]|int|float|str|bool|as:.*")
"""What pydantic puts into the place of an error to say which branch of a union was tried."""


def validate(model: type[SpecT], value: object, where: str) -> SpecT:
    """`value` (plain JSON types) as `model`; SpecError with one line for each wrong field, located under `where`."""
    if not isinstance(value, Mapping):
        places = [name for name in ("hub", "path") if isinstance(value, str) and name in model.model_fields]
        way_out = "; write " + " or ".join(f"`{{{name}: {value}}}`" for name in places) if places else ""
        raise SpecError(f"{where}: expected a mapping of fields, got {shown(value)}{way_out}")
    try:
        # Through JSON: strict mode then takes a list for a tuple and `1` for a float, and still refuses "1".
        return model.model_validate_json(json.dumps(value))
    except ValidationError as error:
        raise SpecError("\n".join(_messages(model, error, where))) from None


def check_name(name: str, where: str) -> None:
    """Names become directory names and table entries: letters, digits, `.`, `_` and `-` only."""
    if not NAME.fullmatch(name):
        quoted = f"`{name}`" if name.isprintable() and len(name) <= 100 else shown(name)
        raise SpecError(
            f"{where}: {quoted} cannot be a name; use letters, digits, `.`, `_` and `-`, beginning with a letter or digit, "
            "and at most 100 characters"
        )


def _messages(model: type[BaseModel], error: ValidationError, where: str) -> list[str]:
    """One line for each wrong field; what the branches of a union expect stands in one."""
    expected: dict[str, list[str]] = {}
    values: dict[str, str] = {}
    lines: list[str] = []
    for detail in error.errors():
        location, context = detail["loc"], detail.get("ctx", {})
        keys = [key for key in location if not (isinstance(key, str) and _BRANCH.fullmatch(key))]
        field = where + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
        if detail["type"] == "extra_forbidden":
            from paretune.study.foreign import unknown  # which knows all parts of a study

            owner = _model_at(model, location[:-1])
            lines.append(f"{field}: unknown key{unknown(str(keys[-1]), owner.model_fields, where)}")
        elif detail["type"] == "missing":
            lines.append(f"{field}: missing; this field has no default")
        elif detail["type"] == "too_short" and len(detail["input"]) >= context["min_length"]:
            continue  # counted without the entries that are wrong, and those have lines of their own
        else:
            if detail["type"] == "literal_error":
                words = "expected " + str(context["expected"]).replace("'", "`")
            elif detail["type"] in _EXPECTED:
                words = "expected " + _EXPECTED[detail["type"]].format(**context)
            else:
                message = detail["msg"].removeprefix("Value error, ")
                words = f"{message[:1].lower()}{message[1:]}"
            expected.setdefault(field, []).append(words)
            values[field] = shown(detail["input"])
    wrong = [f"{field}: {' or '.join(dict.fromkeys(words))}, got {values[field]}" for field, words in expected.items()]
    return lines + [line.replace(" or expected ", ", or ") for line in wrong]


def _model_at(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """The model class that stands at `location` below `model`; tags of unions (`as:...`) name the class themselves."""

    def models_in(annotation: Any) -> list[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return [annotation]
        return [model for part in getattr(annotation, "__args__", ()) for model in models_in(part)]

    specs = [Spec]
    for spec in specs:  # grows while it is walked: all classes below Spec
        specs += spec.__subclasses__()
    for key in location:
        if isinstance(key, int):
            continue
        if key.startswith("as:"):
            model = next(spec for spec in specs if f"as:{spec.__name__}" == key)
            continue
        field = model.model_fields.get(key)
        models = models_in(field.annotation) if field else []
        if len(models) == 1:
            model = models[0]
    return model

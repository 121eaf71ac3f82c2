"""What every part of a study file is: a frozen, closed pydantic model, with its mistakes told in the user's words.

`validate` turns a plain mapping into a model or raises one SpecError that names each wrong field, its value and the way out.
"""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from paretune.errors import SpecError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
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


SpecT = TypeVar("SpecT", bound=Spec)


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


def listed(value: object) -> object:
    """For the validator of a field before all others: one entry may be written without its list."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def distinct(value: tuple[Any, ...]) -> tuple[Any, ...]:
    """For the validator of a field: ValueError where a list names something twice."""
    if len(set(value)) < len(value):
        raise ValueError("one entry stands there twice")
    return value


def check_name(name: str, where: str) -> None:
    """Names become directory names and table entries: letters, digits, `.`, `_` and `-` only."""
    if not NAME.fullmatch(name):
        quoted = f"`{name}`" if name.isprintable() and len(name) <= 100 else shown(name)
        raise SpecError(
            f"{where}: {quoted} cannot be a name; use letters, digits, `.`, `_` and `-`, beginning with a letter or digit, "
            "and at most 100 characters"
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

"""Fields of a record, and templates over them: Jinja2 in a sandbox, everything outside the braces literal.

A field that is missing, null or NaN is an error where it is written out, never an empty string or the word "None"; so is a
list, which Python would write with brackets and quotes. A template sees the record and nothing else: no globals, files, chance.
"""

import datetime
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing

from paretune.errors import DataError, SpecError
from paretune.study.base import shown, suggestion, ticked

_NAME_WITH_SPACE = re.compile(r"\{\{\s*\w+ +\w+")
_RENAME = "one whose name holds a space or a hyphen needs another name (`columns: [...]` renames those of a csv)"
LEAVE_OUT = "leave such records out with `clean: {drop: [empty]}`"
_RENDER_ERRORS = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, NameError)


class _Missing(jinja2.StrictUndefined):
    """A field that the record does not have: an error in any use but `is defined` and `default`."""

    __slots__ = ()

    @property
    def _undefined_message(self) -> str:
        if self._undefined_hint:
            return self._undefined_hint
        if self._undefined_obj is missing:
            return f"field `{self._undefined_name}` is missing"
        return f"`{self._undefined_name}` is missing in {_kind(self._undefined_obj)}, {shown(self._undefined_obj)},"


class _Null(_Missing):
    """A null: as a missing field, but false in a condition, so that `{% if input %}` asks whether there is one."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        # As in a list that is written out as text.
        self._fail_with_undefined_error()


class _NotPrintable(Exception):
    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self.value = value


def _printable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"a result is {value}, which is no number")
    if isinstance(value, str | int | float | Decimal | datetime.date | datetime.time | jinja2.Undefined):
        return value
    raise _NotPrintable(value)


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return "a list"
    return {"bytes": "bytes", "str": "a text"}.get(type(value).__name__, f"of type {type(value).__name__}")


_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=_Missing, keep_trailing_newline=True, autoescape=False, finalize=_printable
)
# A global would hide a misspelt or missing field of that name (`range`, `dict`), and `random` another answer each time.
_ENVIRONMENT.globals.clear()
del _ENVIRONMENT.filters["random"]
_ENVIRONMENT.tests["none"] = lambda value: value is None or isinstance(value, _Null)


@dataclass(frozen=True)
class Template:
    """A template that is known to be well formed."""

    source: str
    fields: tuple[str, ...]
    """The fields of a record that it uses, in alphabetical order."""
    needed: tuple[str, ...]
    """Those of them that it takes for granted: they stand outside of conditions, and without a `default`."""
    compiled: jinja2.Template


def parse_template(source: str) -> Template:
    """`source` as a template; SpecError with the line and the way out if it is none. Line ends in it become `\\n`."""
    try:
        tree = _ENVIRONMENT.parse(source)
        fields = meta.find_undeclared_variables(tree)
        return Template(
            source, tuple(sorted(fields)), tuple(sorted(fields & set(_needed(tree)))), _ENVIRONMENT.from_string(source)
        )
    except jinja2.TemplateSyntaxError as error:
        more = _RENAME if _NAME_WITH_SPACE.search(source) else "literal braces stand between `{% raw %}` and `{% endraw %}`"
        raise SpecError(
            f"template {shown(source)}: line {error.lineno}: {error.message}; a field is written `{{{{ name }}}}`, and {more}"
        ) from None
    except jinja2.TemplateError as error:
        raise SpecError(f"template {shown(source)}: {error}") from None


def _needed(node: nodes.Node) -> Iterator[str]:
    """The names that stand outside of conditions, tests and what has a `default`."""
    if isinstance(node, nodes.If | nodes.CondExpr | nodes.Test) or (
        isinstance(node, nodes.Filter) and node.name in ("default", "d")
    ):
        return
    if isinstance(node, nodes.Name):
        yield node.name
    for child in node.iter_child_nodes():
        yield from _needed(child)


def render(template: Template, record: Mapping[str, Any], where: str) -> str:
    """`template` with the fields of `record`, which stands at `where` (`articles.jsonl: line 12`).

    Raises DataError if a field that is written out is missing, null, or no text, number or date.
    """
    values = {name: _with_nulls(value, f"field `{name}`") for name, value in record.items()}
    try:
        return template.compiled.render(values)
    except jinja2.UndefinedError as error:
        message = error.message or "a field is missing"
        raise DataError(f"{where}: {message} in {shown(template.source)}; {_way_out(record, message)}") from None
    except _NotPrintable as error:
        names = [name for name in template.fields if values.get(name) is error.value]
        subject = f"field `{names[0]}`" if names else "an expression"
        if names and (form := _conversation(error.value)):
            raise DataError(
                f"{where}: {subject} is a conversation, a list of messages; write `records: {form}` in place of the template, "
                "and its turns are read as the chat template of the base has them"
            ) from None
        raise DataError(
            f"{where}: {subject} is {_kind(error.value)}, {shown(error.value)}; write it out with a filter, "
            f"like `{{{{ {names[0] if names else 'tags'} | join(', ') }}}}`"
        ) from None
    except _RENDER_ERRORS as error:
        raise DataError(f"{where}: {shown(template.source)} cannot be filled in ({error})") from None


def _conversation(value: Any) -> str:
    """The ready format of a list of messages; empty for anything else."""
    first = value[0] if isinstance(value, list) and value and isinstance(value[0], Mapping) else {}
    return "messages" if {"role", "content"} <= first.keys() else "sharegpt" if {"from", "value"} <= first.keys() else ""


def named_value(record: Mapping[str, Any], field: str, key: str, where: str) -> str:
    """The value of the field that `document:` or `stratify:` (the `key`) names, as text; DataError where it has none.

    A field of an object is named after it: `metadata.conversation_id`.
    """
    outer, _, inner = field.partition(".")
    if field not in record and isinstance(record.get(outer), Mapping) and inner in record[outer]:
        return named_value({field: record[outer][inner]}, field, key, where)
    if field not in record:
        near = suggestion(field, record)
        raise DataError(f"{where}: no field `{field}`, which `{key}` names{near} (it has {ticked(record)})")
    value = record[field]
    if isinstance(value, dict | list | bytes):
        raise DataError(f"{where}: `{key}: {field}` is {shown(value)}; it takes a field that holds a text or a number")
    if is_blank(value):
        way_out = "leave `document` out, and every record is one" if key == "document" else "leave `stratify` out"
        raise DataError(f"{where}: `{key}: {field}` is empty, {shown(value)}; fill it in, {LEAVE_OUT}, or {way_out}")
    return str(value)


def is_blank(value: Any) -> bool:
    """Null, nothing but white space, or a list or object of nothing."""
    return value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, list | Mapping) and not value)


def _way_out(record: Mapping[str, Any], message: str) -> str:
    columns = "the record has " + (ticked(record) or "no fields")
    named = re.match("field `([^`]+)` is", message)
    if named is None:
        return columns + "; repair the record, or ask with `is defined` before it is used"
    name, path = re.split(r"[.\[]", named[1])[0], named[1]
    if len(record) == 1 and re.search(r"[;,|\t]", next(iter(record))):
        return columns + ", one field; is `delimiter:` right?"
    if name not in record and any(name in re.split(r"[\W]+", field) for field in record if not field.isidentifier()):
        return f"{columns}; {_RENAME}"
    near = "" if name in record else suggestion(name, record)
    if near.startswith("; did you mean"):
        return columns + near
    correct = "" if name in record else "correct the name, or "
    return f"{columns}; {correct}where it may be missing write `{{{{ {path} | default('') }}}}`"


def _with_nulls(value: Any, name: str) -> Any:
    # Filters turn None into the text "None" (`{{ title | upper }}`); an undefined value makes them fail.
    if value is None:
        return _Null(hint=f"{name} is null")
    if isinstance(value, float) and not math.isfinite(value):
        return _Null(hint=f"{name} is {value}, which is no number")
    if isinstance(value, Mapping):
        path = name.removesuffix("`")
        return {
            key: _with_nulls(item, f"{path}.{key}`" if str(key).isidentifier() else f"{path}[{key!r}]`")
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_with_nulls(item, f"an item of {name}") for item in value]
    return value

"""`{grid: [...]}` and `{tune: [...]}` in the fields of a variant's methods: found, checked, and written out one by one.

Both stand for a list of values of one field; of several fields the product is taken. What they mean is decided elsewhere: a
grid makes variants, a tuned value is chosen on validation.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from paretune.errors import SpecError
from paretune.study.base import shown, suggestion

GRID, TUNE = "grid", "tune"
_WORDS = frozenset((GRID, TUNE))
_EXAMPLES = {GRID: "{grid: [4, 8, 16]}", TUNE: "{tune: [1.0e-4, 3.0e-4, 1.0e-3]}"}


@dataclass(frozen=True)
class Options:
    """The values of one field of one method of a chain."""

    index: int
    method: str
    path: tuple[str, ...]
    """Keys from the method's fields to this one."""
    values: tuple[Any, ...]
    where: str


def find_options(chain: object, word: str, where: str) -> list[Options]:
    """Every `{word: [...]}` in a list of methods as the file has it; SpecError for one that is malformed."""
    options: list[Options] = []
    for index, method in enumerate(chain if isinstance(chain, list) else ()):
        if isinstance(method, Mapping) and len(method) == 1:  # the rest is told where methods are read
            ((name, fields),) = method.items()
            entry = f"{where}[{index}].{name}"
            if _is_options(fields):
                raise SpecError(f"{entry}: `{next(iter(fields))}` stands for the values of a field, and this is a method")
            for path, value, at in _inside(fields, entry, word):
                _check_values(value, word, at)
                options.append(Options(index, name, path, tuple(value), at))
    return options


def written_out(chain: list[Any], options: Sequence[Options]) -> list[tuple[str, list[Any]]]:
    """The product: what to call each combination (`r=4,learning_rate=3e-4`), and the chain with its values written in."""
    # Fields are called by their last key, or by as much more as tells them all apart.
    lengths = (
        [each.path[-1] for each in options],
        [".".join(each.path) for each in options],
        [".".join((each.method, *each.path)) for each in options],
        [".".join((str(each.index), each.method, *each.path)) for each in options],
    )
    names = next(names for names in lengths if len(set(names)) == len(names))
    combinations = []
    for values in itertools.product(*(each.values for each in options)):
        written = deepcopy(chain)
        for each, value in zip(options, values, strict=True):
            fields = written[each.index][each.method]
            for key in each.path[:-1]:
                fields = fields[key]
            fields[each.path[-1]] = value
        label = ",".join(f"{name}={_value_name(value)}" for name, value in zip(names, values, strict=True))
        combinations.append((label, written))
    return combinations


def refuse_elsewhere(value: object, where: str) -> None:
    """SpecError for a list of values in a part of the study that is the same for all variants."""
    if isinstance(value, Mapping):
        if len(value) == 1 and _is_options(value) and isinstance(next(iter(value.values())), list):
            word = next(iter(value))
            raise SpecError(
                f"{where}: `{word}` goes with a field of a method in `variants`; what stands here is the same for all"
            )
        for key, item in value.items():
            refuse_elsewhere(item, f"{where}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            refuse_elsewhere(item, f"{where}[{index}]")


def grid_of(name: str) -> str:
    """The name in the file that a variant's name comes from: `rank` of `rank[r=4]`."""
    return name.partition("[")[0]


def values_in(name: str) -> dict[str, str]:
    """What a member of a grid has of each of its fields, as its name says it: `{"r": "4"}` of `rank[r=4]`; else nothing."""
    inside = name.partition("[")[2].removesuffix("]")
    return {field: value for field, _, value in (part.partition("=") for part in inside.split(",")) if field}


def which_variant(unknown: str, variants: Iterable[str]) -> str:
    """What follows `no variant ...`: the members where a grid is meant, else the nearest name."""
    variants = list(variants)
    members = [f'`"{name}"`' for name in variants if name != grid_of(name) and grid_of(name) == unknown]
    if members:
        return f": it is a grid of {', '.join(members)}; name one of them, in quotes"
    return suggestion(unknown, variants)


def file_name(variant: str) -> str:
    """A variant's name for files, without brackets and equals signs: `rank-r-4` of `rank[r=4]`."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in variant).strip("-")


def file_names(named: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Names for files, of several names each, all different: `a-b-c` of `a`, `b-c`, and `a-b-c-2` of `a-b`, `c` after it."""
    joined = {names: "-".join(map(file_name, names)) for names in named}
    found: dict[tuple[str, ...], str] = {}
    for names, text in joined.items():
        others = (other for other in (f"{text}-{number}" for number in itertools.count(2)) if other not in joined.values())
        found[names] = next(each for each in itertools.chain([text], others) if each not in found.values())
    return found


def _is_options(value: object) -> bool:
    return isinstance(value, Mapping) and not _WORDS.isdisjoint(value)


def _inside(value: object, where: str, word: str, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, str]]:
    if _is_options(value):
        assert isinstance(value, Mapping)
        if len(value) > 1:
            raise SpecError(f"{where}: `{GRID}` or `{TUNE}` stands alone, got {shown(value)}; write `{_EXAMPLES[word]}`")
        if word in value:
            yield path, value[word], where
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _inside(item, f"{where}.{key}", word, (*path, key))


def _check_values(values: object, word: str, where: str) -> None:
    if not isinstance(values, list):
        raise SpecError(f"{where}.{word}: expected a list of values like `{_EXAMPLES[word]}`, got {shown(values)}")
    if len(values) < 2:
        what = f"one value, {shown(values[0])}, is no list to choose from; write it without `{word}`" if values else "no values"
        raise SpecError(f"{where}.{word}: {what}; several are written `{_EXAMPLES[word]}`")
    for index, value in enumerate(values):
        if _is_options(value):
            raise SpecError(f"{where}.{word}[{index}]: a list of values inside another; write all values into one")
        if word == TUNE and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise SpecError(f"{where}.{word}[{index}]: only numbers are tuned, got {shown(value)}; `grid` takes any value")
    names = [_value_name(value) for value in values]
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise SpecError(f"{where}.{word}: `{twice}` stands there twice; write each value once")


def _value_name(value: Any) -> str:
    """A value inside a name: `3e-4`, `0.05`, `all-linear`, `q_proj+v_proj`."""
    if isinstance(value, Mapping):
        return "+".join(f"{key}:{_value_name(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "+".join(map(_value_name, value))
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    if not isinstance(value, float):
        return str(value)
    number = Decimal(repr(value)).normalize()
    return f"{number:f}" if value == 0 or 0.01 <= abs(value) < 1e5 else f"{number:e}".replace("e+", "e")

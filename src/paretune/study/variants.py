"""`variants:` of a study: a list of methods under a name, or several variants of a grid; and the trials of a tuned one."""

from collections.abc import Mapping
from typing import Any

from pydantic import SerializeAsAny

from paretune.errors import SpecError
from paretune.study.base import Spec, shown, suggestion
from paretune.study.grid import GRID, TUNE, file_name, find_options, written_out
from paretune.study.registry import Method, find_method, methods
from paretune.study.validate import validate

_KEYS = ("methods", "bases")


class MethodUse(Spec):
    """A method with its configuration, as a variant uses it."""

    name: str
    config: SerializeAsAny[Spec]

    @property
    def row(self) -> Method:
        return methods()[self.name]


class Trial(Spec):
    """The methods of a tuned variant with one combination of the values to choose from."""

    name: str
    """The values, like `learning_rate=3e-4`."""
    methods: tuple[MethodUse, ...]


class Variant(Spec):
    """A base plus an ordered list of methods."""

    methods: tuple[MethodUse, ...]
    """Of a tuned variant those of its first trial."""
    bases: tuple[str, ...] | None = None
    """All bases of the study unless given."""
    trials: tuple[Trial, ...] = ()
    """What a tuned variant is chosen from; one of them becomes it, on each base and dataset."""

    @property
    def chains(self) -> tuple[tuple[MethodUse, ...], ...]:
        """Every list of methods that the variant can become."""
        return tuple(trial.methods for trial in self.trials) or (self.methods,)

    @property
    def trains(self) -> bool:
        """Whether it has a seed."""
        return any(use.row.trains for use in self.methods)

    @property
    def first_tuned(self) -> int:
        """Index of the first method that the choice is about."""
        columns = zip(*self.chains, strict=True)
        return next(index for index, uses in enumerate(columns) if any(use != uses[0] for use in uses))

    @property
    def last_trained(self) -> int:
        """Index of the last method that trains: a trial ends there."""
        return max(index for index, use in enumerate(self.methods) if use.row.trains)


def parse_variants(entries: list[tuple[str, Any]]) -> dict[str, Variant]:
    """The variants by name, grids written out; SpecError for what is wrong with one."""
    variants: dict[str, Variant] = {}
    files: dict[str, str] = {}
    for entry, value in entries:
        where, bases, chain = f"variants.{entry}", None, value
        if isinstance(value, Mapping):
            bases, chain = _bases(value, where), value.get("methods", [])
            where = f"{where}.methods"
        grids = find_options(chain, GRID, where)
        for label, written in written_out(chain, grids) if grids else [("", chain)]:
            name = f"{entry}[{label}]" if label else entry
            other = files.setdefault(file_name(name), name)
            if other != name:
                raise SpecError(
                    f"variants.{entry}: `{name}` and `{other}` would share the files `{file_name(name)}`; rename one"
                )
            tuned = find_options(written, TUNE, where)
            if not tuned:
                variants[name] = Variant(methods=_methods(written, where), bases=bases)
                continue
            trials = tuple(Trial(name=each, methods=_methods(tried, where)) for each, tried in written_out(written, tuned))
            for options in tuned:
                if not any(use.row.trains for use in trials[0].methods[options.index :]):
                    raise SpecError(
                        f"{options.where}: `tune` is decided by the validation loss of a training, and no method trains here "
                        "or after it; write one value, or `grid` for a variant of each"
                    )
            variants[name] = Variant(methods=trials[0].methods, bases=bases, trials=trials)
    return variants


def _bases(value: Mapping[str, Any], where: str) -> tuple[str, ...] | None:
    unknown = [key for key in value if key not in _KEYS]
    if unknown and unknown[0] in methods():
        raise SpecError(f"{where}: the methods of a variant stand in a list: `[{{{unknown[0]}: {{...}}}}]`, with brackets")
    if unknown and unknown[0] in (GRID, TUNE):
        raise SpecError(f"{where}.{unknown[0]}: goes with a field of a method: `[{{train.lora: {{r: {{grid: [4, 8]}}}}}}]`")
    if unknown:
        raise SpecError(f"{where}.{unknown[0]}: unknown key{suggestion(unknown[0], _KEYS)}")
    bases = value.get("bases")
    if bases is not None and not (isinstance(bases, list) and bases and all(isinstance(name, str) for name in bases)):
        raise SpecError(f"{where}.bases: expected a list of names of bases, got {shown(bases)}")
    return None if bases is None else tuple(bases)


def _methods(chain: Any, where: str) -> tuple[MethodUse, ...]:
    if not isinstance(chain, list):
        raise SpecError(f"{where}: expected a list of methods like `[{{train.full: {{}}}}]`, or `[]`, got {shown(chain)}")
    uses: list[MethodUse] = []
    for index, entry in enumerate(chain):
        value, at = {entry: {}} if isinstance(entry, str) else entry, f"{where}[{index}]"
        if not isinstance(value, Mapping) or not value:
            raise SpecError(f"{at}: expected `{{method: {{fields}}}}`, got {shown(value)}")
        name, config = next(iter(value.items()))
        row = find_method(name, at)
        if len(value) > 1:
            fields = ", ".join(f"`{key}`" for key in list(value)[1:])
            raise SpecError(
                f"{at}: written beside `{name}`: {fields}; indent the fields of a method under its name, "
                "and write one method an entry"
            )
        config = validate(row.config, {} if config is None else config, f"{at}.{name}")
        if uses and uses[-1].row.is_last:
            raise SpecError(f"{at}: nothing can follow `{uses[-1].name}`, whose model is only run; write `{name}` before it")
        uses.append(MethodUse(name=name, config=config))
    return tuple(uses)

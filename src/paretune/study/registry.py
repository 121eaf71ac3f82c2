"""The tables of what a study can name: one row a method, one row an evaluation, one row a metric.

A row is (name, config class, "module:function", needs); the function is imported on first use, so that reading a study stays
light. Third parties ship the same rows through the entry-point groups `paretune.methods`, `paretune.evaluations` and
`paretune.metrics`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from paretune.errors import NeedsError, SpecError
from paretune.study.base import Spec, suggestion
from paretune.study.metrics import METRICS, Metric


@dataclass(frozen=True)
class Method:
    """One way to prune, train, distil or quantize a model."""

    name: str
    config: type[Spec]
    body: str
    """`module:function`, called with a StageContext; returns the metrics of the record."""
    trains: bool = False
    """Takes the tokens, the study's `train` section and the seed."""
    uses_tokens: Callable[[Any], bool] = lambda _config: False
    """Whether a method that does not train takes the tokens, by its config; then also precision and device of measuring."""
    revision: int = 1
    """Raised whenever the body's answer changes; part of the key."""
    needs: tuple[str, ...] = ()
    """What must be there before the first stage: `cuda`, or a module's name."""


@dataclass(frozen=True)
class Evaluation:
    """One way to measure a model."""

    name: str
    config: type[Spec]
    body: str
    items: str | None = None
    """`module:function` that reads the evaluation's item file (the config's `path`) as texts, for the leakage check."""
    item_fields: tuple[str, ...] = ()
    """Fields of the config that it takes besides, by name, where the key's JSON has them."""
    uses_tokens: bool = False
    """Takes the tokenized dataset."""
    writes_text: bool = False
    """Its texts are looked through by the `safety` of a study, which then is part of the key."""
    measures_time: bool = False
    """The answer depends on the machine, whose fingerprint is then part of the key."""
    rates_texts: bool = False
    """Takes what the other evaluations of the model generated, and the data, in place of the model."""
    metrics: tuple[Metric, ...] = ()
    """What it measures, as far as `study.metrics` has no row of it."""
    section: str | None = None
    """`module:function` that makes its section of the report; a table of its metrics unless given."""
    revision: int = 1
    needs: tuple[str, ...] = field(default=())


def find_method(name: str, where: str) -> Method:
    """The row called `name`; SpecError with a suggestion if there is none."""
    rows = methods()
    if name not in rows:
        raise SpecError(f"{where}: unknown method `{name}`{suggestion(name, rows)}")
    return rows[name]


def find_evaluation(name: str, where: str) -> Evaluation:
    """The row called `name`; SpecError with a suggestion if there is none."""
    rows = evaluations()
    if name not in rows:
        raise SpecError(f"{where}: unknown evaluation `{name}`{suggestion(name, rows)} (or name its `kind:`)")
    return rows[name]


@functools.cache
def methods() -> dict[str, Method]:
    """All rows by name; NeedsError for an installed package whose row cannot be used."""
    from paretune.study.methods import METHODS

    return _with_plugins(METHODS, "paretune.methods", Method)


@functools.cache
def evaluations() -> dict[str, Evaluation]:
    """All rows by name; NeedsError for an installed package whose row cannot be used."""
    from paretune.study.evaluations import EVALUATIONS

    return _with_plugins(EVALUATIONS, "paretune.evaluations", Evaluation)


@functools.cache
def metrics() -> dict[str, Metric]:
    """All rows by name: ours, those that evaluations bring, and those of the entry-point group `paretune.metrics`."""
    brought = (metric for row in evaluations().values() for metric in row.metrics)
    return _with_plugins((*METRICS, *brought), "paretune.metrics", Metric)


@functools.cache
def metric_of(name: str) -> Metric:
    """The row of a metric, or of a cost of one of several evaluations (`fast.ms_per_token`); a bare one for an unknown name."""
    rows = metrics()
    return rows.get(name) or rows.get(name.rpartition(".")[2]) or Metric(name)


def load_function(address: str) -> Any:
    """The object at `module:function`."""
    module, _, name = address.partition(":")
    return getattr(import_module(module), name)


def _with_plugins(builtin: tuple[Any, ...], group: str, row_type: type[Any]) -> dict[str, Any]:
    rows = {row.name: row for row in builtin}
    for entry in entry_points(group=group):
        package = f" of the package `{entry.dist.name}`" if entry.dist else ""
        wrong, row = _load(entry, row_type)
        if wrong is None and row.name in rows:
            wrong = f"names `{row.name}`, which exists already"
        if wrong:
            raise NeedsError(f"entry point `{entry.name}` in `{group}`{package} {wrong}; repair or uninstall the package")
        rows[row.name] = row
    return rows


def _load(entry: EntryPoint, row_type: type[Any]) -> tuple[str | None, Any]:
    """What is wrong with the row of an entry point, and the row."""
    try:
        row: Any = entry.load()
    except Exception as error:  # noqa: BLE001  an import runs code of others, which may raise anything
        return f"cannot be loaded ({type(error).__name__}: {error})", None
    if not isinstance(row, row_type):
        return f"is no {row_type.__name__} row, but {type(row).__name__}", None
    if row_type is Metric:
        return None, row
    if not (isinstance(row.config, type) and issubclass(row.config, Spec)):
        return f"has a config that is no subclass of Spec: {row.config!r}", None
    if not all(row.body.partition(":")):
        return f"has a body that is no `module:function`: `{row.body}`", None
    return None, row

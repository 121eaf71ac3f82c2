"""The tables of what a study can name: one row a method, one row an evaluation, one row a metric.

A row owns what belongs to it: its config class, its body, what goes into its stage besides, what is checked before the first
stage, what it measures and how the report shows it. Functions that are not here are named `module:function` and imported on
first use, so that reading a study stays light. Third parties ship the same rows through the entry-point groups
`paretune.methods`, `paretune.evaluations` and `paretune.metrics`.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol

from paretune.errors import NeedsError, SpecError
from paretune.study.base import Spec, suggestion
from paretune.study.metrics import METRICS, Metric


class StageParts(Protocol):
    """What an evaluation's `content` is given: the study around its entry, and where it takes what lies outside."""

    @property
    def max_length(self) -> int:
        """`train.max_length`."""

    @property
    def chats(self) -> bool:
        """Whether the dataset's records are conversations."""

    @property
    def tasks(self) -> Mapping[str, Mapping[str, Any]]:
        """The dataset's tasks that are scored, with how that is done."""

    def file(self, role: str, path: str) -> str:
        """The digest of a file, for the key; its path becomes the resource `role`."""

    def model(self, role: str, field: str) -> tuple[str, int]:
        """Digest and number of layers of the model that a field of the config names; it becomes the resource `role`."""

    def settings(self, **values: Any) -> None:
        """Values that the body needs and no answer depends on: they are no part of the key."""


@dataclass(frozen=True)
class Items:
    """The items that an evaluation asks about: the resource `items` of its stage, and what the leakage check compares."""

    reader: str
    """`module:function` that reads them as texts: of the resource, and of the fields below by name."""
    fields: tuple[str, ...] = ()
    """Fields of the config that the reader takes besides, where the key's JSON has them."""
    places: tuple[str, ...] = ("path",)
    """Fields of the config that say where the items are; their digest stands for them in the key, as `path`."""
    package: str | None = None
    """A package that holds the items too; its version becomes part of their digest."""
    revision: int = 1
    """Raised whenever the reader reads the same file otherwise; part of the key."""


OWN_BASE = "base"
"""As the name of a teacher: the base of the student, before any method."""


@dataclass(frozen=True)
class Writing:
    """How a teacher answers the prompts of the training split."""

    max_new_tokens: int
    temperature: float
    """0 is greedy."""
    stop: tuple[str, ...]
    """Texts that end an answer and are left out of it."""


@dataclass(frozen=True)
class Teacher:
    """Whose distribution over the vocabulary a method takes at every target of the training split, or whose answers."""

    name: str
    """A variant of the study, on the same base and dataset; a base; or `base`, the base of the variant as it is."""
    seed: int | None
    """Of the variant; None for that of the student."""
    top_k: int | None = None
    """Words of a target that are kept; None for all."""
    writing: Writing | None = None
    """Of answers; None where its distribution is taken."""


@dataclass(frozen=True)
class Method:
    """One way to prune, train, distil or quantize a model."""

    name: str
    config: type[Spec]
    body: str
    """`module:function`, called with a StageContext; returns the metrics of the record."""
    trains: bool = False
    """Takes the tokens, the study's `train` section and the seed."""
    trains_all: Callable[[Any], bool] = lambda _config: False
    """Whether every weight of the model is trained, by its config; for what memory must hold."""
    uses_tokens: Callable[[Any], bool] = lambda _config: False
    """Whether a method that does not train takes the tokens, by its config; then also precision and device of measuring."""
    stops: Callable[[Any, int], int] = lambda _config, _num_blocks: 1
    """By its config and the blocks of the model that it is given, how many stages of it follow each other, all alike."""
    teacher: Callable[[Any], Teacher | None] = lambda _config: None
    """By its config the teacher, whose stage is made once for all students and is the input `teacher`."""
    check: str | None = None
    """`module:function(config, where, base, locked)`, called before the first stage for each base (LockedBase) with its
    config.json as the methods before left it; returns config.json as this one leaves it. Raises UserErrors."""
    tells: str | None = None
    """`module:function(config, base, locked)`: lines that `plan` shows of it, as far as the files of a base say them."""
    rewrites_tokenizer: bool = False
    """Its model reads other tokens than the one it is given: what comes after takes the data anew."""
    writes_weights: bool = True
    """Its model has weights of its own, or an adapter; otherwise those of the one that it is given, of which it runs less."""
    is_last: bool = False
    """Nothing can be done to its model but measure and ship it."""
    activations: int = 72
    """Bytes that training keeps for the backward pass by token, block and unit of width, in float32; for forecasts."""
    revision: int = 1
    """Raised whenever the body's answer changes; part of the key."""
    task_revision: int = 0
    """The same where only the answer over a dataset with tasks changes: added to `revision` there."""
    needs: tuple[str, ...] = ()
    """What must be there before the first stage: `cuda`, or a module's name."""


@dataclass(frozen=True)
class Evaluation:
    """One way to measure a model."""

    name: str
    config: type[Spec]
    body: str
    """`module:function`, called with a StageContext; returns the metrics of the record."""
    content: Callable[[Any, StageParts], dict[str, Any]] | None = None
    """What stands in the key for the config: fields of `paretune.pipeline.stage_configs.EvaluationConfig`, or RatingConfig for
    one that rates; `{"evaluation": config}` unless given."""
    items: Items | None = None
    """What is asked about, where that is given by a file."""
    uses_tokens: bool = False
    """Takes the tokenized dataset."""
    needs_untouched: bool = False
    """Takes the same evaluation of the base as the input `untouched`, where it measures another model."""
    answers_tasks: bool = False
    """Is about the dataset's tasks that are scored: not made where there are none, and made without an entry where there are.
    One entry of it may stand in a study."""
    scores_texts: bool = False
    """Reads texts in passes as long as memory allows; for forecasts."""
    writes_text: bool = False
    """Its texts are looked through by the `safety` of a study, which then is part of the key."""
    texts_are_rated: bool = False
    """Its texts are what those evaluations take that rate."""
    rates_texts: bool = False
    """Takes what the other evaluations of the model generated, and the data, in place of the model."""
    measures_time: bool = False
    """The answer depends on the machine, whose fingerprint is then part of the key."""
    fits: Callable[[Any, Any, str], None] | None = None
    """Called with config, Study and the name of the entry when the file is read: SpecError for what contradicts the rest."""
    check: str | None = None
    """`module:function(config, setting)` (`paretune.pipeline.preflight.Setting`), called before the first stage. Raises
    UserErrors for what would fail in it."""
    tells: str | None = None
    """`module:function(config, setting)`: lines that `plan` shows of it."""
    measures: Callable[[Any, Any], Collection[str]] | None = None
    """Called with config and Study: the metrics that it may measure, which limits can be set on; all of them unless given."""
    metrics: tuple[Metric, ...] = ()
    """What it measures, as far as `study.metrics` has no row of it."""
    section: str | None = None
    """`module:function` that makes its section of the report; a table of its metrics unless given."""
    revision: int = 1
    """Raised whenever the body's answer changes; part of the key."""
    needs: tuple[str, ...] = ()
    """What must be there before the first stage: `cuda`, or a module's name."""


def find_method(name: str, where: str) -> Method:
    """The row called `name`; SpecError with a suggestion if there is none."""
    rows = methods()
    if name not in rows:
        from paretune.study.foreign import called

        other = "; it is an evaluation, and stands in `evaluate`" if name in evaluations() else called(name, where)
        raise SpecError(f"{where}: unknown method `{name}`{other or suggestion(name, rows)}")
    return rows[name]


def find_evaluation(name: str, where: str) -> Evaluation:
    """The row called `name`; SpecError with a suggestion if there is none."""
    rows = evaluations()
    if name not in rows:
        from paretune.study.foreign import called

        other = "; it is a method, and stands in `variants`" if name in methods() else called(name, where)
        raise SpecError(f"{where}: unknown evaluation `{name}`{other or f'{suggestion(name, rows)} (or name its `kind:`)'}")
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
        wrong = ""
        row: Any = None
        try:
            row = entry.load()
        except Exception as error:  # noqa: BLE001  an import runs code of others, which may raise anything
            wrong = f"cannot be loaded ({type(error).__name__}: {error})"
        if not wrong and not isinstance(row, row_type):
            wrong = f"is no {row_type.__name__} row, but {type(row).__name__}"
        elif isinstance(row, Method | Evaluation):
            if not (isinstance(row.config, type) and issubclass(row.config, Spec)):
                wrong = f"has a config that is no subclass of Spec: {row.config!r}"
            elif not all(row.body.partition(":")):
                wrong = f"has a body that is no `module:function`: `{row.body}`"
        if not wrong and row.name in rows:
            wrong = f"names `{row.name}`, which exists already"
        if wrong:
            package = f" of the package `{entry.dist.name}`" if entry.dist else ""
            raise NeedsError(f"entry point `{entry.name}` in `{group}`{package} {wrong}; repair or uninstall the package")
        rows[row.name] = row
    return rows

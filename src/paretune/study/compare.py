"""`compare:` of a study: the baseline, the family of comparisons that is decided on, margins, costs and requirements.

What is decided here, before anything is measured, is what the statistics correct for: a family that is chosen after looking at
the numbers corrects for nothing.
"""

import math
import re
from collections.abc import Collection, Mapping
from typing import Annotated, Self, TypeVar

from pydantic import AfterValidator, Field, model_validator

from paretune.errors import SpecError
from paretune.study.base import Spec, suggestion
from paretune.study.registry import metric_of, metrics
from paretune.study.validate import validate

NamesT = TypeVar("NamesT", bound=Collection[str])


def quality_names() -> list[str]:
    """Metrics of which one direction is good; only these are compared."""
    return [row.name for row in metrics().values() if row.is_quality]


def cost_names() -> list[str]:
    """Costs of which less is better, as a study names them."""
    return [row.name for row in metrics().values() if row.cost and row.better == "lower" and not row.median_of]


def _known(names: NamesT, known: Collection[str]) -> NamesT:
    for name in names:
        if name not in known:
            raise ValueError(f"no metric `{name}`{suggestion(name, known)}")
    if len(set(names)) < len(names):
        raise ValueError("names a metric twice")
    return names


def _qualities(names: NamesT) -> NamesT:
    return _known(names, quality_names())


def _number_or_part(within: float | str) -> float | str:
    if not re.fullmatch(r"\d+(\.\d+)?\s*%", within) if isinstance(within, str) else not 0 <= within < math.inf:
        raise ValueError("expected a number from 0, or a part of the baseline's figure like `2%`")
    return within


class Bound(Spec):
    """What a variant has to keep to; several bounds of an entry hold together."""

    at_most: float | None = None
    """The figure itself is no larger."""
    at_least: float | None = None
    """The figure itself is no smaller."""
    within: Annotated[float | str, AfterValidator(_number_or_part)] | None = None
    """No worse than the baseline by more than this, or by this part of its figure (`2%`), shown by the whole interval; for
    qualities."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.at_most is None and self.at_least is None and self.within is None:
            raise ValueError("name `at_most`, `at_least` or `within`")
        return self

    def margin(self, reference: float) -> float:
        """What `within` allows against a figure of the baseline; without limit where it is not given."""
        if isinstance(self.within, str):
            return float(self.within.rstrip(" %")) / 100 * abs(reference)
        return math.inf if self.within is None else self.within


def _bounds(entry: dict[str, Bound]) -> dict[str, Bound]:
    if not entry:
        raise ValueError("a limit is empty; write `{METRIC: {at_most: NUMBER}}`")
    _known(entry, (*quality_names(), *cost_names()))
    for name, bound in entry.items():
        if bound.within is not None and not metric_of(name).is_quality:
            raise ValueError(f"`within` compares qualities with the baseline; `{name}` is a cost and takes `at_most`")
    return entry


def parse_bounds(asked: Mapping[str, Mapping[str, object]]) -> dict[str, Bound]:
    """Bounds by metric from what a command line or a file says; SpecError for one that is none, and for none at all."""
    if not asked:
        raise SpecError("no bound: write at least one of `--within`, `--at-most` and `--at-least`")
    bounds = {}
    for metric, fields in asked.items():
        numbers: dict[str, object] = {}
        for kind, value in fields.items():
            try:
                numbers[kind] = value if kind == "within" and str(value).endswith("%") else float(str(value))
            except ValueError:
                raise SpecError(f"--{kind.replace('_', '-')} {metric}: expected a number, got `{value}`") from None
        bounds[metric] = validate(Bound, numbers, metric)
    return bounds


class Compare(Spec):
    """What the other variants are compared with, what is decided on, and how sure the intervals are."""

    baseline: str | None = None
    """The variant that the others are compared with; the first trained one of the file unless given."""
    interval: float = Field(0.95, ge=0.5, lt=1)
    """Coverage of the intervals, of differences over their family; one is detected where its interval leaves out 0."""
    family: Annotated[tuple[str, ...], AfterValidator(_qualities)] = ()
    """Metrics that the study decides on: variants are ranked and recommended by the first, and comparisons with the baseline in
    any of them are corrected together (Holm). Unless given, the score of the first task whose answers are scored, else the
    first metric that was measured."""
    margin: Annotated[dict[str, Annotated[float, Field(gt=0)]], AfterValidator(_qualities)] = Field({})
    """By metric: a difference that does not matter. An interval inside it is `equivalent`, a cheaper variant is recommended
    where it is shown to lose no more against the best, and one that is shown to lose more against the baseline is not
    recommended. Unless given, 1 % of the best one's bits per byte, loss or log-likelihood, 2 points of a share, 0.02 of a score
    and 0.1 of a rating decide on a recommendation."""
    costs: Annotated[tuple[str, ...], AfterValidator(lambda names: _known(names, cost_names()))] = ()
    """What is weighed against quality, the most important first: `model_bytes`, `ms_per_token` and, between
    trained variants, `train_seconds` unless given."""
    require: tuple[Annotated[dict[str, Bound], AfterValidator(_bounds)], ...] = ()
    """Limits, each with a recommendation of its own: `{ms_per_token: {at_most: 50}}`, `{bits_per_byte: {within: 2%}}`."""

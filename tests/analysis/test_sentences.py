"""Every fact has a sentence: each class is built from what its fields may hold, and every macro says it."""

import itertools
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from paretune.analysis import facts  # noqa: F401  with it every class of facts is known
from paretune.analysis.agreement import Agreement, Trust
from paretune.analysis.compare import Difference, Estimate
from paretune.analysis.conclusions import CostDifference
from paretune.analysis.findings import LEAKED, LOSSY, Fact, Limit
from paretune.analysis.inference import Errors
from paretune.analysis.scores import Entrant, Quantity
from paretune.report.words import say
from paretune.study.compare import Bound
from paretune.study.study import Base
from paretune.study.train import Train

FULL, LORA = Entrant("novels", "news", "full"), Entrant("novels", "news", "lora")
QUANTITY = Quantity("qa", "", "accuracy")
TRAINING = {"steps": 7, "epochs_done": 1.5, "out_of_memory": 2, "options": {"forward_tokens": 1024}}
TRAINING |= {"flex_failure": "no kernel", "repeated_steps": 3}


def between(mean: float, low: float, high: float, **others: Any) -> Difference:
    errors = Errors(0.01, 10, 0.0, 1.0)
    return Difference(LORA, FULL, QUANTITY, 0.3 + mean, 0.3, mean, low, high, 0.01, 0.01, errors, 10, 2, 0.95, **others)


HAVE = {
    str: ["news"],
    int: [1, 3],
    float: [0.25],
    Entrant: [FULL],
    Quantity: [QUANTITY],
    Difference: [
        between(-0.2, -0.3, -0.1, p_adjusted=0.01),
        between(0.2, 0.1, 0.3, p_adjusted=0.5, answers_apart=4, mde=0.7),
        between(0.01, -0.01, 0.02, p_adjusted=1.0, margin=0.1),
        between(0.0, -math.inf, math.inf),
    ],
    Estimate: [Estimate(0.3, 0.2, 0.4, 10, 10, {0: 0.3})],
    CostDifference: [CostDifference("model_bytes", "", ratio, ratio < 1) for ratio in (0.5, 4.0)],
    Trust: [Trust("raters", 2, Agreement(alpha, 0.2, 0.9, 30), {}, {}) for alpha in (0.3, 0.7, 0.9)]
    + [Trust("judge and people", 1, Agreement(math.nan, math.nan, math.nan, 30), {}, {})]
    + [Trust(between, 1, None, {}, {}) for between in ("one person", "judge alone")],
    Base: [Base(hub="owner/name"), Base(path="models/a"), Base(builtin="small")],
    Train: [Train(), Train(max_steps=20, early_stopping={"patience": 2})],
    Bound: [Bound(at_most=1.0), Bound(at_least=0.1, within=0.1)],
}
"""Values of what has no fields that any value suits."""
LEFT_OUT = ("records_empty", "records_duplicate", "records_unsafe", "completions_empty", "documents_removed")
NAMED: Mapping[tuple[str, str], Sequence[Any]] = {
    ("PersonalData", "counts"): [(), (("mail addresses", 2),), (("mail addresses", 2), ("IP addresses", 1))],
    ("RecordsLeftOut", "counts"): [tuple((metric, "kind", 2) for metric in LEFT_OUT)],
    ("ExamplesChanged", "metric"): [
        "cut_examples",
        "latest_examples",
        "lossy_examples",
        "control_examples",
        "unwritten_tool_calls",
    ],
    ("ExamplesChanged", "control_tokens"): ["strip", "text", "learn"],
    ("RunDeviates", "metric"): ["stopped_early", "out_of_memory", "flex_failure", "repeated_steps"],
    ("RunDeviates", "metrics"): [TRAINING, *(TRAINING | {"resumed_from": step} for step in (0, 1200))],
    ("BudgetUnequal", "metric"): ["train_tokens", "train_tokens_read", "epochs_done", "steps", "precision"],
    ("MachinesUsed", "machines"): [
        ({"system": "Linux", "cores": 2, "memory_gib": 8, "accelerator": "T4"}, {"processor": "cpu"})
    ],
    ("Definition", "term"): [
        *(LEAKED, LOSSY, "length", "language", "answers in prompts", "interval", "difference", "p", "loss", "files")
    ],
    ("AnswersDefined", "metrics"): [("accuracy", "log_likelihood", "exact_match")],
    ("FewSeeds", "num_seeds"): [1, 2],
    ("TimesDisturbed", "factors"): [(("train_tokens_per_second", 1.3), ("ms_per_token_median", 1.2))],
    ("BlockChoice", "tried"): ["all sets", "one at a time", "runs", "blocks"],
    ("RatersDisagree", "trust"): [Trust("raters", 2, Agreement(0.3, 0.2, 0.4, 30), {}, {})],
    ("UnderLimit", "limit"): [
        *(Limit({}, (FULL, LORA), FULL, reason) for reason in ("best", "cheaper", "cheapest", "not dearer")),
        *(Limit({}, (FULL,), FULL, "best"), Limit({}, (), None, "none keeps to it")),
        Limit({}, (), None, "not measured", ("ms_per_token",)),
    ],
    ("UnderLimit", "baseline"): [FULL],
    ("UnderLimit", "bounds"): [(("model_bytes", None, Bound(at_most=1e6)), ("accuracy", QUANTITY, Bound(within=0.1)))],
    ("Frontier", "costs"): [("model_bytes", "ms_per_token")],
}
"""Values of fields that only some suit, by class and field."""


def values(hint: Any) -> list[Any]:
    """Some values of a type, so that each branch of a sentence is gone through."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in HAVE:
        return list(HAVE[hint])
    if hint is bool:
        return [False, True]
    if hint is type(None):
        return [None]
    if origin is Literal:
        return list(arguments)
    if origin in (Union, types.UnionType):
        return [value for argument in arguments for value in values(argument)]
    if origin is tuple and arguments[-1] is ...:
        items = values(arguments[0])
        return [tuple(items[:1]), tuple(items * 3)[:3], tuple(items)]
    if origin is tuple:
        return combined([values(argument) for argument in arguments])
    if is_dataclass(hint):
        return list(instances(hint))
    return [{}, ()][origin not in (dict, Mapping) :][:1]


def combined(columns: list[list[Any]]) -> list[tuple[Any, ...]]:
    """Rows in which every value of every column stands once or more often."""
    return [tuple(column[row % len(column)] for column in columns) for row in range(max(map(len, columns)))]


def instances(kind: type[Any]) -> Iterator[Any]:
    hints = get_type_hints(kind)
    columns = [NAMED.get((kind.__name__, field.name)) or values(hints[field.name]) for field in fields(kind)]
    many = math.prod(map(len, columns)) > 60
    rows = combined(columns) if many else itertools.product(*columns)
    yield from (kind(*row) for row in rows)


def classes(kind: type[Fact]) -> list[type[Fact]]:
    return [found for sub in kind.__subclasses__() for found in (sub, *classes(sub))]


@pytest.mark.parametrize("kind", classes(Fact), ids=lambda kind: kind.__name__)
def test_every_fact_has_a_sentence(kind: type[Fact]) -> None:
    said = {say(fact) for fact in instances(kind)}
    for sentence in said:
        assert sentence
        assert " ." not in sentence
        assert " ," not in sentence
        assert " ;" not in sentence
        assert not any(mark in sentence for mark in ("None", "Entrant(", "Quantity(", "{{", "( ", " )"))


def test_a_fact_without_a_template_is_an_error() -> None:
    with pytest.raises(LookupError, match="no template says `fact`"):
        say(Fact())

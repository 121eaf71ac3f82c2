"""findings.json: what the report says, with the numbers that it says it by."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paretune.analysis.facts import find
from paretune.analysis.findings import Findings
from paretune.report.outputs import findings_json
from paretune.report.words import say
from tests.analysis.synthetic import Shape, make_results
from tests.analysis.test_answers import OF_PEOPLE, fair, rated

LIMITS = "compare: {require: [{model_bytes: {at_most: 28000000}}]}\n"


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    shape = Shape(documents=12, epochs=1, bases=("novels", "stories"), extra=LIMITS)
    return find(make_results(tmp_path_factory.mktemp("findings"), shape))


@pytest.fixture(scope="module")
def content(findings: Findings) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(findings_json(findings))
    return loaded


def test_it_names_its_schema_and_its_parts(content: dict[str, Any]) -> None:
    assert list(content) == [
        *("schema", "study", "level", "groups", "estimates", "differences", "costs", "ratios"),
        *("block_choices", "ratings", "marks", "facts"),
    ]
    assert (content["schema"], content["study"], content["level"]) == (1, "sketch", 0.95)


def test_every_number_has_a_row_that_names_it(findings: Findings, content: dict[str, Any]) -> None:
    assert len(content["estimates"]) == sum(map(len, findings.estimates.values()))
    assert len(content["differences"]) == len(findings.differences)
    assert len(content["ratios"]) == len(findings.ratios)
    names = ["base", "dataset", "variant", "task", "split", "metric", "slice"]
    assert list(content["estimates"][0])[: len(names)] == names
    assert list(content["differences"][0])[: len(names) + 1] == [*names, "reference"]
    assert {row["verdict"] for row in content["differences"]} <= {"better", "worse", "equivalent", "no difference detected"}
    by_seed = next(row["by_seed"] for row in content["estimates"] if row["variant"] == "full")
    assert [row["seed"] for row in by_seed] == [0, 1]
    size = next(row for row in content["costs"] if row["cost"] == "model_bytes")
    assert (size["base"], size["variant"], size["mean"]) == ("novels", "base", 28_000_000)


def test_choices_and_limits_stand_with_their_group(findings: Findings, content: dict[str, Any]) -> None:
    group = content["groups"][0]
    choice = findings.groups[0].choice
    assert choice is not None
    assert group["choice"]["chosen"] == choice.chosen._asdict()
    assert group["limits"][0]["bounds"] == {"model_bytes": {"at_most": 28_000_000}}
    assert [row["variant"] for row in group["choice"]["beaten"]] == [entrant.variant for entrant in choice.ranked]


def test_every_fact_has_its_name_and_its_sentence(findings: Findings, content: dict[str, Any]) -> None:
    told = findings.facts.groups["novels", "news"].recommendation
    group = content["facts"]["groups"][0]
    assert (group["base"], group["dataset"]) == ("novels", "news")
    assert [(row["fact"], row["sentence"]) for row in group["recommendation"]] == [
        (type(fact).__name__, say(fact)) for fact in told
    ]
    assert content["facts"]["across"]["news"][0]["fact"] == "BasesCompared"


def test_ratings_stand_with_what_is_behind_them(tmp_path: Path) -> None:
    trust = json.loads(findings_json(find(rated(tmp_path, OF_PEOPLE, ratings=fair))))["ratings"]["ratings"]["trust"]
    assert trust["coherence"]["agreement"]["num_items"] == 120
    assert list(trust["coherence"]["kappas"]) == ["anna and ben"]


def test_what_is_no_number_is_null(findings: Findings) -> None:
    (entrant, estimates), *_ = findings.estimates.items()
    (quantity, estimate), *_ = estimates.items()
    odd = replace(findings, estimates={entrant: {quantity: replace(estimate, mean=math.inf, low=math.nan)}})
    (row,) = json.loads(findings_json(odd))["estimates"]
    assert (row["mean"], row["low"], row["high"]) == (None, None, estimate.high)


def test_equal_findings_give_equal_text(findings: Findings) -> None:
    assert findings_json(findings) == findings_json(find(findings.results))

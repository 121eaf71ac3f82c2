"""The key of a stage: what it is made of, what it leaves out, and frozen examples."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paretune.pipeline.resources import Resource
from paretune.pipeline.stage import Stage, canonical_json

PARENT = Stage("data", {"path": "sha256:00", "shares": [0.8, 0.1, 0.1]}, "module:body")
STAGE = Stage(
    "train.lora", {"seed": 0, "method": {"r": 8, "learning_rate": 3.0e-4}, "name": "Zoë"}, "module:body", {"tokens": PARENT}
)


def test_canonical_json_sorts_keys_and_wastes_nothing():
    assert canonical_json({"b": [1, 2.0, None], "a": {"z": True, "ä": "ü"}}) == '{"a":{"z":true,"ä":"ü"},"b":[1,2.0,null]}'
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})


def test_what_means_another_thing_is_another_text():
    assert len({canonical_json(value) for value in (1, 1.0, True, "1", [1], None, {"1": 1})}) == 7


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), {"a": [float("nan")]}])
def test_no_number_is_refused(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(value)


@pytest.mark.parametrize(
    "value",
    [(1, 2), {1, 2}, b"text", Path("x"), object(), np.float32(1), np.arange(2), {"a": {"b": (1,)}}, [{1: "a"}], {None: 1}],
)
def test_a_type_that_json_does_not_have_is_refused(value):
    with pytest.raises(TypeError, match="canonical JSON"):
        canonical_json(value)


@pytest.mark.parametrize(
    "other",
    [
        replace(STAGE, kind="train.full"),
        replace(STAGE, revision=2),
        replace(STAGE, config={**STAGE.config, "seed": 1}),
        replace(STAGE, config={**STAGE.config, "new": None}),
        replace(STAGE, inputs={"model": PARENT}),
        replace(STAGE, inputs={"tokens": replace(PARENT, config={"path": "sha256:01", "shares": [0.8, 0.1, 0.1]})}),
        replace(STAGE, inputs={}),
    ],
)
def test_what_changes_the_answer_changes_the_key(other):
    assert other.key != STAGE.key
    assert other != STAGE


@pytest.mark.parametrize(
    "other",
    [
        replace(STAGE, resources={"base": Resource(path=Path("/elsewhere"))}),
        replace(STAGE, after=(PARENT,)),
        replace(STAGE, body="module:moved"),
        replace(STAGE, config=dict(reversed(STAGE.config.items()))),
    ],
)
def test_how_it_is_run_does_not(other):
    assert other == STAGE
    assert len({other, STAGE}) == 1


def test_frozen_keys_of_plain_stages():
    assert PARENT.key == "f607e07d23217294aa1fdbfa0a593fd094e10cbfaed16cbdbe3cf673c9d8a4f3"
    assert STAGE.key == "1c2c501c245d8aeb2e9d76b58cad1d900fcb9233905e8dd9eb3d97a418ee58a1"
    assert STAGE.name == f"train.lora-{STAGE.key[:8]}"

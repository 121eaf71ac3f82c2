"""What a token takes where nothing is measured: as an earlier plan has kept it, or by arithmetic."""

import json
import os
from dataclasses import replace

import pytest

from paretune.cli import main
from paretune.pipeline.lock import resolve_lock
from paretune.pipeline.plan import make_plan
from paretune.pipeline.rates import _questions, kept_rates, rough_rates
from paretune.pipeline.resources import count_weights
from paretune.pipeline.store import Store
from paretune.study.study import Precision, load_study


def test_without_a_probe_rates_are_those_that_are_kept_or_arithmetic(tmp_path):
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"text": f"It is number {n} of all."}) + "\n" for n in range(100)))
    assert main(["init", str(tmp_path / "data.jsonl"), "--to", str(tmp_path / "study.yaml")]) == 0
    study, store = load_study(tmp_path / "study.yaml"), Store(tmp_path / ".paretune")
    fixed = study.model_copy(update={"precision": Precision(compute="float32")})
    lock = resolve_lock(fixed, tmp_path / "study.yaml", "cpu")
    plan = make_plan(fixed, lock, tmp_path)
    (digest,) = (base.digest for base in lock.bases.values())
    blocks = lock.bases["small"].config["num_hidden_layers"]
    weights = count_weights(lock.bases["small"].resource.directory())
    (rates,) = rough_rates(lock).values()
    once, thrice = (blocks * rates[kind][1] + rates[kind][3] for kind in ("score", "train.full"))
    assert once == pytest.approx(2 * weights / (40e9 * os.cpu_count()), rel=0.05)
    assert thrice == pytest.approx(3 * once)
    assert kept_rates(study, lock, plan, store) == {}
    (file,) = _questions(study, replace(lock, compute="bfloat16"), plan, store)[1].values()
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"score": [0, 1, 0, 2]}))
    assert kept_rates(study, lock, plan, store) == {digest: {"score": [0, 1, 0, 2]}}

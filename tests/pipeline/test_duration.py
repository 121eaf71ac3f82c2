"""The time of a run before it: from a probe of the base, corrected by what finished stages took."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from transformers import LlamaConfig

from paretune.api import OpenStudy, open_study
from paretune.cli import main
from paretune.pipeline import duration, rates
from paretune.pipeline.duration import Rates
from paretune.pipeline.forecast import Cost, forecast
from paretune.pipeline.lock import Lock
from paretune.pipeline.plan import TEACHER
from paretune.pipeline.plan_text import describe_plan
from paretune.pipeline.sample import count_tokens
from paretune.train.probe import probe
from tests.conftest import STUDY, real_probe, write_study
from tests.pipeline.planned import described, write_planned

EVEN = dict.fromkeys(("score", "write", "decode", "train.full", "train.lora"), (0.0, 0.001, 0.0, 0.001))
EVEN["load"] = (0.0, 0.0, 1.0, 0.0)
"""A millisecond of a token in each block, and another for all that is no block; a second to load."""


def rates_of(lock: Lock, of_base: Rates = EVEN) -> Mapping[str, Rates]:
    return {base.digest: of_base for base in lock.bases.values()}


def costs_of(opened: OpenStudy, of_base: Rates = EVEN) -> dict[str, Cost]:
    found = forecast(opened.study, opened.lock, opened.plan, opened.store, rates=rates_of(opened.lock, of_base))
    return {name: found[stage] for name, stage in described(opened.plan).items()}


def told_of(opened: OpenStudy) -> str:
    rated = rates_of(opened.lock)
    return describe_plan(opened.study, opened.lock, opened.plan, opened.store, rates=rated)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"))


def test_a_base_is_probed_once_and_a_second_plan_knows_it(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rates, "_ask", real_probe)
    store = str(file.parent / "probed")
    assert main(["plan", str(file), "--store", store]) == 0
    first = capsys.readouterr()
    assert "timing 1 base with windows of" in first.err
    assert "time: about " in first.out
    (kept,) = (file.parent / "probed" / "rates").iterdir()
    answer = json.loads(kept.read_text())
    assert set(answer) == {"decode", "write", "score", "train.full", "train.lora", "load"}
    assert all(len(line) == 4 and min(line) >= 0 and sum(line) > 0 for line in answer.values())
    monkeypatch.setattr(rates, "_ask", lambda questions: pytest.fail("asked again"))
    assert main(["plan", str(file), "--store", store]) == 0
    second = capsys.readouterr()
    assert (second.out, second.err) == (first.out, "")
    monkeypatch.setattr(rates, "_ask", lambda questions: [])
    monkeypatch.setattr(rates, "fingerprint", lambda: {"cores": 64})
    assert main(["plan", str(file), "--store", store]) == 0
    told = capsys.readouterr()
    assert "timing 1 base" in told.err, "another machine asks anew"
    assert "time: " not in told.out


def test_two_kinds_of_adapters_in_bfloat16_are_timed_one_after_the_other() -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
    )
    trainings = {
        "train.lora": {"r": 4, "targets": "all-linear"},
        "distill.logits": {"r": 2, "targets": "all-linear"},
        "train.full": None,
    }
    question = {"config": config.to_dict(), "directory": None, "length": 32, "device": "cpu", "compute": "bfloat16"}
    rates = probe(question | {"evaluate": "float32", "trainings": trainings})
    assert set(trainings) <= set(rates)
    assert all(sum(rates[name]) > 0 for name in trainings)


def test_a_training_takes_its_tokens_and_validations_and_a_shorter_model_less(file: Path) -> None:
    costs = costs_of(open_study(file, file.parent / "none"))
    full, lora, reduced = (
        costs[f"tiny/notes/{name}"]
        for name in ("full seed 0: train.full", "original seed 0: train.lora", "reduced seed 0: train.lora")
    )
    blocks = json.loads((file.parent / "model" / "config.json").read_text())["num_hidden_layers"]
    assert full.tokens is not None
    assert full.seconds is not None
    assert full.seconds == pytest.approx(lora.seconds)
    least = full.tokens * 1e-3 * (blocks + 1)
    assert least < full.seconds - 2.6 < 1.5 * least, "an epoch's tokens, prefixes, and two validations"
    assert reduced.seconds is not None
    assert (reduced.seconds - 2.6) / (full.seconds - 2.6) == pytest.approx(blocks / (blocks + 1))


def test_a_teacher_reads_the_training_text_once_and_keeps_words_of_every_target(tmp_path: Path) -> None:
    text = f"{STUDY.partition('variants:')[0]}variants: {{full: [{{train.full: {{}}}}], own: [{{distill.logits: {{}}}}]}}\n"
    opened = open_study(write_study(tmp_path, f"{text}evaluate: {{perplexity: {{}}}}\n"))
    blocks = json.loads((tmp_path / "model" / "config.json").read_text())["num_hidden_layers"]

    def seconds(rest: float) -> tuple[float, int]:
        rated = rates_of(opened.lock, EVEN | {"score": (0.0, 0.001, 0.0, rest)})
        costs = forecast(opened.study, opened.lock, opened.plan, opened.store, rates=rated)
        teacher, full = (next(stage for stage in costs if stage.kind == kind) for kind in (TEACHER, "train.full"))
        took, learned = costs[teacher].seconds, costs[full].tokens
        assert took is not None
        assert learned is not None
        return took, learned // 2  # epochs

    (with_head, learned), (without, _) = seconds(0.001), seconds(0.0)
    assert without == pytest.approx(1.6 + 1e-3 * blocks * learned, rel=0.1)
    assert with_head - without == pytest.approx((1 + duration._KEPT_WORDS) * 1e-3 * learned, rel=0.1)


def test_what_may_end_sooner_is_counted_to_its_end_and_said(file: Path, tmp_path: Path) -> None:
    opened = open_study(file, tmp_path / "none")
    costs = costs_of(opened)
    blocks = json.loads((file.parent / "model" / "config.json").read_text())["num_hidden_layers"]
    generate = costs["tiny/notes/base: generate"]
    assert generate.at_most
    read = sum(1 + n for n in count_tokens(["The train", "A lamp"], opened.lock.bases["tiny"].resource))
    assert generate.seconds == pytest.approx(1.6 + (read + 2 * 8) * 1e-3 * (blocks + 1)), "eight new tokens of each"
    told = told_of(opened)
    assert "texts may end before `max_new_tokens`" in told
    assert "time: about " in told
    text = STUDY.replace("max_length: 64", "max_length: 64, early_stopping: {patience: 1}")
    stopping = costs_of(open_study(write_study(tmp_path, text)))
    assert stopping["tiny/notes/full seed 0: train.full"].at_most == "may stop early"


def test_it_learns_from_what_stages_of_the_kind_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = STUDY[: STUDY.index("seeds")] + "variants: {full: [{train.full: {}}]}\nevaluate: {perplexity: {splits: [test]}}\n"
    file, name = write_study(tmp_path, text), "tiny/notes/full seed 0: train.full"
    unlearned = costs_of(open_study(file, tmp_path / "none"))[name].seconds
    assert main(["run", str(file), "--out", str(tmp_path / "out")]) == 0
    opened = open_study(file)
    record = opened.store.find(described(opened.plan)[name])
    assert record is not None
    assert record.cpu_seconds is not None
    took = min(record.seconds, record.cpu_seconds)
    assert costs_of(opened)[name].seconds == pytest.approx(took)
    file.write_text(text.replace("epochs: 2", "epochs: 20"), encoding="utf-8")
    longer = costs_of(open_study(file, tmp_path / "none"))[name].seconds
    assert longer is not None
    assert unlearned is not None
    learned = costs_of(open_study(file))[name].seconds
    assert learned is not None
    # The sizes are counted by now, and were a sample's before.
    assert learned == pytest.approx(longer * took / unlearned, rel=0.3)
    monkeypatch.setattr(duration, "fingerprint", lambda: {"cores": 64})
    elsewhere = costs_of(open_study(file))[name].seconds
    assert elsewhere == pytest.approx(longer, rel=0.3), "another machine learns nothing from it"


def test_a_long_search_is_warned_of_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = STUDY.replace("{count: 1, choose: last}", "{count: 2, choose: loss, calibration: {tokens: 4000}}")
    opened = open_study(write_study(tmp_path, text))
    assert "warning: prune.blocks" not in told_of(opened)
    monkeypatch.setattr("paretune.pipeline.plan_text._SLOW_SEARCH", 1)
    (line,) = (line for line in told_of(opened).splitlines() if line.startswith("warning: prune.blocks"))
    assert line.endswith("shorter with `calibration: {tokens: 1000}`, `count: 1`, `choose: influence`")


def test_what_cannot_be_forecast_is_named(tmp_path: Path) -> None:
    file = write_planned(tmp_path)
    opened = open_study(file)
    one = {base.digest: EVEN for name, base in opened.lock.bases.items() if name == "small"}
    told = describe_plan(opened.study, opened.lock, opened.plan, opened.store, rates=one)
    assert "; without " in told
    assert "whose time is not known" in told

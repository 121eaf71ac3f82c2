"""Trials of a tuned variant: what the plan holds before and after the choice, and how a run makes it."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from paretune.api import open_study
from paretune.pipeline import plan as planning
from paretune.pipeline.plan import CHOICE, Plan, PlannedCell, PlannedTrial, PlannedTuning
from paretune.pipeline.plan_text import describe_plan
from paretune.pipeline.records import Divergence
from paretune.pipeline.runner import Outcome, run_plan
from paretune.pipeline.stage import RunOptions, Stage
from paretune.pipeline.store import Store
from paretune.pipeline.tuning import decide, read_tuning
from paretune.pipeline.why import explain, review
from tests.pipeline.bodies import make_stage, runs
from tests.pipeline.planned import STUDY, described, plan_of, record_of, write_planned

TUNED = "original: [{train.lora: {r: 4, learning_rate: {tune: [1.0e-4, 3.0e-4, 1.0e-3]}}}]"
LITERAL = "original: [{train.lora: {r: 4}}]"
CHAIN = "original: [{train.lora: {r: 4, learning_rate: {tune: [1.0e-4, 3.0e-4]}}}, {prune.blocks: {count: 1}}]"


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "fingerprint", lambda: {"processor": "example"})


def planned(folder: Path, line: str = TUNED, old: str = LITERAL, extra: Sequence[tuple[str, str]] = ()) -> Plan:
    text = STUDY.replace(old, line)
    for one, other in extra:
        assert one in text
        text = text.replace(one, other)
    return plan_of(write_planned(folder, text))


def finish(store: Store, stage: Stage, losses: Sequence[float], accuracies: Sequence[float] = (0.1,)) -> None:
    """Leave what a training leaves that measured `losses` one after the other."""
    store.prepare()
    draft = store.open_draft(stage)
    rows = [
        {"step": step, "epoch": step, "validation_loss": loss, "validation_token_accuracy": accuracies[step % len(accuracies)]}
        for step, loss in enumerate(losses)
    ]
    (draft / "curves.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    store.commit(stage, record_of(stage, metrics={"train_seconds": 2.0, "steps": len(losses)}))


def of(plan: Plan, base: str = "small") -> PlannedTuning:
    return next(tuning for tuning in plan.tunings if tuning.base == base)


def test_before_the_choice_the_plan_holds_all_that_will_run(tmp_path):
    plan = planned(tmp_path)
    tuning = of(plan)
    assert [trial.name for trial in tuning.trials] == ["learning_rate=1e-4", "learning_rate=3e-4", "learning_rate=1e-3"]
    assert {trial.methods[-1].config["seed"] for trial in tuning.trials} == {0}
    stages = described(plan)
    other = stages["small/notes/original seed 1: train.lora"]
    assert other.inputs["choice"] == stages[f"small/notes/original seed 0: {CHOICE}"] == tuning.choice
    assert set(tuning.choice.inputs.values()) == {trial.methods[-1] for trial in tuning.trials}
    names = {name for name, stage in stages.items() if stage in plan.undecided}
    assert {name.partition(":")[0] for name in names} == {
        f"{b}/notes/original seed {s}" for b in ("small", "other") for s in (0, 1)
    }
    assert not plan.undecided & {stage for trial in tuning.trials for stage in trial.methods}
    assert plan.uses(tuning.trials[0].methods[0]) == ["small/notes/original trial learning_rate=1e-4"]


def test_a_chosen_value_has_the_keys_that_it_has_written_out(tmp_path):
    plan, store = planned(tmp_path / "tuned"), Store(tmp_path / "store")
    for base, losses in (("small", (3.0, 2.0, 2.5)), ("other", (1.0, 2.0, 3.0))):
        for trial, loss in zip(of(plan, base).trials, losses, strict=True):
            finish(store, trial.methods[-1], [9.0, loss])
    decided = described(decide(plan, store))
    assert not decide(plan, store).undecided
    for base, value in (("small", "3.0e-4"), ("other", "1.0e-4")):
        written = described(planned(tmp_path / value, f"original: [{{train.lora: {{r: 4, learning_rate: {value}}}}}]"))
        mine = {name: stage for name, stage in written.items() if name.startswith(f"{base}/notes/original")}
        assert len(mine) == 12
        assert {name: decided[name].key for name in mine} == {name: stage.key for name, stage in mine.items()}
    trained = {trial.methods[-1] for trial in of(plan).trials}
    assert trained <= set(decide(plan, store).stages), "trials stay in the plan, or `clean` would remove them"


@pytest.mark.parametrize(
    ("train", "curves", "chosen"),
    [
        ("epochs: 2", [[3.0, 2.0], [2.5, 2.5], [1.9, 4.0]], 2),  # the best weights are kept
        ("epochs: 2, keep: last", [[3.0, 2.0], [2.5, 2.5], [1.9, 4.0]], 0),
        ("epochs: 2", [[2.0], [2.0], [3.0]], 0),  # of equals the first
        ("epochs: 2", [[float("nan"), 5.0], [4.0], [float("inf")]], 1),
    ],
)
def test_the_kept_weights_decide(tmp_path, train, curves, chosen):
    plan, store = planned(tmp_path, extra=[("epochs: 2", train)]), Store(tmp_path / "store")
    for trial, losses in zip(of(plan).trials, curves, strict=True):
        finish(store, trial.methods[-1], losses)
    assert read_tuning(of(plan), store).chosen == chosen
    assert of(decide(plan, store)).chosen == chosen


def test_the_metric_of_early_stopping_decides(tmp_path):
    plan = planned(tmp_path, extra=[("epochs: 2", "epochs: 2, early_stopping: {patience: 1, metric: token_accuracy}")])
    store = Store(tmp_path / "store")
    for trial, accuracy in zip(of(plan).trials, (0.2, 0.4, 0.3), strict=True):
        finish(store, trial.methods[-1], [1 + accuracy], [accuracy])
    assert [trial.score for trial in read_tuning(of(plan), store).trials] == [0.2, 0.4, 0.3]
    assert read_tuning(of(plan), store).chosen == 1


def test_nothing_is_chosen_before_the_last_trial_and_one_that_diverged_has_lost(tmp_path):
    plan, store = planned(tmp_path), Store(tmp_path / "store")
    first, second, third = (trial.methods[-1] for trial in of(plan).trials)
    finish(store, first, [2.0])
    finish(store, second, [3.0])
    assert read_tuning(of(plan), store).chosen is None
    assert decide(plan, store) is plan
    store.note_divergence(third, Divergence("step 3: the loss is nan", 3, 0.5))
    assert of(decide(plan, store)).chosen == 0
    status = {one.stage: (one.status, one.reason) for one in review(decide(plan, store), store)}
    assert status[third] == ("diverged", "step 3: the loss is nan")
    assert explain(decide(plan, store), store, third.name).endswith("a trial that lost; step 3: the loss is nan")


def test_what_follows_the_tuned_method_is_done_to_the_chosen_trial(tmp_path):
    plan, store = planned(tmp_path, CHAIN), Store(tmp_path / "store")
    assert [stage.kind for stage in of(plan).trials[0].methods] == ["train.lora"]
    before = described(plan)["small/notes/original seed 0: prune.blocks"]
    assert before.inputs == {"model": of(plan).choice}
    for trial, loss in zip(of(plan).trials, (2.0, 1.0), strict=True):
        finish(store, trial.methods[-1], [loss])
    after = described(decide(plan, store))["small/notes/original seed 0: prune.blocks"]
    assert after.inputs == {"model": of(plan).trials[1].methods[-1]}


def test_two_tuned_methods_of_a_chain_are_tried_together_and_share_what_they_can(tmp_path):
    line = "[{prune.blocks: {count: {tune: [1, 2]}}}, {train.lora: {learning_rate: {tune: [1.0e-4, 1.0e-3]}}}]"
    plan = planned(tmp_path, f"original: {line}")
    trials = of(plan).trials
    assert trials[0].name == "count=1,learning_rate=1e-4"
    assert (len(trials), len({trial.methods[0] for trial in trials}), len({trial.methods[1] for trial in trials})) == (4, 2, 4)
    assert described(plan)["small/notes/original seed 1: prune.blocks"].inputs == {"choice": of(plan).choice}


def test_plan_tells_what_is_tried_and_what_was_chosen(tmp_path):
    write_planned(tmp_path, STUDY.replace(LITERAL, TUNED))
    opened = open_study(tmp_path / "study.yaml")

    def told(plan: Plan) -> str:
        return describe_plan(opened.study, opened.lock, plan, opened.store)

    text = told(opened.plan)
    names = "learning_rate=1e-4, learning_rate=3e-4, learning_rate=1e-3"
    tried = f"tuning of original: 3 trials on each base and dataset with seed 0 ({names})"
    assert tried in text
    assert "small/notes/original seed 0; decided when its trials are through" in text
    assert "its inputs are new: choice and tokens" in text
    for trial, loss in zip(of(opened.plan).trials, (3.0, 2.0, 2.5), strict=True):
        finish(opened.store, trial.methods[-1], [loss])
    assert f"{tried}; chosen: small/notes learning_rate=3e-4" in told(open_study(tmp_path / "study.yaml").plan)


def fake_plan(folder: Path, bodies: Sequence[str]) -> Plan:
    """One tuned variant whose trials are bodies of `tests.pipeline.bodies`, with something after the choice."""
    trials = tuple(
        PlannedTrial(f"x={index}", (make_stage(body, folder, train={"keep": "best"}, loss=index + 1.0),))
        for index, body in enumerate(bodies)
    )
    choice = Stage(CHOICE, {"by": "loss"}, "", {trial.name: trial.methods[0] for trial in trials})

    cells = (PlannedCell("base", "data", "variant", 0, (choice, make_stage("ok", folder, {"model": choice})), {}),)
    return Plan({}, {}, {}, cells, (PlannedTuning("base", "data", "variant", 0, trials, choice),))


def run(store: Store, plan: Plan, events: list | None = None) -> Outcome:
    return run_plan(plan, store, RunOptions(), (events if events is not None else []).append)


def test_a_run_chooses_and_goes_on_and_the_next_one_reuses_everything(tmp_path):
    store, events = Store(tmp_path / "store"), []
    plan = fake_plan(tmp_path, ["validates", "validates", "diverges"])
    outcome = run(store, plan, events)
    assert (outcome.exit_code, outcome.plan.tunings[0].chosen, len(outcome.done), outcome.blocked) == (0, 0, 3, {})
    assert outcome.diverged == {plan.tunings[0].trials[2].methods[0]}
    kinds = [event["event"] for event in events]
    assert (kinds.count("diverged"), kinds.count("chosen"), kinds.count("failed")) == (1, 1, 0)
    assert next(event for event in events if event["event"] == "run")["stages"] == 4
    again = run(store, plan)
    assert (again.exit_code, len(again.reused), again.done) == (0, 3, [])
    assert (runs(tmp_path, "diverges"), runs(tmp_path, "validates")) == (1, 2)


def test_where_every_trial_diverged_the_choice_fails_now_and_later(tmp_path):
    store, plan = Store(tmp_path / "store"), fake_plan(tmp_path, ["diverges", "diverges"])
    for _ in range(2):
        outcome = run(store, plan)
        (message,) = (failure.message for failure in outcome.failed.values())
        assert outcome.exit_code == 1
        assert message.startswith(
            "base/data/variant: nothing to choose from, every trial diverged: x=0 (step 3: no number), x=1"
        )
        assert [stage.kind for stage in outcome.blocked] == ["ok"]
    assert runs(tmp_path, "diverges") == 2


def test_a_trial_that_fails_otherwise_leaves_the_choice_open(tmp_path):
    store, plan = Store(tmp_path / "store"), fake_plan(tmp_path, ["validates", "fails_once"])
    outcome = run(store, plan)
    assert (outcome.exit_code, [stage.kind for stage in outcome.blocked]) == (1, [CHOICE, "ok"])
    assert outcome.plan.tunings[0].chosen is None


def test_a_value_that_is_also_written_out_fails_there_and_loses_here(tmp_path):
    store, plan = Store(tmp_path / "store"), fake_plan(tmp_path, ["validates", "diverges"])
    literal = PlannedCell("base", "data", "literal", 0, plan.tunings[0].trials[1].methods, {})
    outcome = run(store, replace(plan, cells=(*plan.cells, literal)))
    assert [stage.kind for stage in outcome.failed] == ["diverges"]
    assert (outcome.plan.tunings[0].chosen, outcome.blocked) == (0, {})
    assert [stage.kind for stage in outcome.done] == ["validates", "ok"]

"""Why a stage is new, in words: against a store that holds the stages of an earlier form of the study."""

from pathlib import Path

import pytest

from paretune.errors import SpecError
from paretune.pipeline import plan as planning
from paretune.pipeline.plan import Plan
from paretune.pipeline.stage import Stage
from paretune.pipeline.store import Store
from paretune.pipeline.why import explain, review
from tests.pipeline.planned import STUDY, described, plan_of, record_of, write_planned

MACHINE = {"system": "Linux", "processor": "example", "cores": 2, "memory_gib": 8, "accelerator": None}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "fingerprint", lambda: MACHINE)


def finish(store: Store, stage: Stage) -> None:
    """An artifact without files, as if the stage had run."""
    store.open_draft(stage)
    store.commit(stage, record_of(stage))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_planned(tmp_path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Holds everything of the study as it is written at first."""
    folder = tmp_path_factory.mktemp("first")
    store = Store(folder / "store")
    store.prepare()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "fingerprint", lambda: MACHINE)
        for stage in plan_of(write_planned(folder)).stages:
            finish(store, stage)
    return store


def reasons(plan: Plan, store: Store) -> dict[str, str]:
    names = {stage.key: name for name, stage in reversed(described(plan).items())}
    return {names[one.stage.key]: one.reason for one in review(plan, store) if one.status == "new"}


def test_a_store_that_holds_everything_leaves_nothing_to_explain(file: Path, store: Store) -> None:
    reviewed = review(plan_of(file), store)
    assert {(one.status, one.reason) for one in reviewed} == {("reused", "")}
    name = reviewed[-1].stage.name
    assert explain(plan_of(file), store, name) == f"{name}: reused; the store holds it"


def test_in_an_empty_store_everything_is_the_first_or_follows_from_it(file: Path, tmp_path: Path) -> None:
    empty = Store(tmp_path / "empty")
    found = reasons(plan_of(file), empty)
    assert found["notes: data"] == "the first data in this store"
    assert found["small/notes: tokenize"] == "its input is new: data"
    assert found["small/notes/reduced seed 0: train.lora"] == "its inputs are new: model and tokens"
    assert found["small/notes/base: qa"] == "the first evaluate.qa in this store"


@pytest.mark.parametrize(
    ("old", "new", "stage", "reason"),
    [
        ("{r: 4}", "{r: 8}", "original seed 0: train.lora", "r (4 -> 8)"),
        ("epochs: 2", "epochs: 3", "full seed 1: train.full", "train.epochs (2 -> 3)"),
        ("epochs: 2", "max_steps: 9", "full seed 0: train.full", "train.epochs (2 -> nothing), train.max_steps (nothing -> 9)"),
        ("seeds: [0, 1]", "seeds: [0, 7]", "full seed 7: train.full", "seed (0 -> 7)"),
        ("max_new_tokens: 8", "max_new_tokens: 9", "base: generate", "max_new_tokens (8 -> 9)"),
        ("choose: last", "choose: first", "reduced seed 0: prune.blocks", "choose (last -> first)"),
    ],
)
def test_a_changed_field_is_named_as_the_study_writes_it(
    file: Path, store: Store, old: str, new: str, stage: str, reason: str
) -> None:
    file.write_text(STUDY.replace(old, new), encoding="utf-8")
    assert reasons(plan_of(file), store)[f"small/notes/{stage}"] == f"differs in {reason}"


@pytest.mark.parametrize(
    ("old", "new", "stage", "reason"),
    [
        ("document: title,", "document: title, leakage: allow,", "notes: leakage", "mode (block -> allow)"),
        ("\\n\\n{{", "\\n{{", "notes: data", r"text ({{ title }}\n\n{{ content }} -> {{ title }}\n{{ content }})"),
        ("qa: {", 'qa: {prompt: "Question: {{ question }}\\nAnswer: ", ', "small/notes/base: qa", "prompt (changed)"),
    ],
)
def test_a_template_is_told_in_one_line(file: Path, store: Store, old: str, new: str, stage: str, reason: str) -> None:
    file.write_text(STUDY.replace(old, new), encoding="utf-8")
    assert reasons(plan_of(file), store)[stage] == f"differs in {reason}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("notes.jsonl", {"notes: data": "differs in the data file", "small/notes: tokenize": "its input is new: data"}),
        (
            "questions.json",
            {
                "small/notes/base: qa": "differs in the file that is asked about",
                "notes: leakage": "differs in the file of `qa`",
            },
        ),
        ("small/model.safetensors", {"small/notes/base: size": "differs in the files of the base"}),
    ],
)
def test_a_changed_file_is_named_and_not_its_digest(file: Path, store: Store, name: str, expected: dict[str, str]) -> None:
    (file.parent / name).write_bytes((file.parent / name).read_bytes() + b"\n")
    found = reasons(plan_of(file), store)
    assert {stage: found[stage] for stage in expected} == expected


def test_of_many_differences_three_are_shown_and_the_rest_counted(file: Path, store: Store) -> None:
    file.write_text(
        STUDY.replace("new_tokens: 4", "new_tokens: 5, repeats: 3, warmup: 0").replace("prompt_tokens: 8", "prompt_tokens: 9")
    )
    told = reasons(plan_of(file), store)["small/notes/base: latency"]
    assert told == "differs in new_tokens (4 -> 5), prompt_tokens (8 -> 9), repeats (20 -> 3) and 1 more"


def test_another_machine_revision_or_model_is_told(file: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "fingerprint", lambda: MACHINE | {"cores": 64})
    assert reasons(plan_of(file), store)["small/notes/base: latency"] == "differs in machine.cores (2 -> 64)"
    monkeypatch.undo()
    plan = plan_of(file)
    stage = described(plan)["small/notes/full seed 0: train.full"]
    newer = Stage(stage.kind, stage.config, stage.body, stage.inputs, revision=2)
    assert review(Plan({}, {}, {("a", "b"): newer}, ()), store)[-1].reason == "differs in the revision of its code (1 -> 2)"
    other = Stage("train.full", stage.config, stage.body, {"tokens": described(plan)["other/notes: tokenize"]})
    # Two records are as near: that of the base's other tokens, and that of the tokens' other base.
    near = {"differs in the tokens that it is given", "differs in the files of the base"}
    assert review(Plan({}, {}, {("a", "b"): other}, ()), store)[-1].reason in near


def test_an_explanation_goes_back_to_what_changed(file: Path, store: Store) -> None:
    file.write_text(STUDY.replace("count: 1, choose: last", "count: 2, choose: last"), encoding="utf-8")
    plan = plan_of(file)
    trained = described(plan)["small/notes/reduced seed 0: train.lora"]
    pruned = trained.inputs["model"]
    told = explain(plan, store, trained.name)
    assert told.splitlines()[0] == f"{trained.name} is new because {pruned.name} is, which it needs"
    assert told.splitlines()[1].startswith(f"{pruned.name}: new; it differs from the nearest, prune.blocks-")
    assert told.splitlines()[2:] == ["  count (1 -> 2)"]


def test_a_name_that_fits_no_stage_or_several_is_told(file: Path, store: Store) -> None:
    plan = plan_of(file)
    with pytest.raises(SpecError, match=r"`train.ful-` is no stage of this study"):
        explain(plan, store, "train.ful-")
    with pytest.raises(SpecError, match=r"`train.full` names several stages.*\n  train.full-\w+  small/notes/full seed 0\n"):
        explain(plan, store, "train.full")

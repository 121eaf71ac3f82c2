"""Ratings in the plan: they hang on the texts and on what raters are told, and on nothing else."""

from pathlib import Path

import pytest

from paretune.pipeline.plan import Plan
from paretune.study import ratings
from tests.pipeline.planned import STUDY, described, plan_of, write_planned

PEOPLE = "  ratings: {files: [anna.csv]}\n"
JUDGE = '  judge: {url: "http://here/v1", model: m, key: A_KEY}\n'
SHEET = "item,coherence,relevance\nabcdefghijkl,4,5\n"


def planned(folder: Path, entries: str = PEOPLE + JUDGE, study: str = STUDY) -> Plan:
    file = write_planned(folder, study.replace("compare:", f"{entries}compare:"))
    (folder / "anna.csv").write_text(SHEET, encoding="utf-8")
    return plan_of(file)


def keys(plan: Plan, name: str = "") -> dict[str, str]:
    return {place: stage.key for place, stage in described(plan).items() if place.endswith(name)}


def test_ratings_take_the_texts_and_neither_model_nor_tokens(tmp_path: Path) -> None:
    stages = described(planned(tmp_path))
    for name in ("ratings", "judge"):
        stage = stages[f"small/notes/full seed 0: {name}"]
        assert set(stage.inputs) == {"texts.generate", "data"}
        assert stage.inputs["texts.generate"] == stages["small/notes/full seed 0: generate"]
        assert stage.kind == f"evaluate.{name}"


def test_other_stages_keep_their_keys(tmp_path: Path) -> None:
    before = keys(planned(tmp_path, ""))
    assert before.items() <= keys(planned(tmp_path)).items()


@pytest.mark.parametrize(
    ("old", "new", "renewed"),
    [
        ("key: A_KEY", "key: ANOTHER", set()),
        ("key: A_KEY", "timeout: 5", set()),
        ("judge: {url", "gpt: {kind: judge, url", set()),
        ("anna.csv", "./anna.csv", set()),
        ("model: m", "model: n", {"judge"}),
        ("http://here", "http://there", {"judge"}),
        ("model: m", "model: m, repeats: 2", {"judge"}),
        ("model: m", "model: m, criteria: [relevance]", {"judge"}),
    ],
)
def test_what_ratings_depend_on_is_in_their_key(tmp_path: Path, old: str, new: str, renewed: set[str]) -> None:
    before, after = planned(tmp_path), planned(tmp_path, (PEOPLE + JUDGE).replace(old, new))
    known = {stage.key for stage in before.stages}
    found = {place.rpartition(": ")[2] for place, key in keys(after).items() if key not in known}
    assert found == renewed


def test_a_changed_sheet_and_other_words_renew_ratings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = planned(tmp_path)
    (tmp_path / "anna.csv").write_text(SHEET.replace("4", "3"), encoding="utf-8")
    changed = plan_of(tmp_path / "study.yaml")
    assert not keys(before, ": ratings").items() & keys(changed, ": ratings").items()
    assert keys(before, ": judge") == keys(changed, ": judge")
    monkeypatch.setitem(ratings.RUBRIC, "coherence", "Coherence: other words.")
    reworded = plan_of(tmp_path / "study.yaml")
    assert not keys(changed, ": judge").items() & keys(reworded, ": judge").items()


def test_a_dataset_without_texts_is_not_rated(tmp_path: Path) -> None:
    tasks = '{source: {path: notes.jsonl}, document: title, tasks: {t: {completion: "{{ content }}", score: [rouge_l]}}}'
    study = STUDY.replace("data:\n", f"data:\n  asked: {tasks}\n").replace(
        "  generate: {prompts: [The train], max_new_tokens: 8}\n", ""
    )
    stages = described(planned(tmp_path, PEOPLE, study))
    assert "small/asked/base: ratings" in stages
    assert "small/notes/base: ratings" not in stages
    assert set(stages["small/asked/base: ratings"].inputs) == {"texts.tasks", "data"}


def test_the_key_of_the_address_stands_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "sk-very-secret")
    stage = described(planned(tmp_path))["small/notes/base: judge"]
    assert stage.settings["environment"] == "A_KEY"
    assert "A_KEY" not in str(stage.config)
    assert "sk-very-secret" not in str((stage.config, stage.resources, stage.settings))

"""What a change of a study runs again, and what is read back from the store."""

import re
from pathlib import Path

import pytest

from paretune.api import compare, open_results, plan, run
from paretune.cli import main
from paretune.errors import SpecError
from paretune.pipeline.runner import Outcome
from tests.conftest import write_notes, write_study

STUDY = """
study: small
bases: {tiny: {path: model}}
data:
  notes: {source: {path: notes.jsonl}, document: title, text: "{{ title }}\\n\\n{{ content }}"}
train: {max_length: 64}
variants:
  base: []
  shorter: [{prune.blocks: {count: 1}}]
evaluate: {perplexity: {splits: [test]}, qa: {path: qa.json, max_new_tokens: 4}}
"""
ONE_MORE = "  shortest: [{prune.blocks: {count: 2}}]\n"


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> tuple[Path, Outcome]:
    """A study that has run once, and what the run did."""
    file = write_study(tmp_path_factory.mktemp("results"), STUDY)
    return file, run(file)


@pytest.fixture
def file(first) -> Path:
    """The study file as it was, with the data that it names."""
    file = first[0]
    file.write_text(STUDY)
    write_notes(file.parent / "notes.jsonl")
    return file


def new(file: Path) -> list[str]:
    return [planned.stage.kind for planned in plan(file) if planned.status == "new"]


def test_the_first_run_does_each_stage_once(first):
    _, outcome = first
    assert (outcome.exit_code, outcome.reused) == (0, [])
    kinds = [stage.kind for stage in outcome.done]
    once = {"data", "leakage", "audit", "tokenize", "prune.blocks"}
    assert all(kinds.count(kind) == (1 if kind in once else 2) for kind in kinds)
    assert set(kinds) == once | {"evaluate.size", "evaluate.perplexity", "evaluate.qa"}


def test_the_second_run_reuses_everything(first, file):
    _, outcome = first
    again = run(file)
    assert (again.done, again.failed, set(again.reused)) == ([], {}, set(outcome.done))


def test_one_variant_more_runs_its_stages_only(file):
    file.write_text(STUDY.replace("evaluate:", f"{ONE_MORE}evaluate:"))
    expected = ["prune.blocks", "evaluate.size", "evaluate.perplexity", "evaluate.qa"]
    assert new(file) == expected
    assert [stage.kind for stage in run(file).done] == expected
    results = open_results(file)
    assert [(cell.variant, cell.missing) for cell in results.cells] == [("base", ()), ("shorter", ()), ("shortest", ())]


def test_any_two_variants_are_compared_from_a_notebook(file):
    ours = compare(file)
    assert set(zip(ours.variant, ours.baseline, strict=True)) == {("shorter", "base")}
    other = compare(file, "shorter")
    assert other.difference.tolist() == pytest.approx((-ours.difference).tolist())
    with pytest.raises(SpecError, match="reference: no variant `shortr`; did you mean `shorter`"):
        compare(file, "shortr")


def test_results_hold_a_record_for_everything(file):
    results = open_results(file)
    base, shorter = results.cells
    assert (base.base, base.dataset, base.seed, base.missing, base.methods) == ("tiny", "notes", None, (), ())
    assert [record.kind for record in shorter.methods] == ["prune.blocks"]
    assert set(shorter.evaluations) == {"size", "perplexity", "qa"}
    parameters = [cell.evaluations["size"].metrics["parameters"] for cell in results.cells]
    assert parameters[0] - parameters[1] == shorter.methods[0].metrics["removed_parameters"] > 0
    assert results.data["notes"].kind == "data"
    assert results.leakage["notes"].inputs == {"data": results.data["notes"].key}
    assert results.tokens["tiny", "notes"].kind == "tokenize"
    assert all((record.path / "record.json").exists() for record in shorter.evaluations.values())


def test_what_is_not_there_is_named_and_the_rest_is_read(file):
    file.write_text(STUDY.replace("splits: [test]", "splits: [validation]"))
    results = open_results(file)
    for cell in results.cells:
        assert set(cell.evaluations) == {"size", "qa"}
        assert [name.split("-")[0] for name in cell.missing] == ["evaluate.perplexity"]


def test_a_changed_data_file_is_another_answer(file):
    assert new(file) == []
    write_notes(file.parent / "notes.jsonl", seed=1)
    assert new(file) == ["data", "leakage", "audit", "tokenize", "evaluate.perplexity", "evaluate.perplexity"]
    write_notes(file.parent / "notes.jsonl")
    assert new(file) == []


def test_a_store_that_cannot_be_used_ends_in_one_line(file, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["run", str(file), "--store", str(tmp_path / "file")]) == 2
    assert "--store" in _only_line(capsys)
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "store.json").write_text('{"schema": 2}')
    for command in ("run", "plan", "report"):
        assert main([command, str(file), "--store", str(tmp_path / "newer")]) == 2
        assert "newer Paretune" in _only_line(capsys)


def test_a_damaged_record_ends_in_one_line_that_says_what_to_remove(file, capsys):
    (record,) = (file.parent / ".paretune").glob("data-*/record.json")
    content = record.read_text()
    record.write_text(content[: len(content) // 2])
    try:
        for command in ("run", "plan", "report"):
            assert main([command, str(file)]) == 2
            assert str(record.parent) in _only_line(capsys)
    finally:
        record.write_text(content)


def _only_line(capsys: pytest.CaptureFixture) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_splits_of_few_documents_are_warned_of_as_soon_as_they_are_known(file, capsys):
    assert main(["plan", str(file)]) == 0
    assert "warning: `notes` has few documents (4 in `validation`, 4 in `test`)" in capsys.readouterr().out
    write_notes(file.parent / "notes.jsonl", count=39)  # not read yet
    assert main(["plan", str(file)]) == 0
    assert "warning" not in capsys.readouterr().out


def test_what_the_functions_return_prints_in_a_few_lines(file):
    file.write_text(STUDY.replace("evaluate:", ONE_MORE.replace("2", "3").rstrip() + "\nevaluate:"))
    assert re.fullmatch(r"<data-\w{8}: reused>", repr(plan(file)[0]))
    assert any(re.fullmatch(r"<prune.blocks-\w{8}: new, differs in count \(\d -> 3\)>", repr(one)) for one in plan(file))
    assert str(open_results(file)).splitlines() == [
        "results of `small`:",
        "  tiny/notes/base: complete",
        "  tiny/notes/shorter: complete",
        "  tiny/notes/shortest: 4 stages missing",
    ]

"""The plan: which stages there are, which are shared, and what does and does not give them new keys."""

import os
import re
import shutil
from pathlib import Path

import pytest

from paretune.errors import NeedsError, SpecError
from paretune.pipeline import parts, preflight
from paretune.pipeline import plan as planning
from paretune.pipeline.plan import Plan, cell_name
from paretune.pipeline.resources import Resource
from paretune.study.registry import Method
from tests.pipeline.planned import GPT2, STUDY, check, described, plan_of, write_base, write_planned

MACHINE = {"system": "Linux", "processor": "example", "cores": 2, "memory_gib": 8, "accelerator": None}
GOLDEN = {
    "notes: data": "517c5fbf470e",
    "notes: leakage": "ae4e1fc97d48",
    "small/notes: tokenize": "95594ad23db5",
    "small/notes/base: size": "d3ff7a2d396d",
    "small/notes/base: perplexity": "f0e2c3d3de03",
    "small/notes/base: qa": "4093e33141ed",
    "small/notes/base: generate": "ec95d3c0c65f",
    "small/notes/base: latency": "7adf785fe126",
    "small/notes/full seed 0: train.full": "6fc57e423ad3",
    "small/notes/full seed 0: perplexity": "12e8ac1c6878",
    "small/notes/original seed 0: train.lora": "20b20c23bfa1",
    "small/notes/original seed 0: perplexity": "662c061ccadd",
    "small/notes/reduced seed 0: prune.blocks": "e049dd42690e",
    "small/notes/reduced seed 0: train.lora": "9ac5b4d3ee0a",
    "small/notes/reduced seed 0: perplexity": "74906e7df16a",
    "small/notes/shorter: perplexity": "3fdf7792eb76",
    "small/notes/named: prune.blocks": "cb0675195d5b",
    "small/notes/named: perplexity": "29b3aacd6400",
}
GOLDEN_CHOICE = "3f1344f3c7bf"
"""`count: 1, choose: loss` of `small`."""


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "fingerprint", lambda: MACHINE)


def keys(plan: Plan) -> dict[str, str]:
    return {name: stage.key for name, stage in described(plan).items()}


def changed(before: Plan, after: Plan) -> set[str]:
    """What has a new key, without the cell that it belongs to: `train.full`, `qa of a trained model`."""
    old, new = described(before), described(after)
    return {_sort(name, new[name].inputs) for name in new if name not in old or old[name].key != new[name].key}


def _sort(name: str, inputs: object) -> str:
    cell, _, kind = name.rpartition(": ")
    if kind in ("data", "leakage", "audit", "tokenize") or "." in kind:
        return kind
    return f"{kind} of the base" if cell.endswith("/base") else f"{kind} of a model"


def replan(file: Path, old: str, new: str) -> Plan:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")
    return plan_of(file)


def test_the_keys_of_the_example_study_are_frozen(tmp_path: Path) -> None:
    """A key that changes makes its stage run again in every store. Where an answer changes, a row's `revision` says so."""
    found = {name: key[:12] for name, key in keys(plan_of(write_planned(tmp_path))).items()}
    assert {name: found[name] for name in GOLDEN} == GOLDEN
    chosen = keys(with_choice(tmp_path / "choice", "count: 1, choose: loss"))
    assert chosen["small/notes/shorter: prune.blocks"][:12] == GOLDEN_CHOICE


def test_an_answer_over_tasks_that_changed_has_another_key_and_that_over_text_has_not(tmp_path: Path) -> None:
    chosen = STUDY.replace(
        "shorter: [{prune.blocks: {count: 1, choose: last}}]", "shorter: [{prune.blocks: {count: 1, choose: loss}}]"
    )
    tasks = chosen.replace('text: "{{ title }}\\n\\n{{ content }}"', TASKS)
    assert tasks != chosen
    for number, (text, revisions) in enumerate(((chosen, (1, 1)), (tasks, (1, 2)))):
        stages = described(plan_of(write_planned(tmp_path / str(number), text)))
        of_blocks = (stages[f"small/notes/{name}: prune.blocks"] for name in ("reduced seed 0", "shorter"))
        assert tuple(stage.revision for stage in of_blocks) == revisions


def test_keys_do_not_know_where_and_when_and_by_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys(plan_of(write_planned(tmp_path / "here")))
    shutil.copytree(tmp_path / "here", tmp_path / "there" / "deeper")
    for file in (tmp_path / "there").rglob("*"):
        os.utime(file, (1, 1))
    monkeypatch.chdir(tmp_path / "there")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert keys(plan_of(Path("deeper/study.yaml"))) == before
    (tmp_path / "there" / "deeper" / "small" / "README.md").write_text("A card.")
    assert keys(plan_of(Path("deeper/study.yaml"))) == before


def test_names_are_not_part_of_a_key(tmp_path: Path) -> None:
    file = write_planned(tmp_path)
    before = {stage.key for stage in plan_of(file).stages}
    for old, new in (
        ("study: example", "study: other"),
        ("{baseline: original}", "{}"),
        ("original:", "renamed:"),
        ("notes:", "news:"),
    ):
        assert {stage.key for stage in replan(file, old, new).stages} == before


TRAINED = {"train.full", "train.lora"}
OF_MODELS = {f"{name} of a model" for name in ("size", "perplexity", "qa", "generate", "latency")}
OF_THE_BASE = {f"{name} of the base" for name in ("size", "perplexity", "qa", "generate", "latency")}
ON_TOKENS = {f"{name} of {what}" for name in ("perplexity", "latency") for what in ("a model", "the base")}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("notes.jsonl", {"data", "leakage", "audit", "tokenize"} | TRAINED | OF_MODELS | ON_TOKENS),
        ("questions.json", {"leakage", "qa of a model", "qa of the base"}),
        ("small/tokenizer.json", {"tokenize", "prune.blocks"} | TRAINED | OF_MODELS | OF_THE_BASE),
        ("small/model.safetensors", {"prune.blocks"} | TRAINED | OF_MODELS | OF_THE_BASE),
        ("small/config.json", {"tokenize", "prune.blocks"} | TRAINED | OF_MODELS | OF_THE_BASE),
    ],
)
def test_a_changed_file_renews_what_depends_on_it(tmp_path: Path, name: str, expected: set[str]) -> None:
    file = write_planned(tmp_path)
    before = plan_of(file)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b"\n")
    after = plan_of(file)
    assert changed(before, after) == expected
    of_others = {
        name: key for name, key in keys(before).items() if name.startswith("other/") and "small" in str(tmp_path / name)
    }
    assert of_others.items() <= keys(after).items() or not name.startswith("small")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("epochs: 2", "epochs: 3", TRAINED | OF_MODELS),
        ("max_length: 64", "max_length: 32", {"tokenize"} | TRAINED | OF_MODELS | ON_TOKENS),
        ("{train.full: {learning_rate: 3.0e-5}}", "{train.full: {learning_rate: 1.0e-5}}", {"train.full"} | OF_MODELS),
        ("max_new_tokens: 8", "max_new_tokens: 9", {"generate of a model", "generate of the base"}),
        ("{compute: float32}", "{compute: bfloat16}", TRAINED | OF_MODELS),
        ("{compute: float32}", "{compute: float32, evaluate: bfloat16}", OF_MODELS | OF_THE_BASE),
        ("document: title,", "document: title, leakage: allow,", {"leakage"}),
        ("document: title,", "document: title, too_long: skip,", {"tokenize"} | TRAINED | OF_MODELS | ON_TOKENS),
        ("seeds: [0, 1]", "seeds: [0]", set()),
        ("bases: [small], methods", "bases: [small, other], methods", {"prune.blocks"} | OF_MODELS),
    ],
)
def test_a_changed_field_renews_what_depends_on_it(tmp_path: Path, old: str, new: str, expected: set[str]) -> None:
    file = write_planned(tmp_path)
    before = plan_of(file)
    assert changed(before, replan(file, old, new)) == expected


def test_adding_a_variant_adds_its_stages_only(tmp_path: Path) -> None:
    file = write_planned(tmp_path)
    before = {stage.key for stage in plan_of(file).stages}
    after = replan(file, "  base: []\n", "  base: []\n  wide: [{train.lora: {r: 16}}]\n")
    added = [stage for stage in after.stages if stage.key not in before]
    assert before < {stage.key for stage in after.stages}
    assert all(cell_name(cell).split("/")[2].startswith("wide") for cell in after.cells if {*cell.methods} & {*added})
    assert len(added) == 2 * 2 * (1 + 5)  # bases x seeds x (the adapter, and five evaluations)


def test_a_question_set_does_not_retrain_unless_its_copies_are_removed(tmp_path: Path) -> None:
    extra = "  more: {kind: qa, path: questions.json}\n"
    file = write_planned(tmp_path)
    for mode in ("block", "allow"):
        file.write_text(STUDY.replace("document: title,", f"document: title, leakage: {mode},"), encoding="utf-8")
        before = plan_of(file)
        assert changed(before, replan(file, "evaluate:\n", f"evaluate:\n{extra}")) == {
            "leakage",
            "more of a model",
            "more of the base",
        }
    file.write_text(STUDY.replace("document: title,", "document: title, leakage: remove,"), encoding="utf-8")
    before = plan_of(file)
    after = replan(file, "evaluate:\n", f"evaluate:\n{extra}")
    assert {"data", "tokenize", "train.full", "train.lora"} < changed(before, after)
    assert sorted(after.data["notes"].config["items"]) == ["more", "qa"]
    assert after.data["notes"].resources["items.more"] == Resource(path=tmp_path / "questions.json")


def test_an_evaluation_may_be_asked_for_twice(tmp_path: Path) -> None:
    text = STUDY.replace(
        "compare:",
        "  short: {kind: latency, prompt_tokens: 4, new_tokens: 4}\n  again: {kind: qa, path: questions.json}\ncompare:",
    )
    cell = plan_of(write_planned(tmp_path, text)).cells[0]
    assert [cell.evaluations[name].kind for name in ("short", "latency")] == ["evaluate.latency"] * 2
    assert cell.evaluations["short"] != cell.evaluations["latency"]
    assert cell.evaluations["again"] != cell.evaluations["qa"]  # which has slices


def test_what_several_variants_need_stands_in_the_plan_once(tmp_path: Path) -> None:
    plan = plan_of(write_planned(tmp_path))
    stages = described(plan)
    pruned = stages["small/notes/shorter: prune.blocks"]
    assert {stages[f"small/notes/reduced seed {seed}: prune.blocks"] for seed in (0, 1)} == {pruned}
    assert plan.uses(pruned) == ["small/notes/reduced seed 0", "small/notes/reduced seed 1", "small/notes/shorter"]
    assert len({stage.key for stage in plan.stages}) == len(plan.stages)
    for number, stage in enumerate(plan.stages):
        assert {*stage.inputs.values(), *stage.after} <= set(plan.stages[:number]), "parents come first"


def test_the_base_is_measured_once_however_often_it_is_named(tmp_path: Path) -> None:
    file = write_planned(tmp_path)
    before = len(plan_of(file).stages)
    after = replan(file, "  base: []\n", "  base: []\n  again: []\n")
    assert len(after.stages) == before
    assert (
        len(after.cells) == 2 * 9 + 1 + 2 - 2
    )  # per base: 2 without seed and 3 trained ones of two; one cell of `named`; `again`


def test_only_what_trains_has_seeds_and_only_its_bases_have_a_variant(tmp_path: Path) -> None:
    plan = plan_of(write_planned(tmp_path))
    seeds: dict[tuple[str, str], list[int | None]] = {}
    for cell in plan.cells:
        seeds.setdefault((cell.base, cell.variant), []).append(cell.seed)
    assert seeds["small", "full"] == seeds["small", "reduced"] == [0, 1]
    assert seeds["small", "base"] == seeds["other", "shorter"] == seeds["small", "named"] == [None]
    assert ("other", "named") not in seeds
    trained = described(plan)["small/notes/reduced seed 1: train.lora"]
    assert trained.config["seed"] == 1
    assert sorted(trained.inputs) == ["model", "tokens"]
    assert trained.after == (plan.leakage["notes"],)


def with_choice(folder: Path, fields: str) -> Plan:
    """The example study, with a variant `shorter` that removes blocks by `fields`."""
    text = STUDY.replace("shorter: [{prune.blocks: {count: 1, choose: last}}]", f"shorter: [{{prune.blocks: {{{fields}}}}}]")
    return plan_of(write_planned(folder, text))


def test_a_measured_choice_of_blocks_takes_training_text_and_others_do_not(tmp_path: Path) -> None:
    plan = with_choice(tmp_path, "count: 1, choose: loss")
    stages = described(plan)
    chosen = stages["small/notes/shorter: prune.blocks"]
    assert chosen.inputs == {"tokens": plan.tokens["small", "notes"]}
    assert chosen.after == (plan.leakage["notes"],)
    assert chosen.config["method"] == {
        "blocks": None,
        "count": 1,
        "choose": "loss",
        "calibration": {"documents": 64, "tokens": 16384, "seed": 0},
        "budget": {"passes": 256, "search": "race"},
    }
    assert (chosen.config["max_length"], chosen.config["precision"], chosen.config["device"]) == (64, "float32", "cpu")
    plain = stages["small/notes/reduced seed 0: prune.blocks"]
    assert plain.inputs == {}
    assert sorted(plain.config["method"]) == ["blocks", "choose", "count"]


def test_what_a_choice_depends_on_is_in_its_key_written_out_or_not(tmp_path: Path) -> None:
    fields = [
        "count: 1, choose: loss",
        "count: 1, choose: influence",
        "count: 1, choose: loss, calibration: {seed: 1}",
        "count: 1, choose: loss, calibration: {documents: 8}",
        "count: 1, choose: random",
        "count: 1, choose: random, seed: 1",
    ]
    same = ["count: 1, choose: loss, calibration: {documents: 64}", "count: 1, choose: random, seed: 0"]
    found = {
        text: keys(with_choice(tmp_path / str(number), text))["small/notes/shorter: prune.blocks"]
        for number, text in enumerate(fields + same)
    }
    assert len({found[text] for text in fields}) == len(fields)
    assert [found[text] for text in same] == [found[fields[0]], found[fields[4]]]


def test_only_times_depend_on_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_planned(tmp_path)
    before = plan_of(file)
    monkeypatch.setattr(planning, "fingerprint", lambda: MACHINE | {"processor": "another"})
    assert changed(before, plan_of(file)) == {"latency of the base", "latency of a model"}


def test_separate_sources_for_the_splits_need_no_split(tmp_path: Path) -> None:
    text = STUDY.replace(
        "source: {path: notes.jsonl}",
        "source: {train: {path: notes.jsonl}, validation: {path: b.jsonl}, test: {hub: owner/x, revision: " + "a" * 40 + "}}",
    )
    file = write_planned(tmp_path, text)
    shutil.copy(tmp_path / "notes.jsonl", tmp_path / "b.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("paretune.pipeline.hub.resolve_commit", lambda kind, name, revision, where: "a" * 40)
        stage = plan_of(file).data["notes"]
    dataset = stage.config["dataset"]
    assert "split" not in dataset
    assert dataset["source"]["train"]["path"].startswith("sha256:")
    assert dataset["source"]["test"]["revision"] == "a" * 40
    assert stage.resources["source.test"] == Resource(hub="owner/x", commit="a" * 40, kind="dataset")
    assert stage.resources["source.validation"] == Resource(path=tmp_path / "b.jsonl")


@pytest.mark.parametrize(("field", "positions"), [("n_positions", 1024), ("max_position_embeddings", 1024)])
def test_a_length_beyond_the_positions_is_refused(tmp_path: Path, field: str, positions: int) -> None:
    file = write_planned(tmp_path, STUDY.replace("max_length: 64", "max_length: 1024"))
    config = {name: value for name, value in GPT2.items() if name != "n_positions"}
    write_base(tmp_path / "small", config | {field: positions})
    check(file)  # as long as it reaches
    write_base(tmp_path / "small", config | {field: positions - 1})
    with pytest.raises(
        SpecError, match=r"train.max_length: 1024 is longer than base `small` reaches \(1023 positions\); write at most"
    ):
        check(file)


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (
            ("cuda",),
            "variants.full: `train.full` needs an NVIDIA GPU, and this study runs on `cpu`; run it on a machine with one",
        ),
        (
            ("no_such_module",),
            "needs the package `no_such_module`, which is not installed: `pip install no_such_module`; or take",
        ),
        (("no_such.module",), "needs the package `no_such`, which is not installed"),
        (("json", "torch"), None),
    ],
)
def test_needs_are_checked_before_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs: tuple[str, ...], message: str | None
) -> None:
    from paretune.study import registry
    from paretune.study.methods import TrainFull

    row = Method("train.full", TrainFull, "paretune.train.stages:train_full", trains=True, needs=needs)
    monkeypatch.setitem(registry.methods(), "train.full", row)
    file = write_planned(tmp_path)
    if message is None:
        check(file)
        return
    with pytest.raises(NeedsError) as told:
        check(file)
    assert message in str(told.value)


def test_code_that_is_not_installed_is_told_in_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paretune.study import registry
    from paretune.study.evaluations import Perplexity

    monkeypatch.setitem(
        registry.evaluations(),
        "perplexity",
        registry.Evaluation("perplexity", Perplexity, "gone.away:measure", uses_tokens=True),
    )
    with pytest.raises(
        NeedsError, match=r"evaluate.perplexity: `perplexity`: its code, the module `gone.away`, is not installed"
    ):
        check(write_planned(tmp_path))


TASKS = (
    'context: "{{ content }}", tasks: {title: {prompt: "T: ", completion: "{{ title }}"}, kind: {completion: "{{ title }}"}}'
)


def test_how_tasks_are_scored_renews_no_training(tmp_path: Path) -> None:
    file = write_planned(tmp_path, STUDY.replace('text: "{{ title }}\\n\\n{{ content }}"', TASKS))
    before = plan_of(file)
    assert "paretune.data.examples:tokenize_tasks" in {stage.body for stage in before.tokens.values()}
    after = replan(file, 'prompt: "T: ",', 'prompt: "T: ", score: [rouge_l], stop: ["."], max_new_tokens: 9,')
    assert {stage.key for stage in before.stages} <= {stage.key for stage in after.stages}
    assert "data" in changed(after, replan(file, 'prompt: "T: "', 'prompt: "Title: "'))


SCORED = TASKS.replace('prompt: "T: ",', 'prompt: "T: ", score: [rouge_l],')


def test_scored_tasks_are_answered_without_an_entry_or_as_the_entry_says(tmp_path: Path) -> None:
    text = STUDY.replace('text: "{{ title }}\\n\\n{{ content }}"', SCORED)
    file = write_planned(tmp_path, text)
    stage = described(plan_of(file))["small/notes/base: tasks"]
    assert stage.config["evaluation"] == {
        "splits": ["test"],
        "max_documents": None,
        "tasks": {"title": {"score": ["rouge_l"], "max_new_tokens": 128, "stop": [], "labels": None}},
    }
    asked = described(
        replan(file, "  perplexity: {}\n", "  perplexity: {}\n  answers: {kind: tasks, splits: [validation, test]}\n")
    )
    assert "small/notes/base: tasks" not in asked
    assert asked["small/notes/base: answers"].config["evaluation"]["splits"] == ["validation", "test"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("perplexity: {}", "tasks: {kind: perplexity}", "evaluate.tasks: the name `tasks` is that of the evaluation of tasks"),
        ("perplexity: {}", "tasks: {}\n  more: {kind: tasks}", "evaluate.more: the tasks are asked about in `tasks` already"),
        ("perplexity: {}", "title: {kind: perplexity}", "data.notes.tasks.title: an evaluation is called `title` too"),
        ("score: [rouge_l],", "", "evaluate.tasks: no dataset has a task with `score` or `labels`"),
    ],
)
def test_tasks_and_evaluations_have_names_of_their_own(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = STUDY.replace('text: "{{ title }}\\n\\n{{ content }}"', SCORED)
    text = text.replace(old, new) if new else text.replace(old, new).replace("perplexity: {}", "tasks: {}")
    with pytest.raises(SpecError, match=re.escape(message)):
        plan_of(write_planned(tmp_path, text))


def test_a_later_field_of_training_enters_the_key_only_if_it_is_set(tmp_path: Path) -> None:
    file = write_planned(tmp_path)
    trained = [stage for stage in plan_of(file).stages if stage.kind.startswith("train.")]
    assert all("layout" not in stage.config["train"] for stage in trained)
    file.write_text(file.read_text().replace("max_length: 64}", "max_length: 64, layout: padded}"))
    padded = [stage for stage in plan_of(file).stages if stage.kind.startswith("train.")]
    assert all(stage.config["train"]["layout"] == "padded" for stage in padded)
    assert not {stage.key for stage in trained} & {stage.key for stage in padded}


def test_the_encoder_of_bert_score_is_pinned_like_a_base(tmp_path: Path) -> None:
    text = STUDY.replace('text: "{{ title }}\\n\\n{{ content }}"', SCORED.replace("[rouge_l]", "[rouge_l, bert_score]"))
    file = write_planned(tmp_path, text)
    write_base(tmp_path / "encoder", {"model_type": "bert", "num_hidden_layers": 4})
    with pytest.raises(SpecError, match=r"data\.notes\.tasks\.title\.score: `bert_score` needs an encoder"):
        plan_of(file)
    at_4 = described(replan(file, "  perplexity: {}\n", "  perplexity: {}\n  tasks: {encoder: {path: encoder}}\n"))
    stage = at_4["small/notes/base: tasks"]
    assert stage.config["evaluation"]["encoder"]["layer"] == 4
    assert stage.resources["encoder"] == Resource(path=(tmp_path / "encoder").resolve())
    at_2 = described(replan(file, "path: encoder", "path: encoder, layer: 2"))
    assert at_2["small/notes/base: tasks"].key != stage.key
    write_base(tmp_path / "encoder", {"model_type": "bert", "num_hidden_layers": 4, "type_vocab_size": 1})
    of_another = described(plan_of(file))
    assert of_another["small/notes/base: tasks"].key != at_2["small/notes/base: tasks"].key
    assert of_another["small/notes/base: perplexity"].key == at_2["small/notes/base: perplexity"].key


def test_a_task_of_the_harness_has_the_key_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files and its version decide; what Python leaves beside them does not."""
    file = write_planned(
        tmp_path, STUDY.replace("  latency:", "  harness: {kind: lm_eval, tasks: [mine], include_path: tasks}\n  latency:")
    )
    (tmp_path / "tasks").mkdir()
    task = tmp_path / "tasks" / "mine.yaml"
    task.write_text("task: mine\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preflight, "has", lambda need, _: need != "lm_eval")
        with pytest.raises(
            NeedsError, match=r"evaluate\.harness: `lm_eval` needs the package `lm_eval`, which is not installed: `pip"
        ):
            check(file)
    monkeypatch.setattr(parts, "version", lambda _: "0.4.13")
    before = plan_of(file)
    (tmp_path / "tasks" / "__pycache__").mkdir()
    (tmp_path / "tasks" / "__pycache__" / "mine.pyc").write_bytes(b"1")
    assert keys(plan_of(file)) == keys(before)
    task.write_text("task: mine\nnum_fewshot: 1\n", encoding="utf-8")
    # The leakage check reads the documents, so that it is asked again, too.
    assert changed(before, plan_of(file)) == {"leakage", "harness of the base", "harness of a model"}
    monkeypatch.setattr(parts, "version", lambda _: "0.4.14")
    assert "harness of the base" in changed(before, plan_of(file))
    with pytest.raises(NeedsError, match=r"evaluate\.harness\.include_path: no folder `task`"):
        replan(file, "include_path: tasks", "include_path: task")


def test_forgetting_is_measured_against_the_untouched_base(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("The sea.\n", encoding="utf-8")
    plan = plan_of(write_planned(tmp_path, STUDY.replace("  latency:", "  forgetting: {path: other.txt}\n  latency:")))
    found = {name: stage for name, stage in described(plan).items() if name.endswith(": forgetting")}
    base = found["small/notes/base: forgetting"]
    assert "untouched" not in base.inputs
    assert base.config["evaluation"]["max_length"] == 64
    assert all(one.inputs["untouched"] == base for name, one in found.items() if name.startswith("small") and one != base)


def test_cleaning_enters_the_key_of_the_data_only_if_it_does_something(tmp_path: Path) -> None:
    file = write_planned(tmp_path)
    before = keys(plan_of(file))
    assert keys(replan(file, "document: title,", "document: title, clean: {}, ")) == before
    some = plan_of_clean(file, "clean: {}", "clean: {mask: [phone, email]}")
    assert some["notes: data"] != before["notes: data"]
    assert plan_of_clean(file, "[phone, email]", "[email, phone]") == some  # their order says nothing
    region = plan_of_clean(file, "[email, phone]}", "[email, phone], region: DE}")
    assert region["notes: data"] != some["notes: data"]
    assert region["small/notes/base: generate"] == before["small/notes/base: generate"]
    nothing = plan_of_clean(file, "mask: [email, phone], region: DE", "region: DE")
    assert nothing == before


def plan_of_clean(file: Path, old: str, new: str) -> dict[str, str]:
    return keys(replan(file, old, new))


SAFE = "precision: {compute: float32}\n"


def test_safety_enters_the_keys_of_what_it_looks_at(tmp_path: Path) -> None:
    file = write_planned(tmp_path)
    (tmp_path / "words.txt").write_text("word\n")
    before = plan_of(file)
    texts = {f"{name} of {what}" for name in ("qa", "generate") for what in ("a model", "the base")}
    counted = replan(file, SAFE, f"{SAFE}safety: {{words: words.txt}}\n")
    assert changed(before, counted) == {"audit"} | texts
    dropped = replan(file, "words.txt}", "words.txt, data: drop}")
    assert {"data", "tokenize", "train.full", "qa of a model"} <= changed(counted, dropped)
    assert described(dropped)["notes: audit"].config == {"labels": []}
    (tmp_path / "words.txt").write_text("another\n")
    assert "data" in changed(dropped, plan_of(file))


def test_the_classifier_of_unsafe_text_is_pinned_like_a_base(tmp_path: Path) -> None:
    file = write_planned(tmp_path)
    config = {"model_type": "bert", "id2label": {"0": "fine", "1": "toxic"}}
    write_base(tmp_path / "judge", config)
    found = replan(file, SAFE, f"{SAFE}safety: {{classifier: {{path: judge, unsafe: [toxic]}}}}\n")
    stage = described(found)["notes: audit"]
    assert stage.resources["safety.classifier"] == Resource(path=(tmp_path / "judge").resolve())
    assert stage.config["safety"]["classifier"] | {"digest": ""} == {"unsafe": ["toxic"], "threshold": 0.5, "digest": ""}
    write_base(tmp_path / "judge", config | {"type_vocab_size": 1})
    assert described(plan_of(file))["notes: audit"].key != stage.key

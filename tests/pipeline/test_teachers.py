"""Teachers in the plan: once for all students, of the same seed, part of the student's key, and refused before a run."""

import json
from pathlib import Path

import pytest

from paretune.errors import SpecError
from paretune.pipeline.forecast import forecast
from paretune.pipeline.plan import TEACHER, Plan
from paretune.pipeline.resources import read_tokenizer
from paretune.pipeline.store import Store
from paretune.pipeline.tuning import with_choice
from paretune.study.study import load_study
from tests.pipeline.planned import GPT2, STUDY, check, lock_of, plan_of, write_base, write_planned

HEAD, TAIL = STUDY.partition("variants:")[0], "evaluate: {perplexity: {}}\n"
STUDENT = "[{prune.blocks: {count: 1}}, {distill.logits: {teacher: original}}]"


def study(variants: str, head: str = HEAD) -> str:
    return f"{head}variants:\n  base: []\n  original: [{{train.lora: {{r: 4}}}}]\n{variants}{TAIL}"


def planned(folder: Path, text: str) -> Plan:
    return plan_of(write_planned(folder, text))


def teachers(plan: Plan, variant: str) -> list:
    return [cell.methods[-1].inputs["teacher"] for cell in plan.cells if cell.variant == variant and cell.base == "small"]


def test_a_teacher_is_that_of_the_same_seed_and_made_once_for_all_students(tmp_path):
    again = STUDENT.replace("count: 1", "count: 2")
    plan = planned(tmp_path, study(f"  small: {STUDENT}\n  smaller: {again}\n  own: [{{distill.logits: {{}}}}]\n"))
    first, second = teachers(plan, "small")
    assert teachers(plan, "smaller") == [first, second]
    assert [stage.inputs["model"].config["seed"] for stage in (first, second)] == [0, 1]
    (untouched,) = set(teachers(plan, "own"))
    assert "model" not in untouched.inputs
    assert sum(stage.kind == TEACHER for stage in plan.stages) == 6  # of two bases
    order = list(plan.stages)
    assert all(order.index(parent) < order.index(stage) for stage in order for parent in stage.inputs.values())
    assert plan.uses(first)[0] == "student small/notes/small seed 0"


def test_a_students_key_changes_with_its_teacher_and_not_with_a_temperature_of_another(tmp_path):
    text = study(f"  small: {STUDENT}\n")
    (before, _), (after, _) = (
        teachers(planned(tmp_path / name, each), "small")
        for name, each in (("a", text), ("b", text.replace("{r: 4}", "{r: 8}")))
    )
    assert before.key != after.key
    warm = text.replace("teacher: original", "teacher: original, cache: exact, temperature: 2.0")
    cold = warm.replace("2.0", "1.0")
    assert teachers(planned(tmp_path / "c", warm), "small") == teachers(planned(tmp_path / "d", cold), "small")


def test_one_seed_of_a_teacher_can_be_named(tmp_path):
    plan = planned(tmp_path, study(f"  small: {STUDENT.replace('original', 'original, seed: 1')}\n"))
    assert [stage.inputs["model"].config["seed"] for stage in teachers(plan, "small")] == [1, 1]


def test_a_tuned_student_and_a_tuned_teacher_keep_to_their_seeds(tmp_path):
    variants = (
        "  teacher: [{train.lora: {r: {tune: [2, 4]}}}]\n"
        "  small: [{distill.logits: {teacher: teacher, learning_rate: {tune: [1.0e-5, 1.0e-4]}}}]\n"
    )
    plan = planned(tmp_path, study(variants))
    names = [tuning.name for tuning in plan.tunings]
    plan = with_choice(plan, names.index("small/notes/teacher"), 1)
    plan = with_choice(plan, names.index("small/notes/small"), 1)
    cells = [cell for cell in plan.cells if (cell.base, cell.variant) == ("small", "small")]
    for cell, seed in zip(cells, (0, 1), strict=True):
        student = cell.methods[-1]
        taught = student.inputs["teacher"].inputs["model"]
        assert student.config["seed"] == taught.config["seed"] == seed
        assert (student.config["method"]["learning_rate"], taught.config["method"]["r"]) == (1e-4, 4)
        assert student not in plan.undecided


def test_its_size_on_disk_is_forecast(tmp_path):
    file = write_planned(tmp_path, study(f"  small: {STUDENT}\n  all: [{{distill.logits: {{cache: exact}}}}]\n"))
    for name in ("small", "other"):
        write_base(tmp_path / name, GPT2 | {"vocab_size": 1000})
    plan = plan_of(file)
    costs = forecast(load_study(file), lock_of(file), plan, Store(tmp_path / "store"))
    for variant, each in (("small", 64 * (2 + 2) + 4), ("all", 2 * 1000)):
        student = next(cell.methods[-1] for cell in plan.cells if cell.variant == variant)
        targets = costs[student].tokens / 2  # of two epochs
        assert costs[student.inputs["teacher"]].disk == pytest.approx(targets * each, rel=0.01)


@pytest.mark.parametrize(
    ("methods", "told"),
    [
        ("{teacher: orginal}", "pupil[0].distill.logits.teacher: no variant or base `orginal`; did you mean `original`?"),
        ("{teacher: packed}", "`packed` ends with `quantize.int8`, and is only run; name what it is made of"),
        ("{teacher: one}", "`one` is not made of base `other`, as its student is"),
        ("{teacher: small}", "`small` is a variant and a base; rename one of them"),
        ("{teacher: loop}", "learns from its own student; name another teacher"),
        ("{teacher: original, seed: 7}", "of a variant that is trained, and one of `seeds: [0, 1]`, not 7"),
        ("{seed: 1}", "of a variant that is trained, and one of `seeds: [0, 1]`, not 1"),
        ("{temperature: 2.0}", "at `temperature: 1` alone; write `cache: exact`"),
        ("{cache: exact, top_k: 5}", "`top_k` goes with `cache: top_k`"),
        ("{top_k: {tune: [5, 6]}}", "`tune` cannot choose whom or what to learn from; write `grid`, a variant for each"),
    ],
)
def test_what_cannot_teach_is_told(tmp_path, methods, told):
    others = (
        "  packed: [{quantize.int8: {}}]\n  one: {bases: [small], methods: []}\n  small: []\n"
        "  loop: [{distill.logits: {teacher: pupil}}]\n"
    )
    file = tmp_path / "study.yaml"
    file.write_text(study(f"{others}  pupil: [{{distill.logits: {methods}}}]\n"), encoding="utf-8")
    with pytest.raises(SpecError) as error:
        load_study(file)
    assert told in str(error.value)


def test_a_base_with_other_tokens_is_refused_before_the_run(tmp_path):
    study_file = write_planned(tmp_path, study("  pupil: {bases: [small], methods: [{distill.logits: {teacher: other}}]}\n"))
    check(study_file)  # the same tokenizer, whatever their weights
    read_tokenizer.cache_clear()
    file = tmp_path / "other" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    words = sorted(vocabulary, key=vocabulary.get)
    vocabulary[words[-1]], vocabulary[words[-2]] = vocabulary[words[-2]], vocabulary[words[-1]]
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(SpecError, match="base `other` has other tokens than base `small`: `") as error:
        check(study_file)
    assert "name a teacher with the same tokenizer" in str(error.value)

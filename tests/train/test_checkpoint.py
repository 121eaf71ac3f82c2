"""A training that is killed and gone on with ends in the bits of one that was not."""

import ast
import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from paretune.errors import StageError
from paretune.pipeline.stage import RunOptions
from paretune.train import checkpoint as ckpt
from tests.train.attempts import (
    Training,
    asked_at_step,
    at_file_operation,
    at_step,
    attempt,
    choosing_others,
    write_base,
    write_tokens,
)

STEPS = 12
EVERY_STEP, OFTEN = RunOptions(checkpoint_seconds=0.0), RunOptions(checkpoint_seconds=0.05)
TRAININGS = {
    "lora": {"method": "lora"},
    "lora, bfloat16": {"method": "lora", "precision": "bfloat16"},
    "last blocks, bfloat16": {"method": "last", "precision": "bfloat16"},
    "full, 2 threads": {"method": "full", "threads": 2},
    "full, bfloat16, 2 threads": {"method": "full", "precision": "bfloat16", "threads": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trainings")
    write_base(folder / "base")
    write_tokens(folder / "tokens")
    return folder


def make(folder: Path, name: str, **fields) -> Training:
    (folder / name).mkdir()
    return Training(folder / "base", folder / "tokens", folder / name, **fields)


def answer(training: Training) -> dict:
    """All of the artifact that must not depend on what happened on the way."""
    files = sorted(path for path in training.draft.rglob("*") if path.is_file() and path.name != "curves.jsonl")
    curves = [json.loads(line) for line in (training.draft / "curves.jsonl").read_text().splitlines()]
    return {
        "files": {str(file.relative_to(training.draft)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
        "curves": [{name: value for name, value in row.items() if name != "seconds"} for row in curves],
        "metrics": {name: metrics(training)[name] for name in ("steps", "best_step", "best_validation_loss", "train_tokens")},
    }


def metrics(training: Training) -> dict:
    return ast.literal_eval((training.folder / "metrics").read_text())


@pytest.mark.parametrize("name", TRAININGS)
def test_killed_at_random_steps_it_ends_in_the_same_bits(folder, name):
    whole, again, killed = (make(folder, f"{name} {kind}", **TRAININGS[name]) for kind in ("whole", "again", "killed"))
    killed = replace(killed, options=OFTEN)
    assert attempt(whole) == attempt(again) == 0
    assert answer(again) == answer(whole)
    draw = random.Random(name)
    for _ in range(2):
        assert attempt(killed, at_step, draw.randint(1, 6)) == -9
    assert attempt(killed) == 0
    assert answer(killed) == answer(whole)
    assert len(answer(whole)["curves"]) == STEPS + 3  # evaluations after 5, 10 and 12 steps
    assert metrics(whole)["repeated_steps"] == metrics(whole)["resumed_from"] == 0
    # The two steps after which it was killed were not told any more.
    assert metrics(killed)["repeated_steps"] == len(killed.steps_done) + 2 - STEPS
    assert any(file.endswith(".safetensors") for file in answer(whole)["files"])


def test_killed_at_any_operation_on_files_it_loses_one_interval_at_most(folder):
    short = {"max_steps": 6, "evaluate_every": 2}
    whole, killed = make(folder, "files whole", train=short), make(folder, "files killed", train=short, options=EVERY_STEP)
    assert attempt(whole) == 0
    draw, kills = random.Random(1), 0
    while (code := attempt(killed, at_file_operation, draw.randint(1, 30))) == -9:
        kills += 1
        newest = ckpt.find_checkpoint(killed.resume)
        assert (int(newest.name[-9:]) if newest else 0) >= max(killed.steps_done, default=0) - 1
        assert kills < 60
    assert code == 0
    assert kills >= 5
    assert answer(killed) == answer(whole)


def test_a_training_that_is_asked_to_end_leaves_a_checkpoint_at_that_step(folder):
    whole, asked = make(folder, "asked whole", method="full"), make(folder, "asked", method="full")
    assert attempt(whole) == 0
    assert attempt(asked, asked_at_step, 7) == 1
    assert asked.steps_done == list(range(1, 8))
    assert ckpt.find_checkpoint(asked.resume).name == "checkpoint-000000007"
    assert attempt(asked) == 0
    assert metrics(asked)["repeated_steps"] == 0
    assert answer(asked) == answer(whole)


def test_an_adapter_tells_nothing_of_where_or_when_it_was_made(folder):
    training = make(folder, "told", train={"max_steps": 1})
    assert attempt(training) == 0
    adapter = training.draft / "adapter"
    assert sorted(path.name for path in adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert len(config["target_modules"]) > 1
    assert config["target_modules"] == sorted(config["target_modules"])  # in the order of a set otherwise
    assert str(folder.parent) not in json.dumps(config)


def test_it_goes_on_with_the_options_that_it_began_with(folder):
    whole = make(folder, "options whole", method="full", threads=2)
    killed = make(folder, "options killed", method="full", threads=2, options=EVERY_STEP)
    assert attempt(whole) == 0
    assert attempt(killed, at_step, 8) == -9
    others = replace(killed, threads=1, options=RunOptions(accumulate=3, forward_tokens=40, pack=False))
    assert attempt(others) == 0
    assert answer(killed) == answer(whole)
    assert metrics(killed)["resumed_from"] > 0
    assert metrics(killed)["options"] == {
        "forward_tokens": 4096,
        "row_tokens": 1024,
        "accumulate": 1,
        "pack": True,
        "recompute": False,
        "threads": 2,
    }


def test_those_options_would_have_moved_bits(folder):
    """Or the test above could not fail."""
    one = make(folder, "options one", method="full", threads=2)
    other = replace(make(folder, "options other", method="full"), options=RunOptions(accumulate=3))
    assert attempt(one) == attempt(other) == 0
    assert answer(one)["files"] != answer(other)["files"]


def test_early_stopping_counts_on_after_a_kill(folder):
    stopping = {"early_stopping": {"patience": 2, "metric": "loss"}, "evaluate_every": 1, "max_steps": 200, "keep": "last"}
    whole, killed = (make(folder, f"early {kind}", train=stopping, options=EVERY_STEP) for kind in ("whole", "killed"))
    assert attempt(whole) == 0
    assert metrics(whole)["stopped_early"]
    last = metrics(whole)["steps"]
    assert attempt(killed, at_step, last - 1) == -9
    assert attempt(killed) == 0
    assert answer(killed) == answer(whole)


class Model(torch.nn.Module):
    """Two weights, of which the loss reaches one."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(2))

    def step(self, optimizer: torch.optim.Optimizer, scheduler) -> None:
        optimizer.zero_grad()
        (torch.nn.functional.dropout(self.used) ** 2).sum().backward()
        optimizer.step()
        scheduler.step()


def make_state() -> tuple[Model, dict, torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    return model, dict(model.named_parameters()), optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.9**n)


def save(folder: Path, step: int, best_step: int = 0) -> None:
    model, trained, optimizer, scheduler = make_state()
    model.step(optimizer, scheduler)
    ckpt.save_checkpoint(folder, trained, optimizer, scheduler, ckpt.Progress(step=step, best_step=best_step), {"threads": 2})


def test_a_checkpoint_holds_all_that_the_next_step_depends_on(tmp_path):
    torch.manual_seed(0)
    model, trained, optimizer, scheduler = make_state()
    model.step(optimizer, scheduler)
    progress = ckpt.Progress(step=1, tokens=7, train_seconds=0.1, best=1 / 3, best_step=1)
    ckpt.save_checkpoint(tmp_path, trained, optimizer, scheduler, progress, {"threads": 2})
    other, others, other_optimizer, other_scheduler = make_state()
    torch.manual_seed(9)
    found = ckpt.find_checkpoint(tmp_path)
    assert ckpt.load_checkpoint(found, others, other_optimizer, other_scheduler) == progress
    assert ckpt.checkpoint_options(found) == {"threads": 2}
    random_state = torch.get_rng_state()
    for _ in range(3):
        model.step(optimizer, scheduler)
    torch.set_rng_state(random_state)
    for _ in range(3):
        other.step(other_optimizer, other_scheduler)
    assert torch.equal(other.used, model.used)
    assert other_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == 0.1 * 0.9**4


def test_the_newest_checkpoint_counts_and_only_it_is_kept(tmp_path):
    assert ckpt.find_checkpoint(tmp_path) is None
    for step in (9, 10, 11):
        save(tmp_path, step)
    (tmp_path / "new").mkdir()  # of a kill before the rename
    (tmp_path / f"{ckpt.find_checkpoint(tmp_path).name[:-9]}000000009").mkdir()  # of a kill while the older one was removed
    assert ckpt.find_checkpoint(tmp_path).name == "checkpoint-000000011"
    save(tmp_path, 12)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000000012"]


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:20])])
def test_a_damaged_checkpoint_says_what_to_remove(tmp_path, name, damage):
    save(tmp_path, 3)
    found = ckpt.find_checkpoint(tmp_path)
    damage(found / name)
    _, trained, optimizer, scheduler = make_state()
    with pytest.raises(StageError, match=f"{found}: cannot be read"):
        ckpt.load_checkpoint(found, trained, optimizer, scheduler)


@pytest.mark.parametrize("change", [{"more": torch.ones(1)}, {"used": torch.ones(2, 3)}])
def test_a_checkpoint_of_other_weights_is_refused(tmp_path, change):
    save(tmp_path, 3)
    _, trained, optimizer, scheduler = make_state()
    trained |= {name: torch.nn.Parameter(value) for name, value in change.items()}
    with pytest.raises(StageError, match="holds other weights"):
        ckpt.load_checkpoint(ckpt.find_checkpoint(tmp_path), trained, optimizer, scheduler)


def test_best_weights_that_a_checkpoint_counts_on_stay_until_the_next(tmp_path):
    weights = {name: torch.nn.Parameter(torch.zeros(2)) for name in "ab"}

    def keep(step: int) -> None:
        for p in weights.values():
            p.data.fill_(step)
        ckpt.save_best(tmp_path, weights, step)

    keep(5)
    save(tmp_path, 6, best_step=5)
    keep(7)  # a kill here, and the next attempt finds that step 5 stays the best
    ckpt.load_best(tmp_path, weights, 5)
    assert weights["a"].tolist() == [5, 5]
    save(tmp_path, 8, best_step=7)
    assert sorted(path.name for path in tmp_path.glob("best*")) == ["best-000000007.safetensors"]


def write_journal(folder: Path, steps: list[int], evaluated: tuple[int, ...] = ()) -> None:
    journal = ckpt.open_journal(folder)
    for step in steps:
        ckpt.write_line(journal, {"step": step, "train_loss": step + 0.5})
        if step in evaluated:
            ckpt.write_line(journal, {"step": step, "validation_loss": step + 0.25})
    journal.close()


def test_steps_that_were_lost_are_counted_over_all_kills(tmp_path):
    (tmp_path / "draft").mkdir()
    write_journal(tmp_path, [1, 2, 3, 4], evaluated=(2, 4))
    write_journal(tmp_path, [3, 4, 5], evaluated=(4,))  # from a checkpoint at 2; killed before the next one
    write_journal(tmp_path, [3, 4, 5, 6], evaluated=(4, 6))
    assert ckpt.write_curves(tmp_path, tmp_path / "draft", 6) == 5
    rows = [json.loads(line) for line in (tmp_path / "draft" / "curves.jsonl").read_text().splitlines()]
    assert [(row["step"], "validation_loss" in row) for row in rows] == [
        (1, False), (2, False), (2, True), (3, False), (4, False), (4, True), (5, False), (6, False), (6, True)
    ]  # fmt: skip


def test_the_last_attempt_is_what_the_curves_show(tmp_path):
    (tmp_path / "draft").mkdir()
    write_journal(tmp_path, [1, 2, 3, 4])
    journal = ckpt.open_journal(tmp_path)
    ckpt.write_line(journal, {"step": 2, "train_loss": 9.0})
    journal.write('{"step": 3, "train_l')  # killed in the middle of a line
    journal.close()
    write_journal(tmp_path, [3])
    assert ckpt.write_curves(tmp_path, tmp_path / "draft", 3) == 3
    rows = [json.loads(line) for line in (tmp_path / "draft" / "curves.jsonl").read_text().splitlines()]
    assert [(row["step"], row["train_loss"]) for row in rows] == [(1, 1.5), (2, 9.0), (3, 3.5)]


def test_threads_chosen_at_a_checkpoint_are_those_of_whoever_is_killed_after_it(folder):
    whole, killed, fixed = (make(folder, f"choice {kind}", method="full", threads=2) for kind in ("whole", "killed", "fixed"))
    whole, killed = (replace(training, options=EVERY_STEP) for training in (whole, killed))
    assert attempt(whole, choosing_others, 0) == attempt(fixed) == 0
    assert [attempt(killed, choosing_others, step) for step in (4, 3, 0)] == [-9, -9, 0]
    assert answer(killed) == answer(whole)
    assert answer(fixed)["files"] != answer(whole)["files"]
    assert metrics(killed)["threads"] == metrics(whole)["threads"] == [1, 2]
    assert metrics(fixed)["threads"] == [2]

"""What a teacher says, kept on disk, and students that learn from it, against plain torch on full logits."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from paretune.data.examples import examples_of
from paretune.data.tokenizer import load_tokenizer
from paretune.data.tokens import read_tokens
from paretune.data.trees import unshared
from paretune.errors import StageError
from paretune.pipeline.resources import Resource
from paretune.pipeline.stage import Artifact
from paretune.pipeline.stage_configs import BaseConfig, TeacherConfig, TrainConfig
from paretune.study.methods import DistillLogits
from paretune.study.train import Train
from paretune.train import loop
from paretune.train.distill import distill_logits
from paretune.train.loop import step_examples
from paretune.train.teacher import read_teacher, write_teacher
from tests.evaluate.stages import BASE, make_artifact, make_context, reference_logits, write_task_tokens
from tests.tiny import make_model

ROWS = [
    (split, f"{split}{n // 2}", f"The text about {n // 2}. ", f"Task {n % 2}: ", f"answer {n} of it")
    for split in ("train", "validation")
    for n in range(10)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distill")
    make_model("llama", folder / "teacher", seed=1)
    make_model("llama", folder / "student", seed=2)
    return folder


def tokens_of(folder, directory) -> Artifact:
    made = write_task_tokens(folder / "student", ROWS, directory)
    return replace(made, record=replace(made.record, config={"base": BASE}))


def teach(folder, draft, top_k=None) -> Artifact:
    """The stage of the teacher."""
    context = make_context(folder / "teacher", {}, draft, inputs={"tokens": tokens_of(folder, draft.parent / "tokens")})
    context.config.clear()
    config = TeacherConfig(base=BaseConfig(**BASE), top_k=top_k, max_length=64, precision="float32", device="cpu")
    context.config.update(config.model_dump(mode="json"))
    context.resources["student"] = Resource(path=folder / "student")
    metrics = write_teacher(context)
    assert sum(file.stat().st_size - 128 for file in draft.iterdir()) == metrics["targets"] * config.bytes_of_target(300)
    return make_artifact(draft, **metrics)


def examples(folder, artifact):
    student = load_tokenizer(BASE, Resource(path=folder / "student"))
    return examples_of(read_tokens(artifact.path.parent / "tokens", "train"), student, 64)


def teacher_logits(folder, example) -> torch.Tensor:
    plain = unshared(example)
    return reference_logits(folder / "teacher")(plain.ids)[plain.first_target - 1 : -1]


@pytest.mark.parametrize("top_k", [None, 5])
def test_what_is_kept_is_what_the_teacher_says_at_each_target(folder, tmp_path, top_k):
    artifact = teach(folder, tmp_path / "logits", top_k)
    teacher, row = read_teacher(artifact, "cpu"), 0
    losses, masses = [], []
    for example in examples(folder, artifact):
        exact = teacher_logits(folder, example).log_softmax(-1)
        kept = teacher.read(np.arange(row, row + example.num_targets))
        if top_k is None:
            torch.testing.assert_close(kept.double(), exact, rtol=2e-3, atol=1e-3)
            losses.append((exact.exp() * (exact - kept.double())).sum() + kept.double().exp().sum() - example.num_targets)
        else:
            likeliest = exact.topk(top_k)
            assert torch.equal(kept.words_RK.sort(-1).values, likeliest.indices.sort(-1).values)
            torch.testing.assert_close(kept.log_p_RK.double(), exact.gather(1, kept.words_RK), rtol=1e-3, atol=1e-3)
            rest = 1 - likeliest.values.exp().sum(-1, keepdim=True)
            torch.testing.assert_close(kept.log_rest_R1.double().exp(), rest, rtol=1e-3, atol=1e-5)
            masses.append((1 - rest).sum())
        row += example.num_targets
    metrics = artifact.record.metrics
    assert metrics["targets"] == row
    assert metrics["words"] == top_k or 300
    if top_k:
        assert metrics["kept_mass"] == pytest.approx(float(sum(masses)) / row, abs=1e-5)
    else:
        assert metrics["rounding"] == pytest.approx(float(sum(losses)) / row, rel=0.1)
        assert 0 < metrics["rounding"] < 1e-5


def student_context(folder, tmp_path, artifact, method, **changes):
    inputs = {"tokens": make_artifact(artifact.path.parent / "tokens"), "teacher": artifact}
    context = make_context(folder / "student", {}, tmp_path / "draft", inputs=inputs)
    context.config.clear()
    settings = {"max_steps": 4, "batch_size": 4, "max_length": 64, "schedule": "constant", "warmup": 0.0, "keep": "last"}
    config = TrainConfig(
        base=BaseConfig(**BASE), method=method, train=Train(**settings), seed=3, precision="float32", device="cpu"
    )
    context.config.update(config.model_dump(mode="json"))
    context.resume.mkdir(exist_ok=True)
    return context


@pytest.mark.parametrize(("alpha", "temperature"), [(0.4, 2.0), (1.0, 1.0)])
def test_a_student_ends_in_the_weights_of_plain_torch_on_full_logits(folder, tmp_path, alpha, temperature):
    artifact = teach(folder, tmp_path / "logits")
    method = DistillLogits(alpha=alpha, temperature=temperature, cache="exact", learning_rate=1e-3)
    metrics = distill_logits(student_context(folder, tmp_path, artifact, method))
    model = AutoModelForCausalLM.from_pretrained(folder / "student", dtype=torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    losses = []
    for step in range(1, 5):
        nats = objective = count = 0
        for example in step_examples(examples(folder, artifact), step, 4, seed=3):
            plain = unshared(example)
            logits = model(torch.from_numpy(plain.ids).long()[None], use_cache=False).logits[0, plain.first_target - 1 : -1]
            targets = torch.from_numpy(plain.ids[plain.first_target :]).long()
            log_q, log_p = ((x / temperature).log_softmax(-1) for x in (logits, teacher_logits(folder, example)))
            of_text = functional.cross_entropy(logits, targets, reduction="sum")
            divergence = functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
            objective = objective + alpha * temperature**2 * divergence + (1 - alpha) * of_text
            nats, count = nats + of_text.item(), count + len(targets)
        (objective / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(nats / count)
    curve = [json.loads(line) for line in (tmp_path / "draft" / "curves.jsonl").read_text().splitlines()]
    assert [row["train_loss"] for row in curve if "train_loss" in row] == pytest.approx(losses, rel=1e-4)
    directories = tmp_path / "draft", folder / "student"
    trained, start = (AutoModelForCausalLM.from_pretrained(each, dtype=torch.float64) for each in directories)
    ends = [torch.cat([p.detach().flatten() for p in each.parameters()]) for each in (trained, model, start)]
    # Of a weight that hardly has a gradient, AdamW's first steps are as large, and of either sign.
    assert (ends[0] - ends[1]).norm() < 0.01 * (ends[1] - ends[2]).norm()
    assert metrics["teacher"]["name"] == "base"
    assert metrics["teacher"]["targets"] == artifact.record.metrics["targets"]


def test_adapters_learn_from_a_teacher_and_go_on_after_a_stop(folder, tmp_path, monkeypatch):
    artifact = teach(folder, tmp_path / "logits", top_k=8)
    method = DistillLogits.model_validate({"lora": {"r": 2, "targets": "all-linear"}, "top_k": 8}, strict=False)
    whole = student_context(folder, tmp_path / "whole", artifact, method)
    metrics = distill_logits(whole)
    assert metrics["trainable_parameters"] < metrics["base_parameters"] / 10
    stopped = student_context(folder, tmp_path / "stopped", artifact, method)
    steps = []
    with monkeypatch.context() as patch:
        fit = loop.fit
        told = lambda: len(steps.append(0) or steps) == 2  # noqa: E731
        patch.setattr("paretune.train.stages.fit", lambda p, t, v, run: fit(p, t, v, replace(run, told_to_stop=told)))
        with pytest.raises(SystemExit):
            distill_logits(stopped)
    assert distill_logits(stopped)["resumed_from"] == 2
    files = [tmp_path / name / "draft" / "adapter" / "adapter_model.safetensors" for name in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_other_targets_and_other_tokens_are_refused(folder, tmp_path):
    artifact = teach(folder, tmp_path / "logits", top_k=8)
    method = DistillLogits(top_k=8)
    other = make_artifact(artifact.path, **artifact.record.metrics | {"token_map": "another"})
    with pytest.raises(StageError, match="other tokens than the student"):
        distill_logits(student_context(folder, tmp_path, other, method))
    write_task_tokens(folder / "student", ROWS[1:], artifact.path.parent / "tokens")
    with pytest.raises(StageError, match="was asked at"):
        distill_logits(student_context(folder, tmp_path, artifact, method))

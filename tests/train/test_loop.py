"""The loop against a reference written with nothing but torch and transformers: padded batches, the model's own logits."""

import itertools
import json
import math
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from paretune.data.trees import Example, group_starts, unshared, windows
from paretune.errors import DivergedError, StageError
from paretune.model.adapters import add_lora
from paretune.model.bits import PackedLinear, pack
from paretune.model.forward import packed_model
from paretune.study.methods import TrainLora
from paretune.study.train import Train
from paretune.train import loop
from paretune.train.loop import Run, fit, step_examples
from tests.tiny import VOCABULARY_SIZE, make_model

STEPS, BATCH = 8, 8
LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "bias": "none", "targets": "all-linear"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("model"))


def load(directory: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def texts(count: int, seed: int) -> list[Example]:
    """Texts of 3 to 60 tokens as examples of at most 32."""
    random = np.random.default_rng(seed)
    ids = (random.integers(2, VOCABULARY_SIZE, random.integers(3, 60)).astype(np.int32) for _ in range(count))
    return [example for text in ids for example in windows(text, 32, prefix_id=0, eos_id=1)]


def settings(**changes) -> Train:
    fields = {
        "epochs": None,
        "max_steps": STEPS,
        "batch_size": BATCH,
        "schedule": "linear",
        "warmup": 0.25,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "evaluate_every": "epoch",
        "early_stopping": None,
        "keep": "last",
    }
    return Train.model_validate(fields | changes, strict=False)


def train(
    model,
    draft: Path,
    train=None,
    validation=None,
    options=None,
    learning_rate=3e-3,
    precision="float32",
    done=None,
    emit=lambda **_: None,
    **changes,
) -> list[dict]:
    draft.mkdir(exist_ok=True)
    run = Run(
        train=settings(**changes),
        learning_rate=learning_rate,
        seed=5,
        precision=precision,
        device="cpu",
        options={"forward_tokens": 128, "accumulate": 1, "pack": True, "threads": 1} | (options or {}),
        checkpoint_seconds=1e9,
        resume=draft,
        emit=emit,
    )
    progress = fit(packed_model(model), train or texts(40, 0), validation or texts(6, 1), run)
    if done is not None:
        done.append(progress)
    return [json.loads(line) for line in (draft / "curves.jsonl").read_text().splitlines()]


def reference_losses(model, examples: list[Example]) -> list[float]:
    """Token-weighted loss of each step: padded batch, attention mask, the model's own logits, AdamW, clipping, schedule."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    losses = []
    for step in range(1, STEPS + 1):
        batch = [unshared(example) for example in step_examples(examples, step, BATCH, seed=5)]
        width = max(len(example.ids) for example in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask, targets = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, example in enumerate(batch):
            ids[row, : len(example.ids)] = torch.from_numpy(example.ids.astype(np.int64))
            mask[row, : len(example.ids)] = 1
            targets[row, example.first_target : len(example.ids)] = 1
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        labels = ids[:, 1:].masked_fill(targets[:, 1:] == 0, -100)
        loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        position = step - 1  # 2 warm-up steps from 0, then down to 0
        rate = position / 2 if position < 2 else (STEPS - position) / (STEPS - 2)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * rate
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    "options",
    [
        {"pack": True},
        {"pack": False},
        {"accumulate": 8},
        {"accumulate": 3, "pack": False},
        {"forward_tokens": 32},
        {"row_tokens": 64},
    ],
    ids=lambda options: "-".join(f"{name}={value}" for name, value in options.items()),
)
def test_losses_equal_a_plain_padded_reference(directory, tmp_path, method, options):
    model, plain = load(directory), load(directory)
    if method == "lora":
        add_lora(model, TrainLora.model_validate(LORA, strict=False), seed=3)
        add_lora(plain, TrainLora.model_validate(LORA, strict=False), seed=3)
    expected = reference_losses(plain, texts(40, 0))
    rows = train(model, tmp_path, options=options)
    found = [row["train_loss"] for row in rows if "train_loss" in row]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert abs(expected[-1] / expected[0] - 1) > 0.01  # it did learn, so the optimizer was compared too


def documents(count: int, seed: int) -> list[Example]:
    """One to five tasks on a context each, and plain texts among them."""
    random = np.random.default_rng(seed)

    def ids(low: int, high: int) -> np.ndarray:
        return random.integers(2, VOCABULARY_SIZE, random.integers(low, high)).astype(np.int32)

    found = []
    for number in range(count):
        trunk = ids(5, 40) if number % 4 else None
        for _ in range(random.integers(1, 6)):
            branch = ids(3, 20)
            found.append(Example(branch, 1 if trunk is None else int(random.integers(0, len(branch))), trunk))
    return found


@pytest.mark.parametrize("options", [{}, {"accumulate": 3}, {"forward_tokens": 64}, {"recompute": True}], ids=str)
@pytest.mark.parametrize("layout", ["trees", "padded"])
def test_losses_of_tasks_equal_a_plain_padded_reference(directory, tmp_path, layout, options):
    model, plain = load(directory), load(directory)
    add_lora(model, TrainLora.model_validate(LORA, strict=False), seed=3)
    add_lora(plain, TrainLora.model_validate(LORA, strict=False), seed=3)
    examples = documents(14, 2)
    expected = reference_losses(plain, examples)
    rows = train(model, tmp_path, train=examples, options=options, layout=layout)
    found = [row["train_loss"] for row in rows if "train_loss" in row]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert abs(expected[-1] / expected[0] - 1) > 0.001


@pytest.mark.parametrize("form", ["int8", "nf4"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_losses_beside_packed_matrices_equal_those_beside_what_they_stand_for(architecture, form, tmp_path):
    base = make_model(architecture, tmp_path / "base")
    model, plain = load(base), load(base)
    for each in (model, plain):
        add_lora(each, TrainLora.model_validate(LORA, strict=False), seed=3)
    assert pack(model, form) > 10_000
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            weight, whole = plain.get_submodule(name).weight.data, module.weight_OI(torch.float32)
            whole = whole if architecture == "llama" else whole.t()
            assert 1e-3 < (whole - weight).abs().max() / weight.abs().max() < (0.01 if form == "int8" else 0.2)
            weight.copy_(whole)
    examples = documents(14, 2)
    rows = train(model, tmp_path / "run", train=examples)
    np.testing.assert_allclose(
        [row["train_loss"] for row in rows if "train_loss" in row], reference_losses(plain, examples), 1e-5
    )


def test_out_of_memory_the_passes_are_halved_and_the_losses_stay(directory, tmp_path, monkeypatch):
    examples, hidden_states = documents(14, 2), loop.hidden_states
    model, plain = load(directory), load(directory)
    passes, done = [], []

    def with_little_memory(model, batch):
        if batch.ids_RT.numel() > 100:
            hidden_states(model, batch).sum().backward()  # what it has done so far must not count
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes")
        passes.append(batch.ids_RT.numel())
        return hidden_states(model, batch)

    monkeypatch.setattr(loop, "hidden_states", with_little_memory)
    rows = train(model, tmp_path, train=examples, options={"forward_tokens": 512}, done=done)
    assert max(passes) == 64
    assert (done[0].out_of_memory, done[0].forward_tokens) == (3, 64)
    found = [row["train_loss"] for row in rows if "train_loss" in row]
    np.testing.assert_allclose(found, reference_losses(plain, examples), rtol=1e-5)


def test_another_error_is_not_taken_for_a_lack_of_memory(directory, tmp_path, monkeypatch):
    def broken(model, batch):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(loop, "hidden_states", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(load(directory), tmp_path)


def test_tokens_read_count_each_context_for_each_of_its_tasks(directory, tmp_path):
    examples = documents(6, 3)
    run = Run(
        train=settings(max_steps=math.ceil(len(examples) / BATCH)),
        learning_rate=1e-3,
        seed=5,
        precision="float32",
        device="cpu",
        options={"forward_tokens": 4096, "accumulate": 1, "pack": True, "threads": 1},
        checkpoint_seconds=1e9,
        resume=tmp_path,
        emit=lambda **_: None,
        memory=2**20,
    )
    progress = fit(packed_model(load(directory)), examples, texts(3, 1), run)
    assert progress.tokens == sum(example.num_targets for example in examples)
    assert progress.tokens_read == sum(len(unshared(example).ids) for example in examples)
    assert 64 <= progress.forward_tokens < 4096  # what a megabyte leaves room for


def test_padding_never_counts_and_every_token_is_a_target_once(directory, tmp_path):
    examples = texts(40, 0)
    rows = train(load(directory), tmp_path, epochs=1, max_steps=None)
    last = [row for row in rows if "train_loss" in row][-1]
    assert last["tokens"] == sum(len(example.ids) - 1 for example in examples)
    assert last["step"] == math.ceil(len(examples) / BATCH)
    assert last["epoch"] == 1


def test_a_window_ends_with_eos_and_windows_share_one_token():
    ids = np.arange(2, 100, dtype=np.int32)
    found = windows(ids, 32, prefix_id=0, eos_id=1)
    targets = np.concatenate([example.ids[example.first_target :] for example in found])
    np.testing.assert_array_equal(targets, [*ids, 1])
    assert found[0].ids[0] == 0
    assert max(len(example.ids) for example in found) == 32
    assert all(before.ids[-1] == after.ids[0] for before, after in itertools.pairwise(found))


def test_order_follows_the_seed_alone_and_each_epoch_has_its_own():
    examples = texts(20, 0)
    steps_per_epoch = math.ceil(len(examples) / BATCH)

    def epoch(number, seed):
        steps = range(1 + number * steps_per_epoch, 1 + (number + 1) * steps_per_epoch)
        return [id(example) for step in steps for example in step_examples(examples, step, BATCH, seed)]

    assert sorted(epoch(0, 1)) == sorted(id(example) for example in examples)
    assert epoch(0, 1) == epoch(0, 1)
    assert epoch(0, 1) != epoch(1, 1)
    assert epoch(0, 1) != epoch(0, 2)


def test_documents_are_shuffled_and_their_examples_stay_side_by_side():
    trunks = [np.array([n], np.int32) for n in range(30)]
    examples = [Example(np.array([n, k], np.int32), 0, trunks[n]) for n in range(30) for k in range(1 + n % 4)]
    for epoch in range(2):
        steps = range(1 + epoch * -(-len(examples) // 4), 1 + (epoch + 1) * -(-len(examples) // 4))
        taken = [step_examples(examples, step, 4, seed=3) for step in steps]
        assert [len(found) for found in taken[:-1]] == [4] * (len(taken) - 1)
        whole = [one for found in taken for one in found]
        assert sorted(map(id, whole)) == sorted(map(id, examples))
        assert len(group_starts(whole)) == 30
        assert [one.ids[0] for one in whole] != sorted(one.ids[0] for one in whole)


def test_the_order_of_plain_texts_is_that_of_a_permutation():
    examples = [Example(np.array([n, 1], np.int32)) for n in range(50)]
    order = np.random.default_rng([7, 1]).permutation(50)
    found = step_examples(examples, 1 + 7 + 2, 8, seed=7)  # the third step of the second epoch of 7 steps
    assert [int(one.ids[0]) for one in found] == order[16:24].tolist()


def test_the_best_weights_are_kept(directory, tmp_path):
    model = load(directory)
    rows = train(model, tmp_path, max_steps=12, keep="best", evaluate_every=3, learning_rate=2.0)
    losses = {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}
    assert list(losses) == [3, 6, 9, 12]
    with torch.no_grad():
        nats, count = 0.0, 0
        for example in texts(6, 1):
            ids = torch.from_numpy(example.ids.astype(np.int64))[None]
            nats += functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum").item()
            count += ids.shape[1] - 1
    assert nats / count == pytest.approx(min(losses.values()), rel=1e-5)
    assert min(losses.values()) < losses[12]  # so that the last weights would have been the wrong answer


def test_early_stopping_counts_evaluations_without_progress(directory, tmp_path):
    rows = train(
        load(directory), tmp_path, max_steps=60, evaluate_every=2, learning_rate=0.3,
        early_stopping={"patience": 3, "metric": "loss"},
    )  # fmt: skip
    losses = [row["validation_loss"] for row in rows if "validation_loss" in row]
    best = losses.index(min(losses))
    assert len(losses) - 1 - best == 3
    assert rows[-1]["step"] < 60


def test_a_loss_that_is_no_number_stops_with_a_message(directory, tmp_path):
    with pytest.raises(DivergedError, match=r"step \d: the loss is .*gradient nan; lower the learning rate") as caught:
        train(load(directory), tmp_path, learning_rate=1e30)
    assert f"step {caught.value.steps}:" in str(caught.value)
    assert caught.value.seconds > 0


def test_weights_that_are_no_numbers_are_refused_before_training(directory, tmp_path):
    model = load(directory)
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = float("nan")
    with pytest.raises(StageError, match="give logits that are no numbers"):
        train(model, tmp_path)


def test_float16_with_its_loss_scaled_learns_what_float32_learns(directory, tmp_path):
    losses = {}
    for precision in ("float32", "float16"):
        model = load(directory)
        add_lora(model, TrainLora.model_validate(LORA, strict=False), seed=3)
        rows = train(model, tmp_path / precision, precision=precision)
        losses[precision] = [row["train_loss"] for row in rows if "train_loss" in row]
    np.testing.assert_allclose(losses["float16"], losses["float32"], rtol=5e-3)
    assert losses["float16"] != losses["float32"]


def test_what_is_told_of_a_step_is_what_the_record_will_say(directory, tmp_path):
    told, done = [], []
    train(load(directory), tmp_path, done=done, emit=lambda **fields: told.append(fields))
    *_, last = (fields for fields in told if "loss" in fields)
    assert last["done"] == last["total"] == STEPS
    assert last["tokens_per_second"] == done[0].tokens_read / done[0].train_seconds
    assert 50e6 < last["peak_memory_bytes"] <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

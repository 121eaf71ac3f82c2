from pathlib import Path

import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from paretune.data.tokenizer import load_tokenizer
from paretune.errors import DataError
from paretune.evaluate.cost import evaluate_latency, evaluate_size, time_generation
from paretune.evaluate.energy import EnergyMeter
from paretune.model.load import load_model
from paretune.pipeline.resources import Resource
from tests.evaluate.stages import BASE, make_artifact, make_context, write_tokens
from tests.tiny import make_model

TEXTS = [("train", "c", "The last resort."), ("test", "a", "The driver waits."), ("validation", "b", "A new engine.")]


def test_latency_keeps_every_repeat_and_says_mean_and_median(tmp_path: Path) -> None:
    base = make_model("gpt2", tmp_path / "base")
    tokens = write_tokens(base, TEXTS, tmp_path / "tokens")
    config = {"prompt_tokens": 12, "new_tokens": 5, "repeats": 4, "warmup": 1}
    metrics = evaluate_latency(make_context(base, config, tmp_path / "draft", inputs={"tokens": tokens}))
    samples = pd.read_parquet(tmp_path / "draft" / "samples.parquet")
    assert list(samples.repeat) == [0, 1, 2, 3]
    for name in ("first_token_ms", "ms_per_token"):
        assert (samples[f"cpu_{name}"] > 0).all()
        assert (samples[name] >= 0.9 * samples[f"cpu_{name}"]).all()  # a thread has a core at most, by two clocks
    for name in ("first_token_ms", "ms_per_token", "cpu_first_token_ms", "cpu_ms_per_token"):
        assert metrics[name] == pytest.approx(samples[name].mean())
        assert metrics[f"{name}_median"] == pytest.approx(samples[name].median())


def test_timed_steps_read_one_token_each_with_the_cache(tmp_path: Path) -> None:
    base = make_model("llama", tmp_path / "base")
    loaded = load_model(make_context(base, {}, tmp_path))
    prompt = [loaded.tokenizer.prefix_id, *loaded.tokenizer.encode("The train to the harbour")]
    read: list[list[int]] = []
    loaded.model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: read.append(inputs[0][0].tolist()))
    heads: list[int] = []
    loaded.model.get_output_embeddings().register_forward_hook(lambda _, __, logits: heads.append(logits.shape[1]))
    timing = time_generation(loaded, torch.tensor([prompt]), 7)
    assert timing.first_token_ms > 0
    assert timing.ms_per_token > 0
    assert read[0] == prompt
    assert [len(ids) for ids in read[1:]] == [1] * 6
    assert heads == [1] * 7  # the head runs at the last position of the prompt only
    ids = list(prompt)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    for step in read[1:]:
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        assert step == ids[-1:]


def test_the_prompt_is_real_text_beginning_with_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_model("gpt2", tmp_path / "base")
    tokens = write_tokens(base, TEXTS, tmp_path / "tokens")
    tokenizer = load_tokenizer(BASE, Resource(path=base))
    prompts = []
    whole = [token for text in ("The driver waits.", "A new engine.", "The last resort.") for token in tokenizer.encode(text)]

    def note(loaded, ids, new_tokens):
        prompts.append(ids[0].tolist())
        return time_generation(loaded, ids, new_tokens)

    monkeypatch.setattr("paretune.evaluate.cost.time_generation", note)
    config = {"prompt_tokens": len(whole) - 2, "new_tokens": 2, "repeats": 1, "warmup": 0}
    evaluate_latency(make_context(base, config, tmp_path / "draft", inputs={"tokens": tokens}))
    assert prompts == [[tokenizer.prefix_id, *whole[:-2]]]
    with pytest.raises(DataError, match=f"`prompt_tokens: 400` is more than the dataset holds, {len(whole)} tokens"):
        evaluate_latency(make_context(base, config | {"prompt_tokens": 400}, tmp_path / "draft", inputs={"tokens": tokens}))


def test_more_tokens_than_positions_are_refused_and_as_many_are_not(tmp_path: Path) -> None:
    base = make_model("gpt2", tmp_path / "base", n_positions=16)
    tokens = write_tokens(base, TEXTS, tmp_path / "tokens")
    config = {"prompt_tokens": 10, "new_tokens": 6, "repeats": 1, "warmup": 0}
    evaluate_latency(make_context(base, config, tmp_path / "draft", inputs={"tokens": tokens}))
    with pytest.raises(DataError, match="`prompt_tokens: 10` and `new_tokens: 7` exceed the 16 positions"):
        evaluate_latency(make_context(base, config | {"new_tokens": 7}, tmp_path / "draft", inputs={"tokens": tokens}))


@pytest.mark.parametrize("architecture", ["gpt2", "gpt-neox"])
def test_size_is_that_of_the_weights_on_disk(architecture: str, tmp_path: Path) -> None:
    base = make_model(architecture, tmp_path / "base")
    stored = load_file(base / "model.safetensors").values()
    metrics = evaluate_size(make_context(base, {}, tmp_path / "draft"))
    assert metrics == {
        "parameters": sum(tensor.numel() for tensor in stored),  # the tied head of GPT-2 is stored once
        "model_bytes": sum(tensor.numel() * tensor.element_size() for tensor in stored),
        "adapter_bytes": 0,
    }


def test_size_of_a_model_with_an_adapter(tmp_path: Path) -> None:
    base = make_model("llama", tmp_path / "base")
    plain = evaluate_size(make_context(base, {}, tmp_path / "draft"))
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"]))
    peft.save_pretrained(tmp_path / "trained" / "adapter")
    added = sum(p.numel() for name, p in peft.named_parameters() if "lora_" in name)
    artifact = make_artifact(tmp_path / "trained", parameters=sum(p.numel() for p in peft.parameters()))
    metrics = evaluate_size(make_context(base, {}, tmp_path / "draft", inputs={"model": artifact}))
    assert metrics == {
        "parameters": plain["parameters"] + added,
        "model_bytes": plain["model_bytes"],  # merged
        "adapter_bytes": 4 * added,
    }


def test_a_batch_reads_and_writes_every_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_model("gpt2", tmp_path / "base")
    tokens = write_tokens(base, TEXTS, tmp_path / "tokens")
    shapes = []

    def note(loaded, ids, new_tokens):
        shapes.append(ids.shape)
        assert len({tuple(row) for row in ids.tolist()}) == len(ids)  # each a text of its own
        return time_generation(loaded, ids, new_tokens)

    monkeypatch.setattr("paretune.evaluate.cost.time_generation", note)
    config = {"prompt_tokens": 6, "new_tokens": 5, "repeats": 3, "warmup": 0, "batch_size": 3}
    metrics = evaluate_latency(make_context(base, config, tmp_path / "draft", inputs={"tokens": tokens}))
    assert shapes == [(3, 7)] * 3
    assert metrics["new_tokens_per_second"] == pytest.approx(3e3 / metrics["ms_per_token_median"])
    assert metrics["prefill_tokens_per_second"] == pytest.approx(21e3 / metrics["first_token_ms_median"])
    with pytest.raises(DataError, match="`prompt_tokens: 60`, for each of 3 sequences, is more than the dataset holds"):
        evaluate_latency(make_context(base, config | {"prompt_tokens": 60}, tmp_path / "draft", inputs={"tokens": tokens}))


def write_package(powercap: Path, name: str, energy: str, size: int = 1_000_000_000) -> Path:
    (powercap / name).mkdir(parents=True)
    (powercap / name / "max_energy_range_uj").write_text(str(size))
    (powercap / name / "energy_uj").write_text(energy)
    return powercap / name / "energy_uj"


def test_energy_is_that_of_all_packages_and_goes_over_the_end_of_their_counters(tmp_path: Path) -> None:
    first = write_package(tmp_path, "intel-rapl:0", "999000000")
    second = write_package(tmp_path, "intel-rapl:1", "5")
    write_package(tmp_path, "intel-rapl:0:0", "0")  # the cores of the first one, which are in it
    write_package(tmp_path, "intel-rapl:2", "no number")
    meter = EnergyMeter(torch.device("cpu"), tmp_path)
    assert meter.tells
    first.write_text("1500000")
    second.write_text("2000005")
    assert meter.joules() == pytest.approx(2.5 + 2.0)
    assert meter.joules() == 0


def test_where_the_machine_does_not_tell_energy_it_is_left_out(tmp_path: Path) -> None:
    assert not EnergyMeter(torch.device("cpu"), tmp_path / "none").tells

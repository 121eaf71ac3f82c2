"""Variants of 8 and 4 bits in PyTorch: near the model that they were made of, alike in every way of reading, loaded plainly."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from paretune.data.trees import Example, unshared
from paretune.errors import NeedsError, SpecError, StageError
from paretune.evaluate.answers import Prompt, write_answers
from paretune.evaluate.cost import evaluate_size, time_generation
from paretune.evaluate.likelihood import evaluate_perplexity
from paretune.model import int8
from paretune.model.bits import bitsandbytes, settle_nf4
from paretune.model.forward import score
from paretune.model.int8 import INT8, LOADING, Int8Linear
from paretune.model.load import LoadedModel, load_model
from paretune.pipeline.stage import Artifact
from paretune.study.variants import parse_variants
from paretune.variants import quantize
from paretune.variants.quantize import quantize_int8, quantize_nf4
from tests.evaluate.stages import make_artifact, make_context, write_tokens
from tests.tiny import make_model


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request, tmp_path_factory) -> Path:
    # Wide enough for the 64 weights of a block of NF4; of Llama tied, so that the head is one of its own.
    shape = {"n_embd": 64} if request.param == "gpt2" else {"hidden_size": 64, "head_dim": 16, "tie_word_embeddings": True}
    return make_model(request.param, tmp_path_factory.mktemp(request.param) / "base", **shape)


def quantized(base: Path, directory: Path, body=quantize_int8, **config) -> Artifact:
    context = make_context(base, {}, directory)
    del context.config["evaluation"]
    for name in ("precision", "device", "max_length"):
        del context.config[name]
    context.config.update({"method": {}, **config})
    return make_artifact(directory, **body(context))


def loaded_from(base: Path, artifact: Artifact | None, directory: Path) -> LoadedModel:
    return load_model(make_context(base, {}, directory, inputs={"model": artifact} if artifact else {}), fused=True)


def examples() -> list[Example]:
    ids = np.random.default_rng(0).integers(2, 300, 400).astype(np.int32)
    trunk = ids[:17]
    branches = [Example(ids[300:309], 0, trunk), Example(ids[310:311], 0, trunk), Example(ids[320:330], 4, trunk)]
    return [Example(ids[20:150]), *branches, Example(ids[340:360], 7)]


def nats_of(loaded: LoadedModel, asked: list[Example]) -> list[np.ndarray]:
    return [each.nats for each in score(loaded.packed, asked, forward_tokens=512)]


def test_a_layer_rounds_each_token_by_itself():
    rng = np.random.default_rng(0)
    weight, x = rng.integers(-127, 128, (6, 32)), rng.normal(size=(5, 32)) * [[1.0], [1e3], [1e-3], [0.0], [7.0]]
    scale, bias = rng.uniform(0.01, 0.1, 6), rng.normal(size=6)
    step = np.maximum(np.abs(x.astype(np.float32)).max(1, keepdims=True), 1e-9) / 127
    expected = (np.round(x.astype(np.float32) / step) @ weight.T) * step * scale + bias
    layer = Int8Linear(torch.from_numpy(weight).to(torch.int8), torch.from_numpy(scale).float(), torch.from_numpy(bias).float())
    given = torch.from_numpy(x).float()
    np.testing.assert_allclose(layer(given).numpy(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(layer(given[None])[0, 2:3], layer(given[2:3]))


def test_int8_is_near_and_the_same_along_trees(base, tmp_path):
    artifact = quantized(base, tmp_path / "int8")
    whole, small = loaded_from(base, None, tmp_path / "a"), loaded_from(base, artifact, tmp_path / "b")
    assert sum(isinstance(module, Int8Linear) for module in small.model.modules()) > 16
    along_trees = nats_of(small, examples())
    for nats, alone in zip(along_trees, nats_of(small, [unshared(each) for each in examples()]), strict=True):
        np.testing.assert_allclose(nats, alone, atol=5e-3)  # attention's last bit can turn a rounding
    assert np.array_equal(nats_of(small, examples()[:1])[0], along_trees[0])
    differences = np.abs(np.concatenate(along_trees) - np.concatenate(nats_of(whole, examples())))
    assert 1e-4 < differences.mean() < 0.1
    assert small.packed.isolates


@pytest.mark.parametrize("architecture", ["gpt-neox", "gemma2", "phi3", "opt", "mixtral", "jetmoe"])
def test_other_architectures_run_in_int8(architecture, tmp_path):
    base = make_model(architecture, tmp_path / "base")
    small = loaded_from(base, quantized(base, tmp_path / "int8"), tmp_path / "b")
    differences = nats_of(small, examples())[0] - nats_of(loaded_from(base, None, tmp_path / "a"), examples())[0]
    assert 1e-4 < np.abs(differences).mean() < 0.15


def test_answers_are_those_of_one_prompt_at_a_time(base, tmp_path):
    small = loaded_from(base, quantized(base, tmp_path / "int8"), tmp_path / "b")
    ids = np.random.default_rng(1).integers(2, 300, 60).astype(np.int32)
    prompts = [Prompt(ids[:20], ids[20:23], 8), Prompt(ids[:20], ids[30:30], 8), Prompt(ids[40:50], ids[50:60], 8)]
    together = write_answers(small, prompts)
    assert [answer.ids for answer in together] == [write_answers(small, [prompt])[0].ids for prompt in prompts]
    assert time_generation(small, torch.tensor([[2, 3, 4]]), 3).ms_per_token > 0


@pytest.mark.parametrize("ships", [None, "bfloat16"])
def test_the_size_is_what_lies_on_the_disk(base, ships, tmp_path):
    artifact = quantized(base, tmp_path / "int8", ships=ships)
    measured = make_context(base, {}, tmp_path / "size", inputs={"model": artifact})
    size, tensors = evaluate_size(measured), load_file(tmp_path / "int8" / INT8)
    assert size["model_bytes"] == sum(tensor.nbytes for tensor in tensors.values())
    model = AutoModelForCausalLM.from_pretrained(base)
    assert size["parameters"] == sum(p.numel() for p in model.parameters())
    head = model.get_output_embeddings().weight.numel()
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name and "wte" not in name]
    matrices = [p for p in matrices if p.shape != (512, 64)]  # GPT-2's positions
    assert artifact.record.metrics["quantized_parameters"] == head + sum(p.numel() for p in matrices if p.numel() != head)
    embedding = next(tensor for name, tensor in tensors.items() if "embed_tokens" in name or "wte" in name)
    assert embedding.dtype == getattr(torch, ships or "float32")


def test_the_lines_of_the_card_load_it(base, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    artifact = quantized(base, tmp_path / "int8")
    expected = loaded_from(base, artifact, tmp_path / "b").model(torch.tensor([[2, 3, 4]])).logits
    code = f"import torch\n{LOADING}\nimport sys\nassert 'paretune' not in sys.modules\n"
    code += "torch.save(model(torch.tensor([[2, 3, 4]])).logits, 'logits.pt')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "int8", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "int8" / "logits.pt"), expected, atol=1e-4, rtol=1e-4)


def test_it_is_measured_as_any_variant(base, tmp_path):
    tokens = write_tokens(base, [("test", "t", "A text, of something else, to be read.")], tmp_path / "tokens")
    inputs = {"tokens": tokens, "model": quantized(base, tmp_path / "int8")}
    measured = make_context(base, {"splits": ["test"], "stride": None}, tmp_path / "out", inputs=inputs, max_length=64)
    assert evaluate_perplexity(measured)["loss_test"] > 0


def test_an_architecture_that_reads_its_matrices_otherwise_is_refused(base, monkeypatch, tmp_path):
    def reads_a_weight(model):
        return model.get_output_embeddings().weight

    monkeypatch.setattr(quantize, "packed_model", reads_a_weight)
    with pytest.raises(StageError, match=r"does not run with int8 in its linear layers \(AttributeError: .*; take `quantize"):
        quantized(base, tmp_path / "int8")


def test_a_machine_whose_products_overflow_is_refused(base, monkeypatch, tmp_path):
    monkeypatch.setattr(int8.torch, "_int_mm", lambda a, b: (a.short() @ b.short()).int())
    with pytest.raises(NeedsError, match="overflows in products of int8; take `quantize"):
        quantized(base, tmp_path / "int8")


def test_nf4_is_near_and_loads_in_plain_transformers(base, tmp_path):
    artifact = quantized(base, tmp_path / "nf4", quantize_nf4)
    whole, small = loaded_from(base, None, tmp_path / "a"), loaded_from(base, artifact, tmp_path / "b")
    along_trees = nats_of(small, examples())
    for nats, alone in zip(along_trees, nats_of(small, [unshared(each) for each in examples()]), strict=True):
        np.testing.assert_allclose(nats, alone, atol=2e-5)
    assert 1e-3 < np.abs(np.concatenate(along_trees) - np.concatenate(nats_of(whole, examples()))).mean() < 0.5
    # What the matrices in 4 bits stand for, in the model as it was.
    for name, module in small.model.named_modules():
        if isinstance(module, bitsandbytes().nn.Linear4bit):
            matrix = bitsandbytes().functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            weight = whole.model.get_submodule(name).weight.data
            weight.copy_(matrix.t() if isinstance(whole.model.get_submodule(name), Conv1D) else matrix)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "nf4", dtype=torch.float32)
    settle_nf4(plain, torch.float32)
    ids = torch.tensor([list(range(2, 40))])
    for model in (small.model, plain):
        torch.testing.assert_close(model(ids).logits, whole.model(ids).logits, atol=1e-4, rtol=1e-4)
    timed = make_context(base, {}, tmp_path / "size", inputs={"model": artifact})
    kernels = {
        m.support_avx512bf16_for_cpu for m in load_model(timed, served=True).model.modules() if hasattr(m, "quant_state")
    }
    assert kernels == {bitsandbytes().nn.modules.has_avx512bf16()}
    size = evaluate_size(timed)
    kept = [tensor.nbytes for file in (tmp_path / "nf4").glob("*.safetensors") for tensor in load_file(file).values()]
    assert size["model_bytes"] == sum(kept)
    assert size["parameters"] == sum(p.numel() for p in whole.model.parameters())
    assert write_answers(small, [Prompt(np.arange(2, 9, dtype=np.int32), np.arange(9, 12, dtype=np.int32), 5)])[0].ids


def test_rows_that_bitsandbytes_unpacks_wrongly_are_refused(tmp_path):
    base = make_model("llama", tmp_path / "base", hidden_size=64)  # four heads of 8, whose output is 32 wide
    with pytest.raises(StageError, match=r"o_proj` reads 32 numbers, which is no multiple of 64: .*; take `quantize.int8`"):
        quantized(base, tmp_path / "nf4", quantize_nf4)


@pytest.mark.parametrize("after", ["train.lora", "quantize.gguf", "prune.blocks"])
@pytest.mark.parametrize("method", ["quantize.int8", "quantize.nf4"])
def test_nothing_follows(method, after):
    with pytest.raises(SpecError, match=rf"nothing can follow `{method}`, whose model is only run; write `{after}` before it"):
        parse_variants([("small", [{method: {}}, {after: {"count": 1} if "blocks" in after else {}}])])

"""GGUF files: llama.cpp gives what PyTorch gives, tensors are packed by the rule, and what it does not know is refused."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from paretune.data.tokenizer import load_tokenizer
from paretune.data.trees import Example
from paretune.errors import SpecError, StageError
from paretune.evaluate.answers import Decoding, Prompt, write_answers
from paretune.evaluate.cost import evaluate_size, time_sequences
from paretune.evaluate.likelihood import evaluate_perplexity
from paretune.model.forward import num_positions, score
from paretune.model.llama_cpp import LlamaCpp
from paretune.model.load import LoadedModel
from paretune.pipeline.resources import Resource
from paretune.study.variants import parse_variants
from paretune.variants.calibration import Window
from paretune.variants.gguf import convert, importance_of, modelfile, quantize_gguf, repack, tensor_type
from tests.evaluate.stages import BASE, make_artifact, make_context, write_tokens
from tests.tiny import make_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp(request.param) / "base"
    make_model(request.param, directory)
    if request.param == "gpt2":
        config = directory / "config.json"
        config.write_text(config.read_text().replace('"n_positions"', '"n_ctx": 512,\n  "n_positions"'))
    convert(directory, directory / "f16.gguf", "f16")
    convert(directory, directory / "f32.gguf", "f32")
    return directory


def in_torch(base: Path) -> LoadedModel:
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    return LoadedModel(model, load_tokenizer(BASE, Resource(path=base)), CPU, num_positions(model))


def in_llama_cpp(base: Path, file: str) -> LoadedModel:
    model = LlamaCpp(base / file, AutoConfig.from_pretrained(base))
    return LoadedModel(model, load_tokenizer(BASE, Resource(path=base)), CPU, num_positions(model))


def examples() -> list[Example]:
    ids = np.random.default_rng(0).integers(2, 300, 400).astype(np.int32)
    trunk = ids[:17]
    return [
        Example(ids[20:300]),
        Example(ids[300:309], 0, trunk),
        Example(ids[310:311], 0, trunk),
        Example(ids[320:330], 4, trunk),
        Example(ids[340:360], 7),
        Example(ids[360:370], 0, trunk),
    ]


def test_llama_cpp_gives_the_log_likelihoods_of_pytorch_along_trees(base):
    ours = list(score(in_torch(base).packed, examples(), forward_tokens=512))
    theirs = list(score(in_llama_cpp(base, "f16.gguf").packed, examples(), forward_tokens=512))
    assert [len(each.nats) for each in theirs] == [279, 9, 1, 6, 13, 10]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(other.nats, one.nats, atol=2e-2)
        assert (one.correct == other.correct).mean() > 0.9


def test_llama_cpp_writes_what_pytorch_writes_whatever_stands_beside_it(base):
    ids = np.random.default_rng(1).integers(2, 300, 100).astype(np.int32)
    context = ids[:20]
    prompts = [Prompt(context, ids[20:23], 12), Prompt(context, ids[30:30], 12), Prompt(ids[40:50], ids[50:60], 9)]
    prompts += [Prompt(ids[60 + n % 9 : 70], ids[70 : 72 + n], 5) for n in range(20)]
    exact = in_llama_cpp(base, "f32.gguf")
    theirs = write_answers(exact, prompts)
    # Keys and values are kept in float16, which turns near ties of these random weights.
    same = [one.ids == other.ids for one, other in zip(theirs, write_answers(in_torch(base), prompts), strict=True)]
    assert sum(same) > 0.7 * len(same)
    assert theirs[0].ids == write_answers(exact, prompts[:1])[0].ids
    drawn = Decoding(temperature=1.0, top_k=5)
    assert write_answers(exact, prompts[:3], drawn)[0].ids == write_answers(exact, prompts[:1], drawn)[0].ids
    assert theirs[0].stopped_by in ("max_new_tokens", "eos")


def test_a_token_takes_time(base):
    timing = time_sequences(in_llama_cpp(base, "f16.gguf").model, [list(range(2, 40)), list(range(3, 41))], 5)
    assert timing.first_token_ms > 0
    assert timing.ms_per_token > 0


@pytest.mark.parametrize(("form", "largest"), [("q8_0", 0.1), ("q6_k", 0.2), ("q4_k_m", 1.5), ("q4_0", 2.5)])
def test_a_smaller_file_is_near(base, form, largest, tmp_path):
    file = tmp_path / "small.gguf"
    if form == "q8_0":
        convert(base, file, form)
    else:
        repack(base / "f32.gguf", file, form, {})
    packed = LlamaCpp(file, AutoConfig.from_pretrained(base))
    models = in_torch(base).packed, packed
    nats = [np.concatenate([each.nats for each in score(model, examples(), forward_tokens=512)]) for model in models]
    assert 0 < np.abs(nats[0] - nats[1]).mean() < largest
    assert packed.num_bytes < (base / "f32.gguf").stat().st_size


@pytest.mark.parametrize(
    ("name", "shape", "form", "expected"),
    [
        ("blk.5.attn_q.weight", (512, 512), "q4_k_m", "Q4_K"),
        ("blk.0.attn_v.weight", (512, 512), "q4_k_m", "Q6_K"),
        ("blk.9.ffn_down.weight", (512, 1024), "q4_k_m", "Q6_K"),
        ("blk.8.ffn_down.weight", (512, 1024), "q4_k_m", "Q4_K"),
        ("blk.31.ffn_down.weight", (512, 1024), "q5_k_m", "Q6_K"),
        ("blk.8.ffn_down.weight", (512, 576), "q4_k_m", "Q5_0"),
        ("blk.0.ffn_down.weight", (512, 1024), "q4_0", "Q4_1"),
        ("token_embd.weight", (300, 512), "q4_0", "Q6_K"),
        ("token_embd.weight", (300, 576), "q4_0", "Q8_0"),
        ("blk.0.attn_norm.weight", (512,), "q4_0", None),
        ("position_embd.weight", (512, 512), "q4_0", None),
        ("blk.5.attn_q.weight", (40, 40), "q4_k_m", "F16"),
    ],
)
def test_the_bits_of_a_tensor_are_those_of_llama_quantize(name, shape, form, expected):
    assert tensor_type(name, shape, form, 32, tied=True, weighted=True) == expected


def test_importance_is_the_mean_square_of_what_a_module_is_given(base):
    model = in_torch(base).model
    windows = [Window("d", (each,)) for each in examples()[:1]]
    importance = importance_of(model, windows)
    given = []
    name, module = next((n, m) for n, m in model.named_modules() if n in importance and "0" in n)
    hook = module.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].double().flatten(0, -2)))
    model(input_ids=torch.from_numpy(windows[0].examples[0].ids.astype(np.int64))[None])
    hook.remove()
    np.testing.assert_allclose(importance[name], given[0].square().mean(0).detach().numpy(), rtol=1e-5)


def test_importance_makes_the_weighed_columns_more_exact(tmp_path):
    rng = np.random.default_rng(0)
    weights, important = rng.normal(size=(64, 256)).astype(np.float32), np.full(256, 1e-3, np.float32)
    important[::8] = 1.0
    source = tmp_path / "plain.gguf"
    writer = gguf.GGUFWriter(source, "llama")
    writer.add_block_count(1)
    writer.add_tensor("blk.0.attn_q.weight", weights)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()
    errors = []
    for importance in ({}, {"blk.0.attn_q.weight": important}):
        repack(source, tmp_path / "packed.gguf", "q4_k_m", importance)
        (tensor,) = gguf.GGUFReader(tmp_path / "packed.gguf").tensors
        errors.append(np.abs(gguf.dequantize(tensor.data, tensor.tensor_type) - weights)[:, ::8].mean())
    assert errors[1] < 0.8 * errors[0]


def test_what_the_converter_refuses_is_said(tmp_path):
    make_model("llama", tmp_path / "base")
    config = tmp_path / "base" / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "NobodysForCausalLM"))
    with pytest.raises(StageError, match=r"converter cannot write this model as GGUF: .*NobodysForCausalLM"):
        convert(tmp_path / "base", tmp_path / "x.gguf", "f16")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and no more")
    with pytest.raises(StageError, match=r"llama\.cpp cannot load it"):
        LlamaCpp(tmp_path / "broken.gguf", AutoConfig.for_model("llama"))


def test_nothing_follows_a_file_that_is_only_run():
    with pytest.raises(SpecError, match="nothing can follow"):
        parse_variants([("small", [{"quantize.gguf": {}}, {"train.lora": {}}])])


@pytest.mark.parametrize("form", ["f16", "q4_k_m"])
def test_a_stage_leaves_a_file_that_is_measured_as_any_variant(base, form, tmp_path):
    texts = [("train", f"d{n}", f"A text about the number {n}, and what follows from it for others.") for n in range(4)]
    tokens = write_tokens(base, [*texts, ("test", "t", "Another text, of something else.")], tmp_path / "tokens")
    method = {"type": form, "imatrix": True, "calibration": {"documents": 4, "tokens": 200, "seed": 0}}
    context = make_context(base, {}, tmp_path / "draft", inputs={"tokens": tokens}, max_length=64)
    del context.config["evaluation"]
    context.config["method"] = method
    metrics = quantize_gguf(context)
    assert metrics["type"] == form
    assert metrics["agreement_tokens"] > 50
    assert metrics["largest_difference_nats"] < (0.02 if form == "f16" else 3)
    artifact = make_artifact(tmp_path / "draft", **metrics)
    measured = make_context(
        base, {"splits": ["test"], "stride": None}, tmp_path / "out", inputs={"tokens": tokens, "model": artifact}
    )
    assert evaluate_perplexity(measured)["loss_test"] > 0
    size = evaluate_size(measured)
    assert 0 < size["model_bytes"] < 4 * size["parameters"]


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_the_chat_template_stands_in_the_words_of_ollama(base):
    tokenizer = load_tokenizer(BASE, Resource(path=base))
    assert modelfile(tokenizer, chats=False).endswith('TEMPLATE """{{ .Prompt }}"""\n')
    tokenizer.hf.chat_template = CHATML
    written = modelfile(tokenizer, chats=True)
    assert written.startswith("FROM ./model.gguf\nPARAMETER temperature 0\n")
    assert (
        'TEMPLATE """{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}'
        "<|im_start|>user\n{{ .Prompt }}<|im_end|>\n"
        '<|im_start|>assistant\n{{ .Response }}<|im_end|>\n"""'
    ) in written
    tokenizer.hf.chat_template = (
        "{{ raise_exception('no system turn') if messages[0].role == 'system' }}{{ messages[0].content }}"
    )
    assert "TEMPLATE" not in modelfile(tokenizer, chats=True)

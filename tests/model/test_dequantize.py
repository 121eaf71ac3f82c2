"""What was quantized, made whole: the weights that the file stands for, in modules and tokens of the model that it was."""

import bitsandbytes as bnb
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from paretune.model.dequantize import dequantize, whole_matrices
from tests.tiny import make_model
from tests.tiny_gguf import write_gguf

TEXT = "The older train waits for nobody."


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_gguf_file_becomes_the_model_that_it_stands_for(architecture, kind, tmp_path):
    made = make_model(architecture, tmp_path / "model", tie_word_embeddings=False)
    meant = write_gguf(made, tmp_path / "model.gguf", kind)
    dequantize(tmp_path / "model.gguf", tmp_path / "whole")
    whole, info = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert whole.config.paretune_dequantized_from == f"GGUF {kind}"
    assert whole.dtype == (torch.float32 if kind == "F32" else torch.float16)
    found = whole.float().state_dict()
    for name, weight in meant.items():
        torch.testing.assert_close(found[name], weight, rtol=0 if kind == "F32" else 2**-11, atol=1e-7)
    original = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    original.load_state_dict(meant)
    ids, tokenizer = torch.arange(2, 40)[None], AutoTokenizer.from_pretrained(tmp_path / "whole")
    with torch.no_grad():
        torch.testing.assert_close(whole(ids).logits, original(ids).logits, rtol=2e-3, atol=5e-2 if kind != "F32" else 1e-5)
    expected = AutoTokenizer.from_pretrained(made)
    assert tokenizer(TEXT, add_special_tokens=False)["input_ids"] == expected(TEXT, add_special_tokens=False)["input_ids"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (expected.bos_token_id, expected.eos_token_id)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "asked", [{"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}, {"load_in_8bit": True}]
)
def test_a_checkpoint_of_bitsandbytes_becomes_the_model_that_it_stands_for(asked, architecture, tmp_path):
    made = make_model(architecture, tmp_path / "model")
    quantized = AutoModelForCausalLM.from_pretrained(made, quantization_config=BitsAndBytesConfig(**asked), dtype=torch.float32)
    quantized.save_pretrained(tmp_path / "quantized")
    AutoTokenizer.from_pretrained(made).save_pretrained(tmp_path / "quantized")
    dequantize(tmp_path / "quantized", tmp_path / "whole")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    kind = "nf4" if "load_in_4bit" in asked else "8 bits"
    assert whole.config.paretune_dequantized_from == f"bitsandbytes {kind}"
    assert getattr(whole.config, "quantization_config", None) is None
    original = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    for name, module in quantized.named_modules():
        if not isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt):
            continue
        matrix_OI = module.weight.data
        if isinstance(module, bnb.nn.Linear4bit):
            matrix_OI = bnb.functional.dequantize_4bit(matrix_OI, module.weight.quant_state)
        else:
            matrix_OI = matrix_OI.float() * module.weight.SCB[:, None] / 127
        found, before = whole.get_submodule(name).weight.float(), original.get_submodule(name).weight
        torch.testing.assert_close(found, matrix_OI if architecture == "llama" else matrix_OI.t(), rtol=2**-11, atol=1e-7)
        assert 0 < (found - before).abs().max() < (0.6 if kind == "nf4" else 0.02) * before.abs().max()
        if getattr(module, "bias", None) is not None:
            found, before = whole.get_submodule(name).bias.float(), original.get_submodule(name).bias
            torch.testing.assert_close(found, before, rtol=2**-11, atol=1e-7)


def test_a_format_that_transformers_does_not_take_back_is_read_through_its_products(tmp_path, monkeypatch):
    """As those of GPTQ and AWQ are; here a layer that only multiplies, in the place of every matrix of a GPT-2."""
    original = AutoModelForCausalLM.from_pretrained(make_model("gpt2", tmp_path), dtype=torch.float32)

    class Opaque(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner, self.bias = inner, inner.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    expected = {name: weight.clone() for name, weight in original.state_dict().items()}
    for name, module in [*original.named_modules()]:
        if name.endswith(("c_attn", "c_proj", "c_fc")):
            original.set_submodule(name, Opaque(module))

    def cannot(dtype: torch.dtype) -> None:
        raise NotImplementedError

    monkeypatch.setattr(original, "dequantize", cannot)
    found = whole_matrices(original).state_dict()
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-6, atol=1e-6)

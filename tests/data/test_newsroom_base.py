"""The base model that ships for the demo: it loads whole, is small, reads every article back and writes sentences."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from paretune.data import newsroom

BASE = Path(newsroom.__file__).parents[1] / "assets" / "newsroom-base"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(BASE)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    model, report = LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def test_it_is_a_small_directory_with_its_card() -> None:
    files = [path for path in BASE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12 * 2**20
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "pretraining.png"} <= {
        path.name for path in files
    }
    assert "license: mit" in (BASE / "README.md").read_text()


def test_it_has_the_promised_shape(model: LlamaForCausalLM) -> None:
    assert 3_000_000 <= model.num_parameters() <= 5_000_000
    assert len(model.model.layers) == 6
    assert model.config.max_position_embeddings == 512
    assert LlamaForCausalLM.from_pretrained(BASE).dtype is torch.bfloat16


def test_the_tokenizer_is_its_own_and_lossless(tokenizer: PreTrainedTokenizerFast, model: LlamaForCausalLM) -> None:
    assert len(tokenizer) == model.config.vocab_size == 4096
    assert tokenizer.bos_token == tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.bos_token_id == model.config.bos_token_id == model.config.eos_token_id
    strange = "  two  spaces\n\n\ttab, naïve café, 東京, 1,234.5 km/h \x00 \N{GRINNING FACE}\r\n "
    texts = [f"{article['title']}\n\n{article['content']}" for article in newsroom.articles()[:300]]
    for text in [strange, *texts]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.bos_token_id not in ids


def test_articles_fit_into_the_context(tokenizer: PreTrainedTokenizerFast) -> None:
    lengths = [len(tokenizer(str(article["content"]))["input_ids"]) for article in newsroom.articles()[:300]]
    assert sum(length > 500 for length in lengths) < 0.05 * len(lengths)


def test_text_is_more_likely_than_its_words_in_another_order(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    sentence = "The farm grows apples and sells cheese at the market in the town every week"
    assert _loss(model, tokenizer, sentence) + 1 < _loss(model, tokenizer, " ".join(sorted(sentence.split())))


def test_what_it_writes_is_not_degenerate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    prompt = torch.tensor([[tokenizer.bos_token_id, *tokenizer("The town of")["input_ids"]]] * 4)
    written = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=True, temperature=0.7, min_new_tokens=60, max_new_tokens=60
    )
    for ids in written:
        words = tokenizer.decode(ids, skip_special_tokens=True).split()
        assert len(words) > 25
        assert len(set(words)) > 0.5 * len(words)


@torch.no_grad()
def _loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, text: str) -> float:
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
    return model(input_ids=ids, labels=ids).loss.item()

"""Models of other tokenizers on the same text: bits per byte compare, and nothing per token is printed across them."""

import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from paretune.cli import main
from tests.conftest import write_notes
from tests.tiny import make_model

STUDY = """
study: tokenizers
bases: {pieces: {path: pieces}, bytes: {path: bytes}}
data:
  notes: {source: {path: notes.jsonl}, document: title, text: "{{ title }} {{ content }}"}
train: {max_length: 512}
variants: {base: []}
evaluate: {perplexity: {splits: [test]}}
"""


def write_indifferent(directory: Path) -> int:
    """A model to which every token is as likely as any other; returns how many there are."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    model.get_output_embeddings().weight.data.zero_()
    model.save_pretrained(directory)
    return int(model.config.vocab_size)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(["<bos>", "<eos>", *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")


def test_the_same_ignorance_has_the_bits_of_its_tokens_and_another_perplexity(tmp_path: Path) -> None:
    sizes = {}
    for name, changes in (("pieces", {}), ("bytes", {"vocab_size": 258, "bos_token_id": 0, "eos_token_id": 1})):
        make_model("llama", tmp_path / name, tie_word_embeddings=False, **changes)
        if name == "bytes":
            byte_tokenizer().save_pretrained(tmp_path / name)
        sizes[name] = write_indifferent(tmp_path / name)
    write_notes(tmp_path / "notes.jsonl")
    (tmp_path / "study.yaml").write_text(STUDY, encoding="utf-8")
    assert main(["run", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]) == 0

    results = pd.read_csv(tmp_path / "out" / "results.csv").query("split == 'test'").set_index(["base", "metric"]).value
    records = [json.loads(file.read_text()) for file in tmp_path.glob(".paretune/evaluate.perplexity-*/record.json")]
    by_tokens = {record["metrics"]["tokens_test"]: record["metrics"] for record in records}
    # A byte is a token; pieces are longer.
    num_bytes = max(by_tokens)
    assert all(metrics["bytes_test"] == num_bytes for metrics in by_tokens.values())
    for name, tokens in (("pieces", min(by_tokens)), ("bytes", num_bytes)):
        assert results[name, "perplexity"] == pytest.approx(sizes[name], rel=1e-5)
        assert results[name, "bits_per_byte"] == pytest.approx(math.log2(sizes[name]) * tokens / num_bytes, rel=1e-5)
    # By perplexity bytes would win; by what it costs to write the text down, pieces do.
    assert results["bytes", "perplexity"] < results["pieces", "perplexity"]
    assert results["bytes", "bits_per_byte"] > results["pieces", "bits_per_byte"]

    report = (tmp_path / "out" / "report.txt").read_text(encoding="utf-8")
    across = report[report.index("Bases on") : report.index("What was compared")]
    assert "The bases have different tokenizers" in across
    assert re.search(r"bytes base +8\.01", across)
    assert not re.search(r"\d.*perplexity|perplexity.*\d", across)

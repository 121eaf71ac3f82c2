"""The same text scored by models of different vocabularies: what compares across tokenizers, and what does not.

    python benchmarks/tokenizers_fair.py --bases DIR ... --text FILE [--documents N] [--steps N]

One study: the bases as they are, and a byte-level model of random weights (259 tokens) before and after `--steps` of training
on the rest of the text. Prints for each the tokens that the held-out text becomes, loss and perplexity per token, and bits per
byte; then what the report says across bases, and exits with 1 if it compares them in anything per token. For each vocabulary
stands what a model that knows nothing would have: the same ignorance is a perplexity of 259 or of 8,192.
"""

import argparse
import json
import math
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from paretune.cli import main as paretune
from paretune.data.sources import blocks

PER_TOKEN = re.compile(r"\d.*(perplexity|loss|log-likelihood)|(perplexity|loss|log-likelihood).*\d")
BYTES = "bytes"
STUDY = """
study: tokenizers
bases:
{bases}
data:
  text:
    source: {{path: text.jsonl}}
    split: {{train: 0.8, validation: 0.05, test: 0.15, seed: 13}}
    text: "{{{{ text }}}}"
train: {{max_steps: {steps}, batch_size: 8, max_length: 256}}
variants:
  base: []
  trained: {{bases: [bytes], methods: [{{train.full: {{learning_rate: 3.0e-3}}}}]}}
evaluate:
  perplexity: {{splits: [test]}}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="+", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=240)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    folder = arguments.work or Path(tempfile.mkdtemp(prefix="paretune-tokenizers-"))
    study = write_study(folder, arguments)
    if paretune(["run", str(study), "--out", str(folder / "out")]):
        return 1
    print_table(folder, [BYTES, *(base.name for base in arguments.bases)])
    return int(not fair_report(folder / "out" / "report.txt"))


def write_study(folder: Path, arguments: argparse.Namespace) -> Path:
    """The study and what it names: documents of about 1,000 characters, and the byte-level model."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = blocks(arguments.text.read_text(encoding="utf-8"), 1000)[: arguments.documents]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": part}) + "\n" for part in parts), encoding="utf-8")
    write_byte_model(folder / BYTES)
    bases = {base.name: base.resolve() for base in arguments.bases} | {BYTES: BYTES}
    lines = "\n".join(f"  {name}: {{path: {path}}}" for name, path in bases.items())
    file = folder / "study.yaml"
    file.write_text(STUDY.format(bases=lines, steps=arguments.steps), encoding="utf-8")
    return file


def write_byte_model(directory: Path) -> None:
    """A Llama of four blocks over bytes: a token for each of the 256, and three special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate(["<bos>", "<eos>", "<pad>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    fast.save_pretrained(directory)
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 344}
    config = LlamaConfig(vocab_size=len(vocabulary), max_position_embeddings=512, bos_token_id=0, eos_token_id=1, **sizes)
    LlamaForCausalLM(config).save_pretrained(directory)


def print_table(folder: Path, names: Sequence[str]) -> None:
    results = pd.read_csv(folder / "out" / "results.csv").query("task == 'perplexity' and split == 'test'")
    records = [json.loads(file.read_text()) for file in folder.glob(".paretune/evaluate.perplexity-*/record.json")]
    found = {round(record["metrics"]["bits_per_byte_test"], 12): record["metrics"] for record in records}
    print("\n| base | variant | vocabulary | tokens | bytes a token | loss | perplexity | bits per byte | knowing nothing |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for (base, variant), rows in results.groupby(["base", "variant"], sort=False):
        value = rows.set_index("metric").value
        metrics = found[round(value["bits_per_byte"], 12)]
        tokens, num_bytes = metrics["tokens_test"], metrics["bytes_test"]
        words = vocabulary_size(folder, str(base))
        nothing = math.log2(words) * tokens / num_bytes
        print(
            f"| {base} | {variant} | {words:,} | {tokens:,} | {num_bytes / tokens:.2f} | {value['loss']:.3f} | "
            f"{value['perplexity']:.4g} | **{value['bits_per_byte']:.3f}** | {nothing:.2f} |"
        )


def vocabulary_size(folder: Path, base: str) -> int:
    lock = json.loads((folder / "study.lock").read_text(encoding="utf-8"))
    return int(lock["bases"][base]["config"]["vocab_size"])


def fair_report(file: Path) -> bool:
    """Whether what the report says across bases holds no figure per token."""
    report = file.read_text(encoding="utf-8")
    across = report[report.index("Across bases") :].split("What was compared")[0]
    print("\n" + across.strip() + "\n")
    unfair = [line for line in across.splitlines() if PER_TOKEN.search(line)]
    for line in unfair:
        print(f"compared per token: {line.strip()}")
    return not unfair and "per token and not" in across


if __name__ == "__main__":
    sys.exit(main())

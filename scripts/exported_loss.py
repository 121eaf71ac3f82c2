"""Test loss of an exported directory, with nothing but torch and transformers: what `results.csv` must say too.

    python scripts/exported_loss.py DIR DOCUMENTS.parquet [--max-length 512] [--stride 256] [--split test]

DOCUMENTS is `documents.parquet` of the study's `data-...` stage. Loss is nats per token: windows of `max-length` tokens whose
ends advance by `stride`, each token scored once, BOS (or EOS where there is none) before every document, neither scored; BOS
first in every window of a tokenizer that puts it before every text by itself.
"""

import argparse

import pandas
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def document_nats(model: torch.nn.Module, ids: list[int], max_length: int, stride: int, in_each: bool) -> float:
    """-log p of ids[1:], summed."""
    nats, scored = 0.0, 1
    while scored < len(ids):
        end = min(max_length if scored == 1 else scored + stride, len(ids))
        start = max(0, end - max_length)
        read = [ids[0], *ids[start + 1 : end]] if in_each else ids[start:end]
        logits = model(torch.tensor([read])).logits[0].float()
        targets = torch.tensor(ids[scored:end])
        predicting = logits[scored - 1 - start : end - 1 - start]
        nats += torch.nn.functional.cross_entropy(predicting, targets, reduction="sum").double().item()
        scored = end
    return nats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("documents")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--stride", type=int)
    parser.add_argument("--split", default="test")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.directory)
    model = AutoModelForCausalLM.from_pretrained(arguments.directory, dtype=getattr(torch, arguments.dtype)).eval()
    prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    in_each = tokenizer("a")["input_ids"][:1] == [prefix]
    documents = pandas.read_parquet(arguments.documents)
    nats, tokens = 0.0, 0
    with torch.no_grad():
        for text in documents[documents["split"] == arguments.split]["text"]:
            ids = [prefix, *tokenizer(text, add_special_tokens=False)["input_ids"]]
            nats += document_nats(model, ids, arguments.max_length, arguments.stride or arguments.max_length // 2, in_each)
            tokens += len(ids) - 1
    print(f"{nats / tokens:.9f}")


if __name__ == "__main__":
    main()

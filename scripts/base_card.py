"""The model card of the base of the built-in demo: written by `pretrain_base.py`, or again from what that measured.

    python scripts/base_card.py src/paretune/assets/newsroom-base

reads `pretraining.json` in the directory, lets the model write its samples, prints them, and writes `README.md` and the
loss curve `pretraining.png`.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

RECORD = "pretraining.json"
CURVE = "pretraining.png"
PROMPTS = ("The town of", "Once, the gardener lived", "Question: What does the miller want?\nAnswer:")

CARD = """---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
---

# newsroom-base

The base model of Paretune's built-in demo: a Llama-shaped causal language model with {parameters:,} parameters (6 blocks of
width 192, 6 heads, MLP of 512, tied embedding, context {context}) and a byte-level BPE tokenizer of {vocabulary:,} tokens that
gives every text back byte for byte. It is small enough to be fine-tuned on a laptop in seconds and writes simple English about
made-up things. It is made for the demo and for tests, and knows nothing about the real world.

## Text

{tokens:,} tokens, each seen once; nothing was downloaded.

| text | documents | bytes |
|---|---|---|
| made-up towns, farms, museums, clubs, schools, ships, recipes, stories, firms, weather, animals, books, railways, festivals, \
gardens, tools, letters, dialogues, prizes, studies, sums (`scripts/worlds.txt`), many with questions and answers | \
{world_documents:,} | {world_bytes:,} |
| help topics and docstrings of the standard library of Python {python}, read {documentation_passes} time(s) | \
{documentation_texts:,} | {documentation_bytes:,} |

No car maker stands in it, and no template of the `newsroom` articles that the demo fine-tunes on: both data sets are written by
grammars that share no sentence.

## Training

    python scripts/pretrain_base.py --out src/paretune/assets/newsroom-base

Seed 0. One pass over the packed documents, steps of {step_tokens:,} tokens, Muon for the matrices of the blocks and AdamW for
embedding and norms, learning rate 0.006 with warm-up and half a cosine; float32 weights under bfloat16 autocast, stored in
bfloat16. Took {minutes:.0f} minutes of two shared cores. The same seed gives the same text; the weights repeat only on the same
machine, Python and thread count.

![loss over tokens]({curve})

Loss in nats per token; the held-out columns are the first 60 held-out documents of each kind.

{rows}

## Held out

Documents that were not trained on, each read from its beginning, with the weights as stored. The things of half of the made-up
documents also occur, in other words, in training.

{measured}

## Samples

Temperature 0.7, seed 0, printed by `python scripts/base_card.py src/paretune/assets/newsroom-base`:

{samples}
## Licence

MIT, as the rest of the repository.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    record = json.loads((directory / RECORD).read_text())
    write_card(directory, **record)
    print("\n\n".join(sample(directory)))


def write_card(
    directory: Path,
    curve: Sequence[Mapping[str, float]],
    measured: Mapping[str, Mapping[str, float]],
    make_up: Mapping[str, Any],
) -> None:
    """Write what was measured (`pretraining.json`), the curve and the card of the model in `directory`."""
    record = {"curve": curve, "measured": measured, "make_up": make_up}
    (directory / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    draw(curve, directory / CURVE)
    model = LlamaForCausalLM.from_pretrained(directory)
    header = "| step | tokens | training | worlds | documentation |\n|---|---|---|---|---|\n"
    line = "| {step} | {tokens:,} | {training:.3f} | {worlds:.3f} | {documentation:.3f} |"
    kinds = "| text | documents | nats per token | bits per byte |\n|---|---|---|---|\n"
    kind = "| {name} | {documents} | {loss:.3f} | {bits_per_byte:.3f} |"
    card = CARD.format(
        **make_up,
        parameters=model.num_parameters(),
        context=model.config.max_position_embeddings,
        vocabulary=model.config.vocab_size,
        step_tokens=curve[0]["tokens"] // curve[0]["step"],
        minutes=curve[-1]["seconds"] / 60,
        curve=CURVE,
        rows=header + "\n".join(line.format(**row) for row in curve),
        measured=kinds + "\n".join(kind.format(name=name, **row) for name, row in measured.items()),
        samples="\n".join(f"```text\n{text}\n```\n" for text in sample(directory)),
    )
    (directory / "README.md").write_text(card)


def sample(directory: Path) -> list[str]:
    """One text for each prompt, sampled with seed 0."""
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    torch.manual_seed(0)
    texts = []
    for prompt in PROMPTS:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt)["input_ids"]]])
        written = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=120, do_sample=True, temperature=0.7, pad_token_id=0
        )
        texts.append(tokenizer.decode(written[0], skip_special_tokens=True))
    return texts


def draw(curve: Sequence[Mapping[str, float]], path: Path) -> None:
    mpl.use("Agg")
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    tokens = [row["tokens"] / 1e6 for row in curve]
    for name, label in (("training", "training"), ("worlds", "held out: worlds"), ("documentation", "held out: documentation")):
        axes.plot(tokens, [row[name] for row in curve], marker=".", label=label)
    axes.set(xlabel="million tokens", ylabel="loss (nats per token)", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()

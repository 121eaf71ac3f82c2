"""What a block less saves on real shapes: parameters, bytes, a training step and a token, beside its share of the weights.

    python benchmarks/real_shapes.py [--shapes distilgpt2 llama-3.2-1b] [--rounds 5] [--tokens 512] [--new-tokens 16]

Weights at random, in bfloat16; LoRA on all linear layers, and greedy tokens after a prompt of 64. CPU time of one thread, all
depths in turns within a round; medians and ranges of the ratios to the whole model. Blocks go at the end: times do not mind.
The share is that of the weights which a token is multiplied with and which are read for it: of the blocks that are left, and of
the head. What a block does besides (attention, norms, adapters) goes with it, so a ratio may be a little below. Prints rows
of Markdown.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from distill import stepping
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedModel

from paretune.data.trees import Batch, Example, forward_batches
from paretune.model.adapters import add_lora
from paretune.model.blocks import block_list, remove_blocks
from paretune.model.forward import packed_model
from paretune.model.fused import fuse
from paretune.study.methods import Lora
from paretune.train.allocator import keep_freed_memory
from paretune.train.loop import plain_loss

DISTILGPT2 = GPT2Config(n_layer=6)
LLAMA_1B = LlamaConfig(
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    tie_word_embeddings=True,
)
SHAPES = {"distilgpt2": (DISTILGPT2, (6, 5)), "llama-3.2-1b": (LLAMA_1B, (16, 15, 14, 12))}
PROMPT = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    print(
        "| shape | blocks | parameters | bytes | share | training step, s | ratio | a token, ms | ratio |\n" + "|---" * 9 + "|"
    )
    for shape in options.shapes:
        config, depths = SHAPES[shape]
        whole = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        cuts = [shallower(whole, depth) for depth in depths]
        tokens = measure([writing(model, options.new_tokens) for model in cuts], options.rounds)
        texts = [Example(np.random.default_rng(0).integers(0, config.vocab_size, options.tokens).astype(np.int32))]
        ((_, batch),) = forward_batches(texts, forward_tokens=options.tokens)
        sizes = [sum(p.numel() for p in model.parameters()) for model in cuts]  # before adapters; a tied head counts once
        shares = [multiplied(model) / multiplied(whole) for model in cuts]
        steps = measure([training(model, batch) for model in cuts], options.rounds)
        for depth, size, share, step, token in zip(depths, sizes, shares, steps, tokens, strict=True):
            of_step, of_token = (statistics.median(seconds) * unit for seconds, unit in ((step, 1), (token, 1e3)))
            row = f"| {shape} | {depth} | {size:,} | {2 * size / 1e6:,.0f} MB | {share:.3f}"
            print(f"{row} | {of_step:.2f} | {ratio(step, steps[0])} | {of_token:.1f} | {ratio(token, tokens[0])} |", flush=True)


def shallower(whole: PreTrainedModel, depth: int) -> PreTrainedModel:
    """The first `depth` blocks, on the weights of the whole model."""
    shared = {id(parameter): parameter for parameter in whole.parameters()}
    model: PreTrainedModel = copy.deepcopy(whole, shared)
    num_blocks = len(block_list(whole)[1])
    if depth < num_blocks:
        remove_blocks(model, range(depth, num_blocks), base_fingerprint="")
    return model


def multiplied(model: PreTrainedModel) -> int:
    """Weights that a token is multiplied with: of the blocks and of the head."""
    blocks = sum(p.numel() for p in block_list(model)[1].parameters() if p.ndim > 1)
    return blocks + model.get_output_embeddings().weight.numel()


def writing(model: PreTrainedModel, new_tokens: int) -> Callable[[], float]:
    ids = torch.arange(PROMPT)[None]

    def write() -> float:
        with torch.no_grad():
            output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
            started = time.process_time()
            for _ in range(new_tokens):
                token = output.logits[:, -1:].argmax(-1)
                output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        return (time.process_time() - started) / new_tokens

    return write


def training(model: PreTrainedModel, batch: Batch) -> Callable[[], float]:
    add_lora(model, Lora(r=16, targets="all-linear"), 0)
    packed = packed_model(model)
    fuse(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    step = stepping(model, batch, plain_loss(packed.head, torch.bfloat16), trained)

    def train() -> float:
        step()
        seconds: float = step.seconds  # type: ignore[attr-defined]
        return seconds

    return train


def measure(sides: list[Callable[[], float]], rounds: int) -> list[list[float]]:
    """Of each side its CPU seconds in each round after the first. Each begins with another, as what went before matters."""
    seconds: list[list[float]] = [[] for _ in sides]
    for number in range(rounds + 1):
        for at in range(len(sides)):
            side = (at + number) % len(sides)
            seconds[side].append(sides[side]())
    return [one[1:] for one in seconds]


def ratio(ours: list[float], whole: list[float]) -> str:
    ratios = [a / b for a, b in zip(ours, whole, strict=True)]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


if __name__ == "__main__":
    main()

"""What a training step takes with a teacher's cached logits against one without, and of the last blocks against all weights.

    python benchmarks/distill.py --base DIR [--texts 4] [--length 128] [--rounds 5] [--blocks 4]

CPU time of one thread, the kinds of step in turns; medians over the rounds, and of the ratios within a round.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from paretune.data.trees import Batch, Example, forward_batches
from paretune.model.adapters import add_lora
from paretune.model.attention import attending
from paretune.model.forward import hidden_states, packed_model
from paretune.model.fused import fuse
from paretune.model.soft_loss import SoftLoss
from paretune.study.methods import Lora
from paretune.train.last_blocks import last_parts
from paretune.train.loop import Objective, plain_loss
from paretune.train.teacher import Teacher


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--texts", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw = np.random.default_rng(0)
    words = AutoModelForCausalLM.from_pretrained(options.base, dtype=torch.float32).config.get_text_config().vocab_size
    first = range(0, options.texts * (options.length - 1), options.length - 1)
    texts = [Example(draw.integers(0, words, options.length).astype(np.int32), first_row=row) for row in first]
    ((_, batch),) = forward_batches(texts, forward_tokens=options.texts * options.length)
    with tempfile.TemporaryDirectory() as folder:
        report(
            ["plain", "top 64 words", "every word"], measure(adapted(options.base, batch, Path(folder), words), options.rounds)
        )
    names = ["all weights", f"last {options.blocks} blocks", f"last {options.blocks} blocks and head"]
    report(names, measure(whole_and_part(options.base, batch, options.blocks), options.rounds))


def adapted(base: str, batch: Batch, folder: Path, words: int) -> list[Callable[[], None]]:
    """A step of LoRA on the text alone, and with a teacher of which the likeliest words, or all, are kept on disk."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    add_lora(model, Lora(r=16, targets="all-linear"), 0)
    num, draw = len(batch.targets_N), np.random.default_rng(0)
    kept = {
        "top": draw.normal(-8, 3, (num, 64)).astype(np.float16),
        "words": np.stack([draw.choice(words, 64, replace=False) for _ in range(num)]).astype(np.uint16),
        "rest": np.full((num, 1), -3, np.float32),
        "all": draw.normal(-12, 3, (num, words)).astype(np.float16),
    }
    for name, array in kept.items():
        np.save(folder / f"{name}.npy", array)
    top, of_words, rest, whole = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in kept)
    teachers = [Teacher(top, of_words, rest, {}, "cpu"), Teacher(whole, None, None, {}, "cpu")]
    packed = packed_model(model)
    fuse(model)
    losses = [plain_loss(packed.head, torch.float32), *(SoftLoss(t.read, 0.5, 1.0).of(packed.head) for t in teachers)]
    trained = [p for p in model.parameters() if p.requires_grad]
    return [stepping(model, batch, loss, trained) for loss in losses]


def whole_and_part(base: str, batch: Batch, blocks: int) -> list[Callable[[], None]]:
    """A step of all weights and of the last blocks. A head that is tied is untied, so that all do the same work above."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    fuse(model)
    last = [p for part in last_parts(model, blocks) for p in part.parameters()]
    parts = [list(model.parameters()), last, [*last, head.weight]]
    return [stepping(model, batch, None, part) for part in parts]


def stepping(model: PreTrainedModel, batch: Batch, loss: Objective | None, trained: list[nn.Parameter]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(trained, lr=1e-9, fused=True)

    def step() -> None:
        model.requires_grad_(False).train()
        for parameter in trained:
            parameter.requires_grad_(True)
        objective = loss or plain_loss(packed_model(model).head, torch.float32)
        started = time.process_time()
        with attending(model, batch):
            minimized, _, _ = objective(hidden_states(model, batch), batch)
            minimized.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step.seconds = time.process_time() - started  # type: ignore[attr-defined]

    return step


def measure(steps: list[Callable[[], None]], rounds: int) -> Iterator[list[float]]:
    """Of each round after the first the CPU seconds of each step."""
    for number in range(rounds + 1):
        for step in steps:
            step()
        if number:
            yield [step.seconds for step in steps]  # type: ignore[attr-defined]


def report(names: list[str], rounds: Iterator[list[float]]) -> None:
    seconds = list(rounds)
    for index, name in enumerate(names):
        ratios = [one[index] / one[0] for one in seconds]
        middle = statistics.median(one[index] for one in seconds)
        spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"{name:<28} {middle:7.3f} s   {spread} of {names[0]}", flush=True)


if __name__ == "__main__":
    main()

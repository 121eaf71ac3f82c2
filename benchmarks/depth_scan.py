"""Time of all single-block removals in one walk over the depth, against one evaluation each, and against what is possible.

python benchmarks/depth_scan.py [--blocks 16] [--width 512] [--vocabulary 8192] [--windows 2] [--length 256] [--repeats 3]
    [--clock wall|cpu]

Both sides give the loss of the whole model and of the model without each block, heads included, on the same windows: a Llama of
random weights. One evaluation each is `paretune.model.forward.score`, in a process that has loaded and checked the model once.
The limit is the ratio of N^2 block evaluations and N + 1 heads to N (N + 1) / 2 and as many heads, at the measured time of one
block and one head on all windows. Prints a row of Markdown.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import transformers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from paretune.data.trees import Example
from paretune.model.forward import PackedModel, head_of, packed_model, score
from paretune.model.loss import token_nats
from paretune.pipeline.machine import fingerprint
from paretune.variants.calibration import Window
from paretune.variants.choose import choose_by_loss

FORWARD_TOKENS = 4096
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Timed = Callable[[Callable[[], object]], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("blocks", 16),
        ("width", 512),
        ("vocabulary", 8192),
        ("windows", 2),
        ("length", 256),
        ("repeats", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu: on a busy machine, with one thread")
    arguments = parser.parse_args()
    timed = partial(time_of, CLOCKS[arguments.clock])
    model = make_model(arguments.blocks, arguments.width, arguments.vocabulary)
    generator = np.random.default_rng(0)
    ids = generator.integers(2, arguments.vocabulary, (arguments.windows, arguments.length)).astype(np.int32)
    examples = [Example(row) for row in ids]
    packed = packed_model(model)
    check_equal(model, packed, [Example(example.ids[:32]) for example in examples])
    seconds: dict[str, list[float]] = {"walk": [], "one each": [], "block": [], "head": []}
    for _ in range(arguments.repeats):  # in turn, so that a busy moment of the machine meets all of them
        seconds["walk"].append(timed(lambda: choose_by_loss(model, windows_of(examples), 1, forward_tokens=FORWARD_TOKENS)))
        seconds["one each"].append(timed(lambda: evaluate_each(model, packed, examples)))
        seconds["block"].append(time_block(model, ids, timed))
        seconds["head"].append(time_head(model, ids, timed))
    print_row(arguments, seconds)


def make_model(blocks: int, width: int, vocabulary: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 32 * 32,
        num_hidden_layers=blocks,
        num_attention_heads=width // 64,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def windows_of(examples: list[Example]) -> list[Window]:
    return [Window(str(index), (example,)) for index, example in enumerate(examples)]


def evaluate_each(model: LlamaForCausalLM, packed: PackedModel, examples: list[Example]) -> dict[tuple[int, ...], float]:
    """Nats of the whole model and of the model without each block."""
    blocks, found = model.model.layers, {}
    for removed in ((), *((index,) for index in range(len(blocks)))):
        model.model.layers = nn.ModuleList(block for index, block in enumerate(blocks) if index not in removed)
        found[removed] = sum(float(one.nats.sum()) for one in score(packed, examples, forward_tokens=FORWARD_TOKENS))
        model.model.layers = blocks
    return found


def check_equal(model: LlamaForCausalLM, packed: PackedModel, examples: list[Example]) -> None:
    choice = choose_by_loss(model, windows_of(examples), 1, forward_tokens=FORWARD_TOKENS)
    for removed, nats in evaluate_each(model, packed, examples).items():
        np.testing.assert_allclose(choice.scores[removed].sum(), nats, rtol=1e-5)
    if choice.computed != "walk":
        raise SystemExit("the model was not walked")


@torch.no_grad()
def time_block(model: LlamaForCausalLM, ids: np.ndarray, timed: Timed) -> float:
    """Mean over the blocks of one block's time on all windows."""
    states = torch.randn(*ids.shape, model.config.hidden_size)
    positions = torch.arange(ids.shape[1])[None]
    arguments = {"position_embeddings": model.model.rotary_emb(states, position_ids=positions), "position_ids": positions}
    return timed(lambda: [block(states, **arguments) for block in model.model.layers]) / len(model.model.layers)


@torch.no_grad()
def time_head(model: LlamaForCausalLM, ids: np.ndarray, timed: Timed) -> float:
    """Head and loss on all targets."""
    targets = torch.from_numpy(ids[:, 1:].reshape(-1).astype(np.int64))
    states, head = torch.randn(len(targets), model.config.hidden_size), head_of(model)
    return timed(lambda: [token_nats(head, states, targets) for _ in range(4)]) / 4


def time_of(clock: Callable[[], float], work: Callable[[], object]) -> float:
    started = clock()
    work()
    return clock() - started


def print_row(arguments: argparse.Namespace, seconds: dict[str, list[float]]) -> None:
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    blocks = arguments.blocks
    heads = (blocks + 1) * middle["head"]
    each = blocks**2 * middle["block"] + heads
    walk = blocks * (blocks + 1) / 2 * middle["block"] + heads
    ratio, limit = middle["one each"] / middle["walk"], each / walk
    machine = fingerprint()
    print(f"| shape | tokens | one each, s ({arguments.clock}) | walk, s | times faster | limit | of the limit", end=" ")
    print("| block, ms | head, ms | machine |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    spread = {
        name: f"{middle[name]:.2f} ({min(seconds[name]):.2f} to {max(seconds[name]):.2f})" for name in ("one each", "walk")
    }
    cells = [
        f"{blocks} blocks of {arguments.width}, {arguments.vocabulary:,} words",
        f"{arguments.windows} x {arguments.length}",
        spread["one each"],
        spread["walk"],
        f"{ratio:.2f}",
        f"{limit:.2f}",
        f"{100 * ratio / limit:.0f} %",
        f"{1000 * middle['block']:.1f}",
        f"{1000 * middle['head']:.1f}",
        f"{machine['processor']}, {torch.get_num_threads()} threads, {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}",
    ]
    print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

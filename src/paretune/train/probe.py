"""How fast a base is trained, read and made to write on this machine, found in seconds and without its weights.

`python -m paretune.train.probe` takes a list of questions as JSON on its standard input and prints the answers. What is
timed is the code that the stages run, on a model of the base's config with random weights: a small one whole, of a large one
one block and a few. What a block takes follows from the difference, so a base that is not even downloaded can be asked about.
"""

import itertools
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from paretune.data.tokenizer import load_tokenizer
from paretune.data.trees import Example, forward_batches
from paretune.errors import ParetuneError
from paretune.model.adapters import add_lora, freeze_in
from paretune.model.attention import attending
from paretune.model.block_fields import prune_fields
from paretune.model.forward import PackedModel, hidden_states, packed_model, score
from paretune.model.fused import fuse
from paretune.model.load import load_pretrained
from paretune.model.loss import loss_of
from paretune.model.shared_context import PromptTree, SharedContexts, bytes_per_entry, sharing
from paretune.pipeline.resources import Resource
from paretune.study.methods import TrainLora
from paretune.train.allocator import keep_freed_memory

_SMALL = 20_000_000
"""Parameters of a base that is built whole."""
_FEW, _SOME, _MANY = 64, 128, 1024
"""Tokens of the passes that are timed: the first and the last, or of a large base, a pass of which costs little by itself,
those between."""
_ROWS = (1, 16)
"""Answers that are written together, as they are timed."""
_PROMPT = 128
"""Tokens before them."""
_SECONDS = 0.2
"""Each is timed so long, or once after the first time."""
_WEIGHTS_READ = 1 << 30
"""Bytes of the weights of a base that is loaded once; of larger ones the time is in line with them."""

Line = tuple[float, float]
"""Seconds of a pass, and of each token (or row) in it."""


def probe(question: Mapping[str, Any]) -> dict[str, list[float]]:
    """By kind of work seconds of a pass and of a token of it, in each block, and the same of all that is no block.

    `question` has `config` (config.json), `directory` (of the weights, or None), `length` (tokens of a text), `device`,
    `compute` and `evaluate` (number formats), and `trainings` (name to the fields of `train.lora`, None for all weights).
    The kinds are the names of `trainings`, `score`, `write` (a token of answers written together; a row stands for a token),
    `decode` (one token of one text, by the model's own cache) and `load`. Empty where the config gives no model.
    """
    try:
        fields = dict(question["config"])
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        with torch.device("meta"):
            whole = AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError, TypeError, AttributeError, StrictDataclassError):
        return {}
    blocks = config.get_text_config(decoder=True).num_hidden_layers
    num_weights = sum(p.numel() for p in whole.parameters())
    outside = whole.get_input_embeddings().weight.numel()
    # So many that what they take stands out beside the rest.
    few = 2 + math.ceil(outside * blocks / max(1, num_weights - outside))
    sizes = (1, blocks if num_weights <= _SMALL else min(blocks, few))
    timed: dict[str, list[Line]] = {}
    for size in dict.fromkeys(sizes):
        for kind, line in _lines(config, size, blocks, question, (_FEW, _MANY) if num_weights <= _SMALL else (_SOME,)).items():
            timed.setdefault(kind, []).append(line)
    rates = {}
    for kind, lines in timed.items():
        (first, last), span = (lines[0], lines[-1]), max(1, sizes[1] - sizes[0])
        block = [max(0.0, (more - less) / span) for less, more in zip(first, last, strict=True)]
        if sizes[0] == sizes[1]:
            block = list(first)
        rates[kind] = [*block, *(max(0.0, all_ - one) for all_, one in zip(first, block, strict=True))]
    rates["load"] = [0.0, 0.0, _loading(question["directory"], num_weights), 0.0]
    return rates


def _lines(
    config: PreTrainedConfig, size: int, blocks: int, question: Mapping[str, Any], sizes: Sequence[int]
) -> dict[str, Line]:
    """Of a model of the first `size` blocks the time of each kind of pass, from passes of `sizes` tokens."""
    config, device = type(config).from_dict(config.to_dict()), torch.device(question["device"])
    if size < blocks:
        prune_fields(config.get_text_config(decoder=True), range(size), blocks)
    compute, evaluate = (getattr(torch, question[name]) for name in ("compute", "evaluate"))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(device).to(evaluate).eval()
    vocabulary, draw = config.get_text_config().vocab_size, np.random.default_rng(0)

    def texts(tokens: int) -> list[Example]:
        length = min(question["length"], tokens)
        return [Example(draw.integers(0, vocabulary, length).astype(np.int32)) for _ in range(tokens // length)]

    packed = packed_model(model)
    lines = {"decode": _line(lambda tokens: _timed(partial(_decode, model, tokens), device), (1, 7))}
    if bytes_per_entry(packed) is not None:
        lines["write"] = _line(lambda rows: _writing(packed, draw, rows, device), _ROWS)
    fuse(model)
    lines["score"] = _line(
        lambda tokens: _timed(lambda: [*score(packed, texts(tokens), forward_tokens=4 * tokens)], device), sizes
    )
    trainings = {name: json.dumps(method) for name, method in question["trainings"].items()}
    of_method = {key: _training(config, json.loads(key), compute, texts, sizes, device) for key in set(trainings.values())}
    return lines | {name: of_method[key] for name, key in trainings.items()}


def _training(
    config: PreTrainedConfig,
    method: Mapping[str, Any] | None,
    compute: torch.dtype,
    texts: Callable[[int], list[Example]],
    sizes: Sequence[int],
    device: torch.device,
) -> Line:
    """A pass there and back with the adapter of `method`, or with all weights trained, and what an update takes."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(device).train()
    if method is not None:
        add_lora(model, TrainLora.model_validate(method, strict=False), 0)
    packed = packed_model(model)
    if compute != torch.float32:
        freeze_in(model, compute)
    fuse(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer, loss_function = torch.optim.AdamW(trained, lr=1e-9, fused=True), loss_of(packed.head, compute)

    def passes(tokens: int) -> None:
        batches = forward_batches(texts(tokens), forward_tokens=4 * tokens, pack=packed.isolates)
        for batch in (batch.to(device) for _, batch in batches):
            with attending(model, batch):
                with torch.autocast(device.type, compute, enabled=compute != torch.float32):
                    nats, _ = loss_function(hidden_states(model, batch), batch.targets_N)
                nats.backward()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    of_pass, token = _line(lambda tokens: _timed(partial(passes, tokens), device), sizes)
    return of_pass + _timed(update, device), token


def _line(times: Callable[[int], float], sizes: Sequence[int]) -> Line:
    """Through two points; of one, all of it is the tokens'."""
    few, many = sizes[0], sizes[-1]
    at_few = times(few)
    token = max(0.0, times(many) - at_few) / (many - few) if many > few else at_few / few
    return max(0.0, at_few - token * few), token


def _writing(packed: PackedModel, draw: np.random.Generator, rows: int, device: torch.device) -> float:
    """Seconds of a token of each of `rows` answers to prompts of their own."""
    ids = draw.integers(0, packed.model.config.get_text_config().vocab_size, (rows, _PROMPT)).astype(np.int32)
    trees = [PromptTree(context, (np.array([], np.int32),)) for context in ids]
    cache = SharedContexts(packed, num_rows=rows, num_slots=1, context_tokens=_PROMPT, branch_tokens=_FEW)
    depths = itertools.count(_PROMPT)
    with sharing(packed):
        cache.read(trees)
        return _timed(lambda: cache.step(trees, [0] * rows, [next(depths) % _FEW + _PROMPT] * rows, [1] * rows), device)


@torch.no_grad()
def _decode(model: PreTrainedModel, tokens: int) -> None:
    output = model(input_ids=torch.ones((1, _FEW), dtype=torch.long, device=model.device), use_cache=True)
    for _ in range(tokens):
        output = model(
            input_ids=torch.ones((1, 1), dtype=torch.long, device=model.device),
            past_key_values=output.past_key_values,
            use_cache=True,
        )


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of `work`, the shortest of some times after the first.

    Of one thread on a CPU its own time: other work of the machine does not make it longer.
    """
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    times: list[float] = []
    while len(times) < 2 or (sum(times) < _SECONDS and len(times) < 20):
        started = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(clock() - started)
    return min(times[1:])


def _loading(directory: str | None, num_weights: int) -> float:
    """Seconds until a model can be used: weights, tokenizer, and what is shown about it."""
    started = time.process_time()
    size = 4 * num_weights
    if directory is None or size > _WEIGHTS_READ:
        return 0.5 + 2 * size / _WEIGHTS_READ
    try:
        load_tokenizer({"trust_remote_code": False}, Resource(path=Path(directory)))
        packed_model(load_pretrained(directory, torch.float32))
    except (ParetuneError, OSError, ValueError):
        return 0.5 + 2 * size / _WEIGHTS_READ
    return time.process_time() - started


def main() -> None:
    warnings.filterwarnings("ignore")
    keep_freed_memory()
    torch.manual_seed(0)
    sys.stdout.write(json.dumps([probe(question) for question in json.load(sys.stdin)]))


if __name__ == "__main__":
    main()

"""The stage bodies of the training methods: load, make trainable, fit, save."""

import json
import math
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from paretune.data.examples import examples_of
from paretune.data.tokenizer import read_tokens
from paretune.data.trees import Example
from paretune.errors import DivergedError, StageError
from paretune.model.adapters import add_lora, count_parameters, freeze_in, set_base_dropout
from paretune.model.flex import flex_failure
from paretune.model.forward import PackedModel, packed_model
from paretune.model.load import ADAPTER, LoadedModel, load_model
from paretune.model.memory import available_bytes
from paretune.pipeline.records import read_lines
from paretune.pipeline.stage import StageContext
from paretune.train.allocator import keep_freed_memory
from paretune.train.checkpoint import (
    Progress,
    checkpoint_options,
    checkpoint_step,
    find_checkpoint,
    told_to_stop,
    write_curves,
)
from paretune.train.loop import Run, fit

_BIT_OPTIONS = ("forward_tokens", "accumulate", "pack", "recompute")


def train_full(context: StageContext) -> dict[str, Any]:
    """Stage body: full fine-tuning of float32 weights; the artifact is a model directory."""

    def make_trainable(model: PreTrainedModel) -> None:
        model.requires_grad_(True)

    def save(loaded: LoadedModel) -> None:
        loaded.model.save_pretrained(context.draft)
        loaded.tokenizer.hf.save_pretrained(context.draft)

    return _train(context, make_trainable, save)


def train_lora(context: StageContext) -> dict[str, Any]:
    """Stage body: adapters on frozen weights; the artifact is `adapter/` in PEFT's format."""
    wrapped = {}

    def make_trainable(model: PreTrainedModel) -> None:
        wrapped["peft"] = add_lora(model, context.config["method"], context.config["seed"])

    def save(_: LoadedModel) -> None:
        wrapped["peft"].save_pretrained(str(context.draft / ADAPTER), save_embedding_layers=False)
        _make_reproducible(context.draft / ADAPTER)

    return _train(context, make_trainable, save)


def _train(
    context: StageContext, make_trainable: Callable[[PreTrainedModel], None], save: Callable[[LoadedModel], None]
) -> dict[str, Any]:
    config, settings = context.config, context.config["train"]
    # A checkpoint may be there from options that rounded otherwise; the run goes on with those it began with.
    found = find_checkpoint(context.resume)
    options = checkpoint_options(found) if found else _bit_options(context)
    _set_up_torch(options["threads"])
    loaded = load_model(context, torch.float32)
    model = loaded.model
    dropout = set_base_dropout(model, settings["base_dropout"])
    make_trainable(model)
    packed = packed_model(model)
    if config["precision"] != "float32":
        freeze_in(model, getattr(torch, config["precision"]))
    examples = {split: _examples(context, loaded, split) for split in ("train", "validation")}
    _check_layout(settings, packed, examples["train"])
    with told_to_stop() as stop:
        run = Run(
            train=settings,
            learning_rate=config["method"]["learning_rate"],
            seed=config["seed"],
            precision=config["precision"],
            device=config["device"],
            options=options,
            checkpoint_seconds=context.options.checkpoint_seconds,
            resume=context.resume,
            emit=context.emit,
            told_to_stop=stop,
            memory=None if found else _memory(context, loaded.device),
        )
        progress = fit(packed, examples["train"], examples["validation"], run)
    model.eval()
    parameters, trainable = count_parameters(model)
    save(loaded)
    repeated_steps = write_curves(context.resume, context.draft, progress.step)
    steps_per_epoch = -(-len(examples["train"]) // settings["batch_size"])
    return {
        "parameters": parameters,
        "trainable_parameters": trainable,
        "train_seconds": progress.train_seconds,
        "wall_seconds": progress.wall_seconds,
        "train_tokens": progress.tokens,
        "train_tokens_read": progress.tokens_read,
        "train_tokens_per_second": progress.tokens_read / progress.train_seconds,
        "peak_memory_bytes": _peak_memory(),
        "steps": progress.step,
        "epochs_done": progress.step / steps_per_epoch,
        "best_step": progress.best_step,
        "best_validation_loss": _best_loss(context, progress),
        "stopped_early": progress.stopped_early,
        "repeated_steps": repeated_steps,
        "resumed_from": checkpoint_step(found) if found else 0,
        "precision": config["precision"],
        "base_dropout": dropout,
        "packed": options["pack"] and packed.isolates,
        "flex_failure": flex_failure(),
        "out_of_memory": progress.out_of_memory,
        "options": options | {"forward_tokens": progress.forward_tokens},
    }


def _set_up_torch(threads: int) -> None:
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    # It would take a tenth of the time; the tests compare runs to the bit.
    torch.utils.deterministic.fill_uninitialized_memory = False
    keep_freed_memory()


def _make_reproducible(adapter: Path) -> None:
    """PEFT writes the targets in a random order, where the base lay, and a card with nothing in it."""
    (adapter / "README.md").unlink()
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = None
    if isinstance(config["target_modules"], list):  # for some architectures it is a regular expression
        config["target_modules"].sort()
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _bit_options(context: StageContext) -> dict[str, Any]:
    options = asdict(context.options)
    return {name: options[name] for name in _BIT_OPTIONS} | {"threads": torch.get_num_threads()}


def _memory(context: StageContext, device: torch.device) -> int:
    """Bytes that this stage may use: its share of the budget, or of what is free."""
    options = context.options
    return available_bytes(device, options.workers) if options.memory is None else options.memory // options.workers


def _examples(context: StageContext, loaded: LoadedModel, split: str) -> list[Example]:
    rows = read_tokens(context.inputs["tokens"].path, split)
    return examples_of(rows, loaded.tokenizer, context.config["train"]["max_length"])


def _check_layout(settings: Mapping[str, Any], packed: PackedModel, examples: Sequence[Example]) -> None:
    """StageError if contexts are to be shared in an architecture that cannot keep the branches of a tree apart."""
    shared = settings.get("layout", "trees") == "trees" and any(example.trunk is not None for example in examples)
    if shared and not packed.isolates:
        raise StageError(
            f"{type(packed.model).__name__} cannot keep tasks apart that share a context; write `layout: padded` under `train`"
        )


def _best_loss(context: StageContext, progress: Progress) -> float:
    """Of the evaluations on validation; DivergedError where none of them came to a number."""
    losses = (float(row["validation_loss"]) for row in read_lines(context.draft / "curves.jsonl") if "validation_loss" in row)
    best = min(filter(math.isfinite, losses), default=math.inf)
    if best == math.inf:
        told = f"the validation loss is {best:g} after {progress.step} steps; lower the learning rate"
        raise DivergedError(told, steps=progress.step, seconds=progress.train_seconds)
    return best


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

"""The stage bodies of the training methods: load, make trainable, fit, save."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from paretune.data.examples import examples_of
from paretune.data.tokenizer import TextTokenizer
from paretune.data.tokens import read_tokens
from paretune.data.trees import Example, Examples
from paretune.errors import DivergedError, StageError
from paretune.model.adapters import adapted_weights, add_lora, count_parameters, freeze_in, mixture_of, set_base_dropout
from paretune.model.bits import Form, pack
from paretune.model.flex import flex_failure
from paretune.model.forward import PackedModel, packed_model
from paretune.model.load import ADAPTER, LoadedModel, load_model, merged
from paretune.model.loss import Head
from paretune.model.memory import available_bytes, peak_bytes
from paretune.pipeline import signals
from paretune.pipeline.records import read_lines
from paretune.pipeline.stage import StageContext
from paretune.pipeline.stage_configs import TrainConfig
from paretune.study.methods import Lora, TrainFull, TrainLora
from paretune.study.train import Train
from paretune.train.allocator import keep_freed_memory
from paretune.train.checkpoint import checkpoint_options, checkpoint_step, find_checkpoint, write_curves
from paretune.train.loop import Objective, Run, fit, plain_loss, validate

_BIT_OPTIONS = ("forward_tokens", "row_tokens", "accumulate", "pack", "recompute")


@dataclass(frozen=True)
class Trained:
    """What of a model a method trains, and what its artifact is made of."""

    choose: Callable[[PreTrainedModel], dict[str, int]]
    """Lets the parameters that are trained, and no others, require a gradient; returns numbers of the record."""
    save: Callable[[LoadedModel], None]
    load: Form | None = None
    """Number format of the frozen matrices during training."""


@dataclass(frozen=True)
class Teaching:
    """What is learned beside the text, or in its place."""

    examples: Callable[[Examples, TextTokenizer], Examples]
    """What is learned of the examples of the training split."""
    loss: Callable[[Head, torch.dtype], Objective]


def train_full(context: StageContext) -> dict[str, Any]:
    """Stage body: full fine-tuning of float32 weights; the artifact is a model directory."""
    config = context.parse(TrainConfig[TrainFull])
    return train(context, config, config.method.learning_rate, all_weights(context))


def train_lora(context: StageContext) -> dict[str, Any]:
    """Stage body: adapters on frozen weights; the artifact is `adapter/` in PEFT's format.

    Of the record, in parameters of the model that the method was given: `base_parameters` all of them, `adapted_parameters`
    those of matrices with an adapter, `expert_parameters` those of routed experts; `untied_parameters` are what it took besides
    to give the head a matrix of its own.
    """
    config = context.parse(TrainConfig[TrainLora])
    return train(context, config, config.method.learning_rate, adapters(context, config.method, config.seed))


def all_weights(context: StageContext) -> Trained:
    """Every weight, saved as a model directory."""

    def choose(model: PreTrainedModel) -> dict[str, int]:
        model.requires_grad_(True)
        return {}

    def save(loaded: LoadedModel) -> None:
        loaded.model.save_pretrained(context.draft)
        loaded.tokenizer.hf.save_pretrained(context.draft)

    return Trained(choose, save)


def adapters(context: StageContext, method: Lora, seed: int) -> Trained:
    """Low-rank adapters, saved as `adapter/`; the numbers are those of `train_lora`."""
    wrapped = {}

    def choose(model: PreTrainedModel) -> dict[str, int]:
        before, mixture = count_parameters(model)[0], mixture_of(model)
        experts = [*mixture.experts, *(f"{name}.weight" for name in mixture.modules)]
        in_experts = sum(model.get_parameter(name).numel() for name in experts)
        adapted = wrapped["peft"] = add_lora(model, method, seed)
        weights = [p for name, p in adapted.get_base_model().named_parameters() if ".lora_" not in name]
        return {
            "base_parameters": before,
            "adapted_parameters": sum(weight.numel() for weight in adapted_weights(adapted).values()),
            "expert_parameters": in_experts,
            "untied_parameters": sum(weight.numel() for weight in weights) - before,
        }

    def save(_: LoadedModel) -> None:
        wrapped.pop("peft").save_pretrained(str(context.draft / ADAPTER), save_embedding_layers=False)
        _make_reproducible(context.draft / ADAPTER)

    return Trained(choose, save, method.load)


def train(
    context: StageContext, config: TrainConfig[Any], learning_rate: float, trained: Trained, teaching: Teaching | None = None
) -> dict[str, Any]:
    """Load the model, train what of it `trained` chooses, leave the artifact; returns the record of the training.

    Learned is the text, or what a teacher says of it.
    """
    settings, asked = config.train, context.options
    # A checkpoint may be there from options that rounded otherwise; the run goes on with those it began with.
    checkpoint = find_checkpoint(context.resume)
    bit_options = {name: getattr(asked, name) for name in _BIT_OPTIONS} | {"threads": torch.get_num_threads()}
    options = checkpoint_options(checkpoint) if checkpoint else bit_options
    context.threads.use(options["threads"])
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    # It would take a tenth of the time; the tests compare runs to the bit.
    torch.utils.deterministic.fill_uninitialized_memory = False
    keep_freed_memory()
    loaded = load_model(context, torch.float32)
    model = loaded.model
    dropout = set_base_dropout(model, settings.base_dropout)
    made = trained.choose(model)
    parameters, trainable = count_parameters(model)
    packed = packed_model(model)
    isolates = packed.isolates
    if trained.load:
        made["packed_parameters"] = pack(model, trained.load)
    if config.precision != "float32":
        freeze_in(model, getattr(torch, config.precision))
    examples, validation = (
        examples_of(read_tokens(context.inputs["tokens"].path, split), loaded.tokenizer, settings.max_length)
        for split in ("train", "validation")
    )
    _check_layout(settings, packed, examples)
    if teaching:
        examples = teaching.examples(examples, loaded.tokenizer)
    budget = available_bytes(loaded.device, asked.workers) if asked.memory is None else asked.memory // asked.workers
    with signals.noted(signals.STOP) as told_to_stop, signals.noted(signals.SAVE) as told_to_save:
        run = Run(
            train=settings,
            learning_rate=learning_rate,
            seed=config.seed,
            precision=config.precision,
            device=config.device,
            options=options,
            checkpoint_seconds=asked.checkpoint_seconds,
            resume=context.resume,
            emit=context.emit,
            told_to_stop=told_to_stop,
            told_to_save=told_to_save,
            memory=None if checkpoint else budget,
            choose_threads=context.threads.choose,
            loss=teaching.loss if teaching else plain_loss,
        )
        progress = fit(packed, examples, validation, run)
    model.eval()
    trained.save(loaded)
    repeated_steps = write_curves(context.resume, context.draft, progress.step)
    losses = {
        row["step"]: row["validation_loss"] for row in read_lines(context.draft / "curves.jsonl") if "validation_loss" in row
    }
    best_loss = min(filter(math.isfinite, losses.values()), default=math.inf)
    if best_loss == math.inf:
        message = f"the validation loss is {best_loss:g} after {progress.step} steps; lower the learning rate"
        raise DivergedError(message, steps=progress.step, seconds=progress.train_seconds)
    memory = peak_bytes(config.device)
    if trained.load:
        del loaded, model, packed
        whole = packed_model(merged(load_model(context, torch.float32).model, context.draft / ADAPTER))
        told = partial(context.emit, part="validation of the merged model")
        with torch.autocast(config.device, getattr(torch, config.precision), enabled=config.precision != "float32"):
            measured = validate(whole, validation, progress.forward_tokens, told)
        made["packed_validation_loss"] = losses[progress.best_step if settings.keep == "best" else progress.step]
        made["merged_validation_loss"] = measured["validation_loss"]
    return {
        "parameters": parameters,
        "trainable_parameters": trainable,
        **made,
        "train_seconds": progress.train_seconds,
        "train_cpu_seconds": progress.cpu_seconds,
        "wall_seconds": progress.wall_seconds,
        "train_tokens": progress.tokens,
        "train_tokens_read": progress.tokens_read,
        "train_tokens_per_second": progress.tokens_per_second,
        "peak_memory_bytes": memory,
        "steps": progress.step,
        "epochs_done": progress.step / math.ceil(len(examples) / settings.batch_size),
        "best_step": progress.best_step,
        "best_validation_loss": best_loss,
        "stopped_early": progress.stopped_early,
        "repeated_steps": repeated_steps,
        "resumed_from": checkpoint_step(checkpoint) if checkpoint else 0,
        "precision": config.precision,
        "base_dropout": dropout,
        "packed": options["pack"] and isolates,
        "flex_failure": flex_failure(),
        "out_of_memory": progress.out_of_memory,
        "options": options | {"forward_tokens": progress.forward_tokens},
        "threads": progress.threads,
    }


def _make_reproducible(adapter: Path) -> None:
    """PEFT writes the targets in a random order, where the base lay, and a card with nothing in it."""
    (adapter / "README.md").unlink()
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = None
    for field in ("target_modules", "target_parameters"):
        if isinstance(config.get(field), list):  # for some architectures it is a regular expression
            config[field].sort()
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _check_layout(settings: Train, packed: PackedModel, examples: Sequence[Example]) -> None:
    """StageError if contexts are to be shared in an architecture that cannot keep the branches of a tree apart."""
    if settings.layout == "trees" and not packed.isolates and any(example.trunk is not None for example in examples):
        raise StageError(
            f"{type(packed.model).__name__} cannot keep tasks apart that share a context; write `layout: padded` under `train`"
        )

"""The training loop: read it from top to bottom and you know what a training method does.

One optimizer step holds the next `batch_size` examples of an order that the seed alone fixes. Its loss is the token-weighted
mean over the whole step, however the examples are packed into rows, cut into micro-batches or spread over forward passes.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import get_scheduler

from paretune.data.trees import ROUND_TO, Batch, Example, forward_batches, group_starts, unshared
from paretune.errors import DivergedError, is_out_of_memory
from paretune.model.attention import attending
from paretune.model.forward import PackedModel, hidden_states, score
from paretune.model.fused import fuse
from paretune.model.loss import Head, loss_of
from paretune.model.memory import fitting_tokens, peak_bytes
from paretune.study.train import Train
from paretune.train import checkpoint as ckpt

_CHECKPOINT_SHARE = 20
"""A checkpoint may take 1/20 of the time; a slow disk stretches the interval."""


Objective = Callable[[torch.Tensor, Batch], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
"""From hidden states [N, D] and their batch, summed over its targets: what is minimized (scalar with gradient), -log p, and how
many are the most likely token."""


def plain_loss(head: Head, dtype: torch.dtype) -> Objective:
    """-log p of the targets is what is minimized; with products in `dtype`."""
    loss_function = loss_of(head, dtype)

    def objective(hidden_ND: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        nats, hits = loss_function(hidden_ND, batch.targets_N)
        return nats, nats, hits

    return objective


@dataclass(frozen=True)
class Run:
    """What the loop is given besides the model."""

    train: Train
    learning_rate: float
    seed: int
    precision: str
    device: str
    options: Mapping[str, Any]
    """Those that move bits: `forward_tokens`, `row_tokens`, `accumulate`, `pack`, `recompute`, `threads`."""
    checkpoint_seconds: float
    resume: Path
    """What a killed run left to go on from, and where this one leaves it; holds the journal `curves.jsonl`."""
    emit: Callable[..., None]
    told_to_stop: Callable[[], bool] = lambda: False
    """Asked after each step: leave a checkpoint and end."""
    told_to_save: Callable[[], bool] = lambda: False
    """Asked after each step: leave a checkpoint and go on."""
    choose_threads: Callable[[], object] = lambda: None
    """Called as a checkpoint is made by the clock: how many torch computes on until the next one."""
    loss: Callable[[Head, torch.dtype], Objective] = plain_loss
    memory: int | None = None
    """Bytes that may be used: where `forward_tokens` would need more, they are lowered."""


def fit(packed: PackedModel, train: Sequence[Example], validation: Sequence[Example], run: Run) -> ckpt.Progress:
    """Train the parameters of `packed.model` that require a gradient; goes on from a checkpoint if there is one.

    Afterwards the model holds the weights to keep. Raises DivergedError when the loss is no number,
    SystemExit where it was told to stop.
    """
    model, settings, dtype = packed.model, run.train, getattr(torch, run.precision)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    autocast = partial(torch.autocast, run.device, dtype, enabled=dtype != torch.float32)
    fuse(model)
    if run.options.get("recompute"):
        model.activation_checkpointing_enable({"use_reentrant": False})
    forward_tokens = run.options["forward_tokens"]
    if run.memory is not None:
        model.train()
        with autocast():
            forward_tokens = fitting_tokens(packed, trained.values(), run.memory, forward_tokens)
    objective_of = run.loss(packed.head, dtype)
    # Of float16, whose small gradients vanish otherwise; does nothing in other formats.
    scaler = torch.amp.GradScaler(run.device, enabled=dtype == torch.float16)

    steps_per_epoch = math.ceil(len(train) / settings.batch_size)
    num_steps = settings.max_steps or steps_per_epoch * (settings.num_epochs or 0)
    evaluate_every = steps_per_epoch if settings.evaluate_every == "epoch" else settings.evaluate_every
    optimizer = torch.optim.AdamW(_groups(trained, settings.weight_decay), lr=run.learning_rate, fused=True)
    scheduler = get_scheduler(settings.schedule, optimizer, round(settings.warmup * num_steps), num_steps)
    torch.manual_seed(run.seed)  # of dropout; the adapter was drawn before
    progress = ckpt.Progress(forward_tokens=forward_tokens)
    if checkpoint := ckpt.find_checkpoint(run.resume):
        progress = ckpt.load_checkpoint(checkpoint, trained, optimizer, scheduler)
    if progress.loss_scale:
        scaler.load_state_dict(progress.loss_scale)
    wall_before, opened = progress.wall_seconds, time.perf_counter()
    last_checkpoint, interval = time.monotonic(), run.checkpoint_seconds
    journal = ckpt.open_journal(run.resume)
    run.emit(done=progress.step, total=num_steps)

    for step in range(progress.step + 1, num_steps + 1):
        started, had = time.perf_counter(), time.process_time()
        model.train()
        examples = step_examples(train, step, settings.batch_size, run.seed)
        num_targets = sum(example.num_targets for example in examples)
        while True:
            loss, correct = 0.0, 0
            try:
                for batch in _micro_batches(examples, run, progress.forward_tokens, packed.isolates):
                    batch = batch.to(torch.device(run.device))
                    with attending(model, batch):
                        with autocast():
                            objective, nats, hits = objective_of(hidden_states(model, batch), batch)
                        scaler.scale(objective / num_targets).backward()
                    loss, correct = loss + nats.item() / num_targets, correct + int(hits)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or progress.forward_tokens <= ROUND_TO:
                    raise
            # The step begins again with passes of half the tokens, once what the one that failed has kept is let go.
            batch = objective = nats = hits = None
            model.zero_grad()
            progress.forward_tokens = max(ROUND_TO, progress.forward_tokens // 2)
            progress.out_of_memory += 1
        scaler.unscale_(optimizer)
        norm = float(nn.utils.clip_grad_norm_(trained.values(), settings.max_grad_norm))
        # A float16 gradient beyond its range is skipped, and the next ones are scaled less; so often, it is the rate's fault.
        overflow = scaler.is_enabled() and scaler.get_scale() > 1
        if not (math.isfinite(loss) and (overflow or math.isfinite(norm))):
            message = f"step {step}: the loss is {loss:g}, its gradient {norm:g}; lower the learning rate"
            raise DivergedError(message, steps=step, seconds=progress.train_seconds)
        learning_rate = scheduler.get_last_lr()[0]
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        optimizer.zero_grad()

        progress.threads = sorted({*progress.threads, torch.get_num_threads()})
        progress.step, progress.tokens = step, progress.tokens + num_targets
        progress.tokens_read += sum(example.num_tokens for example in examples)
        progress.train_seconds += time.perf_counter() - started
        progress.cpu_seconds += time.process_time() - had
        position = {"step": step, "epoch": step / steps_per_epoch, "seconds": progress.train_seconds, "tokens": progress.tokens}
        learned = {"train_loss": loss, "train_token_accuracy": correct / num_targets, "learning_rate": learning_rate}
        ckpt.write_line(journal, position | learned)
        told = {"loss": loss, "tokens_per_second": progress.tokens_per_second, "peak_memory_bytes": peak_bytes(run.device)}
        run.emit(done=step, total=num_steps, **told)
        if step % evaluate_every == 0 or step == num_steps:
            with autocast():
                emit = partial(run.emit, part=f"validation at step {step} of {num_steps}")
                measured = validate(packed, validation, progress.forward_tokens, emit)
            ckpt.write_line(journal, position | measured)
            if progress.note_evaluation(measured, settings.early_stopping) and settings.keep == "best":
                ckpt.save_best(run.resume, trained, step)
            if progress.stopped_early:
                break
        leaving, asked = run.told_to_stop(), run.told_to_save()
        if leaving or asked or time.monotonic() - last_checkpoint > interval:
            begun = time.monotonic()
            progress.wall_seconds = wall_before + time.perf_counter() - opened
            progress.loss_scale = scaler.state_dict()
            if not (leaving or asked):  # whoever is stopped goes on to the same numbers
                run.choose_threads()
            options = {**run.options, "threads": torch.get_num_threads()}
            ckpt.save_checkpoint(run.resume, trained, optimizer, scheduler, progress, options)
            last_checkpoint = time.monotonic()
            interval = max(run.checkpoint_seconds, _CHECKPOINT_SHARE * (last_checkpoint - begun))
        if leaving:
            raise SystemExit(1)
    journal.close()
    progress.wall_seconds = wall_before + time.perf_counter() - opened
    if settings.keep == "best":
        ckpt.load_best(run.resume, trained, progress.best_step)
    return progress


def step_examples(examples: Sequence[Example], step: int, batch_size: int, seed: int) -> list[Example]:
    """The examples of optimizer step `step` (from 1): each epoch in an order of its own, fixed by `seed` and the epoch.

    Documents are shuffled, the examples of a document (those with the same trunk) stand side by side.
    """
    steps_per_epoch = math.ceil(len(examples) / batch_size)
    epoch, index = divmod(step - 1, steps_per_epoch)
    starts = group_starts(examples)
    sizes = np.diff(starts, append=len(examples))
    order = np.random.default_rng([seed, epoch]).permutation(len(starts))
    ends = sizes[order].cumsum()
    first, last = index * batch_size, min((index + 1) * batch_size, len(examples))
    chosen = slice(np.searchsorted(ends, first, side="right"), np.searchsorted(ends, last) + 1)
    of_groups = [examples[i] for g in order[chosen] for i in range(starts[g], starts[g] + sizes[g])]
    skipped = first - int(ends[chosen.start] - sizes[order[chosen.start]])
    return of_groups[skipped : skipped + last - first]


def _groups(trained: Mapping[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices only, as is usual: not on biases and norms."""
    matrices = [p for p in trained.values() if p.ndim >= 2]
    others = [p for p in trained.values() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _micro_batches(examples: Sequence[Example], run: Run, forward_tokens: int, isolates: bool) -> Iterator[Batch]:
    if run.train.layout == "padded":
        examples = [unshared(example) for example in examples]
    size = math.ceil(len(examples) / run.options["accumulate"])
    row_tokens = run.options.get("row_tokens") if run.device == "cpu" else None
    pack = run.options["pack"] and isolates
    for start in range(0, len(examples), size):
        part = examples[start : start + size]
        for _, batch in forward_batches(part, forward_tokens=forward_tokens, row_tokens=row_tokens, pack=pack):
            yield batch


def validate(
    packed: PackedModel, examples: Sequence[Example], forward_tokens: int, emit: Callable[..., None]
) -> dict[str, float]:
    """The training objective on the validation split: windows without overlap, EOS included."""
    packed.model.eval()
    nats, correct, count = 0.0, 0, 0
    for scores in score(packed, examples, forward_tokens=forward_tokens, emit=emit):
        nats, correct, count = nats + scores.nats.sum(), correct + int(scores.correct.sum()), count + len(scores.nats)
    return {"validation_loss": float(nats) / count, "validation_token_accuracy": correct / count}

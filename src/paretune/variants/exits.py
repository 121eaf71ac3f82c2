"""Early exits of a model: the threshold that its bounds leave on validation text, and the proof that they mean one function.

The threshold is chosen by testing from the highest down, and ends before the first that is not shown to keep to the bounds, so
that trying several needs no correction (fixed-sequence testing, as CALM, arXiv 2207.07061). What is measured is the function
that runs, prompts and all, at the positions that predict; all else that a study measures of it is of held-out text.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from paretune.data.tokens import read_tokens
from paretune.errors import DataError, StageError
from paretune.model.adapters import count_parameters
from paretune.model.attention import attending
from paretune.model.blocks import block_list
from paretune.model.exits import Confidence, Exits, attach, confidences, serve
from paretune.model.forward import hidden_states
from paretune.model.load import DEPTH, load_model
from paretune.model.loss import CHUNK_LOGITS, Head
from paretune.pipeline.stage import Emit, StageContext
from paretune.pipeline.stage_configs import MethodConfig
from paretune.study.methods import ExitBounds, ExitEarly
from paretune.variants.calibration import Window, amount_of, document_numbers, draw_windows, share_contexts, window_batches
from paretune.variants.proof import compute_at_once, compute_one_by_one, largest_difference, tolerance_of
from paretune.variants.race import paired_low


@dataclass(frozen=True)
class ExitPoint:
    """What one threshold does to validation text."""

    threshold: float
    loss: float
    """Nats a token more than at full depth."""
    loss_high: float | None
    """End of its 95 % interval, clustered by document; None of too few documents."""
    agreement: float
    """Share of positions whose likeliest token is that of full depth."""
    agreement_low: float | None
    blocks: float
    """That ran, in the mean over the positions that predict; keys and values of those above besides."""


def exit_early(context: StageContext) -> dict[str, Any]:
    """Stage body: leave where tokens may leave the model that was given, and from which confidence on."""
    config = context.parse(MethodConfig[ExitEarly])
    method, threshold, found = config.method, config.method.threshold, dict[str, Any]()
    if method.within is not None:
        loaded = load_model(context)
        rows = read_tokens(context.inputs["tokens"].path, "validation")
        assert config.max_length is not None, "a method that takes the tokens has it"
        windows = draw_windows(rows, method.calibration, config.max_length, loaded.tokenizer.prefix_id)
        if not windows:
            raise DataError("exit.early: the validation split has no tokens to choose a threshold on; write `threshold: 0.9`")
        exits = attach(loaded.model, method.exits(len(block_list(loaded.model)[1])), None, method.confidence)
        thresholds = sorted(method.thresholds, reverse=True)
        how = {"forward_tokens": context.options.forward_tokens, "emit": context.emit}
        curve = exit_curve(loaded.model, exits, windows, thresholds, **how)
        threshold = choose_threshold(curve, method.within)
        found = {**amount_of(windows), "curve": [asdict(point) for point in curve]}
        del loaded
    model = load_model(context, torch.float32).model
    num_blocks = len(block_list(model)[1])
    after = method.exits(num_blocks)
    context.emit(done=0, total=1, part="showing that it writes what is scored")
    difference = prove_exits(model, after, method.confidence)
    arguments = {"after": list(after), "threshold": threshold, "confidence": method.confidence}
    (context.draft / DEPTH).write_text(json.dumps({"exits": arguments}), encoding="utf-8")
    parameters, _ = count_parameters(model)
    return {**arguments, "blocks": num_blocks, "parameters": parameters, "largest_difference": difference, **found}


@torch.no_grad()
def exit_curve(
    model: PreTrainedModel,
    exits: Exits,
    windows: Sequence[Window],
    thresholds: Sequence[float],
    *,
    forward_tokens: int,
    emit: Emit = lambda **_: None,
) -> list[ExitPoint]:
    """What each threshold does to `windows`, against the model at full depth; `exits`, attached to `model`, end as that."""
    numbers, trees = document_numbers(windows)[1], share_contexts(model, windows)
    targets = np.array([window.num_targets for window in windows])
    # By threshold and window: nats more than at full depth, other likeliest tokens, blocks.
    sums = np.zeros((len(thresholds), 3, len(windows)))
    done, total = 0, sum(len(window.examples) for window in windows)
    emit(done=0, total=total, part="choosing the threshold")
    for of_windows, batch in window_batches(model, windows, forward_tokens=forward_tokens, trees=trees):
        with attending(model, batch):
            exits.threshold = None
            nats_N, tokens_N = _read(exits.head, hidden_states(model, batch), batch.targets_N)
            for at, threshold in zip(sums, thresholds, strict=True):
                exits.threshold = threshold
                early_nats_N, early_tokens_N = _read(exits.head, hidden_states(model, batch), batch.targets_N)
                depths_N = exits.depths_RT.flatten().index_select(0, batch.hidden_N)
                for values, of_tokens in zip(at, (early_nats_N - nats_N, early_tokens_N != tokens_N, depths_N), strict=True):
                    parts = of_tokens.double().split(batch.sizes)
                    np.add.at(values, of_windows, torch.stack([part.sum() for part in parts]).cpu().numpy())
        done += len(of_windows)
        emit(done=done, total=total, part="choosing the threshold")
    exits.threshold = None
    by_document = np.bincount(numbers, targets)
    points = []
    for threshold, (more, other, blocks) in zip(thresholds, sums, strict=True):
        highs = (-paired_low(-np.bincount(numbers, each), by_document, 0.05) for each in (more, other))
        loss_high, other_high = (high if math.isfinite(high) else None for high in highs)
        points.append(
            ExitPoint(
                threshold,
                loss=float(more.sum() / targets.sum()),
                loss_high=loss_high,
                agreement=float(1 - other.sum() / targets.sum()),
                agreement_low=None if other_high is None else 1 - other_high,
                blocks=float(blocks.sum() / targets.sum()),
            )
        )
    return points


def choose_threshold(curve: Sequence[ExitPoint], within: ExitBounds) -> float | None:
    """The last threshold of `curve`, which begins at the highest, before the first that is not shown to keep to the bounds."""
    chosen = None
    for point in curve:
        loss_holds = within.loss is None or (point.loss_high is not None and point.loss_high <= within.loss)
        agrees = within.agreement is None or (point.agreement_low is not None and point.agreement_low >= within.agreement)
        if not (loss_holds and agrees):
            break
        chosen = point.threshold
    return chosen


@torch.no_grad()
def prove_exits(model: PreTrainedModel, after: tuple[int, ...], confidence: Confidence) -> float:
    """Attach exits to `model` at a threshold that parts of some random tokens reach, and show that it gives the same logits of
    them at once, token by token with a cache, and as it serves. The largest difference; StageError where one is too large."""
    plain = compute_at_once(model)
    tolerance = tolerance_of(model, plain)
    exits = attach(model, after, 0.0, confidence)
    sure = confidences(compute_at_once(model).flatten(0, 1), confidence).sort().values  # all leave at the first exit
    inner = sure[len(sure) // 4 : -(len(sure) // 4) or None]
    gap = int(inner.diff().argmax())  # so that no rounding turns a decision
    exits.threshold = float(inner[gap] + inner[gap + 1]) / 2
    live = compute_at_once(model)
    compared = {"with a cache": compute_one_by_one(model)}
    serve(model)
    compared["with a cache, as they are timed,"] = compute_one_by_one(model)
    largest = 0.0
    for how, logits in compared.items():
        difference = largest_difference(logits, live)
        largest = max(largest, difference)
        if not difference <= tolerance:  # also true of a NaN
            raise StageError(
                f"`{type(model).__name__}` with early exits does not give one function: logits {how} differ from those at once "
                f"by {difference:.1e} of the largest (tolerance {tolerance:.0e}); there is no early exit of this architecture"
            )
    return largest


def _read(head: Head, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """-log p of each target, and the likeliest token in its place."""
    size = max(1, CHUNK_LOGITS // head.num_words)
    nats, tokens = [], []
    for hidden, targets in zip(hidden_ND.split(size), targets_N.split(size), strict=True):
        logits = head(hidden).float()
        nats.append(functional.cross_entropy(logits, targets, reduction="none"))
        tokens.append(logits.argmax(-1))
    return torch.cat(nats), torch.cat(tokens)

"""Packed examples through a model: hidden states under isolating masks, then the head where there are targets.

The model is called through its public forward, so that every architecture of transformers with the standard attention
interface works; what cannot be taken on trust (that the head is found, that packed examples are kept apart) is shown once.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from paretune.data.trees import Batch, Example, forward_batches, lay_out
from paretune.errors import StageError
from paretune.model.loss import Logits, token_nats

_PROOF_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class TargetScores:
    """Of one example: -log p of each target (nats, float64) and whether it is the most likely token."""

    nats: np.ndarray
    correct: np.ndarray


@dataclass(frozen=True)
class PackedModel:
    """A model with what has been shown about it: how states become logits, and whether packed examples are kept apart."""

    model: PreTrainedModel
    logits_of: Logits
    isolates: bool


def packed_model(model: PreTrainedModel) -> PackedModel:
    """`model` ready for packed batches; StageError if its logits cannot be made from its hidden states."""
    return PackedModel(model, head_of(model), keeps_apart(model))


def score(model: PreTrainedModel | PackedModel, examples: Sequence[Example], *, forward_tokens: int) -> Iterator[TargetScores]:
    """Scores of `examples`, in their order. No gradient, no logits of more than a chunk of targets."""
    packed = model if isinstance(model, PackedModel) else packed_model(model)
    done: dict[int, TargetScores] = {}
    upcoming = 0
    # Packed in blocks of neighbours, so that results stream and memory does not grow with the set.
    for start in range(0, len(examples), 512):
        block = examples[start : start + 512]
        for indices, batch in forward_batches(block, forward_tokens=forward_tokens, pack=packed.isolates):
            for index, scores in zip(indices, _score_batch(packed, batch.to(packed.model.device)), strict=True):
                done[start + index] = scores
        while upcoming in done:
            yield done.pop(upcoming)
            upcoming += 1


def hidden_states(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """The states that predict the targets of `batch`, [N, D]."""
    arguments: dict[str, Any] = {"use_cache": False}
    if batch.packed:
        arguments |= {"attention_mask": _masks(model, batch), "position_ids": batch.positions_RT}
    states_RTD = model.base_model(input_ids=batch.ids_RT, **arguments).last_hidden_state
    # index_select, not [index]: the backward of indexing is not deterministic on two CPU threads.
    return states_RTD.flatten(0, 1).index_select(0, batch.hidden_N)


def head_of(model: PreTrainedModel) -> Logits:
    """Hidden states to logits as this model does it, scaling and soft-capping included; StageError if that cannot be found."""
    head, config = model.get_output_embeddings(), model.config
    cap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)

    def logits_of(hidden: torch.Tensor) -> torch.Tensor:
        logits = head(hidden) * scale if scale != 1 else head(hidden)
        return torch.tanh(logits / cap) * cap if cap else logits

    ids = torch.arange(1, 9, device=model.device)[None] % config.get_text_config().vocab_size
    with torch.no_grad(), _evaluating(model):
        expected = model(input_ids=ids, use_cache=False).logits
        found = logits_of(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    if not expected.isfinite().all():
        raise StageError(
            f"the weights of `{model.name_or_path}` give logits that are no numbers; are they NaN or infinite? Copy the base "
            "again, or train with a lower learning rate"
        )
    if not _close(expected, found):
        raise StageError(f"{type(model).__name__} makes its logits in a way that is not known here, so it cannot be scored")
    return logits_of


def keeps_apart(model: PreTrainedModel) -> bool:
    """Whether packed examples do not see each other in this architecture: shown on two short ones."""
    vocabulary = model.config.get_text_config().vocab_size
    first, second = (Example(np.arange(a, a + 6, dtype=np.int32) % vocabulary) for a in (3, 11))
    with torch.no_grad(), _evaluating(model):
        alone = [hidden_states(model, lay_out([[example]], 6).to(model.device)) for example in (first, second)]
        try:
            packed = hidden_states(model, lay_out([[first, second]], 12).to(model.device))
        except (TypeError, ValueError, RuntimeError):  # an architecture that takes no mask of this form
            return False
    return _close(torch.cat(alone), packed)


def _score_batch(packed: PackedModel, batch: Batch) -> list[TargetScores]:
    with torch.no_grad():
        nats, correct = token_nats(packed.logits_of, hidden_states(packed.model, batch), batch.targets_N)
    ends = np.cumsum(batch.sizes)[:-1]
    split_nats = np.split(nats.double().cpu().numpy(), ends)
    return [TargetScores(*pair) for pair in zip(split_nats, np.split(correct.cpu().numpy(), ends), strict=True)]


def _masks(model: PreTrainedModel, batch: Batch) -> torch.Tensor | dict[str, torch.Tensor]:
    """Additive masks [R, 1, T, T]: one, or one for each type of layer where full and sliding attention alternate."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    layer_types = set(getattr(config, "layer_types", None) or ())
    same_RTT = batch.segments_RT[:, :, None] == batch.segments_RT[:, None, :]
    distance_RTT = batch.positions_RT[:, :, None] - batch.positions_RT[:, None, :]
    full_RTT = same_RTT & (distance_RTT >= 0)
    sliding_RTT = full_RTT if window is None else full_RTT & (distance_RTT < window)
    if layer_types:
        by_type = {"full_attention": full_RTT, "sliding_attention": sliding_RTT}
        return {kind: _additive(by_type[kind], model.dtype) for kind in layer_types}
    return _additive(sliding_RTT, model.dtype)


def _additive(allowed_RTT: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    mask = torch.zeros(allowed_RTT.shape, dtype=dtype, device=allowed_RTT.device)
    return mask.masked_fill_(~allowed_RTT, torch.finfo(dtype).min)[:, None]


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Dropout off inside the block, as it was afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _close(expected: torch.Tensor, found: torch.Tensor) -> bool:
    scale = expected.float().abs().max().clamp_min(1e-6)
    difference = (expected.float() - found.float()).abs().max() / scale
    return bool(difference <= _PROOF_TOLERANCE[expected.dtype])

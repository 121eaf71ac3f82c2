"""Token trees through a model: hidden states with attention along the trees, then the head where there are targets.

The model is called through its public forward, so that every architecture of transformers with the standard attention
interface works; what cannot be taken on trust is shown once: on the model that its head is found, and on a small twin that
branches and trees are kept apart.
"""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from transformers import PreTrainedModel

from paretune.data.trees import ROUND_TO, Batch, Example, forward_batches, group_starts, unshared
from paretune.errors import StageError, is_out_of_memory
from paretune.model.attention import attending
from paretune.model.llama_cpp import LlamaCpp
from paretune.model.loss import Head, MatrixHead, matrix_head, token_nats
from paretune.model.twin import REFUSALS, small_twin

_STRETCH = 512
"""Examples that are packed together, about."""
SLOW = logging.getLogger("paretune.slow")
"""Told here: that something takes a slower way than it might, and why. It goes into the log and the record of the stage."""
_PROOF_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Of the same operations, or of few blocks with random weights: norms and softmax of most models round to float32."""


@dataclass(frozen=True)
class TargetScores:
    """Of one example: -log p of each target (nats, float64) and whether it is the most likely token."""

    nats: np.ndarray
    correct: np.ndarray


@dataclass(frozen=True)
class PackedModel:
    """A model with what has been shown about it: how states become logits, and whether trees and branches are kept apart."""

    model: PreTrainedModel
    head: Head
    isolates: bool


def packed_model(model: PreTrainedModel) -> PackedModel:
    """`model` ready for token trees; StageError if its logits cannot be made from its hidden states."""
    failure = mixing(model)
    if failure:
        SLOW.warning("%s reads one text at a time, sharing no context: %s", type(model).__name__, failure)
    return PackedModel(model, head_of(model), isolates=not failure)


def score(
    model: PreTrainedModel | PackedModel | LlamaCpp,
    examples: Sequence[Example],
    *,
    forward_tokens: int,
    emit: Callable[..., None] = lambda **_: None,
) -> Iterator[TargetScores]:
    """Scores of `examples`, in their order. No gradient, no logits of more than a chunk of targets.

    In float32 on one machine each is the same to the last bit whatever trees stand before, after and beside its own, where
    trees are kept apart and none is larger than `forward_tokens`.
    Out of memory, it goes on with half the `forward_tokens`. `emit` is told after each pass how many are done.
    """
    if isinstance(model, LlamaCpp):
        yield from (TargetScores(nats, correct) for nats, correct in model.score(examples))
        return
    packed = model if isinstance(model, PackedModel) else packed_model(model)
    device = packed.model.device
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    head = matrix_head(packed.head, dtype) or packed.head
    # Neighbours are packed together, so that results stream and memory does not grow with the set; a tree stays whole.
    bounds = [0]
    for start in group_starts(examples) if examples else ():
        if start - bounds[-1] >= _STRETCH:
            bounds.append(int(start))
    emit(done=0, total=len(examples))
    for start, stop in pairwise([*bounds, len(examples)]):
        block: dict[int, TargetScores] = {}
        while left := [index for index in range(start, stop) if index not in block]:
            try:
                pending = [examples[index] for index in left]
                for indices, batch in forward_batches(pending, forward_tokens=forward_tokens, pack=packed.isolates):
                    for index, scores in zip(indices, _score_batch(packed, head, batch.to(device)), strict=True):
                        block[left[index]] = scores
                    emit(done=start + len(block), total=len(examples))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or forward_tokens <= ROUND_TO:
                    raise
                forward_tokens = max(ROUND_TO, forward_tokens // 2)
        yield from (block[index] for index in range(start, stop))


def hidden_states(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """The states that predict the targets of `batch`, [N, D]; inside of `attending(model, batch)`."""
    states_RTD = model.base_model(input_ids=batch.ids_RT, use_cache=False, **_tree_arguments(model, batch)).last_hidden_state
    # index_select, not [index]: the backward of indexing is not deterministic on two CPU threads.
    return states_RTD.flatten(0, 1).index_select(0, batch.hidden_N)


@contextmanager
def along_trees(model: PreTrainedModel, batch: Batch) -> Iterator[None]:
    """Inside, `model.base_model` reads the ids of `batch` along its trees, if it has any, and every state of every block is
    right; in the backward pass too if it is inside."""
    arguments = _tree_arguments(model, batch)
    handle = model.base_model.register_forward_pre_hook(lambda _, args, given: (args, {**given, **arguments}), with_kwargs=True)
    try:
        with attending(model, batch, whole=True):
            yield
    finally:
        handle.remove()


def _tree_arguments(model: PreTrainedModel, batch: Batch) -> dict[str, torch.Tensor]:
    """What the base model takes beside the ids."""
    if batch.forest is None:
        return {}
    # With a mask given, even one that hides nothing, transformers does not look for sequences in the positions.
    # The last token of a text is only predicted; so one may stand where the model has no position any more.
    last = (num_positions(model) or sys.maxsize) - 1
    return {"attention_mask": torch.ones_like(batch.ids_RT), "position_ids": batch.positions_RT.clamp_max(last)}


def num_positions(model: PreTrainedModel | LlamaCpp) -> int | None:
    """Longest sequence that the positions of `model` reach, by its config; None where it names no limit."""
    config = model.config.get_text_config()
    limits = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions"))
    return next((limit for limit in limits if limit), None)


def head_of(model: PreTrainedModel) -> Head:
    """Hidden states to logits as this model does it, scaling and soft-capping included; StageError if that cannot be found."""
    module, config = model.get_output_embeddings(), model.config
    ids = torch.arange(1, 9, device=model.device)[None] % config.get_text_config().vocab_size
    states: list[torch.Tensor] = []
    # Those of the same pass: in another one they may round otherwise.
    handle = model.base_model.register_forward_hook(lambda module, given, output: states.append(output.last_hidden_state))
    with torch.no_grad(), _evaluating(model):
        try:
            expected = model(input_ids=ids, use_cache=False).logits
            if not states:  # OPT calls a part of its base model
                model.base_model(input_ids=ids, use_cache=False)
        finally:
            handle.remove()
        head = Head(
            module,
            num_words=expected.shape[-1],
            scale=getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1),
            cap=getattr(config, "final_logit_softcapping", None),
        )
        logits = head(states[-1])
    if not expected.isfinite().all():
        raise StageError(
            f"the weights of `{model.name_or_path}` give logits that are no numbers; are they NaN or infinite? Copy the base "
            "again, or train with a lower learning rate"
        )
    if not are_close(expected, logits):
        raise StageError(f"{type(model).__name__} makes its logits in a way that is not known here, so it cannot be scored")
    return head


def mixing(model: PreTrainedModel) -> str:
    """Why branches and trees in a row may see each other in the architecture of `model`; empty where they are shown not to, on
    a tree and two texts through a small twin."""
    vocabulary, trunk = 32, np.arange(3, 8, dtype=np.int32)

    def ids(start: int, count: int) -> np.ndarray:
        return np.arange(start, start + count, dtype=np.int32) % vocabulary

    examples = [Example(ids(11, 6)), Example(ids(2, 3), 0, trunk), Example(ids(7, 4), 0, trunk), Example(ids(13, 6))]
    twin = small_twin(model)
    try:
        with torch.no_grad(), _evaluating(twin):
            alone = _states(twin, [unshared(example) for example in examples], pack=False)
            together = _states(twin, examples, pack=True)
    except REFUSALS as error:  # attends in a way of its own, or has too few positions
        return f"{type(error).__name__}: {error}".splitlines()[0]
    differences = [difference(one, other) for one, other in zip(alone, together, strict=True)]
    if all(each <= _PROOF_TOLERANCE[twin.dtype] for each in differences):  # not true of a NaN
        return ""
    return f"states in a tree differ from those alone by {max(differences):.0e} of the largest"


def _states(model: PreTrainedModel, examples: Sequence[Example], *, pack: bool) -> list[torch.Tensor]:
    ((indices, batch),) = forward_batches(examples, forward_tokens=4096, pack=pack)
    with attending(model, batch):
        states = hidden_states(model, batch.to(model.device)).split(batch.sizes)
    return [states[indices.index(index)] for index in range(len(examples))]


def _score_batch(packed: PackedModel, head: Head | MatrixHead, batch: Batch) -> list[TargetScores]:
    with torch.no_grad(), attending(packed.model, batch):
        nats, correct = token_nats(head, hidden_states(packed.model, batch), batch.targets_N)
    ends = np.cumsum(batch.sizes)[:-1]
    split_nats = np.split(nats.double().cpu().numpy(), ends)
    return [TargetScores(*pair) for pair in zip(split_nats, np.split(correct.cpu().numpy(), ends), strict=True)]


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Dropout off inside the block, as it was afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def difference(expected: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference of two computations of the same numbers, relative to the largest of them."""
    return float((expected.double() - other.double()).abs().max() / expected.double().abs().max().clamp_min(1e-6))


def are_close(expected: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two computations of the same numbers by few operations differ by rounding only."""
    return difference(expected, other) <= _PROOF_TOLERANCE[expected.dtype]

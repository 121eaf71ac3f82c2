"""Loss at target positions: LM head and cross-entropy in chunks, so that full logits are never held.

A head that is not trained, as most are beside adapters, has a way of its own: its gradient needs no autograd, and its weight
is cast once. Sums are float32 whatever the precision of the products.
Legend: N targets, D width of the hidden states, C targets of one chunk, V vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from paretune.data.trees import rounded

CHUNK_LOGITS = 2**23
"""Logits of a chunk: larger tensors are given back to the system after each use, and cost their pages anew."""
ROUND_TO = 64
"""The last chunk is filled up to a multiple of this: see `paretune.data.trees.ROUND_TO`."""
_IGNORED = -100


@dataclass(frozen=True)
class Head:
    """From hidden states to logits: a module, then a factor, then a soft cap."""

    module: nn.Module
    num_words: int
    """Logits of a position."""
    scale: float = 1.0
    cap: float | None = None

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self.module(hidden)
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    @property
    def trained(self) -> list[nn.Parameter]:
        return [p for p in self.module.parameters() if p.requires_grad]


@dataclass(frozen=True, eq=False)
class FrozenHead:
    """A plain linear head that is not trained, in the precision of its products, and room for a chunk of logits."""

    weight_VD: torch.Tensor
    """V filled up with zeros to a multiple of 64, as the products are faster so."""
    num_words: int
    logits_CV: torch.Tensor
    """In the precision of the products."""
    scores_CV: torch.Tensor
    """float32 or more; the same as `logits_CV` where that is."""


Loss = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Hidden states [N, D] and targets [N] to the sum of -log p (scalar with gradient) and how many are the most likely token."""


def loss_of(head: Head, dtype: torch.dtype) -> Loss:
    """The loss of a head for training with products in `dtype`."""
    frozen = None if head.trained else frozen_head(head, dtype)
    if frozen is None:
        return lambda hidden_ND, targets_N: summed_loss(head, hidden_ND, targets_N)
    return lambda hidden_ND, targets_N: _FrozenHeadLoss.apply(hidden_ND, targets_N, frozen)


def frozen_head(head: Head, dtype: torch.dtype) -> FrozenHead | None:
    """`head` as it is now, for products in `dtype`; None for one that is more than a matrix."""
    module = head.module
    if type(module) is not nn.Linear or module.bias is not None or head.scale != 1 or head.cap is not None:
        return None
    weight = module.weight.detach().to(dtype)
    if dtype not in (torch.float32, torch.float64):
        weight = functional.pad(weight, (0, 0, 0, -head.num_words % ROUND_TO))
    logits = weight.new_zeros(_chunk_size(head.num_words), len(weight))
    scores = logits if dtype in (torch.float32, torch.float64) else torch.zeros_like(logits, dtype=torch.float32)
    return FrozenHead(weight, head.num_words, logits, scores)


def token_nats(head: Head | FrozenHead, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """-log p of each target (float32 or more, N) and whether it is the most likely token (bool, N); without gradient."""
    nats, correct = [], []
    with torch.no_grad():
        if isinstance(head, FrozenHead):
            size = len(head.logits_CV)
            for hidden_CD, targets_C in zip(hidden_ND.split(size), targets_N.split(size), strict=True):
                found = _frozen_chunk(head, hidden_CD, targets_C)
                nats.append(found.nats_C)
                correct.append(found.hits_C)
            return torch.cat(nats), torch.cat(correct)
        for hidden_CD, targets_C in _chunks(hidden_ND, targets_N, head):
            logits_CV = head(hidden_CD).float()
            nats.append(functional.cross_entropy(logits_CV, targets_C, reduction="none"))
            correct.append(logits_CV.argmax(-1) == targets_C)
    return torch.cat(nats)[: len(targets_N)], torch.cat(correct)[: len(targets_N)]


def summed_loss(head: Head, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of -log p over the targets (float32 scalar with gradient), and how many are the most likely token.

    Gradients reach `hidden_ND` and the trained parameters of the head, whatever it is made of.
    """
    return _HeadLoss.apply(hidden_ND, targets_N, head, *head.trained)


def _chunks(hidden_ND: torch.Tensor, targets_N: torch.Tensor, head: Head) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Chunks of states and targets; the last is filled up with targets that cross-entropy ignores."""
    size = _chunk_size(head.num_words)
    for hidden_CD, targets_C in zip(hidden_ND.split(size), targets_N.split(size), strict=True):
        missing = -len(targets_C) % ROUND_TO
        yield functional.pad(hidden_CD, (0, 0, 0, missing)), functional.pad(targets_C, (0, missing), value=_IGNORED)


def _chunk_size(num_words: int) -> int:
    return max(ROUND_TO, CHUNK_LOGITS // num_words // ROUND_TO * ROUND_TO)


class _HeadLoss(torch.autograd.Function):
    """Gradients are taken chunk by chunk in the forward pass, where the chunk's logits are at hand; nothing is recomputed."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: torch.Tensor, targets_N: torch.Tensor, head: Head, *parameters: Any) -> Any:
        total = torch.zeros((), device=hidden_ND.device)
        correct = torch.zeros((), dtype=torch.long, device=hidden_ND.device)
        hidden_grads, grads = [], [torch.zeros_like(p) for p in parameters]
        for chunk_CD, targets_C in _chunks(hidden_ND, targets_N, head):
            with torch.enable_grad():
                leaf_CD = chunk_CD.detach().requires_grad_()
                logits_CV = head(leaf_CD).float()
                loss = functional.cross_entropy(logits_CV, targets_C, reduction="sum")
            hidden_grad, *chunk_grads = torch.autograd.grad(loss, [leaf_CD, *parameters])
            hidden_grads.append(hidden_grad)
            for grad, chunk_grad in zip(grads, chunk_grads, strict=True):
                grad += chunk_grad
            total += loss.detach()
            correct += (logits_CV.argmax(-1) == targets_C).sum()
        ctx.save_for_backward(torch.cat(hidden_grads)[: len(targets_N)], *grads)
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    def backward(ctx: Any, grad_total: torch.Tensor, _: torch.Tensor) -> Any:
        hidden_grad, *grads = (grad * grad_total for grad in ctx.saved_tensors)
        return hidden_grad, None, None, *grads


class _FrozenHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: torch.Tensor, targets_N: torch.Tensor, head: FrozenHead) -> Any:
        wide = head.scores_CV.dtype
        total = torch.zeros((), dtype=wide, device=hidden_ND.device)
        correct = torch.zeros((), dtype=torch.long, device=hidden_ND.device)
        grad_ND = hidden_ND.new_empty(hidden_ND.shape, dtype=wide)
        size = len(head.logits_CV)
        for start in range(0, len(targets_N), size):
            part = slice(start, start + size)
            found = _frozen_chunk(head, hidden_ND[part], targets_N[part])
            total += found.nats_C.sum()
            correct += found.hits_C.sum()
            grad_ND[part] = _frozen_gradient(head, targets_N[part], found)
        ctx.save_for_backward(grad_ND)
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    def backward(ctx: Any, grad_total: torch.Tensor, _: torch.Tensor) -> Any:
        (grad_ND,) = ctx.saved_tensors
        return grad_ND * grad_total, None, None


@dataclass(frozen=True, eq=False)
class _FrozenChunk:
    """With e = exp(logit - highest) of every word: -log p = log(sum of e) + highest - logit of the target."""

    nats_C: torch.Tensor
    hits_C: torch.Tensor
    others_C1: torch.Tensor
    """Sum of e of every word but the target."""
    whole_C1: torch.Tensor
    """Sum of all e."""


def _frozen_chunk(head: FrozenHead, hidden_CD: torch.Tensor, targets_C: torch.Tensor) -> _FrozenChunk:
    """Leaves e in the scores of `head`, with 0 at the targets."""
    count, weight, places = len(targets_C), head.weight_VD, targets_C[:, None]
    filled = rounded(count, ROUND_TO)
    with torch.autocast(weight.device.type, enabled=False):
        states = functional.pad(hidden_CD.to(weight.dtype), (0, 0, 0, filled - count))
        torch.mm(states, weight.t(), out=head.logits_CV[:filled])
        real, scores = head.logits_CV[:count, : head.num_words], head.scores_CV[:count, : head.num_words]
        if scores.data_ptr() != real.data_ptr():
            scores.copy_(real)
        highest, of_target = scores.amax(-1, keepdim=True), scores.gather(1, places)
        # argmax is slow, and asked only where it can matter: of several highest logits the first is the most likely token.
        hits = (of_target == highest).flatten()
        reached = hits.nonzero().flatten()
        hits[reached] = scores.index_select(0, reached).argmax(-1) == targets_C[reached]
        scores.sub_(highest).exp_()
        share = scores.gather(1, places)
        scores.scatter_(1, places, 0.0)
        others = scores.sum(-1, keepdim=True)
        whole = others + share
    return _FrozenChunk((whole.log() + highest - of_target).flatten(), hits, others, whole)


def _frozen_gradient(head: FrozenHead, targets_C: torch.Tensor, found: _FrozenChunk) -> torch.Tensor:
    """(e W - others W[target]) / whole: what is left of a likely target's share is not the difference of two large numbers."""
    count, weight = len(targets_C), head.weight_VD
    logits, scores = head.logits_CV[: rounded(count, ROUND_TO)], head.scores_CV[:count, : head.num_words]
    with torch.autocast(weight.device.type, enabled=False):
        if logits.data_ptr() != scores.data_ptr():
            logits[:count, : head.num_words].copy_(scores)
        logits[:, head.num_words :] = 0
        of_others = torch.mm(logits, weight)[:count].to(scores.dtype)
        return (of_others - found.others_C1 * weight.index_select(0, targets_C)) / found.whole_C1

"""Loss at target positions: LM head and cross-entropy in chunks, so that full logits are never held.

A head that is one matrix, as nearly all are, has a way of its own: products of whole chunks in the fast precision, everything
between them on a few rows at a time, which stay in the cache, and gradients in closed form. Sums are float32 whatever the
precision of the products.
Legend: N targets, D width of the hidden states, C targets of one chunk, R of them worked on at a time, V vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from paretune.data.trees import rounded

CHUNK_LOGITS = 2**25
"""Logits of a chunk. With fewer rows a product takes as long as reading the matrix of the head does."""
ROWS = 16
ROUND_TO = 64
"""The last chunk is filled up to a multiple of this: see `paretune.data.trees.ROUND_TO`."""
_GRAD_ROWS = 2048
"""Rows of the matrix whose gradient is added up at a time: a sum of two dtypes takes several times as long."""
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
        return self.scaled(self.module(hidden))

    def scaled(self, logits: torch.Tensor) -> torch.Tensor:
        """What the module gives, with factor and cap."""
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    @property
    def trained(self) -> list[nn.Parameter]:
        return [p for p in self.module.parameters() if p.requires_grad]


@dataclass(frozen=True, eq=False)
class MatrixHead:
    """A head that is one matrix, in the precision of its products, and room for a chunk of logits."""

    parameter_VD: torch.Tensor
    weight_VD: torch.Tensor
    """In the precision of the products, as the logits are; the parameter itself where it has that precision."""
    logits_CV: torch.Tensor
    """Each row begins at a multiple of 64 numbers: products into such rows take a fifth less time."""
    rows_RV: torch.Tensor | None
    """float32, for the rows that are worked on; None where the products have that precision already."""

    @property
    def num_words(self) -> int:
        return len(self.parameter_VD)

    @property
    def dtype(self) -> torch.dtype:
        """Of everything between the products."""
        return self.weight_VD.dtype if self.rows_RV is None else self.rows_RV.dtype


Loss = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Hidden states [N, D] and targets [N] to the sum of -log p (scalar with gradient) and how many are the most likely token."""


def loss_of(head: Head, dtype: torch.dtype) -> Loss:
    """The loss of a head for training with products in `dtype`; gradients reach whatever of it is trained."""
    matrix = matrix_head(head, dtype)
    if matrix is None:
        return lambda hidden_ND, targets_N: _HeadLoss.apply(hidden_ND, targets_N, head, *head.trained)
    return lambda hidden_ND, targets_N: _MatrixHeadLoss.apply(hidden_ND, targets_N, matrix, matrix.parameter_VD)


def matrix_head(head: Head, dtype: torch.dtype | None = None) -> MatrixHead | None:
    """`head` for products in `dtype` (that of its weight); None for one that is more than a matrix."""
    module = head.module
    if type(module) is not nn.Linear or module.bias is not None or head.scale != 1 or head.cap is not None:
        return None
    dtype = dtype or module.weight.dtype
    weight = module.weight.detach().to(dtype)
    logits = weight.new_empty(_chunk_size(head.num_words), rounded(head.num_words, ROUND_TO))[:, : head.num_words]
    wide = dtype in (torch.float32, torch.float64)
    rows = None if wide else torch.empty(ROWS, head.num_words, device=weight.device)
    return MatrixHead(module.weight, weight, logits, rows)


def token_nats(head: Head | MatrixHead, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """-log p of each target (float32 or more, N) and whether it is the most likely token (bool, N); without gradient."""
    nats, correct = [], []
    with torch.no_grad():
        if isinstance(head, MatrixHead):
            size = len(head.logits_CV)
            for hidden_CD, targets_C in zip(hidden_ND.split(size), targets_N.split(size), strict=True):
                chunk = _matrix_chunk(head, hidden_CD, targets_C)
                nats.append(chunk.nats_C)
                correct.append(chunk.hits_C)
            return torch.cat(nats), torch.cat(correct)
        for hidden_CD, targets_C in _chunks(hidden_ND, targets_N, head):
            logits_CV = head(hidden_CD).float()
            nats.append(functional.cross_entropy(logits_CV, targets_C, reduction="none"))
            correct.append(logits_CV.argmax(-1) == targets_C)
    return torch.cat(nats)[: len(targets_N)], torch.cat(correct)[: len(targets_N)]


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


class _MatrixHeadLoss(torch.autograd.Function):
    """All gradients are taken in the forward pass, chunk by chunk, where the chunk's logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: torch.Tensor, targets_N: torch.Tensor, head: MatrixHead, parameter_VD: torch.Tensor
    ) -> Any:
        total = torch.zeros((), dtype=head.dtype, device=hidden_ND.device)
        correct = torch.zeros((), dtype=torch.long, device=hidden_ND.device)
        grad_ND = hidden_ND.new_empty(hidden_ND.shape, dtype=head.dtype)
        grad_VD = None
        if ctx.needs_input_grad[3]:
            head.weight_VD.copy_(parameter_VD)  # it has changed since the last step
            grad_VD = torch.zeros(parameter_VD.shape, dtype=head.dtype, device=hidden_ND.device)
        size = len(head.logits_CV)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for start in range(0, len(targets_N), size):
                part = slice(start, start + size)
                chunk = _matrix_chunk(head, hidden_ND[part], targets_N[part])
                total += chunk.nats_C.sum()
                correct += chunk.hits_C.sum()
                grad_ND[part] = _states_gradient(head, chunk, targets_N[part])
                if grad_VD is not None:
                    _add_matrix_gradient(grad_VD, head, chunk, hidden_ND[part], targets_N[part])
        ctx.grads = grad_ND, grad_VD
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    def backward(ctx: Any, grad_total: torch.Tensor, _: torch.Tensor) -> Any:
        grad_ND, grad_VD = ctx.grads
        # In place: the second is as large as the matrix. Nobody else holds them.
        return grad_ND.mul_(grad_total), None, None, None if grad_VD is None else grad_VD.mul_(grad_total)


@dataclass(frozen=True, eq=False)
class _MatrixChunk:
    """With e = exp(logit - highest) of every word: -log p = log(sum of e) + highest - logit of the target."""

    nats_C: torch.Tensor
    hits_C: torch.Tensor
    others_C1: torch.Tensor
    """Sum of e of every word but the target."""
    whole_C1: torch.Tensor
    """Sum of all e."""


def _matrix_chunk(head: MatrixHead, hidden_CD: torch.Tensor, targets_C: torch.Tensor) -> _MatrixChunk:
    """Leaves e in the logits of `head`, with 0 at the targets and in the rows that fill up the last chunk."""
    count, weight = len(targets_C), head.weight_VD
    filled = rounded(count, ROUND_TO)
    with torch.autocast(weight.device.type, enabled=False):
        states = functional.pad(hidden_CD.to(weight.dtype), (0, 0, 0, filled - count))
        torch.mm(states, weight.t(), out=head.logits_CV[:filled])
    parts = [
        _shares(head, head.logits_CV[start : min(start + ROWS, count)], targets_C[start : start + ROWS])
        for start in range(0, count, ROWS)
    ]
    head.logits_CV[count:filled] = 0
    return _MatrixChunk(*(torch.cat(one) for one in zip(*parts, strict=True)))


def _shares(head: MatrixHead, logits_RV: torch.Tensor, targets_R: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The fields of `_MatrixChunk` for a few rows, whose logits become e."""
    targets_R1 = targets_R[:, None]
    scores = logits_RV if head.rows_RV is None else head.rows_RV[: len(targets_R)].copy_(logits_RV)
    highest, of_target = scores.amax(-1, keepdim=True), scores.gather(1, targets_R1)
    hits = most_likely(scores, highest, targets_R)
    scores.sub_(highest).exp_()
    share = scores.gather(1, targets_R1)
    scores.scatter_(1, targets_R1, 0.0)
    others = scores.sum(-1, keepdim=True)
    whole = others + share
    if head.rows_RV is not None:
        logits_RV.copy_(scores)
    return (whole.log() + highest - of_target).flatten(), hits, others, whole


def most_likely(scores_RV: torch.Tensor, highest_R1: torch.Tensor, targets_R: torch.Tensor) -> torch.Tensor:
    """Whether each target is the most likely token (bool, R), `highest_R1` being the largest of each row of scores."""
    # argmax is slow, and asked only where it can matter: of several highest logits the first is the most likely token.
    hits = (scores_RV.gather(1, targets_R[:, None]) == highest_R1).flatten()
    reached = hits.nonzero().flatten()
    hits[reached] = scores_RV.index_select(0, reached).argmax(-1) == targets_R[reached]
    return hits


def _states_gradient(head: MatrixHead, chunk: _MatrixChunk, targets_C: torch.Tensor) -> torch.Tensor:
    """(e W - others W[target]) / whole: what is left of a likely target's share is not the difference of two large numbers."""
    count, weight = len(targets_C), head.weight_VD
    of_others = torch.mm(head.logits_CV[: rounded(count, ROUND_TO)], weight)[:count].to(head.dtype)
    return (of_others - chunk.others_C1 * weight.index_select(0, targets_C)) / chunk.whole_C1


def _add_matrix_gradient(
    grad_VD: torch.Tensor, head: MatrixHead, chunk: _MatrixChunk, hidden_CD: torch.Tensor, targets_C: torch.Tensor
) -> None:
    """e^T h - others h at the row of the target, with h = state / whole."""
    count, weight = len(targets_C), head.weight_VD
    shares_CD = hidden_CD.to(head.dtype) / chunk.whole_C1
    filled = rounded(count, ROUND_TO)
    states = functional.pad(shares_CD.to(weight.dtype), (0, 0, 0, filled - count))
    of_others = torch.mm(head.logits_CV[:filled].t(), states)
    for rows, more in zip(grad_VD.split(_GRAD_ROWS), of_others.split(_GRAD_ROWS), strict=True):
        rows += more.to(rows.dtype)
    grad_VD.index_add_(0, targets_C, shares_CD * chunk.others_C1, alpha=-1)

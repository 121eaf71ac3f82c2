"""Loss towards a teacher's distribution at every target, beside the cross-entropy.

objective = alpha T^2 KL(teacher || student), both at temperature T, + (1 - alpha) cross-entropy; summed over targets. With
respect to the student's logits its gradient is alpha T (q_T - p_T) + (1 - alpha) (q - target), taken in the forward pass a few
rows at a time, chunk by chunk, so that full logits of a batch are never held.
Legend: N targets, D width of the hidden states, V vocabulary, R targets that are worked on at a time, K words that are kept.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from paretune.data.trees import Batch
from paretune.model.loss import CHUNK_LOGITS, ROUND_TO, ROWS, Head, most_likely


@dataclass(frozen=True, eq=False)
class TopWords:
    """A teacher's distribution over its likeliest words of each target, and all others as one."""

    log_p_RK: torch.Tensor
    words_RK: torch.Tensor
    """int64."""
    log_rest_R1: torch.Tensor
    """-inf where there are no others."""


ReadTeacher = Callable[[np.ndarray], torch.Tensor | TopWords]
"""Rows of a cache to log-probabilities [R, V, or the first of V], or to the likeliest words; float32."""


@dataclass(frozen=True)
class SoftLoss:
    """What a student is trained on beside the text."""

    read: ReadTeacher
    alpha: float
    """Share of the divergence."""
    temperature: float

    def of(self, head: Head) -> Callable[[torch.Tensor, Batch], tuple[torch.Tensor, ...]]:
        """From hidden states [N, D] and their batch to the objective (scalar with gradient), the sum of -log p of the targets,
        and how many are the most likely token; gradients reach whatever of the head is trained."""
        return lambda hidden_ND, batch: _Objective.apply(hidden_ND, batch.targets_N, batch.rows_N, head, self, *head.trained)


class _Objective(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        targets_N: torch.Tensor,
        rows_N: np.ndarray,
        head: Head,
        loss: SoftLoss,
        *trained: Any,
    ) -> Any:
        device = hidden_ND.device
        sums, grads = torch.zeros(3, dtype=torch.float64, device=device), [torch.zeros_like(p) for p in trained]
        hidden_grads = []
        size = max(ROUND_TO, CHUNK_LOGITS // head.num_words // ROUND_TO * ROUND_TO)
        for start in range(0, len(targets_N), size):
            targets_C, rows_C = targets_N[start : start + size], rows_N[start : start + size]
            count = len(targets_C)
            with torch.enable_grad():
                leaf = functional.pad(hidden_ND[start : start + size].detach(), (0, 0, 0, -count % ROUND_TO)).requires_grad_()
                logits = head(leaf)
            grad_logits = torch.zeros_like(logits)
            for first in range(0, count, at_a_time := ROWS if device.type == "cpu" else size):
                part = slice(first, min(first + at_a_time, count))
                sums += loss_and_gradient(logits.detach()[part], targets_C[part], loss, rows_C[part], grad_logits[part])
            hidden_grad, *chunk_grads = torch.autograd.grad(logits, [leaf, *trained], grad_logits)
            hidden_grads.append(hidden_grad[:count])
            for grad, chunk_grad in zip(grads, chunk_grads, strict=True):
                grad += chunk_grad
        ctx.save_for_backward(torch.cat(hidden_grads), *grads)
        objective, nats, hits = (sums[0].to(hidden_ND.dtype), sums[1], sums[2])
        ctx.mark_non_differentiable(nats, hits)
        return objective, nats, hits

    @staticmethod
    def backward(ctx: Any, grad_objective: torch.Tensor, *_: torch.Tensor) -> Any:
        hidden_grad, *grads = (grad * grad_objective for grad in ctx.saved_tensors)
        return hidden_grad, None, None, None, None, *grads


def loss_and_gradient(
    logits_RV: torch.Tensor, targets_R: torch.Tensor, loss: SoftLoss, rows_R: np.ndarray, grad_RV: torch.Tensor
) -> torch.Tensor:
    """Sums over a few targets of objective, -log p and hits (float64, 3); the gradient is written into `grad_RV`."""
    scores = logits_RV if logits_RV.dtype == torch.float64 else logits_RV.float()
    targets_R1, alpha, heat = targets_R[:, None], loss.alpha, loss.temperature
    student, teacher = _exponentials(scores), loss.read(rows_R)
    nats = (student.log_total_R1 - scores.gather(1, targets_R1)).sum()
    hits = most_likely(scores, student.highest_R1, targets_R).sum()
    if isinstance(teacher, TopWords):
        divergence, grad = _of_top(scores, student, teacher, alpha)
    else:
        divergence, grad = _of_all(scores, student, teacher, alpha, heat)
    grad.scatter_add_(1, targets_R1, grad.new_full(targets_R1.shape, alpha - 1))
    grad_RV.copy_(grad)
    objective = alpha * heat**2 * divergence.double() + (1 - alpha) * nats.double()
    return torch.stack([objective, nats.double(), hits.double()])


@dataclass(frozen=True, eq=False)
class _Exponentials:
    """e = exp(score - highest) of every word; their sum; and the logarithm of the sum of exp(score)."""

    e_RV: torch.Tensor
    highest_R1: torch.Tensor
    total_R1: torch.Tensor
    log_total_R1: torch.Tensor


def _exponentials(scores_RV: torch.Tensor) -> _Exponentials:
    highest = scores_RV.amax(-1, keepdim=True)
    e = (scores_RV - highest).exp_()
    total = e.sum(-1, keepdim=True)
    return _Exponentials(e, highest, total, highest + total.log())


def _of_all(
    scores_RV: torch.Tensor, student: _Exponentials, log_p_RW: torch.Tensor, alpha: float, heat: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of p (log p - log q) at temperature `heat`, and alpha heat (q_heat - p) + (1 - alpha) q, in the place of `student`.

    The words beyond the teacher's have p = 0.
    """
    if heat != 1:
        scores_RV, log_p_RW = scores_RV / heat, log_p_RW / heat
    hot = student if heat == 1 else _exponentials(scores_RV)
    log_p_RW = log_p_RW.to(scores_RV)
    p, num_words = log_p_RW.exp(), log_p_RW.shape[1]
    total = p.sum(-1, keepdim=True)  # which rounding, or the temperature, has moved away from 1
    p.mul_(1 / total)
    divergence = (
        torch.vdot(p.flatten(), (log_p_RW - scores_RV[:, :num_words]).flatten()) + (hot.log_total_R1 - total.log()).sum()
    )
    grad = hot.e_RV.mul_(1 / hot.total_R1)
    if heat == 1:
        grad[:, :num_words].sub_(p, alpha=alpha)
        return divergence, grad
    grad[:, :num_words].sub_(p)
    return divergence, student.e_RV.mul_((1 - alpha) / student.total_R1).add_(grad, alpha=alpha * heat)


def _of_top(
    scores_RV: torch.Tensor, student: _Exponentials, teacher: TopWords, alpha: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same over the likeliest words and all others as one word: of these the student's shares among themselves stay."""
    words, e = teacher.words_RK, student.e_RV
    log_p = torch.cat([teacher.log_p_RK, teacher.log_rest_R1], -1).to(scores_RV).log_softmax(-1)
    p = log_p.exp()
    q_words = e.gather(1, words) / student.total_R1
    # Summed without the words, so that what is left beside likely ones is not the difference of two large numbers.
    rest = e.scatter_(1, words, 0.0).sum(-1, keepdim=True).clamp_min(torch.finfo(e.dtype).tiny)
    log_q = torch.cat([scores_RV.gather(1, words) - student.log_total_R1, (rest / student.total_R1).log()], -1)
    divergence = torch.where(p > 0, p * (log_p - log_q), 0.0).sum()
    grad = e.mul_(1 / student.total_R1 - alpha * p[:, -1:] / rest)
    return divergence, grad.scatter_(1, words, q_words - alpha * p[:, :-1])

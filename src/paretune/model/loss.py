"""Loss at target positions: LM head and cross-entropy in chunks, so that full logits are never held.

Legend: N targets, D width of the hidden states, C targets of one chunk, V vocabulary.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional

CHUNK = 1024
ROUND_TO = 256
"""The last chunk is filled up to a multiple of this: see `paretune.data.trees.ROUND_TO`."""
Logits = Callable[[torch.Tensor], torch.Tensor]


def token_nats(logits_of: Logits, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """-log p of each target (float32, N) and whether it is the most likely token (bool, N); without gradient."""
    nats, correct = [], []
    with torch.no_grad():
        for hidden_CD, targets_C in _chunks(hidden_ND, targets_N):
            logits_CV = logits_of(hidden_CD).float()
            nats.append(functional.cross_entropy(logits_CV, targets_C, reduction="none"))
            correct.append(logits_CV.argmax(-1) == targets_C)
    return torch.cat(nats)[: len(targets_N)], torch.cat(correct)[: len(targets_N)]


def summed_loss(
    logits_of: Logits, parameters: list[torch.nn.Parameter], hidden_ND: torch.Tensor, targets_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of -log p over the targets (float32 scalar with gradient), and how many are the most likely token.

    `parameters` are the trained ones inside `logits_of`; gradients reach them and `hidden_ND`.
    """
    return _HeadLoss.apply(hidden_ND, targets_N, logits_of, *parameters)


def _chunks(hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Chunks of states and targets; the last is filled up with targets that cross-entropy ignores."""
    for hidden_CD, targets_C in zip(hidden_ND.split(CHUNK), targets_N.split(CHUNK), strict=True):
        missing = -len(targets_C) % ROUND_TO
        yield functional.pad(hidden_CD, (0, 0, 0, missing)), functional.pad(targets_C, (0, missing), value=_IGNORED)


_IGNORED = -100


class _HeadLoss(torch.autograd.Function):
    """Gradients are taken chunk by chunk in the forward pass, where the chunk's logits are at hand; nothing is recomputed."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: torch.Tensor, targets_N: torch.Tensor, logits_of: Logits, *parameters: Any) -> Any:
        total = torch.zeros((), device=hidden_ND.device)
        correct = torch.zeros((), dtype=torch.long, device=hidden_ND.device)
        hidden_grads, grads = [], [torch.zeros_like(p) for p in parameters]
        for chunk_CD, targets_C in _chunks(hidden_ND, targets_N):
            with torch.enable_grad():
                leaf_CD = chunk_CD.detach().requires_grad_()
                logits_CV = logits_of(leaf_CD).float()
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

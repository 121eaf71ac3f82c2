"""The loss towards a teacher against plain float64: divergence by torch's own `kl_div`, gradients by autograd."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from paretune.data.trees import Batch
from paretune.model import soft_loss
from paretune.model.loss import Head
from paretune.model.soft_loss import SoftLoss, TopWords

N, D, V = 150, 16, 300


def batch(targets: torch.Tensor) -> Batch:
    empty = torch.zeros(0)
    return Batch(empty, empty, empty, targets, (len(targets),), rows_N=np.arange(len(targets)))


def reference(logits_NV, targets_N, teacher_NV, alpha, temperature) -> torch.Tensor:
    """As generalized Jensen-Shannon divergences are written with a share of 0, times T^2, beside the cross-entropy."""
    log_q, log_p = ((each / temperature).log_softmax(-1) for each in (logits_NV, teacher_NV))
    divergence = functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return alpha * temperature**2 * divergence + (1 - alpha) * functional.cross_entropy(logits_NV, targets_N, reduction="sum")


def top(teacher_NV: torch.Tensor, count: int) -> TopWords:
    log_p = teacher_NV.log_softmax(-1)
    kept, words = log_p.topk(count)
    return TopWords(kept, words, log_p.scatter(1, words, -torch.inf).logsumexp(-1, keepdim=True))


def made(teacher_words: int = V):
    torch.manual_seed(0)
    head = Head(nn.Linear(D, V, bias=False).double(), num_words=V, cap=3.0)
    hidden = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    return head, hidden, torch.randint(0, V, (N,)), 3 * torch.randn(N, teacher_words, dtype=torch.float64)


def measured(head, hidden, targets, read, alpha, temperature) -> list[torch.Tensor]:
    loss, nats, hits = SoftLoss(read, alpha, temperature).of(head)(hidden, batch(targets))
    logits = head(hidden)
    assert nats.item() == pytest.approx(functional.cross_entropy(logits, targets, reduction="sum").item())
    assert int(hits) == int((logits.argmax(-1) == targets).sum())
    return [loss, *torch.autograd.grad(2 * loss, [hidden, *head.trained])]


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(("alpha", "temperature"), [(1.0, 1.0), (0.5, 1.0), (0.3, 2.5)])
def test_loss_and_gradients_are_those_of_the_full_logits(alpha, temperature, trained, monkeypatch):
    monkeypatch.setattr(soft_loss, "CHUNK_LOGITS", 64 * V)  # three chunks
    head, hidden, targets, teacher = made()
    head.module.requires_grad_(trained)
    found = measured(head, hidden, targets, lambda rows: teacher[rows].log_softmax(-1), alpha, temperature)
    expected = reference(head(hidden), targets, teacher, alpha, temperature)
    for one, other in zip(found, [expected, *torch.autograd.grad(2 * expected, [hidden, *head.trained])], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_a_teacher_without_the_padding_of_the_students_vocabulary_gives_it_no_probability():
    head, hidden, targets, teacher = made(V - 20)
    found = measured(head, hidden, targets, lambda rows: teacher[rows].log_softmax(-1), 0.5, 1.0)
    padded = functional.pad(teacher, (0, 20), value=-1e4)
    expected = reference(head(hidden), targets, padded, 0.5, 1.0)
    for one, other in zip(found, [expected, *torch.autograd.grad(2 * expected, [hidden, *head.trained])], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("count", [1, 7, V])
def test_the_likeliest_words_and_the_rest_as_one_are_a_distribution(count):
    head, hidden, targets, teacher = made()
    kept = top(teacher, count)
    read = lambda rows: TopWords(kept.log_p_RK[rows], kept.words_RK[rows], kept.log_rest_R1[rows])  # noqa: E731
    found = measured(head, hidden, targets, read, 0.7, 1.0)
    log_q = head(hidden).log_softmax(-1)
    of_words = log_q.gather(1, kept.words_RK)
    divergence = (kept.log_p_RK.exp() * (kept.log_p_RK - of_words)).sum()
    if count < V:
        mask = torch.zeros_like(log_q).scatter(1, kept.words_RK, 1.0)
        log_rest = (log_q.exp() * (1 - mask)).sum(-1, keepdim=True).log()
        divergence = divergence + (kept.log_rest_R1.exp() * (kept.log_rest_R1 - log_rest)).sum()
    expected = 0.7 * divergence + 0.3 * functional.cross_entropy(head(hidden), targets, reduction="sum")
    for one, other in zip(found, [expected, *torch.autograd.grad(2 * expected, [hidden, *head.trained])], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
    whole = reference(head(hidden), targets, teacher, 0.7, 1.0)
    assert found[0] <= whole + 1e-9  # words taken as one are told apart no better
    assert count < V or found[0].item() == pytest.approx(whole.item())

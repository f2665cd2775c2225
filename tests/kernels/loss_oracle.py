"""What the loss tests hold the implementations against: the textbook formula in float64, differentiated by torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def exact(
    student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float, alpha: float, reduction: str = "batchmean"
) -> tuple[Tensor, Tensor]:
    """Loss and gradient of finite logits; computed on the inputs as rounded, in float64."""
    s = student.detach().double().requires_grad_()
    log_q = F.log_softmax(s / temperature, dim=1)
    log_p = F.log_softmax(teacher.detach().double() / temperature, dim=1)
    hard = F.cross_entropy(s, labels.long(), reduction="mean" if reduction in ("mean", "batchmean") else reduction)
    soft = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=1)
    if reduction != "none":
        soft = soft.sum() / {"batchmean": len(s), "mean": s.numel(), "sum": 1}[reduction]
    loss = (1 - alpha) * hard + alpha * temperature**2 * soft
    (gradient,) = torch.autograd.grad(loss.sum(), s)
    return loss.detach(), gradient


def value_and_gradient(loss_of, student: Tensor) -> tuple[Tensor, Tensor]:
    """``loss_of(student)`` and the gradient of its sum, on a fresh leaf."""
    leaf = student.detach().clone().requires_grad_()
    loss = loss_of(leaf)
    loss.sum().backward()
    return loss.detach(), leaf.grad


def batch(
    rows: int, classes: int, *, seed: int = 0, spread: float = 1.0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Random student logits, teacher logits and labels."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (spread * torch.randn(2, rows, classes, generator=generator)).to(dtype)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    return student, teacher, labels

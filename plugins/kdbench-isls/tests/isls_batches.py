"""What the tests of the losses share: batches of random logits, and the target that a loss's gradient gives away."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.training import Objective
from kdbench.training.batch import Batch

__all__ = ["batch_of", "gradient_of", "label_of", "make", "on_label", "target_of", "value_of"]


def make(
    rows: int = 16, classes: int = 10, *, seed: int = 0, step: int = 11, scale: float = 2.0
) -> tuple[Tensor, Batch]:
    """Student logits and a batch with a teacher's, float64; ``step`` is the batch's own seed."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (rows,), generator=generator)
    return student, batch_of(labels, teacher, step=step)


def batch_of(labels: Tensor, teacher: Tensor | None = None, *, step: int = 11) -> Batch:
    rows = len(labels)
    inputs = torch.zeros(rows, 1, 1, 8)
    return Batch(inputs, labels, torch.arange(rows), torch.empty(0) if teacher is None else teacher, 0, step)


def value_of(objective: Objective, logits: Tensor, batch: Batch) -> float:
    return objective.loss(logits, batch).item()


def gradient_of(objective: Objective, logits: Tensor, batch: Batch) -> Tensor:
    """Of the loss in the student's logits, ``[N, C]``."""
    leaf = logits.detach().clone().requires_grad_()
    return torch.autograd.grad(objective.loss(leaf, batch), leaf)[0]


def target_of(objective: Objective, logits: Tensor, batch: Batch) -> Tensor:
    """The target of every row, ``[N, C]``: a cross-entropy's gradient is ``(p - target) / N``."""
    return logits.softmax(1) - len(logits) * gradient_of(objective, logits, batch)


def label_of(batch: Batch, classes: int) -> Tensor:
    """One-hot labels ``[N, C]``, float64."""
    return torch.nn.functional.one_hot(batch.labels, classes).double()


def on_label(values: Tensor, batch: Batch) -> Tensor:
    """The entry of the label, ``[N]``."""
    return values.gather(1, batch.labels[:, None])[:, 0]

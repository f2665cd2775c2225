"""Training objectives: what a student's logits are held against. The loss itself is in :mod:`kdbench.losses`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from kdbench.component import Component

if TYPE_CHECKING:
    from torch import Tensor

    from kdbench.training.batch import Batch

__all__ = ["CrossEntropy", "Distillation", "Objective"]


class Objective(Component, frozen=True):
    """A loss over one batch. Subclasses implement :meth:`loss`; import torch only inside it."""

    @property
    def label(self) -> str:
        """What tells it from others of its kind, in a stage's label."""
        return ""

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Scalar loss of the student's ``logits`` ``[N, C]`` on ``batch``."""
        raise NotImplementedError


class CrossEntropy(Objective, frozen=True):
    """Plain training on the labels."""

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        from kdbench.losses import cross_entropy

        return cross_entropy(logits, batch.labels)


class Distillation(Objective, frozen=True):
    """``(1 - alpha) CE(s, y) + alpha T^2 KL(softmax(t/T) || softmax(s/T))`` (Hinton, Vinyals, Dean 2015).

    ``reduction`` is ``batchmean`` (the true KL) or ``mean`` (torch's KLDivLoss default, which divides the KL term by
    the class count as well).
    """

    temperature: float
    alpha: float
    reduction: Literal["batchmean", "mean"] = "batchmean"

    @property
    def label(self) -> str:
        return f" (T {self.temperature:g}, alpha {self.alpha:g})"

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        from kdbench.losses import distillation_loss

        return distillation_loss(
            logits,
            batch.teacher_logits,
            batch.labels,
            temperature=self.temperature,
            alpha=self.alpha,
            reduction=self.reduction,
        )

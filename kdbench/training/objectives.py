"""Training objectives: what a student's logits are held against. The loss itself is in :mod:`kdbench.losses`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from kdbench.component import Component
from kdbench.data.base import HIDDEN

if TYPE_CHECKING:
    from torch import Tensor

    from kdbench.training.batch import Batch
    from kdbench.training.followers import Follower, Fresh

__all__ = [
    "CrossEntropy",
    "Distillation",
    "EnsembleDistillation",
    "LabelSmoothing",
    "Objective",
    "ObjectiveInfo",
    "SmoothedDistillation",
]


class Objective(Component, frozen=True):
    """A loss over one batch. Subclasses implement :meth:`loss` and :meth:`reference`; import torch only inside them."""

    @property
    def label(self) -> str:
        """What tells it from others of its kind, in a stage's label."""
        return ""

    @property
    def several_teachers(self) -> bool:
        """Whether it takes the logits of several teachers ``[M, N, C]``; most formulas know one ``[N, C]``."""
        return False

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Scalar loss of the student's ``logits`` ``[N, C]`` on ``batch``."""
        raise NotImplementedError

    def reference(self, logits: Tensor, batch: Batch) -> Tensor:
        """The same loss by the formula, in plain torch operations and nothing else.

        Training never calls it. The conformance tests evaluate it in float64 and hold :meth:`loss` against it, value
        and gradient.
        """
        raise NotImplementedError

    def observe(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Scalars that say what a step was trained on, for instance the mean target of the label; by default none.

        Training calls it beside :meth:`loss`, without a graph. Means over each epoch become curves
        ``objective.NAME``, and their means over the run metrics.
        """
        return {}

    @property
    def forwards(self) -> float:
        """Forward passes of the student's network that each example costs beside its own: for the price of a plan."""
        return 0.0

    def follower(self, fresh: Fresh) -> Follower | None:
        """A network that trains along, whose logits ``loss`` finds in ``batch.teacher_logits``; by default none.

        Parameters
        ----------
        fresh : builds the student's network anew, with an initialisation of its own.
        """
        return None


class ObjectiveInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An objective as plugins publish it (hook ``kdbench_objectives``), for any study to build by its id.

    Parameters
    ----------
    id : the name that ``lab.objective`` takes.
    title : what it is, in a line.
    source : where its formula is published.
    create : import path ``module:Class`` of the :class:`Objective`.
    example : arguments with which the conformance tests build one.
    """

    id: str
    title: str
    source: str
    create: str
    example: dict[str, Any] = {}


class CrossEntropy(Objective, frozen=True):
    """Plain training on the labels."""

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        from kdbench.losses import cross_entropy

        return cross_entropy(logits, batch.labels)

    def reference(self, logits: Tensor, batch: Batch) -> Tensor:
        from torch.nn import functional

        return functional.cross_entropy(logits, batch.labels)


class LabelSmoothing(Objective, frozen=True):
    """Cross-entropy with the labels smoothed by ``epsilon`` (Szegedy et al. 2016), in one of two conventions.

    ``over="others"`` leaves ``1 - epsilon`` on the label and spreads ``epsilon`` evenly over the other classes;
    ``over="all"``, as ``torch.nn.functional.cross_entropy`` does, spreads it over all of them. The second by
    ``epsilon`` is the first by ``epsilon (C - 1) / C``.
    """

    epsilon: float
    over: Literal["others", "all"]

    @property
    def label(self) -> str:
        return f" (smoothed by {self.epsilon:g} over {self.over})"

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        from kdbench.losses import soft_label_cross_entropy

        return soft_label_cross_entropy(logits, batch.labels, self.label_share(logits.shape[1]))

    def reference(self, logits: Tensor, batch: Batch) -> Tensor:
        from torch.nn import functional

        labelled = batch.labels != HIDDEN
        log_p = functional.log_softmax(logits[labelled], dim=1)
        label, classes = functional.nll_loss(log_p, batch.labels[labelled]), logits.shape[1]
        if self.over == "all":
            return (1 - self.epsilon) * label - self.epsilon * log_p.mean(1).mean()
        others = -(log_p.sum(1).mean() + label) / (classes - 1)
        return (1 - self.epsilon) * label + self.epsilon * others

    def observe(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"target": logits.new_tensor(self.label_share(logits.shape[1]))}

    def label_share(self, classes: int) -> float:
        """The target's probability of the label."""
        return 1 - self.epsilon * ((classes - 1) / classes if self.over == "all" else 1)


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

    def reference(self, logits: Tensor, batch: Batch) -> Tensor:
        from torch.nn import functional

        student = functional.log_softmax(logits / self.temperature, dim=1)
        teacher = functional.log_softmax(batch.teacher_logits.detach() / self.temperature, dim=1)
        divergence = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
        if self.reduction == "mean":
            divergence = divergence / logits.shape[1]
        labels = functional.cross_entropy(logits, batch.labels)
        return (1 - self.alpha) * labels + self.alpha * self.temperature**2 * divergence


class EnsembleDistillation(Objective, frozen=True):
    """``(1 - alpha) CE(s, y) + alpha T^2 D`` for M teachers of equal weight.

    ``combine="probabilities"`` takes for ``D`` the KL from the mean of the teachers' ``softmax(t/T)``,
    ``combine="losses"`` the mean of the teachers' KLs; their gradients are equal. With one teacher either is
    :class:`Distillation`.
    """

    temperature: float
    alpha: float
    combine: Literal["probabilities", "losses"]

    @property
    def label(self) -> str:
        return f" (T {self.temperature:g}, alpha {self.alpha:g}, mean of {self.combine})"

    @property
    def several_teachers(self) -> bool:
        return True

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        from kdbench.losses import ensemble_distillation_loss

        return ensemble_distillation_loss(
            logits,
            list(_of_each_teacher(batch)),
            batch.labels,
            temperature=self.temperature,
            alpha=self.alpha,
            combine=self.combine,
        )

    def reference(self, logits: Tensor, batch: Batch) -> Tensor:
        from torch.nn import functional

        student = functional.log_softmax(logits / self.temperature, dim=1)
        teachers = functional.log_softmax(_of_each_teacher(batch).detach() / self.temperature, dim=2)
        if self.combine == "probabilities":
            teachers = teachers.exp().mean(0, keepdim=True).log()
        apart = [functional.kl_div(student, each, reduction="batchmean", log_target=True) for each in teachers]
        divergence = sum(apart[1:], apart[0]) / len(apart)
        labels = functional.cross_entropy(logits, batch.labels)
        return (1 - self.alpha) * labels + self.alpha * self.temperature**2 * divergence


class SmoothedDistillation(Objective, frozen=True):
    """``(1 - alpha) CE(s, smoothed y) + alpha T^2 KL(softmax(t/T) || softmax(s/T))``: both at once.

    ``epsilon`` and ``over`` as for :class:`LabelSmoothing`.
    """

    temperature: float
    alpha: float
    epsilon: float
    over: Literal["others", "all"]

    @property
    def label(self) -> str:
        return f" (T {self.temperature:g}, alpha {self.alpha:g}, smoothed by {self.epsilon:g} over {self.over})"

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        from kdbench.losses import kl

        divergence = kl(logits, batch.teacher_logits, temperature=self.temperature)
        return (1 - self.alpha) * self._smoothing.loss(logits, batch) + self.alpha * self.temperature**2 * divergence

    def reference(self, logits: Tensor, batch: Batch) -> Tensor:
        from torch.nn import functional

        student = functional.log_softmax(logits / self.temperature, dim=1)
        teacher = functional.log_softmax(batch.teacher_logits.detach() / self.temperature, dim=1)
        divergence = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
        labels = self._smoothing.reference(logits, batch)
        return (1 - self.alpha) * labels + self.alpha * self.temperature**2 * divergence

    @property
    def _smoothing(self) -> LabelSmoothing:
        return LabelSmoothing(epsilon=self.epsilon, over=self.over)


def _of_each_teacher(batch: Batch) -> Tensor:
    """``[M, n, C]``, also for one teacher."""
    logits = batch.teacher_logits
    return logits if logits.dim() == 3 else logits[None]

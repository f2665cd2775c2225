"""Training objectives: what a student's logits are held against. The loss itself is in :mod:`kdbench.losses`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from kdbench.component import Component

if TYPE_CHECKING:
    from torch import Tensor

    from kdbench.training.batch import Batch
    from kdbench.training.followers import Follower, Fresh

__all__ = ["CrossEntropy", "Distillation", "LabelSmoothing", "Objective", "ObjectiveInfo"]


class Objective(Component, frozen=True):
    """A loss over one batch. Subclasses implement :meth:`loss` and :meth:`reference`; import torch only inside them."""

    @property
    def label(self) -> str:
        """What tells it from others of its kind, in a stage's label."""
        return ""

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

        log_p = functional.log_softmax(logits, dim=1)
        label, classes = functional.nll_loss(log_p, batch.labels), logits.shape[1]
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

"""The modules behind :mod:`kdbench_vidlankd.objectives`; imported only when one is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from kdbench.errors import KdbenchError
from kdbench.losses import cross_entropy
from kdbench_vidlankd import losses, references
from kdbench_vidlankd.losses import unit
from kdbench_vidlankd.memory import Memory, draws
from kdbench_vidlankd.objectives import CRD, NST, Material, NTXent, Regression, SoftLabel

if TYPE_CHECKING:
    from kdbench_vidlankd.vokens import VokenLabels

__all__ = [
    "CRDDistiller",
    "DistillationHead",
    "Distiller",
    "NSTDistiller",
    "NTXentDistiller",
    "RegressionDistiller",
    "SoftLabelDistiller",
    "VokenDistiller",
]


class DistillationHead(nn.Module):
    """Linear, GELU, LayerNorm, Linear, length 1: from a student's states to the teacher's (released).

    Each objective has its own, as wide as the states; fine-tuning and probing go without.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.outer = nn.Linear(hidden, hidden)

    def forward(self, states: Tensor) -> Tensor:
        """States of length 1, ``[..., H]``, of ``[..., H]``."""
        return unit(self.outer(self.norm(nn.functional.gelu(self.inner(states)))))


class Distiller(nn.Module):
    """Base: an objective's loss as a module, with whatever trains or is remembered along."""

    def forward(self, material: Material) -> Tensor:
        """The unweighted loss of a batch, a scalar. Gradients flow to the student and to the module's parameters."""
        raise NotImplementedError

    def reference(self, material: Material) -> Tensor:
        """The same by the formula, in plain torch and loops; it remembers nothing. Tests hold one against the other."""
        raise NotImplementedError


class SoftLabelDistiller(Distiller):
    """See :func:`kdbench_vidlankd.losses.soft_label`."""

    def __init__(self, objective: SoftLabel) -> None:
        super().__init__()
        self.temperature = objective.temperature

    def forward(self, material: Material) -> Tensor:
        student, teacher = material.student_logits(), material.teacher_logits()
        return losses.soft_label(student, teacher, temperature=self.temperature)

    def reference(self, material: Material) -> Tensor:
        return references.soft_label_by_sum(material.student_logits(), material.teacher_logits(), self.temperature)


class _StateDistiller(Distiller):
    """Base of those on hidden states: the student's through a head or not, all of length 1."""

    def __init__(self, hidden: int, *, head: bool) -> None:
        super().__init__()
        self.head = DistillationHead(hidden) if head else None

    def states(self, material: Material) -> tuple[Tensor, Tensor]:
        """Of student and teacher, ``[B, L, H]`` each, of length 1."""
        student = unit(material.student) if self.head is None else self.head(material.student)
        return student, unit(material.teacher)

    def states_by_formula(self, material: Material) -> tuple[Tensor, Tensor]:
        student, teacher = (states / states.norm(dim=-1, keepdim=True) for states in material[:2])
        if self.head is not None:
            student = references.head_by_formula(self.head, material.student)
        return student, teacher


class RegressionDistiller(_StateDistiller):
    """See :func:`kdbench_vidlankd.losses.regression`."""

    def __init__(self, objective: Regression, hidden: int) -> None:
        super().__init__(hidden, head=objective.head)

    def forward(self, material: Material) -> Tensor:
        return losses.regression(*self.states(material), mask=material.attention)

    def reference(self, material: Material) -> Tensor:
        return references.regression_by_cosines(*self.states_by_formula(material), material.attention)


class NSTDistiller(_StateDistiller):
    """See :func:`kdbench_vidlankd.losses.nst`; with the constant term, so that 0 is agreement."""

    def __init__(self, objective: NST, hidden: int) -> None:
        super().__init__(hidden, head=objective.head)
        self.divide = objective.divide

    def forward(self, material: Material) -> Tensor:
        return losses.nst(*self.states(material), divide=self.divide, mask=material.attention)

    def reference(self, material: Material) -> Tensor:
        per_block = references.nst_by_kernels(*self.states_by_formula(material), material.attention)
        return per_block.mean() if self.divide == "batch" else per_block.sum() / material.attention.shape[1]


class NTXentDistiller(_StateDistiller):
    """See :func:`kdbench_vidlankd.losses.nt_xent`."""

    def __init__(self, objective: NTXent, hidden: int) -> None:
        super().__init__(hidden, head=objective.head)
        self.temperature, self.released = objective.temperature, objective.released

    def forward(self, material: Material) -> Tensor:
        return losses.nt_xent(
            *self.states(material), temperature=self.temperature, released=self.released, mask=material.attention
        )

    def reference(self, material: Material) -> Tensor:
        states = self.states_by_formula(material)
        loss = references.contrast_by_pairs(*states, self.temperature, material.attention)
        return loss / (2 * len(states[0])) if self.released else loss


class CRDDistiller(_StateDistiller):
    """CRD: each state of the student against a memory of the teacher's, and with ``teacher_head`` the reverse as well.

    The loss of a step sees the memories as the steps before have left them; then, in training mode, the slots of the
    batch move toward its states. The released code's history has a fault here (its buffer of numbers lost an entry and
    kept positions): from the second step on it reads a normaliser as momentum, so slots move away from their states,
    and it estimates one normaliser anew in each step. Here the momentum is a constant and Z is fixed at the first step.
    """

    def __init__(self, objective: CRD, hidden: int, blocks: int, length: int) -> None:
        super().__init__(hidden, head=objective.head)
        self.temperature, self.negatives = objective.temperature, objective.negatives
        places = length if objective.slots == "token" else 1
        self.of_teacher = Memory(blocks, places, hidden, objective.momentum)
        self.teacher_head: nn.Linear | None = None
        self.of_student: Memory | None = None
        if objective.teacher_head:
            self.teacher_head = nn.Linear(hidden, hidden)
            self.of_student = Memory(blocks, places, hidden, objective.momentum)

    def forward(self, material: Material) -> Tensor:
        student, teacher = self.states(material)
        seen = material.indices, self.drawn(material), material.attention, self.temperature
        loss: Tensor = self.of_teacher(student, *seen)
        if self.of_student is not None:
            loss = loss + self.of_student(teacher, *seen)
        if self.training:
            self.of_teacher.update(teacher, material.indices, material.attention)
            if self.of_student is not None:
                self.of_student.update(student, material.indices, material.attention)
        return loss

    def reference(self, material: Material) -> Tensor:
        student, teacher = self.states_by_formula(material)
        loss = self._direction_by_formula(student, self.of_teacher, material)
        return (
            loss if self.of_student is None else loss + self._direction_by_formula(teacher, self.of_student, material)
        )

    def states(self, material: Material) -> tuple[Tensor, Tensor]:
        student, teacher = super().states(material)
        return student, teacher if self.teacher_head is None else unit(self.teacher_head(material.teacher))

    def states_by_formula(self, material: Material) -> tuple[Tensor, Tensor]:
        student, teacher = super().states_by_formula(material)
        if self.teacher_head is not None:
            teacher = material.teacher @ self.teacher_head.weight.T + self.teacher_head.bias
            teacher = teacher / teacher.norm(dim=-1, keepdim=True)
        return student, teacher

    def drawn(self, material: Material) -> Tensor:
        """The slots that the batch is given as negatives, ``[B, K]``; both directions get the same."""
        blocks, places, _ = self.of_teacher.bank.shape
        return draws(material.seed, material.indices, self.negatives, blocks=blocks, places=places)

    def _direction_by_formula(self, features: Tensor, memory: Memory, material: Material) -> Tensor:
        own = memory.bank[material.indices].expand_as(features)
        noise = memory.bank.flatten(0, 1)[self.drawn(material)]
        z = None if memory.log_z.isnan() else memory.log_z.exp().item()
        return references.noise_contrast_by_formula(
            features, own, noise, z, memory.slots, self.temperature, material.attention
        )


class VokenDistiller(Distiller):
    """A linear classifier over the vokens, on the student's states as they are."""

    def __init__(self, objective: VokenLabels, hidden: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(hidden, objective.count)

    def forward(self, material: Material) -> Tensor:
        states, labels = self._real(material)
        return cross_entropy(self.classifier(states), labels)

    def reference(self, material: Material) -> Tensor:
        states, labels = self._real(material)
        logits = states @ self.classifier.weight.T + self.classifier.bias
        return (logits.logsumexp(1) - logits[range(len(labels)), labels]).mean()

    def _real(self, material: Material) -> tuple[Tensor, Tensor]:
        """States and labels of the real tokens."""
        if material.vokens is None:
            raise KdbenchError("there are no voken labels", where="VokenLabels", cure="give the input 'vokens'")
        return material.student[material.attention], material.vokens[material.attention]

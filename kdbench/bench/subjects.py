"""Contenders with their tensors, ready to be called. Imports torch; load it lazily.

A call is what a training step spends on its loss: forward, backward through autograd, and letting go of the gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdbench.bench.contender import Case, Contender
from kdbench.bench.rivals import Loss
from kdbench.component import load_object

__all__ = ["Copy", "Inputs", "LossSubject", "Tensors", "subject_of"]


class Tensors(NamedTuple):
    """``student`` is a leaf; ``scratch`` is memory of the same size that has been touched before."""

    student: Tensor
    teacher: Tensor
    labels: Tensor
    scratch: Tensor

    @classmethod
    def of(cls, case: Case) -> Tensors:
        """Standard normal logits and uniform labels, the same in every process."""
        generator = torch.Generator(case.device).manual_seed(0)
        shape, dtype = (case.rows, case.classes), getattr(torch, case.dtype)
        student, teacher = (torch.randn(shape, generator=generator, dtype=dtype, device=case.device) for _ in range(2))
        labels = torch.randint(case.classes, shape[:1], generator=generator, device=case.device)
        return cls(student.requires_grad_(), teacher, labels, torch.zeros_like(teacher))


class Inputs:
    """The tensors of a case, and how some rows of them were before any contender had them."""

    def __init__(self, case: Case, tensors: Tensors, rows: Tensor) -> None:
        self.case = case
        self.tensors = tensors
        self.rows = rows
        self.before = [tensor[rows] for tensor in self._read_only()]

    def put_right(self) -> str:
        """The name of an input that somebody wrote over, which is then as it was; empty if all are."""
        found = ""
        for name, tensor, before in zip(Tensors._fields, self._read_only(), self.before, strict=False):
            if not tensor[self.rows].equal(before):
                found = name
        if found:
            for tensor, fresh in zip(self._read_only(), Tensors.of(self.case), strict=False):
                tensor.copy_(fresh.detach())
        return found

    def _read_only(self) -> list[Tensor]:
        return [tensor.detach() for tensor in self.tensors[:3]]


class LossSubject:
    """A loss that leaves its student logits alone: they are a leaf, its gradient is kept there and dropped."""

    def __init__(self, loss: Loss, tensors: Tensors) -> None:
        self.loss = loss
        self.tensors = tensors

    def prepare(self) -> None:
        return None

    def call(self) -> None:
        student, teacher, labels, _ = self.tensors
        self.loss(student, teacher, labels).backward()  # type: ignore[no-untyped-call]
        student.grad = None

    def value_and_gradient(self) -> tuple[Tensor, Tensor]:
        """One call whose results are kept."""
        student, teacher, labels, _ = self.tensors
        loss = self.loss(student, teacher, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        gradient, student.grad = student.grad, None
        return loss.detach(), torch.zeros_like(student) if gradient is None else gradient


class _OverwritingSubject(LossSubject):
    """A loss that may write over its student logits: each call gets them anew, in scratch memory."""

    def __init__(self, loss: Loss, tensors: Tensors) -> None:
        super().__init__(loss, tensors)
        self.trigger = torch.zeros((), device=tensors.student.device, requires_grad=True)
        self.box = _Box(tensors.scratch)

    def prepare(self) -> None:
        self.box.logits.copy_(self.tensors.student.detach())
        self.student = _as_output(self.trigger, self.box)

    def call(self) -> None:
        self.loss(self.student, self.tensors.teacher, self.tensors.labels).backward()  # type: ignore[no-untyped-call]
        self.box.gradient = None

    def value_and_gradient(self) -> tuple[Tensor, Tensor]:
        self.prepare()
        loss = self.loss(self.student, self.tensors.teacher, self.tensors.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        gradient, self.box.gradient = self.box.gradient, None
        return loss.detach(), torch.zeros_like(self.tensors.student) if gradient is None else gradient


class Copy:
    """The floor: both logit matrices read and one written, into memory that has been touched before."""

    title = "torch.add(s, t, out=g): 2 reads and 1 write into warm memory"

    def __init__(self, tensors: Tensors) -> None:
        self.student = tensors.student.detach()
        self.teacher = tensors.teacher
        self.out = tensors.scratch

    def prepare(self) -> None:
        return None

    def call(self) -> None:
        torch.add(self.student, self.teacher, out=self.out)


def subject_of(contender: Contender, case: Case, tensors: Tensors) -> LossSubject:
    """Let the contender make its loss."""
    loss: Loss = load_object(contender.make)(case)
    return (_OverwritingSubject if contender.overwrites_student else LossSubject)(loss, tensors)


class _Box:
    """Where the logits of :func:`_as_output` lie, and their gradient arrives."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.gradient: Tensor | None = None


class _Output(torch.autograd.Function):
    """Stands for a network: its output may be overwritten, and the gradient goes no further."""

    @staticmethod
    def forward(ctx: Any, trigger: Tensor, box: _Box) -> Tensor:
        ctx.box = box
        # The same memory, but no view of the box's tensor: autograd forbids writing over some views.
        memory = box.logits.untyped_storage()
        return box.logits.new_empty(0).set_(memory, 0, box.logits.shape, box.logits.stride())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        ctx.box.gradient = gradient
        return None, None


def _as_output(trigger: Tensor, box: _Box) -> Tensor:
    output: Tensor = _Output.apply(trigger, box)  # type: ignore[no-untyped-call]
    return output

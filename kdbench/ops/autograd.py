"""Differentiation over either implementation. Imports torch; import it lazily."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdbench.errors import KdbenchError
from kdbench.ops import implementation, native, reference
from kdbench.ops.spec import LossSpec

__all__ = ["softened_loss"]


def softened_loss(student: Tensor, teacher: Tensor | None, labels: Tensor | None, spec: LossSpec) -> Tensor:
    """The loss that ``spec`` describes, differentiable once with respect to ``student``.

    Tensors must have been checked (:mod:`kdbench.losses` does). Where nobody asks for a gradient, none is computed.
    """
    if torch.is_grad_enabled() and student.requires_grad:
        loss: Tensor = _SoftenedLoss.apply(student, teacher, labels, spec)  # type: ignore[no-untyped-call]
        return loss
    return _compute(student, teacher, labels, spec, want_gradient=False)[0]


def _compute(
    student: Tensor, teacher: Tensor | None, labels: Tensor | None, spec: LossSpec, *, want_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    if native.fits(student, teacher) and implementation() == "cpu":
        return native.loss_and_gradient(student, teacher, labels, spec, want_gradient=want_gradient)
    return reference.loss_and_gradient(student, teacher, labels, spec, want_gradient=want_gradient)


class _SoftenedLoss(torch.autograd.Function):
    """Computes the gradient together with the loss and keeps nothing else."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor | None, labels: Tensor | None, spec: LossSpec) -> Tensor:
        loss, gradient = _compute(student, teacher, labels, spec, want_gradient=True)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        with torch.no_grad():
            result = _scaled(gradient, grad_output)
        if torch.is_grad_enabled():  # create_graph=True: somebody may differentiate again
            result = _OnlyOnce.apply(result.detach().requires_grad_())  # type: ignore[no-untyped-call]
        return result, None, None, None


class _OnlyOnce(torch.autograd.Function):
    """Hands a gradient through and refuses to be differentiated.

    ``once_differentiable`` would let a gradient penalty pass in silence, as a constant, where the loss is the end of
    the graph.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        raise KdbenchError(
            "distillation losses are differentiable once only",
            where="kdbench.losses",
            cure="write the loss in plain torch where second derivatives are needed (a gradient penalty, MAML)",
        )


def _scaled(gradient: Tensor, grad_output: Tensor) -> Tensor:
    """``grad_output * gradient``, for a scalar loss or for ``[N]`` row losses."""
    if grad_output.dim() == 1:
        grad_output = grad_output[:, None]
    elif _last_use(gradient) and grad_output.item() == 1:
        return gradient
    # a half-precision gradient stays so, though its loss is float32
    return (gradient * grad_output).to(gradient.dtype)


def _last_use(gradient: Tensor) -> bool:
    """Whether the saved gradient itself may be given away: the graph is freed after this backward pass.

    With ``retain_graph`` the next pass reads it again, and the caller may have changed what it was given. On a GPU the
    answer is no because reading ``grad_output`` would wait for the device.
    """
    if gradient.device.type != "cpu":
        return False
    keeps = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return keeps is not None and not keeps()

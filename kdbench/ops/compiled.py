"""The loss as one operator, ``kdbench::loss``, for tracers: torch.compile, torch.export, fake tensors, make_fx.

The operator returns loss and gradient; its derivative is the gradient times what comes in. ``kdbench::log_sum_exp``
is the other one. Imports torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdbench.ops.spec import PER_ROW, LossInputs, LossSpec

__all__ = ["log_sum_exp_operator", "loss_operator", "traced_log_sum_exp", "traced_loss"]


def traced_loss(inputs: LossInputs, spec: LossSpec, wants: bool) -> Tensor:
    """The loss as a call of the operator."""
    result: tuple[Tensor, Tensor] = loss_operator(
        inputs.student,
        [teacher.detach() for teacher in inputs.teachers],
        *inputs[2:],
        spec.temperature,
        spec.ce_weight,
        spec.kl_weight,
        spec.flags,
        spec.ignore_index,
        spec.label_share,
        spec.tail,
        list(spec.teacher_weights) or [1.0],  # an empty list would pass for one of tensors
        wants,
    )
    return result[0]


@torch.library.custom_op("kdbench::loss", mutates_args=())
def loss_operator(
    student: Tensor,
    teachers: list[Tensor],
    labels: Tensor | None,
    indices: Tensor | None,
    teacher_lse: Tensor | None,
    row_temperature: Tensor | None,
    row_ce_weight: Tensor | None,
    row_kl_weight: Tensor | None,
    row_label_share: Tensor | None,
    temperature: float,
    ce_weight: float,
    kl_weight: float,
    flags: int,
    ignore_index: int,
    label_share: float,
    tail: int,
    teacher_weights: list[float],
    want_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Loss and gradient; the fields of :class:`LossInputs` and :class:`LossSpec`, flat. No gradient: an empty one."""
    from kdbench.ops.autograd import loss_and_gradient

    if student.dtype == torch.float16:
        # What comes in at backward may be a loss scale, without which a gradient in float16 is mostly 0.
        student, teachers = student.float(), [teacher.float() for teacher in teachers]
    inputs = LossInputs(
        student,
        tuple(teachers),
        labels,
        indices,
        teacher_lse,
        row_temperature,
        row_ce_weight,
        row_kl_weight,
        row_label_share,
    )
    spec = LossSpec(temperature, ce_weight, kl_weight, flags, ignore_index, label_share, tail, tuple(teacher_weights))
    loss, gradient = loss_and_gradient(inputs, spec, want_gradient=want_gradient)
    return loss, student.new_empty(0) if gradient is None else gradient.contiguous()


@loss_operator.register_fake
def _fake(student: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    flags, want_gradient = arguments[11], arguments[-1]
    wide = torch.float64 if student.dtype == torch.float64 else torch.float32
    kept = torch.float32 if student.dtype == torch.float16 else student.dtype
    loss = student.new_empty(student.shape[:1] if flags & PER_ROW else (), dtype=wide)
    gradient = student.new_empty(student.shape if want_gradient else (0,), dtype=kept)
    return loss, gradient


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])
    ctx.dtype, ctx.teachers = inputs[0].dtype, len(inputs[1])


def _backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Any, ...]:
    (gradient,) = ctx.saved_tensors
    factor = grad_loss[:, None] if grad_loss.dim() else grad_loss
    return (gradient * factor).to(ctx.dtype), [None] * ctx.teachers, *[None] * 16


loss_operator.register_autograd(_backward, setup_context=_keep)


def traced_log_sum_exp(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """The log-sum-exp of each row as a call of the operator."""
    rows = temperature if isinstance(temperature, Tensor) else None
    result: Tensor = log_sum_exp_operator(logits, rows, 1.0 if isinstance(temperature, Tensor) else temperature)
    return result


@torch.library.custom_op("kdbench::log_sum_exp", mutates_args=())
def log_sum_exp_operator(logits: Tensor, row_temperature: Tensor | None, temperature: float) -> Tensor:
    """``logsumexp(logits / T)`` of each row, ``[N]`` float64; T is the number, or one a row."""
    from kdbench.ops.autograd import log_sum_exp

    return log_sum_exp(logits, temperature if row_temperature is None else row_temperature)


@log_sum_exp_operator.register_fake
def _fake_log_sum_exp(logits: Tensor, row_temperature: Tensor | None, temperature: float) -> Tensor:
    return logits.new_empty(logits.shape[:1], dtype=torch.float64)

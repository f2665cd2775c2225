r"""Distillation losses, with every weight spelled out.

For student logits ``s``, teacher logits ``t``, labels ``y`` and temperature ``T`` (Hinton et al. 2015, section 2):

    L = (1 - alpha) * CE(s, y) + alpha * T^2 * KL(softmax(t / T) || softmax(s / T))

Temperature and alpha have no default: silent defaults are how two runs of "the same" recipe come to differ.
Gradients flow to the student only. They exist to first order: differentiating them again is an error.

Reductions over N rows of C classes:

============= ============================ ==========================================================================
reduction     cross-entropy                KL
============= ============================ ==========================================================================
``batchmean`` sum / rows not ignored       sum / N: the divergence of the formula
``mean``      sum / rows not ignored       sum / (N C): what ``torch.nn.KLDivLoss`` does by default. C times too small;
                                           much released code trains with it, so it is needed to reproduce that code
``sum``       sum                          sum
``none``      ``[N]`` row losses           ``[N]`` row losses, added to the other term's
============= ============================ ==========================================================================

Edge cases, equal in every implementation: a class that the teacher excludes (logit -inf) contributes 0; one that only
the student excludes makes the loss infinite; a row with NaN or +inf, or one that is all -inf, is NaN; no rows, or no
rows that are not ignored, make a term 0 (never 0 / 0).

Speed and precision: float32 and float64 on the CPU run in the compiled kernel where it was built
(:func:`kdbench.ops.implementation` says so), everything else in plain torch, half precision in float32.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from kdbench.errors import KdbenchError, unknown
from kdbench.ops.autograd import softened_loss
from kdbench.ops.spec import LossSpec

__all__ = ["Reduction", "cross_entropy", "distillation_loss", "kl"]

Reduction = Literal["batchmean", "mean", "sum", "none"]

_REDUCTIONS = ("batchmean", "mean", "sum", "none")
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor | None = None,
    *,
    temperature: float | None = None,
    alpha: float | None = None,
    reduction: Reduction = "batchmean",
    ignore_index: int = -100,
) -> Tensor:
    """Hinton's loss ``(1 - alpha) * CE(s, y) + alpha * T^2 * KL(softmax(t / T) || softmax(s / T))``.

    Parameters
    ----------
    student_logits : ``[N, C]`` float; the gradient flows here.
    teacher_logits : ``[N, C]`` of the same dtype and device; None leaves plain cross-entropy (then without
        ``temperature`` and ``alpha``).
    labels : ``[N]`` int32 or int64; None leaves ``T^2 * KL`` (then without ``alpha``).
    temperature : T, positive, without unit.
    alpha : weight of the soft term, in [0, 1]. With 0 the teacher's logits are not read, with 1 the labels are only
        checked.
    reduction : see the module's table.
    ignore_index : rows with this label have no cross-entropy; they keep their KL.

    Returns
    -------
    Tensor
        A scalar, or ``[N]`` for ``none``; in the logits' dtype, float32 for half precision.

    Raises
    ------
    KdbenchError : shapes, dtypes or devices do not fit, a label is out of range, temperature is not positive, alpha is
        outside [0, 1], or either is missing where it is needed or given where it means nothing.
    """
    if teacher_logits is None:
        if labels is None:
            raise _error("neither teacher logits nor labels were given", "give at least one of them")
        if temperature is not None or alpha is not None:
            raise _error("temperature and alpha mean nothing without teacher logits", "leave both out")
        return cross_entropy(student_logits, labels, reduction=reduction, ignore_index=ignore_index)
    _check_reduction(reduction)
    degrees = _checked_temperature(temperature)
    _check_logits(student_logits, teacher_logits)
    if labels is None:
        if alpha is not None:
            raise _error("alpha means nothing without labels", "leave it out: the result is T^2 * KL")
        share = 1.0
    else:
        _check_labels(student_logits, labels)
        share = _checked_alpha(alpha)
    spec = LossSpec(
        temperature=degrees,
        ce_weight=1.0 - share,
        kl_weight=share * degrees**2 / _kl_divisor(student_logits, reduction),
        ce_mean=reduction in ("batchmean", "mean"),
        per_row=reduction == "none",
        ignore_index=ignore_index,
    )
    return softened_loss(student_logits, teacher_logits, labels, spec)


def kl(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float, reduction: Reduction = "batchmean"
) -> Tensor:
    """``KL(softmax(t / T) || softmax(s / T))`` itself, without the factor T^2.

    Parameters
    ----------
    student_logits, teacher_logits : ``[N, C]`` float of one dtype and device.
    temperature : T, positive.
    reduction : see the module's table.

    Returns
    -------
    Tensor
        Nats; a scalar, or ``[N]`` for ``none``.

    Raises
    ------
    KdbenchError : shapes, dtypes or devices do not fit, or temperature is not positive.
    """
    _check_reduction(reduction)
    degrees = _checked_temperature(temperature)
    _check_logits(student_logits, teacher_logits)
    weight = 1.0 / _kl_divisor(student_logits, reduction)
    return softened_loss(
        student_logits, teacher_logits, None, LossSpec(degrees, 0.0, weight, False, reduction == "none", -100)
    )


def cross_entropy(
    student_logits: Tensor, labels: Tensor, *, reduction: Reduction = "batchmean", ignore_index: int = -100
) -> Tensor:
    """``-log softmax(s)[y]``, as ``torch.nn.functional.cross_entropy``, but 0 where every row is ignored.

    Parameters
    ----------
    student_logits : ``[N, C]`` float.
    labels : ``[N]`` int32 or int64, on the same device.
    reduction : ``batchmean`` and ``mean`` both divide by the rows that are not ignored.
    ignore_index : rows with this label contribute 0.

    Returns
    -------
    Tensor
        Nats; a scalar, or ``[N]`` for ``none``.

    Raises
    ------
    KdbenchError : shapes, dtypes or devices do not fit, or a label is out of range.
    """
    _check_reduction(reduction)
    _check_logits(student_logits, None)
    _check_labels(student_logits, labels)
    mean = reduction in ("batchmean", "mean")
    return softened_loss(student_logits, None, labels, LossSpec(1.0, 1.0, 0.0, mean, reduction == "none", ignore_index))


def _kl_divisor(logits: Tensor, reduction: str) -> int:
    rows, classes = logits.shape
    divisor = {"batchmean": rows, "mean": rows * classes, "sum": 1, "none": 1}[reduction]
    return max(divisor, 1)


def _error(what: str, cure: str | None = None) -> KdbenchError:
    return KdbenchError(what, where="kdbench.losses", cure=cure)


def _check_reduction(reduction: str) -> None:
    if reduction not in _REDUCTIONS:
        raise unknown("reduction", str(reduction), _REDUCTIONS)


def _checked_temperature(temperature: float | None) -> float:
    if temperature is None:
        raise _error("temperature is missing", "there is no default: give the recipe's own")
    if not (math.isfinite(temperature) and temperature > 0):
        raise _error(f"temperature is {temperature}", "it must be positive and finite")
    return float(temperature)


def _checked_alpha(alpha: float | None) -> float:
    if alpha is None:
        raise _error("alpha is missing", "there is no default: give the weight of the soft term, in [0, 1]")
    if not 0 <= alpha <= 1:
        raise _error(f"alpha is {alpha}", "it is the weight of the soft term and lies in [0, 1]")
    return float(alpha)


def _check_logits(student: Tensor, teacher: Tensor | None) -> None:
    if student.dim() != 2 or student.shape[1] == 0:
        raise _error(
            f"student logits have shape {list(student.shape)}, not [N, C] with C > 0",
            "flatten positions into rows first",
        )
    if student.dtype not in _DTYPES:
        raise _error(f"student logits are {student.dtype}", "convert them to a floating dtype of 16, 32 or 64 bits")
    if teacher is None:
        return
    if teacher.shape != student.shape:
        raise _error(
            f"teacher logits have shape {list(teacher.shape)}, student logits {list(student.shape)}",
            "both need the same rows and classes",
        )
    if teacher.dtype != student.dtype:
        raise _error(
            f"teacher logits are {teacher.dtype}, student logits {student.dtype}",
            "convert one: teacher_logits.to(student_logits.dtype)",
        )
    _check_device("teacher logits", teacher, student)


def _check_labels(student: Tensor, labels: Tensor) -> None:
    if labels.shape != student.shape[:1]:
        raise _error(
            f"labels have shape {list(labels.shape)}, not [{student.shape[0]}]", "give one class index for each row"
        )
    if labels.dtype not in (torch.int32, torch.int64):
        raise _error(f"labels are {labels.dtype}", "convert them: labels.long()")
    _check_device("labels", labels, student)


def _check_device(name: str, tensor: Tensor, student: Tensor) -> None:
    if tensor.device != student.device:
        raise _error(f"{name} are on {tensor.device}, student logits on {student.device}", "move one of them")

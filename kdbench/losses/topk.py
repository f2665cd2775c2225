"""Distillation from a teacher of which only the largest logits were kept."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kdbench.errors import unknown
from kdbench.losses import _checks
from kdbench.losses._checks import error
from kdbench.losses._weights import KlRows, Reduction, weigh
from kdbench.ops.autograd import softened_loss
from kdbench.ops.spec import TAIL_BUCKET, TAIL_RENORMALISE, TAIL_UNNORMALISED, LossInputs

__all__ = ["Tail", "topk_distillation_loss"]

Tail = Literal["renormalise", "unnormalised", "bucket"]

_TAILS = {"renormalise": TAIL_RENORMALISE, "unnormalised": TAIL_UNNORMALISED, "bucket": TAIL_BUCKET}


def topk_distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    teacher_indices: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float | Tensor | None = None,
    alpha: float | Tensor | None = None,
    tail: Tail | None = None,
    teacher_lse: Tensor | None = None,
    reduction: Reduction = "batchmean",
    ignore_index: int = -100,
    row_weight: Tensor | None = None,
    kl_rows: KlRows = "all",
    inplace: bool = False,
) -> Tensor:
    """``(1 - alpha) * CE(s, y) + alpha * T^2 * D`` for a teacher known in K of the C classes of each row.

    With ``q = softmax(s / T)`` over all classes, sums over the listed ones, and ``P = sum p``, ``D`` and its gradient
    with respect to ``s`` are:

    ================ ===================== ======================================= =================================
    tail             p of a listed class   D                                       gradient times T
    ================ ===================== ======================================= =================================
    ``renormalise``  softmax of the listed ``sum p log(p / q)``                    ``q - p``
    ``unnormalised`` ``exp(t / T - lse)``  ``sum p log(p / q)``                    ``P q - p``
    ``bucket``       ``exp(t / T - lse)``  ``sum p log(p / q) + r log(r / r_q)``   listed: ``q - p``;
                                                                                   others: ``q (1 - r / r_q)``
    ================ ===================== ======================================= =================================

    ``p`` is 0 in classes that are not listed. ``bucket`` takes these for one class: ``r = 1 - P``, and ``r_q`` is the
    student's probability of them all; where every class is listed there is no such class. It is a divergence, and a
    lower bound of the full one, as ``renormalise`` is not; ``unnormalised`` may even be negative.

    Parameters
    ----------
    student_logits : ``[N, C]`` float; the gradient flows here.
    teacher_logits : ``[N, K]`` of the same dtype and device, 1 <= K <= C.
    teacher_indices : ``[N, K]`` int32 or int64: the class of each; distinct within a row, in any order.
    tail : what the teacher says about the other classes; there is no default.
    teacher_lse : ``[N]`` float64, :func:`kdbench.losses.teacher_log_sum_exp` of the teacher's logits over all C classes
        at this temperature. Needed by ``unnormalised`` and ``bucket``; ``renormalise`` has no use for it.
    labels, temperature, alpha, reduction, ignore_index, row_weight, kl_rows, inplace : as for
        :func:`kdbench.losses.distillation_loss`.

    Returns
    -------
    Tensor
        As :func:`kdbench.losses.distillation_loss`.

    Raises
    ------
    KdbenchError : as :func:`kdbench.losses.distillation_loss`; ``tail`` is missing; ``teacher_lse`` is missing or has
        no use; an index is out of range or occurs twice in a row (on the CPU; on a GPU its row is NaN).
    """
    _check_tail(tail, teacher_lse)
    _checks.check_logits("student logits", student_logits)
    spec, factors = weigh(
        student_logits,
        temperature=temperature,
        alpha=alpha,
        reduction=reduction,
        ignore_index=ignore_index,
        kl_rows=kl_rows,
        row_weight=row_weight,
        labelled=labels is not None,
    )
    _check_listed(student_logits, teacher_logits, teacher_indices)
    student, teacher = _checks.one_dtype(student_logits, (teacher_logits,))
    if labels is not None:
        _checks.check_labels(student, labels)
    if teacher_lse is not None:
        teacher_lse = _checks.row_teacher_lse(teacher_lse, student)
    if inplace:
        _checks.check_inplace(student, (teacher,))
    inputs = LossInputs(student, (teacher,), labels, teacher_indices, teacher_lse, **factors._asdict())
    return softened_loss(inputs, spec._replace(tail=_TAILS[str(tail)]), inplace=inplace)


def _check_tail(tail: str | None, teacher_lse: Tensor | None) -> None:
    if tail is None:
        raise error("tail is missing", "there is no default: say 'renormalise', 'unnormalised' or 'bucket'")
    if tail not in _TAILS:
        raise unknown("value of tail", str(tail), _TAILS)
    if tail == "renormalise" and teacher_lse is not None:
        raise error("teacher_lse means nothing with tail='renormalise'", "leave it out")
    if tail != "renormalise" and teacher_lse is None:
        raise error(
            f"teacher_lse is missing, which tail='{tail}' needs",
            "keep teacher_log_sum_exp(all_logits, temperature=...) beside the listed logits",
        )


def _check_listed(student: Tensor, teacher: Tensor, indices: Tensor) -> None:
    _checks.check_logits("teacher logits", teacher)
    rows, classes = student.shape
    if teacher.shape[0] != rows or teacher.shape[1] > classes:
        raise error(
            f"teacher logits have shape {list(teacher.shape)}, student logits {list(student.shape)}",
            "give the same rows, and at most as many classes",
        )
    if not isinstance(indices, Tensor) or indices.dtype not in (torch.int32, torch.int64):
        kind = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise error(f"teacher_indices are {kind}", "give a tensor of int32 or int64, as torch.topk does")
    if indices.shape != teacher.shape:
        raise error(
            f"teacher_indices have shape {list(indices.shape)}, teacher logits {list(teacher.shape)}",
            "give one index for each logit",
        )
    _checks.check_device("teacher_indices", indices, student)

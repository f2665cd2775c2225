"""Hinton's loss and its two terms alone, for one teacher with logits over all classes."""

from __future__ import annotations

from functools import lru_cache
from types import NoneType

import torch
from torch import Tensor

from kdbench.losses import _checks
from kdbench.losses._checks import error
from kdbench.losses._weights import (
    KlRows,
    Reduction,
    RowFactors,
    cached_spec,
    checked_temperature,
    flags_of,
    weigh,
)
from kdbench.ops.autograd import fast_loss, log_sum_exp, softened_loss
from kdbench.ops.spec import LossInputs, LossSpec

__all__ = ["cross_entropy", "distillation_loss", "kl", "teacher_log_sum_exp"]

_compiling = torch.compiler.is_compiling
_NUMBERS = frozenset({float, int})
_NUMBERS_OR_NONE = frozenset({float, int, NoneType})


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor | None = None,
    *,
    temperature: float | Tensor | None = None,
    alpha: float | Tensor | None = None,
    reduction: Reduction = "batchmean",
    ignore_index: int = -100,
    row_weight: Tensor | None = None,
    teacher_lse: Tensor | None = None,
    kl_rows: KlRows = "all",
    inplace: bool = False,
) -> Tensor:
    """Hinton's loss ``(1 - alpha) * CE(s, y) + alpha * T^2 * KL(softmax(t / T) || softmax(s / T))``.

    Parameters
    ----------
    student_logits : ``[N, C]`` float; the gradient flows here.
    teacher_logits : ``[N, C]`` of the same dtype and device; None leaves plain cross-entropy (then without
        ``temperature``, ``alpha`` and whatever else concerns a teacher).
    labels : ``[N]`` int32 or int64; None leaves ``T^2 * KL`` (then without ``alpha``).
    temperature : T, positive, without unit; a number, or ``[N]`` floats: each row is then softened, and its KL
        multiplied by the square, by its own.
    alpha : weight of the soft term, in [0, 1]; a number, or ``[N]`` floats. With the number 0 the teacher's logits are
        not read, with 1 the labels are only checked.
    reduction : see the table of :mod:`kdbench.losses`.
    ignore_index : rows with this label have no cross-entropy; they keep their KL.
    row_weight : ``[N]`` floats that multiply the rows' losses; the divisors of the reduction stay what they are.
    teacher_lse : ``[N]`` float64, :func:`teacher_log_sum_exp` of these logits at this temperature, where it is kept
        from an earlier epoch. That it belongs to them cannot be checked.
    kl_rows : ``valid`` drops the KL of rows with ``ignore_index`` too, and ``batchmean`` and ``mean`` divide it by the
        number of the others.
    inplace : let the gradient overwrite the student logits, which saves its memory. The logits must not be used
        afterwards. Where no gradient is wanted nothing is overwritten.

    Returns
    -------
    Tensor
        A scalar, or ``[N]`` for ``none``; in the logits' dtype, float32 for half precision.

    Raises
    ------
    KdbenchError : shapes, dtypes or devices do not fit; a label is out of range (on the CPU; on a GPU its row is NaN);
        temperature is not positive or alpha outside [0, 1] (given per row on a GPU: a NaN row); either is missing where
        it is needed or given where it means nothing; a tensor beside the student's logits requires a gradient;
        ``inplace`` would overwrite a leaf, a view of a leaf, or memory that is not the logits' alone.
    """
    if (
        teacher_logits is not None
        and type(temperature) in _NUMBERS
        and type(alpha) in _NUMBERS_OR_NONE
        and row_weight is None
        and teacher_lse is None
        and not inplace
        and not _compiling()
    ):
        # The way of almost every call. A small batch costs less than its checks, so these come from a cache, or after
        # the kernel has declined.
        spec = cached_spec(temperature, alpha, reduction, ignore_index, kl_rows, labels is not None)
        loss = fast_loss(student_logits, teacher_logits, labels, spec)
        if loss is not None:
            return loss
    if teacher_logits is None:
        if labels is None:
            raise error("neither teacher logits nor labels were given", "give at least one of them")
        if temperature is not None or alpha is not None:
            raise error("temperature and alpha mean nothing without teacher logits", "leave both out")
        if teacher_lse is not None or kl_rows != "all":
            raise error("teacher_lse and kl_rows mean nothing without teacher logits", "leave both out")
        return cross_entropy(
            student_logits,
            labels,
            reduction=reduction,
            ignore_index=ignore_index,
            row_weight=row_weight,
            inplace=inplace,
        )
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
    return _against_one_teacher(student_logits, teacher_logits, labels, teacher_lse, spec, factors, inplace=inplace)


def kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float | Tensor,
    reduction: Reduction = "batchmean",
    row_weight: Tensor | None = None,
    teacher_lse: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """``KL(softmax(t / T) || softmax(s / T))`` itself, without the factor T^2.

    Parameters
    ----------
    student_logits, teacher_logits : ``[N, C]`` float of one dtype and device.
    temperature : T, positive; a number, or ``[N]`` floats.
    reduction : see the table of :mod:`kdbench.losses`.
    row_weight, teacher_lse, inplace : as for :func:`distillation_loss`.

    Returns
    -------
    Tensor
        Nats; a scalar, or ``[N]`` for ``none``.

    Raises
    ------
    KdbenchError : as for :func:`distillation_loss`.
    """
    plain = row_weight is None and teacher_lse is None and not inplace
    if plain and type(temperature) in _NUMBERS and not _compiling():
        loss = fast_loss(student_logits, teacher_logits, None, _cached_kl_spec(temperature, reduction))
        if loss is not None:
            return loss
    _checks.check_logits("student logits", student_logits)
    row_temperature = None
    if isinstance(temperature, Tensor):
        row_temperature, temperature = _checks.row_temperature(temperature, student_logits), 1.0
    weights = None if row_weight is None else _checks.row_weights(row_weight, student_logits)
    factors = RowFactors(row_temperature, None, weights)
    spec = _kl_spec(temperature, reduction)
    return _against_one_teacher(student_logits, teacher_logits, None, teacher_lse, spec, factors, inplace=inplace)


def cross_entropy(
    student_logits: Tensor,
    labels: Tensor,
    *,
    reduction: Reduction = "batchmean",
    ignore_index: int = -100,
    row_weight: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """``-log softmax(s)[y]``, as ``torch.nn.functional.cross_entropy``, but 0 where every row is ignored.

    Parameters
    ----------
    student_logits : ``[N, C]`` float.
    labels : ``[N]`` int32 or int64, on the same device.
    reduction : ``batchmean`` and ``mean`` both divide by the rows that are not ignored.
    ignore_index : rows with this label contribute 0.
    row_weight, inplace : as for :func:`distillation_loss`.

    Returns
    -------
    Tensor
        Nats; a scalar, or ``[N]`` for ``none``.

    Raises
    ------
    KdbenchError : shapes, dtypes or devices do not fit, or a label is out of range (on a GPU: a NaN row).
    """
    if labels is not None and row_weight is None and not inplace and not _compiling():
        loss = fast_loss(student_logits, None, labels, _cached_ce_spec(reduction, ignore_index))
        if loss is not None:
            return loss
    _checks.check_logits("student logits", student_logits)
    _checks.check_labels(student_logits, labels)
    inputs = LossInputs(student_logits, (), labels)
    if row_weight is not None:
        inputs = inputs._replace(ce_weight=_checks.row_weights(row_weight, student_logits))
    if inplace:
        _checks.check_inplace(student_logits, ())
    return softened_loss(inputs, _ce_spec(reduction, ignore_index), inplace=inplace)


def teacher_log_sum_exp(teacher_logits: Tensor, *, temperature: float | Tensor) -> Tensor:
    """``log sum_c exp(t_c / T)`` of each row: all that a loss needs to know of a teacher's other classes.

    Parameters
    ----------
    teacher_logits : ``[N, C]`` float.
    temperature : T, positive; a number, or ``[N]`` floats.

    Returns
    -------
    Tensor
        ``[N]`` float64 on the logits' device, without a gradient. For ``teacher_lse`` of :func:`distillation_loss` and
        :func:`kdbench.losses.topk_distillation_loss`, which are then to be given the same temperature.

    Raises
    ------
    KdbenchError : the logits are not ``[N, C]`` floats, or temperature is not positive.
    """
    _checks.check_logits("teacher logits", teacher_logits)
    if isinstance(temperature, Tensor):
        return log_sum_exp(teacher_logits, _checks.row_temperature(temperature, teacher_logits))
    return log_sum_exp(teacher_logits, checked_temperature(temperature))


def _against_one_teacher(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    teacher_lse: Tensor | None,
    spec: LossSpec,
    factors: RowFactors,
    *,
    inplace: bool,
) -> Tensor:
    """Checks the tensors of a loss whose numbers are checked, and computes it."""
    _checks.check_teacher(student, teacher)
    student, teacher = _checks.one_dtype(student, (teacher,))
    if labels is not None:
        _checks.check_labels(student, labels)
    if teacher_lse is not None:
        teacher_lse = _checks.row_teacher_lse(teacher_lse, student)
    if inplace:
        _checks.check_inplace(student, (teacher,))
    inputs = LossInputs(student, (teacher,), labels, teacher_lse=teacher_lse, **factors._asdict())
    return softened_loss(inputs, spec, inplace=inplace)


def _kl_spec(temperature: float, reduction: str) -> LossSpec:
    return LossSpec(checked_temperature(temperature), 0.0, 1.0, flags_of(reduction, labelled=False))


def _ce_spec(reduction: str, ignore_index: int) -> LossSpec:
    return LossSpec(1.0, 1.0, 0.0, flags_of(reduction), int(ignore_index))


_cached_kl_spec = lru_cache(maxsize=512)(_kl_spec)
_cached_ce_spec = lru_cache(maxsize=64)(_ce_spec)

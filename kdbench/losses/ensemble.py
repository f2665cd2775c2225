"""Distillation from several teachers in one pass over all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from kdbench.errors import unknown
from kdbench.losses import _checks
from kdbench.losses._checks import error
from kdbench.losses._weights import KlRows, Reduction, weigh
from kdbench.ops.autograd import softened_loss
from kdbench.ops.spec import MAX_TEACHERS, MEAN_OF_LOSSES, LossInputs

__all__ = ["Combine", "ensemble_distillation_loss"]

Combine = Literal["probabilities", "losses"]

_COMBINE = {"probabilities": 0, "losses": MEAN_OF_LOSSES}
_SUM_TOLERANCE = 1e-6


def ensemble_distillation_loss(
    student_logits: Tensor,
    teachers: Sequence[Tensor],
    labels: Tensor | None = None,
    *,
    temperature: float | Tensor | None = None,
    alpha: float | Tensor | None = None,
    combine: Combine | None = None,
    teacher_weights: Sequence[float] | None = None,
    reduction: Reduction = "batchmean",
    ignore_index: int = -100,
    row_weight: Tensor | None = None,
    kl_rows: KlRows = "all",
    inplace: bool = False,
) -> Tensor:
    """``(1 - alpha) * CE(s, y) + alpha * T^2 * D`` for K teachers ``t_k`` with weights ``w_k``.

    ``D`` is ``KL(sum_k w_k p_k || q)`` for ``combine="probabilities"``, the divergence from the teachers' mean, and
    ``sum_k w_k KL(p_k || q)`` for ``combine="losses"``, with ``p_k = softmax(t_k / T)`` and ``q = softmax(s / T)``. The
    two have the same gradient; their values differ by the teachers' disagreement, which no student can change.

    Parameters
    ----------
    student_logits : ``[N, C]`` float; the gradient flows here.
    teachers : 1 to 16 tensors ``[N, C]`` of the same dtype and device.
    labels, temperature, alpha, reduction, ignore_index, row_weight, kl_rows, inplace : as for
        :func:`kdbench.losses.distillation_loss`.
    combine : ``probabilities`` or ``losses``; there is no default.
    teacher_weights : K positive numbers that sum to 1 within 1e-6 (they are then divided by their sum); None gives each
        ``1 / K``.

    Returns
    -------
    Tensor
        As :func:`kdbench.losses.distillation_loss`.

    Raises
    ------
    KdbenchError : as :func:`kdbench.losses.distillation_loss`; there is no teacher or more than 16, ``combine`` is
        missing, or the weights are not as above.
    """
    if combine is None:
        raise error("combine is missing", "there is no default: say 'probabilities' or 'losses'")
    if combine not in _COMBINE:
        raise unknown("value of combine", str(combine), _COMBINE)
    teachers = _checked_teachers(teachers)
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
    weights = _checked_weights(teacher_weights, len(teachers))
    for teacher in teachers:
        _checks.check_teacher(student_logits, teacher)
    student, *teachers = _checks.one_dtype(student_logits, teachers)
    if labels is not None:
        _checks.check_labels(student, labels)
    if inplace:
        _checks.check_inplace(student, teachers)
    if len(teachers) > 1:
        spec = spec._replace(flags=spec.flags | _COMBINE[combine], teacher_weights=weights)
    inputs = LossInputs(student, tuple(teachers), labels, **factors._asdict())
    return softened_loss(inputs, spec, inplace=inplace)


def _checked_teachers(teachers: Sequence[Tensor]) -> list[Tensor]:
    if isinstance(teachers, Tensor):
        raise error("teachers are one tensor", "give a list of tensors [N, C]: list(teachers), if it is [K, N, C]")
    if not 1 <= len(teachers) <= MAX_TEACHERS:
        raise error(
            f"{len(teachers)} teachers were given",
            f"1 to {MAX_TEACHERS} fit into one pass; average the probabilities of more beforehand",
        )
    return list(teachers)


def _checked_weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    if weights is None:
        return (1.0 / count,) * count
    if len(weights) != count:
        raise error(f"{len(weights)} teacher_weights for {count} teachers", "give one for each teacher")
    numbers = [float(weight) for weight in weights]
    for place, number in enumerate(numbers):
        if not 0 < number < math.inf:
            raise error(f"teacher_weights[{place}] is {number}", "leave out a teacher without a positive weight")
    total = math.fsum(numbers)
    if abs(total - 1.0) > _SUM_TOLERANCE:
        raise error(f"teacher_weights sum to {total}", "they must sum to 1; divide each by their sum")
    return tuple(number / total for number in numbers)

"""The losses and their gradients in plain torch: the yardstick of the compiled kernels, and what they leave over.

Written for reading, not for speed: the log-softmax forms of the textbook, the gradients spelled out, so that masked
classes behave as the kernels' do instead of turning into NaN. Names and edge cases are those at the top of
``csrc/include/kd/api.h``. Imports torch; import it lazily.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdbench.ops import faults
from kdbench.ops.spec import (
    CE_MEAN_VALID,
    KL_MEAN_CLASSES,
    KL_MEAN_ROWS,
    KL_VALID_ROWS,
    MEAN_OF_LOSSES,
    PER_ROW,
    TAIL_BUCKET,
    TAIL_RENORMALISE,
    TAIL_UNNORMALISED,
    LossInputs,
    LossSpec,
)

__all__ = ["check_labels_in_range", "log_sum_exp", "loss_and_gradient"]

_INFINITY = float("inf")

# A term of a loss: its value in each row, [N], and its gradient with respect to the student logits, [N, C].
Term = tuple[Tensor, Tensor]


def loss_and_gradient(
    inputs: LossInputs, spec: LossSpec, *, want_gradient: bool, wide: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The loss that ``spec`` describes, and its gradient, for any floating dtype and any device.

    Half precision is computed in float32: the loss is then float32 and the gradient is rounded to the logits' dtype.
    Differences of log-probabilities are formed in the precision of the computation, so that the error of the KL term
    grows with T^2; the compiled kernels do not have this weakness.

    Returns
    -------
    loss : a scalar, or ``[N]`` with ``PER_ROW``; float64 for float64 logits, float32 otherwise.
    gradient : ``[N, C]`` in the dtype of the student logits (with ``wide`` in that of the loss), of the sum of the row
        losses; or None.

    Raises
    ------
    KdbenchError : on the CPU, a label outside ``[0, C)`` that is not ``ignore_index``, or a sparse index out of range
        or listed twice. Elsewhere looking would wait for the device, and such a row's loss and gradient are NaN.
    """
    s = _widened(inputs.student)
    rows, classes = s.shape
    loss, gradient = s.new_zeros(rows), torch.zeros_like(s)
    valid = None
    if inputs.labels is not None:
        target, valid, bad = _targets(inputs.labels, classes, spec.ignore_index)
        if spec.ce_weight:
            weight = _weight(s, spec.ce_weight, inputs.ce_weight, valid)
            if spec.flags & CE_MEAN_VALID:
                weight = weight / valid.sum().clamp(min=1)
            loss, gradient = _add(loss, gradient, weight, _cross_entropy(s, target, _share(inputs, spec, s)))
        loss, gradient = _spoil(bad, loss, gradient)
    if inputs.teachers and spec.kl_weight:
        valid = valid if spec.flags & KL_VALID_ROWS else None
        weight = _weight(s, spec.kl_weight, inputs.kl_weight, valid)
        if spec.flags & KL_MEAN_ROWS:
            weight = weight / (max(rows, 1) if valid is None else valid.sum().clamp(min=1))
        if spec.flags & KL_MEAN_CLASSES:
            weight = weight / classes
        loss, gradient = _add(loss, gradient, weight, _divergence(s, inputs, spec))
    if not spec.flags & PER_ROW:
        loss = loss.sum()
    if not want_gradient:
        return loss, None
    return loss, gradient if wide else gradient.to(inputs.student.dtype)


def log_sum_exp(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """``log sum_c exp(t_c / T)`` of each row of ``[N, C]`` logits, as ``[N]`` float64; T is a number or ``[N]``."""
    t = logits.detach().to(torch.float64)
    return torch.logsumexp(t / _column(temperature, t), dim=1)


def check_labels_in_range(labels: Tensor, classes: int, ignore_index: int) -> None:
    """On the CPU, refuses labels outside ``[0, classes)`` other than ``ignore_index``."""
    _targets(labels, classes, ignore_index)


def _targets(labels: Tensor, classes: int, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Labels that can be looked up, which rows are valid, and which name no class (on the CPU: none)."""
    labels = labels.long()
    valid = labels != ignore_index
    bad = valid & ((labels < 0) | (labels >= classes))
    if bad.device.type == "cpu" and bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise faults.bad_label(int(labels[row]), row, classes)
    return torch.where(valid & ~bad, labels, 0), valid, bad


def _places(indices: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Sparse indices that can be looked up, and rows where one is out of range or there twice (on the CPU: none)."""
    indices = indices.long()
    ordered = indices.sort(dim=1).values
    bad = (ordered[:, 0] < 0) | (ordered[:, -1] >= classes) | (ordered[:, 1:] == ordered[:, :-1]).any(dim=1)
    if bad.device.type == "cpu" and bool(bad.any()):
        raise faults.bad_index(indices, int(bad.nonzero()[0]), classes)
    return indices.clamp(0, classes - 1), bad


def _cross_entropy(s: Tensor, target: Tensor, share: float | Tensor) -> Term:
    """``- sum_c w_c log softmax(s)_c`` and ``softmax(s) - w``, w being b on the label and the rest spread evenly."""
    classes = s.shape[1]
    if classes == 1:
        share = 1.0
    wanted = s.new_ones(s.shape) * ((1.0 - share) / max(classes - 1, 1))
    wanted.scatter_(1, target[:, None], s.new_ones(len(s), 1) * share)
    log_q = torch.log_softmax(s, dim=1)
    return torch.where(wanted == 0, 0.0, -wanted * log_q).sum(dim=1), log_q.exp() - wanted


def _divergence(s: Tensor, inputs: LossInputs, spec: LossSpec) -> Term:
    """The KL term of the teacher or teachers, softened."""
    temperature = _column(spec.temperature if inputs.temperature is None else inputs.temperature, s)
    log_q = torch.log_softmax(s / temperature, dim=1)
    log_ps = [_teacher(teacher, inputs, spec, s) for teacher in inputs.teachers]
    if inputs.indices is not None:
        value, slope = _from_listed(log_q, log_ps[0], inputs.indices, spec.tail)
    elif len(log_ps) > 1:
        value, slope = _from_several(log_q, log_ps, spec)
    else:
        value, slope = _relative_entropy(log_ps[0], log_q), log_q.exp() - log_ps[0].exp()
    return value, slope / temperature


def _teacher(logits: Tensor, inputs: LossInputs, spec: LossSpec, s: Tensor) -> Tensor:
    """Log-probabilities of what a teacher's tensor holds: all classes, or the listed ones among all or themselves."""
    temperature = spec.temperature if inputs.temperature is None else inputs.temperature
    listed_alone = inputs.indices is not None and spec.tail == TAIL_RENORMALISE
    if inputs.teacher_lse is None or listed_alone:
        return torch.log_softmax(_widened(logits) / _column(temperature, s), dim=1)
    # nothing makes these sum to 1 afterwards, so the difference is taken before it is rounded
    t = logits.detach().to(torch.float64)
    return (t / _column(temperature, t) - inputs.teacher_lse[:, None]).to(s.dtype)


def _from_several(log_q: Tensor, log_ps: list[Tensor], spec: LossSpec) -> Term:
    """From the mean of the teachers' probabilities, or the mean of the divergences from each."""
    value, log_mean = log_q.new_zeros(len(log_q)), torch.full_like(log_q, -_INFINITY)
    for weight, log_p in zip(spec.teacher_weights, log_ps, strict=True):
        value = value + weight * _relative_entropy(log_p, log_q)
        log_mean = torch.logaddexp(log_mean, log_p + math.log(weight))
    if not spec.flags & MEAN_OF_LOSSES:
        value = _relative_entropy(log_mean, log_q)
    return value, log_q.exp() - log_mean.exp()


def _from_listed(log_q: Tensor, log_p: Tensor, indices: Tensor, tail: int) -> Term:
    """From a teacher that knows K of the classes."""
    places, bad = _places(indices, log_q.shape[1])
    value = _relative_entropy(log_p, log_q.gather(1, places))
    q, p = log_q.exp(), torch.zeros_like(log_q).scatter(1, places, log_p.exp())
    if tail == TAIL_BUCKET:
        others = log_q.scatter(1, places, -_INFINITY)
        rest = (1.0 - p.sum(dim=1, keepdim=True)).clamp(min=0.0)
        if log_p.shape[1] == log_q.shape[1]:
            rest = torch.zeros_like(rest)  # no class is left over, whatever rounding says
        log_rest_q = torch.logsumexp(others, dim=1, keepdim=True)
        value = value + _relative_entropy(rest.log(), log_rest_q)
        p = p + torch.where(others == -_INFINITY, 0.0, rest * (others - log_rest_q).exp())
    elif tail == TAIL_UNNORMALISED:
        q = q * p.sum(dim=1, keepdim=True)
    return _spoil(bad | value.isnan(), value, q - p)


def _relative_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``sum p (log p - log q)`` of each row, with 0 log 0 = 0, and infinite where q alone excludes a class."""
    terms = torch.where(log_q == -_INFINITY, _INFINITY, log_p.exp() * (log_p - log_q))
    return torch.where(log_p == -_INFINITY, 0.0, terms).sum(dim=1)


def _weight(s: Tensor, number: float, rows: Tensor | None, valid: Tensor | None) -> Tensor:
    weight = s.new_full((len(s),), number)
    if rows is not None:
        weight = weight * rows.to(s.dtype)
    return weight if valid is None else torch.where(valid, weight, 0.0)


def _add(loss: Tensor, gradient: Tensor, weight: Tensor, term: Term) -> Term:
    """Adds a weighted term; a row whose weight is 0 has none, so that 0 * inf cannot arise."""
    value, slope = term
    used = weight != 0
    loss = loss + torch.where(used, weight * value, 0.0)
    return loss, gradient + torch.where(used[:, None], weight[:, None] * slope, 0.0)


def _spoil(rows: Tensor, loss: Tensor, gradient: Tensor) -> Term:
    return torch.where(rows, math.nan, loss), torch.where(rows[:, None], math.nan, gradient)


def _share(inputs: LossInputs, spec: LossSpec, s: Tensor) -> float | Tensor:
    return spec.label_share if inputs.label_share is None else _column(inputs.label_share, s)


def _widened(logits: Tensor) -> Tensor:
    return logits.detach().to(torch.float64 if logits.dtype == torch.float64 else torch.float32)


def _column(values: float | Tensor, s: Tensor) -> float | Tensor:
    """A number, or ``[N]`` values as ``[N, 1]`` in the precision of ``s``."""
    return values[:, None].to(s.dtype) if isinstance(values, Tensor) else values

"""The loss and its gradient in plain torch: the yardstick of the compiled kernel, and what other devices and types use.

Written for reading, not for speed: the log-softmax form of the textbook formula, the gradient spelled out, so that
masked classes behave as the kernel's do instead of turning into NaN. Imports torch; import it lazily.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.ops.spec import LossSpec

__all__ = ["loss_and_gradient"]

_INFINITY = float("inf")


def loss_and_gradient(
    student: Tensor, teacher: Tensor | None, labels: Tensor | None, spec: LossSpec, *, want_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Loss and gradient, as :func:`kdbench.ops.native.loss_and_gradient`, for any floating dtype and device.

    Half precision is computed in float32: the loss is then float32 and the gradient is rounded to the logits' dtype.
    Differences of log-probabilities are formed in the logits' own precision, so that the error of the KL term grows
    with T^2; the compiled kernel does not have this weakness.

    Raises
    ------
    KdbenchError : a label lies outside ``[0, C)`` and is not ``ignore_index`` (on a GPU this check waits for it).
    """
    rows = student.shape[0]
    wide = torch.float64 if student.dtype == torch.float64 else torch.float32
    s = student.detach().to(wide)
    row_loss = torch.zeros(rows, dtype=wide, device=s.device)
    gradient = torch.zeros(s.shape, dtype=wide, device=s.device) if want_gradient else None
    if labels is not None:
        target, valid = _checked(labels, student.shape[1], spec.ignore_index)
        if spec.ce_weight:
            weight = valid.to(wide) * spec.ce_weight
            if spec.ce_mean:
                weight = weight / valid.sum().clamp(min=1)
            row_loss, gradient = _add(row_loss, gradient, weight, *_cross_entropy(s, target, valid))
    if teacher is not None and spec.kl_weight:
        weight = torch.full((rows,), spec.kl_weight, dtype=wide, device=s.device)
        row_loss, gradient = _add(row_loss, gradient, weight, *_kl(s, teacher.detach().to(wide), spec.temperature))
    loss = row_loss if spec.per_row else row_loss.sum()
    return loss, None if gradient is None else gradient.to(student.dtype)


def _checked(labels: Tensor, classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Labels with the ignored ones replaced by class 0, and which rows are valid."""
    valid = labels != ignore_index
    bad = valid & ((labels < 0) | (labels >= classes))
    if bool(bad.any()):
        from kdbench.ops.native import bad_label

        row = int(bad.nonzero()[0])
        raise bad_label(int(labels[row]), row, classes)
    return torch.where(valid, labels, 0).long(), valid


def _cross_entropy(s: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Row losses ``-log softmax(s)[y]`` and gradients ``softmax(s) - onehot(y)``; 0 in rows that are not valid."""
    log_q = torch.log_softmax(s, dim=1)
    loss = -log_q.gather(1, target[:, None])[:, 0]
    slope = log_q.exp()
    slope.scatter_add_(1, target[:, None], slope.new_full((len(s), 1), -1.0))
    return torch.where(valid, loss, 0.0), torch.where(valid[:, None], slope, 0.0)


def _kl(s: Tensor, t: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Row losses ``sum p (log p - log q)`` and gradients ``(q - p) / T``, with 0 log 0 = 0."""
    log_q = torch.log_softmax(s / temperature, dim=1)
    log_p = torch.log_softmax(t / temperature, dim=1)
    p, q = log_p.exp(), log_q.exp()
    terms = torch.where(log_q == -_INFINITY, _INFINITY, p * (log_p - log_q))
    terms = torch.where(log_p == -_INFINITY, 0.0, terms)
    return terms.sum(dim=1), (q - p) / temperature


def _add(
    row_loss: Tensor, gradient: Tensor | None, weight: Tensor, loss: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor | None]:
    # weight is 0 only in rows that are not valid, whose loss and slope are 0 already: 0 * inf cannot arise
    return row_loss + weight * loss, None if gradient is None else gradient + weight[:, None] * slope

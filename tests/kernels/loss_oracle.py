"""What the loss tests hold the implementations against: textbook formulas in float64, differentiated by torch.

Nothing here is shared with ``kdbench.ops.reference``: no gradient is written down, and reductions are spelled out from
the table of :mod:`kdbench.losses`. Inputs are taken as rounded, so that half precision is judged by what it was given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PerRow = float | Tensor


class Exact(NamedTuple):
    """A loss and its gradient, and how far rounding may carry others away from them.

    Log-probabilities are of the size of ``1 + log C + |logit| / T``, and rounding one to float32 costs a few parts in
    ten million of that, however small the difference of two, or the divergence, may be. A probability loses as many
    parts of itself. ``loss_slack`` and ``gradient_slack`` weigh this as the loss does.
    """

    loss: Tensor
    gradient: Tensor
    loss_slack: Tensor
    gradient_slack: float


class Terms(NamedTuple):
    """Rows of both terms, and those of the soft one without the signs of its summands."""

    hard: Tensor | None
    soft: Tensor | None = None
    soft_scale: Tensor | None = None


def value_and_gradient(loss_of: Callable[[Tensor], Tensor], student: Tensor) -> tuple[Tensor, Tensor]:
    """``loss_of(student)`` and the gradient of its sum, on a fresh leaf."""
    leaf = student.detach().clone().requires_grad_()
    loss = loss_of(leaf)
    loss.sum().backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


def batch(
    rows: int, classes: int, *, seed: int = 0, spread: float = 1.0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Random student logits, teacher logits and labels."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (spread * torch.randn(2, rows, classes, generator=generator)).to(dtype)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    return student, teacher, labels


def exact(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor | None,
    *,
    temperature: PerRow = 1.0,
    alpha: PerRow = 1.0,
    label_share: PerRow = 1.0,
    **weighting,
) -> Exact:
    """``(1 - alpha) CE + alpha T^2 KL`` for one teacher, or the cross-entropy alone, perhaps with a soft label."""
    if teacher is None:
        return _weighed(student, (), labels, lambda s: Terms(_hard(s, labels, label_share)), 0.0, 1.0, **weighting)

    def terms(s: Tensor) -> Terms:
        soft = _divergence(_log_softmax(teacher, temperature), _log_softmax(s, temperature))
        return Terms(_hard(s, labels, 1.0), *soft)

    return _weighed(student, (teacher,), labels, terms, alpha, temperature, **weighting)


def exact_ensemble(
    student: Tensor,
    teachers: Sequence[Tensor],
    labels: Tensor | None,
    *,
    temperature: PerRow,
    alpha: PerRow,
    combine: str,
    teacher_weights: Sequence[float],
    **weighting,
) -> Exact:
    """The same for several teachers."""
    log_ps = [_log_softmax(teacher, temperature) for teacher in teachers]

    def terms(s: Tensor) -> Terms:
        log_q = _log_softmax(s, temperature)
        if combine == "probabilities":
            mean = sum(w * log_p.exp() for w, log_p in zip(teacher_weights, log_ps, strict=True))
            return Terms(_hard(s, labels, 1.0), *_divergence(mean.log(), log_q))
        each = [_divergence(log_p, log_q) for log_p in log_ps]
        soft, scale = (
            sum(w * value for w, value in zip(teacher_weights, values, strict=True))
            for values in zip(*each, strict=True)
        )
        return Terms(_hard(s, labels, 1.0), soft, scale)

    return _weighed(student, teachers, labels, terms, alpha, temperature, **weighting)


def exact_topk(
    student: Tensor,
    listed: Tensor,
    indices: Tensor,
    labels: Tensor | None,
    *,
    temperature: PerRow,
    alpha: PerRow,
    tail: str,
    teacher_lse: Tensor | None,
    **weighting,
) -> Exact:
    """The same for a sparse teacher. Classes outside the list are found by a mask and not by subtraction."""
    t = listed.detach().double() / _column(temperature)
    log_p = F.log_softmax(t, dim=1) if tail == "renormalise" else t - teacher_lse[:, None]
    outside = torch.ones(student.shape, dtype=torch.bool).scatter(1, indices.long(), False)

    def terms(s: Tensor) -> Terms:
        log_q = _log_softmax(s, temperature)
        soft, scale = _divergence(log_p, log_q.gather(1, indices.long()))
        if tail == "bucket" and bool(outside.any()):
            rest = (1 - log_p.exp().sum(dim=1, keepdim=True)).clamp(min=0)
            log_rest_q = log_q.masked_fill(~outside, -torch.inf).logsumexp(dim=1, keepdim=True)
            more, more_scale = _divergence(rest.log(), log_rest_q)
            soft, scale = soft + more, scale + more_scale
        return Terms(_hard(s, labels, 1.0), soft, scale)

    return _weighed(student, (listed,), labels, terms, alpha, temperature, **weighting)


def _weighed(
    student: Tensor,
    teachers: Sequence[Tensor],
    labels: Tensor | None,
    terms: Callable[[Tensor], Terms],
    alpha: PerRow,
    temperature: PerRow,
    *,
    reduction: str = "batchmean",
    ignore_index: int = -100,
    row_weight: Tensor | None = None,
    kl_rows: str = "all",
    squared: bool = True,
) -> Exact:
    s = student.detach().double().requires_grad_()
    rows, classes = s.shape
    every = torch.ones(rows, dtype=torch.float64)
    hard, soft, soft_scale = (0 * every if term is None else term for term in terms(s))
    valid = every.bool() if labels is None else labels != ignore_index
    kept = valid if kl_rows == "valid" else every.bool()
    degrees, alpha = temperature * every, alpha * every
    weight = every if row_weight is None else row_weight.double()
    hard_weight = (1 - alpha) * weight * valid
    soft_weight = alpha * weight * kept * (degrees**2 if squared else 1)
    if reduction in ("batchmean", "mean"):
        hard_weight = hard_weight / max(int(valid.sum()), 1)
        soft_weight = soft_weight / max(int(kept.sum()), 1) / (classes if reduction == "mean" else 1)
    # a row of weight 0 has no such term, be it infinite
    hard, soft, soft_scale = (
        torch.where(factor != 0, term, 0.0)
        for factor, term in ((hard_weight, hard), (soft_weight, soft), (soft_weight, soft_scale))
    )
    row_loss = hard_weight * hard + soft_weight * soft
    loss = row_loss if reduction == "none" else row_loss.sum()
    (gradient,) = torch.autograd.grad(loss.sum(), s)
    sizes = torch.stack([_peaks(logits) for logits in (student, *teachers)]).amax(dim=0)
    hard_size = hard_weight.abs() * (1 + math.log(classes) + sizes)
    soft_size = soft_weight.abs() * (1 + math.log(classes) + sizes / degrees)
    slack = 4e-7 * (hard_size + soft_size * (1 + soft_scale.detach()))
    gradient_slack = 4e-7 * peak(hard_size + soft_size / degrees)
    return Exact(loss.detach(), gradient, slack if reduction == "none" else slack.sum(), gradient_slack)


def _hard(s: Tensor, labels: Tensor | None, label_share: PerRow) -> Tensor | None:
    """``- sum_c w_c log softmax(s)_c``; of some class where the label names none."""
    if labels is None:
        return None
    classes = s.shape[1]
    onehot = F.one_hot(labels.long().clamp(0, classes - 1), classes).double()
    share = _column(label_share)
    target = onehot if classes == 1 else share * onehot + (1 - share) * (1 - onehot) / (classes - 1)
    return -torch.where(target > 0, target * F.log_softmax(s, dim=1), 0.0).sum(dim=1)


def _divergence(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """``sum p log(p / q)`` of each row, 0 where p is 0; and the same without the signs."""
    p = log_p.exp()
    summands = torch.where(p > 0, p * (log_p - log_q), 0.0)
    return summands.sum(dim=1), summands.abs().sum(dim=1)


def _log_softmax(logits: Tensor, temperature: PerRow) -> Tensor:
    return F.log_softmax(logits.double() / _column(temperature), dim=1)


def _column(value: PerRow) -> PerRow:
    return value.double()[:, None] if isinstance(value, Tensor) else value


def _peaks(logits: Tensor) -> Tensor:
    """The largest finite magnitude of each row."""
    magnitudes = logits.detach().double().abs()
    return torch.where(magnitudes.isfinite(), magnitudes, 0.0).amax(dim=1)


def assert_close(got: tuple[Tensor, Tensor], want: Exact, implementation: str, *, subtracts: bool = False) -> None:
    """2e-6 of the loss, 1e-6 of the largest gradient, and one unit in the last place of half precision.

    Plain torch gets the slack of who subtracts rounded logarithms, and so do the kernels where they too have to
    (``subtracts``): several teachers, sparse ones, soft labels, a log-sum-exp from elsewhere. The yardstick itself
    needs it as well, in float64.
    """
    loss, gradient = got
    info = torch.finfo(gradient.dtype)
    assert loss.dtype == torch.promote_types(gradient.dtype, torch.float32)
    unit = 1e-5 if info.bits == 64 else 1.0
    slack = unit if subtracts or implementation == "reference" else 2e-9
    off = (loss.double() - want.loss).abs()
    allowed = unit * 2e-6 * want.loss.abs() + slack * want.loss_slack + 1e-30
    assert bool((off <= allowed).all()), f"loss is off by {off}, allowed {allowed}: {loss} for {want.loss}"
    assert gradient.shape == want.gradient.shape
    off = (gradient.double() - want.gradient).abs()
    allowed = torch.as_tensor(unit * 1e-6 * peak(want.gradient) + slack * want.gradient_slack + 1e-30)
    if info.bits == 16:
        allowed = allowed + info.eps * want.gradient.abs() + info.smallest_normal * info.eps
    worst = float((off - allowed).max()) if off.numel() else 0.0
    assert worst <= 0, f"gradient is off by up to {peak(off)}, {worst} too much"


def peak(values: Tensor) -> float:
    """The largest magnitude, 0 of nothing."""
    return float(values.abs().max()) if values.numel() else 0.0

"""The truth of a case: the formula in float64 on the logits as rounded. Imports torch; load it lazily.

The loss is computed over all rows, the gradient in a sample of them that holds the first and the last. The gradient's
entries at the labels are compared apart from the others: in a large vocabulary the first would hide the second.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from kdbench.bench.contender import Case

__all__ = ["TOLERANCES", "Errors", "Reference", "reference"]

_BLOCK = 1 << 22  # elements in float64 at a time: 32 MiB a tensor

# Greatest relative errors of loss and gradient. They are to tell a wrong formula from a rounded one: in bfloat16 eager
# torch rounds log-probabilities of about -12 to 1/16; it was seen to miss the loss by 10 % and the gradient by 9 %.
TOLERANCES = {
    "float64": (1e-10, 1e-9),
    "float32": (1e-4, 1e-3),
    "float16": (0.01, 0.1),
    "bfloat16": (0.3, 0.3),
}


class Errors(NamedTuple):
    """Relative errors of a contender, and what is wrong with them (empty: nothing)."""

    loss: float
    gradient: float
    problem: str


class Reference(NamedTuple):
    """``gradient`` holds the rows of the loss's gradient that ``rows`` names; ``labels`` are these rows' labels."""

    case: Case
    loss: float
    rows: Tensor
    labels: Tensor
    gradient: Tensor

    def judge(self, loss: Tensor, gradient: Tensor) -> Errors:
        """Hold a contender's scalar loss and ``[N, C]`` gradient against the truth."""
        if loss.dim() != 0:
            return Errors(math.nan, math.nan, f"its loss has shape {list(loss.shape)}, not that of a scalar")
        shape = [self.case.rows, self.case.classes]
        if list(gradient.shape) != shape:
            return Errors(math.nan, math.nan, f"its gradient has shape {list(gradient.shape)}, not {shape}")
        wrong_by = _relative(abs(float(loss) - self.loss), abs(self.loss))
        slope_by = self._gradient_error(gradient[self.rows].double())
        most_loss, most_gradient = TOLERANCES[self.case.dtype]
        problem = ""
        if not wrong_by <= most_loss:  # NaN is wrong too
            problem = f"its loss is {float(loss):.6g}, the reference's {self.loss:.6g}"
        elif not slope_by <= most_gradient:
            problem = f"its gradient is off by {slope_by:.2g} of the reference's size"
        return Errors(wrong_by, slope_by, problem)

    def _gradient_error(self, gradient: Tensor) -> float:
        at_label = torch.zeros_like(gradient, dtype=torch.bool).scatter_(1, self.labels[:, None], True)
        parts = [self._error_of_part(gradient, part) for part in (at_label, ~at_label)]
        return math.nan if any(map(math.isnan, parts)) else max(parts)

    def _error_of_part(self, gradient: Tensor, part: Tensor) -> float:
        off = float((gradient - self.gradient)[part].norm())
        dtype = torch.finfo(getattr(torch, self.case.dtype))
        # For what is lost below a dtype's smallest number the dtype is to blame, not the contender.
        unseen = dtype.smallest_normal * dtype.eps * math.sqrt(int(part.sum()))
        return 0.0 if off <= unseen else _relative(off - unseen, float(self.gradient[part].norm()))


def _relative(difference: float, size: float) -> float:
    return difference / size if size else difference


def reference(case: Case, student: Tensor, teacher: Tensor, labels: Tensor) -> Reference:
    """Compute it, some rows at a time."""
    step = max(1, _BLOCK // case.classes)
    loss = 0.0
    for start in range(0, case.rows, step):
        block = slice(start, start + step)
        loss += float(_share_of_loss(case, student.detach()[block].double(), teacher[block], labels[block]))
    count = min(case.rows, max(2, step))
    rows = torch.linspace(0, case.rows - 1, count, dtype=torch.float64, device=labels.device).round().long()
    sampled = student.detach()[rows].double().requires_grad_()
    _share_of_loss(case, sampled, teacher[rows], labels[rows]).backward()  # type: ignore[no-untyped-call]
    assert sampled.grad is not None
    return Reference(case, loss, rows, labels[rows], sampled.grad)


def _share_of_loss(case: Case, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """What some rows add to the mean over all of them."""
    temperature, alpha = case.temperature, case.alpha
    log_q = functional.log_softmax(student / temperature, dim=1)
    log_p = functional.log_softmax(teacher.double() / temperature, dim=1)
    soft = functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
    hard = functional.cross_entropy(student, labels, reduction="sum")
    return ((1 - alpha) * hard + alpha * temperature**2 * soft) / case.rows

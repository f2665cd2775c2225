"""Two output layers and the loss between them, taken through chunks of rows."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from kdbench.losses._weights import RowFactors, scaled
from kdbench.ops.autograd import loss_and_gradient
from kdbench.ops.reference import check_labels_in_range
from kdbench.ops.spec import CE_MEAN_VALID, KL_MEAN_CLASSES, KL_MEAN_ROWS, KL_VALID_ROWS, LossInputs, LossSpec

__all__ = ["Heads", "Task", "Wanted", "in_chunks"]


class Heads(NamedTuple):
    """The output layers of both networks, with what goes into them."""

    hidden_s: Tensor
    weight_s: Tensor
    bias_s: Tensor | None
    hidden_t: Tensor
    weight_t: Tensor
    bias_t: Tensor | None


class Task(NamedTuple):
    """The rest of a call, checked."""

    labels: Tensor | None
    factors: RowFactors
    spec: LossSpec
    dtype: torch.dtype  # of the logits
    chunk_bytes: int


class Wanted(NamedTuple):
    """Which gradients are asked for."""

    hidden: bool
    weight: bool
    bias: bool


def in_chunks(heads: Heads, task: Task, wanted: Wanted) -> tuple[Tensor, list[Tensor | None], float]:
    """The loss; the gradients of the student's hidden state, weight and bias where they are wanted; and their lift.

    The gradients are those of the loss multiplied by the lift, a power of two.
    """
    device = heads.hidden_s.device
    if task.labels is not None:  # a kernel would count the rows of its chunk
        check_labels_in_range(task.labels, len(heads.weight_s), task.spec.ignore_index)
    lift = _lift(task.dtype, len(heads.hidden_s))
    task = _with_divisors(task, heads)
    spec = task.spec._replace(ce_weight=task.spec.ce_weight * lift, kl_weight=task.spec.kl_weight * lift)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        student = _Layer(heads.hidden_s, heads.weight_s, heads.bias_s, task.dtype)
        teacher = _Layer(heads.hidden_t, heads.weight_t, heads.bias_t, task.dtype)
        sums = _Sums(student, wanted)
        rows, classes = len(student.hidden), len(student.weight)
        size = _chunk_rows(student, rows, classes, task.chunk_bytes, wanted)
        buffers = torch.empty((2, size, classes), dtype=task.dtype, device=device)
        total = torch.zeros((), dtype=torch.float64, device=device)
        for start in range(0, rows, size):
            chunk = slice(start, min(start + size, rows))
            inputs = _inputs(task, student.logits(chunk, buffers[0]), teacher.logits(chunk, buffers[1]), chunk)
            # the gradient takes the place of the student's logits
            out = inputs.student if any(wanted) else None
            loss, gradient = loss_and_gradient(inputs, spec, want_gradient=any(wanted), out=out)
            total += loss
            if gradient is not None:
                sums.add(gradient, chunk)
        pairs = zip((sums.hidden, sums.weight, sums.bias), heads[:3], strict=True)
        gradients = [None if g is None or like is None else g.to(like.dtype) for g, like in pairs]
        return (total / lift).to(torch.promote_types(task.dtype, torch.float32)), gradients, lift


class _Layer:
    """One output layer, in the dtype of its logits."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.hidden = hidden.detach().to(dtype)
        self.weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)

    def logits(self, chunk: slice, buffer: Tensor) -> Tensor:
        """Logits of some rows, written to the head of a buffer."""
        hidden = self.hidden[chunk]
        out = buffer[: len(hidden)]
        if self.bias is None:
            return torch.mm(hidden, self.weight.T, out=out)
        return torch.addmm(self.bias, hidden, self.weight.T, out=out)


class _Sums:
    """The gradients of the student's layer as they grow, in float32 or float64."""

    def __init__(self, layer: _Layer, wanted: Wanted) -> None:
        self._layer = layer
        weight = layer.weight
        self.dtype = torch.promote_types(weight.dtype, torch.float32)
        self.hidden = torch.empty_like(layer.hidden) if wanted.hidden else None
        self.weight = torch.zeros(weight.shape, dtype=self.dtype, device=weight.device) if wanted.weight else None
        self.bias = torch.zeros(len(weight), dtype=self.dtype, device=weight.device) if wanted.bias else None

    def add(self, gradient: Tensor, chunk: slice) -> None:
        """Takes in the gradient of some rows' logits."""
        if self.hidden is not None:
            torch.mm(gradient, self._layer.weight, out=self.hidden[chunk])
        if self.weight is not None:
            _add_product(self.weight, gradient.T, self._layer.hidden[chunk])
        if self.bias is not None:
            self.bias += gradient.sum(dim=0, dtype=self.dtype)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, added up in the precision of ``total``."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.device.type != "cuda":
        total.addmm_(left.to(total.dtype), right.to(total.dtype))
    elif _addmm_widens():
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total += torch.mm(left, right, out_dtype=total.dtype)


@cache
def _addmm_widens() -> bool:
    """Whether this torch adds a product of half precision to float32 in one step on a GPU; not every version can."""
    half = torch.zeros((8, 8), dtype=torch.bfloat16, device="cuda")
    try:
        torch.addmm(half.float(), half, half, out_dtype=torch.float32)
    except RuntimeError:
        return False
    return True


def _with_divisors(task: Task, heads: Heads) -> Task:
    """Puts the divisors of the reduction over all rows into the weights, for a chunk sees only its own rows.

    The number of valid rows stays on the device: it becomes a factor of each row.
    """
    rows, classes, flags = len(heads.hidden_s), len(heads.weight_s), task.spec.flags
    temperature, ce_weight, kl_weight = task.factors
    soft, share = task.spec.kl_weight, None
    if task.labels is not None:
        valid = (task.labels != task.spec.ignore_index).sum().clamp(min=1)
        share = valid.to(torch.float64).reciprocal().expand(rows).contiguous()
    if share is not None and flags & CE_MEAN_VALID:
        ce_weight = scaled(share, ce_weight)
    if flags & KL_MEAN_ROWS:
        if share is not None and flags & KL_VALID_ROWS:
            kl_weight = scaled(share, kl_weight)
        else:
            soft /= max(rows, 1)
    if flags & KL_MEAN_CLASSES:
        soft /= classes
    spec = task.spec._replace(kl_weight=soft, flags=flags & KL_VALID_ROWS)
    return task._replace(spec=spec, factors=RowFactors(temperature, ce_weight, kl_weight))


def _lift(dtype: torch.dtype, rows: int) -> float:
    """What the gradients are kept multiplied by: in float16 one row's share of a mean would underflow.

    A power of two, so that nothing is rounded; divided away together with the upstream gradient, which a loss scale has
    made large.
    """
    return 2.0 ** math.floor(math.log2(rows)) if dtype == torch.float16 and rows > 1 else 1.0


def _chunk_rows(layer: _Layer, rows: int, classes: int, chunk_bytes: int, wanted: Wanted) -> int:
    """How many rows fit: logits of both networks, and the student's widened gradient where the CPU needs one."""
    size = layer.weight.element_size()
    widened = 4 if wanted.weight and size == 2 and layer.weight.device.type != "cuda" else 0
    return max(1, min(rows, chunk_bytes // (classes * (2 * size + widened))))


def _inputs(task: Task, student: Tensor, teacher: Tensor, chunk: slice) -> LossInputs:
    labels = None if task.labels is None else task.labels[chunk]
    temperature, ce_weight, kl_weight = (None if factor is None else factor[chunk] for factor in task.factors)
    return LossInputs(student, (teacher,), labels, temperature=temperature, ce_weight=ce_weight, kl_weight=kl_weight)

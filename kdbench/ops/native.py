"""The only caller of the compiled module: tensors in, addresses out. Imports torch; import it lazily."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import torch  # first: it brings the OpenMP runtime that the compiled module then shares
from torch import Tensor

from kdbench.errors import KdbenchError
from kdbench.ops.spec import LossSpec

__all__ = ["fits", "instruction_set", "load_failure", "loss_and_gradient"]

_API_LEVEL = 1
_PLAIN = (Tensor, torch.nn.Parameter)


@cache
def _load() -> tuple[Any, str | None]:
    try:
        _native = importlib.import_module("kdbench.ops._native")
    except ImportError as error:
        return None, f"the compiled module does not load: {error}"
    if _native.api_level != _API_LEVEL:
        return None, f"the compiled module has API level {_native.api_level}, not {_API_LEVEL}: build it again"
    return _native, None


def load_failure() -> str | None:
    """Why the compiled module cannot be used, or None."""
    return _load()[1]


def instruction_set() -> str | None:
    """The instruction set that the kernel uses on this machine (``avx2``, ``generic``), or None without a kernel."""
    native = _load()[0]
    return None if native is None else str(native.isa)


def fits(student: Tensor, teacher: Tensor | None) -> bool:
    """Whether the kernel can read these tensors: plain float32 or float64 in the CPU's memory."""
    return (
        student.device.type == "cpu"
        and student.dtype in (torch.float32, torch.float64)
        and type(student) in _PLAIN
        and (teacher is None or type(teacher) in _PLAIN)
    )


def loss_and_gradient(
    student: Tensor, teacher: Tensor | None, labels: Tensor | None, spec: LossSpec, *, want_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Loss, and its gradient with respect to the student logits, in one pass over the rows.

    Parameters
    ----------
    student, teacher : ``[N, C]`` logits of one dtype, any strides.
    labels : ``[N]`` int32 or int64.
    spec : weights and temperature.
    want_gradient : without it no gradient is computed.

    Returns
    -------
    loss : scalar, or ``[N]`` if ``spec.per_row``, in the dtype of the logits.
    gradient : contiguous ``[N, C]`` in the dtype of the logits, of the sum of the row losses; or None.

    Raises
    ------
    KdbenchError : a label lies outside ``[0, C)`` and is not ``ignore_index``.
    """
    native, failure = _load()
    if native is None:
        raise KdbenchError(f"the native kernels cannot be used: {failure}", where="kdbench.ops.native")
    rows, classes = student.shape
    student = _readable(student.detach())
    teacher = None if teacher is None else _readable(teacher.detach())
    labels = None if labels is None else labels.contiguous()
    gradient = torch.empty((rows, classes), dtype=student.dtype) if want_gradient else None
    row_loss = torch.empty(rows, dtype=torch.float64) if spec.per_row else None
    status, total, bad_row = native.loss(
        _address(student),
        _address(teacher),
        _address(labels),
        _address(gradient),
        _address(row_loss),
        rows,
        classes,
        student.stride(0),
        0 if teacher is None else teacher.stride(0),
        classes,
        spec.ignore_index,
        spec.temperature,
        spec.ce_weight,
        spec.kl_weight,
        native.FLOAT32 if student.dtype == torch.float32 else native.FLOAT64,
        native.INT32 if labels is not None and labels.dtype == torch.int32 else native.INT64,
        native.CE_MEAN_OVER_VALID_ROWS if spec.ce_mean else 0,
        torch.get_num_threads(),
    )
    if status != native.OK:
        raise _error(native, status, bad_row, labels, classes)
    if row_loss is not None:
        return row_loss.to(student.dtype), gradient
    return torch.scalar_tensor(total, dtype=student.dtype), gradient


def _readable(logits: Tensor) -> Tensor:
    """The same numbers where the kernel can walk a row: inner stride 1 and no lazy negation. Outer strides may be 0."""
    logits = logits.resolve_neg()
    return logits if logits.stride(1) == 1 else logits.contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _error(native: Any, status: int, row: int, labels: Tensor | None, classes: int) -> KdbenchError:
    where = "kdbench.losses"
    if status == native.BAD_LABEL and labels is not None:
        return bad_label(int(labels[row]), row, classes)
    if status == native.NO_MEMORY:
        return KdbenchError("the loss kernel has no memory for its scratch rows", where=where, cure="use fewer threads")
    return KdbenchError(f"the loss kernel refused its arguments (status {status})", where=where)


def bad_label(label: int, row: int, classes: int) -> KdbenchError:
    """The error for a label that names no class."""
    return KdbenchError(
        f"label {label} in row {row} is outside [0, {classes})",
        where="kdbench.losses",
        cure="check the number of classes, or mark rows to skip with ignore_index",
    )

"""The only caller of the compiled module: tensors in, tensors out. Imports torch; import it lazily."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import torch  # first: it brings the OpenMP runtime that the compiled module then shares
from torch import Tensor

from kdbench.errors import KdbenchError
from kdbench.ops.faults import bad_index, bad_label
from kdbench.ops.spec import LossInputs, LossSpec

__all__ = [
    "explain",
    "fits",
    "has_cuda",
    "instruction_set",
    "load_failure",
    "log_sum_exp",
    "loss_and_gradient",
    "module",
]

_API_LEVEL = 2
_PLAIN = (Tensor, torch.nn.Parameter)
_CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_CUDA_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def _load() -> tuple[Any, str | None]:
    try:
        native = importlib.import_module("kdbench.ops._native")
    except ImportError as error:
        return None, f"the compiled module does not load: {error}"
    if native.api_level != _API_LEVEL:
        return None, f"the compiled module has API level {native.api_level}, not {_API_LEVEL}: build it again"
    try:
        native.use_tensors_of(Tensor)
    except (AttributeError, ImportError) as error:
        return None, f"torch {torch.__version__} has no DLPack exchange table (torch 2.11 and newer do): {error}"
    return native, None


def load_failure() -> str | None:
    """Why the compiled module cannot be used, or None."""
    return _load()[1]


def module() -> Any:
    """The compiled module.

    Raises
    ------
    KdbenchError : it cannot be used.
    """
    native, failure = _load()
    if native is None:
        raise KdbenchError(f"the native kernels cannot be used: {failure}", where="kdbench.ops.native")
    return native


def instruction_set() -> str | None:
    """The instruction set of the CPU kernels here (``avx512``, ``avx2``, ``generic``), or None without a module."""
    native = _load()[0]
    return None if native is None else str(native.isa())


def has_cuda() -> bool:
    """Whether the module holds CUDA kernels and a driver offers a device for them."""
    native = _load()[0]
    return native is not None and bool(native.cuda) and int(native.cuda_devices()) > 0


def fits(student: Tensor) -> bool:
    """Whether the kernels can compute on tensors like this one, once they are laid out for it."""
    if type(student) not in _PLAIN:
        return False
    if student.device.type == "cpu":
        return student.dtype in _CPU_DTYPES
    return student.device.type == "cuda" and student.dtype in _CUDA_DTYPES and has_cuda()


def loss_and_gradient(
    inputs: LossInputs, spec: LossSpec, *, want_gradient: bool, out: Tensor | None = None
) -> tuple[Tensor, Tensor | None, float | None]:
    """Loss, and its gradient with respect to the student logits, in one pass over the rows.

    Parameters
    ----------
    inputs : tensors of any strides; see :class:`kdbench.ops.spec.LossInputs`.
    spec : weights, temperature and flags.
    want_gradient : without it no gradient is computed.
    out : ``[N, C]`` like the student, inner stride 1, where the gradient is written; it may be the student itself.

    Returns
    -------
    loss : scalar, or ``[N]`` with ``PER_ROW``; float64 for float64 logits, float32 otherwise.
    gradient : ``out``, or contiguous ``[N, C]`` in the dtype of the logits, of the sum of the row losses; or None.
    unscale : what the gradient is still to be multiplied by (see ``LossSpec.grad_scale``); None for 1.

    Raises
    ------
    KdbenchError : on the CPU, a label or sparse index that is out of range.
    """
    native = module()
    given = LossInputs(*(_laid_out(item) for item in inputs))
    extras = (given.indices, given.teacher_lse, given.temperature, given.ce_weight, given.kl_weight, given.label_share)
    destination = False if not want_gradient else True if out is None else out.detach()
    try:
        result = native.loss(
            given.student,
            given.teachers,
            given.labels,
            None if all(extra is None for extra in extras) else extras,
            spec,
            destination,
            torch.get_num_threads(),
        )
    except native.LossError as error:
        raise explain(error, inputs) from None
    if result is None:
        raise KdbenchError("the loss kernel cannot read these tensors", where="kdbench.ops.native")
    loss, gradient, unscale = result
    return loss, gradient if out is None else out, unscale


def log_sum_exp(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """``logsumexp(logits / T)`` of each row, ``[N]`` float64."""
    native = module()
    rows = temperature if isinstance(temperature, Tensor) else None
    scalar = 1.0 if rows is not None else float(temperature)
    result = native.log_sum_exp(_laid_out(logits), scalar, _laid_out(rows), torch.get_num_threads())
    if result is None:
        raise KdbenchError("the log-sum-exp kernel cannot read these tensors", where="kdbench.ops.native")
    return result  # type: ignore[no-any-return]


def _laid_out(item: Any) -> Any:
    """The same numbers where a kernel can walk them: inner stride 1, no lazy negation, no gradient."""
    if item is None:
        return None
    if isinstance(item, tuple):
        return tuple(_laid_out(tensor) for tensor in item)
    tensor: Tensor = item.detach().resolve_neg()
    matrix_of_logits = tensor.dim() == 2 and tensor.is_floating_point()
    if matrix_of_logits and tensor.stride(1) == 1:
        return tensor  # rows may lie anywhere
    return tensor.contiguous()


def explain(error: Exception, inputs: LossInputs) -> KdbenchError:
    """What a kernel's status means to whoever called the loss."""
    native = module()
    status, row = error.args
    classes = inputs.student.shape[1]
    where = "kdbench.losses"
    if status == native.BAD_LABEL and inputs.labels is not None:
        return bad_label(int(inputs.labels[row]), row, classes)
    if status == native.BAD_INDEX and inputs.indices is not None:
        return bad_index(inputs.indices, row, classes)
    if status == native.NO_MEMORY:
        return KdbenchError("the loss kernel has no memory for its scratch rows", where=where, cure="use fewer threads")
    if status == native.CUDA_ERROR:
        return KdbenchError(f"the loss kernel failed on the device: {native.cuda_error()}", where=where)
    return KdbenchError(f"the loss kernel refused its arguments (status {status})", where=where)

"""What every loss checks before an implementation sees it. Errors name the argument, the fault and the cure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kdbench.errors import KdbenchError

__all__ = [
    "WIDEST",
    "check_inplace",
    "check_labels",
    "check_logits",
    "check_teacher",
    "error",
    "one_dtype",
    "per_row",
    "row_alpha",
    "row_share",
    "row_teacher_lse",
    "row_temperature",
    "row_weights",
]

# Beyond these, T^2 and a KL divided by it come near the ends of float32.
WIDEST = (1e-18, 1e18)

TEMPERATURE_RULE = f"it must be positive, and between {WIDEST[0]:g} and {WIDEST[1]:g}"
ALPHA_RULE = "it is the weight of the soft term and lies in [0, 1]"
SHARE_RULE = "it is the target's probability of the label and lies in [0, 1]"

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def error(what: str, cure: str | None = None) -> KdbenchError:
    """An error of this package."""
    return KdbenchError(what, where="kdbench.losses", cure=cure)


def check_logits(name: str, logits: Tensor) -> None:
    """Logits are a floating ``[N, C]`` with ``C > 0``."""
    if not isinstance(logits, Tensor):
        raise error(f"{name} are a {type(logits).__name__}", "give a tensor [N, C]")
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise error(
            f"{name} have shape {list(logits.shape)}, not [N, C] with C > 0", "flatten positions into rows first"
        )
    if logits.dtype not in _DTYPES:
        raise error(f"{name} are {logits.dtype}", "convert them to a floating dtype of 16, 32 or 64 bits")


def check_teacher(student: Tensor, teacher: Tensor, name: str = "teacher logits") -> None:
    """A teacher's logits have the student's shape."""
    check_logits(name, teacher)
    if teacher.shape != student.shape:
        raise error(
            f"{name} have shape {list(teacher.shape)}, student logits {list(student.shape)}",
            "both need the same rows and classes",
        )


def one_dtype(student: Tensor, teachers: Sequence[Tensor], name: str = "teacher logits") -> tuple[Tensor, ...]:
    """Student and teachers on one device in one dtype; under autocast the narrower ones are widened, exactly.

    Raises
    ------
    KdbenchError : dtypes differ outside autocast, or devices differ.
    """
    for teacher in teachers:
        check_device(name, teacher, student)
    if all(teacher.dtype == student.dtype for teacher in teachers):
        return (student, *teachers)
    wide = student.dtype
    for teacher in teachers:
        if teacher.dtype != student.dtype and not torch.is_autocast_enabled(student.device.type):
            raise error(
                f"{name} are {teacher.dtype}, student logits {student.dtype}",
                "convert one: teacher_logits.to(student_logits.dtype)",
            )
        wide = torch.promote_types(wide, teacher.dtype)
    return tuple(logits.to(wide) for logits in (student, *teachers))


def check_labels(student: Tensor, labels: Tensor) -> None:
    """Labels are ``[N]``, int32 or int64. Their range is checked where they are read."""
    if not isinstance(labels, Tensor):
        raise error(f"labels are a {type(labels).__name__}", "give a tensor [N] of class indices")
    if labels.shape != student.shape[:1]:
        raise error(
            f"labels have shape {list(labels.shape)}, not [{student.shape[0]}]", "give one class index for each row"
        )
    if labels.dtype not in (torch.int32, torch.int64):
        raise error(f"labels are {labels.dtype}", "convert them: labels.long()")
    check_device("labels", labels, student)


def check_device(name: str, tensor: Tensor, student: Tensor) -> None:
    """Tensors lie on the student's device."""
    if tensor.device != student.device:
        raise error(f"{name} are on {tensor.device}, student logits on {student.device}", "move one of them")


def row_temperature(values: Tensor, student: Tensor) -> Tensor:
    """One temperature a row."""
    least, most = WIDEST
    return per_row("temperature", values, student, TEMPERATURE_RULE, lambda t: (t >= least) & (t <= most))


def row_alpha(values: Tensor, student: Tensor) -> Tensor:
    """One alpha a row."""
    return per_row("alpha", values, student, ALPHA_RULE, _in_unit_interval)


def row_share(values: Tensor, student: Tensor) -> Tensor:
    """One label share a row."""
    return per_row("label_share", values, student, SHARE_RULE, _in_unit_interval)


def row_weights(values: Tensor, student: Tensor) -> Tensor:
    """One weight a row; any number is allowed."""
    return per_row("row_weight", values, student)


def row_teacher_lse(values: Tensor, student: Tensor) -> Tensor:
    """One log-sum-exp a row, in float64: a probability loses as many digits as its logarithm has before the point."""
    if isinstance(values, Tensor) and values.dtype != torch.float64:
        raise error(f"teacher_lse is {values.dtype}", "keep it in float64, as teacher_log_sum_exp gives it")
    return per_row("teacher_lse", values, student)


def per_row(
    name: str,
    values: Tensor,
    student: Tensor,
    rule: str | None = None,
    allows: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """An argument given once a row, as contiguous ``[N]`` float64.

    A value that breaks the rule is an error on the CPU. Elsewhere, and while a graph is traced, looking would wait for
    the device, so there it becomes NaN, and its row's loss with it.
    """
    if not isinstance(values, Tensor):
        raise error(f"{name} is a {type(values).__name__}", "give a tensor with one value for each row")
    if values.shape != student.shape[:1]:
        raise error(f"{name} has shape {list(values.shape)}, not [{student.shape[0]}]", "give one value for each row")
    if not values.is_floating_point():
        raise error(f"{name} is {values.dtype}", f"convert it: {name}.double()")
    check_device(f"values of {name}", values, student)
    if values.requires_grad:
        raise error(
            f"{name} requires a gradient, but the losses are differentiable in the student logits only",
            f"pass {name}.detach()",
        )
    values = values.to(torch.float64).contiguous()
    if allows is None:
        return values
    allowed = allows(values)
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.where(allowed, values, math.nan)
    if not bool(allowed.all()):
        row = int((~allowed).nonzero()[0])
        raise error(f"{name} is {values[row].item()} in row {row}", rule)
    return values


def _in_unit_interval(values: Tensor) -> Tensor:
    return (values >= 0) & (values <= 1)


def check_inplace(student: Tensor, others: Sequence[Tensor]) -> None:
    """The student logits may be overwritten: nobody else needs this memory, and no two of its elements share any."""
    if student.requires_grad and student.is_leaf:
        raise error(
            "inplace=True would overwrite a leaf that requires a gradient",
            "give logits that a computation made, or leave inplace out",
        )
    base = student._base
    if base is not None and base.requires_grad and base.is_leaf:
        raise error(
            "inplace=True would overwrite a view of a leaf that requires a gradient",
            "give logits that a computation made, or leave inplace out",
        )
    if _overlaps_itself(student):
        raise error(
            f"inplace=True, but elements of the student logits share memory (strides {list(student.stride())})",
            "give a contiguous copy, or leave inplace out",
        )
    if not torch.compiler.is_compiling() and any(_share_memory(student, other) for other in others):
        raise error(
            "inplace=True, but another argument lies in the student logits' memory",
            "give it its own memory, or leave inplace out",
        )


def _overlaps_itself(logits: Tensor) -> bool:
    """Whether two elements may lie at one address."""
    if logits.numel() == 0:
        return False
    spans = sorted((stride, size) for size, stride in zip(logits.shape, logits.stride(), strict=True) if size > 1)
    reach = 0
    for stride, size in spans:
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def _share_memory(one: Tensor, other: Tensor) -> bool:
    if one.numel() == 0 or other.numel() == 0 or one.device.type == "meta" or other.device != one.device:
        return False
    (start, end), (first, last) = _extent(one), _extent(other)
    return first < end and start < last


def _extent(tensor: Tensor) -> tuple[int, int]:
    reach = sum(stride * (size - 1) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (reach + 1) * tensor.element_size()

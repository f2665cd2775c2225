"""Whether a fast loss is the loss that its plain version says it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["Disparity", "Loss", "assert_loss_parity"]

_RELATIVE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}


class Loss(Protocol):
    """A distillation loss: a scalar or ``[N]``, from ``[N, C]`` logits of both and ``[N]`` int64 labels."""

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
        """The loss."""


class _Case(NamedTuple):
    """One batch, and where an error message says it was."""

    student: Tensor
    teacher: Tensor
    labels: Tensor
    temperature: float

    @property
    def where(self) -> str:
        rows, classes = self.student.shape
        dtype = str(self.student.dtype).removeprefix("torch.")
        return f"{rows} x {classes} {dtype} logits, T = {self.temperature:g}"


class _Outcome(NamedTuple):
    """A loss and the gradients of its sum; None where there is none."""

    loss: Tensor
    gradient: Tensor | None
    teacher_gradient: Tensor | None


def assert_loss_parity(
    loss: Loss,
    reference: Loss,
    *,
    shapes: Sequence[tuple[int, int]] = ((4, 10), (1, 2), (7, 17), (3, 100), (2, 1025)),
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    temperatures: Sequence[float] = (1.0, 4.0, 2.5),
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> None:
    """Hold a fused loss against its plain reference, value and gradient, over shapes, dtypes and temperatures.

    The reference computes in float64 on the same rounded inputs, so ``loss`` is judged by what it was given. On every
    batch:

    - the value is the reference's within 1e-5 (float64: 1e-10) of it and of what rounding costs at that temperature,
      and so is the gradient within 1e-5 of its largest entry; where the numbers returned are of half precision, within
      one unit in the last place more;
    - where one of the two is not finite, so is the other;
    - the gradient has the student's dtype and shape, and scales with the gradient that comes in;
    - none reaches the teacher;
    - no input is modified;
    - a second call gives the same bits.

    Parameters
    ----------
    loss : the implementation under test, called as ``loss(student_logits, teacher_logits, labels, temperature=T)``. It
        returns a scalar or ``[N]``; wrap it where it takes other arguments.
    reference : the same in plain torch, differentiable.
    shapes : pairs of N and C.
    dtypes : of student and teacher logits.
    temperatures : values of T. Where 1 is among them and only others fail, the message says so.
    seed : of the logits, which are normal with standard deviation 2; the teacher's are near the student's in every
        third row.
    device : where the tensors lie. The reference computes there too.

    Raises
    ------
    Disparity : the first of these that does not hold, an AssertionError; it names shape, dtype, temperature, row and
        class. What the losses themselves raise, an AssertionError too, passes through.

    Examples
    --------
    >>> import torch.nn.functional as F
    >>> from kdbench.losses import kl
    >>> def plain(s, t, y, *, temperature):
    ...     p, q = (F.log_softmax(logits / temperature, dim=1) for logits in (t.detach(), s))
    ...     return F.kl_div(q, p, log_target=True, reduction="batchmean")
    >>> assert_loss_parity(lambda s, t, y, *, temperature: kl(s, t, temperature=temperature), plain)
    """
    ordered = sorted(temperatures, key=lambda temperature: temperature != 1)
    for rows, classes in shapes:
        for dtype in dtypes:
            for temperature in ordered:
                case = _make_case(rows, classes, dtype, temperature, seed, device)
                try:
                    _check(loss, reference, case)
                except _WrongNumber as error:
                    if temperature == 1 or 1 not in temperatures:
                        raise
                    raise Disparity(f"{error}. At T = 1 it is right: look at the powers of T") from None


class Disparity(AssertionError):
    """A loss that is not what its reference says; no other assertion's error."""


class _WrongNumber(Disparity):
    """A value or a gradient that is off."""


def _make_case(
    rows: int, classes: int, dtype: torch.dtype, temperature: float, seed: int, device: str | torch.device
) -> _Case:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    teacher[1::3] = student[1::3] + 0.1 * teacher[1::3]
    labels = torch.randint(0, classes, (rows,), generator=generator)
    return _Case(student.to(device, dtype), teacher.to(device, dtype), labels.to(device), temperature)


def _evaluate(loss: Loss, case: _Case, weight: Tensor | None = None) -> _Outcome:
    """Loss and gradients on fresh leaves; ``weight`` is the gradient that comes in."""
    student = case.student.detach().clone().requires_grad_()
    teacher = case.teacher.detach().clone().requires_grad_()
    labels = case.labels.clone()
    value = loss(student, teacher, labels, temperature=case.temperature)
    if not isinstance(value, Tensor):
        raise Disparity(f"{case.where}: the loss is a {type(value).__name__}, not a tensor")
    gradients: tuple[Tensor | None, ...] = (None, None)
    if value.requires_grad:
        upstream = torch.ones_like(value) if weight is None else weight.to(value.dtype)
        gradients = torch.autograd.grad(value, (student, teacher), upstream, allow_unused=True)
    for name, given, kept in (
        ("student logits", student, case.student),
        ("teacher logits", teacher, case.teacher),
        ("labels", labels, case.labels),
    ):
        if not torch.equal(given.detach(), kept):
            raise Disparity(f"{case.where}: the {name} were modified, {_first_difference(given.detach(), kept)}")
    return _Outcome(value.detach(), *gradients)


def _check(loss: Loss, reference: Loss, case: _Case) -> None:
    wide = case._replace(student=case.student.double(), teacher=case.teacher.double())
    want = _evaluate(reference, wide)
    got = _evaluate(loss, case)
    _check_value(case, got.loss, want.loss)
    leaked = got.teacher_gradient
    if leaked is not None and bool(leaked.any()):
        raise Disparity(f"{case.where}: a gradient reaches the teacher, {_largest(leaked)}")
    gradient = _check_gradient(case, got.gradient, want.gradient)
    again = _evaluate(loss, case)
    if again.gradient is None or not (_identical(again.loss, got.loss) and _identical(again.gradient, gradient)):
        what, other, first = ("value", again.loss, got.loss)
        if _identical(other, first) and again.gradient is not None:
            what, other, first = ("gradient", again.gradient, gradient)
        raise Disparity(
            f"{case.where}: not deterministic: the {what} of a second call on the same inputs differs, "
            f"{_first_difference(other, first)}"
        )
    _check_scaling(loss, reference, case, wide)


def _check_value(case: _Case, got: Tensor, want: Tensor) -> None:
    if got.shape != want.shape:
        raise Disparity(
            f"{case.where}: the loss has shape {list(got.shape)}, its reference {list(want.shape)}: another reduction?"
        )
    relative = _RELATIVE[case.student.dtype]
    # A plain version subtracts logarithms of size 1, and multiplies what rounding leaves of the difference by T^2.
    allowed = relative * (want.abs() + 0.3 * (1 + case.temperature**2)) + _last_place(got, want)
    off = _apart(got, want)
    if _within(off, allowed):
        return
    at = _worst(off, allowed)
    row = f" in row {at}" if want.dim() else ""
    one, other, limit = (float(values.flatten()[at]) for values in (got, want, allowed))
    raise _WrongNumber(
        f"{case.where}: the value{row} is {one:.9g}, its reference {other:.9g}: off by {abs(one - other):.2g}, "
        f"allowed {limit:.2g}{_guess(case, one, other)}"
    )


def _guess(case: _Case, got: float, want: float) -> str:
    """What a ratio of the two suggests."""
    if want == 0 or got == 0:
        return ""
    rows, classes = case.student.shape
    suspects = {
        case.temperature**2: ("is the factor T^2 missing?", "is the factor T^2 there twice, or meant to be absent?"),
        float(classes): ("is it divided by the classes ('mean' of torch's KLDivLoss)?", "is it multiplied by C?"),
        float(rows): ("is it divided by the rows?", "is it a sum over the rows, not a mean?"),
        float(rows * classes): ("is it a mean over rows and classes?", "is it a sum, not a mean?"),
    }
    for factor, (below, above) in suspects.items():
        for ratio, text in ((1 / factor, f"1/{factor:g} of it: {below}"), (factor, f"{factor:g} times it: {above}")):
            if factor != 1 and abs(got / want - ratio) < 1e-3 * ratio:
                return f". That is {text}"
    return ""


def _check_gradient(case: _Case, got: Tensor | None, want: Tensor | None) -> Tensor:
    if want is None:
        raise Disparity(f"{case.where}: the reference is not differentiable in the student logits")
    if got is None:
        raise Disparity(f"{case.where}: the loss is not differentiable in the student logits")
    if got.dtype != case.student.dtype or got.shape != case.student.shape:
        raise Disparity(
            f"{case.where}: the gradient is {list(got.shape)} {got.dtype}, the student logits are "
            f"{list(case.student.shape)} {case.student.dtype}"
        )
    allowed = _allowed_gradient(case, got, want)
    off = _apart(got, want)
    if not _within(off, allowed):
        at = _worst(off, allowed)
        row, column = divmod(at, want.shape[1])
        one, other = float(got[row, column]), float(want[row, column])
        label = int(case.labels[row])
        role = "its label" if column == label else f"the label is {label}"
        raise _WrongNumber(
            f"{case.where}: the gradient in row {row}, class {column} ({role}) is {one:.9g}, its reference's "
            f"{other:.9g}: off by {abs(one - other):.2g}, allowed {float(allowed[row, column]):.2g}"
            f"{_guess(case, one, other)}"
        )
    return got


def _allowed_gradient(case: _Case, got: Tensor, want: Tensor) -> Tensor:
    finite = want[want.isfinite()]
    peak = float(finite.abs().max()) if finite.numel() else 0.0
    relative = _RELATIVE[case.student.dtype]
    return relative * (peak + 0.03 * (1 + case.temperature)) + _last_place(got, want)


def _check_scaling(loss: Loss, reference: Loss, case: _Case, wide: _Case) -> None:
    """A gradient that comes in, one a row where the loss is, multiplies the student's."""
    shape = _evaluate(reference, wide).loss.shape
    weight = torch.linspace(-3, 2, max(shape.numel(), 2), dtype=torch.float64, device=case.student.device)
    weight = weight[: shape.numel()].reshape(shape)
    got, want = _evaluate(loss, case, weight).gradient, _evaluate(reference, wide, weight).gradient
    assert want is not None
    if got is None:
        raise Disparity(f"{case.where}: the loss is not differentiable in the student logits")
    off = _apart(got, want)
    if not _within(off, 3 * _allowed_gradient(case, got, want)):
        raise Disparity(
            f"{case.where}: the gradient does not scale with the gradient that comes in: for one of "
            f"{[round(each, 3) for each in weight.flatten().tolist()]} it is off, {_largest(off)}"
        )


def _apart(got: Tensor, want: Tensor) -> Tensor:
    """How far two tensors are apart; 0 where both are NaN, or infinite alike."""
    alike = (got.double() == want) | (got.isnan() & want.isnan())
    return (got.double() - want).abs().masked_fill(alike, 0.0)


def _within(off: Tensor, allowed: Tensor) -> bool:
    return bool(((off == 0) | ((off <= allowed) & off.isfinite())).all())


def _worst(off: Tensor, allowed: Tensor) -> int:
    return int((off - allowed).masked_fill(off == 0, -torch.inf).nan_to_num(nan=torch.inf).argmax())


def _identical(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


def _last_place(got: Tensor, want: Tensor) -> Tensor:
    """One unit in the last place of what was returned, in half precision."""
    info = torch.finfo(got.dtype)
    if info.bits > 16:
        return torch.zeros_like(want)
    return info.eps * (want.abs() + info.smallest_normal)


def _largest(values: Tensor) -> str:
    at = int(values.abs().nan_to_num(nan=torch.inf).argmax())
    row, column = divmod(at, values.shape[1])
    return f"the largest of it in row {row}, class {column}: {float(values[row, column]):.3g}"


def _first_difference(got: Tensor, want: Tensor) -> str:
    """Where two tensors begin to differ."""
    if got.shape != want.shape:
        return f"shape {list(got.shape)} for {list(want.shape)}"
    at = int(((got != want) & ~(got.isnan() & want.isnan())).flatten().nonzero()[0])
    place = f"row {at}" if want.dim() == 1 else "it"
    if want.dim() == 2:
        row, column = divmod(at, want.shape[1])
        place = f"row {row}, class {column}"
    return f"first in {place}: {float(got.flatten()[at]):.9g} for {float(want.flatten()[at]):.9g}"

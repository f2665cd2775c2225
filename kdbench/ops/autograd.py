"""Dispatch between the implementations, and differentiation on top of them. Imports torch; import it lazily.

Two ways lead to the same numbers. :func:`fast_loss` takes tensors that a kernel can read as they are, which is what a
training loop has, and costs a few microseconds; :func:`softened_loss` takes everything else. Under ``torch.compile``
both become the operator of :mod:`kdbench.ops.compiled`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdbench.errors import KdbenchError
from kdbench.ops import implementation, native, reference, switch
from kdbench.ops.spec import LossInputs, LossSpec

__all__ = [
    "fast_loss",
    "keeps_graph",
    "log_sum_exp",
    "loss_and_gradient",
    "once_only",
    "refuse_transforms",
    "softened_loss",
]

_PLAIN = (Tensor, torch.nn.Parameter)
_AT_ONCE = 1 << 20  # elements
_transforms_active = torch._C._are_functorch_transforms_active
_modes_active = torch._C._len_torch_dispatch_stack
_compiling = torch.compiler.is_compiling
_grad_enabled = torch.is_grad_enabled


def _always() -> bool:
    return True


# Whether the backward pass under way leaves the graph, and with it the saved gradient, for another one.
keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", _always)


def fast_loss(student: Tensor, teacher: Tensor | None, labels: Tensor | None, spec: LossSpec) -> Tensor | None:
    """The loss, or None where the tensors are not just as a kernel reads them; nothing needs to have been checked."""
    if _compiling():
        return None
    kernel = switch.loss_kernel()
    if (
        kernel is None
        or type(student) not in _PLAIN
        or (teacher is not None and (type(teacher) not in _PLAIN or teacher.is_neg()))
        or (labels is not None and type(labels) is not Tensor)
        or student.is_neg()
        or _transforms_active()
        or _modes_active()
    ):
        return None
    wants = student.requires_grad and _grad_enabled()
    try:
        result = kernel(student, teacher, labels, None, spec, wants, torch.get_num_threads())
    except switch.LossError as error:
        teachers = () if teacher is None else (teacher,)
        raise native.explain(error, LossInputs(student, teachers, labels)) from None
    if result is None:
        return None
    loss: Tensor = _attach(student, result) if wants else result[0]
    return loss


def softened_loss(inputs: LossInputs, spec: LossSpec, *, inplace: bool = False) -> Tensor:
    """The loss that ``spec`` describes, differentiable once with respect to ``inputs.student``.

    Tensors must have been checked (:mod:`kdbench.losses` does). Where nobody asks for a gradient, none is computed.
    With ``inplace`` the gradient overwrites the student logits; where none is wanted they are left alone.

    Raises
    ------
    KdbenchError : inside a ``torch.func`` transform, and in place under ``torch.compile``.
    """
    wants = torch.is_grad_enabled() and inputs.student.requires_grad
    if _compiling():
        if inplace:
            raise KdbenchError(
                "inplace=True does not work under torch.compile",
                where="kdbench.losses",
                cure="leave it out: the compiler plans memory itself",
            )
        return _traced(inputs, spec, wants)
    refuse_transforms()
    if _modes_active():  # something watches or replaces operators: give it one to see
        return _traced(inputs, spec, wants)
    student = inputs.student
    if not wants:
        return loss_and_gradient(inputs, spec, want_gradient=False)[0]
    result = _compute(inputs, spec, want_gradient=True, out=student.detach() if inplace else None)
    if inplace:
        # Whoever saved these logits for a backward pass of their own must get autograd's error, not the gradient.
        torch.autograd.graph.increment_version(student)
    loss: Tensor = _attach(student, result)
    return loss


def loss_and_gradient(
    inputs: LossInputs, spec: LossSpec, *, want_gradient: bool, out: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Loss and gradient by the implementation in use, without autograd.

    Parameters
    ----------
    out : where the gradient is written, ``[N, C]`` like the student; it may be the student itself.

    Returns
    -------
    loss, gradient : as :func:`kdbench.ops.native.loss_and_gradient`.
    """
    loss, gradient, _ = _compute(inputs, spec._replace(grad_scale=1.0), want_gradient=want_gradient, out=out)
    return loss, gradient


def _compute(
    inputs: LossInputs, spec: LossSpec, *, want_gradient: bool, out: Tensor | None = None
) -> tuple[Tensor, Tensor | None, float | None]:
    """Loss, gradient, and what the gradient is still to be multiplied by (None: 1)."""
    unscale = None
    if native.fits(inputs.student) and implementation(inputs.student.device.type) != "reference":
        if out is None or out.stride(1) == 1:
            return native.loss_and_gradient(inputs, spec, want_gradient=want_gradient, out=out)
        loss, gradient, unscale = native.loss_and_gradient(inputs, spec, want_gradient=want_gradient)
    else:
        wide = out is None and spec.grad_scale != 1  # the reference keeps float16's digits by keeping float32
        loss, gradient = reference.loss_and_gradient(inputs, spec, want_gradient=want_gradient, wide=wide)
    if out is None or gradient is None:
        return loss, gradient, unscale
    return loss, out.copy_(gradient), unscale


def log_sum_exp(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """``logsumexp(logits / T)`` of each row, ``[N]`` float64, by the implementation in use; no gradient."""
    if _compiling() or _modes_active():
        from kdbench.ops import compiled

        return compiled.traced_log_sum_exp(logits.detach(), temperature)
    refuse_transforms()
    if native.fits(logits) and implementation(logits.device.type) != "reference":
        return native.log_sum_exp(logits, temperature)
    return reference.log_sum_exp(logits.detach(), temperature)


def _traced(inputs: LossInputs, spec: LossSpec, wants: bool) -> Tensor:
    from kdbench.ops import compiled

    return compiled.traced_loss(inputs, spec, wants)


def refuse_transforms() -> None:
    """Errors inside a ``torch.func`` transform, where wrapped tensors would give wrong numbers."""
    if _transforms_active():
        raise KdbenchError(
            "distillation losses do not work under torch.func transforms (vmap, grad, jacrev, ...)",
            where="kdbench.losses",
            cure="use loss.backward() or torch.autograd.grad, or write the loss in plain torch for this purpose",
        )


class _Loss(torch.autograd.Function):
    """Puts a loss into the graph whose gradient is known already; keeps that gradient and nothing else."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, result: tuple[Tensor, Tensor, float | None]) -> Tensor:
        loss, gradient, ctx.unscale = result
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        gradient = ctx.saved_tensors[0]
        unscale = ctx.unscale
        if _grad_enabled():  # create_graph=True: somebody may differentiate again
            with torch.no_grad():
                copy = _scaled_copy(gradient, grad_output, unscale)
            return once_only(copy), None
        if keeps_graph():
            return _scaled_copy(gradient, grad_output, unscale), None
        if unscale is None and gradient.is_cpu and grad_output.ndim == 0 and grad_output.item() == 1:
            return gradient, None
        return _scaled(gradient, grad_output, unscale), None


# FunctionMeta.apply less what fast_loss and softened_loss have ruled out: torch.func transforms.
_attach: Any = super(torch.autograd.Function, _Loss).apply


class _OnlyOnce(torch.autograd.Function):
    """Hands a gradient through and refuses to be differentiated.

    ``once_differentiable`` would let a gradient penalty pass in silence, as a constant, where the loss is the end of
    the graph.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        raise KdbenchError(
            "distillation losses are differentiable once only",
            where="kdbench.losses",
            cure="write the loss in plain torch where second derivatives are needed (a gradient penalty, MAML)",
        )


def once_only(gradient: Tensor) -> Tensor:
    """The gradient, as part of a graph that says so when it is differentiated again."""
    result: Tensor = _OnlyOnce.apply(gradient.detach().requires_grad_())  # type: ignore[no-untyped-call]
    return result


def _scaled(gradient: Tensor, grad_output: Tensor, unscale: float | None) -> Tensor:
    """``grad_output * unscale * gradient`` in the gradient's own memory; a half-precision gradient stays so."""
    # On a device the factor is read there, and nothing written where it is 1: asking for it here would wait.
    if gradient.is_cuda and switch.scale is not None and switch.scale(gradient, grad_output, unscale or 1.0):
        return gradient
    factor = grad_output if unscale is None else grad_output * unscale
    if not factor.ndim:
        return gradient.mul_(factor)
    # torch widens a half-precision matrix to multiply it by float32 rows: not all of it at once.
    rows = max(1, _AT_ONCE // gradient.shape[1]) if gradient.dtype.itemsize == 2 else max(1, len(gradient))
    for first in range(0, len(gradient), rows):
        gradient[first : first + rows].mul_(factor[first : first + rows, None])
    return gradient


def _scaled_copy(gradient: Tensor, grad_output: Tensor, unscale: float | None) -> Tensor:
    """The same, where the next backward pass reads the gradient again and the caller may change what it is given."""
    return _scaled(gradient.clone(), grad_output, unscale)

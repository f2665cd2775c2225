"""The chunked loss as one operator, ``kdbench::linear_loss``, for torch.compile; registered on import."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdbench.losses._chunks import Heads, Task, Wanted, in_chunks
from kdbench.losses._weights import RowFactors
from kdbench.ops.spec import LossSpec

__all__ = ["linear_operator", "traced_in_chunks"]


def traced_in_chunks(heads: Heads, task: Task, wanted: Wanted) -> Tensor:
    """The loss as a call of the operator."""
    spec = task.spec
    result: tuple[Tensor, ...] = linear_operator(
        *heads[:3],
        *(None if tensor is None else tensor.detach() for tensor in heads[3:]),
        task.labels,
        *task.factors,
        spec.temperature,
        spec.ce_weight,
        spec.kl_weight,
        spec.flags,
        spec.ignore_index,
        task.dtype,
        task.chunk_bytes,
        *wanted,
    )
    return result[0]


@torch.library.custom_op("kdbench::linear_loss", mutates_args=())
def linear_operator(
    hidden_s: Tensor,
    weight_s: Tensor,
    bias_s: Tensor | None,
    hidden_t: Tensor,
    weight_t: Tensor,
    bias_t: Tensor | None,
    labels: Tensor | None,
    row_temperature: Tensor | None,
    row_ce_weight: Tensor | None,
    row_kl_weight: Tensor | None,
    temperature: float,
    ce_weight: float,
    kl_weight: float,
    flags: int,
    ignore_index: int,
    dtype: torch.dtype,
    chunk_bytes: int,
    want_hidden: bool,
    want_weight: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss, the gradients of the first three arguments, empty where not wanted, and their factor.

    What the gradients are still to be multiplied by is a tensor, for it depends on the number of rows, which a graph
    may leave open.
    """
    heads = Heads(hidden_s, weight_s, bias_s, hidden_t, weight_t, bias_t)
    spec = LossSpec(temperature, ce_weight, kl_weight, flags, ignore_index)
    factors = RowFactors(row_temperature, row_ce_weight, row_kl_weight)
    wanted = Wanted(want_hidden, want_weight, want_bias)
    loss, gradients, lift = in_chunks(heads, Task(labels, factors, spec, dtype, chunk_bytes), wanted)
    hidden, weight, bias = (hidden_s.new_empty(0) if gradient is None else gradient for gradient in gradients)
    return loss, hidden, weight, bias, torch.full_like(loss, 1 / lift)


@linear_operator.register_fake
def _fake(hidden_s: Tensor, weight_s: Tensor, bias_s: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    dtype, wanted = rest[12], rest[14:]
    loss = hidden_s.new_empty((), dtype=torch.promote_types(dtype, torch.float32))
    students = zip((hidden_s, weight_s, bias_s), wanted, strict=True)
    gradients = (torch.empty_like(t) if t is not None and want else hidden_s.new_empty(0) for t, want in students)
    return loss, *gradients, torch.empty_like(loss)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.wanted, ctx.others = inputs[-3:], len(inputs) - 3
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:])


def _backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    *gradients, unscale = ctx.saved_tensors
    scale = grad_loss * unscale
    scaled = (
        (gradient * scale).to(gradient.dtype) if want else None
        for gradient, want in zip(gradients, ctx.wanted, strict=True)
    )
    return *scaled, *(None for _ in range(ctx.others))


linear_operator.register_autograd(_backward, setup_context=_keep)

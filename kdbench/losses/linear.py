"""Distillation from hidden states, for output layers whose logits do not fit into memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdbench.losses import _checks
from kdbench.losses._checks import error
from kdbench.losses._chunks import Heads, Task, Wanted, in_chunks
from kdbench.losses._chunks_operator import traced_in_chunks
from kdbench.losses._weights import KlRows, Reduction, weigh
from kdbench.ops.autograd import keeps_graph, once_only, refuse_transforms

__all__ = ["linear_distillation_loss"]

_CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 256 * 2**20}


def linear_distillation_loss(
    hidden_s: Tensor,
    weight_s: Tensor,
    hidden_t: Tensor,
    weight_t: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float | Tensor | None = None,
    alpha: float | Tensor | None = None,
    reduction: Reduction = "batchmean",
    ignore_index: int = -100,
    bias_s: Tensor | None = None,
    bias_t: Tensor | None = None,
    kl_rows: KlRows = "all",
    chunk_bytes: int | None = None,
) -> Tensor:
    """:func:`kdbench.losses.distillation_loss` of ``hidden @ weight.T + bias``, never holding all logits.

    Rows are taken in chunks: logits of both, loss and gradient (written over the student's logits), and their share of
    the gradients of ``hidden_s``, ``weight_s`` and ``bias_s``. These are exact, added up in float32 (float64 for
    float64) in the order of the rows, and computed in the forward pass; where nothing wants them, they are not.

    Parameters
    ----------
    hidden_s, hidden_t : ``[N, H]`` float, the inputs of the output layers; each its own H.
    weight_s, weight_t : ``[C, H]``, as of ``torch.nn.Linear``, of their hidden state's dtype.
    bias_s, bias_t : ``[C]`` or None.
    labels, temperature, alpha, ignore_index, kl_rows : as for :func:`kdbench.losses.distillation_loss`.
    reduction : ``batchmean``, ``mean`` or ``sum``, over all N rows.
    chunk_bytes : what the logits of one chunk, student's and teacher's together, may take; by default 64 MiB on the CPU
        and 256 MiB on a GPU. A chunk has one row at least. Where the student's weight wants a gradient in half
        precision on the CPU, a chunk's gradient is widened, and its size counts too.

    Returns
    -------
    Tensor
        A scalar; in the logits' dtype (under autocast its dtype, as of ``torch.nn.functional.linear``), float32 for
        half precision. Gradients flow to ``hidden_s``, ``weight_s`` and ``bias_s``, once differentiable.

    Raises
    ------
    KdbenchError : as :func:`kdbench.losses.distillation_loss`; shapes of a hidden state, weight and bias do not fit, or
        ``reduction`` is ``none``.
    """
    if reduction == "none":
        raise error("reduction='none' is not offered here", "use batchmean, mean or sum")
    heads = Heads(hidden_s, weight_s, bias_s, hidden_t, weight_t, bias_t)
    _check_heads(heads)
    spec, factors = weigh(
        hidden_s,
        temperature=temperature,
        alpha=alpha,
        reduction=reduction,
        ignore_index=ignore_index,
        kl_rows=kl_rows,
        row_weight=None,
        labelled=labels is not None,
    )
    if labels is not None:
        _checks.check_labels(hidden_s, labels)
    task = Task(labels, factors, spec, _logits_dtype(heads), _checked_chunk_bytes(chunk_bytes, hidden_s))
    differentiates = torch.is_grad_enabled()
    wanted = Wanted(*(differentiates and tensor is not None and tensor.requires_grad for tensor in heads[:3]))
    if torch.compiler.is_compiling():
        return traced_in_chunks(heads, task, wanted)
    refuse_transforms()
    if any(wanted):
        loss: Tensor = _LinearDistillation.apply(*heads, task, wanted)  # type: ignore[no-untyped-call]
        return loss
    return in_chunks(heads, task, wanted)[0]


class _LinearDistillation(torch.autograd.Function):
    """Computes the gradients together with the loss and keeps nothing else."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        task, wanted = arguments[6:]
        loss, gradients, ctx.lift = in_chunks(Heads(*arguments[:6]), task, wanted)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad_output.detach() / ctx.lift
        last = not (keeps_graph() or torch.is_grad_enabled())
        gradients = [None if gradient is None else _times(gradient, scale, last) for gradient in ctx.saved_tensors]
        if torch.is_grad_enabled():  # create_graph=True: somebody may differentiate again
            gradients = [None if gradient is None else once_only(gradient) for gradient in gradients]
        return *gradients, *(None for _ in range(5))


def _times(gradient: Tensor, scale: Tensor, last: bool) -> Tensor:
    """The gradient times the upstream one; in its own memory, if this is the last time that it is asked for."""
    if not last:
        return (gradient * scale).to(gradient.dtype)
    if scale.device.type == "cpu" and scale.item() == 1:
        return gradient
    return gradient.mul_(scale)


def _check_heads(heads: Heads) -> None:
    rows = heads.hidden_s.shape[:1]
    layers = (("s", heads[:3]), ("t", heads[3:]))
    for who, (hidden, weight, bias) in layers:
        if hidden.dim() != 2 or hidden.shape[:1] != rows:
            raise error(f"hidden_{who} has shape {list(hidden.shape)}", "give [N, H], and the same N for both")
        if weight.dim() != 2 or weight.shape[1] != hidden.shape[1]:
            raise error(
                f"weight_{who} has shape {list(weight.shape)}, hidden_{who} {list(hidden.shape)}",
                "give [C, H], as torch.nn.Linear keeps it",
            )
        if weight.shape[0] != heads.weight_s.shape[0] or weight.shape[0] == 0:
            raise error(
                f"weight_{who} has {weight.shape[0]} classes, weight_s {heads.weight_s.shape[0]}",
                "both need the same classes, one at least",
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise error(f"bias_{who} has shape {list(bias.shape)}, not [{weight.shape[0]}]", "give one number a class")
    for name, tensor in zip(Heads._fields, heads, strict=True):
        if tensor is not None:
            _checks.check_device(name, tensor, heads.hidden_s)


def _logits_dtype(heads: Heads) -> torch.dtype:
    """The dtype of both heads' logits: that of the tensors, or what autocast makes of it for a linear layer."""
    kind = heads.hidden_s.device.type
    dtypes = {name: t.dtype for name, t in zip(Heads._fields, heads, strict=True) if t is not None}
    for name, dtype in dtypes.items():
        if not dtype.is_floating_point:
            raise error(f"{name} is {dtype}", "convert it to a floating dtype")
        if dtype != torch.float64 and torch.is_autocast_enabled(kind):
            dtypes[name] = torch.get_autocast_dtype(kind)
    wanted = dtypes["hidden_s"]
    for name, dtype in dtypes.items():
        if dtype != wanted:
            raise error(f"{name} is {dtype}, hidden_s {wanted}", "convert one, or use autocast")
    return wanted


def _checked_chunk_bytes(chunk_bytes: int | None, hidden: Tensor) -> int:
    if chunk_bytes is None:
        return _CHUNK_BYTES.get(hidden.device.type, _CHUNK_BYTES["cpu"])
    if chunk_bytes < 1:
        raise error(f"chunk_bytes is {chunk_bytes}", "give a positive number of bytes")
    return int(chunk_bytes)

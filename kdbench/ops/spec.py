"""What a loss call asks for: its tensors and its scalars. Shared by all implementations; imports no torch.

The mathematics stands at the top of ``csrc/include/kd/api.h``; names and flags here are the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CE_MEAN_VALID",
    "KL_MEAN_CLASSES",
    "KL_MEAN_ROWS",
    "KL_VALID_ROWS",
    "MAX_TEACHERS",
    "MEAN_OF_LOSSES",
    "PER_ROW",
    "TAIL_BUCKET",
    "TAIL_RENORMALISE",
    "TAIL_UNNORMALISED",
    "LossInputs",
    "LossSpec",
]

CE_MEAN_VALID = 1
KL_MEAN_ROWS = 2
KL_MEAN_CLASSES = 4
KL_VALID_ROWS = 8
PER_ROW = 16
MEAN_OF_LOSSES = 32

TAIL_RENORMALISE = 0
TAIL_UNNORMALISED = 1
TAIL_BUCKET = 2

MAX_TEACHERS = 16


class LossSpec(NamedTuple):
    """The scalars of one loss.

    Per row, ``ce_weight * CE + kl_weight * KL``, with the divisors that ``flags`` name; a weight of 0 switches its
    term off.

    Parameters
    ----------
    temperature : T, positive; unused without a teacher or with one temperature a row.
    ce_weight, kl_weight : factors of the two terms, holding alpha and T^2 but not the reduction.
    flags : the constants of this module, or-ed.
    ignore_index : rows with this label take no part in the cross-entropy.
    label_share : b, the target's probability of the label; the other classes share ``1 - b``. 1 is plain
        cross-entropy.
    tail : what a sparse teacher says about the classes it does not list.
    teacher_weights : one a teacher, summing to 1; empty for one teacher.
    grad_scale : what a kernel multiplies the gradient by before it is rounded; 0 lets it choose a power of two for
        float16 (and 1 for others), which :mod:`kdbench.ops.autograd` divides out again.
    """

    temperature: float
    ce_weight: float
    kl_weight: float
    flags: int
    ignore_index: int = -100
    label_share: float = 1.0
    tail: int = TAIL_RENORMALISE
    teacher_weights: tuple[float, ...] = ()
    grad_scale: float = 0.0


class LossInputs(NamedTuple):
    """The tensors of one loss, checked by :mod:`kdbench.losses`; all on one device.

    Parameters
    ----------
    student : ``[N, C]`` logits.
    teachers : ``[N, C]`` logits of the student's dtype, one tensor a teacher; with ``indices`` one ``[N, K]``.
    labels : ``[N]`` int32 or int64, or None: no cross-entropy.
    indices : ``[N, K]`` int32 or int64, distinct within a row, or None.
    teacher_lse : ``[N]`` float64, ``logsumexp(t / T)`` of the one teacher over all its classes, or None.
    temperature : ``[N]`` float64, in place of the scalar, or None.
    ce_weight, kl_weight : ``[N]`` float64 factors of the scalar weights, or None.
    label_share : ``[N]`` float64, in place of the scalar, or None.
    """

    student: Tensor
    teachers: tuple[Tensor, ...] = ()
    labels: Tensor | None = None
    indices: Tensor | None = None
    teacher_lse: Tensor | None = None
    temperature: Tensor | None = None
    ce_weight: Tensor | None = None
    kl_weight: Tensor | None = None
    label_share: Tensor | None = None

"""Cross-entropy against a target that is partly on the label and otherwise spread evenly."""

from __future__ import annotations

from torch import Tensor

from kdbench.losses import _checks
from kdbench.losses._checks import error
from kdbench.losses._weights import Reduction, flags_of
from kdbench.ops.autograd import softened_loss
from kdbench.ops.spec import LossInputs, LossSpec

__all__ = ["soft_label_cross_entropy"]


def soft_label_cross_entropy(
    student_logits: Tensor,
    labels: Tensor,
    label_share: float | Tensor,
    *,
    reduction: Reduction = "batchmean",
    ignore_index: int = -100,
    row_weight: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """Cross-entropy against ``b`` on the label and ``(1 - b) / (C - 1)`` on each other class.

    The target is never written out. Label smoothing by ``e``, as ``torch.nn.functional.cross_entropy`` does it, is
    ``b = 1 - e + e / C``. The constant entropy of the target is not subtracted.

    Parameters
    ----------
    student_logits : ``[N, C]`` float.
    labels : ``[N]`` int32 or int64, on the same device.
    label_share : b, in [0, 1]; a number, or ``[N]`` floats. With 1 the other classes are not read, so that an excluded
        one (logit -inf) does no harm.
    reduction : ``batchmean`` and ``mean`` both divide by the rows that are not ignored.
    ignore_index : rows with this label contribute 0.
    row_weight, inplace : as for :func:`kdbench.losses.distillation_loss`.

    Returns
    -------
    Tensor
        Nats; a scalar, or ``[N]`` for ``none``. With one class the loss is 0.

    Raises
    ------
    KdbenchError : shapes, dtypes or devices do not fit; a label is out of range (on a GPU: a NaN row), or
        ``label_share`` outside [0, 1] (per row on a GPU: a NaN row).
    """
    _checks.check_logits("student logits", student_logits)
    _checks.check_labels(student_logits, labels)
    shares = share = None
    if isinstance(label_share, Tensor):
        shares = _checks.row_share(label_share, student_logits)
    else:
        share = _checked_share(label_share)
    weights = None if row_weight is None else _checks.row_weights(row_weight, student_logits)
    if inplace:
        _checks.check_inplace(student_logits, ())
    spec = LossSpec(1.0, 1.0, 0.0, flags_of(reduction), int(ignore_index), 1.0 if share is None else share)
    inputs = LossInputs(student_logits, (), labels, ce_weight=weights, label_share=shares)
    return softened_loss(inputs, spec, inplace=inplace)


def _checked_share(share: float) -> float:
    if share is None:
        raise error("label_share is missing", "there is no default: give the target's probability of the label")
    if not 0 <= share <= 1:
        raise error(f"label_share is {share}", _checks.SHARE_RULE)
    return float(share)

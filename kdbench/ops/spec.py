"""What a loss call asks for, apart from its tensors. Shared by both implementations; needs no torch."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["LossSpec"]


class LossSpec(NamedTuple):
    """The scalars of one loss.

    Per row, ``ce_weight * CE(student, label) + kl_weight * KL(softmax(teacher / T) || softmax(student / T))``.
    The weights already hold alpha, T^2 and the reduction; a weight of 0 switches its term off.

    Parameters
    ----------
    temperature : T, positive; unused without a teacher.
    ce_weight, kl_weight : factors of the two terms.
    ce_mean : divide ``ce_weight`` by the number of rows whose label is not ``ignore_index`` (0 rows: the term is 0).
    per_row : return the ``[N]`` row losses instead of their sum.
    ignore_index : rows with this label take no part in the cross-entropy.
    """

    temperature: float
    ce_weight: float
    kl_weight: float
    ce_mean: bool
    per_row: bool
    ignore_index: int

"""One optimiser step's material."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Batch"]


class Batch(NamedTuple):
    """One step's material: inputs as the student sees them, labels, positions in the training split, teacher logits.

    ``teacher_logits`` are empty where there is neither a teacher nor a network that trains along. ``seed`` is of this
    step of this run, for an objective with random choices of its own.
    """

    inputs: Tensor
    labels: Tensor
    indices: Tensor
    teacher_logits: Tensor
    epoch: int
    seed: int = 0

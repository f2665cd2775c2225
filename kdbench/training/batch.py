"""One optimiser step's material."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Batch", "weighed"]


class Batch(NamedTuple):
    """One step's material: inputs as the student sees them, labels, positions in the training split, teacher logits.

    ``teacher_logits`` are empty where there is neither a teacher nor a network that trains along; ``[M, n, C]`` where
    there are M > 1 teachers. ``seed`` is of this step of this run, for an objective with random choices of its own.

    Where a recipe mixes inputs, ``labels`` belong to the share ``share`` of every input and ``other_labels`` to the
    rest. The loop weighs the loss of both (:func:`weighed`): an objective need not know.
    """

    inputs: Tensor
    labels: Tensor
    indices: Tensor
    teacher_logits: Tensor
    epoch: int
    seed: int = 0
    other_labels: Tensor | None = None
    share: float = 1.0


def weighed(terms: Callable[[Batch], dict[str, Tensor]], batch: Batch) -> dict[str, Tensor]:
    """``terms`` of the batch, such as its loss; where labels are mixed, those of both labels by their shares.

    A loss that is linear in the labels' one-hot vectors is thereby the loss of the mixed vectors. Cross-entropy and
    everything made of it and of terms without a label is.
    """
    values = terms(batch)
    if batch.other_labels is None:
        return values
    others = terms(batch._replace(labels=batch.other_labels))
    return {name: batch.share * value + (1 - batch.share) * others[name] for name, value in values.items()}

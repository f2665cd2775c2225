"""Label smoothing: the rival that softens targets without a teacher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kdbench import hookimpl
from kdbench.errors import KdbenchError
from kdbench.training import Objective, ObjectiveInfo

if TYPE_CHECKING:
    from kdbench.training.batch import Batch
    from torch import Tensor


class LabelSmoothing(Objective, frozen=True):
    """``CE(s, (1 - e) onehot(y) + e / C)``: a share e of every label is spread evenly over all C classes.

    Attributes
    ----------
    strength : e, in [0, 1]. 0 is plain cross-entropy.
    """

    strength: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.strength <= 1.0:
            raise KdbenchError(
                f"label smoothing of strength {self.strength:g}",
                where="kdbench_hinton.objectives.LabelSmoothing",
                cure="a share of the label: between 0 and 1, for instance 0.1",
            )

    @property
    def label(self) -> str:
        return f" (label smoothing {self.strength:g})"

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        from kdbench.losses import soft_label_cross_entropy

        share = 1.0 - self.strength + self.strength / logits.shape[1]  # the label's own part of e is among the C
        return soft_label_cross_entropy(logits, batch.labels, share)

    def reference(self, logits: Tensor, batch: Batch) -> Tensor:
        log_p = logits - logits.logsumexp(dim=1, keepdim=True)
        hard = -log_p.gather(1, batch.labels[:, None]).mean()
        even = -log_p.mean()  # over rows and classes: cross-entropy with the uniform distribution
        return (1.0 - self.strength) * hard + self.strength * even


@hookimpl
def kdbench_objectives() -> Iterator[ObjectiveInfo]:
    yield ObjectiveInfo(
        id="hinton-label-smoothing",
        title="cross-entropy with labels of which a share is spread evenly over all classes",
        source="Szegedy et al., Rethinking the Inception Architecture for Computer Vision, arXiv 1512.00567",
        create="kdbench_hinton.objectives:LabelSmoothing",
        example={"strength": 0.1},
    )

"""What a student's token states are held against: the distillation objectives, as components of a recipe.

A component says which and with what numbers; :meth:`TokenObjective.build` makes the module that computes it, and that
holds what trains or is remembered with it (:mod:`kdbench_vidlankd.distilling`). NST + CRD is two components.

Student and frozen teacher read the same masked block, and all objectives but :class:`SoftLabel` see the last hidden
layer of both, at all positions: masked, unmasked and special tokens. The student's states pass a head of the
objective's own, which is dropped after training; the teacher's are scaled to length 1 and no more.

Sources: VidLanKD is Tang, Cho, Tan, Bansal, NeurIPS 2021; "released" is zinengtang/VidLanKD at 46bae35.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from kdbench.component import Component
from kdbench.errors import KdbenchError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from kdbench_vidlankd.distilling import Distiller

__all__ = ["CRD", "NST", "Material", "NTXent", "Regression", "SoftLabel", "StateObjective", "TokenObjective"]


class Material(NamedTuple):
    """What an objective is given of one batch: B blocks of L tokens, V words.

    Attributes
    ----------
    student : ``[B, L, H]``, the last hidden layer.
    teacher : ``[B, L, H]``, likewise, without a graph.
    indices : ``[B]`` int64, the number of each block among the training blocks; distinct.
    seed : of whatever the objective draws in this step.
    attention : ``[B, L]`` bool, True at real tokens; padding counts nowhere.
    student_logits, teacher_logits : give the logits ``[n, V]`` at the real tokens, block after block. Called only by
        objectives that need them, for a vocabulary is wide.
    vokens : ``[B, L]`` int64, a label for each token, where there are any.
    """

    student: Tensor
    teacher: Tensor
    indices: Tensor
    seed: int
    attention: Tensor
    student_logits: Callable[[], Tensor]
    teacher_logits: Callable[[], Tensor]
    vokens: Tensor | None = None


class TokenObjective(Component, frozen=True):
    """Base of the objectives.

    Attributes
    ----------
    weight : what multiplies the loss; the module's own value is without it.
    title, source : what it is, in a line, and where its formula is published.
    """

    weight: float

    title: ClassVar[str]
    source: ClassVar[str]

    def __post_init__(self) -> None:
        _positive("weight", self.weight)

    @property
    def label(self) -> str:
        """What tells it from others, in a stage's label."""
        return f"{type(self).__name__} x {self.weight:g}"

    @property
    def from_teacher(self) -> bool:
        """Whether it needs the teacher's states, so that each step costs a forward pass of it."""
        return True

    def macs(self, hidden: int, length: int) -> float:
        """Multiply-accumulates that it adds to the forward pass of one block, about: for the price of a plan."""
        return 0.0

    def build(self, hidden: int, blocks: int, length: int) -> Distiller:
        """The module that computes it; random numbers of its start come from torch's generator.

        Parameters
        ----------
        hidden : H, of student and teacher.
        blocks : how many training blocks there are; ``Material.indices`` are below it.
        length : L.

        Returns
        -------
        Distiller
            Called with a :class:`Material` it gives the unweighted loss, a scalar. Its parameters are to be trained
            with the student's, its state saved with theirs.
        """
        raise NotImplementedError


class SoftLabel(TokenObjective, frozen=True):
    """``KL(teacher || student)`` of the words at each real token, both softened by ``temperature``; without a head."""

    temperature: float = 1.0

    title: ClassVar[str] = "soft labels: divergence of the distributions over the vocabulary"
    source: ClassVar[str] = "Hinton, Vinyals, Dean 2015; in VidLanKD's released code in comments alone"

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive("temperature", self.temperature)

    @property
    def label(self) -> str:
        return f"{super().label} (T {self.temperature:g})"

    def build(self, hidden: int, blocks: int, length: int) -> Distiller:
        from kdbench_vidlankd.distilling import SoftLabelDistiller

        return SoftLabelDistiller(self)


class StateObjective(TokenObjective, frozen=True):
    """Base of the objectives on hidden states. ``head=False`` takes the student's states without one (appendix)."""

    head: bool = True

    @property
    def label(self) -> str:
        return super().label + ("" if self.head else " (no head)")

    def macs(self, hidden: int, length: int) -> float:
        return 2.0 * length * hidden * hidden * self.head


class Regression(StateObjective, frozen=True):
    """Squared distance of states of length 1, ``2 - 2 cos``, see :func:`kdbench_vidlankd.losses.regression`."""

    title: ClassVar[str] = "L2 regression of normalised states"
    source: ClassVar[str] = "in VidLanKD's released code in comments alone, and without the normalisation"

    def build(self, hidden: int, blocks: int, length: int) -> Distiller:
        from kdbench_vidlankd.distilling import RegressionDistiller

        return RegressionDistiller(self, hidden)


class NST(StateObjective, frozen=True):
    """Neuron selectivity transfer, see :func:`kdbench_vidlankd.losses.nst`.

    ``divide`` is the ``batch`` (mean over the blocks), or the ``length`` of a block, as released.
    """

    divide: Literal["batch", "length"] = "batch"

    title: ClassVar[str] = "NST: maximum mean discrepancy of neurons, polynomial kernel of degree 2"
    source: ClassVar[str] = "Huang and Wang 2017; zinengtang/VidLanKD at 46bae35 (Tang et al., NeurIPS 2021)"

    @property
    def label(self) -> str:
        return super().label + (" (by length)" if self.divide == "length" else "")

    def macs(self, hidden: int, length: int) -> float:
        return super().macs(hidden, length) + 2.0 * length * length * hidden

    def build(self, hidden: int, blocks: int, length: int) -> Distiller:
        from kdbench_vidlankd.distilling import NSTDistiller

        return NSTDistiller(self, hidden)


class NTXent(StateObjective, frozen=True, kw_only=True):
    """In-batch contrast at each position, see :func:`kdbench_vidlankd.losses.nt_xent`.

    It stands where the paper says CRD in the released code: ``temperature`` 1, and ``released``.
    """

    temperature: float
    released: bool = False

    title: ClassVar[str] = "NT-Xent: contrast with the same position of the batch's other blocks"
    source: ClassVar[str] = "Chen et al. 2020; zinengtang/VidLanKD at 46bae35 (Tang et al., NeurIPS 2021)"

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive("temperature", self.temperature)

    @property
    def label(self) -> str:
        return f"{super().label} (T {self.temperature:g}{', released' if self.released else ''})"

    def build(self, hidden: int, blocks: int, length: int) -> Distiller:
        from kdbench_vidlankd.distilling import NTXentDistiller

        return NTXentDistiller(self, hidden)


class CRD(StateObjective, frozen=True, kw_only=True):
    """Contrastive representation distillation with a memory, see :class:`kdbench_vidlankd.distilling.CRDDistiller`.

    Attributes
    ----------
    negatives : K, slots drawn for each block and step, evenly from those of all other blocks.
    temperature, momentum : tau, and the share of itself that a slot keeps when it is updated.
    slots : ``token``: one for each position of each training block. ``block``: one a block, shared by its positions, as
        the released code's history has it; it can hold no more than the mean of their states, so tokens of one block
        get one target. A memory of tokens takes ``4 * blocks * length * hidden`` bytes.
    teacher_head : project the teacher's states (linear, to length 1) by weights that train along, as Tian et al. do.
        Only then has the second direction, teacher's states against a memory of the student's, a gradient; without it
        that direction is a constant, and neither it nor its memory is kept.
    """

    negatives: int
    temperature: float = 0.07
    momentum: float = 0.5
    slots: Literal["token", "block"] = "token"
    teacher_head: bool = False

    title: ClassVar[str] = "CRD: noise-contrastive estimation against a memory of states"
    source: ClassVar[str] = "Tian, Krishnan, Isola 2020; named by VidLanKD (Tang et al., NeurIPS 2021)"

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive("temperature", self.temperature)
        _positive("number of negatives", self.negatives)
        if not 0 <= self.momentum < 1:
            raise KdbenchError(
                f"a momentum of {self.momentum:g} never moves a slot toward its state", cure="give one in [0, 1)"
            )

    @property
    def label(self) -> str:
        teacher = ", teacher's head" if self.teacher_head else ""
        return f"{super().label} (T {self.temperature:g}, {self.negatives} negatives, a slot a {self.slots}{teacher})"

    def macs(self, hidden: int, length: int) -> float:
        return super().macs(hidden, length) + float(length * (self.negatives + 1) * hidden)

    def build(self, hidden: int, blocks: int, length: int) -> Distiller:
        from kdbench_vidlankd.distilling import CRDDistiller

        return CRDDistiller(self, hidden, blocks, length)


def _positive(name: str, number: float) -> None:
    if not (math.isfinite(number) and number > 0):
        raise KdbenchError(f"the {name} of an objective is {number:g}", cure="give a positive number")

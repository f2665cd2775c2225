"""A training recipe as plain values: optimiser, schedule, batch, augmentation, split and selection rule."""

from __future__ import annotations

import math
from typing import Literal

from kdbench.component import Component
from kdbench.errors import KdbenchError

__all__ = ["SGD", "Constant", "Milestones", "Mixing", "OneCycle", "Recipe", "Sample", "Schedule"]


class Schedule(Component, frozen=True):
    """Learning rate as a function of the position in the run. Subclasses implement :meth:`factor`."""

    def factor(self, epoch: int, position: float, epochs: int) -> float:
        """Multiplier of the base learning rate.

        Parameters
        ----------
        epoch : the running epoch, from 0.
        position : share of the whole run that is done, in [0, 1).
        epochs : length of the run in epochs.
        """
        raise NotImplementedError


class Constant(Schedule, frozen=True):
    """The base learning rate throughout."""

    def factor(self, epoch: int, position: float, epochs: int) -> float:
        return 1.0


class Milestones(Schedule, frozen=True):
    """Multiply by ``gamma`` at each fraction of the run, at whole epochs."""

    fractions: tuple[float, ...]
    gamma: float = 0.1

    def factor(self, epoch: int, position: float, epochs: int) -> float:
        return self.gamma ** sum(epoch >= round(fraction * epochs) for fraction in self.fractions)


class OneCycle(Schedule, frozen=True):
    """Linear warm-up over the share ``warmup`` of the run, then a cosine down to zero; changes with every step."""

    warmup: float = 0.2

    def factor(self, epoch: int, position: float, epochs: int) -> float:
        if position < self.warmup:
            return position / self.warmup
        return 0.5 * (1.0 + math.cos(math.pi * (position - self.warmup) / (1.0 - self.warmup)))


class SGD(Component, frozen=True):
    """Stochastic gradient descent. ``weight_decay`` is the L2 coefficient on every parameter."""

    lr: float
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.0


class Sample(Component, frozen=True):
    """A part of the training split: the places ``number * size`` to ``(number + 1) * size`` of one shuffled order.

    Samples of one size are disjoint, and so are those of two sizes whose places are.

    Attributes
    ----------
    size : examples in it.
    number : which sample, from 0.
    bootstrap : trains on a resample of it instead: as many of its examples, drawn with replacement. Numbers from 0
        tell resamples apart.
    """

    size: int
    number: int
    bootstrap: int | None = None

    def __post_init__(self) -> None:
        if self.size < 1 or self.number < 0 or (self.bootstrap is not None and self.bootstrap < 0):
            raise KdbenchError(
                f"there is no sample {self.number} of {self.size} examples, resample {self.bootstrap}",
                cure="a sample has an example at least; samples and their resamples are numbered from 0",
            )

    @property
    def places(self) -> range:
        """Where its examples are in the shuffled training split."""
        return range(self.number * self.size, (self.number + 1) * self.size)


class Mixing(Component, frozen=True):
    """Each input of a batch is mixed with another of it, and so are the two labels' losses, by one share a batch.

    Attributes
    ----------
    kind : ``mixup`` (Zhang et al. 2018) adds the two inputs by their shares; ``cutmix`` (Yun et al. 2019) cuts a box
        out of the other one (of signals a segment), and the share is what is left of the first.
    strength : a of Beta(a, a), from which each batch's share is drawn: 1 is uniform, less is mostly one of the two.
    """

    kind: Literal["mixup", "cutmix"]
    strength: float

    def __post_init__(self) -> None:
        if not 0 < self.strength < math.inf:
            raise KdbenchError(f"{self.kind} has a strength of {self.strength}", cure="a of Beta(a, a) is positive")


class Recipe(Component, frozen=True):
    """How a network is trained, student and teacher alike.

    Attributes
    ----------
    holdout : share of the training split kept back as the validation split, stratified; 0 trains on everything.
    selection : which epoch's weights are kept: the ``last``, or the best on ``validation`` or on ``test`` (the fault
        of most released code; kept so that it can be reproduced on purpose).
    ties : which of several equally good epochs is kept.
    label_noise : share of the training labels replaced by other classes with equal chance, the same for every seed;
        validation labels are left as they are.
    augmentation : ``none``, ``crop-flip`` (zero-pad by 4, random crop, random horizontal flip), ``shift`` (the same
        without the flip, for signals), or ``resized-crop-flip`` (a crop of random area and aspect, resized to what the
        network takes, and a flip).
    statistics : input normalisation: ``none``, ``data`` (constants of the training split), or six numbers
        (three means, three deviations, on the 0-1 scale).
    sample : the part of the training split that is trained on; None is all of it. Holdout and label noise are drawn
        inside it. A resample is drawn last, so that nothing held out is trained on and copies have equal labels.
    unlabelled : further examples of the training split, whose labels are hidden: objectives give them no label term.
    mixing : of the inputs in a batch, after augmentation; a teacher sees the mixed ones.

    Raises
    ------
    KdbenchError : unlabelled examples are among the labelled ones, or would be mixed with them.
    """

    epochs: int
    optimizer: SGD
    batch_size: int = 128
    schedule: Schedule = Constant()
    augmentation: Literal["none", "crop-flip", "shift", "resized-crop-flip"] = "none"
    statistics: Literal["none", "data"] | tuple[float, ...] = "data"
    holdout: float = 0.0
    selection: Literal["last", "validation", "test"] = "last"
    ties: Literal["first", "last"] = "first"
    label_noise: float = 0.0
    sample: Sample | None = None
    unlabelled: Sample | None = None
    mixing: Mixing | None = None

    def __post_init__(self) -> None:
        if self.unlabelled is None:
            return
        hidden, labelled = self.unlabelled.places, None if self.sample is None else self.sample.places
        if labelled is None or (hidden.start < labelled.stop and labelled.start < hidden.stop):
            raise KdbenchError(
                "unlabelled examples are among the labelled ones",
                where=f"places {hidden.start} to {hidden.stop} of the training split",
                cure="give the recipe a sample whose places are others: number * size to (number + 1) * size",
            )
        if self.mixing is not None:
            raise KdbenchError(
                f"{self.mixing.kind} mixes labels, and unlabelled examples have none",
                cure="leave out mixing or unlabelled",
            )

    @property
    def inputs_never_change(self) -> bool:
        """Whether a network sees every example as it is, so that a teacher's logits can be computed once."""
        return self.augmentation == "none" and self.mixing is None

    def examples(self, available: int) -> float:
        """Examples that one epoch trains on, of ``available`` ones in the training split."""
        labelled = available if self.sample is None else self.sample.size
        return labelled * (1 - self.holdout) + (0 if self.unlabelled is None else self.unlabelled.size)

"""A training recipe as plain values: optimiser, schedule, batch, augmentation, split and selection rule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from kdbench.component import Component
from kdbench.errors import KdbenchError

if TYPE_CHECKING:
    from torch import nn, optim

__all__ = [
    "SGD",
    "AdamW",
    "Constant",
    "Milestones",
    "Mixing",
    "OneCycle",
    "Optimizer",
    "Recipe",
    "Sample",
    "Schedule",
    "WarmupLinear",
]


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


class WarmupLinear(Schedule, frozen=True):
    """Linear warm-up over the share ``warmup`` of the run, then linearly down to zero; changes with every step.

    Raises
    ------
    KdbenchError : the warm-up is no share, for instance a number of steps.
    """

    warmup: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= 1:
            raise KdbenchError(
                f"a warm-up over {self.warmup:g} of the run", cure="give its share of the run, between 0 and 1"
            )

    def factor(self, epoch: int, position: float, epochs: int) -> float:
        if position < self.warmup:
            return position / self.warmup
        return (1.0 - position) / (1.0 - self.warmup)


class Optimizer(Component, frozen=True):
    """How a step is made of a gradient. ``lr`` is the base learning rate, which the schedule multiplies."""

    lr: float

    def build(self, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
        """Torch's optimiser of these parameters."""
        raise NotImplementedError


class SGD(Optimizer, frozen=True):
    """Stochastic gradient descent. ``weight_decay`` is the L2 coefficient on every parameter."""

    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.0

    def build(self, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
        from torch import optim

        return optim.SGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov and self.momentum > 0,
            weight_decay=self.weight_decay,
            fused=True,
        )


class AdamW(Optimizer, frozen=True):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019): every parameter, biases too, loses the share
    ``lr * weight_decay`` at each step, beside the step that its gradient makes."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01

    def build(self, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
        from torch import optim

        return optim.AdamW(
            parameters, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=True
        )


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
    clip : largest norm of a step's gradient, of all parameters together; a longer one is scaled down to it.

    Raises
    ------
    KdbenchError : unlabelled examples are among the labelled ones, or would be mixed with them; the largest norm of a
        gradient is not a positive number.
    """

    epochs: int
    optimizer: Optimizer
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
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise KdbenchError(
                f"gradients are clipped to a norm of {self.clip:g}", cure="give a positive number, or None to clip none"
            )
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

"""A training recipe as plain values: optimiser, schedule, batch, augmentation, split and selection rule."""

from __future__ import annotations

import math
from typing import Literal

from kdbench.component import Component

__all__ = ["SGD", "Constant", "Milestones", "OneCycle", "Recipe", "Schedule"]


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
    augmentation : ``none``, ``crop-flip`` (zero-pad by 4, random crop, random horizontal flip), or
        ``resized-crop-flip`` (a crop of random area and aspect, resized to what the network takes, and a flip).
    statistics : input normalisation: ``none``, ``data`` (constants of the training split), or six numbers
        (three means, three deviations, on the 0-1 scale).
    """

    epochs: int
    optimizer: SGD
    batch_size: int = 128
    schedule: Schedule = Constant()
    augmentation: Literal["none", "crop-flip", "resized-crop-flip"] = "none"
    statistics: Literal["none", "data"] | tuple[float, ...] = "data"
    holdout: float = 0.0
    selection: Literal["last", "validation", "test"] = "last"
    ties: Literal["first", "last"] = "first"
    label_noise: float = 0.0

"""How everything is trained: networks, training sets and recipes by tier and data set.

The body of the paper was not found, so all of it is ours, and each choice is a line of the ledger in
``facts/paper.toml``.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import msgspec

from kdbench.data.base import DataRef
from kdbench.networks import CifarResNet, Network, Plain
from kdbench.networks.resnet import WIDTHS
from kdbench.training import (
    SGD,
    Distillation,
    EnsembleDistillation,
    LabelSmoothing,
    Milestones,
    Mixing,
    OneCycle,
    Recipe,
    Sample,
    Schedule,
    SmoothedDistillation,
)
from kdbench_orthogonality.networks import (
    DropoutPlain,
    SeparablePlain,
    SeparableResNet,
    SlimResNet,
    SlimSeparableResNet,
)
from kdbench_orthogonality.sizes import int8_bytes, single_bytes, without_filters

__all__ = [
    "FILTERS_PRUNED",
    "GRID",
    "MEMBERS",
    "STACKS",
    "Method",
    "Nets",
    "method",
    "replaced",
    "slope",
    "stack_bytes",
    "stacked",
]

MEMBERS = 5  # training sets of one decomposition
POOL_SEEDS = 6  # seeds whose training sets are disjoint in the pool; later ones begin again, with other weights
SET = 2_000  # examples of the factorial's training set
MEMBER_SET = 1_000
# Divides what is left of a set after the holdout. By 128 an epoch would end in a batch of 4, which batch norms and a
# temperature-squared loss do not survive.
MEMBER_BATCH = 100

EPOCHS = {"smoke": 3, "laptop": 40, "full": 150}
FINE_TUNING = {"smoke": 2, "laptop": 25, "full": 40}
LAPTOP_IMAGE_EPOCHS, LAPTOP_IMAGE_FINE_TUNING = 12, 6

# The pilot's, for every arm: nothing is tuned for one of them.
TEMPERATURE, ALPHA = 4.0, 0.9
SMOOTHING = 0.1
MIXING = {"mixup": 0.2, "cutmix": 1.0}
DECAY, MORE_DECAY = 1e-4, 1e-3
DROPOUT = 0.2
VALIDATION = 0.1
FILTERS_PRUNED = 1 / 3

GRID = {f"w{width}-d{size}": (width, size) for width in (1, 2) for size in (2, 4, 6)}
"""Width, as a multiple of the student's, and number of convolutions of each place."""

STACKS = {
    "triple": ("separable", "prune", "int8"),
    "separable+prune": ("separable", "prune"),
    "separable+int8": ("separable", "int8"),
    "prune+int8": ("prune", "int8"),
}
"""Techniques of each stack, in the order in which they are applied."""

STACK_WIDTH = 1.5  # of the stack of three where networks are plain: filters enough that a third of them is a third
STEP = 1 / 64  # between width factors that are looked at


class Nets(NamedTuple):
    """The networks of a tier."""

    student: Network
    teacher: Network
    separable: Network
    dropout: Network | None
    grid: dict[str, Network]


class Method(NamedTuple):
    """Everything that is fixed for one seed of a run.

    Attributes
    ----------
    recipe, fine_tuning : of the factorial, and of what was compressed in it.
    set_size : examples of the training set that :meth:`of_size` and :meth:`with_unlabelled` are about.
    number, spare : places of that set and of its unlabelled supplement among those of its size.
    member_epochs, member_batch : of students and teachers of the ensemble side; in the pool for as many steps as the
        factorial's.
    member_size, first_member : examples of a training set of theirs, and the number of the first.
    shift : how inputs move where they do.
    """

    nets: Nets
    recipe: Recipe
    fine_tuning: Recipe
    set_size: int
    number: int
    spare: int
    member_epochs: int
    member_batch: int
    member_size: int
    first_member: int
    shift: Literal["shift", "crop-flip"]

    @property
    def distillation(self) -> Distillation:
        return Distillation(temperature=TEMPERATURE, alpha=ALPHA)

    @property
    def smoothed(self) -> SmoothedDistillation:
        return SmoothedDistillation(temperature=TEMPERATURE, alpha=ALPHA, epsilon=SMOOTHING, over="all")

    @property
    def several(self) -> EnsembleDistillation:
        return EnsembleDistillation(temperature=TEMPERATURE, alpha=ALPHA, combine="probabilities")

    def smoothing(self, epsilon: float = SMOOTHING) -> LabelSmoothing:
        return LabelSmoothing(epsilon=epsilon, over="all")

    def mixed(self, kind: Literal["mixup", "cutmix"]) -> Recipe:
        return replaced(self.recipe, mixing=Mixing(kind=kind, strength=MIXING[kind]))

    def decayed(self) -> Recipe:
        return replaced(self.recipe, optimizer=msgspec.structs.replace(self.recipe.optimizer, weight_decay=MORE_DECAY))

    def shifted(self) -> Recipe:
        """Inputs that move."""
        return replaced(self.recipe, augmentation=self.shift)

    def still(self) -> Recipe:
        """Inputs that stay as they are."""
        return replaced(self.recipe, augmentation="none")

    def of_size(self, share: int) -> Recipe:
        """The first 1/``share`` of the training set, for as many steps in all."""
        part = Sample(size=self.set_size // share, number=self.number * share)
        return replaced(self.recipe, sample=part, epochs=self.recipe.epochs * share)

    def with_unlabelled(self) -> Recipe:
        """Half of the training set, and as many examples as the whole has whose labels are hidden."""
        half = self.of_size(2).sample
        return replaced(self.recipe, sample=half, unlabelled=Sample(size=self.set_size, number=self.spare))

    def without_unlabelled(self) -> Recipe:
        """The same half alone, for as many steps."""
        half = self.of_size(2).sample
        steps = [math.ceil(n / self.recipe.batch_size) for n in (self.set_size // 2, 3 * self.set_size // 2)]
        return replaced(self.recipe, sample=half, epochs=round(self.recipe.epochs * steps[1] / steps[0]))

    def halves(self) -> tuple[Recipe, Recipe]:
        """Fine-tuning in two parts that together have its epochs."""
        first = self.fine_tuning.epochs // 2
        parts = (first, self.fine_tuning.epochs - first)
        return replaced(self.fine_tuning, epochs=parts[0]), replaced(self.fine_tuning, epochs=parts[1])

    def member(self, number: int, *, bootstrap: int | None = None) -> Recipe:
        """Training set ``number`` of this seed, or a resample of it; number ``MEMBERS`` is the foreign teacher's."""
        sample = Sample(size=self.member_size, number=self.first_member + number, bootstrap=bootstrap)
        return replaced(
            self.recipe,
            sample=sample,
            holdout=VALIDATION,
            epochs=self.member_epochs,
            batch_size=self.member_batch,
        )


def method(*, tier: str, data: DataRef, seed: int) -> Method:
    """The recipes of one seed: its own training set out of the pool, and of images all there are."""
    pooled = data.dataset == "mnist1d-pool"
    block = seed % POOL_SEEDS
    images = tier == "laptop" and not pooled
    epochs = LAPTOP_IMAGE_EPOCHS if images else EPOCHS[tier]
    further = LAPTOP_IMAGE_FINE_TUNING if images else FINE_TUNING[tier]
    recipe = Recipe(
        epochs=epochs,
        optimizer=SGD(lr=_rate(tier), weight_decay=DECAY),
        schedule=_schedule(tier),
        augmentation="crop-flip" if tier == "full" and not pooled else "none",
        statistics="none" if pooled else "data",  # MNIST-1D is generated with mean 0 and deviation 1
        sample=Sample(size=SET, number=block) if pooled else None,
    )
    fine_tuning = replaced(recipe, epochs=further, optimizer=SGD(lr=_rate(tier) / 2.5, weight_decay=DECAY))
    train = data.sizes["train"]
    return Method(
        nets=_nets(tier),
        recipe=recipe,
        fine_tuning=fine_tuning,
        set_size=SET if pooled else train // 2,
        number=block if pooled else 0,
        spare=POOL_SEEDS + block if pooled else 1,
        member_epochs=_as_many_steps(recipe, MEMBER_BATCH) if pooled else epochs,
        member_batch=MEMBER_BATCH if pooled else recipe.batch_size,
        member_size=MEMBER_SET if pooled else train // (MEMBERS + 1),
        first_member=POOL_SEEDS * SET // MEMBER_SET + block * (MEMBERS + 1) if pooled else 0,
        shift="shift" if pooled else "crop-flip",
    )


def stacked(tier: str, data: DataRef) -> dict[str, Network]:
    """The network that each stack is trained as, before anything is pruned or quantised.

    Two techniques save less than three, so pairs begin narrower: by the width factor whose bytes, by formula, are
    nearest to those of the stack of three, the largest of equals. No accuracy is looked at.
    """
    triple = _wide(tier, STACKS["triple"], STACK_WIDTH)
    target = stack_bytes("triple", triple, data)
    networks = {"triple": triple}
    factors = [STEP * k for k in range(round(STACK_WIDTH / STEP), round(STACK_WIDTH / 8 / STEP) - 1, -1)]
    for pair in (name for name in STACKS if name != "triple"):
        candidates = [_wide(tier, STACKS[pair], factor) for factor in factors]
        networks[pair] = min(candidates, key=lambda each: abs(stack_bytes(pair, each, data) - target))
    return networks


def stack_bytes(name: str, network: Network, data: DataRef) -> int:
    """Bytes of a stack by formula, once the techniques have been applied to ``network``."""
    if "prune" in STACKS[name]:
        network = without_filters(network, data, FILTERS_PRUNED)
    return int8_bytes(network, data) if "int8" in STACKS[name] else single_bytes(network, data)


def _wide(tier: str, techniques: tuple[str, ...], factor: float) -> Network:
    """The network of a stack at one width: a ResNet of the student's depth at full, else a plain one."""
    separable = "separable" in techniques
    if tier != "full":
        return SeparablePlain(size=4, width=factor) if separable else Plain(size=4, width=factor)
    first, middle, last = (round(width * factor / STACK_WIDTH) for width in WIDTHS)  # three begin as wide as a student
    if (first, middle, last) == WIDTHS:
        return SeparableResNet(depth=20) if separable else CifarResNet(depth=20)
    slim = SlimSeparableResNet if separable else SlimResNet
    return slim(depth=20, widths=(first, middle, last))


def _as_many_steps(recipe: Recipe, batch_size: int) -> int:
    """Epochs in which a training set of the ensemble side takes as many steps as the factorial's, nearly."""
    steps = math.ceil(SET / recipe.batch_size) * recipe.epochs
    return round(steps / math.ceil(MEMBER_SET * (1 - VALIDATION) / batch_size))


def _nets(tier: str) -> Nets:
    if tier == "full":
        return Nets(
            student=CifarResNet(depth=20),
            teacher=CifarResNet(depth=56),
            separable=SeparableResNet(depth=20),
            dropout=None,
            grid={f"w1-d{place}": CifarResNet(depth=depth) for place, depth in ((2, 8), (4, 14), (6, 20))},
        )
    width = 0.5
    return Nets(
        student=Plain(size=4, width=width),
        teacher=Plain(size=6),
        separable=SeparablePlain(size=4, width=width),
        dropout=DropoutPlain(size=4, width=width, rate=DROPOUT),
        grid={name: Plain(size=size, width=width * times) for name, (times, size) in GRID.items()},
    )


def _rate(tier: str) -> float:
    return 0.1 if tier == "full" else 0.05


def _schedule(tier: str) -> Schedule:
    return Milestones(fractions=(0.5, 0.75)) if tier == "full" else OneCycle(warmup=0.3)


def replaced(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with other values of some fields."""
    changed: Recipe = msgspec.structs.replace(recipe, **changes)
    return changed


def slope(*gains: float) -> float:
    """Points by which the gain of distillation changes when the training set doubles; ``gains`` at n, 2n, 4n, ..."""
    import numpy as np

    return float(np.polyfit(np.arange(len(gains)), gains, 1)[0])

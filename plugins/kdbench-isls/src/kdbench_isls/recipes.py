"""How the arms are trained: the released code's way and the clean one, and how much of it each tier affords.

Every difference between the two is a line of the ledger in ``facts/paper.toml``.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from kdbench.data.base import DataRef
from kdbench.networks import BasicResNet, DenseNet, Network, Plain
from kdbench.training import SGD, LabelSmoothing, Milestones, Recipe, Schedule
from kdbench_isls.objectives import BetaSmoothing, FlatTarget, FlooredSmoothing, MatchedSmoothing, SelfDistillation
from kdbench_isls.ranking import Ranking, mean_share

__all__ = ["GENERATIONS", "TEMPERATURES", "Method", "ReleasedMilestones", "method", "networks"]

GENERATIONS = 3  # students after generation 0
TEMPERATURES = (1.0, 1.5, 2.0, 4.0)

# Thirds are whole epochs, or the released schedule would never drop; quarters are not, as at the released 150.
EPOCHS = {"smoke": 6, "laptop": 30, "full": 150}
LAPTOP_IMAGE_EPOCHS = 18  # an epoch of 2-D convolutions costs ten times as much
HOLDOUT = {"smoke": 0.2, "laptop": 0.2, "full": 0.1}

A = 3.0
ALPHA_BETA = 0.6
# Clean: the soft weight of Beta smoothing for all, and of TEMPERATURES the best on MNIST-1D validation data at seeds
# that no default run uses (100 to 102, label noise .2, mean over generations 1 to 3).
ALPHA = {"released": 0.4, "clean": 0.6}
TEMPERATURE = {"released": 4.0, "clean": 1.0}
LOG_FLOOR = {"released": 1e-8, "clean": 0.0}

RELEASED_CAP = 0.999
CAP_SPAN = 0.019  # the share of its 52,800 steps that the released average spans

# Grids of equal size for the tuned arms; label smoothing takes the mean targets of Beta smoothing.
GRID_A = (1.0, 3.0, 6.0, 12.0)
GRID_ENTROPY = (0.1, 0.3, 0.5, 1.0)


class ReleasedMilestones(Schedule, frozen=True):
    """The released schedule as it runs on current torch: milestones are floats, and it steps before each epoch.

    So a milestone acts one epoch early, and one that is no whole number never does.
    """

    fractions: tuple[float, ...]
    gamma: float = 0.1

    def factor(self, epoch: int, position: float, epochs: int) -> float:
        steps_taken = epoch + 1
        reached = [f * epochs for f in self.fractions if math.isclose(f * epochs, round(f * epochs), abs_tol=1e-9)]
        return self.gamma ** sum(steps_taken >= round(milestone) for milestone in reached)


class Method(NamedTuple):
    """Everything that is fixed for one network, protocol, tier, data set and level of label noise.

    ``alpha`` and ``temperature`` are self-distillation's. ``cap`` is of the averaged network, ``log_floor`` what the
    soft terms add inside their logarithm.
    """

    recipe: Recipe
    alpha: float
    temperature: float
    cap: float
    log_floor: float

    def self_distillation(
        self, temperature: float | None = None, *, confidence: Literal["own", "permuted"] = "own"
    ) -> SelfDistillation:
        return SelfDistillation(
            temperature=temperature or self.temperature,
            alpha=self.alpha,
            confidence=confidence,
            log_floor=self.log_floor,
        )

    def flat(self) -> FlatTarget:
        return FlatTarget(temperature=self.temperature, alpha=self.alpha)

    def matched(self) -> MatchedSmoothing:
        return MatchedSmoothing(temperature=self.temperature, alpha=self.alpha)

    def beta(
        self, a: float = A, *, ranking: Ranking = "average", values: Literal["draws", "quantiles"] = "draws"
    ) -> BetaSmoothing:
        return BetaSmoothing(
            a=a, alpha=ALPHA_BETA, ranking=ranking, values=values, cap=self.cap, log_floor=self.log_floor
        )

    def smoothing(self, a: float = A) -> LabelSmoothing | FlooredSmoothing:
        """Label smoothing at the mean target of Beta smoothing, in the released convention."""
        epsilon = ALPHA_BETA * (1 - mean_share(a))
        if self.log_floor:
            return FlooredSmoothing(epsilon=epsilon, log_floor=self.log_floor)
        return LabelSmoothing(epsilon=epsilon, over="others")


def networks(tier: str, protocol: str) -> dict[str, Network]:
    """The networks of a tier by the name that cells give them."""
    if tier == "full":
        start: Literal["he", "torch"] = "torch" if protocol == "released" else "he"
        return {"resnet34": BasicResNet(depth=34, start=start), "densenet100": DenseNet(depth=100, growth=12)}
    if tier == "smoke":
        return {"plain2": Plain(size=2, width=0.5)}
    return {"plain4": Plain(size=4)}


def method(*, protocol: str, tier: str, data: DataRef, network: str, label_noise: float) -> Method:
    """The recipe of one reading at one tier."""
    epochs = LAPTOP_IMAGE_EPOCHS if tier == "laptop" and data.dataset != "mnist1d" else EPOCHS[tier]
    fractions = (0.5, 0.75) if network.startswith("densenet") else (1 / 3, 2 / 3)
    released = protocol == "released"
    schedule = ReleasedMilestones(fractions=fractions) if released else Milestones(fractions=fractions)
    recipe = Recipe(
        epochs=epochs,
        optimizer=SGD(lr=0.1, nesterov=False, weight_decay=1e-4),
        batch_size=128,
        schedule=schedule,
        augmentation=_augmentation(data.dataset),
        statistics="none" if data.dataset == "mnist1d" else "data",  # MNIST-1D is generated with mean 0, deviation 1
        holdout=HOLDOUT[tier],
        selection="validation",
        ties="last",
        label_noise=label_noise,
    )
    return Method(
        recipe=recipe,
        alpha=ALPHA[protocol],
        temperature=TEMPERATURE[protocol],
        cap=RELEASED_CAP if released else _rescaled_cap(data, recipe),
        log_floor=LOG_FLOOR[protocol],
    )


def _rescaled_cap(data: DataRef, recipe: Recipe) -> float:
    """The average spans the same share of the run as the released one does of its own."""
    train = data.sizes["train"] - round(recipe.holdout * data.sizes["train"])
    steps = math.ceil(train / recipe.batch_size) * recipe.epochs
    return round(1.0 - 1.0 / max(CAP_SPAN * steps, 2.0), 4)


def _augmentation(dataset: str) -> Literal["none", "crop-flip", "resized-crop-flip"]:
    if dataset == "mnist1d":
        return "none"
    return "resized-crop-flip" if dataset == "tiny-imagenet" else "crop-flip"

"""Golden values of the method that are no losses: what b is drawn from, how the average decays, steps and schedules."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor, nn

from kdbench.data import dataset, holdout
from kdbench.data.base import Split
from kdbench.training import CrossEntropy, Recipe
from kdbench.training.batch import Batch
from kdbench.training.followers import WeightAverage, decay
from kdbench.training.loop import fit
from kdbench_isls.objectives import BetaSmoothing
from kdbench_isls.ranking import draws, mean_share, quantiles, shares
from kdbench_isls.recipes import ALPHA_BETA, A, ReleasedMilestones, method

# ------------------------------------------------------------------------------------------------------------------- b


def test_moments_of_beta_3_1() -> None:
    law = scipy.stats.beta(3, 1)
    assert law.mean() == pytest.approx(0.75, rel=1e-12)
    assert law.var() == pytest.approx(0.0375, rel=1e-12)
    assert law.pdf(0.4) == pytest.approx(3 * 0.4**2, rel=1e-12)
    assert mean_share(3) == 0.75
    found = np.concatenate([draws(3, 1000, seed) for seed in range(200)])
    assert found.mean() == pytest.approx(0.75, abs=5 * math.sqrt(0.0375 / len(found)))
    fourth = scipy.stats.beta(3, 1).stats("k") + 3
    assert found.var() == pytest.approx(0.0375, abs=5 * 0.0375 * math.sqrt((fourth - 1) / len(found)))


ORDER = {1: 0.177, 32: 0.627, 64: 0.791, 96: 0.906, 128: 0.997}


def test_order_statistics_of_a_batch_of_128() -> None:
    """At rank r, u is Beta(r, n + 1 - r) and b = u^(1/a); simulated through the draws, given out by rank."""
    n, rounds = 128, 3000
    ranked = torch.stack([shares(draws(3, n, seed), torch.arange(float(n))) for seed in range(rounds)])
    for rank, golden in ORDER.items():
        log_first, log_second = (scipy.special.betaln(rank + power / 3, n + 1 - rank) for power in (1, 2))
        log_norm = scipy.special.betaln(rank, n + 1 - rank)
        mean = math.exp(log_first - log_norm)
        deviation = math.sqrt(math.exp(log_second - log_norm) - mean**2)
        assert mean == pytest.approx(golden, abs=5e-4)
        assert ranked[:, rank - 1].mean().item() == pytest.approx(mean, abs=5 * deviation / math.sqrt(rounds))


@pytest.mark.parametrize("a", [1.0, 3.0, 12.0])
def test_quantiles_stand_at_the_middle_of_each_rank(a: float) -> None:
    n = 128
    found = quantiles(a, n)
    assert found.tolist() == [pytest.approx(((r - 0.5) / n) ** (1 / a), rel=1e-14) for r in range(1, n + 1)]
    np.testing.assert_allclose(scipy.stats.beta(a, 1).cdf(found), (np.arange(1, n + 1) - 0.5) / n, rtol=1e-12)
    assert abs(found.mean() - mean_share(a)) < 1e-3


# ------------------------------------------------------------------------------------------------------------ schedules


def test_decay_of_the_average() -> None:
    assert decay(1, 0.999) == 0.5
    assert decay(998, 0.999) < 0.999 == decay(999, 0.999) == decay(10_000, 0.999)
    start, student = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.ones_(start.weight)
    nn.init.zeros_(student.weight)
    average = BetaSmoothing(a=A, alpha=ALPHA_BETA).follower(lambda: start)
    assert isinstance(average, WeightAverage)
    for step in range(1, 21):
        average.follow(student)
        assert average(torch.ones(1, 1), torch.zeros(1)).item() == pytest.approx(1 / (step + 1), rel=1e-5)


class Sizes(CrossEntropy, frozen=True):
    """Notes how many examples every step has."""

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        SEEN.append(len(batch.labels))
        return super().loss(logits, batch)


SEEN: list[int] = []


class NoCheckpoints:
    def load_state(self) -> None: ...
    def state_due(self) -> bool:
        return False

    def save_state(self, state: object) -> None: ...
    def progress(self, done: int, total: int) -> None: ...


def test_an_epoch_of_45_000_images_has_352_steps() -> None:
    data = dataset("cifar100").expected()
    recipe = method(protocol="released", tier="full", data=data, network="resnet34", label_noise=0.0).recipe
    labels = torch.arange(data.sizes["train"]) % data.num_classes
    kept, held = holdout(labels, recipe.holdout, 0)
    assert (len(kept), len(held)) == (45_000, 5_000)
    train = Split(torch.zeros(len(kept), 1, 1, 1), labels[kept] % 2)
    one = Recipe(epochs=1, optimizer=recipe.optimizer, batch_size=recipe.batch_size)
    SEEN.clear()
    fit(nn.Sequential(nn.Flatten(), nn.Linear(1, 2)), train, one, Sizes(), seed=0, checkpoints=NoCheckpoints())
    assert len(SEEN) == 352
    assert SEEN[:-1] == [128] * 351
    assert SEEN[-1] == 72


def rates_of_torch(milestones: list[float], epochs: int) -> list[float]:
    """What torch's own scheduler gives each epoch where it steps first, as the released code has it."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)  # type: ignore[arg-type]
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of that order
        for _ in range(epochs):
            schedule.step()
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
    return rates


@pytest.mark.parametrize("fractions", [(1 / 3, 2 / 3), (0.5, 0.75)], ids=["resnet", "densenet"])
@pytest.mark.parametrize("epochs", [6, 9, 10, 18, 20, 30, 100, 150])
def test_the_released_schedule_is_torchs_with_float_milestones(epochs: int, fractions: tuple[float, ...]) -> None:
    schedule = ReleasedMilestones(fractions=fractions)
    expected = rates_of_torch([fraction * epochs for fraction in fractions], epochs)
    for within in (0.0, 0.9):
        found = [schedule.factor(epoch, (epoch + within) / epochs, epochs) for epoch in range(epochs)]
        assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("network", "released", "clean"), [("resnet34", [49, 99], [50, 100]), ("densenet100", [74], [75, 112])]
)
def test_drops_of_150_epochs(network: str, released: list[int], clean: list[int]) -> None:
    data = dataset("cifar100").expected()
    for protocol, expected in (("released", released), ("clean", clean)):
        recipe = method(protocol=protocol, tier="full", data=data, network=network, label_noise=0.0).recipe
        assert recipe.epochs == 150
        factors = [recipe.schedule.factor(epoch, epoch / 150, 150) for epoch in range(150)]
        assert factors[0] == 1.0
        assert [epoch for epoch in range(1, 150) if factors[epoch] != factors[epoch - 1]] == expected
        assert factors[-1] == pytest.approx(0.1 ** len(expected))

"""The released training steps, written out example by example, against what the training loop does with the objectives.

The port below knows nothing of this package: targets are filled in by loops over examples and classes, the average and
the optimiser step are written by hand, and draws come from scipy's inverse distribution function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.stats
import torch
from isls_batches import batch_of, gradient_of
from torch import Tensor, nn

from kdbench.data import DATASETS
from kdbench.data.base import Split
from kdbench.training import SGD, Objective, Recipe
from kdbench.training.followers import WeightAverage
from kdbench.training.loop import fit
from kdbench.training.seeds import derive_seed
from kdbench_isls.objectives import BetaSmoothing
from kdbench_isls.recipes import Method, method

SEED, EXAMPLES, CLASSES, BATCH, EPOCHS = 5, 26, 4, 8, 3  # four batches an epoch, the last of two examples
RATE, MOMENTUM, DECAY = 0.1, 0.9, 1e-4
FLOOR = 1e-8


def released() -> Method:
    return method(
        protocol="released", tier="full", data=DATASETS["cifar100"].expected(), network="resnet34", label_noise=0.0
    )


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, CLASSES))
    return net.double().train()


def examples() -> Split:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(EXAMPLES, 1, 1, 6, generator=generator, dtype=torch.float64)
    return Split(inputs, torch.randint(CLASSES, (EXAMPLES,), generator=generator))


class Never:
    """No checkpoint."""

    def load_state(self) -> Any:
        return None

    def state_due(self) -> bool:
        return False

    def save_state(self, state: Any) -> None:
        raise AssertionError

    def progress(self, done: int, total: int) -> None: ...


def looped(objective: Objective, **how: Any) -> tuple[dict[str, Tensor], list[float]]:
    """What the training loop makes of the network: its state, and the mean loss of every epoch."""
    recipe = Recipe(
        epochs=EPOCHS,
        optimizer=SGD(lr=RATE, momentum=MOMENTUM, nesterov=False, weight_decay=DECAY),
        batch_size=BATCH,
        statistics="none",
    )
    net = network(0)
    history = fit(net, examples(), recipe, objective, seed=SEED, checkpoints=Never(), **how)
    return net.state_dict(), history.curves["loss"]


# ------------------------------------------------------------------------------------------------------------ the port


class Material(NamedTuple):
    x: Tensor
    y: list[int]
    seed: int


def batches(epoch: int) -> Iterator[Material]:
    data = examples()
    order = torch.randperm(EXAMPLES, generator=torch.Generator().manual_seed(derive_seed(SEED, "order", epoch)))
    for step, start in enumerate(range(0, EXAMPLES, BATCH)):
        chosen = order[start : start + BATCH]
        yield Material(data.inputs[chosen], data.labels[chosen].tolist(), derive_seed(SEED, "objective", epoch, step))


def descend(net: nn.Module, velocity: dict[int, Tensor]) -> None:
    """SGD with momentum and weight decay, without Nesterov's step."""
    with torch.no_grad():
        for place, parameter in enumerate(net.parameters()):
            assert parameter.grad is not None
            slope = parameter.grad + DECAY * parameter
            velocity[place] = slope if place not in velocity else MOMENTUM * velocity[place] + slope
            parameter -= RATE * velocity[place]
            parameter.grad = None


def against(targets: list[list[float]], logits: Tensor, floor: float) -> Tensor:
    """Cross-entropy with targets, example by example and class by class."""
    total = torch.zeros((), dtype=torch.float64)
    for row, target in zip(logits, targets, strict=True):
        p = row.exp() / row.exp().sum()
        for c, share in enumerate(target):
            total = total - share * torch.log(p[c] + floor)
    return total / len(targets)


def on_label(shares: list[float], y: list[int]) -> list[list[float]]:
    return [
        [share if c == label else (1 - share) / (CLASSES - 1) for c in range(CLASSES)]
        for share, label in zip(shares, y, strict=True)
    ]


def ported(
    loss: Callable[[Tensor, Material], Tensor], after: Callable[[nn.Module], None] = lambda net: None
) -> tuple[dict[str, Tensor], list[float]]:
    net, velocity, means = network(0), dict[int, Tensor](), []
    for epoch in range(EPOCHS):
        total = 0.0
        for material in batches(epoch):
            value = loss(net(material.x), material)
            value.backward()  # type: ignore[no-untyped-call]
            descend(net, velocity)
            after(net)
            total += value.item() * len(material.y)
        means.append(total / EXAMPLES)
    return net.state_dict(), means


class Average:
    """The released average: of parameters, begun from another initialisation, asked in train mode."""

    def __init__(self, cap: float) -> None:
        self.net, self.cap, self.step = network(9), cap, 0
        self.kept: list[float] = []

    def confidence(self, x: Tensor, y: list[int]) -> list[float]:
        with torch.no_grad():
            return [row.softmax(0)[label].item() for row, label in zip(self.net(x), y, strict=True)]

    def follow(self, student: nn.Module) -> None:
        self.step += 1
        d = min(1 - 1 / (self.step + 1), self.cap)
        self.kept.append(d)
        with torch.no_grad():
            for mine, theirs in zip(self.net.parameters(), student.parameters(), strict=True):
                mine.copy_(d * mine + (1 - d) * theirs)


def ranked(a: float, seed: int, key: list[float]) -> list[float]:
    """Sorted draws from Beta(a, 1), given out in ascending order of the key."""
    u = 1 - np.random.default_rng(seed).random(len(key))
    b = sorted(scipy.stats.beta(a, 1).ppf(u).tolist())
    given = [0.0] * len(key)
    for place, example in enumerate(sorted(range(len(key)), key=lambda i: key[i])):
        given[example] = b[place]
    return given


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-10, msg=lambda text, name=name: name + text)


# ----------------------------------------------------------------------------------------------------------- the steps


@pytest.mark.parametrize("cap", [0.999, 0.7], ids=["released cap", "a cap that binds"])
def test_beta_smoothing_steps(cap: float) -> None:
    objective = released().beta()
    assert (objective.a, objective.alpha, objective.cap, objective.log_floor) == (3.0, 0.6, 0.999, FLOOR)
    objective = BetaSmoothing(a=3.0, alpha=0.6, cap=cap, log_floor=FLOOR)
    average = Average(cap)
    assigned: list[list[float]] = []

    def loss(logits: Tensor, material: Material) -> Tensor:
        b = ranked(3.0, material.seed, average.confidence(material.x, material.y))
        assigned.append(b)
        hard = against(on_label([1.0] * len(b), material.y), logits, 0.0)
        return 0.4 * hard + 0.6 * against(on_label(b, material.y), logits, FLOOR)

    expected, losses = ported(loss, average.follow)
    follower = objective.follower(lambda: network(9))
    assert isinstance(follower, WeightAverage)
    found, curve = looped(objective, follower=follower)
    close(found, expected)
    assert curve == pytest.approx(losses, rel=1e-8)
    assert [len(b) for b in assigned] == [8, 8, 8, 2] * EPOCHS
    assert average.kept[:3] == pytest.approx([0.5, 2 / 3, min(0.75, cap)])
    assert (average.kept[-1] == cap) == (cap < 0.9)
    averaged = dict(follower.average.module.named_parameters())
    close({name: averaged[name].detach() for name in averaged}, dict(average.net.named_parameters()))


def test_the_ranking_of_the_port_decides_where_the_steps_lead() -> None:
    """The comparison above can fail: the same draws given out by chance lead elsewhere."""
    found, _ = looped(released().beta(), follower=released().beta().follower(lambda: network(9)))
    chance, _ = looped(released().beta(ranking="none"))
    assert (found["1.weight"] - chance["1.weight"]).abs().max() > 1e-3


def test_self_distillation_steps() -> None:
    objective = released().self_distillation()
    assert (objective.alpha, objective.temperature, objective.log_floor) == (0.4, 4.0, FLOOR)
    teacher = network(3).eval()
    constant: list[float] = []

    def answer(inputs: Tensor, indices: Tensor) -> Tensor:
        with torch.no_grad():
            return 3 * teacher(inputs)  # type: ignore[no-any-return]

    def loss(logits: Tensor, material: Material) -> Tensor:
        softened = [[math.exp(value / 4) for value in row] for row in answer(material.x, Tensor()).tolist()]
        q = [[value / sum(row) for value in row] for row in softened]
        entropy = -sum(share * math.log(share) for row in q for share in row) / len(q)
        constant.append(0.4 * entropy * len(q))
        hard = against(on_label([1.0] * len(q), material.y), logits, 0.0)
        return 0.6 * hard + 0.4 * against(q, logits, FLOOR)

    expected, losses = ported(loss)
    found, curve = looped(objective, teacher=answer)
    close(found, expected)
    # The released loss is a cross-entropy; ours a divergence, which is less by the teacher's entropy.
    for epoch in range(EPOCHS):
        less = sum(constant[4 * epoch : 4 * epoch + 4]) / EXAMPLES
        assert curve[epoch] == pytest.approx(losses[epoch] - less, rel=1e-8)
        assert less > 0.1


def test_label_smoothing_steps() -> None:
    objective = released().smoothing()
    assert (objective.epsilon, objective.log_floor) == (pytest.approx(0.15), FLOOR)  # type: ignore[union-attr]

    def loss(logits: Tensor, material: Material) -> Tensor:
        return against(on_label([1 - 0.15] * len(material.y), material.y), logits, FLOOR)

    expected, losses = ported(loss)
    found, curve = looped(objective)
    close(found, expected)
    assert curve == pytest.approx(losses, rel=1e-8)


@pytest.mark.parametrize("arm", ["beta", "self_distillation", "smoothing"])
def test_the_floor_moves_the_gradient_of_a_step_as_the_port_has_it(arm: str) -> None:
    """In a few steps of a small network 1e-8 is not seen; at logits that give a class less than that it is."""
    objective: Any = getattr(released(), arm)()
    logits = torch.tensor([[30.0, 0.0, -5.0, 1.0], [0.0, 25.0, 2.0, -3.0]], dtype=torch.float64)
    y = [1, 1]
    teacher = torch.tensor([[1.0, 2.0, 0.0, -1.0], [0.5, 1.0, 0.0, 2.0]], dtype=torch.float64)
    batch = batch_of(torch.tensor(y), teacher)
    q = [[value / sum(row) for value in row] for row in ([math.exp(v / 4) for v in row] for row in teacher.tolist())]
    key = [row.softmax(0)[label].item() for row, label in zip(teacher, y, strict=True)]
    soft = {"beta": on_label(ranked(3.0, batch.seed, key), y), "self_distillation": q,
            "smoothing": on_label([0.85, 0.85], y)}[arm]  # fmt: skip
    weight = {"beta": 0.6, "self_distillation": 0.4, "smoothing": 1.0}[arm]

    def slope(floor: float) -> Tensor:
        leaf = logits.clone().requires_grad_()
        hard = against(on_label([1.0, 1.0], y), leaf, 0.0)
        return torch.autograd.grad((1 - weight) * hard + weight * against(soft, leaf, floor), leaf)[0]

    torch.testing.assert_close(gradient_of(objective, logits, batch), slope(FLOOR), rtol=1e-9, atol=1e-14)
    assert (slope(FLOOR) - slope(0.0)).abs().max() > 1e-2

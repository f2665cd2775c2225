"""The loop on what is no image: a task of tokens, its state, and the optimiser, schedule and clipping of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from toy_training import Memory, model, same, split, trained

from kdbench.errors import KdbenchError, StageError
from kdbench.losses import cross_entropy
from kdbench.training import SGD, AdamW, Optimizer, Recipe, WarmupLinear
from kdbench.training.loop import Task, optimise
from kdbench.training.seeds import derive_seed

WORDS, LENGTH = 7, 6
TOKENS = Recipe(
    epochs=4, optimizer=AdamW(lr=0.02, eps=1e-6), batch_size=10, schedule=WarmupLinear(warmup=0.25), clip=0.5
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As stages run; and two threads on tiny tensors only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Counting(Task):
    """Blocks of tokens, each the one before it plus 1: the next token is to be told, by a network with dropout.

    A memory bank of a vector a word, moved after every step, pulls at the network: what it holds decides every later
    step, as does torch's own generator.
    """

    def __init__(self, net: nn.Sequential, seed: int, count: int = 25, size: int = 10) -> None:
        self.net = net
        self.seed = seed
        self.size = size
        self.steps = -(-count // size)
        self.blocks = (torch.arange(count)[:, None] * 3 + torch.arange(LENGTH)) % WORDS
        self.bank = torch.zeros(WORDS, 16)

    def batches(self, epoch: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        for places in torch.split(torch.randperm(len(self.blocks), generator=generator), self.size):
            yield self.blocks[places]

    def terms(self, batch: Tensor) -> dict[str, Tensor]:
        told = functional.cross_entropy(self.net(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        pull = functional.mse_loss(self.net[0].weight, self.bank)
        return {"loss": told + pull, "told": told, "pull": pull, "rows": torch.tensor(len(batch))}

    def weight(self, batch: Tensor) -> int:
        return len(batch)

    def stepped(self) -> None:
        self.bank.lerp_(self.net[0].weight.detach(), 0.5)

    def ended(self, epoch: int, curves: dict[str, list[float]]) -> None:
        curves.setdefault("bank", []).append(self.bank.norm().item())

    def state_dict(self) -> dict[str, Any]:
        return {"bank": self.bank}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bank = state["bank"]


def count_up(
    recipe: Recipe = TOKENS, checkpoints: Memory | None = None, kind: type[Counting] = Counting
) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
    """Weights and curves of a network that learns to count."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(WORDS, 16), nn.Dropout(0.1), nn.Linear(16, WORDS))
    curves = optimise(net, kind(net, seed=3), recipe, seed=3, checkpoints=checkpoints or Memory())
    return net.state_dict(), curves


# ------------------------------------------------------------------------------------------------------------- tasks


def test_a_task_of_tokens_trains() -> None:
    recipe = msgspec.structs.replace(TOKENS, epochs=30)
    net, curves = count_up(recipe)
    assert curves["told"][0] > 1.5  # chance is log 7 = 1.95
    assert curves["told"][-1] < 0.3
    told = (net["0.weight"] @ net["2.weight"].T + net["2.bias"]).argmax(1)
    assert told.tolist() == [1, 2, 3, 4, 5, 6, 0]


def test_terms_are_means_over_examples_and_the_task_may_add_curves() -> None:
    _, curves = count_up()
    assert set(curves) == {"loss", "lr", "gradient", "told", "pull", "rows", "bank"}
    assert curves["rows"] == [(100 + 100 + 25) / 25] * 4  # batches of 10, 10 and 5, each counted by its examples
    assert curves["loss"] == pytest.approx([t + p for t, p in zip(curves["told"], curves["pull"], strict=True)])
    assert curves["lr"] == pytest.approx([0.0, 0.02, 0.02 * 2 / 3, 0.02 / 3])
    assert all(len(curve) == 4 for curve in curves.values())


@pytest.mark.parametrize("kill", [1, 2, 3])
def test_a_task_with_a_state_resumes_to_the_same_bits(kill: int) -> None:
    expected, curves = count_up()
    memory = Memory(stop_at=kill, save=True)
    with pytest.raises(KeyboardInterrupt):
        count_up(checkpoints=memory)
    assert memory.load_state()["task"]["bank"].norm().item() == curves["bank"][kill - 1]
    memory.stop_at = 0  # a run that began anew instead of resuming would stop again
    torch.manual_seed(12345)
    state, resumed = count_up(checkpoints=memory)
    assert same(state, expected)
    assert resumed == curves


class Forgetful(Counting):
    """Leaves its bank behind when it is stopped."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def test_the_state_of_the_task_is_what_makes_it_resume() -> None:
    expected, curves = count_up(kind=Forgetful)
    memory = Memory(stop_at=2, save=True)
    with pytest.raises(KeyboardInterrupt):
        count_up(checkpoints=memory, kind=Forgetful)
    memory.stop_at = None
    state, resumed = count_up(checkpoints=memory, kind=Forgetful)
    assert not same(state, expected)
    assert resumed["pull"] != curves["pull"]


class Miscounted(Counting):
    """Says that its epochs have more steps than they have."""

    def __init__(self, net: nn.Sequential, seed: int) -> None:
        super().__init__(net, seed)
        self.steps += 1


class Empty(Counting):
    """Has nothing to train on."""

    def __init__(self, net: nn.Sequential, seed: int) -> None:
        super().__init__(net, seed, count=0)

    def batches(self, epoch: int) -> Iterator[Tensor]:
        return iter(())


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Miscounted, "epoch 1 had 3 steps, Miscounted says 4"),
        (Empty, "epoch 1 had 0 steps, Empty says 0"),
    ],
)
def test_steps_that_are_not_those_of_the_task_are_named(kind: type[Counting], says: str) -> None:
    with pytest.raises(StageError) as caught:
        count_up(kind=kind)
    assert says in str(caught.value)
    assert "let its steps be the number of batches that it gives in every epoch" in str(caught.value)


# --------------------------------------------------------------------------------- optimiser, clipping and schedule


class Slope(Task):
    """A loss that is linear in the weights: its gradient is ``slopes[step]``, whatever the weights are."""

    def __init__(self, net: nn.Module, slopes: list[list[float]], weights: list[int] | None = None) -> None:
        self.parameters = list(net.parameters())
        self.slopes = torch.tensor(slopes, dtype=torch.float64)
        self.weights = weights or [1] * len(slopes)
        self.steps = len(slopes)

    def batches(self, epoch: int) -> Iterator[int]:
        return iter(range(self.steps))

    def terms(self, batch: int) -> dict[str, Tensor]:
        flat = torch.cat([parameter.flatten() for parameter in self.parameters])
        return {"loss": flat @ self.slopes[batch]}

    def weight(self, batch: int) -> int:
        return self.weights[batch]


def plane() -> nn.Linear:
    """Two weights, 1 and 2, and a bias of 3."""
    net = nn.Linear(2, 1).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 2.0]]))
        net.bias.fill_(3.0)
    return net


def moved(recipe: Recipe, slopes: list[list[float]], **how: Any) -> tuple[list[float], dict[str, list[float]]]:
    net = plane()
    curves = optimise(net, Slope(net, slopes, **how), recipe, seed=0, checkpoints=Memory())
    return [*net.weight[0].tolist(), net.bias.item()], curves


PLAIN = Recipe(epochs=1, optimizer=SGD(lr=1.0, momentum=0.0))


def test_the_gradient_of_all_parameters_together_is_clipped() -> None:
    recipe = msgspec.structs.replace(PLAIN, clip=1.0)
    weights, curves = moved(recipe, [[2.0, 3.0, 6.0]])  # of norm 7: weight and bias are scaled alike
    assert weights == pytest.approx([1 - 2 / 7, 2 - 3 / 7, 3 - 6 / 7], abs=1e-6)
    assert curves["gradient"] == pytest.approx([7.0], rel=1e-12)


def test_a_gradient_that_is_short_enough_stays_as_it_is() -> None:
    slopes = [[0.2, 0.3, 0.6]]
    weights, curves = moved(msgspec.structs.replace(PLAIN, clip=1.0), slopes)
    free, without = moved(PLAIN, slopes)
    assert weights == free == pytest.approx([0.8, 1.7, 2.4], rel=1e-12)
    assert curves["gradient"] == pytest.approx([0.7], rel=1e-12)
    assert "gradient" not in without


def test_the_gradients_curve_is_a_mean_over_examples_before_clipping() -> None:
    recipe = msgspec.structs.replace(PLAIN, clip=1.0, epochs=2)
    _, curves = moved(recipe, [[3.0, 4.0, 0.0], [0.0, 0.0, 0.5]], weights=[3, 1])
    assert curves["gradient"] == pytest.approx([(3 * 5 + 0.5) / 4] * 2, rel=1e-12)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("inf"), float("nan")])
def test_a_norm_that_cannot_be_clipped_to_is_refused(clip: float) -> None:
    with pytest.raises(KdbenchError, match=f"clipped to a norm of {clip:g}.*give a positive number"):
        msgspec.structs.replace(PLAIN, clip=clip)


def test_adamw_is_the_textbooks() -> None:
    """By hand: moments with their bias corrections, and a decay that the gradient's scale does not touch."""
    slopes = [[3.0, -4.0, 0.5], [-1.0, 2.0, 0.25]]
    adam = AdamW(lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.2)
    recipe = Recipe(epochs=3, optimizer=adam, schedule=WarmupLinear(warmup=0.5))
    weights, curves = moved(recipe, slopes)
    hand, mean, square = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), torch.zeros(3), torch.zeros(3)
    rates = [0.1 * factor for factor in (0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3)]
    for step, rate in enumerate(rates, start=1):
        slope = torch.tensor(slopes[(step - 1) % 2], dtype=torch.float64)
        mean = 0.8 * mean + 0.2 * slope
        square = 0.9 * square + 0.1 * slope**2
        hand = hand * (1 - rate * 0.2)
        hand = hand - rate * (mean / (1 - 0.8**step)) / ((square / (1 - 0.9**step)).sqrt() + 1e-3)
    assert weights == pytest.approx(hand.tolist(), rel=1e-12)
    assert curves["lr"] == pytest.approx(rates[::2], rel=1e-12, abs=1e-15)


def test_adamw_with_clipping_equals_a_loop_by_hand_bit_for_bit() -> None:
    """On images: whatever trains by a recipe has every optimiser and clips."""
    recipe = Recipe(epochs=2, optimizer=AdamW(lr=0.01, eps=1e-6), batch_size=20, clip=0.5)
    state, history = trained(recipe)
    data, net = split(), model()
    net.train()
    adam = torch.optim.AdamW(net.parameters(), lr=0.01, eps=1e-6, fused=True)  # the rest are torch's own defaults
    means = []
    for epoch in range(2):
        order = torch.randperm(50, generator=torch.Generator().manual_seed(derive_seed(7, "order", epoch)))
        total = 0.0
        for indices in torch.split(order, 20):
            adam.zero_grad()
            cross_entropy(net(data.inputs[indices]), data.labels[indices]).backward()
            total += (nn.utils.clip_grad_norm_(net.parameters(), 0.5) * len(indices)).item()
            adam.step()
        means.append(total / 50)
    assert same(state, net.state_dict())
    assert history.curves["gradient"] == means
    assert max(means) > 0.5
    free, _ = trained(msgspec.structs.replace(recipe, clip=None))
    assert not same(state, free)


@pytest.mark.parametrize("optimizer", [SGD(lr=0.1), AdamW(lr=0.1)], ids=lambda value: type(value).__name__)
def test_a_network_that_is_frozen_within_another_stays_as_it_is(optimizer: Optimizer) -> None:
    """Neither decay nor momentum moves what has no gradient."""
    decaying = msgspec.structs.replace(optimizer, weight_decay=0.5)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(WORDS, 16).requires_grad_(False), nn.Dropout(0.1), nn.Linear(16, WORDS))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    recipe = msgspec.structs.replace(TOKENS, optimizer=decaying)
    optimise(net, Counting(net, seed=3), recipe, seed=3, checkpoints=Memory())
    assert torch.equal(net[0].weight, before["0.weight"])
    assert not torch.equal(net[2].weight, before["2.weight"])

"""The one training loop, its parts, and the stages around it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from toy_training import SHORT, Memory, model, same, split, trained

from kdbench.data.base import Split
from kdbench.data.transforms import random_crop, random_flip
from kdbench.errors import KdbenchError, StageError
from kdbench.losses import cross_entropy
from kdbench.training import (
    SGD,
    Constant,
    Distillation,
    Milestones,
    OneCycle,
    Recipe,
    Schedule,
    WarmupLinear,
    loop,
)
from kdbench.training.evaluate import agreement, evaluate, metrics_of, predict
from kdbench.training.seeds import derive_seed


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As stages run; and two threads on tiny tensors only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---------------------------------------------------------------------------------------------------------- the loop


def orders(recipe: Recipe, count: int, seed: int = 7) -> list[list[Tensor]]:
    """The batches of every epoch, as the loop promises them: from (seed, stream, epoch) alone."""
    found = []
    for epoch in range(recipe.epochs):
        generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
        found.append(list(torch.split(torch.randperm(count, generator=generator), recipe.batch_size)))
    return found


def test_loop_equals_one_written_by_hand_bit_for_bit() -> None:
    state, history = trained()
    data, net = split(), model()
    net.train()
    sgd = torch.optim.SGD(net.parameters(), lr=0, momentum=0.9, nesterov=True, weight_decay=1e-3, fused=True)
    losses = []
    for epoch, batches in enumerate(orders(SHORT, len(data.labels))):
        total = 0.0
        for step, indices in enumerate(batches):
            sgd.param_groups[0]["lr"] = 0.05 * SHORT.schedule.factor(epoch, (epoch + step / 3) / 4, 4)
            loss = cross_entropy(net(data.inputs[indices]), data.labels[indices])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            total += (loss.detach() * len(indices)).item()  # the last batch is smaller and counts as much less
        losses.append(total / len(data.labels))
    assert same(state, net.state_dict())
    assert history.curves["loss"] == losses
    assert history.curves["lr"] == [0.05 * SHORT.schedule.factor(e, e / 4, 4) for e in range(4)]
    assert history.selected_epoch == 3


@pytest.mark.parametrize("nesterov", [True, False])
def test_update_and_loss_are_the_textbooks(nesterov: bool) -> None:
    """Neither torch's optimiser nor the loss's kernel: both formulas by hand, in float64."""
    recipe = msgspec.structs.replace(SHORT, optimizer=SGD(lr=0.05, nesterov=nesterov, weight_decay=1e-3))
    table = split(seed=3).inputs[:, 0, 0, :10].double()
    objective = Distillation(temperature=3.0, alpha=0.7)
    state, history = trained(recipe, objective, dtype=torch.float64, teacher=lambda inputs, indices: table[indices])
    data, net = split(dtype=torch.float64), model(dtype=torch.float64)
    net.train()
    velocity: dict[Tensor, Tensor] = {}
    losses = []
    for epoch, batches in enumerate(orders(recipe, len(data.labels))):
        total = 0.0
        for step, indices in enumerate(batches):
            rate = 0.05 * recipe.schedule.factor(epoch, (epoch + step / 3) / 4, 4)
            logits = net(data.inputs[indices])
            log_p = logits - logits.exp().sum(1, keepdim=True).log()
            soft = functional.softmax(table[indices] / 3, dim=1)
            log_q = logits / 3 - (logits / 3).exp().sum(1, keepdim=True).log()
            hard = -log_p[torch.arange(len(indices)), data.labels[indices]].mean()
            loss = 0.3 * hard + 0.7 * 9 * (soft * (soft.log() - log_q)).sum(1).mean()
            gradients = torch.autograd.grad(loss, list(net.parameters()))
            with torch.no_grad():
                for weight, gradient in zip(net.parameters(), gradients, strict=True):
                    gradient = gradient + 1e-3 * weight
                    velocity[weight] = 0.9 * velocity[weight] + gradient if weight in velocity else gradient
                    weight -= rate * (gradient + 0.9 * velocity[weight] if nesterov else velocity[weight])
            total += loss.item() * len(indices)
        losses.append(total / len(data.labels))
    assert history.curves["loss"] == pytest.approx(losses, rel=1e-9)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kill", [1, 2, 3])
@pytest.mark.parametrize("selection", [None, split(40, seed=9)], ids=["last", "best"])
def test_stopped_and_resumed_run_is_bit_identical(kill: int, selection: Split | None) -> None:
    expected, history = trained(selection=selection)
    memory = Memory(stop_at=kill, save=True)
    with pytest.raises(KeyboardInterrupt):
        trained(checkpoints=memory, selection=selection)
    assert memory.load_state()["epoch"] == kill
    memory.stop_at = 0  # a run that began anew instead of resuming would stop again
    torch.manual_seed(12345)
    state, resumed = trained(checkpoints=memory, selection=selection)
    assert same(state, expected)
    assert resumed == history


def test_last_selection_keeps_the_last_epoch() -> None:
    short, _ = trained(msgspec.structs.replace(SHORT, schedule=Constant(), epochs=2))
    long, history = trained(msgspec.structs.replace(SHORT, schedule=Constant(), epochs=4))
    assert history.selected_epoch == 3
    assert not same(short, long)
    assert "selection.accuracy" not in history.curves


@pytest.mark.parametrize(
    ("scores", "kept"), [([50.0, 70.0, 70.0, 60.0], 1), ([9.0, 8.0, 7.0, 6.0], 0), ([1.0, 2.0, 3.0, 4.0], 3)]
)
def test_best_selection_keeps_that_epochs_weights(
    monkeypatch: pytest.MonkeyPatch, scores: list[float], kept: int
) -> None:
    constant = msgspec.structs.replace(SHORT, schedule=Constant())  # the first k epochs of 4 are then those of k
    expected, _ = trained(msgspec.structs.replace(constant, epochs=kept + 1))
    given = iter(scores)
    monkeypatch.setattr(loop, "evaluate", lambda net, on: {"accuracy": next(given)})
    state, history = trained(constant, selection=split(seed=9))
    assert history.selected_epoch == kept
    assert history.curves["selection.accuracy"] == scores
    assert same(state, expected)


def test_loss_that_is_not_finite_names_epoch_and_cure() -> None:
    wild = msgspec.structs.replace(SHORT, optimizer=SGD(lr=1e30), schedule=Constant())
    with pytest.raises(StageError, match=r"the loss is (nan|inf) in epoch [12] of 4") as caught:
        trained(wild)
    assert "lower the learning rate (now 1e+30)" in str(caught.value)


def test_augmented_batches_are_the_transforms_of_their_own_stream() -> None:
    recipe = msgspec.structs.replace(SHORT, augmentation="crop-flip")
    data = split()
    (first, *_) = loop._batches(data, recipe, None, 7, 2)
    generator = torch.Generator().manual_seed(derive_seed(7, "augment", 2))
    expected = random_flip(random_crop(data.inputs[orders(recipe, 50)[2][0]], 4, generator), generator)
    assert torch.equal(first.inputs, expected)
    assert not torch.equal(first.inputs, data.inputs[first.indices])


# ---------------------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    ("schedule", "epochs", "expected"),
    [
        (Constant(), 4, [1, 1, 1, 1]),
        (Milestones(fractions=(0.5, 0.75)), 8, [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        (Milestones(fractions=(80 / 150, 120 / 150)), 150, [1] * 80 + [0.1] * 40 + [0.01] * 30),
        (Milestones(fractions=(0.75,), gamma=0.5), 4, [1, 1, 1, 0.5]),
        (Milestones(fractions=()), 3, [1, 1, 1]),
    ],
)
def test_stepwise_schedules(schedule: Schedule, epochs: int, expected: list[float]) -> None:
    for epoch, factor in enumerate(expected):
        for within in (0.0, 0.99):  # whole epochs: nothing changes inside one
            found = schedule.factor(epoch, (epoch + within) / epochs, epochs)
            assert found == pytest.approx(factor, rel=1e-12)


def test_one_cycle_rises_to_the_peak_and_falls_to_nothing() -> None:
    cycle = OneCycle(warmup=0.25)
    assert cycle.factor(0, 0.0, 4) == 0.0
    assert cycle.factor(0, 0.125, 4) == 0.5
    assert cycle.factor(1, 0.25, 4) == 1.0
    assert cycle.factor(2, 0.625, 4) == pytest.approx(0.5)  # half-way down the cosine
    assert cycle.factor(3, math.nextafter(1.0, 0.0), 4) == pytest.approx(0.0, abs=1e-12)
    values = [cycle.factor(0, i / 1000, 4) for i in range(1000)]
    assert values[:250] == sorted(values[:250])
    assert values[250:] == sorted(values[250:], reverse=True)
    assert OneCycle(warmup=0.0).factor(0, 0.0, 4) == 1.0


def test_warmup_linear_rises_to_the_peak_and_falls_to_nothing_in_straight_lines() -> None:
    line = WarmupLinear(warmup=0.2)
    steps = {0.0: 0.0, 0.05: 0.25, 0.1: 0.5, 0.2: 1.0, 0.4: 0.75, 0.6: 0.5, 0.9: 0.125}
    for position, factor in steps.items():
        assert line.factor(int(position * 10), position, 10) == pytest.approx(factor, rel=1e-12)
    assert line.factor(9, math.nextafter(1.0, 0.0), 10) == pytest.approx(0.0, abs=1e-12)
    down = WarmupLinear(warmup=0.0)
    assert [down.factor(epoch, epoch / 4, 4) for epoch in range(4)] == [1.0, 0.75, 0.5, 0.25]
    up = WarmupLinear(warmup=1.0)
    assert [up.factor(epoch, epoch / 4, 4) for epoch in range(4)] == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("warmup", [500, -0.1, math.nan])
def test_a_warmup_that_is_no_share_of_the_run_is_refused(warmup: float) -> None:
    with pytest.raises(KdbenchError, match=r"a warm-up over .* of the run; .*its share of the run, between 0 and 1"):
        WarmupLinear(warmup=warmup)


# --------------------------------------------------------------------------------------------------------- evaluation


def test_metrics_are_those_of_independent_formulas() -> None:
    rng = np.random.RandomState(0)
    logits, labels = rng.randn(200, 10) * 5, rng.randint(10, size=200)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    found = metrics_of(torch.from_numpy(logits), torch.from_numpy(labels))
    assert found["accuracy"] == pytest.approx(100 * np.mean(p.argmax(1) == labels), rel=1e-12)
    assert found["nll"] == pytest.approx(-np.log(p[np.arange(200), labels]).mean(), rel=1e-12)
    assert found["entropy"] == pytest.approx(-(p * np.log(p)).sum(1).mean(), rel=1e-12)


def test_agreement_is_that_of_independent_formulas_and_has_a_direction() -> None:
    rng = np.random.RandomState(1)
    student, teacher = rng.randn(200, 10), rng.randn(200, 10)
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (teacher, student))
    found = agreement(torch.from_numpy(student), torch.from_numpy(teacher))
    assert found["agreement"] == pytest.approx(100 * np.mean(student.argmax(1) == teacher.argmax(1)), rel=1e-12)
    assert found["kl"] == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-12)
    assert found["kl"] != pytest.approx((q * np.log(q / p)).sum(1).mean(), rel=1e-3)
    itself = agreement(torch.from_numpy(teacher), torch.from_numpy(teacher))
    assert itself == {"agreement": 100.0, "kl": pytest.approx(0.0, abs=1e-12)}


def test_prediction_is_in_eval_mode_in_order_and_restores_the_mode() -> None:
    net, data = model(), split(33)
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    logits = predict(net, data.inputs, batch_size=10)
    assert net.training
    assert same(before, net.state_dict()), "evaluation moved the running statistics"
    assert not logits.requires_grad
    net.eval()
    torch.testing.assert_close(logits, net(data.inputs).detach(), rtol=1e-5, atol=1e-6)
    assert evaluate(net, data) == pytest.approx(metrics_of(logits, data.labels), rel=1e-5)


def test_derived_seeds_are_stable_and_distinct() -> None:
    assert derive_seed(0, "order", 1) == derive_seed(0, "order", 1)
    parts: list[tuple[object, ...]] = [(0, "order", 1), (0, "order", 11), (0, "augment", 1), (1, "order", 1), (0,)]
    seeds = [derive_seed(*part) for part in parts]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)

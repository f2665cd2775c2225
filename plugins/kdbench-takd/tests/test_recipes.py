"""TAKD's three recipes against the paper and its released code, and every difference against the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, get_args

import msgspec
import pytest
import torch
from torch import Tensor, nn

from kdbench.component import pack
from kdbench.data.base import Split
from kdbench.paper import PROTOCOLS, TIERS, Paper
from kdbench.training import Constant, Milestones, OneCycle, Recipe
from kdbench.training.batch import Batch
from kdbench.training.loop import fit
from kdbench.training.objectives import CrossEntropy, Objective
from kdbench_takd.recipes import RELEASED_GRID, RELEASED_SEEDS, Family, Method, Trial, method, more_trials

FAMILIES = get_args(Family)
RELEASED_STATISTICS = (0.507, 0.487, 0.441, 0.267, 0.256, 0.276)

# What the paper and its released code say, and what the clean reading makes of it, at the paper's own scale: one entry
# a reading and family.
RECIPES: dict[tuple[str, str], dict[str, Any]] = {
    ("written", "cnn"): {
        "epochs": 150, "lr": 0.1, "schedule": Constant(), "nesterov": True, "weight_decay": 0.0,
        "statistics": (0.5,) * 6, "augmentation": "none", "holdout": 0.0, "selection": "test", "chosen_on": "test",
        "reduction": "batchmean", "trials": 120, "restarts": 3,
        "blkd_trials": 120, "nokd_restarts": 3,
    },
    ("written", "resnet"): {
        "epochs": 150, "lr": 0.1, "schedule": Milestones(fractions=(80 / 150, 120 / 150)), "nesterov": True,
        "weight_decay": 1e-4, "statistics": (0.5,) * 6, "augmentation": "none", "holdout": 0.0, "selection": "test",
        "chosen_on": "test", "reduction": "batchmean", "trials": 120, "restarts": 3,
        "blkd_trials": 120, "nokd_restarts": 3,
    },
    ("released", "cnn"): {
        "epochs": 160, "lr": 0.01, "schedule": Constant(), "nesterov": False, "weight_decay": 1e-4,
        "statistics": RELEASED_STATISTICS, "augmentation": "none", "holdout": 0.0, "selection": "test",
        "chosen_on": "test", "reduction": "mean", "trials": 120, "restarts": 3,
        "blkd_trials": 120, "nokd_restarts": 3,
    },
    ("released", "resnet"): {
        "epochs": 160, "lr": 0.01, "schedule": Milestones(fractions=(0.75,)), "nesterov": False,
        "weight_decay": 1e-4, "statistics": RELEASED_STATISTICS, "augmentation": "none", "holdout": 0.0,
        "selection": "test", "chosen_on": "test", "reduction": "mean", "trials": 120, "restarts": 3,
        "blkd_trials": 120, "nokd_restarts": 3,
    },
    ("clean", "cnn"): {
        "epochs": 150, "lr": 0.05, "schedule": OneCycle(warmup=0.3), "nesterov": True, "weight_decay": 1e-4,
        "statistics": "data", "augmentation": "none", "holdout": 0.1, "selection": "last", "chosen_on": "validation",
        "reduction": "batchmean", "trials": 4, "restarts": 4,
        "blkd_trials": 8, "nokd_restarts": 8,
    },
    ("clean", "resnet"): {
        "epochs": 150, "lr": 0.1, "schedule": Milestones(fractions=(80 / 150, 120 / 150)), "nesterov": True,
        "weight_decay": 1e-4, "statistics": "data", "augmentation": "crop-flip", "holdout": 0.1, "selection": "last",
        "chosen_on": "validation", "reduction": "batchmean", "trials": 4, "restarts": 4,
        "blkd_trials": 8, "nokd_restarts": 8,
    },
}  # fmt: skip

# What may differ between the readings, and the ledger line that says so, for plain nets and for ResNets.
LEDGER: dict[str, tuple[str | None, str | None]] = {
    "recipe.epochs": ("epochs", "epochs"),
    "recipe.optimizer.lr": ("lr-plain", "lr-resnet"),
    "recipe.optimizer.nesterov": ("optimizer", "optimizer"),
    "recipe.optimizer.weight_decay": ("weight-decay", None),
    "recipe.schedule": ("lr-plain", "lr-resnet"),
    "recipe.augmentation": (None, "augmentation"),
    "recipe.statistics": ("preprocessing", "preprocessing"),
    "recipe.holdout": ("reported", "reported"),
    "recipe.selection": ("reported", "reported"),
    "chosen_on": ("reported", "reported"),
    "reduction": ("kd-loss", "kd-loss"),
    "search": ("search", "search"),
    "restarts": ("idle-trials", "idle-trials"),
    "blkd_trials": ("tuned-stages", "tuned-stages"),
    "nokd_restarts": ("tuned-stages", "tuned-stages"),
}


def at_full(protocol: str, family: Family, dataset: str = "cifar100") -> Method:
    return method(protocol=protocol, tier="full", dataset=dataset, family=family)


def rates(recipe: Recipe) -> list[float]:
    """The learning rate at the start of every epoch."""
    epochs = range(recipe.epochs)
    return [recipe.optimizer.lr * recipe.schedule.factor(e, e / recipe.epochs, recipe.epochs) for e in epochs]


# --------------------------------------------------------------------------------------------------- learning rates


@pytest.mark.parametrize(
    ("protocol", "family", "pieces"),
    [
        ("released", "resnet", [(0.01, 120), (0.001, 40)]),
        ("released", "cnn", [(0.01, 160)]),
        ("written", "resnet", [(0.1, 80), (0.01, 40), (0.001, 30)]),
        ("written", "cnn", [(0.1, 150)]),
        ("clean", "resnet", [(0.1, 80), (0.01, 40), (0.001, 30)]),
    ],
)
def test_learning_rate_of_every_epoch(protocol: str, family: Family, pieces: list[tuple[float, int]]) -> None:
    expected = [rate for rate, epochs in pieces for _ in range(epochs)]
    assert rates(at_full(protocol, family).recipe) == pytest.approx(expected, rel=1e-12)


def test_the_clean_plain_rate_rises_to_its_one_tuned_peak_and_falls_to_nothing() -> None:
    trace = rates(at_full("clean", "cnn").recipe)
    peak = trace.index(max(trace))
    assert (peak, max(trace)) == (45, pytest.approx(0.05))
    assert trace == sorted(trace[:peak]) + sorted(trace[peak:], reverse=True)
    assert trace[-1] < 1e-4


@pytest.mark.parametrize(("family", "tier"), list(product(FAMILIES, TIERS)))
def test_the_released_rate_is_never_a_tenth(family: Family, tier: str) -> None:
    recipe = method(protocol="released", tier=tier, dataset="cifar10", family=family).recipe
    assert max(rates(recipe)) == 0.01


# ---------------------------------------------------------------------------------------- the recipes and the ledger


@pytest.mark.parametrize(("protocol", "family"), RECIPES)
def test_recipe_of_each_reading(protocol: str, family: Family) -> None:
    m = at_full(protocol, family)
    (reduction,) = {trial.objective.reduction for trial in m.trials}
    recipe, sgd = m.recipe, m.recipe.optimizer
    assert RECIPES[protocol, family] == {
        "epochs": recipe.epochs, "lr": sgd.lr, "schedule": recipe.schedule, "nesterov": sgd.nesterov,
        "weight_decay": sgd.weight_decay, "statistics": recipe.statistics, "augmentation": recipe.augmentation,
        "holdout": recipe.holdout, "selection": recipe.selection, "chosen_on": m.chosen_on, "reduction": reduction,
        "trials": len(m.trials), "restarts": m.restarts, "blkd_trials": len(m.blkd_trials),
        "nokd_restarts": m.nokd_restarts,
    }  # fmt: skip
    assert (sgd.momentum, recipe.batch_size, m.width) == (0.9, 128, 1.0)


def flat(m: Method) -> dict[str, Any]:
    """Everything that a method fixes, by dotted name; a schedule is one thing."""

    def walk(name: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and name != "recipe.schedule":
            for key, item in value.items():
                yield from walk(f"{name}.{key}", item)
        else:
            yield name, value

    def settings(trials: tuple[Trial, ...]) -> list[tuple[float, float, int]]:
        return [(t.objective.temperature, t.objective.alpha, t.restart) for t in trials]

    return {
        **dict(walk("recipe", pack(m.recipe))),
        "width": m.width,
        "restarts": m.restarts,
        "chosen_on": m.chosen_on,
        "nokd_restarts": m.nokd_restarts,
        "search": settings(m.trials),
        "blkd_trials": settings(m.blkd_trials),
        "reduction": m.trials[0].objective.reduction,
    }


def differing(methods: list[Method]) -> set[str]:
    first, *rest = map(flat, methods)
    return {name for name in first if any(other[name] != first[name] for other in rest)}


@pytest.mark.parametrize(("family", "dataset"), list(product(FAMILIES, ("cifar10", "cifar100"))))
def test_every_difference_between_the_readings_is_a_line_of_the_ledger(
    paper: Paper, family: Family, dataset: str
) -> None:
    lines = {name: pair[FAMILIES.index(family)] for name, pair in LEDGER.items()}
    declared = {name: line for name, line in lines.items() if line}
    assert differing([at_full(protocol, family, dataset) for protocol in PROTOCOLS]) == set(declared)
    for protocol in PROTOCOLS:
        axes = {"family": (family,)}
        applies = {"protocol": protocol, "tier": "full", "dataset": dataset, "axes": axes}
        there = {d.id for d in paper.deviations if d.applies(**applies)}
        assert set(declared.values()) <= there
    for line in set(declared.values()):
        (deviation,) = (d for d in paper.deviations if d.id == line)
        assert len({deviation.written, deviation.released, deviation.clean}) > 1, line


def test_on_signals_the_readings_differ_in_less_and_all_of_it_is_in_the_ledger(paper: Paper) -> None:
    names = differing([at_full(protocol, "cnn", "mnist1d") for protocol in PROTOCOLS])
    assert names == {name for name, (plain, _) in LEDGER.items() if plain} - {"recipe.statistics"}
    there = {d.id for d in paper.deviations if d.applies(protocol="clean", tier="full", dataset="mnist1d")}
    assert {LEDGER[name][0] for name in names} <= there


@pytest.mark.parametrize(("protocol", "tier"), list(product(PROTOCOLS, ("smoke", "laptop"))))
@pytest.mark.parametrize("dataset", ["mnist1d", "cifar10", "cifar100"])
def test_what_a_cheaper_tier_changes_is_in_the_ledger(paper: Paper, protocol: str, tier: str, dataset: str) -> None:
    cheap = method(protocol=protocol, tier=tier, dataset=dataset, family="cnn")
    changed = differing([at_full(protocol, "cnn", dataset), cheap])
    assert changed == {"recipe.epochs", "width", "search", "restarts", "blkd_trials", "nokd_restarts"}
    there = {d.id: d for d in paper.deviations if d.applies(protocol=protocol, tier=tier, dataset=dataset)}
    epochs = there["scale-epochs-smoke" if tier == "smoke" else "scale-epochs"].here
    assert str(cheap.recipe.epochs) in epochs
    assert "half" in there["scale-network"].here
    assert cheap.width == 0.5
    assert there["scale-trials"].here.startswith("one a stage,")
    assert len(cheap.trials) == cheap.restarts == cheap.nokd_restarts == 1
    assert cheap.blkd_trials == cheap.trials
    assert (cheap.trials[0].objective.temperature, cheap.trials[0].objective.alpha) == (4.0, 0.9)


def test_the_ledger_counts_the_search_as_it_is_run(paper: Paper) -> None:
    (line,) = (d for d in paper.deviations if d.id == "scale-search")
    for protocol in ("written", "released"):
        first, *drawn = at_full(protocol, "cnn").trials
        assert f"({first.objective.alpha:g}, {first.objective.temperature:g})".replace("0.", ".") in line.here
        assert f"and {len(drawn)} of the 360 drawn" in line.here
        assert all((t.objective.alpha, t.objective.temperature) in RELEASED_GRID for t in drawn)
    clean = at_full("clean", "cnn").trials
    assert f"clean: {len(clean)} settings" in line.here
    assert [(t.objective.alpha, t.objective.temperature) for t in clean] == [(0.9, 4), (0.5, 4), (0.9, 2), (0.5, 2)]


# --------------------------------------------------------------------------------------------------------- the search


def test_the_released_search_space_has_360_settings() -> None:
    space = set(product(RELEASED_GRID, range(RELEASED_SEEDS)))
    assert len(space) == 20 * 6 * 3
    weights, temperatures = {weight for weight, _ in RELEASED_GRID}, {t for _, t in RELEASED_GRID}
    assert sorted(weights) == pytest.approx([n / 20 for n in range(1, 21)], abs=0)
    assert temperatures == {1, 2, 5, 10, 15, 20}


@pytest.mark.parametrize("protocol", ["written", "released"])
def test_120_distinct_trials_the_same_on_every_machine(protocol: str) -> None:
    trials = at_full(protocol, "resnet").trials
    assert len(set(trials)) == 120
    assert trials == at_full(protocol, "cnn", "cifar10").trials
    # Drawn from a seed: these were read off once, and another Python must not draw others, since a trial is part of
    # what names a stage.
    golden = [(0.55, 20, 2), (0.6, 20, 2), (0.1, 1, 2), (0.4, 5, 0)]
    assert [(t.objective.alpha, t.objective.temperature, t.restart) for t in trials[1:5]] == golden
    assert {t.restart for t in trials} == {0, 1, 2}


@pytest.mark.parametrize(("protocol", "count"), [("clean", 8), ("written", 240), ("released", 240)])
def test_more_trials_begin_with_the_usual_ones_and_never_repeat_one(protocol: str, count: int) -> None:
    usual = at_full(protocol, "cnn").trials
    more = more_trials(protocol, count)
    assert 2 * len(usual) == count == len(set(more))
    assert more[: len(usual)] == usual
    assert (
        more_trials(protocol, 2)[0]
        == method(protocol=protocol, tier="laptop", dataset="mnist1d", family="cnn").trials[0]
    )


def test_a_tuned_temperature_changes_nothing_else_of_the_loss() -> None:
    for protocol, reduction in (("clean", "batchmean"), ("released", "mean")):
        loss = at_full(protocol, "cnn").objective(temperature=8.0)
        assert (loss.temperature, loss.alpha, loss.reduction) == (8.0, 0.9, reduction)


# ----------------------------------------------------------------------------------------------------------- the loss


def batch(classes: int) -> tuple[Tensor, Batch]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 128, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (128,), generator=generator)
    return student, Batch(student, labels, torch.arange(128), teacher, 0)


@pytest.mark.parametrize("classes", [10, 100])
def test_the_released_soft_term_is_the_true_one_over_the_classes(classes: int) -> None:
    logits, material = batch(classes)
    soft = {
        protocol: msgspec.structs.replace(at_full(protocol, "cnn").trials[0].objective, alpha=1.0).loss(
            logits, material
        )
        for protocol in PROTOCOLS
    }
    assert (soft["clean"] / soft["released"]).item() == pytest.approx(classes, rel=1e-12)
    assert soft["written"].item() == soft["clean"].item()


@pytest.mark.parametrize(("protocol", "weight"), [("released", 0.125), ("clean", 12.5)])
def test_effective_weight_of_the_true_kl_on_cifar100(protocol: str, weight: float) -> None:
    logits, material = batch(100)
    loss = msgspec.structs.replace(at_full(protocol, "cnn").trials[0].objective, alpha=0.5, temperature=5.0)
    log_s, log_t = (torch.log_softmax(x / 5.0, 1) for x in (logits, material.teacher_logits))
    divergence = (log_t.exp() * (log_t - log_s)).sum(1).mean()
    hard = torch.nn.functional.cross_entropy(logits, material.labels)
    assert ((loss.loss(logits, material) - 0.5 * hard) / divergence).item() == pytest.approx(weight, rel=1e-10)


# ---------------------------------------------------------------------------------------------------------- the steps


class Nowhere:
    """Checkpoints that keep nothing."""

    def load_state(self) -> None: ...
    def state_due(self) -> bool:
        return False

    def save_state(self, state: object) -> None: ...
    def progress(self, done: int, total: int) -> None: ...


SIZES: list[int] = []


class Counting(Objective, frozen=True):
    """Cross-entropy that notes how many samples every step had."""

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        SIZES.append(len(batch.labels))
        return CrossEntropy().loss(logits, batch)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_391_steps_an_epoch_of_50000_images(protocol: str) -> None:
    SIZES.clear()
    recipe = msgspec.structs.replace(at_full(protocol, "cnn").recipe, epochs=1)
    data = Split(torch.ones(50_000, 1, 1, 1), torch.arange(50_000) % 2)
    fit(nn.Sequential(nn.Flatten(), nn.Linear(1, 2)), data, recipe, Counting(), seed=0, checkpoints=Nowhere())
    assert SIZES == [128] * 390 + [80]

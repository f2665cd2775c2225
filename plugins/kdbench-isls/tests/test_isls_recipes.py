"""How the arms are trained, what the two readings differ in and whether the ledger says so, and the association."""

from __future__ import annotations

import math
import re
from itertools import product
from typing import Any

import msgspec
import numpy as np
import pytest
import scipy.stats
import statsmodels.api as sm
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.component import pack
from kdbench.data import DATASETS
from kdbench.data.base import DataRef
from kdbench.paper import TIERS, Paper
from kdbench.training import SGD, Recipe
from kdbench_isls import recipes
from kdbench_isls.association import partial_rank_correlation
from kdbench_isls.ranking import draws
from kdbench_isls.recipes import GENERATIONS, GRID_A, GRID_ENTROPY, TEMPERATURES, Method, method, networks
from kdbench_isls.study import reproduce

PROTOCOLS = ("released", "clean")


@pytest.fixture(scope="module")
def paper() -> Paper:
    return Paper.load("kdbench_isls", study=reproduce)


def data_of(name: str) -> DataRef:
    return DATASETS[name].expected()


def every_place() -> list[tuple[str, str, str]]:
    """Tier, data set and network of everything that can be run."""
    names = ("mnist1d", "cifar10", "cifar100", "tiny-imagenet")
    return [(tier, name, network) for tier, name in product(TIERS, names) for network in networks(tier, "clean")]


def made(protocol: str, tier: str, dataset: str, network: str, label_noise: float = 0.2) -> Method:
    return method(protocol=protocol, tier=tier, data=data_of(dataset), network=network, label_noise=label_noise)


# ------------------------------------------------------------------------------------------------------------ readings

# The ledger lines that speak of a field, whichever applies where.
LEDGER = {
    "schedule": {"lr-resnet", "lr-densenet", "scale-schedule"},
    "alpha": {"soft-weight"},
    "temperature": {"temperature"},
    "cap": {"ema-cap"},
    "log_floor": {"log-floor"},
    "network": {"initialisation"},
}


def fields_of(protocol: str, tier: str, dataset: str, network: str) -> dict[str, Any]:
    how = made(protocol, tier, dataset, network)
    other = {name: value for name, value in how._asdict().items() if name != "recipe"}
    return {**pack(how.recipe), **other, "network": pack(networks(tier, protocol)[network])}


def differing(tier: str, dataset: str, network: str) -> set[str]:
    released, clean = (fields_of(protocol, tier, dataset, network) for protocol in PROTOCOLS)
    assert released.keys() == clean.keys()
    return {name for name in released if released[name] != clean[name]}


@pytest.mark.parametrize(("tier", "dataset", "network"), every_place())
def test_what_the_readings_differ_in_stands_on_the_ledger(paper: Paper, tier: str, dataset: str, network: str) -> None:
    axes = {"network": (network,), "dataset": (dataset,)}
    for name in differing(tier, dataset, network):
        assert name in LEDGER, f"no line is known to speak of {name}"
        lines = [
            line
            for line in paper.deviations
            if line.id in LEDGER[name]
            and all(line.applies(protocol=p, tier=tier, dataset=dataset, axes=axes) for p in PROTOCOLS)
        ]
        assert len(lines) == 1, f"{name} differs on {tier}, {dataset}, {network}, and {lines} say so"
        assert lines[0].text("released") != lines[0].text("clean"), name


def test_each_of_these_lines_is_needed_somewhere() -> None:
    assert {tier: list(networks(tier, "released")) for tier in TIERS} == {
        tier: list(networks(tier, "clean")) for tier in TIERS
    }
    assert differing("full", "tiny-imagenet", "resnet34") == set(LEDGER)
    assert "cap" not in differing("full", "cifar100", "resnet34")  # its steps are those that .999 was made for


def test_every_arm_of_a_reading_has_the_same_log_floor_and_weight() -> None:
    released, clean = (made(protocol, "laptop", "mnist1d", "plain4") for protocol in PROTOCOLS)
    for how, floor in ((released, 1e-8), (clean, 0.0)):
        assert how.self_distillation().log_floor == how.beta().log_floor == floor
        assert how.self_distillation().alpha == how.flat().alpha == how.matched().alpha == how.alpha
        assert {how.self_distillation().temperature, how.flat().temperature, how.matched().temperature} == {
            how.temperature
        }
    assert (released.alpha, released.temperature, released.beta().alpha) == (0.4, 4.0, 0.6)
    assert clean.alpha == clean.beta().alpha == 0.6
    assert clean.temperature in TEMPERATURES


def test_recipes_are_those_of_the_released_code() -> None:
    for tier, dataset, network in every_place():
        recipe = made("released", tier, dataset, network).recipe
        assert recipe.optimizer == SGD(lr=0.1, momentum=0.9, nesterov=False, weight_decay=1e-4)
        assert (recipe.batch_size, recipe.selection, recipe.ties) == (128, "validation", "last")
        assert recipe.label_noise == 0.2
    full = {name: made("released", "full", name, "resnet34").recipe for name in ("cifar100", "tiny-imagenet")}
    assert {recipe.epochs for recipe in full.values()} == {150}
    held = {name: round(recipe.holdout * data_of(name).sizes["train"]) for name, recipe in full.items()}
    assert held == {"cifar100": 5_000, "tiny-imagenet": 10_000}
    assert full["cifar100"].augmentation == "crop-flip"
    assert full["tiny-imagenet"].augmentation == "resized-crop-flip"


@pytest.mark.parametrize(("tier", "dataset", "network"), every_place())
def test_thirds_of_a_run_are_whole_epochs(tier: str, dataset: str, network: str) -> None:
    """Or the released schedule would never drop: it is the DenseNet's fault alone."""
    recipe = made("released", tier, dataset, network).recipe
    assert recipe.epochs % 3 == 0
    factors = [recipe.schedule.factor(epoch, epoch / recipe.epochs, recipe.epochs) for epoch in range(recipe.epochs)]
    assert len(set(factors)) == (2 if network == "densenet100" else 3)
    clean = made("clean", tier, dataset, network).recipe
    assert len({clean.schedule.factor(epoch, epoch / clean.epochs, clean.epochs) for epoch in range(clean.epochs)}) == 3


@pytest.mark.parametrize(
    ("line", "tier", "datasets"),
    [
        ("epochs", "full", ["cifar100"]),
        ("scale-epochs", "laptop", ["mnist1d", "cifar10"]),
        ("scale-epochs-smoke", "smoke", ["mnist1d"]),
    ],
)
def test_the_ledger_has_the_epochs_that_are_run(paper: Paper, line: str, tier: str, datasets: list[str]) -> None:
    (found,) = (each for each in paper.deviations if each.id == line)
    for protocol in PROTOCOLS:
        stated = [int(number) for number in re.findall(r"\b\d+\b", found.text(protocol))]
        run = [made(protocol, tier, name, next(iter(networks(tier, protocol)))).recipe.epochs for name in datasets]
        assert stated == run


def test_the_average_spans_the_same_share_of_every_run() -> None:
    recipe = Recipe(epochs=50, optimizer=SGD(lr=0.1), holdout=0.2)
    data = msgspec.structs.replace(data_of("mnist1d"), sizes={"train": 2_500, "test": 6_000})
    assert math.ceil(2_000 / 128) * 50 == 800
    assert recipes._rescaled_cap(data, recipe) == pytest.approx(0.93, abs=5e-3)
    assert made("clean", "full", "cifar100", "resnet34").cap == 0.999  # 352 x 150 = 52,800 steps
    assert {made("released", *place).cap for place in every_place()} == {0.999}
    for tier, dataset, network in every_place():
        how = made("clean", tier, dataset, network)
        assert how.beta().cap == how.cap
        images = data_of(dataset).sizes["train"] * (1 - how.recipe.holdout)
        steps = math.ceil(images / 128) * how.recipe.epochs
        assert 1 / (1 - how.cap) == pytest.approx(max(0.019 * steps, 2), rel=0.05)
        assert 0.5 <= how.cap < 1


# --------------------------------------------------------------------------------------------------------------- grids


def test_grids_are_of_equal_size() -> None:
    assert {len(set(grid)) for grid in (GRID_A, GRID_ENTROPY, TEMPERATURES)} == {4}
    assert recipes.A in GRID_A
    assert GENERATIONS == 3


@pytest.mark.parametrize("a", GRID_A)
def test_tuned_smoothing_has_the_mean_targets_of_tuned_beta(a: float) -> None:
    how = made("clean", "laptop", "mnist1d", "plain4")
    beta = how.beta(a)
    mean = 1 - beta.alpha + beta.alpha * np.concatenate([draws(a, 1000, seed) for seed in range(100)]).mean()
    assert how.smoothing(a).label_share(10) == pytest.approx(1 - 0.6 / (a + 1), rel=1e-12)
    assert how.smoothing(a).label_share(10) == pytest.approx(mean, abs=2e-3)
    observed = how.smoothing(a).observe(torch.zeros(2, 10, dtype=torch.float64), None)["target"]  # type: ignore[arg-type]
    assert observed.item() == pytest.approx(1 - 0.6 / (a + 1), rel=1e-12)


# --------------------------------------------------------------------------------------------------------- association

numbers = st.lists(st.tuples(*[st.integers(0, 8)] * 3), min_size=5, max_size=20)


def left_of(values: list[float], given: list[float], degree: int = 2) -> Any:
    """What a regression of the ranks on powers of the ranks of ``given`` leaves, by statsmodels."""
    ranks, cause = scipy.stats.rankdata(values), scipy.stats.rankdata(given)
    return sm.OLS(ranks, np.column_stack([cause**power for power in range(degree + 1)])).fit().resid


def correlation(x: list[float], y: list[float], given: list[float], degree: int = 2) -> float:
    return float(scipy.stats.pearsonr(left_of(x, given, degree), left_of(y, given, degree)).statistic)


@pytest.mark.filterwarnings("ignore:The design matrix is rank-deficient")  # few values of what is given
@given(numbers)
def test_partial_correlation_is_that_of_what_regressions_leave(rows: list[tuple[int, int, int]]) -> None:
    x, y, z = (list(map(float, column)) for column in zip(*rows, strict=True))
    found = partial_rank_correlation(x, y, z)
    if min(np.linalg.norm(left_of(values, z)) for values in (x, y)) < 1e-7:
        assert math.isnan(found)
        return
    if len(set(z)) == 1:  # nothing to account for
        assert found == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-9)
    assert found == pytest.approx(correlation(x, y, z), abs=1e-6)
    assert -1 <= found <= 1
    assert partial_rank_correlation(y, x, z) == pytest.approx(found, abs=1e-9)


def test_association_sees_ranks_and_signs() -> None:
    x, z = [1.0, 2, 3, 4, 5, 6], [3.0, 1, 4, 1, 5, 9]
    assert partial_rank_correlation(x, [math.exp(value) for value in x], z) == pytest.approx(1)
    assert partial_rank_correlation(x, [-value for value in x], z) == pytest.approx(-1)
    # Two that follow a third and nothing else: what is left of them goes in no common direction.
    rng = np.random.RandomState(0)
    cause = rng.randn(4000)
    one, other = (cause + rng.randn(4000) for _ in range(2))
    assert scipy.stats.spearmanr(one, other).statistic > 0.4
    assert abs(partial_rank_correlation(one, other, cause)) < 0.05


@pytest.mark.parametrize(("noise", "bounds"), [(0.2, (-0.06, 0.06)), (0.05, (0.3, 0.6)), (0.0, (1 - 1e-9, 1))])
def test_association_of_two_that_rise_and_fall_with_uncertainty_alone(
    noise: float, bounds: tuple[float, float]
) -> None:
    """The square takes an inverted U out as far as its ranks are a parabola, which they are only nearly.

    So the less else there is in two such quantities, the more of their common cause remains: the number is a
    description and no test.
    """
    rng = np.random.RandomState(0)
    cause = rng.rand(4000)
    one, other = (4 * cause * (1 - cause) + noise * rng.randn(4000) for _ in range(2))
    assert correlation(one, other, cause, degree=1) > 0.6  # a straight line takes out nothing of it
    low, high = bounds
    assert low <= partial_rank_correlation(one, other, cause) <= high


@pytest.mark.parametrize(
    ("x", "y", "given"),
    [
        ([1, 2, 3], [1, 3, 2], [2, 1, 3]),
        ([], [], []),
        ([1, 2, 4, 3], [4, 3, 1, 2], [2, 1, 4, 3]),
        ([1, 1, 1, 1, 1], [1, 2, 3, 4, 5], [2, 1, 4, 3, 5]),
        ([1, 2, 3, 4, 5], [7, 7, 7, 7, 7], [2, 1, 4, 3, 5]),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], [10, 20, 30, 40, 50]),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], [5, 4, 3, 2, 1]),
        ([1, 2, 4, 3, 5], [40, 30, 10, 20, 0], [4, 3, 1, 2, 0]),
    ],
)
def test_association_that_cannot_be_told_is_nan(x: list[float], y: list[float], given: list[float]) -> None:
    assert math.isnan(partial_rank_correlation(x, y, given))

"""Uncertainty and diversity: entropies that are known, the estimator by brute force, the traps of float32 and ties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdbench.errors import KdbenchError
from kdbench_isls.dispersion import (
    DISTANCE_FLOOR,
    NEIGHBOURS,
    diversity,
    label_probability,
    uncertainty,
    variance,
)

Floats = NDArray[np.float64]


def brute(values: Floats, k: int, floor: float) -> tuple[float, float]:
    """The estimator as it is defined: all distances, sorted."""
    distances = np.sort(np.abs(values[:, None] - values[None, :]), axis=1)[:, k]  # the first is to itself
    n = len(values)
    entropy = scipy.special.psi(n) - scipy.special.psi(k) + math.log(2) + np.log(np.maximum(distances, floor)).mean()
    return float(entropy), float((distances <= floor).mean())


# --------------------------------------------------------------------------------------------------------- diversity

KNOWN = {
    "uniform": (scipy.stats.uniform(0, 1), 0.0),
    "uniform of width 0.1": (scipy.stats.uniform(0.4, 0.1), math.log(0.1)),
    # ln B(3, 1) - 2 psi(3) + 2 psi(4) = -ln 3 + 2 / 3
    "beta(3, 1)": (scipy.stats.beta(3, 1), 2 / 3 - math.log(3)),
    "normal": (scipy.stats.norm(0, 2), 0.5 * math.log(2 * math.pi * math.e * 4)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_entropy_is_the_analytic_one_and_scipys(name: str) -> None:
    distribution, entropy = KNOWN[name]
    values = distribution.rvs(20_000, random_state=np.random.default_rng(5))
    found = diversity(values)
    assert found.entropy == pytest.approx(entropy, abs=0.03)
    assert found.entropy == pytest.approx(float(scipy.stats.differential_entropy(values)), abs=0.03)
    assert found.floored == 0


@pytest.mark.parametrize("k", [1, 3, 10])
def test_the_number_of_neighbours_does_not_move_it(k: int) -> None:
    values = np.random.default_rng(1).uniform(0, 1, 20_000)
    assert diversity(values, k).entropy == pytest.approx(0, abs=0.03)


few = st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0])), min_size=6, max_size=30)


@given(few, st.integers(1, 5), st.sampled_from([1e-10, 1e-3]))
def test_estimator_is_the_one_defined_and_never_infinite(values: list[float], k: int, floor: float) -> None:
    found = diversity(np.array(values), k, floor)
    assert math.isfinite(found.entropy)
    expected, floored = brute(np.array(values), k, floor)
    assert found.entropy == pytest.approx(expected, abs=1e-9)
    assert found.floored == floored


@given(few, st.floats(0.01, 100), st.integers(0, 100))
def test_order_scale_and_reflection_do_what_they_must(values: list[float], scale: float, seed: int) -> None:
    array = np.array(values)
    once = diversity(array)
    assert diversity(np.random.default_rng(seed).permutation(array)).entropy == pytest.approx(once.entropy, abs=1e-9)
    scaled = diversity(scale * array, floor=scale * DISTANCE_FLOOR)
    assert scaled.entropy == pytest.approx(once.entropy + math.log(scale), abs=1e-6)
    assert diversity(1 - array).entropy == pytest.approx(once.entropy, abs=1e-4)


def test_equal_values_leave_the_floor_alone() -> None:
    found = diversity(np.full(100, 0.7))
    assert found.floored == 1
    expected = scipy.special.psi(100) - scipy.special.psi(NEIGHBOURS) + math.log(2 * DISTANCE_FLOOR)
    assert found.entropy == pytest.approx(expected)


def test_the_floored_share_counts_ties() -> None:
    """30 of 100 values are one: each has its five neighbours at no distance."""
    values = np.concatenate([np.full(30, 2.0), np.random.default_rng(0).uniform(0, 1, 70)])
    assert diversity(values).floored == pytest.approx(0.3)
    fewer = np.concatenate([np.full(NEIGHBOURS, 2.0), np.linspace(0, 1, 70)])
    assert diversity(fewer).floored == 0, "a value needs as many equals as it has neighbours"


@pytest.mark.parametrize("n", [0, 1, NEIGHBOURS])
def test_too_few_values_are_an_error_in_words(n: int) -> None:
    with pytest.raises(KdbenchError) as caught:
        diversity(np.zeros(n))
    assert caught.value.what == f"of {n} values none has 5 neighbours"
    assert caught.value.where == "predictive diversity"
    assert caught.value.cure == "take 6 examples or more, or fewer neighbours"
    assert math.isfinite(diversity(np.zeros(NEIGHBOURS + 1)).entropy)


@pytest.mark.parametrize(
    ("values", "k", "floor", "words"),
    [
        ([0.1, 0.2, 0.3], 0, 1e-10, "0 neighbours are none"),
        ([0.1, 0.2, 0.3], 1, 0.0, "floor of 0.0 is not a positive number"),
        ([0.1, 0.2, math.inf], 1, 1e-10, "not finite"),
        ([0.1, 0.2, math.nan], 1, 1e-10, "not finite"),
    ],
)
def test_what_has_no_entropy_is_refused(values: list[float], k: int, floor: float, words: str) -> None:
    with pytest.raises(KdbenchError, match=words):
        diversity(np.array(values), k, floor)


# ------------------------------------------------------------------------------------------------------ probabilities


def learnt(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 logits of a network that has learnt its examples: p from about 1 - 1e-6 to 1 - 1e-9."""
    margin = np.random.default_rng(3).uniform(14, 21, n)
    logits = torch.zeros(n, 10)
    labels = torch.arange(n) % 10
    logits[torch.arange(n), labels] = torch.from_numpy(margin).float()
    return logits, labels


def test_float32_ties_what_float64_keeps_apart() -> None:
    logits, labels = learnt(2_000)
    single = torch.softmax(logits, 1).gather(1, labels[:, None])[:, 0].double().numpy()
    double = label_probability(logits, labels)
    assert len(np.unique(single)) < 200
    assert len(np.unique(double)) > 1_990
    trapped, sound = diversity(single), diversity(double)
    assert trapped.floored > 0.5
    assert sound.floored < trapped.floored / 2
    assert math.isfinite(trapped.entropy)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_label_probability_is_scipys(temperature: float) -> None:
    rng = np.random.default_rng(2)
    logits, labels = rng.normal(0, 3, (200, 10)).astype(np.float32), rng.integers(0, 10, 200)
    p = scipy.special.softmax(logits.astype(np.float64) / temperature, axis=1)[np.arange(200), labels]
    found = label_probability(torch.from_numpy(logits), torch.from_numpy(labels), temperature)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, p, rtol=1e-12)


def test_uncertainty_is_the_mean_entropy() -> None:
    logits = np.random.default_rng(4).normal(0, 3, (200, 10)).astype(np.float32)
    p = scipy.special.softmax(logits.astype(np.float64) / 2, axis=1)
    expected = scipy.stats.entropy(p, axis=1).mean()
    assert uncertainty(torch.from_numpy(logits), 2.0) == pytest.approx(expected, rel=1e-12)


def test_uncertainty_at_its_limits() -> None:
    logits = torch.tensor([[0.0, 3.0, -1.0, 900.0]])
    assert uncertainty(torch.zeros(3, 4)) == pytest.approx(math.log(4))
    assert uncertainty(logits) == 0
    assert uncertainty(logits, 1e6) == pytest.approx(math.log(4), rel=1e-6)


def test_variance_is_that_of_a_known_distribution() -> None:
    assert variance(np.array([0.2, 0.4, 0.9])) == pytest.approx(((0.3**2) + (0.1**2) + (0.4**2)) / 3)
    values = scipy.stats.beta(3, 1).rvs(50_000, random_state=np.random.default_rng(1))
    assert variance(values) == pytest.approx(0.0375, abs=5e-4)

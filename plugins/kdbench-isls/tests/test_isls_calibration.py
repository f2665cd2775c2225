"""Calibration: the released binning rule written out in numpy, temperatures that are known, and what is refused."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from kdbench.errors import KdbenchError
from kdbench.training.evaluate import metrics_of
from kdbench_isls.calibration import (
    LOG_TEMPERATURE,
    Fit,
    accuracy,
    answers,
    calibration_error,
    fit_temperature,
    log_probabilities,
    nll,
    probabilities,
    reliability,
)

Floats = NDArray[np.float64]
Bin = tuple[float, float, float]
LOWEST, HIGHEST = math.exp(-LOG_TEMPERATURE), math.exp(LOG_TEMPERATURE)


def edges_of(bins: int) -> Floats:
    return torch.linspace(0, 1, bins + 1, dtype=torch.float64).numpy()


def released(confidence: Floats, correct: NDArray[np.bool_], edges: Floats) -> tuple[float, list[Bin]]:
    """The rule bin by bin: percent, and count, sum of confidence and number correct of each."""
    total = 0.0
    sums: list[Bin] = []
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
        sums.append((float(inside.sum()), float(confidence[inside].sum()), float(correct[inside].sum())))
    return 100.0 * total, sums


def drawn(n: int, classes: int, seed: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """Float32 logits as networks leave them, and labels drawn from their softmax."""
    rng = np.random.default_rng(seed)
    logits = (scale * rng.standard_normal((n, classes))).astype(np.float32)
    p = scipy.special.softmax(logits.astype(np.float64), axis=1)
    labels = (p.cumsum(1) < rng.random((n, 1))).sum(1).clip(max=classes - 1)
    return torch.from_numpy(logits), torch.from_numpy(labels)


# ------------------------------------------------------------------------------------------------ calibration error


@st.composite
def answered(draw: st.DrawFn) -> tuple[int, list[float], list[bool]]:
    """Confidences of every kind: anywhere, exactly at an edge, one float beside it, 0 and 1."""
    bins = draw(st.sampled_from([15, 20, 1, 7]))
    edge = st.sampled_from(edges_of(bins).tolist())
    beside = st.builds(lambda at, to: float(np.nextafter(at, to)), edge, st.sampled_from([0.0, 1.0]))
    value = st.one_of(st.floats(0, 1), edge, beside, st.sampled_from([0.0, 5e-324, 1.0, 1.0 - 2**-53]))
    rows = draw(st.lists(st.tuples(value, st.booleans()), min_size=1, max_size=40))
    return bins, [c for c, _ in rows], [right for _, right in rows]


@given(answered())
def test_error_and_bins_are_those_of_the_released_rule(case: tuple[int, list[float], list[bool]]) -> None:
    bins, confidence, correct = case
    expected, sums = released(np.array(confidence), np.array(correct), edges_of(bins))
    tensors = torch.tensor(confidence, dtype=torch.float64), torch.tensor(correct)
    assert calibration_error(*tensors, bins=bins) == pytest.approx(expected, abs=1e-10)
    found = reliability(*tensors, bins=bins)
    assert found.count == [count for count, _, _ in sums]
    assert found.correct == [right for _, _, right in sums]
    assert found.confidence == pytest.approx([total for _, total, _ in sums], abs=1e-12)


def one_answer(confidence: float, correct: bool, bins: int = 15) -> list[int]:
    found = reliability(torch.tensor([confidence], dtype=torch.float64), torch.tensor([correct]), bins)
    return [number for number, count in enumerate(found.count) if count]


@pytest.mark.parametrize(
    ("confidence", "bins", "position"),
    [(1.0, 15, [14]), (0.5, 2, [0]), (0.25, 4, [0]), (0.75, 20, [14]), (0.7500001, 20, [15]), (0.0, 15, [])],
)
def test_a_bin_holds_its_upper_edge(confidence: float, bins: int, position: list[int]) -> None:
    assert one_answer(confidence, True, bins) == position


def test_a_confidence_of_one_shares_the_last_bin() -> None:
    """Apart they would miss by 5 each: (.95, right) and (1, wrong) would not cancel."""
    confidence, correct = torch.tensor([0.95, 1.0], dtype=torch.float64), torch.tensor([True, False])
    assert calibration_error(confidence, correct) == pytest.approx(100 * abs(0.975 - 0.5))


def test_a_confidence_at_an_edge_shares_the_bin_below() -> None:
    confidence, correct = torch.tensor([0.5, 0.3], dtype=torch.float64), torch.tensor([False, True])
    assert calibration_error(confidence, correct, bins=2) == pytest.approx(100 * abs(0.4 - 0.5))


@pytest.mark.parametrize("bins", [15, 20])
def test_error_is_that_of_float32_torchmetrics_away_from_the_edges(bins: int) -> None:
    logits, labels = drawn(500, 10, seed=3)
    edges = np.linspace(0, 1, bins + 1)
    confidence = answers(logits, labels).confidence.numpy()
    away = torch.from_numpy(np.abs(confidence[:, None] - edges).min(1) > 1e-6)
    logits, labels = logits[away], labels[away]
    assert 300 < len(labels) < 501
    theirs = multiclass_calibration_error(probabilities(logits), labels, num_classes=10, n_bins=bins, norm="l1")
    ours = calibration_error(*answers(logits, labels), bins=bins)
    assert ours == pytest.approx(100 * theirs.item(), abs=1e-3)
    # These edges are numpy's own: away from them an edge's last digit moves nothing.
    found = answers(logits, labels)
    assert ours == pytest.approx(released(found.confidence.numpy(), found.correct.numpy(), edges)[0], abs=1e-10)


def test_a_sure_network_is_not_rounded_to_certainty() -> None:
    """In float32 a confidence of 1 - 1e-9 is 1, and the error of a network that is right would be 0."""
    logits = torch.tensor([[0.0, math.log(1e9)]])
    found = answers(logits, torch.tensor([1]))
    assert calibration_error(*found) == pytest.approx(1e-7, rel=1e-5)


def test_accuracy_of_the_bins_is_the_accuracy_of_the_network() -> None:
    logits, labels = drawn(400, 10, seed=5)
    found = reliability(*answers(logits, labels))
    assert 100 * sum(found.correct) / sum(found.count) == pytest.approx(accuracy(logits, labels))
    gaps = [abs(right - sure) for right, sure in zip(found.correct, found.confidence, strict=True)]
    assert 100 * sum(gaps) / 400 == pytest.approx(calibration_error(*answers(logits, labels)), abs=1e-10)


@pytest.mark.parametrize("confidence", [[0.5, 1.5], [-0.1, 0.2], [0.5, math.nan]])
def test_logits_are_not_taken_for_confidences(confidence: list[float]) -> None:
    correct = torch.tensor([True, False])
    with pytest.raises(KdbenchError, match=r"outside \[0, 1\].*not logits"):
        calibration_error(torch.tensor(confidence), correct)
    with pytest.raises(KdbenchError, match=r"outside \[0, 1\]"):
        reliability(torch.tensor(confidence), correct)


def test_no_example_is_an_error() -> None:
    with pytest.raises(KdbenchError, match="no example"):
        calibration_error(torch.empty(0), torch.empty(0, dtype=torch.bool))
    with pytest.raises(KdbenchError, match="no example"):
        nll(torch.empty(0, 10), torch.empty(0, dtype=torch.long))


# --------------------------------------------------------------------------------------------- probabilities and NLL


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_probabilities_and_nll_are_scipys_in_float64(temperature: float) -> None:
    logits, labels = drawn(300, 10, seed=1)
    log_p = scipy.special.log_softmax(logits.numpy().astype(np.float64) / temperature, axis=1)
    assert probabilities(logits, temperature).dtype == torch.float64
    np.testing.assert_allclose(probabilities(logits, temperature).numpy(), np.exp(log_p), rtol=1e-12)
    assert nll(logits, labels, temperature) == pytest.approx(-log_p[np.arange(300), labels.numpy()].mean(), rel=1e-12)


def test_accuracy_and_nll_are_those_of_a_trained_networks_record() -> None:
    logits, labels = drawn(300, 10, seed=2)
    expected = metrics_of(logits, labels)
    assert accuracy(logits, labels) == expected["accuracy"]
    assert nll(logits, labels) == expected["nll"]


def test_nll_is_finite_where_the_softmax_is_zero() -> None:
    logits, labels = torch.tensor([[0.0, 2000.0]]), torch.tensor([0])
    assert probabilities(logits)[0, 0] == 0
    assert nll(logits, labels) == 2000.0


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_is_positive(temperature: float) -> None:
    with pytest.raises(KdbenchError, match="not a positive number"):
        log_probabilities(torch.zeros(1, 2), temperature)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_logits_are_finite(value: float) -> None:
    with pytest.raises(KdbenchError, match="not finite"):
        fit_temperature(torch.tensor([[0.0, value]]), torch.tensor([0]))


# ------------------------------------------------------------------------------------------------------- temperature


def numpy_nll(logits: Tensor, labels: Tensor, temperature: float) -> float:
    log_p = scipy.special.log_softmax(logits.numpy().astype(np.float64) / temperature, axis=1)
    return float(-log_p[np.arange(len(labels)), labels.numpy()].mean())


@pytest.mark.parametrize("scale", [0.2, 1.0, 8.0])
def test_no_temperature_of_a_grid_is_better(scale: float) -> None:
    logits, labels = drawn(400, 10, seed=7)
    logits = logits * scale
    fit = fit_temperature(logits, labels)
    grid = np.exp(np.linspace(-LOG_TEMPERATURE, LOG_TEMPERATURE, 401))
    losses = [numpy_nll(logits, labels, temperature) for temperature in grid]
    assert numpy_nll(logits, labels, fit.temperature) <= min(losses)
    near = grid[int(np.argmin(losses))]
    assert abs(math.log(fit.temperature / near)) < 2 * LOG_TEMPERATURE / 400
    assert fit.bound == ""


@pytest.mark.parametrize("scale", [0.5, 2.0, 5.0])
def test_true_logits_times_a_factor_give_the_factor(scale: float) -> None:
    logits, labels = drawn(20_000, 5, seed=11, scale=2.0)
    assert fit_temperature(scale * logits, labels).temperature == pytest.approx(scale, rel=0.03)


@given(st.floats(0.1, 10), st.integers(0, 100))
@settings(max_examples=30)
def test_scaled_logits_scale_the_temperature(scale: float, seed: int) -> None:
    logits, labels = drawn(200, 4, seed=seed, scale=2.0)
    once, again = fit_temperature(logits, labels), fit_temperature(scale * logits.double(), labels)
    assert again.temperature == pytest.approx(scale * once.temperature, rel=1e-5)


@given(st.integers(1, 9), st.floats(0.5, 5))
@settings(max_examples=30)
def test_two_classes_have_a_temperature_in_closed_form(wrong: int, gap: float) -> None:
    """Of 20 equal examples some are wrong: softmax(gap / T) must be the share that is right."""
    labels = torch.tensor([1] * wrong + [0] * (20 - wrong))
    logits = torch.tensor([[gap, 0.0]], dtype=torch.float64).expand(20, 2)
    expected = gap / math.log((20 - wrong) / wrong)
    assert fit_temperature(logits, labels).temperature == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gap", [0.01, 1.0, 30.0])
def test_a_perfect_split_drives_the_temperature_to_the_lower_bound(gap: float) -> None:
    """At a gap of 30 the NLL is 0 over most of the range: all of these temperatures are equally good."""
    labels = torch.arange(40) % 10
    logits = gap * torch.nn.functional.one_hot(labels, 10).float()
    assert fit_temperature(logits, labels) == Fit(LOWEST, "lower")


def test_a_network_worse_than_chance_drives_it_to_the_upper_bound() -> None:
    labels = torch.arange(40) % 2
    logits = torch.nn.functional.one_hot(1 - labels, 2).float()
    fit = fit_temperature(logits, labels)
    assert fit == Fit(HIGHEST, "upper")
    assert nll(logits, labels, fit.temperature) == pytest.approx(math.log(2), rel=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_scaling_cures_overconfidence_and_leaves_every_answer(seed: int) -> None:
    logits, labels = drawn(300, 10, seed=seed, scale=4.0)
    logits = 3 * logits
    temperature = fit_temperature(logits, labels).temperature
    assert temperature > 1
    assert nll(logits, labels, temperature) < nll(logits, labels)
    plain, scaled = answers(logits, labels), answers(logits, labels, temperature)
    assert calibration_error(*scaled) < calibration_error(*plain)
    assert torch.equal(scaled.correct, plain.correct)

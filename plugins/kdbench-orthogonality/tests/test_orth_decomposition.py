"""Bias, variance and disagreement against loops, scipy and scikit-learn, and on networks whose answers are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.spatial.distance
from numpy.typing import NDArray

from kdbench.errors import KdbenchError
from kdbench_orthogonality.decomposition import Decomposition, decompose

NETWORKS, EXAMPLES, CLASSES = 5, 40, 7


@pytest.fixture(scope="module")
def answers() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    labels = generator.integers(CLASSES, size=EXAMPLES)
    logits = generator.normal(size=(NETWORKS, EXAMPLES, CLASSES)) + 1.5 * np.eye(CLASSES)[labels]
    p = np.exp(logits)
    return p / p.sum(2, keepdims=True), labels


def by_loops(p: Any, labels: Any) -> Decomposition:
    """Every number as its definition says it, one example and class at a time."""
    networks, examples, classes = p.shape
    total = bias = variance = disagreement = confidence = 0.0
    right = right_together = 0
    for i in range(examples):
        mean = [sum(p[m][i][c] for m in range(networks)) / networks for c in range(classes)]
        best = [max(range(classes), key=lambda c, m=m, i=i: p[m][i][c]) for m in range(networks)]
        right += sum(answer == labels[i] for answer in best)
        right_together += max(range(classes), key=lambda c, mean=mean: mean[c]) == labels[i]
        for c in range(classes):
            y = float(labels[i] == c)
            bias += (mean[c] - y) ** 2 / examples
            for m in range(networks):
                total += (p[m][i][c] - y) ** 2 / examples / networks
                variance += (p[m][i][c] - mean[c]) ** 2 / examples / networks
        pairs = [(a, b) for a in range(networks) for b in range(a)]
        disagreement += sum(best[a] != best[b] for a, b in pairs) / len(pairs) / examples
        confidence += sum(max(p[m][i]) for m in range(networks)) / networks / examples
    single, together = 100 * right / networks / examples, 100 * right_together / examples
    return Decomposition(
        total=total,
        bias=bias - variance / (networks - 1),
        variance=variance * networks / (networks - 1),
        plain_bias=bias,
        plain_variance=variance,
        single=single,
        ensemble=together,
        gain=together - single,
        disagreement=disagreement,
        confidence=confidence,
    )


def test_every_number_is_that_of_its_definition(answers: Any) -> None:
    found = decompose(*answers)
    assert found._asdict() == pytest.approx(by_loops(*answers)._asdict(), rel=1e-12)
    assert 30 < found.single < 95, "a test on networks that know all or nothing says little"
    assert found.gain > 0
    assert found.disagreement > 0.1


def test_bias_and_variance_add_up_to_the_total(answers: Any) -> None:
    found = decompose(*answers)
    assert found.bias + found.variance == pytest.approx(found.total, rel=1e-14)
    assert found.plain_bias + found.plain_variance == pytest.approx(found.total, rel=1e-14)


def test_disagreement_is_the_hamming_distance(answers: Any) -> None:
    p, labels = answers
    classes = p.argmax(2)
    expected = scipy.spatial.distance.pdist(classes, "hamming").mean()
    assert decompose(p, labels).disagreement == pytest.approx(expected, rel=1e-12)


def test_the_total_is_the_brier_score_of_scikit_learn(answers: Any) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    p, labels = answers
    scores = [metrics.brier_score_loss(labels, each, labels=np.arange(CLASSES), scale_by_half=False) for each in p]
    assert decompose(p, labels).total == pytest.approx(np.mean(scores), rel=1e-12)
    ensemble = metrics.brier_score_loss(labels, p.mean(0), labels=np.arange(CLASSES), scale_by_half=False)
    assert decompose(p, labels).plain_bias == pytest.approx(ensemble, rel=1e-12)


def test_networks_that_agree_have_no_variance(answers: Any) -> None:
    p, labels = answers
    found = decompose(np.stack([p[0]] * 3), labels)
    assert found.variance == pytest.approx(0, abs=1e-30)
    assert found.bias == pytest.approx(found.total, rel=1e-14)
    assert (found.gain, found.disagreement) == (0, 0)
    assert found.confidence == pytest.approx(p[0].max(1).mean(), rel=1e-14)


def test_two_networks_by_hand() -> None:
    """One is sure and right, the other sure and wrong: both are off by a half together, and differ always."""
    found = decompose(np.array([[[1.0, 0.0]], [[0.0, 1.0]]]), np.array([0]))
    assert found._asdict() == {
        "total": 1.0,
        "bias": 0.0,
        "variance": 1.0,
        "plain_bias": 0.5,
        "plain_variance": 0.5,
        "single": 50.0,
        "ensemble": 100.0,  # the first of two equal classes
        "gain": 50.0,
        "disagreement": 1.0,
        "confidence": 1.0,
    }


def test_the_corrected_forms_are_right_on_average_and_the_plain_ones_are_not() -> None:
    """Networks answer (q, 1 - q), q uniform on [.3, .9], and the label is the first class: all moments are known."""
    variance, bias, rounds, networks = 2 * 0.6**2 / 12, 2 * 0.4**2, 20_000, 3
    q = np.random.default_rng(1).uniform(0.3, 0.9, size=(networks, rounds))
    found = decompose(np.stack([q, 1 - q], 2), np.zeros(rounds, np.int64))  # rounds as examples: means over them
    # One round deviates by .047 and .17; five standard errors of the means are less than the .02 between the forms.
    assert found.variance == pytest.approx(variance, abs=5 * 0.047 / math.sqrt(rounds))
    assert found.bias == pytest.approx(bias, abs=5 * 0.17 / math.sqrt(rounds))
    assert found.plain_variance == pytest.approx(variance * 2 / 3, abs=5 * 0.047 / math.sqrt(rounds))
    assert found.plain_bias == pytest.approx(bias + variance / 3, abs=5 * 0.17 / math.sqrt(rounds))


GOOD = np.full((2, 3, 4), 0.25)


@pytest.mark.parametrize(
    ("p", "labels", "message"),
    [
        (GOOD[0], np.zeros(3, int), r"probabilities of shape \[3, 4\] do not fit labels of shape \[3\]"),
        (GOOD, np.zeros(2, int), r"of shape \[2, 3, 4\] do not fit labels of shape \[2\]"),
        (GOOD[:1], np.zeros(3, int), "1 networks and 3 examples have no variance"),
        (GOOD[:, :0], np.zeros(0, int), "2 networks and 0 examples have no variance"),
        (2 * GOOD, np.zeros(3, int), "these are no probabilities"),
        (GOOD + np.array([0.5, -0.5, 0, 0]), np.zeros(3, int), "these are no probabilities"),
        (GOOD * np.nan, np.zeros(3, int), "these are no probabilities"),
        (GOOD, np.full(3, 4), "a label is none of the 4 classes"),
        (GOOD, np.full(3, -100), "a label is none of the 4 classes"),
    ],
)
def test_what_cannot_be_decomposed_is_refused_in_words(p: Any, labels: Any, message: str) -> None:
    with pytest.raises(KdbenchError, match=message) as caught:
        decompose(p, labels)
    assert caught.value.where == "decomposition over training sets"

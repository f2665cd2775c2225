"""How far a classifier's probabilities can be trusted: NLL, calibration error, one temperature, reliability bins.

Logits are ``[N, K]`` of any floating type, labels ``[N]`` int64, both on the CPU; everything is computed in float64.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import msgspec
import torch
from torch import Tensor
from torch.nn import functional

from kdbench.errors import KdbenchError

__all__ = [
    "BINS",
    "LOG_TEMPERATURE",
    "RELEASED_BINS",
    "Answers",
    "Fit",
    "Reliability",
    "accuracy",
    "answers",
    "calibration_error",
    "fit_temperature",
    "log_probabilities",
    "nll",
    "probabilities",
    "reliability",
]

BINS = 15
"""Equal-width bins of the calibration error and of reliability diagrams."""

RELEASED_BINS = 20
"""Those of the released code."""

LOG_TEMPERATURE = 5.0
"""Project choice: a temperature is looked for between exp(-5) = 0.0067 and exp(5) = 148."""


class Answers(NamedTuple):
    """``confidence`` ``[N]`` (float64), the largest probability; ``correct`` ``[N]`` (bool), whether the class is."""

    confidence: Tensor
    correct: Tensor


class Fit(NamedTuple):
    """A fitted temperature, and which bound of the search it stands at, if any."""

    temperature: float
    bound: Literal["", "lower", "upper"]


class Reliability(msgspec.Struct, frozen=True):
    """A reliability diagram: how many examples each bin has, the sum of their confidence, and how many are correct."""

    count: list[float]
    confidence: list[float]
    correct: list[float]


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-softmax of ``logits / temperature``, ``[N, K]``.

    Raises
    ------
    KdbenchError : there is no example, a logit is not finite, or the temperature is not a positive number.
    """
    if not 0 < temperature < math.inf:
        raise KdbenchError(f"temperature {temperature} is not a positive number")
    if not len(logits):
        raise KdbenchError("there is no example to measure", cure="does the split have any?")
    if not logits.isfinite().all():
        raise KdbenchError("a logit is not finite", cure="did the network diverge? lower its learning rate")
    return functional.log_softmax(logits.double() / temperature, dim=1)


def probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Softmax of ``logits / temperature``, ``[N, K]``; errors as :func:`log_probabilities`."""
    return log_probabilities(logits, temperature).exp()


def nll(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood of the labels, nats.

    The released code takes the logarithm of the softmax, which is infinite where that underflows; log-softmax is not.
    """
    return functional.nll_loss(log_probabilities(logits, temperature), labels).item()


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy, percent. No temperature changes it."""
    return 100.0 * (logits.argmax(1) == labels).double().mean().item()


def answers(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Answers:
    """What a calibration error is made of: how sure the network is of each example, and whether it is right."""
    return Answers(probabilities(logits, temperature).amax(1), logits.argmax(1) == labels)


def calibration_error(confidence: Tensor, correct: Tensor, bins: int = BINS) -> float:
    """Expected calibration error in percent: the mean over examples of |accuracy - mean confidence| of their bin.

    Bins are of equal width and hold (lo, hi], as in the released code: a confidence of exactly 1 is in the last one,
    and one of exactly 0, which no softmax gives, is in none but counts as an example.

    Parameters
    ----------
    confidence, correct : of each example, see :class:`Answers`.

    Raises
    ------
    KdbenchError : there is no example, or a confidence is outside [0, 1].

    Notes
    -----
    torchmetrics' bins hold [lo, hi), and it gives a confidence of 1 a bin of its own. So it is handed the next smaller
    number of each confidence: lo < c <= hi is the same as lo <= next smaller(c) < hi. What remains are differences of
    the last digit of float64: in the mean of a bin, and in the edges, which are ``torch.linspace``'s.

    Its form for two classes is used, which is given confidences as they are. The one for several classes rounds them
    to float32, which moves what lies within 3e-8 of an edge: every confidence from 1 - 3e-8 on is then 1.
    """
    from torchmetrics.functional.classification import binary_calibration_error

    _check(confidence)
    counted = confidence > 0
    if not counted.any():
        return 0.0
    inside = confidence[counted].double()
    below = torch.nextafter(inside, torch.zeros_like(inside))
    error = binary_calibration_error(below, correct[counted].long(), n_bins=bins, norm="l1")
    return 100.0 * counted.double().mean().item() * error.item()


def reliability(confidence: Tensor, correct: Tensor, bins: int = BINS) -> Reliability:
    """The bins of :func:`calibration_error` as sums; parameters and errors as there."""
    _check(confidence)
    confidence = confidence.double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    position = torch.bucketize(confidence, edges) - 1  # edges[position] < confidence <= edges[position + 1]
    counted = position >= 0
    sums = (
        torch.bincount(position[counted], weights=each[counted].double(), minlength=bins).tolist()
        for each in (torch.ones_like(confidence), confidence, correct)
    )
    return Reliability(*sums)


def fit_temperature(logits: Tensor, labels: Tensor) -> Fit:
    """The one temperature that makes the NLL smallest, looked for on a logarithmic scale.

    The NLL is convex in 1/T, so it has one valley in log T. Where all examples are classified correctly it falls
    towards T = 0, where the network is worse than chance it may fall towards infinity: the fit then stands at a bound
    of the search, as it does where temperatures are equally good up to that bound, and says so.

    Raises
    ------
    KdbenchError : there is no example, or a logit is not finite.
    """
    from scipy.optimize import minimize_scalar

    logits = logits.double()

    def loss(log_temperature: float) -> float:
        return nll(logits, labels, math.exp(log_temperature))

    lower, upper = -LOG_TEMPERATURE, LOG_TEMPERATURE
    inside = float(minimize_scalar(loss, bounds=(lower, upper), method="bounded", options={"xatol": 1e-8}).x)
    # The search never tries its bounds themselves.
    best = min((lower, upper, inside), key=loss)
    return Fit(math.exp(best), "lower" if best == lower else "upper" if best == upper else "")


def _check(confidence: Tensor) -> None:
    if not len(confidence):
        raise KdbenchError("there is no example to measure", cure="does the split have any?")
    # torchmetrics would take these for logits, and say nothing.
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise KdbenchError("a confidence is outside [0, 1]", cure="give probabilities, not logits")

"""How a network's predictions spread: predictive uncertainty, and predictive diversity in two definitions.

Diversity is about p, the probability that softmax(logits / T) gives an example's label. All is computed in float64 from
the logits ``[N, K]``: on examples that a network has learnt, p crowds below 1, where float32 has few numbers left.
Labels are ``[N]`` int64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdbench.errors import KdbenchError
from kdbench_isls.calibration import log_probabilities

__all__ = [
    "DISTANCE_FLOOR",
    "NEIGHBOURS",
    "Diversity",
    "diversity",
    "label_probability",
    "uncertainty",
    "variance",
]

NEIGHBOURS = 5
"""Project choice: the paper's estimator and its k are not known."""

DISTANCE_FLOOR = 1e-10
"""Project choice: a distance below it counts as this much, so that equal values leave an entropy that is finite."""

Array = NDArray[np.float64]


class Diversity(NamedTuple):
    """``entropy``: differential entropy, nats. ``floored``: share of the distances in it that are at the floor.

    The more of them there are, the more the entropy says of the floor instead of the network.
    """

    entropy: float
    floored: float


def label_probability(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Array:
    """p, ``[N]``: the probability of each example's label.

    Raises
    ------
    KdbenchError : there is no example, a logit is not finite, or the temperature is not a positive number.
    """
    picked = log_probabilities(logits, temperature).gather(1, labels[:, None])[:, 0]
    return _array(picked.exp())


def uncertainty(logits: Tensor, temperature: float = 1.0) -> float:
    """Predictive uncertainty: the mean Shannon entropy of softmax(logits / T), nats; errors as
    :func:`label_probability`."""
    log_p = log_probabilities(logits, temperature)
    return -(log_p.exp() * log_p).sum(1).mean().item()


def diversity(values: Array, neighbours: int = NEIGHBOURS, floor: float = DISTANCE_FLOOR) -> Diversity:
    """Predictive diversity: the differential entropy of a scalar, estimated from n values of it.

    H = psi(n) - psi(k) + log 2 + mean log eps

    (Kozachenko and Leonenko), where eps is the distance of a value to its k-th nearest neighbour, at least ``floor``.
    Equal values never give an infinite result. It does not depend on the order of the values.

    Parameters
    ----------
    values : ``[n]``, here p.
    neighbours : k.
    floor : the smallest distance that counts, in the unit of the values.

    Raises
    ------
    KdbenchError : k or the floor is not positive, there are no more than k values, or one is not finite.
    """
    from scipy.special import digamma

    where = "predictive diversity"
    if neighbours < 1:
        raise KdbenchError(f"{neighbours} neighbours are none", where=where, cure="ask for 1 or more")
    if not 0 < floor < math.inf:
        raise KdbenchError(f"a distance floor of {floor} is not a positive number", where=where)
    if len(values) <= neighbours:
        raise KdbenchError(
            f"of {len(values)} values none has {neighbours} neighbours",
            where=where,
            cure=f"take {neighbours + 1} examples or more, or fewer neighbours",
        )
    if not np.isfinite(values).all():
        raise KdbenchError("a value is not finite", where=where, cure="give probabilities, or finite log-odds")
    distances = _kth_distances(np.sort(np.asarray(values, np.float64)), neighbours)
    logs = np.log(np.maximum(distances, floor))
    entropy = digamma(len(values)) - digamma(neighbours) + math.log(2) + logs.mean()
    return Diversity(float(entropy), float((distances <= floor).mean()))


def variance(values: Array) -> float:
    """The alternative that the authors offer for diversity: the variance of p over the n examples, divided by n."""
    return float(np.var(values))


def _kth_distances(ordered: Array, k: int) -> Array:
    """Distance of each of the sorted values to its k-th nearest neighbour.

    On a line a value and its k nearest neighbours are k + 1 values in a row: of these rows the narrowest reach counts.
    """
    beyond = np.full(k, np.inf)
    padded = np.concatenate([-beyond, ordered, beyond])
    n = len(ordered)
    reach = np.full(n, np.inf)
    for before in range(k + 1):
        first, last = padded[k - before : k - before + n], padded[2 * k - before : 2 * k - before + n]
        reach = np.minimum(reach, np.maximum(ordered - first, last - ordered))
    return reach


def _array(tensor: Tensor) -> Array:
    array: Array = tensor.detach().to("cpu", torch.float64).numpy()
    return array

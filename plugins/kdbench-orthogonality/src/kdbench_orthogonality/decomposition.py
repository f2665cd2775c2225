"""What networks trained on several training sets have in common and where they differ: bias, variance, disagreement.

The measure is the Brier score, the squared distance of the predicted probabilities to the one-hot label, summed over
classes. With p_m the probabilities of network m, pbar their mean over the M networks and y the one-hot label,

    mean_m |p_m - y|^2  =  |pbar - y|^2  +  mean_m |p_m - pbar|^2
         total              plain bias        plain variance

for every example, every class and so their means, exactly. The bias is that of the main prediction, squared, and holds
the noise of the labels: what is random about y given the input cannot be told from it here.

With M networks the mean pbar is itself an estimate. Over draws of the training sets the plain variance is on average
(M - 1) / M of the variance of one network, and the rest of that, 1/M of it, lies in the plain bias. Where arms of
unequal variance are compared in their bias, this alone makes the one that varies less look less biased. So what is
called bias and variance, without "plain", is corrected for M:

    variance = plain variance M / (M - 1)     and     bias = plain bias - plain variance / (M - 1)

are right on average for any M: for the variance over training sets, and for |E p - y|^2. Their sum is the total too.
The bias can fall below 0 by chance. Networks trained on resamples of one set estimate both given that set.

A draw is of a training set and of all else that differs between the networks: initialisations and orders of examples,
where each has its own. What they share counts as bias, a teacher of all of them included, however much it would vary
with a training set of its own.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdbench.errors import KdbenchError

__all__ = ["Decomposition", "decompose"]

WHERE = "decomposition over training sets"

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


class Decomposition(NamedTuple):
    """M networks on n examples.

    Attributes
    ----------
    total : Brier score, summed over classes, mean over networks and examples.
    bias, variance : its parts over draws of the training set, corrected for M; see above. They add up to the total.
    plain_bias, plain_variance : those of these M networks, which add up to it as well.
    single : mean top-1 accuracy of the networks, percent.
    ensemble : top-1 accuracy of the mean of their probabilities, percent.
    gain : ensemble - single, points.
    disagreement : share of the examples to which two networks give different classes, mean over the pairs.
    confidence : largest probability, mean over networks and examples.
    """

    total: float
    bias: float
    variance: float
    plain_bias: float
    plain_variance: float
    single: float
    ensemble: float
    gain: float
    disagreement: float
    confidence: float


def decompose(probabilities: Array, labels: Labels) -> Decomposition:
    """All of it, in float64.

    Parameters
    ----------
    probabilities : ``[M, n, C]``, of M >= 2 networks.
    labels : ``[n]``, class numbers.

    Raises
    ------
    KdbenchError : there are fewer than two networks or no example, the shapes do not fit, a row of probabilities has a
        negative or infinite number or does not sum to 1 within 1e-6, or a label names no class.
    """
    p = np.asarray(probabilities, np.float64)
    _check(p, labels)
    networks, examples, classes = p.shape
    onehot = np.zeros((examples, classes))
    onehot[np.arange(examples), labels] = 1.0
    mean = p.mean(0)
    total = float(np.square(p - onehot).sum(2).mean())
    plain_bias = float(np.square(mean - onehot).sum(1).mean())
    plain_variance = float(np.square(p - mean).sum(2).mean())
    answers = p.argmax(2)
    single = 100.0 * float((answers == labels).mean())
    ensemble = 100.0 * float((mean.argmax(1) == labels).mean())
    differ = [float((first != second).mean()) for first, second in combinations(answers, 2)]
    return Decomposition(
        total=total,
        bias=plain_bias - plain_variance / (networks - 1),
        variance=plain_variance * networks / (networks - 1),
        plain_bias=plain_bias,
        plain_variance=plain_variance,
        single=single,
        ensemble=ensemble,
        gain=ensemble - single,
        disagreement=sum(differ) / len(differ),
        confidence=float(p.max(2).mean()),
    )


def _check(p: Array, labels: Labels) -> None:
    if p.ndim != 3 or labels.shape != p.shape[1:2]:
        raise KdbenchError(
            f"probabilities of shape {list(p.shape)} do not fit labels of shape {list(labels.shape)}",
            where=WHERE,
            cure="give [M, n, C] and [n]: networks, examples, classes",
        )
    if len(p) < 2 or not p.size:
        raise KdbenchError(
            f"{len(p)} networks and {p.shape[1]} examples have no variance",
            where=WHERE,
            cure="give two networks or more, trained on different sets, and their answers to some examples",
        )
    if not (np.isfinite(p).all() and (p >= 0).all() and np.allclose(p.sum(2), 1.0, rtol=0, atol=1e-6)):
        raise KdbenchError("these are no probabilities", where=WHERE, cure="take the softmax of logits that are finite")
    if labels.min() < 0 or labels.max() >= p.shape[2]:
        raise KdbenchError(f"a label is none of the {p.shape[2]} classes", where=WHERE)

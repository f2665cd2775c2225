"""Symmetric label noise: a share of the labels replaced by other classes, for studies of what a target teaches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdbench.errors import KdbenchError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["symmetric_noise"]


def symmetric_noise(labels: Tensor, rate: float, num_classes: int, seed: int) -> Tensor:
    """The labels with ``round(rate * N)`` of them replaced, each by one of the other classes with equal chance.

    The result depends on the arguments alone, as :func:`kdbench.data.holdout` does, and rates share their draws: a
    label that is wrong at one rate is wrong, and equally so, at every higher one.

    Parameters
    ----------
    labels : ``[N]`` integers in ``0 .. num_classes - 1``; they are not changed.
    rate : share of labels to replace, from 0 to less than 1.
    seed : of the choice.

    Returns
    -------
    ``[N]``, of ``labels``' type and on its device.

    Raises
    ------
    KdbenchError : the rate is out of range, or there is no other class.
    """
    import numpy as np
    import torch

    if not 0 <= rate < 1:
        raise KdbenchError(f"label noise of {rate} is no share of the labels", cure="give a share from 0 to below 1")
    if rate and num_classes < 2:
        raise KdbenchError("one class leaves no wrong label", cure="label noise needs two classes at least")
    if not rate:
        return labels.clone()
    random = np.random.RandomState(seed)
    order = random.permutation(len(labels))
    steps = random.randint(1, num_classes, size=len(labels), dtype=np.int64)
    replaced = torch.from_numpy(order[: round(rate * len(labels))])
    noisy = labels.cpu().clone()
    # In int64: a label and a step together may not fit in a narrower type.
    noisy[replaced] = ((noisy[replaced].long() + torch.from_numpy(steps)[replaced]) % num_classes).to(noisy.dtype)
    return noisy.to(labels.device)

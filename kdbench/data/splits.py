"""Splits and constants of data that is loaded: the held-out part, and the statistics of the training inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdbench.data.base import Split
from kdbench.errors import KdbenchError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["channel_statistics", "holdout"]


def channel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and (population) standard deviation of every channel over a split, usually the training split.

    Parameters
    ----------
    split : inputs ``[N, C, H, W]``; uint8 images count on the scale 0 to 1, floats as they are.

    Returns
    -------
    mean, std : ``C`` numbers each, as :func:`kdbench.data.transforms.normalise` takes them.

    Raises
    ------
    KdbenchError : a channel is constant, so that nothing can be divided by its deviation.
    """
    import torch

    inputs = split.inputs
    scale = 1.0 if inputs.is_floating_point() else 255.0
    # In blocks, because the whole of CIFAR in float64 would take over a gigabyte.
    blocks = (inputs[start : start + 1_000].double() / scale for start in range(0, len(inputs), 1_000))
    moments = [torch.stack((block.sum((0, 2, 3)), block.square().sum((0, 2, 3)))) for block in blocks]
    mean, square = torch.stack(moments).sum(0) / (inputs.numel() / inputs.shape[1])
    std = (square - mean.square()).clamp_min(0).sqrt()
    if (std <= 1e-12 * mean.abs()).any():
        raise KdbenchError(
            "a channel of the inputs is constant", cure="check the data: these are not images or signals"
        )
    return tuple(mean.tolist()), tuple(std.tolist())


def holdout(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split the training indices in two, the same share of every class on each side.

    The result depends on the arguments alone: global random states are neither read nor changed, and the generator
    is numpy's frozen ``RandomState``, whose stream is the same in every numpy version.

    Parameters
    ----------
    labels : ``[N]`` integers.
    fraction : share to hold out, between 0 and 1 exclusive; ``round(fraction * N)`` samples in all, the classes'
        remainders going to those with the largest.
    seed : of the choice.

    Returns
    -------
    train_indices, validation_indices : int64 on the CPU, each ascending.

    Raises
    ------
    KdbenchError : the fraction is out of range, or one side would be empty.
    """
    import numpy as np
    import torch

    classes, members = np.unique(labels.cpu().numpy(), return_inverse=True)
    held = round(fraction * len(members)) if 0 < fraction < 1 else 0
    if not 0 < held < len(members):
        raise KdbenchError(
            f"cannot hold out a fraction of {fraction} of {len(members)} samples",
            cure="the fraction lies between 0 and 1, and each side needs a sample",
        )
    shares = np.bincount(members, minlength=len(classes)) * fraction
    quotas = np.floor(shares).astype(np.int64)
    quotas[np.argsort(quotas - shares, kind="stable")[: held - quotas.sum()]] += 1
    random = np.random.RandomState(seed)
    is_held = np.zeros(len(members), dtype=bool)
    for index, quota in enumerate(quotas):
        is_held[random.permutation(np.flatnonzero(members == index))[:quota]] = True
    return torch.from_numpy(np.flatnonzero(~is_held)), torch.from_numpy(np.flatnonzero(is_held))

"""Training sets drawn from a larger split: disjoint samples of it, and resamples of one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdbench.errors import KdbenchError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["resample", "sample"]


def sample(count: int, size: int, number: int, seed: int) -> Tensor:
    """Indices of sample ``number``: the places ``number * size`` to ``(number + 1) * size`` of one shuffled order.

    So samples of one size are disjoint, and those of two sizes are where their places are. The result depends on the
    arguments alone, as :func:`kdbench.data.holdout` does.

    Parameters
    ----------
    count : examples in the split.
    size : examples in the sample.
    number : which sample, from 0.
    seed : of the order.

    Returns
    -------
    ``[size]`` int64 on the CPU, in the shuffled order.

    Raises
    ------
    KdbenchError : the split is too small.
    """
    import numpy as np
    import torch

    first, end = number * size, (number + 1) * size
    if end > count:
        raise KdbenchError(
            f"sample {number} of {size} examples ends at place {end} of the training split, which has {count}",
            cure=f"samples of {size} are numbered 0 to {count // size - 1} here"
            if size <= count
            else "draw smaller samples, or take a larger data set",
        )
    order = np.random.RandomState(seed).permutation(count)
    return torch.from_numpy(order[first:end].astype(np.int64))


def resample(count: int, seed: Sequence[int]) -> Tensor:
    """``count`` indices of ``count`` examples, drawn with replacement: what the bootstrap trains on.

    Parameters
    ----------
    count : examples to draw from, and to draw.
    seed : numbers from 0; other ones give another resample, drawn independently.

    Returns
    -------
    ``[count]`` int64 on the CPU.
    """
    import numpy as np
    import torch

    return torch.from_numpy(np.random.RandomState(list(seed)).randint(count, size=count, dtype=np.int64))

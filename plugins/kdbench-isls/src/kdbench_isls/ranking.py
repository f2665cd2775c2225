"""Who gets which share of the label: Beta draws or quantiles, given out in a batch by rank, by chance or backwards.

The released code's order: n draws from Beta(a, 1), sorted, the largest to the example whose labelled class the ranking
network finds most probable, so that the easiest is smoothed least.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Ranking", "draws", "mean_share", "quantiles", "shares"]

Ranking = Literal["average", "student", "none", "reversed"]
"""Whose confidence ranks: the averaged network's, the student's own, nobody's, or the averaged network's backwards."""


def mean_share(a: float) -> float:
    """Mean of Beta(a, 1), ``a / (a + 1)``. At soft weight alpha, smoothing by ``alpha / (a + 1)`` is its match."""
    return a / (a + 1.0)


def draws(a: float, n: int, seed: int) -> NDArray[np.float64]:
    """``n`` independent draws from Beta(a, 1), by inversion: its distribution function is ``b**a``."""
    import numpy as np

    # The smallest uniform is 0; 1 - u is never 0, so that no label is left without any share.
    return (1.0 - np.random.default_rng(seed).random(n)) ** (1.0 / a)


def quantiles(a: float, n: int) -> NDArray[np.float64]:
    """The draws without their chance: ``((r - 1/2) / n)**(1/a)`` at rank r, ascending."""
    import numpy as np

    return ((np.arange(1, n + 1) - 0.5) / n) ** (1.0 / a)


def shares(values: NDArray[np.float64], key: Tensor | None, *, reverse: bool = False) -> Tensor:
    """Values given out by rank.

    Parameters
    ----------
    values : ``[n]``, in any order.
    key : ``[n]``, what ranks: the largest value goes to the largest key, of equal keys to the later one. None gives
        the values out as they come.
    reverse : the largest value goes to the smallest key.

    Returns
    -------
    ``[n]`` float64 on the key's device, or on the CPU.
    """
    import torch

    given = torch.from_numpy(values)
    if key is None:
        return given
    ascending = given.sort(descending=reverse).values.to(key.device)
    return torch.empty_like(ascending).scatter_(0, key.argsort(stable=True), ascending)

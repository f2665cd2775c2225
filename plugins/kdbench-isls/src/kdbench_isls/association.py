"""How diversity goes with accuracy once uncertainty is accounted for: a description, of which no test is made.

The two are mechanically coupled: diversity is small both where teachers are sure and where they guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["partial_rank_correlation"]


def partial_rank_correlation(x: Sequence[float], y: Sequence[float], given: Sequence[float]) -> float:
    """Correlation of the ranks of ``x`` and ``y`` after the ranks of ``given`` and their squares are regressed out.

    Returns
    -------
    float
        In [-1, 1]; NaN with fewer than five points, or where nothing is left of one of the two.
    """
    import numpy as np
    from scipy.stats import rankdata

    if len(x) < 5:
        return math.nan
    ranks = np.column_stack([rankdata(values) for values in (x, y, given)])
    design = np.column_stack([np.ones(len(ranks)), ranks[:, 2], ranks[:, 2] ** 2])
    coefficients, *_ = np.linalg.lstsq(design, ranks[:, :2], rcond=None)
    left = ranks[:, :2] - design @ coefficients
    size = np.linalg.norm(left, axis=0)
    if (size < 1e-9 * len(ranks)).any():
        return math.nan
    return float(np.clip(left[:, 0] @ left[:, 1] / size.prod(), -1.0, 1.0))

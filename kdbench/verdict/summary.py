"""Mean, spread and one-sample t statistics of a cell: the few numbers every verdict is made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from statsmodels.stats.weightstats import DescrStatsW

__all__ = ["Samples", "Summary", "adjusted_minimum", "finite", "interval", "p_above", "p_below", "spread", "summarise"]

Samples = Mapping[str, Mapping[int, float]]
"""Measured values, ``samples[cell][seed]``, in the unit of the claim's metric."""

# Equal values whose difference is taken in floating point differ by rounding alone; that is no spread.
_ROUNDING = 1e-12

Values = NDArray[np.float64]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown of a cell, in the unit of its metric.

    ``mean`` is None without values. ``sd`` (n - 1 in the denominator) is None below two values. ``low`` and ``high``,
    the two-sided 95 % t interval of the mean, are None below two values and where all values are equal, because equal
    values say nothing about how far the next one would lie.
    """

    n: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None


def summarise(values: Iterable[float]) -> Summary:
    """Size, mean, spread and 95 % t interval of ``values``; values that are not finite count as missing."""
    kept = finite(values)
    sd = spread(kept)
    low, high = interval(kept, 0.95) if sd else (None, None)
    return Summary(n=kept.size, mean=float(kept.mean()) if kept.size else None, sd=sd, low=low, high=high)


def finite(values: Iterable[float]) -> Values:
    """``values`` as a float64 array ``[n]``, without NaN and infinity: a diverged run has no value."""
    return np.array([value for value in values if math.isfinite(value)], dtype=np.float64)


def spread(values: Values, *, scale: float | None = None) -> float | None:
    """Sample standard deviation; None below two values, exactly 0 where the values differ by rounding alone.

    Parameters
    ----------
    values : ``[n]``, finite.
    scale : the magnitude whose rounding counts; by default that of ``values``. Differences need the magnitude of
        what was subtracted.
    """
    if values.size < 2:
        return None
    sd = float(DescrStatsW(values, ddof=1).std)
    size = float(np.abs(values).max()) if scale is None else scale
    return sd if sd > _ROUNDING * size else 0.0


def interval(values: Values, confidence: float) -> tuple[float, float]:
    """Two-sided t interval of the mean of ``values`` ``[n >= 2]``, which must not all be equal."""
    low, high = DescrStatsW(values).tconfint_mean(alpha=1.0 - confidence)
    return float(low), float(high)


def p_above(values: Values, bound: float) -> float:
    """p of the one-sided t-test that the mean lies above ``bound``; H0: mean <= bound."""
    return float(DescrStatsW(values).ttest_mean(bound, alternative="larger")[1])


def p_below(values: Values, bound: float) -> float:
    """p of the one-sided t-test that the mean lies below ``bound``; H0: mean >= bound."""
    return float(DescrStatsW(values).ttest_mean(bound, alternative="smaller")[1])


def adjusted_minimum(ps: Sequence[float]) -> float:
    """The smallest of ``ps`` after Holm's adjustment: the p of "at least one of these is true".

    Holm multiplies the smallest p by their number, so no more is needed here. statsmodels' ``multipletests`` says the
    same (the tests hold it against this) but collects garbage on every call, 40 ms each in a process of this size.
    """
    return min(1.0, len(ps) * min(ps))

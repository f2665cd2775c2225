"""The gain: one cell against another, paired by the seeds both have."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Literal

import msgspec
import numpy as np
from statsmodels.stats.power import TTestPower

from kdbench.errors import KdbenchError
from kdbench.paper import Comparison
from kdbench.verdict.summary import Samples, adjusted_minimum, finite, interval, p_above, p_below, spread

__all__ = ["LEVEL", "POWER", "GainOutcome", "GainTest", "decide", "judge_gain", "seeds_needed"]

LEVEL = 0.05
"""Level of every one-sided test: how often a verdict may be wrong where the truth lies on its boundary."""

POWER = 0.80
"""Chance with which the advised number of seeds would decide."""

GainOutcome = Literal["supported", "contradicted", "smaller than the margin", "not resolved", "not tested"]


class GainTest(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison judged, all numbers in the unit of the metric; the gain is positive where ``left`` is favoured.

    Attributes
    ----------
    left, right, relation : the comparison; for ``less`` the gain is right - left, otherwise left - right.
    margin : the gain (for ``not_worse``: the loss; for ``equal``: the difference) that would matter.
    n : seeds that both cells have; ``left_mean``, ``right_mean``, ``gain`` and ``sd`` are taken over these.
    gain, sd : mean and standard deviation of the paired differences; None without pairs, or for ``sd`` with one.
    low, high : two-sided 90 % t interval of the gain, which holds the same decisions as the two tests below.
    p_support : one-sided paired t-test, H0: gain <= 0 (``not_worse``: gain <= -margin).
        ``equal``: the larger of the two one-sided p, H0: gain <= -margin and H0: gain >= margin (TOST).
    p_contradict : the same the other way, H0: gain >= margin (``not_worse``: gain >= 0). ``equal``: that the
        gain lies beyond the margin, twice the smaller of p for H0: gain >= -margin and H0: gain <= margin.
    outcome : see :func:`decide`; at 5 %, for this comparison alone.
    more_seeds : paired seeds to add until a gain of ``margin`` is told from 0, see :func:`seeds_needed`. None where
        the outcome is decided, where no margin or spread is known, or where n already suffices: the true gain may
        then lie between 0 and the margin, which more seeds of this design are not made to decide.
    exact : no test was made: the least favourable seed decided. Both p are then 0 or 1, and low and high the smallest
        and the largest gain.

    Notes
    -----
    The interval and both p are None with fewer than two pairs, and where all paired differences are equal: few seeds
    and a coarse metric make equal differences by chance, and a t-test would call them certain.
    """

    left: str
    right: str
    relation: Literal["greater", "less", "not_worse", "equal"]
    margin: float
    n: int
    left_mean: float | None = None
    right_mean: float | None = None
    gain: float | None = None
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    p_support: float | None = None
    p_contradict: float | None = None
    outcome: GainOutcome = "not tested"
    more_seeds: int | None = None
    exact: bool = False


def judge_gain(comparison: Comparison, samples: Samples, *, margin: float, exact: bool = False) -> GainTest:
    """Judge one comparison.

    Parameters
    ----------
    comparison : left and right cell, and the relation claimed. Its own margin, where it has one, comes first.
    samples : measured values by cell and seed. Seeds that one cell lacks, or whose value is not finite, are left out.
    margin : the claim's margin, in the unit of the metric.
    exact : the cells are computed, so that there is no spread and nothing to test: see :class:`kdbench.paper.Claim`.

    Raises
    ------
    KdbenchError : the margin is negative or not finite, or 0 where the claim is that two cells are equal.
    """
    margin = margin if comparison.margin is None else comparison.margin
    if not (math.isfinite(margin) and margin >= 0):
        raise KdbenchError(
            f"the margin {margin} is not a size",
            where=f"{comparison.left} against {comparison.right}",
            cure="declare a margin of 0 or more, in the unit of the metric",
        )
    if comparison.relation == "equal" and not margin:
        raise KdbenchError(
            "nothing is equal to within 0",
            where=f"{comparison.left} against {comparison.right}",
            cure="declare the difference that would matter",
        )
    left, right = _paired(samples.get(comparison.left, {}), samples.get(comparison.right, {}))
    test = GainTest(
        left=comparison.left, right=comparison.right, relation=comparison.relation, margin=margin, n=left.size
    )
    if left.size == 0:
        return test
    gains = right - left if comparison.relation == "less" else left - right
    scale = float(max(np.abs(left).max(), np.abs(right).max()))
    sd = spread(gains, scale=scale)
    test = msgspec.structs.replace(
        test,
        left_mean=float(left.mean()),
        right_mean=float(right.mean()),
        gain=float(gains.mean()),
        sd=sd,
        outcome="not resolved",
    )
    # A gain that matters runs from 0 to the margin; for "not worse" the same width lies on the side of the losses.
    floor, ceiling = (-margin, 0.0) if comparison.relation == "not_worse" else (0.0, margin)
    if exact:
        return _exact(test, gains, floor)
    if not sd:
        return test
    if comparison.relation == "equal":
        p_support = max(p_above(gains, -margin), p_below(gains, margin))
        p_contradict = adjusted_minimum([p_below(gains, -margin), p_above(gains, margin)])
    else:
        p_support, p_contradict = p_above(gains, floor), p_below(gains, ceiling)
    outcome = decide(p_support, p_contradict)
    low, high = interval(gains, 1.0 - 2.0 * LEVEL)
    return msgspec.structs.replace(
        test,
        low=low,
        high=high,
        p_support=p_support,
        p_contradict=p_contradict,
        outcome=outcome,
        more_seeds=_more(seeds_needed(sd, margin, relation=comparison.relation), gains.size)
        if outcome == "not resolved"
        else None,
    )


def _exact(test: GainTest, gains: np.ndarray, floor: float) -> GainTest:
    """Decided on the least favourable seed: what is true of the numbers themselves is true of each."""
    least = float(gains.min())
    if test.relation == "equal":
        holds = matters = float(np.abs(gains).max()) < test.margin
    else:
        holds, matters = _one_sided(test, least, floor)
    ps = float(not holds), float(holds and matters)
    return msgspec.structs.replace(
        test,
        low=least,
        high=float(gains.max()),
        p_support=ps[0],
        p_contradict=ps[1],
        outcome=decide(*ps),
        exact=True,
    )


def _one_sided(test: GainTest, least: float, floor: float) -> tuple[bool, bool]:
    """Whether the least gain has the claimed direction, and whether it is large enough to matter."""
    holds = least > floor or (test.relation == "not_worse" and least >= 0)
    matters = test.relation == "not_worse" or least >= test.margin
    return holds, matters


def decide(p_support: float | None, p_contradict: float | None) -> GainOutcome:
    """The word for a pair of one-sided tests at the 5 % level.

    Both can be significant at once: the gain is then real (above 0) and yet below the margin that was declared to
    matter. Neither "supported" nor "contradicted" would be honest, so this has its own word, ``smaller than the
    margin``. (For ``not_worse`` it reads: a real loss, below the margin; for ``equal`` it cannot be.)
    """
    supported = p_support is not None and p_support <= LEVEL
    contradicted = p_contradict is not None and p_contradict <= LEVEL
    if supported and contradicted:
        return "smaller than the margin"
    if supported:
        return "supported"
    return "contradicted" if contradicted else "not resolved"


def seeds_needed(sd: float | None, margin: float, *, level: float = LEVEL, relation: str = "greater") -> int | None:
    """Paired seeds, in all, that tell a gain of ``margin`` from 0 with 80 % power in a one-sided paired t-test.

    For ``equal``: that show two equal cells to be so. Each of its two tests then needs 90 %.

    Parameters
    ----------
    sd : standard deviation of the paired differences, as observed.
    margin : the gain that would matter, in the same unit.
    level : level of the test, smaller where several comparisons share the 5 %.

    Returns
    -------
    int or None : None where it cannot be said, because the margin is 0 or the spread is unknown or 0.

    Notes
    -----
    This is for planning the next run. Every test here holds its level for a number of seeds fixed beforehand; adding
    seeds one by one until the word pleases does not.
    """
    if not sd or margin <= 0:
        return None
    power = TTestPower()
    effect = margin / sd
    wanted = (1 + POWER) / 2 if relation == "equal" else POWER
    if power.power(effect, 2, level, alternative="larger") >= wanted:
        return 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a search that does not converge answers NaN, which is dealt with here
        seeds = float(np.squeeze(power.solve_power(effect, power=wanted, alpha=level, alternative="larger")))
    return math.ceil(seeds) if math.isfinite(seeds) else None


def _more(needed: int | None, n: int) -> int | None:
    return needed - n if needed is not None and needed > n else None


def _paired(left: Mapping[int, float], right: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    # Sorted, because a sum of floats depends on its order and the order of seeds must not matter.
    seeds = sorted(s for s in left.keys() & right.keys() if math.isfinite(left[s]) and math.isfinite(right[s]))
    return finite(left[s] for s in seeds), finite(right[s] for s in seeds)

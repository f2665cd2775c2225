"""The value: a measured mean against the paper's own number, by two one-sided tests (TOST)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from kdbench.errors import KdbenchError
from kdbench.verdict.gain import LEVEL
from kdbench.verdict.summary import adjusted_minimum, finite, interval, p_above, p_below, spread

__all__ = ["CellWord", "ValueTest", "ValueWord", "judge_value", "value_word"]

CellWord = Literal["reproduced", "not reproduced", "inconclusive", "exceeds", "not comparable"]
ValueWord = Literal[
    "reproduced", "not reproduced", "inconclusive", "exceeds", "not comparable", "no reported number", "not tested"
]


class ValueTest(msgspec.Struct, frozen=True, kw_only=True):
    """One measured cell beside the paper's number. All numbers are in the unit of the metric.

    Attributes
    ----------
    cell, n, mean : the cell, the seeds it was measured with, and their mean (None without seeds).
    target : the paper's number, taken as exact: papers seldom print enough to know its spread.
    margin : half-width within which the mean counts as equal to ``target``.
    low, high : two-sided 90 % t interval of ``mean - target``; the word follows from where it lies.
    p : the larger of the two one-sided p of the equivalence test, H0: the mean is ``margin`` or more away.
    p_beyond : one-sided p, H0: the mean is no more than ``margin`` away on the worse side.
    word : ``reproduced``: the interval lies within the margin. ``exceeds``: it lies wholly beyond the margin on the
        better side. ``not reproduced``: wholly beyond on the worse side. Otherwise ``inconclusive``. ``not
        comparable``: no test was made, ``reasons`` say why.
    """

    cell: str
    n: int
    mean: float | None
    target: float
    margin: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_beyond: float | None = None
    word: CellWord = "inconclusive"
    reasons: tuple[str, ...] = ()


def judge_value(
    cell: str,
    measured: Mapping[int, float],
    target: float,
    *,
    margin: float,
    higher_is_better: bool = True,
    not_comparable: Sequence[str] = (),
    exact: bool = False,
) -> ValueTest:
    """Test one cell's mean for equivalence with the paper's number.

    Parameters
    ----------
    cell : name of the cell.
    measured : value by seed; values that are not finite count as missing.
    target : the paper's number.
    margin : half-width of "equal", declared before the run. At 0 nothing can be equal, so nothing is tested.
    higher_is_better : False for a loss, an error or a divergence.
    not_comparable : why the number must not stand beside the paper's; where given, nothing is tested.
    exact : the cell is computed: every seed's value lies within the margin, or it is not reproduced.

    Raises
    ------
    KdbenchError : the margin is negative or not finite.
    """
    if not (math.isfinite(margin) and margin >= 0):
        raise KdbenchError(
            f"the value margin {margin} is not a size",
            where=cell,
            cure="declare a margin of 0 or more, in the unit of the metric",
        )
    values = finite(measured[seed] for seed in sorted(measured))
    mean = float(values.mean()) if values.size else None
    test = ValueTest(cell=cell, n=values.size, mean=mean, target=target, margin=margin)
    if not_comparable:
        return msgspec.structs.replace(test, word="not comparable", reasons=tuple(not_comparable))
    if exact and mean is not None:
        off = values - target
        found: CellWord = "reproduced" if bool((abs(off) <= margin).all()) else "not reproduced"
        low, high = float(off.min()), float(off.max())
        return msgspec.structs.replace(test, low=low, high=high, p_beyond=float(found == "reproduced"), word=found)
    sd = spread(values)
    why = _untestable(values.size, sd, margin)
    if why:
        return msgspec.structs.replace(test, reasons=(why,))
    bottom, top = target - margin, target + margin
    p = max(p_above(values, bottom), p_below(values, top))
    above, below = p_above(values, top), p_below(values, bottom)
    p_beyond = below if higher_is_better else above
    low, high = interval(values, 1.0 - 2.0 * LEVEL)
    word: CellWord = "inconclusive"
    if p <= LEVEL:
        word = "reproduced"
    elif p_beyond <= LEVEL:
        word = "not reproduced"
    elif min(above, below) <= LEVEL:
        word = "exceeds"
    return msgspec.structs.replace(test, low=low - target, high=high - target, p=p, p_beyond=p_beyond, word=word)


def value_word(tests: Sequence[ValueTest]) -> ValueWord:
    """The word for a claim, from the tests of all its cells that the paper reports a number for.

    ``reproduced`` needs every cell to be (intersection-union); ``not reproduced`` needs one cell that is not, at a p
    that holds for all cells together (Holm); ``exceeds`` needs every other cell to be reproduced or to exceed.
    """
    words = {test.word for test in tests}
    if not words:
        return "no reported number"
    if "not comparable" in words:
        return "not comparable"
    if all(test.n == 0 for test in tests):
        return "not tested"
    ps = [test.p_beyond for test in tests if test.p_beyond is not None]
    if ps and adjusted_minimum(ps) <= LEVEL:
        return "not reproduced"
    if {"inconclusive", "not reproduced"} & words:
        return "inconclusive"
    return "exceeds" if "exceeds" in words else "reproduced"


def _untestable(n: int, sd: float | None, margin: float) -> str:
    if n == 0:
        return "not measured"
    if margin == 0:
        return "the claim declares no value margin"
    if n == 1:
        return "one seed has no spread to test with"
    return f"all {n} seeds gave the same value, so there is no spread to test with" if sd == 0 else ""

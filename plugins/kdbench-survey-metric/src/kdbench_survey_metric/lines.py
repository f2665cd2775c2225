"""The score as a line in alpha: which student wins at which alpha, and where the winner changes, exactly.

A student is a line DS(alpha) = (1 - q) + alpha (r - (1 - q)). The winners are the lower envelope of the lines. It is
computed in exact fractions of the two ratios, so that a crossing is no matter of tolerance: a tie is a tie.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

import msgspec

from kdbench_survey_metric.score import Ratios, Unknown, check_alpha, formula

__all__ = ["Affine", "Line", "Segment", "affine", "crossover", "envelope", "line", "lowest", "winners", "winners_at"]


class Line(msgspec.Struct, frozen=True):
    """The score of one student at every alpha, from r (``size_ratio``) and q (``accuracy_ratio``)."""

    name: str
    size_ratio: float
    accuracy_ratio: float

    @property
    def intercept(self) -> float:
        """1 - q: the score at alpha 0."""
        return 1.0 - self.accuracy_ratio

    @property
    def slope(self) -> float:
        """r - (1 - q)."""
        return self.size_ratio - self.intercept

    def at(self, alpha: float) -> float:
        """DS at ``alpha``, by the same operations as :func:`kdbench_survey_metric.score.distillation_score`."""
        return formula(self.size_ratio, self.accuracy_ratio, check_alpha(alpha))


class Segment(msgspec.Struct, frozen=True):
    """A range of alpha over which the same students win.

    ``winners`` holds between ``low`` and ``high``, names sorted; several of them have the same line. At an end that two
    segments share, the winners of both tie; see :func:`winners_at`.
    """

    low: float
    high: float
    winners: tuple[str, ...]


class Affine(NamedTuple):
    """intercept + slope * alpha, exactly."""

    intercept: Fraction
    slope: Fraction

    def at(self, alpha: Fraction) -> Fraction:
        return self.intercept + self.slope * alpha


def line(name: str, ratios: Ratios) -> Line | Unknown:
    """The line of a student, or why it has none."""
    if isinstance(ratios.size, Unknown):
        return ratios.size
    if isinstance(ratios.accuracy, Unknown):
        return ratios.accuracy
    return Line(name, ratios.size, ratios.accuracy)


def affine(line: Line) -> Affine:
    """The line in exact fractions of its two ratios."""
    intercept = 1 - Fraction(line.accuracy_ratio)
    return Affine(intercept, Fraction(line.size_ratio) - intercept)


def crossover(i: Line, j: Line) -> float | None:
    """The alpha in (0, 1) at which two students change places; None where one is ahead, or both tie, all the way.

    alpha* = dq / (dq + dr), with dq = q_i - q_j and dr = r_i - r_j
    """
    dq = Fraction(i.accuracy_ratio) - Fraction(j.accuracy_ratio)
    dr = Fraction(i.size_ratio) - Fraction(j.size_ratio)
    # In (0, 1) only where one student is better and larger: both differences of one sign.
    return float(dq / (dq + dr)) if dq * dr > 0 else None


def winners(lines: Iterable[Line]) -> tuple[Segment, ...]:
    """Who has the lowest score, from alpha 0 to alpha 1; empty without lines."""
    names: dict[Affine, set[str]] = {}
    for one in lines:
        names.setdefault(affine(one), set()).add(one.name)
    return tuple(
        Segment(float(low), float(high), tuple(sorted(names[lowest_line])))
        for low, high, lowest_line in envelope(names)
    )


def winners_at(lines: Iterable[Line], alpha: float) -> tuple[str, ...]:
    """Names of all that have the lowest score at ``alpha``, exactly; sorted."""
    exact = Fraction(check_alpha(alpha))
    lines = list(lines)
    best = set(lowest([affine(one) for one in lines], exact))
    return tuple(sorted({one.name for one in lines if affine(one) in best}))


def envelope(lines: Iterable[Affine]) -> list[tuple[Fraction, Fraction, Affine]]:
    """The lower envelope over [0, 1]: where each piece begins and ends, and its line. No piece has length 0."""
    left = set(lines)
    pieces: list[tuple[Fraction, Fraction, Affine]] = []
    if not left:
        return pieces
    begin, current = Fraction(0), min(left)
    while True:
        # Only a line that falls faster can come to lie below, and of several that meet here the steepest stays lowest.
        crossings = [
            ((one.intercept - current.intercept) / (current.slope - one.slope), one.slope, one)
            for one in left
            if one.slope < current.slope
        ]
        end, _, following = min(crossings, default=(Fraction(1), current.slope, current))
        if end >= 1:
            return [*pieces, (begin, Fraction(1), current)]
        pieces.append((begin, end, current))
        begin, current = end, following


def lowest(lines: Sequence[Affine], alpha: Fraction) -> list[Affine]:
    """Those of ``lines`` that are lowest at ``alpha``."""
    least = min((one.at(alpha) for one in lines), default=None)
    return [one for one in lines if one.at(alpha) == least]

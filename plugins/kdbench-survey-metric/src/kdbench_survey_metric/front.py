"""The front of size and accuracy: the students that no other beats in both, whatever size and accuracy are worth."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

import msgspec

from kdbench_survey_metric.lines import Affine, envelope, lowest
from kdbench_survey_metric.measured import Measured, check_comparable, distinct

__all__ = ["Front", "front"]


class Front(msgspec.Struct, frozen=True, kw_only=True):
    """Who stands on the front; every name is in exactly one of ``members``, ``dominated`` and ``unknown``.

    Attributes
    ----------
    members : from the smallest to the largest, equal ones by name.
    never_wins : those of ``members`` that have the lowest score at no alpha between 0 and 1, not even in a tie: a mix
        of two others would be smaller or more accurate. So no alpha finds them, though no student beats them.
    dominated : each of the others, with the first member of the front that is no larger and no less accurate.
    unknown : those without a size or an accuracy, by name.
    """

    members: tuple[str, ...]
    never_wins: tuple[str, ...]
    dominated: dict[str, str]
    unknown: tuple[str, ...]


def front(students: Iterable[Measured]) -> Front:
    """The Pareto front over (size, accuracy): smaller is better, more accurate is better.

    It needs no teacher, because dividing by one keeps every order. Equal students stand on it together.

    Raises
    ------
    KdbenchError : the students do not compare (other teachers, data, splits or units), or two share a name.
    """
    students = distinct(students)
    check_comparable(students)
    known = [(s.size.value, -s.accuracy.value, s.name) for s in students if s.size and s.accuracy]
    members: list[tuple[float, float, str]] = []
    dominated: dict[str, str] = {}
    # By size, the more accurate first: whoever is not more accurate than the last member is dominated by it.
    for size, error, name in sorted(known):
        if not members or error < members[-1][1] or (size, error) == members[-1][:2]:
            members.append((size, error, name))
        else:
            size, error, _ = members[-1]
            dominated[name] = next(other for *point, other in members if point == [size, error])
    # Some weight of size against accuracy, in whatever units, is some alpha in (0, 1) and the other way round.
    points = {name: Affine(_decimal(error), _decimal(size) - _decimal(error)) for size, error, name in members}
    found: set[Affine] = set()
    for _, end, lowest_line in envelope(points.values()):
        found |= {lowest_line, *(lowest(list(points.values()), end) if end < 1 else ())}
    return Front(
        members=tuple(points),
        never_wins=tuple(name for name, point in points.items() if point not in found),
        dominated=dict(sorted(dominated.items())),
        unknown=tuple(sorted({s.name for s in students if s.size is None or s.accuracy is None})),
    )


def _decimal(value: float) -> Fraction:
    """A number as it is written: three accuracies at equal steps in print lie on a straight line here too."""
    return Fraction(repr(value))

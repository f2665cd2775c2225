"""T13: the front of size and accuracy, and its members that no alpha finds."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from survey_models import families, golden_students, model, teachers

from kdbench.errors import KdbenchError
from kdbench_survey_metric.front import Front, front
from kdbench_survey_metric.lines import Line, line, winners, winners_at
from kdbench_survey_metric.score import Measured, ratios


def dominates(one: Measured, other: Measured) -> bool:
    assert one.size
    assert one.accuracy
    assert other.size
    assert other.accuracy
    pair = (one.size.value <= other.size.value, one.accuracy.value >= other.accuracy.value)
    return all(pair) and (one.size, one.accuracy) != (other.size, other.accuracy)


@given(families())
def test_members_are_those_that_nobody_dominates(family: list[Measured]) -> None:
    found = front(family)
    alone = {s.name for s in family if not any(dominates(other, s) for other in family)}
    assert set(found.members) == alone
    assert len(found.members) == len(alone)
    by_name = {s.name: s for s in family}
    assert set(found.dominated) == set(by_name) - alone
    for loser, winner in found.dominated.items():
        assert winner in alone
        assert dominates(by_name[winner], by_name[loser])


def above_a_line(found: Front, family: list[Measured]) -> set[str]:
    """Members above the straight line between a smaller and a larger one, in whole numbers."""
    points = {s.name: (int(s.size.value), round(10 * s.accuracy.value)) for s in family if s.size and s.accuracy}
    above = set()
    for (x1, y1), (x, y), (x2, y2) in product([points[name] for name in found.members], repeat=3):
        if x1 < x < x2 and (y - y1) * (x2 - x1) < (y2 - y1) * (x - x1):
            above |= {name for name, point in points.items() if point == (x, y)}
    return above


@given(families(), teachers)
def test_members_that_never_win_are_those_that_no_alpha_finds(family: list[Measured], teacher: Measured) -> None:
    found = front(family)
    assert set(found.never_wins) == above_a_line(found, family)
    lines = [one for s in family if isinstance(one := line(s.name, ratios(s, teacher)), Line)]
    segments = winners(lines)
    winning = {name for segment in segments for name in segment.winners}
    for segment in segments[:-1]:
        winning |= set(winners_at(lines, segment.high))
    assert winning <= set(found.members) - set(found.never_wins)


def test_a_point_above_the_line_between_its_neighbours_wins_for_no_alpha() -> None:
    family = [model("small", 1, 0.5), model("middle", 50, 0.6), model("large", 100, 0.9)]
    assert front(family) == Front(
        members=("small", "middle", "large"), never_wins=("middle",), dominated={}, unknown=()
    )
    on_the_line = [model("small", 1, 0.25), model("middle", 2, 0.5), model("large", 3, 0.75)]
    assert front(on_the_line).never_wins == ()
    # 0.8 is not a binary fraction: still a straight line.
    assert front([model("small", 1, 0.0), model("middle", 6, 0.5), model("large", 9, 0.8)]).never_wins == ()
    assert front([*family, model("cheaper", 49, 0.8)]).never_wins == ()


def test_all_golden_students_are_on_the_front_and_win_somewhere() -> None:
    found = front(golden_students())
    assert found.members == ("3.74", "15.25", "35.36", "62.84")
    assert found.never_wins == ()


def test_equal_students_stand_together_and_unknown_ones_aside() -> None:
    family = [model("b", 1, 0.5), model("a", 1, 0.5), model("worse", 2, 0.5), model("no size", None, 0.9)]
    family += [model("no accuracy", 1, None), family[0]]
    found = front(family)
    assert found.members == ("a", "b")
    assert found.dominated == {"worse": "a"}
    assert found.unknown == ("no accuracy", "no size")
    assert front(reversed(family)) == found
    assert front([]) == Front(members=(), never_wins=(), dominated={}, unknown=())


def test_students_that_do_not_compare_have_no_front() -> None:
    with pytest.raises(KdbenchError, match="different data sets: mnist and cifar"):
        front([model("a", 1, 0.5, dataset="mnist"), model("b", 2, 0.6, dataset="cifar")])
    with pytest.raises(KdbenchError, match="two different models are called 'a'"):
        front([model("a", 1, 0.5), model("a", 2, 0.6)])

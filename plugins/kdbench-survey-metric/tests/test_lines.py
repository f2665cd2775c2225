"""P2, P7 and P8: scores as lines in alpha, the winner at every alpha and where it changes."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from survey_models import alphas, families, model, students, teachers, value

from kdbench_survey_metric.front import front
from kdbench_survey_metric.lines import Line, Segment, affine, crossover, line, winners, winners_at
from kdbench_survey_metric.score import Measured, Ratios, Unknown, distillation_score, ratios

# Quarters make crossings, ties and lines through one point common.
lines = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 6)).map(lambda pair: (pair[0] / 4, pair[1] / 4)), min_size=1, max_size=7
).map(lambda pairs: [Line(f"S{i}", r, q) for i, (r, q) in enumerate(pairs)])


def exact(one: Line, alpha: Fraction) -> Fraction:
    """The score in fractions, straight from its definition."""
    return alpha * Fraction(one.size_ratio) + (1 - alpha) * (1 - Fraction(one.accuracy_ratio))


def best(competitors: list[Line], alpha: Fraction) -> tuple[str, ...]:
    scores = {one.name: exact(one, alpha) for one in competitors}
    return tuple(sorted(name for name, score in scores.items() if score == min(scores.values())))


@given(students, teachers, alphas)
def test_p2_a_line_is_the_score(student: Measured, teacher: Measured, alpha: float) -> None:
    one = line("S", ratios(student, teacher))
    assert isinstance(one, Line)
    assert one.at(alpha) == value(distillation_score(student, teacher, alpha))
    assert (one.at(0.0), one.at(1.0)) == (one.intercept, one.size_ratio)
    assert one.intercept + alpha * one.slope == pytest.approx(one.at(alpha), rel=1e-9, abs=1e-9)


def test_a_line_needs_both_ratios() -> None:
    assert line("S", Ratios(size=Unknown("no size"), accuracy=0.5)) == Unknown("no size")
    assert line("S", Ratios(size=0.5, accuracy=Unknown("no accuracy"))) == Unknown("no accuracy")


@given(lines)
def test_p8_two_students_change_places_at_their_crossover(competitors: list[Line]) -> None:
    for i, j in combinations(competitors, 2):
        crossing = crossover(i, j)
        assert crossing == crossover(j, i)
        dq, dr = i.accuracy_ratio - j.accuracy_ratio, i.size_ratio - j.size_ratio
        ends = [exact(i, Fraction(alpha)) - exact(j, Fraction(alpha)) for alpha in (0, 1)]
        assert (crossing is not None) == (ends[0] * ends[1] < 0)
        if crossing is not None:
            assert crossing == pytest.approx(dq / (dq + dr))
            assert i.at(crossing) == pytest.approx(j.at(crossing))
            before, after = (i.at(alpha) - j.at(alpha) for alpha in (crossing - 1e-3, crossing + 1e-3))
            assert before * after < 0


@given(lines)
def test_the_winners_are_those_of_a_search_at_every_alpha(competitors: list[Line]) -> None:
    segments = winners(competitors)
    assert (segments[0].low, segments[-1].high) == (0.0, 1.0)
    assert all(one.high == following.low for one, following in pairwise(segments))
    assert all(one.winners != following.winners for one, following in pairwise(segments))
    for segment in segments:
        assert segment.low < segment.high
        for step in range(1, 8):
            alpha = Fraction(segment.low) + (Fraction(segment.high) - Fraction(segment.low)) * step / 8
            assert best(competitors, alpha) == segment.winners


@given(lines, st.integers(0, 12))
def test_ties_are_found_at_every_alpha(competitors: list[Line], twelfths: int) -> None:
    alpha = twelfths / 12
    assert winners_at(competitors, alpha) == best(competitors, Fraction(alpha))


@given(lines)
def test_where_the_winner_changes_both_tie(competitors: list[Line]) -> None:
    by_name = {one.name: one for one in competitors}
    for one, following in pairwise(winners(competitors)):
        i, j = by_name[one.winners[0]], by_name[following.winners[0]]
        assert crossover(i, j) == one.high
        assert affine(i).slope > affine(j).slope


@given(families(), teachers)
def test_m2_the_winner_only_ever_gets_smaller_as_alpha_grows(family: list[Measured], teacher: Measured) -> None:
    competitors = [one for s in family if isinstance(one := line(s.name, ratios(s, teacher)), Line)]
    sizes = {one.name: one.size_ratio for one in competitors}
    won = [sizes[segment.winners[0]] for segment in winners(competitors)]
    assert won == sorted(won, reverse=True)


@given(families(smallest=2), teachers, st.floats(0.01, 0.99))
def test_p7_whoever_dominates_scores_better_and_the_best_is_on_the_front(
    family: list[Measured], teacher: Measured, alpha: float
) -> None:
    competitors = {s.name: one for s in family if isinstance(one := line(s.name, ratios(s, teacher)), Line)}
    at = Fraction(alpha)
    for i, j in combinations(competitors.values(), 2):
        for better, worse in ((i, j), (j, i)):
            no_worse = better.size_ratio <= worse.size_ratio and better.accuracy_ratio >= worse.accuracy_ratio
            if no_worse and affine(better) != affine(worse):
                assert exact(better, at) < exact(worse, at)
    assert set(winners_at(competitors.values(), alpha)) <= set(front(family).members)


def test_ties_are_named_together() -> None:
    twins = [Line("b", 0.5, 0.9), Line("a", 0.5, 0.9), Line("c", 0.1, 0.5)]
    assert winners(twins) == (Segment(0.0, 0.5, ("a", "b")), Segment(0.5, 1.0, ("c",)))
    assert winners_at([Line("a", 0.5, 1.0), Line("b", 0.0, 0.5)], 0.5) == ("a", "b")
    assert winners_at([Line("large", 0.5, 0.9), Line("small", 0.1, 0.9)], 0.0) == ("large", "small")


def test_nobody_wins_where_nobody_competes() -> None:
    assert winners([]) == ()
    assert winners_at([], 0.5) == ()


def test_winners_do_not_depend_on_the_order_of_models() -> None:
    family = [model(f"S{k}", 10 * k, 0.5 + 0.05 * k) for k in range(1, 6)]
    teacher = model("T", 100, 0.9)
    competitors = [one for s in family if isinstance(one := line(s.name, ratios(s, teacher)), Line)]
    assert winners(competitors) == winners(list(reversed(competitors))) == winners(competitors * 2)

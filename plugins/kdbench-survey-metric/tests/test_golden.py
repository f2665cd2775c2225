"""P1 and the table of golden values: numbers worked out by hand before there was any code."""

from __future__ import annotations

from itertools import pairwise

import pytest
from survey_models import GOLDEN, golden_students, golden_teacher, model, percent, value

from kdbench_survey_metric.lines import Line, crossover, line, winners, winners_at
from kdbench_survey_metric.score import (
    Accuracy,
    Known,
    Measured,
    Ratios,
    constant_predictor,
    distillation_score,
    ratios,
    score_of_ratios,
)


def golden_lines() -> list[Line]:
    lines = [line(student.name, ratios(student, golden_teacher())) for student in golden_students()]
    return [one for one in lines if isinstance(one, Line)]


@pytest.mark.parametrize("student", golden_students(), ids=lambda student: student.name)
def test_golden_rows(student: Measured) -> None:
    reported = GOLDEN[student.name][2]
    assert value(distillation_score(student, golden_teacher(), 0.5)) == pytest.approx(reported, abs=5e-4)


def test_golden_rows_to_four_digits() -> None:
    scores = [value(distillation_score(student, golden_teacher(), 0.5)) for student in golden_students()]
    assert scores == pytest.approx([0.3326, 0.2097, 0.1382, 0.2183], abs=5e-5)


def test_golden_crossovers() -> None:
    segments = winners(golden_lines())
    assert [segment.winners for segment in segments] == [("62.84",), ("35.36",), ("15.25",), ("3.74",)]
    assert [segment.high for segment in segments] == pytest.approx([0.0954, 0.2242, 0.7052, 1.0], abs=1e-4)
    between = [crossover(*pair) for pair in pairwise(golden_lines())]
    assert between == [segment.high for segment in segments[:-1]]


def test_the_best_golden_student_is_a_property_of_alpha() -> None:
    lines = golden_lines()
    assert [winners_at(lines, alpha) for alpha in (0.05, 0.15, 0.5, 0.75)] == [
        ("62.84",),
        ("35.36",),
        ("15.25",),
        ("3.74",),
    ]


@pytest.mark.parametrize(
    ("r", "q", "expected"),
    [
        (0.45, 1.0, 0.2250),
        (0.1, 0.90 / 0.92, 0.0609),
        (0.01, 0.90 / 0.93, 0.0211),
        (0.1, 0.88 / 0.92, 0.0717),
        (0.3, 1.02, 0.14),
    ],
)
def test_golden_values(r: float, q: float, expected: float) -> None:
    assert value(score_of_ratios(Ratios(size=r, accuracy=q), 0.5)) == pytest.approx(expected, abs=5e-5)


def test_a_weak_teacher_gives_the_ideal_score() -> None:
    student, teacher = model("S", 1, 0.88), model("T", 10, 0.80)
    assert value(distillation_score(student, teacher, 0.5)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("majority", "accuracy", "expected"), [(0.1, 0.95, 0.4474), (0.5, 0.90, 0.2222), (0.95, 0.97, 0.0103)]
)
def test_constant_predictors(majority: float, accuracy: float, expected: float) -> None:
    constant = constant_predictor(model("T", 10, accuracy), Accuracy(majority, "fraction"))
    assert constant.size == 0.0
    assert value(score_of_ratios(constant, 0.5)) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("accuracy", "size", "expected"),
    [
        (4.8, 50, 0.274),
        (2.889, 96.20, 0.033),
        (4.868, 92.13, 0.064),
        (-6.191, 70.66, 0.116),
        (1.557, 53.333, 0.241),
    ],
)
def test_scores_from_the_reductions_that_the_survey_lists(accuracy: float, size: float, expected: float) -> None:
    relative = Ratios.of_reductions(size=size, accuracy=accuracy)
    assert value(score_of_ratios(relative, 0.5)) == pytest.approx(expected, abs=5e-4)


def test_what_mixed_units_would_have_given() -> None:
    """0.92 beside 95 gives a plausible score; declared as percent for both it is computed, with a question."""
    outcome = distillation_score(percent("S", 1, 0.92), percent("T", 10, 95), 0.5)
    assert value(outcome) == pytest.approx(0.5452, abs=5e-5)
    assert isinstance(outcome, Known)
    assert outcome.warnings == ("'S' has an accuracy of 0.92 %: is it a fraction?",)

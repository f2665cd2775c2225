"""P11: every number that cannot be meant is refused, with the argument, the place and the cure."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, nan
from typing import Any

import numpy as np
import pytest
from survey_models import model, percent

from kdbench.errors import KdbenchError
from kdbench_survey_metric.companions import gap_closed, log_size_score, score_gain, worst_class_score
from kdbench_survey_metric.interval import difference_interval, outcomes, score_intervals, unpaired_standard_error
from kdbench_survey_metric.lines import Line, winners_at
from kdbench_survey_metric.ranking import rank
from kdbench_survey_metric.score import (
    Accuracy,
    Measured,
    Ratios,
    Size,
    chance_adjusted_score,
    constant_predictor,
    distillation_score,
)

STUDENT, TEACHER = model("S", 1, 0.8), model("T", 10, 0.9)
RIGHT = outcomes([[True, False]], [[True, True]])


def of(size: Any = None, accuracy: Any = None, **others: Any) -> Measured:
    return Measured(name="S", size=size, accuracy=accuracy, **others)


def halves(count: int) -> tuple[Accuracy, ...]:
    return (Accuracy(0.5, "fraction"),) * count


CASES: list[tuple[Callable[[], object], str, str]] = [
    # Sizes.
    (lambda: Size(0, "parameters"), "size is 0, not above 0", "size in parameters"),
    (lambda: Size(-3, "bytes"), "size is -3, not above 0", "size in bytes"),
    (lambda: Size(nan, "MACs"), "size is nan, not a finite number", "size in MACs"),
    (lambda: Size(inf, "MACs"), "size is inf, not a finite number", "size in MACs"),
    (lambda: Size(True, "MACs"), "size is True, not a finite number", "size in MACs"),
    (lambda: Size("12", "MACs"), "size is '12', not a finite number", "size in MACs"),  # type: ignore[arg-type]
    (lambda: of(size=1_000_000), "size is 1000000, without its unit", "model 'S'"),
    # Accuracies.
    (lambda: Accuracy(-0.1, "fraction"), "accuracy is -0.1, below 0", "accuracy as fraction"),
    (lambda: Accuracy(nan, "fraction"), "accuracy is nan, not a finite number", "accuracy as fraction"),
    (lambda: Accuracy(None, "percent"), "accuracy is None, not a finite number", "accuracy as percent"),  # type: ignore[arg-type]
    (lambda: Accuracy(95, "fraction"), "accuracy is 95, above 1", "accuracy as fraction"),
    (lambda: Accuracy(950, "percent"), "accuracy is 950, above 100", "accuracy as percent"),
    (lambda: of(accuracy=0.9), "accuracy is 0.9, without its unit", "model 'S'"),
    (
        lambda: of(accuracy=Accuracy(0.5, "fraction"), per_class=(Accuracy(50, "percent"),)),
        "per_class and accuracy in mixed units: fraction and percent",
        "model 'S'",
    ),
    # Students and teachers that do not compare.
    (
        lambda: distillation_score(of(Size(4, "bytes"), Accuracy(0.5, "fraction")), TEACHER, 0.5),
        "size in mixed units: parameters and bytes",
        "models 'T' and 'S'",
    ),
    (
        lambda: distillation_score(of(Size(4, "nonzero parameters"), Accuracy(0.5, "fraction")), TEACHER, 0.5),
        "size in mixed units: parameters and nonzero parameters",
        "models 'T' and 'S'",
    ),
    (
        lambda: distillation_score(model("S", 1, 0.92), percent("T", 10, 95), 0.5),
        "accuracy in mixed units: percent and fraction",
        "models 'T' and 'S'",
    ),
    (
        lambda: distillation_score(model("S", 1, 0.5, dataset="a"), model("T", 2, 0.5, dataset="b"), 0.5),
        "different data sets: b and a",
        "models 'T' and 'S'",
    ),
    (lambda: distillation_score(STUDENT, model("T", 10, 0), 0.5), "teacher accuracy is 0, not above 0", "teacher 'T'"),
    # The weight.
    (lambda: distillation_score(STUDENT, TEACHER, -0.1), "alpha is -0.1, outside [0, 1]", "weight of the size"),
    (lambda: distillation_score(STUDENT, TEACHER, 1.1), "alpha is 1.1, outside [0, 1]", "weight of the size"),
    (lambda: distillation_score(STUDENT, TEACHER, nan), "alpha is nan, not a finite number", "weight of the size"),
    (lambda: score_gain(STUDENT, STUDENT, TEACHER, 2), "alpha is 2, outside [0, 1]", "weight of the size"),
    (lambda: log_size_score(STUDENT, TEACHER, 2), "alpha is 2, outside [0, 1]", "weight of the size"),
    (lambda: worst_class_score(STUDENT, TEACHER, 2), "alpha is 2, outside [0, 1]", "weight of the size"),
    (lambda: winners_at([Line("S", 0.5, 0.5)], 2), "alpha is 2, outside [0, 1]", "weight of the size"),
    (lambda: rank([STUDENT], TEACHER, alpha=2), "alpha is 2, outside [0, 1]", "weight of the size"),
    (lambda: score_intervals(RIGHT, size_ratio=0.5, alpha=2), "alpha is 2, outside [0, 1]", "weight of the size"),
    # Chance.
    (
        lambda: chance_adjusted_score(STUDENT, TEACHER, 0.5, Accuracy(0.9, "fraction")),
        "teacher at or below chance: accuracy 0.9, chance 0.9",
        "teacher 'T'",
    ),
    (
        lambda: chance_adjusted_score(STUDENT, TEACHER, 0.5, Accuracy(10, "percent")),
        "chance as percent, accuracy as fraction",
        "model 'S'",
    ),
    (
        lambda: constant_predictor(TEACHER, Accuracy(10, "percent")),
        "accuracy in mixed units: fraction and percent",
        "models 'T' and 'constant predictor'",
    ),
    # Ratios.
    (lambda: Ratios(size=-0.1, accuracy=0.5), "size ratio is -0.1, below 0", "ratios to the teacher"),
    (lambda: Ratios(size=0.1, accuracy=nan), "accuracy ratio is nan, not a finite number", "ratios to the teacher"),
    (lambda: Ratios.of_reductions(size=120, accuracy=1), "size ratio is -0.2, below 0", "ratios to the teacher"),
    (
        lambda: Ratios.of_reductions(size=1, accuracy=inf),
        "accuracy reduction is inf, not a finite number",
        "ratios to the teacher",
    ),
    # Companions.
    (
        lambda: score_gain(STUDENT, model("P", 2, 0.7), TEACHER, 0.5),
        "size is 1 parameters with distillation and 2 parameters without",
        "students 'S' and 'P'",
    ),
    (
        lambda: gap_closed(STUDENT, model("P", 2, 0.7), TEACHER),
        "size is 1 parameters with distillation and 2 parameters without",
        "students 'S' and 'P'",
    ),
    (lambda: log_size_score(STUDENT, TEACHER, 0.5, span=1), "span is 1, not above 1", "log-size variant"),
    (
        lambda: worst_class_score(
            model("S", 1, 0.5, per_class=halves(2)), model("T", 2, 0.5, per_class=halves(3)), 0.5
        ),
        "per_class has 2 classes, its teacher's 3",
        "models 'T' and 'S'",
    ),
    (
        lambda: worst_class_score(of(Size(1, "parameters"), per_class=(Accuracy(50, "percent"),)), TEACHER, 0.5),
        "accuracy in mixed units: fraction and percent",
        "models 'T' and 'S'",
    ),
    # Outcomes of single test examples.
    (lambda: outcomes([], []), "student holds no test example of some seed", "outcomes of student"),
    (lambda: outcomes([[]], [[]]), "student holds no test example of some seed", "outcomes of student"),
    (lambda: outcomes([[[True]]], [[True]]), "student holds no test example of some seed", "outcomes of student"),
    (lambda: outcomes([[True], [True, False]], [[True]]), "student has seeds of 1, 2 examples", "outcomes of student"),
    (
        lambda: outcomes([[True]], [[True, False]]),
        "student has 1 seeds of 1 examples, teacher 1 of 2",
        "outcomes of student",
    ),
    (
        lambda: outcomes([[True]], [[True]], plain=[[True], [True]]),
        "plain has 2 seeds of 1 examples, teacher 1 of 1",
        "outcomes of plain",
    ),
    (lambda: outcomes([[1]], [[7]]), "teacher holds values other than true and false", "outcomes of teacher"),
    # Intervals.
    (
        lambda: score_intervals(RIGHT, size_ratio=-1, alpha=0.5),
        "size ratio is -1, below 0",
        "ratios to the teacher",
    ),
    (
        lambda: score_intervals(RIGHT, size_ratio=1, alpha=0.5, chance=10),
        "chance is 10, outside [0, 1)",
        "rate of the largest class",
    ),
    (lambda: score_intervals(RIGHT, size_ratio=1, alpha=0.5, draws=0), "draws is 0, below 1", "bootstrap"),
    (
        lambda: difference_interval(RIGHT, outcomes([[True, False]], [[True, False]]), size_ratios=(1, 1), alpha=0.5),
        "the teachers of the two students answered differently",
        "outcomes of teacher",
    ),
    (
        lambda: unpaired_standard_error(0.0, 0.7, alpha=0.5, student_examples=10, teacher_examples=10),
        "student accuracy is 0 of 10 examples",
        "unpaired standard error",
    ),
    (
        lambda: unpaired_standard_error(0.7, 70, alpha=0.5, student_examples=10, teacher_examples=10),
        "teacher accuracy is 70 of 10 examples",
        "unpaired standard error",
    ),
]


@pytest.mark.parametrize(("call", "what", "where"), CASES, ids=[f"{i}-{case[1][:30]}" for i, case in enumerate(CASES)])
def test_p11_refused_with_argument_place_and_cure(call: Callable[[], object], what: str, where: str) -> None:
    with pytest.raises(KdbenchError) as caught:
        call()
    assert (caught.value.what, caught.value.where) == (what, where)
    assert caught.value.cure


@pytest.mark.parametrize(
    ("make", "unit", "message"),
    [
        (lambda unit: Size(1, unit), "params", "unknown size unit 'params'; did you mean 'parameters'?"),
        (lambda unit: Accuracy(1, unit), "%", "unknown accuracy unit '%'; known: fraction, percent"),
    ],
)
def test_units_are_declared_by_name(make: Callable[[Any], object], unit: str, message: str) -> None:
    with pytest.raises(KdbenchError) as caught:
        make(unit)
    assert str(caught.value).startswith(message)


def test_numbers_of_any_kind_become_floats() -> None:
    numbers: tuple[Any, ...] = (3, 3.0, np.int64(3), np.float32(3))
    for number in numbers:
        size = Size(number, "parameters")
        assert type(size.value) is float
        assert size == Size(3, "parameters")
    with pytest.raises(KdbenchError, match="not a finite number"):
        Size(10**400, "parameters")

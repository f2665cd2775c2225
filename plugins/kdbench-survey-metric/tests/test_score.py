"""P2 to P6, P10 and the warnings: what holds of the score for any sizes and accuracies."""

from __future__ import annotations

from math import nextafter

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from survey_models import (
    alphas,
    fractions,
    inner_alphas,
    model,
    percent,
    positive_fractions,
    sizes,
    students,
    teachers,
    value,
)

from kdbench_survey_metric.score import (
    Accuracy,
    Known,
    Measured,
    Outcome,
    Ratios,
    Size,
    Unknown,
    chance_adjusted_score,
    constant_predictor,
    distillation_score,
    ratios,
    score_of_ratios,
)


def ds(size: float, accuracy: float, teacher_size: float, teacher_accuracy: float, alpha: float) -> float:
    student, teacher = model("S", size, accuracy), model("T", teacher_size, teacher_accuracy)
    return value(distillation_score(student, teacher, alpha))


# ---------------------------------------------------------------------------------------------------------- P2 to P5


@given(students, teachers, alphas)
def test_p2_the_score_is_a_line_in_alpha(student: Measured, teacher: Measured, alpha: float) -> None:
    relative = ratios(student, teacher)
    r, q = relative.size, relative.accuracy
    assert isinstance(r, float)
    assert isinstance(q, float)
    assert value(distillation_score(student, teacher, 1.0)) == r
    assert value(distillation_score(student, teacher, 0.0)) == 1.0 - q
    by_line = (1.0 - q) + alpha * (r - (1.0 - q))
    assert value(distillation_score(student, teacher, alpha)) == pytest.approx(by_line, rel=1e-9, abs=1e-9)


@given(sizes, sizes, fractions, sizes, positive_fractions, inner_alphas)
def test_p3_larger_scores_worse(a: int, b: int, accuracy: float, size_t: int, accuracy_t: float, alpha: float) -> None:
    assume(abs(a - b) / size_t > 1e-6)
    small, large = sorted((a, b))
    assert ds(small, accuracy, size_t, accuracy_t, alpha) < ds(large, accuracy, size_t, accuracy_t, alpha)


@given(sizes, fractions, fractions, sizes, positive_fractions, inner_alphas)
def test_p3_more_accurate_scores_better(
    size: int, a: float, b: float, size_t: int, accuracy_t: float, alpha: float
) -> None:
    assume(a != b)
    assume(size / size_t < 1e5)
    low, high = sorted((a, b))
    assert ds(size, high, size_t, accuracy_t, alpha) < ds(size, low, size_t, accuracy_t, alpha)


@given(sizes, fractions, st.integers(1, 1000), st.integers(1, 1000), positive_fractions, inner_alphas)
def test_p3_a_larger_teacher_flatters(
    size: int, accuracy: float, a: int, b: int, accuracy_t: float, alpha: float
) -> None:
    assume(a != b)
    small, large = sorted((a, b))
    assert ds(size, accuracy, large, accuracy_t, alpha) < ds(size, accuracy, small, accuracy_t, alpha)


@given(sizes, positive_fractions, sizes, positive_fractions, positive_fractions, inner_alphas)
def test_p3_a_weaker_teacher_flatters(
    size: int, accuracy: float, size_t: int, a: float, b: float, alpha: float
) -> None:
    assume(a != b)
    assume(size / size_t < 1e5)
    weak, strong = sorted((a, b))
    assert ds(size, accuracy, size_t, weak, alpha) < ds(size, accuracy, size_t, strong, alpha)


def test_p3_weights_of_zero_and_a_student_that_is_always_wrong_are_the_exceptions() -> None:
    assert ds(1, 0.5, 10, 0.9, 0.0) == ds(9, 0.5, 10, 0.9, 0.0)
    assert ds(1, 0.5, 10, 0.9, 1.0) == ds(1, 0.8, 10, 0.9, 1.0)
    assert ds(1, 0.0, 10, 0.9, 0.5) == ds(1, 0.0, 10, 0.8, 0.5)


@given(students, teachers, alphas, st.floats(1e-3, 1e3))
def test_p4_the_unit_of_the_size_does_not_matter(
    student: Measured, teacher: Measured, alpha: float, factor: float
) -> None:
    assert student.size is not None
    assert teacher.size is not None
    small, large = (
        msgspec.structs.replace(m, size=Size(m.size.value * factor, "parameters"))  # type: ignore[union-attr]
        for m in (student, teacher)
    )
    plain = value(distillation_score(student, teacher, alpha))
    assert value(distillation_score(small, large, alpha)) == pytest.approx(plain, rel=1e-9, abs=1e-9)


@given(students, teachers, alphas, st.floats(1e-3, 1.0))
def test_p4_the_unit_of_the_accuracy_does_not_matter(
    student: Measured, teacher: Measured, alpha: float, factor: float
) -> None:
    accuracies = [m.accuracy.value for m in (student, teacher)]  # type: ignore[union-attr]
    plain = value(distillation_score(student, teacher, alpha))
    for unit, scale in (("percent", 100.0), ("percent", 100.0 * factor), ("fraction", factor)):
        small, large = (
            msgspec.structs.replace(m, accuracy=Accuracy(accuracy * scale, unit))  # type: ignore[arg-type]
            for m, accuracy in zip((student, teacher), accuracies, strict=True)
        )
        assert value(distillation_score(small, large, alpha)) == pytest.approx(plain, rel=1e-9, abs=1e-9)


@given(st.floats(1e-3, 1e15), st.floats(1e-6, 1.0), alphas)
def test_p5_a_copy_of_the_teacher_scores_alpha_to_the_last_bit(size: float, accuracy: float, alpha: float) -> None:
    assert ds(size, accuracy, size, accuracy, alpha) == alpha


# ---------------------------------------------------------------------------------------------------------------- P6


@given(st.floats(0, 1), st.floats(0, 1), alphas)
def test_p6_no_better_and_no_larger_than_the_teacher_stays_between_0_and_1(r: float, q: float, alpha: float) -> None:
    score = value(score_of_ratios(Ratios(size=r, accuracy=q), alpha))
    assert 0.0 <= score <= nextafter(1.0, 2.0)
    nothing_left = (alpha == 0 or r == 0) and (alpha == 1 or q == 1)
    if nothing_left:
        assert score == 0.0
    elif alpha * r > 1e-12 or (1 - alpha) * (1 - q) > 1e-12:
        assert score > 0.0


@given(st.floats(0, 2), st.floats(0, 2), alphas)
def test_p6_negative_only_where_the_gain_outweighs_the_size(r: float, q: float, alpha: float) -> None:
    size_term, gain_term = alpha * r, (1 - alpha) * (q - 1)
    assume(abs(size_term - gain_term) > 1e-12)
    assert (value(score_of_ratios(Ratios(size=r, accuracy=q), alpha)) < 0) == (size_term < gain_term)


def test_p6_a_better_student_need_not_score_below_zero() -> None:
    assert value(score_of_ratios(Ratios(size=0.3, accuracy=1.02), 0.5)) == pytest.approx(0.14)


# --------------------------------------------------------------------------------------------------------------- P10


@st.composite
def above_chance(draw: st.DrawFn) -> tuple[Measured, float]:
    """A teacher that is better than chance, and that chance."""
    chance, accuracy = draw(st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True).map(sorted))
    return model("T", draw(sizes), accuracy / 1000), chance / 1000


@given(above_chance(), students, alphas)
def test_p10_without_chance_it_is_the_score(case: tuple[Measured, float], student: Measured, alpha: float) -> None:
    adjusted = chance_adjusted_score(student, case[0], alpha, Accuracy(0.0, "fraction"))
    assert adjusted == distillation_score(student, case[0], alpha)


@given(above_chance(), sizes, alphas)
def test_p10_guessing_without_a_size_scores_one_minus_alpha(
    case: tuple[Measured, float], size: int, alpha: float
) -> None:
    """A student at chance pays its size and 1 - alpha; take the size away and 1 - alpha is left."""
    teacher, chance = case
    assert teacher.size is not None
    student = model("S", size, chance)
    score = value(chance_adjusted_score(student, teacher, alpha, Accuracy(chance, "fraction")))
    assert score == alpha * (size / teacher.size.value) + (1.0 - alpha)


@given(above_chance(), sizes, st.floats(0, 0.999), inner_alphas)
def test_p10_below_chance_scores_above_that(case: tuple[Measured, float], size: int, part: float, alpha: float) -> None:
    teacher, chance = case
    assert teacher.size is not None
    assume(chance > 0)
    assume(size / teacher.size.value < 1e3)
    student = model("S", size, chance * part)
    score = value(chance_adjusted_score(student, teacher, alpha, Accuracy(chance, "fraction")))
    assert score > 1 - alpha + alpha * (size / teacher.size.value)


@given(above_chance(), students, alphas)
def test_p10_equals_the_score_of_adjusted_accuracies(
    case: tuple[Measured, float], student: Measured, alpha: float
) -> None:
    teacher, chance = case
    assert student.accuracy is not None
    assert teacher.accuracy is not None
    assume(student.accuracy.value >= chance)
    first, second = (
        msgspec.structs.replace(m, accuracy=Accuracy(max(0.0, (m.accuracy.value - chance) / (1 - chance)), "fraction"))  # type: ignore[union-attr]
        for m in (student, teacher)
    )
    expected = value(distillation_score(first, second, alpha))
    adjusted = value(chance_adjusted_score(student, teacher, alpha, Accuracy(chance, "fraction")))
    assert adjusted == pytest.approx(expected, rel=1e-9, abs=1e-9)


# ------------------------------------------------------------------------------------------------ unknown and warned


@pytest.mark.parametrize(
    ("student", "teacher", "reason"),
    [
        (model("S", None, 0.5), model("T", 10, 0.9), "the size of 'S' is unknown"),
        (model("S", 1, None), model("T", 10, 0.9), "the accuracy of 'S' is unknown"),
        (model("S", 1, 0.5), model("T", None, 0.9), "the size of 'T' is unknown"),
        (model("S", 1, 0.5), model("T", 10, None), "the accuracy of 'T' is unknown"),
    ],
)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_p11_what_is_missing_stays_unknown(student: Measured, teacher: Measured, reason: str, alpha: float) -> None:
    chance = Accuracy(0.1, "fraction")
    assert distillation_score(student, teacher, alpha) == Unknown(reason)
    assert chance_adjusted_score(student, teacher, alpha, chance) == Unknown(reason)


def test_p11_a_dash_in_the_table_stays_unknown() -> None:
    assert score_of_ratios(Ratios.of_reductions(size=None, accuracy=1.0), 0.5) == Unknown(
        "the size reduction is not given"
    )
    assert score_of_ratios(Ratios.of_reductions(size=50, accuracy=None), 0.5) == Unknown(
        "the accuracy reduction is not given"
    )
    assert constant_predictor(model("T", 10, None), Accuracy(0.1, "fraction")).accuracy == Unknown(
        "the accuracy of 'T' is unknown"
    )


def test_a_student_larger_than_its_teacher_is_scored_and_warned_of() -> None:
    student, teacher = model("S", 30, 0.9), model("T", 10, 0.9)
    warning = "the student is larger than its teacher (size ratio 3): nothing bounds its score"
    assert distillation_score(student, teacher, 0.5) == Known(1.5, (warning,))
    adjusted = chance_adjusted_score(student, teacher, 0.5, Accuracy(0.1, "fraction"))
    assert adjusted == Known(1.5, (warning,))
    assert distillation_score(model("S", 10, 0.9), teacher, 0.5) == Known(0.5)


def test_values_survive_json() -> None:
    for outcome in (distillation_score(percent("S", 1, 50), percent("T", 10, 90), 0.5), Unknown("not measured")):
        assert msgspec.json.decode(msgspec.json.encode(outcome), type=Outcome) == outcome
    student = percent("S", 1, 50)
    assert msgspec.json.decode(msgspec.json.encode(student), type=Measured) == student
    assert (str(student.size), str(student.accuracy)) == ("1 parameters", "50 %")

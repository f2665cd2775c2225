"""P12 and the mandatory rows: students ranked under one teacher, whatever order they come in."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from survey_models import alphas, families, golden_students, golden_teacher, model, percent, teachers, value

from kdbench.errors import KdbenchError
from kdbench_survey_metric.ranking import CONSTANT, Ranking, rank
from kdbench_survey_metric.score import Accuracy, Measured, Unknown, distillation_score

TEACHER = model("T", 100, 0.95)
TENTH = Accuracy(0.1, "fraction")


def ranks(ranking: Ranking) -> dict[str, int | None]:
    return {row.name: row.rank for row in ranking.rows}


@given(families(), teachers, alphas, st.randoms(use_true_random=False))
def test_p12_order_and_repetition_change_nothing(
    family: list[Measured], teacher: Measured, alpha: float, random: Random
) -> None:
    ranking = rank(family, teacher, alpha=alpha)
    again = [*family, *random.choices(family, k=3)]
    random.shuffle(again)
    assert rank(again, teacher, alpha=alpha) == ranking


@given(families(), teachers, alphas)
def test_p12_a_copy_under_another_name_ties_and_moves_nobody(
    family: list[Measured], teacher: Measured, alpha: float
) -> None:
    first = family[0]
    assert first.size
    assert first.accuracy
    copy = model("copy", first.size.value, first.accuracy.value)
    before, after = ranks(rank(family, teacher, alpha=alpha)), ranks(rank([*family, copy], teacher, alpha=alpha))
    assert after.pop("copy") == before["S0"]
    assert after == before


@given(families(), teachers, alphas)
def test_ranks_follow_the_scores(family: list[Measured], teacher: Measured, alpha: float) -> None:
    ranking = rank(family, teacher, alpha=alpha)
    placed = [(row.rank, value(row.score)) for row in ranking.rows if row.kind == "student"]
    assert len(placed) == len(family)
    assert [place for place, _ in placed] == sorted(place for place, _ in placed if place)
    assert {place for place, _ in placed} == set(range(1, 1 + len({place for place, _ in placed})))
    for one, other in pairwise(placed):
        assert (one[0] == other[0]) == (other[1] - one[1] <= 1e-12)
    for student in family:
        assert ranking.row(student.name).score == distillation_score(student, teacher, alpha)


def test_golden_students() -> None:
    ranking = rank(golden_students(), golden_teacher())
    assert [row.name for row in ranking.rows] == ["15.25", "35.36", "3.74", "62.84", "ResNet44", CONSTANT]
    assert ranks(ranking) == {"15.25": 1, "35.36": 2, "3.74": 3, "62.84": 4, "ResNet44": None, CONSTANT: None}
    assert [segment.winners for segment in ranking.winners] == [("62.84",), ("35.36",), ("15.25",), ("3.74",)]
    assert ranking.front.members == ("3.74", "15.25", "35.36", "62.84")


def test_scores_that_differ_by_rounding_alone_tie() -> None:
    """0.5 (0.3 + 0.1) and 0.5 (0.1 + 0.3), as sizes and accuracies with different last digits."""
    teacher = model("T", 1000, 1.0)
    ranking = rank([model("a", 300, 0.9), model("b", 100, 0.7), model("c", 900, 0.1)], teacher)
    scores = [value(ranking.row(name).score) for name in ("a", "b")]
    assert scores[0] == pytest.approx(scores[1], abs=1e-15)
    assert ranks(ranking) == {"a": 1, "b": 1, "c": 2, "T": None, CONSTANT: None}


@given(teachers, alphas)
def test_t1_the_teacher_itself_scores_alpha(teacher: Measured, alpha: float) -> None:
    row = rank([model("S", 1, 0.5)], teacher, alpha=alpha).row("T")
    assert (row.kind, row.rank, value(row.score)) == ("teacher", None, alpha)
    assert (value(row.log_size), row.gain) == (alpha, Unknown("the teacher is not distilled"))


@given(st.integers(1, 949).map(lambda k: k / 1000), alphas)
def test_t2_the_constant_predictor_has_no_size_and_guesses(majority: float, alpha: float) -> None:
    row = rank([model("S", 50, 0.9)], TEACHER, alpha=alpha, majority=Accuracy(majority, "fraction")).row(CONSTANT)
    assert (row.kind, row.rank, row.size, row.ratios.size) == ("constant", None, None, 0.0)
    assert value(row.score) == pytest.approx((1 - alpha) * (1 - majority / 0.95))
    assert value(row.log_size) == value(row.score)
    # P10: once chance is taken off, guessing is worth nothing.
    assert value(row.chance_adjusted) == 1 - alpha


def test_t2_it_can_beat_everybody_and_the_students_are_told() -> None:
    majority = Accuracy(0.5, "fraction")
    ranking = rank([model("S", 45, 0.9), model("worse", 99, 0.5)], model("T", 100, 0.9), majority=majority)
    assert [row.name for row in ranking.rows] == [CONSTANT, "S", "T", "worse"]
    assert ranking.row("S").warnings == ("always answering the largest class scores better (0.2222)",)
    assert ranking.row("worse").warnings == (
        "keeping the teacher scores better (0.5)",
        "always answering the largest class scores better (0.2222)",
    )
    assert [segment.winners for segment in ranking.winners] == [("S",)]
    assert [segment.winners for segment in ranking.winners_of_all] == [("S",), (CONSTANT,)]
    adjusted = [value(ranking.row(name).chance_adjusted) for name in ("S", CONSTANT)]
    assert adjusted == pytest.approx([0.225, 0.5])


def test_without_its_rate_the_constant_predictor_is_listed_as_unknown() -> None:
    row = rank([model("S", 50, 0.9)], TEACHER).rows[-1]
    unknown = Unknown("the rate of the largest class is unknown")
    assert (row.name, row.score, row.chance_adjusted) == (CONSTANT, unknown, unknown)
    assert rank([model("S", 50, 0.9)], TEACHER).row("S").chance_adjusted == unknown


def test_all_companions_stand_in_the_row() -> None:
    accuracies = tuple(Accuracy(a, "fraction") for a in (0.6, 0.8))
    teacher = model("T", 100, 0.9, per_class=tuple(Accuracy(a, "fraction") for a in (0.8, 1.0)))
    student = model("S", 10, 0.7, per_class=accuracies)
    ranking = rank(
        [student, model("lone", 20, 0.8)], teacher, majority=Accuracy(0.5, "fraction"), plain={"S": model("P", 10, 0.6)}
    )
    row = ranking.row("S")
    assert value(row.score) == pytest.approx(0.05 + 0.5 * (1 - 7 / 9))
    assert value(row.chance_adjusted) == pytest.approx(0.05 + 0.5 * (1 - 0.2 / 0.4))
    assert value(row.log_size) == pytest.approx(0.5 * (1 - 1 / 3) + 0.5 * (1 - 7 / 9))
    assert value(row.worst_class) == pytest.approx(0.05 + 0.5 * (1 - 0.6 / 0.8))
    assert value(row.balanced) == pytest.approx(0.05 + 0.5 * (1 - 0.7 / 0.9))
    assert value(row.gain) == pytest.approx(0.5 * 0.1 / 0.9)
    assert value(row.gap_closed) == pytest.approx(0.1 / 0.3)
    constant = ranking.row(CONSTANT)
    assert value(constant.worst_class) == 0.5
    assert value(constant.balanced) == pytest.approx(0.5 * (1 - 0.5 / 0.9))
    no_plain = Unknown("the accuracy of 'lone' without a teacher is not known")
    assert (ranking.row("lone").gain, ranking.row("lone").gap_closed) == (no_plain, no_plain)


def test_unknown_students_come_last_and_have_no_rank() -> None:
    ranking = rank([model("a", None, 0.9), model("b", 10, 0.8), model("c", 10, None)], TEACHER, majority=TENTH)
    assert [(row.name, row.rank) for row in ranking.rows[-2:]] == [("a", None), ("c", None)]
    assert ranking.row("a").score == Unknown("the size of 'a' is unknown")
    assert [segment.winners for segment in ranking.winners] == [("b",)]
    assert ranking.front.unknown == ("a", "c")


def test_under_a_teacher_of_unknown_accuracy_nobody_has_an_adjusted_score() -> None:
    ranking = rank([model("S", 10, 0.8)], model("T", 100, None), majority=TENTH)
    assert {row.chance_adjusted for row in ranking.rows} == {Unknown("the accuracy of 'T' is unknown")}


def test_a_teacher_at_chance_leaves_only_the_adjusted_scores_unknown() -> None:
    ranking = rank([model("S", 10, 0.1)], model("T", 100, 0.1), majority=TENTH)
    assert {row.chance_adjusted for row in ranking.rows} == {Unknown("the teacher's 0.1 is at or below chance (0.1)")}
    assert value(ranking.row("S").score) == pytest.approx(0.05)


def test_a_larger_student_is_warned_of() -> None:
    warnings = rank([model("S", 200, 0.95)], TEACHER).row("S").warnings
    assert warnings == (
        "the student is larger than its teacher (size ratio 2): nothing bounds its score",
        "keeping the teacher scores better (0.5)",
    )


def test_without_students_the_reference_rows_remain() -> None:
    ranking = rank([], TEACHER, majority=TENTH)
    assert {row.name for row in ranking.rows} == {"T", CONSTANT}
    assert ranking.winners == ()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (({"teacher": "R110"}, {"teacher": "R56"}), r"different teachers: R56 and R110 \[models 'T' and 'a'\]"),
        (({}, {"teacher": "R56"}), r"different teachers: T and R56 \[models 'T' and 'b'\]"),
        (({"dataset": "mnist"}, {"dataset": "cifar"}), r"different data sets: mnist and cifar \[models 'a' and 'b'\]"),
        (({"split": "test"}, {"split": "validation"}), r"different splits: test and validation \[models 'a' and 'b'\]"),
    ],
)
def test_other_comparisons_are_refused(labels: tuple[dict[str, str], dict[str, str]], message: str) -> None:
    name = "R56" if "R56" in message and "'T' and 'a'" in message else "T"
    students = [model("a", 10, 0.8, **labels[0]), model("b", 20, 0.9, **labels[1])]
    with pytest.raises(KdbenchError, match=message.replace("'T'", f"'{name}'")) as caught:
        rank(students, model(name, 100, 0.95))
    assert caught.value.cure == "compare students under one teacher, on one data set and one split"


def test_the_teacher_is_measured_on_the_same_data() -> None:
    students = [model("a", 10, 0.8, dataset="mnist", split="test")]
    with pytest.raises(KdbenchError, match=r"different data sets: cifar and mnist \[models 'T' and 'a'\]"):
        rank(students, model("T", 100, 0.9, dataset="cifar", split="test"))
    assert rank(students, model("T", 100, 0.9, teacher="TT", dataset="mnist", split="test")).row("a").rank == 1


def test_units_are_not_mixed() -> None:
    with pytest.raises(KdbenchError, match=r"accuracy in mixed units: fraction and percent \[models 'T' and 'a'\]"):
        rank([percent("a", 10, 80)], TEACHER)
    with pytest.raises(KdbenchError, match=r"accuracy in mixed units.*'constant predictor'"):
        rank([model("a", 10, 0.8)], TEACHER, majority=Accuracy(10, "percent"))


@pytest.mark.parametrize("name", ["T", CONSTANT])
def test_rows_have_names_of_their_own(name: str) -> None:
    with pytest.raises(KdbenchError, match=f"two rows are called '{name}'"):
        rank([model(name, 10, 0.8)], TEACHER)
    with pytest.raises(KdbenchError, match="two different models are called 'a'"):
        rank([model("a", 10, 0.8), model("a", 11, 0.8)], TEACHER)


def test_plain_students_belong_to_a_student() -> None:
    with pytest.raises(KdbenchError, match="unknown student 'b'"):
        rank([model("a", 10, 0.8)], TEACHER, plain={"b": model("b", 10, 0.7)})
    with pytest.raises(KdbenchError, match="unknown row 'b'"):
        rank([model("a", 10, 0.8)], TEACHER).row("b")

"""P9 and the other companions: the gain by distillation, the gap closed, the log-size variant, scores by class."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from survey_models import alphas, fractions, model, percent, positive_fractions, sizes, value

from kdbench_survey_metric.companions import (
    balanced_score,
    gap_closed,
    log_size_score,
    score_gain,
    worst_class_score,
)
from kdbench_survey_metric.score import Accuracy, Known, Measured, Unknown, distillation_score


def classes(*values: float | None) -> tuple[Accuracy | None, ...]:
    return tuple(None if one is None else Accuracy(one, "fraction") for one in values)


@given(sizes, fractions, fractions, sizes, positive_fractions, alphas)
def test_p9_the_gain_is_the_difference_of_two_scores_and_free_of_size(
    size: int, with_teacher: float, without: float, size_t: int, accuracy_t: float, alpha: float
) -> None:
    assume(size / size_t < 1e3)
    teacher = model("T", size_t, accuracy_t)
    distilled, plain = model("KD", size, with_teacher), model("plain", size, without)
    gain = value(score_gain(distilled, plain, teacher, alpha))
    scores = [value(distillation_score(student, teacher, alpha)) for student in (plain, distilled)]
    assert gain == pytest.approx(scores[0] - scores[1], abs=1e-9)
    assert gain == pytest.approx((1 - alpha) * (with_teacher - without) / accuracy_t, abs=1e-9)
    no_size = [model(m.name, None, m.accuracy.value) for m in (distilled, plain, teacher) if m.accuracy]
    assert value(score_gain(no_size[0], no_size[1], no_size[2], alpha)) == gain


@given(fractions, st.integers(0, 900), st.integers(20, 1000))
def test_gap_closed_is_a_share_of_the_way_to_the_teacher(distilled: float, base: int, gap: int) -> None:
    assume(base + gap <= 1000)
    plain, teacher = base / 1000, (base + gap) / 1000
    share = value(gap_closed(model("KD", 1, distilled), model("plain", 1, plain), model("T", 10, teacher)))
    assert plain + share * (teacher - plain) == pytest.approx(distilled, abs=1e-9)
    in_percent = gap_closed(
        percent("KD", 1, 100 * distilled), percent("plain", 1, 100 * plain), percent("T", 10, 100 * teacher)
    )
    assert value(in_percent) == pytest.approx(share, abs=1e-9)


def test_gap_closed_is_unknown_where_there_is_no_gap() -> None:
    distilled = percent("KD", 1, 71)
    for base in (90.0, 89.2, 95.0):
        outcome = gap_closed(distilled, percent("plain", 1, base), percent("T", 10, 90))
        assert outcome == Unknown(
            f"no gap to close: the teacher's 90 % is not 1 points above the {base:g} % of the student without a teacher"
        )
    near = gap_closed(distilled, percent("plain", 1, 89.2), percent("T", 10, 90), smallest_gap=0.005)
    assert value(near) == pytest.approx((71 - 89.2) / 0.8)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_without_an_accuracy_there_is_neither_gain_nor_gap(missing: int) -> None:
    models = [model(name, 1, None if i == missing else 0.5 + i / 10) for i, name in enumerate(("KD", "plain", "T"))]
    reason = Unknown(f"the accuracy of '{models[missing].name}' is unknown")
    assert score_gain(models[0], models[1], models[2], 0.5) == reason
    assert gap_closed(models[0], models[1], models[2]) == reason


@given(sizes, positive_fractions, alphas, st.integers(1, 50))
def test_in_the_log_variant_every_halving_is_worth_the_same(
    size: int, accuracy: float, alpha: float, factor: int
) -> None:
    teacher = model("T", size, accuracy)
    assert value(log_size_score(model("S", size, accuracy), teacher, alpha)) == alpha
    chain = [value(log_size_score(model("S", size / factor**k, accuracy), teacher, alpha, span=1e6)) for k in range(4)]
    steps = [a - b for a, b in pairwise(chain)]
    assert steps == pytest.approx([steps[0]] * 3, abs=1e-9)


def test_the_log_variant_ranks_differently_and_ends_at_its_span() -> None:
    teacher = model("T", 1000, 0.9)
    large, small = model("large", 100, 0.85), model("small", 10, 0.74)
    pairs = [
        (value(score(large, teacher, 0.5)), value(score(small, teacher, 0.5)))
        for score in (distillation_score, log_size_score)
    ]
    assert pairs[0][0] < pairs[0][1]
    assert pairs[1][0] > pairs[1][1]
    assert value(log_size_score(model("S", 1, 0.9), teacher, 0.5)) == 0.0
    assert value(log_size_score(model("S", 0.1, 0.9), teacher, 0.5)) == 0.0
    larger = log_size_score(model("S", 2000, 0.9), teacher, 0.5)
    assert isinstance(larger, Known)
    assert larger.value > 0.5
    assert larger.warnings
    assert log_size_score(model("S", None, 0.9), teacher, 0.5) == Unknown("the size of 'S' is unknown")


def test_scores_by_class_show_what_the_average_hides() -> None:
    teacher = model("T", 100, 0.9, per_class=classes(0.9, 0.8, 1.0))
    student = model("S", 20, 0.9, per_class=classes(1.0, 0.2, 0.9))
    assert value(distillation_score(student, teacher, 0.5)) == pytest.approx(0.1)
    assert value(worst_class_score(student, teacher, 0.5)) == pytest.approx(0.5 * 0.2 + 0.5 * (1 - 0.2 / 0.8))
    assert value(balanced_score(student, teacher, 0.5)) == pytest.approx(0.5 * 0.2 + 0.5 * (1 - 0.7 / 0.9))
    assert value(worst_class_score(teacher, teacher, 0.3)) == 0.3
    assert value(balanced_score(teacher, teacher, 0.3)) == 0.3


@given(st.lists(st.integers(1, 10), min_size=2, max_size=6), st.randoms(use_true_random=False), alphas)
def test_classes_may_stand_in_any_order(counts: list[int], random: Random, alpha: float) -> None:
    teacher = model("T", 10, 0.9, per_class=classes(*[0.9] * len(counts)))
    shuffled = list(counts)
    random.shuffle(shuffled)
    one, other = (model("S", 3, 0.5, per_class=classes(*[k / 10 for k in order])) for order in (counts, shuffled))
    for score in (worst_class_score, balanced_score):
        assert score(one, teacher, alpha) == score(other, teacher, alpha)


@pytest.mark.parametrize(
    ("student", "teacher", "reason"),
    [
        ((), (0.5, 0.5), "the accuracies by class of 'S' are unknown"),
        ((0.5, 0.5), (), "the accuracies by class of 'T' are unknown"),
        ((0.5, None), (0.5, 0.5), "class 1 of 'S' has no accuracy"),
        ((0.5, 0.5), (None, 0.5), "class 0 of 'T' has no accuracy"),
    ],
)
def test_unknown_classes(student: tuple[float | None, ...], teacher: tuple[float | None, ...], reason: str) -> None:
    models = model("S", 1, 0.5, per_class=classes(*student)), model("T", 2, 0.5, per_class=classes(*teacher))
    for score in (worst_class_score, balanced_score):
        assert score(*models, 0.5) == Unknown(reason)


def test_a_teacher_that_misses_a_class_leaves_the_worst_class_unknown() -> None:
    student: Measured = model("S", 1, 0.5, per_class=classes(0.5, 0.5))
    teacher = model("T", 2, 0.5, per_class=classes(0.0, 1.0))
    assert worst_class_score(student, teacher, 0.5) == Unknown(
        "the accuracy of 'T' on its worst class is 0, so nothing is relative to it"
    )
    assert value(balanced_score(student, teacher, 0.5)) == 0.25
    assert worst_class_score(model("S", None, 0.5, per_class=classes(1, 1)), teacher, 0.5) == Unknown(
        "the size of 'S' is unknown"
    )

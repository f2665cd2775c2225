"""What stands beside the score: the gain by distillation, the gap closed, a log-size variant, and scores by class.

None of these is in the survey. r and q are the ratios to the teacher, as in :mod:`kdbench_survey_metric.score`.
"""

from __future__ import annotations

import math

from kdbench.errors import KdbenchError
from kdbench_survey_metric.measured import Known, Measured, Outcome, Unknown, check_comparable, finite
from kdbench_survey_metric.score import (
    check_alpha,
    formula,
    given,
    larger,
    missing,
    ratios,
    score_of_ratios,
    teacher_accuracy,
)

__all__ = [
    "LOG_SPAN",
    "SMALLEST_GAP",
    "balanced_score",
    "class_summary",
    "gap_closed",
    "log_size",
    "log_size_score",
    "score_gain",
    "worst_class_score",
]

SMALLEST_GAP = 0.01
"""Project choice: a teacher less than a percentage point above the student without a teacher leaves no gap to close."""

LOG_SPAN = 1000.0
"""Project choice: the reduction in size from which on the log-size variant counts a student as having no size."""


def score_gain(distilled: Measured, plain: Measured, teacher: Measured, alpha: float) -> Outcome:
    """What distillation takes off the score of one student: dDS = DS(plain) - DS(distilled). Ours.

    dDS = (1 - alpha) * (acc_distilled - acc_plain) / acc_T

    It does not depend on sizes, so it is known where they are not. Above 0, distillation helped.

    Raises
    ------
    KdbenchError : as :func:`distillation_score`; the two students differ in size, so they are not one network.
    """
    check_alpha(alpha)
    unknown = _triple(distilled, plain, teacher)
    if unknown:
        return unknown
    gain = (given(distilled.accuracy) - given(plain.accuracy)) / teacher_accuracy(teacher)
    return Known((1.0 - alpha) * gain)


def gap_closed(
    distilled: Measured, plain: Measured, teacher: Measured, *, smallest_gap: float = SMALLEST_GAP
) -> Outcome:
    """Share of the gap to the teacher that distillation closed. Ours.

    G = (acc_distilled - acc_plain) / (acc_T - acc_plain)

    Unknown where the teacher is less than ``smallest_gap`` (a fraction of 1, whatever the unit) above the student
    without a teacher: near 0 the ratio is noise, and below 0 its sign turns round.
    """
    unknown = _triple(distilled, plain, teacher)
    if unknown:
        return unknown
    assert teacher.accuracy is not None
    base = given(plain.accuracy)
    gap = teacher.accuracy.value - base
    if gap < smallest_gap * teacher.accuracy.whole:
        return Unknown(
            f"no gap to close: the teacher's {teacher.accuracy} is not {100 * smallest_gap:g} points above "
            f"the {plain.accuracy} of the student without a teacher"
        )
    return Known((given(distilled.accuracy) - base) / gap)


def log_size(size_ratio: float, span: float = LOG_SPAN) -> float:
    """The size term of :func:`log_size_score`: 1 at the teacher's size, 0 from a reduction by ``span`` on."""
    if not finite(span, "span", where="log-size variant") > 1:
        raise KdbenchError(f"span is {span:g}, not above 1", where="log-size variant", cure="for instance 1000")
    if size_ratio <= 1.0 / span:
        return 0.0
    return 1.0 + math.log(size_ratio) / math.log(span)


def log_size_score(student: Measured, teacher: Measured, alpha: float, *, span: float = LOG_SPAN) -> Outcome:
    """DS with a size term in which every halving is worth the same. Ours; it ranks differently.

    DS_log = alpha * max(0, 1 + log(r) / log(span)) + (1 - alpha) * (1 - q)

    In DS itself 100 % to 50 % of the size is worth ten times as much as 10 % to 1 %. The teacher still scores alpha.
    """
    check_alpha(alpha)
    plain = ratios(student, teacher)
    if isinstance(plain.size, Unknown) or isinstance(plain.accuracy, Unknown):
        return score_of_ratios(plain, alpha)
    value = formula(log_size(plain.size, span), plain.accuracy, alpha)
    return Known(value, plain.warnings + larger(plain.size))


def worst_class_score(student: Measured, teacher: Measured, alpha: float) -> Outcome:
    """DS of the accuracies on each model's own worst class: what an average over classes hides. Ours.

    DS_w = alpha * r + (1 - alpha) * (1 - min_k acc_S[k] / min_k acc_T[k])
    """
    return _score_by_class(student, teacher, alpha, worst=True)


def balanced_score(student: Measured, teacher: Measured, alpha: float) -> Outcome:
    """DS of balanced accuracies (means over classes), in which every class weighs the same. Ours.

    DS_b = alpha * r + (1 - alpha) * (1 - mean_k acc_S[k] / mean_k acc_T[k])
    """
    return _score_by_class(student, teacher, alpha, worst=False)


def class_summary(model: Measured, *, worst: bool) -> float | Unknown:
    """Accuracy on the worst class, or the mean over classes, in the unit of the accuracies; Unknown where one is."""
    if not model.per_class:
        return Unknown(f"the accuracies by class of '{model.name}' are unknown")
    values = [accuracy.value for accuracy in model.per_class if accuracy is not None]
    if len(values) < len(model.per_class):
        return Unknown(f"class {model.per_class.index(None)} of '{model.name}' has no accuracy")
    return min(values) if worst else math.fsum(values) / len(values)


def _score_by_class(student: Measured, teacher: Measured, alpha: float, *, worst: bool) -> Outcome:
    check_alpha(alpha)
    check_comparable([student], teacher)
    unknown = missing(student, "size") or missing(teacher, "size")
    if unknown:
        return unknown
    own, base = class_summary(student, worst=worst), class_summary(teacher, worst=worst)
    if isinstance(own, Unknown):
        return own
    if isinstance(base, Unknown):
        return base
    if len(student.per_class) != len(teacher.per_class):
        raise KdbenchError(
            f"per_class has {len(student.per_class)} classes, its teacher's {len(teacher.per_class)}",
            where=f"models '{teacher.name}' and '{student.name}'",
            cure="measure both on the same classes",
        )
    if base == 0:
        what = "worst class" if worst else "every class"
        return Unknown(f"the accuracy of '{teacher.name}' on its {what} is 0, so nothing is relative to it")
    size_ratio = given(student.size) / given(teacher.size)
    return Known(formula(size_ratio, own / base, alpha), larger(size_ratio))


def _triple(distilled: Measured, plain: Measured, teacher: Measured) -> Unknown | None:
    """Check a student with and without distillation and its teacher; says which of their accuracies is unknown."""
    check_comparable([distilled, plain], teacher)
    if distilled.size is not None and plain.size is not None and distilled.size != plain.size:
        raise KdbenchError(
            f"size is {distilled.size} with distillation and {plain.size} without",
            where=f"students '{distilled.name}' and '{plain.name}'",
            cure="compare one network, trained with and without a teacher",
        )
    return next((reason for m in (distilled, plain, teacher) if (reason := missing(m, "accuracy"))), None)

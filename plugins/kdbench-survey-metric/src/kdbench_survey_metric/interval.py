"""Intervals of the score and its companions, from which test examples were answered correctly by whom.

Sizes are fixed; accuracies vary with the test examples and with the seed of the training, and both are drawn anew by
:mod:`kdbench_survey_metric.bootstrap`.
"""

from __future__ import annotations

import msgspec
import numpy as np

from kdbench.errors import KdbenchError
from kdbench_survey_metric.bootstrap import DRAWS, Array, Interval, Means, Outcomes, Sample, outcomes
from kdbench_survey_metric.companions import SMALLEST_GAP
from kdbench_survey_metric.measured import Unknown, finite
from kdbench_survey_metric.score import Ratios, check_alpha, formula

__all__ = [
    "DRAWS",
    "Interval",
    "Outcomes",
    "ScoreIntervals",
    "difference_interval",
    "outcomes",
    "score_intervals",
    "unpaired_standard_error",
]


class ScoreIntervals(msgspec.Struct, frozen=True, kw_only=True):
    """The intervals of one student under its teacher: DS, chance-adjusted DS, dDS and the share of the gap closed."""

    score: Interval | Unknown
    chance_adjusted: Interval | Unknown
    gain: Interval | Unknown
    gap_closed: Interval | Unknown


def score_intervals(
    outcomes: Outcomes,
    *,
    size_ratio: float | None,
    alpha: float,
    chance: float | None = None,
    smallest_gap: float = SMALLEST_GAP,
    draws: int = DRAWS,
    seed: int = 0,
) -> ScoreIntervals:
    """Intervals of a student's scores.

    Parameters
    ----------
    size_ratio : size of the student / size of the teacher; None where unknown, as is then what depends on it.
    alpha : weight of the size, in [0, 1].
    chance : rate of the largest class as a fraction; None where unknown.
    smallest_gap : see :func:`kdbench_survey_metric.companions.gap_closed`.
    draws, seed : number of bootstrap draws, and the seed of their generator: equal input gives equal intervals.

    Raises
    ------
    KdbenchError : ``alpha`` outside [0, 1], a negative ``size_ratio``, ``chance`` outside [0, 1), ``draws`` below 1.
    """
    check_alpha(alpha)
    ratio = _size_ratio(size_ratio)
    arrays = {"student": outcomes.student, "teacher": outcomes.teacher}
    if outcomes.plain is not None:
        arrays["plain"] = outcomes.plain
    sample = Sample(arrays, draws, seed)
    if chance is not None and not 0 <= finite(chance, "chance", where="rate of the largest class") < 1:
        raise KdbenchError(
            f"chance is {chance:g}, outside [0, 1)", where="rate of the largest class", cure="give it as a fraction"
        )
    no_size, no_plain = "the size ratio is unknown", "there is no student without a teacher"

    def score(means: Means, base: float = 0.0) -> Array:
        return formula(ratio, _divided(means["student"] - base, means["teacher"] - base), alpha)

    def gain(means: Means) -> Array:
        return (1.0 - alpha) * _divided(means["student"] - means["plain"], means["teacher"])

    def closed(means: Means) -> Array:
        return _divided(means["student"] - means["plain"], means["teacher"] - means["plain"], least=smallest_gap)

    always_wrong, no_gap = (
        "the teacher is always wrong",
        f"the gap to the teacher is below {100 * smallest_gap:g} points",
    )
    no_chance = no_size if size_ratio is None else "the rate of the largest class is unknown"
    return ScoreIntervals(
        score=Unknown(no_size) if size_ratio is None else sample.interval(score, always_wrong),
        chance_adjusted=Unknown(no_chance)
        if size_ratio is None or chance is None
        else sample.interval(lambda means: score(means, chance), "the teacher is at or below chance"),
        gain=Unknown(no_plain) if outcomes.plain is None else sample.interval(gain, always_wrong),
        gap_closed=Unknown(no_plain) if outcomes.plain is None else sample.interval(closed, no_gap),
    )


def difference_interval(
    first: Outcomes,
    second: Outcomes,
    *,
    size_ratios: tuple[float, float],
    alpha: float,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval | Unknown:
    """Interval of DS(first) - DS(second) under one teacher, from the same draws for both; below 0 the first is better.

    Raises
    ------
    KdbenchError : as :func:`score_intervals`; the two have not the same teacher's outcomes.
    """
    check_alpha(alpha)
    if not np.array_equal(first.teacher, second.teacher):
        raise KdbenchError(
            "the teachers of the two students answered differently",
            where="outcomes of teacher",
            cure="compare students of one teacher, with the same seeds on the same test examples",
        )
    ratios = _size_ratio(size_ratios[0]), _size_ratio(size_ratios[1])
    arrays = {"first": first.student, "second": second.student, "teacher": first.teacher}

    def difference(means: Means) -> Array:
        one, other = (
            formula(ratio, _divided(means[name], means["teacher"]), alpha)
            for ratio, name in zip(ratios, ("first", "second"), strict=True)
        )
        return one - other

    return Sample(arrays, draws, seed).interval(difference, "the teacher is always wrong")


def unpaired_standard_error(
    student: float, teacher: float, *, alpha: float, student_examples: int, teacher_examples: int
) -> float:
    """Standard error of DS where only two accuracies (fractions above 0) are known, each from its own test examples.

    se = (1 - alpha) q sqrt((1 - a_S) / (a_S n_S) + (1 - a_T) / (a_T n_T))

    First-order (delta method), for numbers read off a table. It knows no spread between seeds, and two models that err
    on the same examples have a smaller one.
    """
    check_alpha(alpha)
    relative = 0.0
    for name, value, count in (("student", student, student_examples), ("teacher", teacher, teacher_examples)):
        if not (0 < finite(value, f"{name} accuracy", where="unpaired standard error") <= 1 and count >= 1):
            raise KdbenchError(
                f"{name} accuracy is {value:g} of {count} examples",
                where="unpaired standard error",
                cure="give a fraction above 0 and up to 1, of at least one example",
            )
        relative += (1.0 - value) / (value * count)
    return float((1.0 - alpha) * (student / teacher) * relative**0.5)


def _size_ratio(value: float | None) -> float:
    """A checked size ratio; NaN where it is unknown."""
    if value is None:
        return float("nan")
    size = Ratios(size=value, accuracy=1.0).size
    assert not isinstance(size, Unknown)
    return size


def _divided(part: Array, whole: Array, *, least: float = 0.0) -> Array:
    """part / whole, NaN where whole is not above 0 or is below ``least``."""
    defined = (whole > 0) & (whole >= least)
    return np.where(defined, part / np.where(defined, whole, 1.0), np.nan)

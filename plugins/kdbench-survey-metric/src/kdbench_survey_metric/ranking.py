"""Students ranked under one common teacher, beside the teacher itself and the model that always says the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import msgspec

from kdbench.errors import KdbenchError, unknown
from kdbench_survey_metric import companions
from kdbench_survey_metric.front import Front, front
from kdbench_survey_metric.lines import Line, Segment, line, winners
from kdbench_survey_metric.measured import (
    Accuracy,
    Known,
    Measured,
    Outcome,
    Size,
    Unknown,
    check_comparable,
    distinct,
)
from kdbench_survey_metric.score import (
    Ratios,
    chance_adjusted_score,
    check_alpha,
    constant_predictor,
    formula,
    ratios,
    score_of_ratios,
)

__all__ = ["CONSTANT", "Kind", "Ranking", "Row", "rank"]

CONSTANT = "constant predictor"
Kind = Literal["student", "teacher", "constant"]

# Scores that are equal on paper differ by rounding in the last digits; that is a tie.
_ROUNDING = 1e-12


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a ranking.

    Attributes
    ----------
    name, kind : a ``student``, the ``teacher`` itself (it scores alpha), or the ``constant`` predictor (size 0).
    rank : place among the students, from 1; students that tie share it, and the next place follows without a hole, so
        that a student listed twice moves nobody. None for the other rows and where the score is unknown.
    size, accuracy, ratios : what the score is made of; no size for the constant predictor.
    score : DS at the ranking's alpha.
    chance_adjusted, log_size, worst_class, balanced : variants of DS at the same alpha.
    gain, gap_closed : dDS and the share of the gap closed, against the same student without a teacher.
    warnings : what the reader must know before believing the score.
    """

    name: str
    kind: Kind
    rank: int | None = None
    size: Size | None
    accuracy: Accuracy | None
    ratios: Ratios
    score: Outcome
    chance_adjusted: Outcome
    log_size: Outcome
    worst_class: Outcome
    balanced: Outcome
    gain: Outcome
    gap_closed: Outcome
    warnings: tuple[str, ...] = ()


class Ranking(msgspec.Struct, frozen=True, kw_only=True):
    """The comparison of students under one teacher.

    Attributes
    ----------
    rows : students, teacher and constant predictor by score, lowest first, unknown ones last; equal ones by name.
    winners : the student with the lowest score, for every alpha.
    winners_of_all : the same with the teacher and the constant predictor among the competitors.
    front : the students that no other beats in size and accuracy, which no single alpha can show.
    """

    teacher: str
    alpha: float
    rows: tuple[Row, ...]
    winners: tuple[Segment, ...]
    winners_of_all: tuple[Segment, ...]
    front: Front

    def row(self, name: str) -> Row:
        """The row of that name."""
        found = next((row for row in self.rows if row.name == name), None)
        if found is None:
            raise unknown("row", name, [row.name for row in self.rows])
        return found


def rank(
    students: Iterable[Measured],
    teacher: Measured,
    *,
    alpha: float = 0.5,
    majority: Accuracy | None = None,
    plain: Mapping[str, Measured] | None = None,
) -> Ranking:
    """Rank students under their common teacher.

    Parameters
    ----------
    students : in any order; a student that is given twice counts once.
    teacher : measured on the same data and split, in the same units.
    alpha : weight of the size, in [0, 1].
    majority : accuracy of always answering the largest class, in the unit of the accuracies. It makes the row of the
        constant predictor, and is the chance level of the adjusted scores. None where unknown.
    plain : by name of the student, the same network trained without a teacher.

    Raises
    ------
    KdbenchError : the students have different teachers, data sets, splits or units, which no score compares; two rows
        have one name; alpha is outside [0, 1]; the teacher's accuracy is 0; ``plain`` names no student.
    """
    check_alpha(alpha)
    students = distinct(students)
    baselines = dict(plain or {})
    names = [student.name for student in students]
    check_comparable([*students, *(baselines[name] for name in sorted(baselines))], teacher)
    for name in (teacher.name, CONSTANT):
        if name in names or teacher.name == CONSTANT:
            raise KdbenchError(
                f"two rows are called '{name}'", where=f"model '{name}'", cure="give the student another name"
            )
    for name in baselines:
        if name not in names:
            raise unknown("student", name, names)
    rows = [_student(student, teacher, alpha, majority, baselines.get(student.name)) for student in students]
    constant = _constant(teacher, alpha, majority)
    ranked = _ranked(rows, constant, alpha)
    references = [_teacher(teacher, alpha, majority), constant]
    return Ranking(
        teacher=teacher.name,
        alpha=alpha,
        rows=tuple(sorted([*ranked, *references], key=_order)),
        winners=winners(_lines(rows)),
        winners_of_all=winners(_lines([*rows, *references])),
        front=front(students),
    )


def _student(
    student: Measured, teacher: Measured, alpha: float, majority: Accuracy | None, plain: Measured | None
) -> Row:
    no_plain = Unknown(f"the accuracy of '{student.name}' without a teacher is not known")
    score = score_of_ratios(ratios(student, teacher), alpha)
    return _row(
        student,
        teacher,
        "student",
        alpha,
        majority,
        gain=companions.score_gain(student, plain, teacher, alpha) if plain else no_plain,
        gap_closed=companions.gap_closed(student, plain, teacher) if plain else no_plain,
        warnings=score.warnings if isinstance(score, Known) else (),
    )


def _teacher(teacher: Measured, alpha: float, majority: Accuracy | None) -> Row:
    itself = Unknown("the teacher is not distilled")
    # Its label, if any, names its own teacher, which is not who it is compared with here.
    under_itself = msgspec.structs.replace(teacher, teacher="")
    return _row(under_itself, under_itself, "teacher", alpha, majority, gain=itself, gap_closed=itself, warnings=())


def _row(
    model: Measured,
    teacher: Measured,
    kind: Kind,
    alpha: float,
    majority: Accuracy | None,
    *,
    gain: Outcome,
    gap_closed: Outcome,
    warnings: tuple[str, ...],
) -> Row:
    return Row(
        name=model.name,
        kind=kind,
        size=model.size,
        accuracy=model.accuracy,
        ratios=ratios(model, teacher),
        score=score_of_ratios(ratios(model, teacher), alpha),
        chance_adjusted=_adjusted(
            teacher, majority, lambda chance: chance_adjusted_score(model, teacher, alpha, chance)
        ),
        log_size=companions.log_size_score(model, teacher, alpha),
        worst_class=companions.worst_class_score(model, teacher, alpha),
        balanced=companions.balanced_score(model, teacher, alpha),
        gain=gain,
        gap_closed=gap_closed,
        warnings=warnings,
    )


def _constant(teacher: Measured, alpha: float, majority: Accuracy | None) -> Row:
    """The row of the constant predictor: no size, right on one class and wrong on every other."""
    no_rate = Unknown("the rate of the largest class is unknown")
    relative = Ratios(size=0.0, accuracy=no_rate) if majority is None else constant_predictor(teacher, majority)
    score = score_of_ratios(relative, alpha)
    itself = Unknown("the constant predictor is not distilled")

    def by_class(own: float, *, worst: bool) -> Outcome:
        base = companions.class_summary(teacher, worst=worst)
        if isinstance(base, Unknown):
            return base
        return Known(formula(0.0, own / base, alpha)) if base > 0 else Unknown(f"'{teacher.name}' scores 0 by class")

    whole = teacher.accuracy.whole if teacher.accuracy else 1.0
    classes = max(1, len(teacher.per_class))
    return Row(
        name=CONSTANT,
        kind="constant",
        size=None,
        accuracy=majority,
        ratios=relative,
        score=score,
        # At chance, the adjusted accuracy is 0.
        chance_adjusted=_adjusted(teacher, majority, lambda chance: Known(formula(0.0, 0.0, alpha))),
        log_size=score,
        worst_class=by_class(0.0 if classes > 1 else whole, worst=True),
        balanced=by_class(whole / classes, worst=False),
        gain=itself,
        gap_closed=itself,
    )


def _adjusted(teacher: Measured, chance: Accuracy | None, adjusted: Callable[[Accuracy], Outcome]) -> Outcome:
    """A chance-adjusted score; unknown, not refused, under a teacher that is no better than guessing."""
    if chance is None:
        return Unknown("the rate of the largest class is unknown")
    if teacher.accuracy is None:
        return Unknown(f"the accuracy of '{teacher.name}' is unknown")
    if teacher.accuracy.value <= chance.value:
        return Unknown(f"the teacher's {teacher.accuracy} is at or below chance ({chance})")
    return adjusted(chance)


def _ranked(rows: list[Row], constant: Row, alpha: float) -> list[Row]:
    """The rows of students with their places, warned where keeping the teacher or guessing scores better."""
    ranked: list[Row] = []
    place, ahead = 0, float("-inf")
    for row in sorted(rows, key=_order):
        if isinstance(row.score, Unknown):
            ranked.append(row)
            continue
        score = row.score.value
        if score - ahead > _ROUNDING:
            place, ahead = place + 1, score
        warnings = row.warnings
        if score > alpha + _ROUNDING:
            warnings += (f"keeping the teacher scores better ({alpha:g})",)
        if isinstance(constant.score, Known) and score > constant.score.value + _ROUNDING:
            warnings += (f"always answering the largest class scores better ({constant.score.value:.4f})",)
        ranked.append(msgspec.structs.replace(row, rank=place, warnings=warnings))
    return ranked


def _order(row: Row) -> tuple[bool, float, str]:
    missing = isinstance(row.score, Unknown)
    return missing, 0.0 if isinstance(row.score, Unknown) else row.score.value, row.name


def _lines(rows: Iterable[Row]) -> list[Line]:
    return [one for row in rows if isinstance(one := line(row.name, row.ratios), Line)]

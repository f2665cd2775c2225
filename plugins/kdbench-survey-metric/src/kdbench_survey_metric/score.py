"""The distillation score, and the same score adjusted for chance.

The score is that of Alkhulaifi, Alsahli and Ahmad, "Knowledge distillation in deep learning and its applications",
PeerJ Computer Science 7:e474 (2021). Everything else here and in :mod:`kdbench_survey_metric.companions` is ours: it
says what the score alone hides.
Notation: r = size of the student / size of the teacher, q = accuracy of the student / accuracy of the teacher.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from kdbench.errors import KdbenchError
from kdbench_survey_metric.measured import (
    ACCURACY_UNITS,
    SIZE_UNITS,
    Accuracy,
    Known,
    Measured,
    Outcome,
    Size,
    Unknown,
    check_comparable,
    finite,
)

__all__ = [
    "ACCURACY_UNITS",
    "SIZE_UNITS",
    "Accuracy",
    "Known",
    "Measured",
    "Outcome",
    "Ratios",
    "Size",
    "Unknown",
    "chance_adjusted_score",
    "check_alpha",
    "constant_predictor",
    "distillation_score",
    "formula",
    "given",
    "larger",
    "missing",
    "ratios",
    "score_of_ratios",
    "teacher_accuracy",
]

Number = TypeVar("Number", float, NDArray[np.float64])


class Ratios(msgspec.Struct, frozen=True, kw_only=True):
    """All of a student that its score depends on: r (``size``) and q (``accuracy``), both relative to its teacher.

    Raises
    ------
    KdbenchError : a ratio is not finite or negative.
    """

    size: float | Unknown
    accuracy: float | Unknown
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for argument, value in (("size", self.size), ("accuracy", self.accuracy)):
            if isinstance(value, Unknown):
                continue
            ratio = finite(value, f"{argument} ratio", where="ratios to the teacher")
            if ratio < 0:
                raise KdbenchError(
                    f"{argument} ratio is {ratio:g}, below 0",
                    where="ratios to the teacher",
                    cure="sizes and accuracies are never negative; check the sign of the reduction",
                )
            msgspec.structs.force_setattr(self, argument, ratio)

    @classmethod
    def of_reductions(cls, *, size: float | None, accuracy: float | None) -> Ratios:
        """From reductions relative to the teacher in percent, as the survey lists them; None where it has a dash."""

        def ratio(reduction: float | None, argument: str) -> float | Unknown:
            if reduction is None:
                return Unknown(f"the {argument} reduction is not given")
            return 1.0 - finite(reduction, f"{argument} reduction", where="ratios to the teacher") / 100.0

        return cls(size=ratio(size, "size"), accuracy=ratio(accuracy, "accuracy"))


def formula(size_ratio: float, accuracy_ratio: Number, alpha: float) -> Number:
    """DS = alpha r + (1 - alpha) (1 - q), of numbers or of arrays of any shape; nothing is checked."""
    return alpha * size_ratio + (1.0 - alpha) * (1.0 - accuracy_ratio)


def check_alpha(alpha: float) -> float:
    """``alpha``, the weight of the size.

    Raises
    ------
    KdbenchError : it is not a finite number, or lies outside [0, 1].
    """
    value = finite(alpha, "alpha", where="weight of the size")
    if not 0.0 <= value <= 1.0:
        raise KdbenchError(
            f"alpha is {value:g}, outside [0, 1]",
            where="weight of the size",
            cure="0 counts accuracy alone, 1 counts size alone",
        )
    return value


def ratios(student: Measured, teacher: Measured) -> Ratios:
    """r and q of a student under its teacher, each formed before anything is weighted.

    Raises
    ------
    KdbenchError : the two are of different units, data or splits, or the teacher's accuracy is 0.
    """
    check_comparable([student], teacher)
    size = missing(student, "size") or missing(teacher, "size")
    accuracy = missing(student, "accuracy") or missing(teacher, "accuracy")
    return Ratios(
        size=size or given(student.size) / given(teacher.size),
        accuracy=accuracy or given(student.accuracy) / teacher_accuracy(teacher),
        warnings=tuple(text for model in (student, teacher) if (text := _suspicious(model))),
    )


def score_of_ratios(ratios: Ratios, alpha: float) -> Outcome:
    """DS of a student of which only the ratios to its teacher are known.

    Unknown where a ratio is, at every alpha: a weight of 0 does not make up for a number that nobody has.
    """
    check_alpha(alpha)
    if isinstance(ratios.size, Unknown):
        return ratios.size
    if isinstance(ratios.accuracy, Unknown):
        return ratios.accuracy
    return Known(formula(ratios.size, ratios.accuracy, alpha), ratios.warnings + larger(ratios.size))


def distillation_score(student: Measured, teacher: Measured, alpha: float) -> Outcome:
    """The survey's score of a student; lower is better, 0 is ideal.

    DS = alpha * size_S / size_T + (1 - alpha) * (1 - acc_S / acc_T)

    Keeping the teacher scores alpha. A student larger than its teacher is legal and comes with a warning: nothing
    bounds its score.

    Parameters
    ----------
    student, teacher : measured on the same split, in the same units.
    alpha : weight of the size, in [0, 1].

    Raises
    ------
    KdbenchError : alpha outside [0, 1], a teacher whose accuracy is 0, or models that do not compare.
    """
    return score_of_ratios(ratios(student, teacher), alpha)


def chance_adjusted_score(student: Measured, teacher: Measured, alpha: float, chance: Accuracy) -> Outcome:
    """DS with every accuracy a replaced by (a - c) / (1 - c), so that guessing is worth nothing. Ours.

    DS_c = alpha * size_S / size_T + (1 - alpha) * (1 - (acc_S - c) / (acc_T - c))

    A predictor without size scores exactly 1 - alpha at chance, and a student below chance more than
    1 - alpha + alpha r. With c = 0 it is DS.

    Parameters
    ----------
    chance : c, the rate of the largest class (or 1 / classes), in the unit of the accuracies.

    Raises
    ------
    KdbenchError : as :func:`distillation_score`; the teacher is at or below chance; ``chance`` has another unit.
    """
    check_alpha(alpha)
    plain = ratios(student, teacher)
    for model in (student, teacher):
        if model.accuracy is not None and model.accuracy.unit != chance.unit:
            raise KdbenchError(
                f"chance as {chance.unit}, accuracy as {model.accuracy.unit}",
                where=f"model '{model.name}'",
                cure="give both in one unit",
            )
    if teacher.accuracy is not None and teacher.accuracy.value <= chance.value:
        raise KdbenchError(
            f"teacher at or below chance: accuracy {teacher.accuracy}, chance {chance}",
            where=f"teacher '{teacher.name}'",
            cure="train a teacher that is better than guessing, or leave the adjustment out",
        )
    if isinstance(plain.size, Unknown) or isinstance(plain.accuracy, Unknown):
        return score_of_ratios(plain, alpha)
    adjusted = (given(student.accuracy) - chance.value) / (given(teacher.accuracy) - chance.value)
    return Known(formula(plain.size, adjusted, alpha), plain.warnings + larger(plain.size))


def constant_predictor(teacher: Measured, majority: Accuracy) -> Ratios:
    """The model that always answers the largest class: it has no size, and the accuracy ``majority``.

    Raises
    ------
    KdbenchError : ``majority`` is not in the unit of the teacher's accuracy, or that accuracy is 0.
    """
    check_comparable([Measured(name="constant predictor", size=None, accuracy=majority)], teacher)
    unknown = missing(teacher, "accuracy")
    return Ratios(size=0.0, accuracy=unknown or majority.value / teacher_accuracy(teacher))


def missing(model: Measured, argument: str) -> Unknown | None:
    """Why nothing follows from a ``size`` or ``accuracy`` that nobody gave; None where it is given."""
    return Unknown(f"the {argument} of '{model.name}' is unknown") if getattr(model, argument) is None else None


def given(value: Size | Accuracy | None) -> float:
    """The number of what :func:`missing` has found to be there."""
    assert value is not None
    return value.value


def teacher_accuracy(teacher: Measured) -> float:
    """The accuracy that others are divided by.

    Raises
    ------
    KdbenchError : it is 0.
    """
    value = given(teacher.accuracy)
    if value == 0:
        raise KdbenchError(
            "teacher accuracy is 0, not above 0",
            where=f"teacher '{teacher.name}'",
            cure="nothing is relative to a teacher that is always wrong; check its evaluation",
        )
    return value


def larger(size_ratio: float) -> tuple[str, ...]:
    """The warning for a student larger than its teacher."""
    if size_ratio <= 1.0:
        return ()
    return (f"the student is larger than its teacher (size ratio {size_ratio:.3g}): nothing bounds its score",)


def _suspicious(model: Measured) -> str:
    accuracy = model.accuracy
    if accuracy is None or accuracy.unit != "percent" or not 0 < accuracy.value <= 1:
        return ""
    return f"'{model.name}' has an accuracy of {accuracy}: is it a fraction?"

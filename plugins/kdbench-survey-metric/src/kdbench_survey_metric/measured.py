"""What is scored: sizes and accuracies that carry their unit, and an explicit unknown where one is missing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from typing import Literal, TypeAlias, get_args

import msgspec

from kdbench.errors import KdbenchError, unknown

__all__ = [
    "ACCURACY_UNITS",
    "SIZE_UNITS",
    "Accuracy",
    "AccuracyUnit",
    "Known",
    "Measured",
    "Outcome",
    "Size",
    "SizeUnit",
    "Unknown",
    "check_comparable",
    "distinct",
    "finite",
]

SizeUnit = Literal["parameters", "nonzero parameters", "bytes", "MACs"]
AccuracyUnit = Literal["fraction", "percent"]
SIZE_UNITS: tuple[SizeUnit, ...] = get_args(SizeUnit)
ACCURACY_UNITS: tuple[AccuracyUnit, ...] = get_args(AccuracyUnit)


class Unknown(msgspec.Struct, frozen=True, tag="unknown"):
    """A number that cannot be given, and why; it is never replaced by 0."""

    reason: str


class Known(msgspec.Struct, frozen=True, tag="known"):
    """A number, and what its reader has to be warned of."""

    value: float
    warnings: tuple[str, ...] = ()


Outcome: TypeAlias = Known | Unknown


class Size(msgspec.Struct, frozen=True):
    """The size of a network; sizes of different units are never compared.

    Pruning without structure keeps ``parameters`` and lowers ``nonzero parameters``; quantisation keeps both and lowers
    ``bytes``. So "size" alone says nothing.

    Raises
    ------
    KdbenchError : the unit is not one of ``SIZE_UNITS``, or the value is not finite or not above 0.
    """

    value: float
    unit: SizeUnit

    def __post_init__(self) -> None:
        if self.unit not in SIZE_UNITS:
            raise unknown("size unit", str(self.unit), SIZE_UNITS)
        value = finite(self.value, "size", where=f"size in {self.unit}")
        if value <= 0:
            raise KdbenchError(
                f"size is {value:g}, not above 0",
                where=f"size in {self.unit}",
                cure="count the network; where nobody knows the size, give None",
            )
        msgspec.structs.force_setattr(self, "value", value)

    def __str__(self) -> str:
        return f"{self.value:,.10g} {self.unit}"


class Accuracy(msgspec.Struct, frozen=True):
    """A score that is not negative and better when higher, in a declared unit.

    An error rate, a loss or a perplexity is none: a ratio of them means something else, so whoever has an error
    transforms it openly (accuracy = 1 - error).

    Raises
    ------
    KdbenchError : the unit is not one of ``ACCURACY_UNITS``; the value is not finite, negative, above 1 as a fraction
        or above 100 as a percentage.
    """

    value: float
    unit: AccuracyUnit

    def __post_init__(self) -> None:
        if self.unit not in ACCURACY_UNITS:
            raise unknown("accuracy unit", str(self.unit), ACCURACY_UNITS)
        where = f"accuracy as {self.unit}"
        value = finite(self.value, "accuracy", where=where)
        if value < 0:
            raise KdbenchError(
                f"accuracy is {value:g}, below 0",
                where=where,
                cure="give a score that is better when higher; turn an error rate into 1 - error first",
            )
        if value > self.whole:
            cure = "declare the unit percent, for the student and the teacher" if self.whole == 1 else "it ends at 100"
            raise KdbenchError(f"accuracy is {value:g}, above {self.whole:g}", where=where, cure=cure)
        msgspec.structs.force_setattr(self, "value", value)

    @property
    def whole(self) -> float:
        """What a model without an error has: 1 or 100."""
        return 100.0 if self.unit == "percent" else 1.0

    def __str__(self) -> str:
        return f"{self.value:g} %" if self.unit == "percent" else f"{self.value:g}"


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A student or a teacher, as far as it was measured.

    Attributes
    ----------
    name : what it is called in tables and errors.
    size, accuracy : None where nobody knows; whatever needs them is then :class:`Unknown`.
    per_class : accuracy on every class, in the order of the classes and in the unit of ``accuracy``; None for a class
        without test examples, empty where it was not measured.
    teacher : for a student, the name of its teacher. Empty labels are not checked.
    dataset, split : what ``accuracy`` was measured on.

    Raises
    ------
    KdbenchError : a size or accuracy comes without its unit, or ``per_class`` has another unit than ``accuracy``.
    """

    name: str
    size: Size | None
    accuracy: Accuracy | None
    per_class: tuple[Accuracy | None, ...] = ()
    teacher: str = ""
    dataset: str = ""
    split: str = ""

    def __post_init__(self) -> None:
        for argument, value, kind in (("size", self.size, Size), ("accuracy", self.accuracy, Accuracy)):
            if value is not None and not isinstance(value, kind):
                raise KdbenchError(
                    f"{argument} is {value!r}, without its unit",
                    where=f"model '{self.name}'",
                    cure=f"give {kind.__name__}(value, unit), or None where it is unknown",
                )
        scores = [(a.unit, self.name) for a in (self.accuracy, *self.per_class) if a is not None]
        _agree("per_class and accuracy in mixed units", scores, "give every accuracy in one unit")


def finite(value: object, argument: str, *, where: str) -> float:
    """``value`` as a float.

    Raises
    ------
    KdbenchError : it is not a number, or not finite.
    """
    number = math.nan
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    if not math.isfinite(number):
        raise KdbenchError(f"{argument} is {value!r}, not a finite number", where=where, cure="give a finite number")
    return number


def check_comparable(models: Iterable[Measured], teacher: Measured | None = None) -> None:
    """Refuse models that no score compares: other teachers, data, splits or units.

    The score rewards a weak teacher and a large one, so it says something only between students of one teacher,
    measured on one split of one data set. Labels that are empty are not checked.

    Raises
    ------
    KdbenchError : names the two models and what differs.
    """
    students = list(models)
    everyone = students if teacher is None else [teacher, *students]
    taught = [(student.teacher, student.name) for student in students]
    if teacher is not None:
        taught.insert(0, (teacher.name, teacher.name))
    label = "compare students under one teacher, on one data set and one split"
    _agree("different teachers", taught, label)
    _agree("different data sets", [(m.dataset, m.name) for m in everyone], label)
    _agree("different splits", [(m.split, m.name) for m in everyone], label)
    sizes = [(m.size.unit, m.name) for m in everyone if m.size is not None]
    _agree("size in mixed units", sizes, f"give every size in one unit: {', '.join(SIZE_UNITS)}")
    scores = [(a.unit, m.name) for m in everyone for a in (m.accuracy, *m.per_class) if a is not None]
    _agree("accuracy in mixed units", scores, f"give every accuracy in one unit: {' or '.join(ACCURACY_UNITS)}")


def distinct(models: Iterable[Measured]) -> list[Measured]:
    """Every model once, by name.

    Raises
    ------
    KdbenchError : two models that differ have one name.
    """
    by_name: dict[str, Measured] = {}
    for model in models:
        if by_name.setdefault(model.name, model) != model:
            raise KdbenchError(
                f"two different models are called '{model.name}'",
                where=f"model '{model.name}'",
                cure="give each its own name",
            )
    return [by_name[name] for name in sorted(by_name)]


def _agree(fault: str, pairs: Iterable[tuple[str, str]], cure: str) -> None:
    """Raise at the first of ``pairs`` (label, name of the model) whose label is not that of the first."""
    named = [pair for pair in pairs if pair[0]]
    for label, name in named[1:]:
        first, other = named[0]
        if label != first:
            where = f"model '{name}'" if name == other else f"models '{other}' and '{name}'"
            raise KdbenchError(f"{fault}: {first} and {label}", where=where, cure=cure)

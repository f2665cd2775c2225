"""Anybody's own numbers: a CSV file with one model a line, read without guessing.

    name,size,accuracy,role,plain
    ResNet44,660000,0.7176,teacher,
    ResNet20,270000,0.6912,student,0.6800

A number that nobody knows is an empty field or a dash; it stays unknown.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from kdbench.errors import KdbenchError, unknown
from kdbench_survey_metric.cohort import Cohort, Origin
from kdbench_survey_metric.measured import Accuracy, AccuracyUnit, Measured, Size, SizeUnit

__all__ = ["read_table"]

COLUMNS = ("name", "size", "accuracy", "role", "plain")
NEEDED = COLUMNS[:3]
ROLES = ("teacher", "student")
MISSING = ("", "-")
# Stricter than float(), which also reads 1_00 and the digits of every script.
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")

T = TypeVar("T", Size, Accuracy)


class _Line(NamedTuple):
    """One line of the file, as text; ``where`` says which."""

    where: str
    text: dict[str, str]

    def place(self, column: str) -> str:
        return f"{self.where}, column '{column}'"

    def read(self, column: str, make: Callable[[float], T]) -> T | None:
        """The number in ``column``; None where nobody knows it."""
        text = self.text.get(column, "")
        if text in MISSING:
            return None
        number = float(text) if _NUMBER.fullmatch(text) else math.nan
        if not math.isfinite(number):
            raise KdbenchError(
                f"'{text}' is not a number",
                where=self.place(column),
                cure="write 1234.5; leave the field empty where nobody knows",
            )
        try:
            return make(number)
        except KdbenchError as error:
            raise KdbenchError(error.what, where=self.place(column), cure=error.cure) from error


def read_table(
    path: Path,
    *,
    size_unit: SizeUnit,
    accuracy_unit: AccuracyUnit,
    teacher: str | None = None,
    majority: float | None = None,
) -> Cohort:
    """Students and their teacher from a CSV file.

    Parameters
    ----------
    path : columns ``name``, ``size``, ``accuracy``; optional ``role`` (``teacher`` or ``student``) and ``plain``, the
        accuracy of the same network trained without a teacher.
    size_unit, accuracy_unit : of every number in the file.
    teacher : name of the teacher's line; else the one whose role is ``teacher``, else the one named ``teacher``.
    majority : accuracy of always answering the largest class, in ``accuracy_unit``.

    Raises
    ------
    KdbenchError : names line and column of what cannot be read.
    """
    chance = None if majority is None else _majority(majority, accuracy_unit)
    lines = _lines(path)
    named = {line.text["name"]: line for line in lines}
    chosen = _teacher(path, lines, teacher)
    models = {
        name: Measured(
            name=name,
            size=line.read("size", lambda value: Size(value, size_unit)),
            accuracy=line.read("accuracy", lambda value: Accuracy(value, accuracy_unit)),
        )
        for name, line in named.items()
    }
    plain = {name: line.read("plain", lambda value: Accuracy(value, accuracy_unit)) for name, line in named.items()}
    if plain.pop(chosen) is not None:
        raise KdbenchError(
            "the teacher has an accuracy without a teacher",
            where=named[chosen].place("plain"),
            cure="leave the field empty: plain is the student's network, trained without a teacher",
        )
    base = models.pop(chosen)
    if base.accuracy is not None and base.accuracy.value == 0:
        raise KdbenchError(
            "the teacher's accuracy is 0, not above 0",
            where=named[chosen].place("accuracy"),
            cure="nothing is relative to a teacher that is always wrong",
        )
    if not models:
        raise KdbenchError("there is no student in the table", where=path, cure="add a line for each")
    return Cohort(
        origin=Origin(source=(str(path),), size_unit=size_unit),
        teacher=base,
        students=tuple(models.values()),
        plain={
            name: Measured(name=f"{name} without a teacher", size=None, accuracy=accuracy)
            for name, accuracy in plain.items()
            if accuracy is not None
        },
        majority=chance,
        answers={},
        notes=("a table holds no answers of single test examples, so no score has an interval",),
    )


def _majority(value: float, unit: AccuracyUnit) -> Accuracy:
    try:
        return Accuracy(value, unit)
    except KdbenchError as error:
        raise KdbenchError(error.what, where="--majority", cure=error.cure) from error


def _lines(path: Path) -> list[_Line]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            columns = [name.strip() for name in next(reader, [])]
            _check_columns(path, columns)
            lines = [_line(path, reader.line_num, columns, row) for row in reader if any(map(str.strip, row))]
    except UnicodeDecodeError as error:
        raise KdbenchError("the table is not text in UTF-8", where=path, cure="save it as CSV, UTF-8") from error
    except csv.Error as error:
        raise KdbenchError(f"the table does not read as CSV: {error}", where=path) from error
    except OSError as error:
        raise KdbenchError(f"the table cannot be read: {error.strerror}", where=path) from error
    seen: dict[str, _Line] = {}
    for line in lines:
        first = seen.setdefault(line.text["name"], line)
        if first is not line:
            raise KdbenchError(
                f"'{line.text['name']}' is already on {first.where.rpartition(', ')[2]}",
                where=line.place("name"),
                cure="give each line its own name",
            )
    return lines


def _check_columns(path: Path, columns: list[str]) -> None:
    where = f"{path}, line 1"
    for name in columns:
        if name not in COLUMNS:
            fault = unknown("column", name, COLUMNS)
            raise KdbenchError(fault.what, where=where, cure=fault.cure)
        if columns.count(name) > 1:
            raise KdbenchError(f"column '{name}' stands there {columns.count(name)} times", where=where)
    for name in NEEDED:
        if name not in columns:
            raise KdbenchError(f"there is no column '{name}'", where=where, cure=f"needed: {', '.join(NEEDED)}")


def _line(path: Path, number: int, columns: list[str], row: list[str]) -> _Line:
    where = f"{path}, line {number}"
    if len(row) != len(columns):
        raise KdbenchError(
            f"{len(row)} fields for {len(columns)} columns",
            where=where,
            cure='put a field with a comma in it between quotes ("1,5"), and write thousands without commas',
        )
    line = _Line(where, dict(zip(columns, map(str.strip, row), strict=True)))
    if not line.text["name"]:
        raise KdbenchError("the model has no name", where=line.place("name"))
    if line.text.get("role", "") not in ("", *ROLES):
        fault = unknown("role", line.text["role"], ROLES)
        raise KdbenchError(fault.what, where=line.place("role"), cure=fault.cure)
    return line


def _teacher(path: Path, lines: list[_Line], wanted: str | None) -> str:
    """The name of the teacher's line."""
    names = [line.text["name"] for line in lines]
    by_role = [line for line in lines if line.text.get("role") == "teacher"]
    if len(by_role) > 1:
        raise KdbenchError(
            f"'{by_role[1].text['name']}' is a second teacher beside '{by_role[0].text['name']}'",
            where=by_role[1].place("role"),
            cure="a score compares students of one teacher: one table for each",
        )
    if wanted is not None and wanted not in names:
        raise unknown("teacher", wanted, names)
    if wanted is not None and by_role and by_role[0].text["name"] != wanted:
        raise KdbenchError(f"--teacher says '{wanted}', the table says otherwise", where=by_role[0].place("role"))
    found = wanted or (by_role[0].text["name"] if by_role else "teacher")
    if found not in names:
        raise KdbenchError(
            "no line is the teacher's", where=path, cure="name it with --teacher, or give it the role 'teacher'"
        )
    line = lines[names.index(found)]
    if line.text.get("role") == "student":
        raise KdbenchError(f"'{found}' is a student, not the teacher", where=line.place("role"))
    return found

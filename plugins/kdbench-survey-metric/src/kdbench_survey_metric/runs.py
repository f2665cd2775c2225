"""Who taught whom in finished runs: the students of one teacher, read off runs and the stages in their store.

A teacher is one network a seed. Two students have the same teacher where, at every seed that both have, they were
distilled from the very same stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from kdbench.data.base import DataRef
from kdbench.errors import KdbenchError, unknown
from kdbench.metric import Subject, with_baselines
from kdbench.result import Reproduction
from kdbench.stage import Finished, read_spec
from kdbench.store import Store
from kdbench_survey_metric.evidence import SPLIT

__all__ = ["Family", "Student", "choose", "families", "refuse", "subjects_of"]

_APART = "score each of them by itself"


class Student(NamedTuple):
    """A distilled network over its seeds.

    ``cells`` : where it is measured; the first is its name, the others are the same stages under other names.
    """

    name: str
    cells: tuple[str, ...]
    seeds: dict[int, Subject]


class Family(NamedTuple):
    """A teacher and its students.

    Attributes
    ----------
    label : what the teacher's stage is called, without its seed.
    cells : where the teacher's own accuracy is measured, if anywhere.
    teachers : its stage of every seed.
    students : in the order of measurement.
    runs : ids of the runs that have students of it.
    """

    label: str
    cells: tuple[str, ...]
    teachers: dict[int, Finished]
    students: tuple[Student, ...]
    runs: tuple[str, ...]

    @property
    def key(self) -> str:
        """The beginning of its first stage's hash, which no other teacher has."""
        return self.teachers[min(self.teachers)].record.hash[:8]

    def is_called(self, name: str) -> bool:
        """Whether ``name`` is its label, one of its cells, or the beginning of a hash."""
        hashes = [stage.record.hash for stage in self.teachers.values()]
        return name in (self.label, *self.cells) or (len(name) >= 6 and any(key.startswith(name) for key in hashes))

    def __str__(self) -> str:
        cells = f", measured as {' and '.join(self.cells)}" if self.cells else ""
        count = "1 student" if len(self.students) == 1 else f"{len(self.students)} students"
        return f"'{self.label}' ({self.key}{cells}): {count}"


class _Shelf:
    """The stages of one store, each read once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.read: dict[str, Finished] = {}

    def stage(self, key: str) -> Finished:
        if key not in self.read:
            if not self.store.has(key):
                raise KdbenchError(
                    f"stage {key} of the run is not in the store",
                    where=self.store.root,
                    cure="reproduce again: only what is missing is done anew",
                )
            self.read[key] = Finished(self.store.stages / key)
        return self.read[key]

    def teacher(self, stage: Finished) -> Finished | None:
        """The stage that left the network ``stage`` was distilled from; the trials of one choice have the same."""
        inputs = _inputs(stage)
        if "teacher" in inputs:
            gate = self.stage(inputs["teacher"])
            network = _inputs(gate).get("network")
            return self.stage(network) if network else gate
        return self.teacher(self.stage(inputs["0"])) if "0" in inputs else None


def refuse(results: Sequence[Reproduction]) -> None:
    """Runs whose numbers do not belong in one ranking.

    Raises
    ------
    KdbenchError : they differ in tier, protocol or data; says which and how.
    """
    first = results[0].run
    for other in (result.run for result in results[1:]):
        where = f"runs '{first.id}' and '{other.id}'"
        for axis in ("tier", "protocol", "dataset"):
            left, right = getattr(first.request, axis), getattr(other.request, axis)
            if left != right:
                word = "data set" if axis == "dataset" else axis
                raise KdbenchError(f"the runs differ in {word}: {left} and {right}", where=where, cure=_APART)
        if first.data.fingerprint != other.data.fingerprint:
            prints = f"{first.data.fingerprint[:12]} and {other.data.fingerprint[:12]}"
            raise KdbenchError(f"the runs were made on different data: fingerprints {prints}", where=where, cure=_APART)


def subjects_of(result: Reproduction, store: Store) -> list[Subject]:
    """The measured networks of a finished run, as :func:`kdbench.metric.subjects` gave them to metrics when it ended.

    Raises
    ------
    KdbenchError : a stage is no longer in the store, or does not read.
    """
    return _subjects(result, _Shelf(store))


def families(results: Iterable[Reproduction], store: Store) -> list[Family]:
    """Every teacher of the runs with its students, in the order of measurement."""
    results, shelf = list(results), _Shelf(store)
    found: list[_Draft] = []
    for result in results:
        cells: dict[str, dict[int, Subject]] = {}
        for subject in _subjects(result, shelf):
            if subject.teacher is not None:
                cells.setdefault(subject.cell, {})[subject.seed] = subject
        for cell, seeds in cells.items():
            _enrol(found, cell, seeds, result.run.id)
    return [draft.family(_measured_as(draft.teachers, results)) for draft in found]


def choose(found: Sequence[Family], runs: Sequence[str], wanted: str | None = None) -> Family:
    """The one teacher whose students are ranked.

    Parameters
    ----------
    found : every teacher of the runs.
    runs : ids of the runs; each must have students of the teacher.
    wanted : a cell that measures the teacher, its label, or the beginning of its stage's hash.

    Raises
    ------
    KdbenchError : there is no teacher, none in common, none or several of that name, or several and no name.
    """
    if not found:
        raise KdbenchError(
            "there is no student to rank: no distilled network's accuracy is measured", where=", ".join(runs)
        )
    shared = [family for family in found if set(runs) <= set(family.runs)]
    if not shared:
        raise KdbenchError(
            f"the runs have no teacher in common: {_listed(found, with_runs=True)}",
            where=", ".join(runs),
            cure=f"a score compares students of one teacher, seed by seed; {_APART}",
        )
    if wanted is None:
        if len(found) == 1:
            return found[0]
        raise KdbenchError(
            f"there are {len(found)} teachers, and a score compares students of one",
            where=", ".join(runs),
            cure=f"name it with --teacher, by label, cell or hash: {_listed(found, with_runs=len(runs) > 1)}",
        )
    named = [family for family in found if family.is_called(wanted)]
    if not named:
        raise unknown("teacher", wanted, {name for family in found for name in (family.label, *family.cells)})
    if len(named) > 1:
        raise KdbenchError(
            f"'{wanted}' is the name of {len(named)} teachers", cure=f"name it by its hash: {_listed(named)}"
        )
    missing = [run for run in runs if run not in named[0].runs]
    if missing:
        raise KdbenchError(
            f"the runs have different teachers: {_listed(found, with_runs=True)}",
            where=f"'{wanted}' taught nobody in {', '.join(missing)}",
            cure=f"name one that they have in common: {_listed(shared)}",
        )
    return named[0]


class _Draft:
    """A family while its students are being found."""

    def __init__(self) -> None:
        self.teachers: dict[int, Finished] = {}
        self.students: list[Student] = []
        self.runs: list[str] = []

    def taught(self, seeds: Mapping[int, Subject]) -> bool:
        """Whether a student of these seeds has this teacher."""
        shared = [seed for seed in seeds if seed in self.teachers]
        return bool(shared) and all(_hash(seeds[seed].teacher) == self.teachers[seed].record.hash for seed in shared)

    def add(self, cell: str, seeds: dict[int, Subject], run: str) -> None:
        self.teachers.update({seed: s.teacher for seed, s in seeds.items() if s.teacher is not None})
        if run not in self.runs:
            self.runs.append(run)
        for index, student in enumerate(self.students):
            shared = [seed for seed in seeds if seed in student.seeds]
            if shared and all(_hash(seeds[s].student) == _hash(student.seeds[s].student) for s in shared):
                cells = student.cells if cell in student.cells else (*student.cells, cell)
                self.students[index] = Student(student.name, cells, {**seeds, **student.seeds})
                return
        taken = {name for student in self.students for name in student.cells}
        self.students.append(Student(f"{cell} in {run}" if cell in taken else cell, (cell,), seeds))

    def family(self, cells: tuple[str, ...]) -> Family:
        first = self.teachers[min(self.teachers)]
        label = first.record.label.rpartition(" seed ")[0] or first.record.label
        teachers = dict(sorted(self.teachers.items()))
        return Family(label, cells, teachers, tuple(self.students), tuple(self.runs))


def _enrol(found: list[_Draft], cell: str, seeds: dict[int, Subject], run: str) -> None:
    """Add a student to the family of its teacher, a new one if need be."""
    draft = next((draft for draft in found if draft.taught(seeds)), None)
    if draft is None:
        draft = _Draft()
        found.append(draft)
    draft.add(cell, seeds, run)


def _subjects(result: Reproduction, shelf: _Shelf) -> list[Subject]:
    found: list[Subject] = []
    data: DataRef | None = None
    for value in result.run.values:
        if value.metric != f"{SPLIT}.accuracy" or len(value.stages) != 1 or value.value is None:
            continue
        student = shelf.stage(value.stages[0])
        if "network" not in student.record.notes:
            continue
        data = data or read_spec(student.folder).data
        found.append(Subject(value.cell, value.seed, student, shelf.teacher(student), data))
    return with_baselines(found)


def _measured_as(teachers: Mapping[int, Finished], results: Iterable[Reproduction]) -> tuple[str, ...]:
    """Cells of the runs that measure the teacher itself."""
    hashes = {stage.record.hash for stage in teachers.values()}
    return tuple(
        dict.fromkeys(
            value.cell
            for result in results
            for value in result.run.values
            if value.metric == f"{SPLIT}.accuracy" and len(value.stages) == 1 and value.stages[0] in hashes
        )
    )


def _inputs(stage: Finished) -> dict[str, str]:
    inputs: dict[str, str] = stage.record.spec["inputs"]
    return inputs


def _hash(stage: Finished | None) -> str:
    return "" if stage is None else stage.record.hash


def _listed(found: Iterable[Family], *, with_runs: bool = False) -> str:
    return "; ".join(f"{family} in {', '.join(family.runs)}" if with_runs else str(family) for family in found)

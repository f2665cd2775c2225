"""What is ranked together, wherever it came from: runs or a table; and its ranking with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from kdbench.errors import KdbenchError, StageError
from kdbench.result import Reproduction, RunFile
from kdbench.stage import Finished
from kdbench_survey_metric import evidence
from kdbench_survey_metric.interval import (
    Interval,
    Outcomes,
    ScoreIntervals,
    difference_interval,
    outcomes,
    score_intervals,
)
from kdbench_survey_metric.measured import Accuracy, Measured, Size, SizeUnit, Unknown
from kdbench_survey_metric.ranking import Ranking, rank
from kdbench_survey_metric.runs import Family, Student

__all__ = ["Cohort", "Origin", "Scored", "of_family", "score"]


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Under what every number was made. Empty or None where a table does not say.

    ``source`` is a file, or the ids of the runs; ``examples`` counts those of the test split.
    """

    source: tuple[str, ...]
    size_unit: SizeUnit
    dataset: str = ""
    fingerprint: str = ""
    tier: str = ""
    protocol: str = ""
    split: str = ""
    seeds: tuple[int, ...] = ()
    examples: int | None = None


class Cohort(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """Students of one teacher, ready to be scored.

    Attributes
    ----------
    teacher, students, plain, majority : as :func:`kdbench_survey_metric.ranking.rank` takes them.
    answers : by student, which test examples were answered correctly by whom, or why nobody knows.
    notes : what the reader must know of how it was put together.
    """

    origin: Origin
    teacher: Measured
    students: tuple[Measured, ...]
    plain: dict[str, Measured]
    majority: Accuracy | None
    answers: dict[str, Outcomes | Unknown]
    notes: tuple[str, ...] = ()


class Scored(msgspec.Struct, frozen=True, kw_only=True):
    """A ranking with its intervals.

    Attributes
    ----------
    intervals : by student; of its scores, paired over test examples and seeds.
    behind : by student but the first: DS minus the first one's, with its interval.
    """

    origin: Origin
    ranking: Ranking
    majority: Accuracy | None
    intervals: dict[str, ScoreIntervals]
    behind: dict[str, Interval | Unknown]
    notes: tuple[str, ...]

    @property
    def leader(self) -> str | None:
        """The student with the lowest score, the first by name of equals; None where no score is known."""
        return _leader(self.ranking)


def of_family(family: Family, results: Sequence[Reproduction], unit: SizeUnit) -> Cohort:
    """The students of one teacher as measured in runs: means over the seeds that all of them have.

    Raises
    ------
    KdbenchError : no seed is common to all of them, or a file of a stage does not match its record.
    """
    runs = [result.run for result in results]
    seeds, notes = _common_seeds(family)
    labels = _labels(family, seeds[0])
    known = None if isinstance(labels, Unknown) else labels
    classes = next(iter(family.students[0].seeds.values())).data.num_classes
    stages = {student.name: [student.seeds[seed].student for seed in seeds] for student in family.students}
    teachers = [family.teachers[seed] for seed in seeds]
    plain = {student.name: _baselines(student, seeds) for student in family.students}

    def measured(name: str, of: Sequence[Finished]) -> Measured:
        return Measured(
            name=name,
            size=_mean_size(of, unit),
            accuracy=_mean([evidence.accuracy_of(stage) for stage in of]),
            per_class=_by_class(of, known, classes),
            dataset=runs[0].data.fingerprint,
            split=evidence.SPLIT,
        )

    notes += [f"run {run.id} is {run.status}: not all that it asked for was measured" for run in runs if _lacks(run)]
    notes += [run.data.note for run in runs[:1] if run.data.note]
    notes += [f"{s.name} is also {' and '.join(s.cells[1:])}" for s in family.students if len(s.cells) > 1]
    notes += [note for student in family.students if (note := _without_baseline(student, seeds))]
    notes += [labels.reason] if isinstance(labels, Unknown) else []
    return Cohort(
        origin=Origin(
            source=tuple(run.id for run in runs),
            size_unit=unit,
            dataset=runs[0].data.title,
            fingerprint=runs[0].data.fingerprint,
            tier=runs[0].request.tier,
            protocol=runs[0].request.protocol,
            split=evidence.SPLIT,
            seeds=tuple(seeds),
            examples=None if known is None else known.size,
        ),
        teacher=measured(family.label, teachers),
        students=tuple(measured(name, of) for name, of in stages.items()),
        # Without a size: it is the student's own network, and nothing that is asked of it depends on sizes.
        plain={
            name: msgspec.structs.replace(measured(f"{name} without a teacher", of), size=None)
            for name, of in plain.items()
            if of is not None
        },
        majority=None if known is None else evidence.majority_of(known),
        answers={
            name: labels if isinstance(labels, Unknown) else _answers(of, teachers, plain[name], labels)
            for name, of in stages.items()
        },
        notes=tuple(notes),
    )


def score(cohort: Cohort, alpha: float) -> Scored:
    """Rank the students, with intervals where their answers are known.

    Raises
    ------
    KdbenchError : ``alpha`` is outside [0, 1], or the models do not compare.
    """
    ranking = rank(cohort.students, cohort.teacher, alpha=alpha, majority=cohort.majority, plain=cohort.plain)
    ratios = {row.name: row.ratios.size for row in ranking.rows}
    chance = None if cohort.majority is None else cohort.majority.value / cohort.majority.whole
    if chance == 1:  # a split of one class: nothing is above chance
        chance = None
    known = {name: answers for name, answers in cohort.answers.items() if isinstance(answers, Outcomes)}
    sizes = {name: ratio for name, ratio in ratios.items() if not isinstance(ratio, Unknown)}
    intervals = {
        name: score_intervals(answers, size_ratio=sizes.get(name), alpha=alpha, chance=chance)
        for name, answers in known.items()
    }
    first = _leader(ranking)
    behind = {
        name: difference_interval(answers, known[first], size_ratios=(sizes[name], sizes[first]), alpha=alpha)
        for name, answers in known.items()
        if first in known and name != first and name in sizes
    }
    return Scored(
        origin=cohort.origin,
        ranking=ranking,
        majority=cohort.majority,
        intervals=intervals,
        behind=behind,
        notes=cohort.notes
        + tuple(f"{name}: {a.reason}" for name, a in cohort.answers.items() if isinstance(a, Unknown)),
    )


def _leader(ranking: Ranking) -> str | None:
    return next((row.name for row in ranking.rows if row.rank == 1), None)


def _lacks(run: RunFile) -> bool:
    """Whether a stage failed or a cell could not be read; a figure that could not be drawn takes no number away."""
    return any(failure.hash or failure.label.startswith("cell ") for failure in run.failures)


def _common_seeds(family: Family) -> tuple[list[int], list[str]]:
    """Seeds that every student has, and a note on those left out."""
    having = {seed: [s.name for s in family.students if seed in s.seeds] for seed in family.teachers}
    common = [seed for seed, names in having.items() if len(names) == len(family.students)]
    if not common:
        raise KdbenchError(
            f"no seed is common to all students of '{family.label}'",
            where=", ".join(f"{student.name}: seeds {_listed(student.seeds)}" for student in family.students),
            cure="run them with the same seeds",
        )
    left = [seed for seed in having if seed not in common]
    if not left:
        return common, []
    several = len(left) > 1
    words = f"{_seeds(left)} {'are' if several else 'is'} left out: not every student has {'them' if several else 'it'}"
    return common, [words]


def _labels(family: Family, seed: int) -> evidence.Labels | Unknown:
    subject = next(student.seeds[seed] for student in family.students)
    try:
        return evidence.labels_of(subject.data, subject.student)
    except StageError:  # predictions that are not those of the record are no missing data
        raise
    except KdbenchError as error:
        return Unknown(
            f"the labels of the test split are unknown, so there is no chance level and no interval: {error}"
        )


def _baselines(student: Student, seeds: Sequence[int]) -> list[Finished] | None:
    """The student without a teacher at every seed; None where one is missing."""
    found = [stage for seed in seeds if (stage := student.seeds[seed].baseline) is not None]
    return found if len(found) == len(seeds) else None


def _without_baseline(student: Student, seeds: Sequence[int]) -> str | None:
    """Which seeds keep it from being held against itself; None where all or none of them do."""
    lacking = [seed for seed in seeds if student.seeds[seed].baseline is None]
    if not 0 < len(lacking) < len(seeds):
        return None
    return f"{student.name}: its accuracy without a teacher is not known at {_seeds(lacking)}"


def _answers(
    student: Sequence[Finished], teacher: Sequence[Finished], plain: Sequence[Finished] | None, labels: evidence.Labels
) -> Outcomes | Unknown:
    found: dict[str, list[NDArray[np.bool_]]] = {}
    for role, stages in (("student", student), ("teacher", teacher), ("plain", plain or ())):
        right = [evidence.correct(stage, labels) for stage in stages]
        found[role] = [row for row in right if row is not None]
        if len(found[role]) < len(right):
            return Unknown(f"no interval: the {role}'s stages keep no predictions of the test split")
    return outcomes(found["student"], found["teacher"], found["plain"] or None)


def _by_class(stages: Sequence[Finished], labels: evidence.Labels | None, classes: int) -> tuple[Accuracy | None, ...]:
    """Mean accuracy on each class; empty where predictions or labels are missing."""
    if labels is None:
        return ()
    rows = [evidence.correct(stage, labels) for stage in stages]
    if any(row is None for row in rows):
        return ()
    by_seed = [evidence.by_class(row, labels, classes) for row in rows if row is not None]
    return tuple(_mean(of_class) for of_class in zip(*by_seed, strict=True))


def _mean(values: Sequence[Accuracy | None]) -> Accuracy | None:
    """Their mean; None where one is missing."""
    known = [value.value for value in values if value is not None]
    return Accuracy(math.fsum(known) / len(known), "percent") if len(known) == len(values) else None


def _mean_size(stages: Sequence[Finished], unit: SizeUnit) -> Size | None:
    """Their mean, which is the size of each unless seeds were pruned differently; None where one is missing."""
    sizes = [size.value for stage in stages if (size := evidence.size_of(stage, unit)) is not None]
    return Size(math.fsum(sizes) / len(sizes), unit) if len(sizes) == len(stages) else None


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {_listed(seeds)}"


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(str(seed) for seed in sorted(seeds))

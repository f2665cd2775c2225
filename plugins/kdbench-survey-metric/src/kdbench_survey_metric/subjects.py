"""The score and its companions of one measured network of one seed, under its own teacher.

Each is None where it says nothing: of a network without a teacher, where a size or an accuracy was not measured, and
where the formula is not defined.
"""

from __future__ import annotations

from kdbench.metric import Subject
from kdbench.stage import Finished
from kdbench_survey_metric import companions, evidence
from kdbench_survey_metric import score as scores
from kdbench_survey_metric.measured import Accuracy, Known, Measured, Outcome

__all__ = ["ALPHA", "chance_adjusted_score", "gap_closed", "score", "score_gain", "worst_class_score"]

ALPHA = 0.5
"""The survey's own example, known through public notes on it (third-party)."""


def score(subject: Subject) -> float | None:
    """DS at alpha .5, in parameters."""
    pair = _pair(subject)
    return _value(scores.distillation_score(*pair, ALPHA)) if pair else None


def chance_adjusted_score(subject: Subject) -> float | None:
    """DS adjusted for the rate of the test split's largest class; None under a teacher at or below it."""
    pair = _pair(subject)
    if pair is None:
        return None
    chance = evidence.majority_of(evidence.labels_of(subject.data, subject.student))
    teacher = pair[1].accuracy
    if teacher is not None and teacher.value <= chance.value:
        return None
    return _value(scores.chance_adjusted_score(*pair, ALPHA, chance))


def worst_class_score(subject: Subject) -> float | None:
    """DS of the accuracies on each network's own worst class."""
    pair = _pair(subject, by_class=True)
    return _value(companions.worst_class_score(*pair, ALPHA)) if pair else None


def score_gain(subject: Subject) -> float | None:
    """DS without the teacher minus DS with it; None where the run does not measure the student without one."""
    triple = _triple(subject)
    return _value(companions.score_gain(*triple, ALPHA)) if triple else None


def gap_closed(subject: Subject) -> float | None:
    """Share of the gap to the teacher that distillation closed; None where there is no gap to speak of."""
    triple = _triple(subject)
    return _value(companions.gap_closed(*triple)) if triple else None


def _pair(subject: Subject, *, by_class: bool = False) -> tuple[Measured, Measured] | None:
    """Student and teacher; None without a teacher, or under one that is always wrong: nothing is relative to it."""
    if subject.teacher is None:
        return None
    student = _measured("student", subject.student, subject, by_class=by_class)
    teacher = _measured("teacher", subject.teacher, subject, by_class=by_class)
    if teacher.accuracy is not None and teacher.accuracy.value == 0:
        return None
    return student, teacher


def _triple(subject: Subject) -> tuple[Measured, Measured, Measured] | None:
    """The student with and without its teacher, and the teacher; None where the two students differ in size."""
    pair = _pair(subject)
    if pair is None or subject.baseline is None:
        return None
    plain = _measured("student without a teacher", subject.baseline, subject)
    return (pair[0], plain, pair[1]) if plain.size == pair[0].size else None


def _measured(name: str, stage: Finished, subject: Subject, *, by_class: bool = False) -> Measured:
    classes: tuple[Accuracy | None, ...] = ()
    if by_class:
        labels = evidence.labels_of(subject.data, subject.student)
        right = evidence.correct(stage, labels)
        classes = () if right is None else evidence.by_class(right, labels, subject.data.num_classes)
    return Measured(
        name=name,
        size=evidence.size_of(stage, "parameters"),
        accuracy=evidence.accuracy_of(stage),
        per_class=classes,
        split=evidence.SPLIT,
    )


def _value(outcome: Outcome) -> float | None:
    return outcome.value if isinstance(outcome, Known) else None

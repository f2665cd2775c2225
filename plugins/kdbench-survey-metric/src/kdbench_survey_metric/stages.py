"""The stages of this study: arithmetic on printed numbers, and the scores of one seed's students under its teacher.

None of them trains. What cannot be computed leaves no metric and is named, with the reason, in the record's notes.
"""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Literal

from kdbench.component import Component
from kdbench.record import Outcome
from kdbench.stage import Finished, Stage, Work

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from kdbench_survey_metric import measured
    from kdbench_survey_metric.evidence import Labels
    from kdbench_survey_metric.measured import Accuracy
    from kdbench_survey_metric.ranking import Ranking, Row

__all__ = ["Crossover", "Printed", "RecomputeGolden", "RecomputeReductions", "Reduction", "Score", "opposed_pairs"]


class Printed(Component, frozen=True):
    """A student as it is printed: ``size`` in percent of the teacher's, ``accuracy`` in percent, and its ``score``."""

    name: str
    size: float
    accuracy: float
    score: float


class Crossover(Component, frozen=True):
    """The ``alpha`` at which two printed students are said to change places."""

    first: str
    second: str
    alpha: float


class Reduction(Component, frozen=True):
    """A row that has reductions alone, in percent of the teacher, None where it has a dash; ``score`` follows."""

    name: str
    size: float | None
    accuracy: float | None
    score: float | None


class RecomputeGolden(Stage, frozen=True):
    """The scores of the printed students of one teacher, and the alphas at which they change places.

    Leaves ``ds.NAME`` at ``alpha``, ``ds.NAME.ALPHA`` at each of ``alphas``, ``crossover.FIRST.SECOND``, and the
    largest differences from the numbers of the facts, ``difference.ds`` and ``difference.crossover``.

    Attributes
    ----------
    teacher_accuracy : in percent.
    """

    teacher_accuracy: float
    students: tuple[Printed, ...]
    alpha: float
    alphas: tuple[float, ...]
    crossovers: tuple[Crossover, ...]

    def run(self, work: Work) -> Outcome:
        from kdbench_survey_metric.lines import Line, crossover, line
        from kdbench_survey_metric.score import Ratios

        lines: dict[str, Line] = {}
        for each in self.students:
            ratios = Ratios(size=each.size / 100, accuracy=each.accuracy / self.teacher_accuracy)
            drawn = line(each.name, ratios)
            assert isinstance(drawn, Line), "both ratios are numbers"
            lines[each.name] = drawn
        metrics = {f"ds.{name}": each.at(self.alpha) for name, each in lines.items()}
        metrics |= {f"ds.{name}.{alpha:g}": each.at(alpha) for name, each in lines.items() for alpha in self.alphas}
        metrics["difference.ds"] = max(abs(metrics[f"ds.{each.name}"] - each.score) for each in self.students)
        crossings = {each: crossover(lines[each.first], lines[each.second]) for each in self.crossovers}
        found = {each: alpha for each, alpha in crossings.items() if alpha is not None}
        metrics |= {f"crossover.{each.first}.{each.second}": alpha for each, alpha in found.items()}
        if len(found) == len(crossings):
            metrics["difference.crossover"] = max(abs(alpha - each.alpha) for each, alpha in found.items())
        unknown = {
            f"crossover.{each.first}.{each.second}": "one of the two is ahead from alpha 0 to 1"
            for each in crossings
            if each not in found
        }
        return Outcome(metrics=metrics, notes={"unknown": unknown})


class RecomputeReductions(Stage, frozen=True):
    """Scores from reductions alone: ``ds.NAME`` at ``alpha``, and ``difference.ds``, the largest one from the facts.

    A row without a size or an accuracy leaves no metric; the notes say why, under ``unknown``.
    """

    rows: tuple[Reduction, ...]
    alpha: float

    def run(self, work: Work) -> Outcome:
        from kdbench_survey_metric.measured import Known
        from kdbench_survey_metric.score import Ratios, score_of_ratios

        metrics: dict[str, float] = {}
        unknown: dict[str, str] = {}
        for row in self.rows:
            score = score_of_ratios(Ratios.of_reductions(size=row.size, accuracy=row.accuracy), self.alpha)
            if isinstance(score, Known):
                metrics[f"ds.{row.name}"] = score.value
            else:
                unknown[row.name] = score.reason
        metrics["difference.ds"] = max(
            abs(metrics[f"ds.{row.name}"] - row.score) for row in self.rows if row.score is not None
        )
        return Outcome(metrics=metrics, notes={"unknown": unknown})


class Score(Stage, frozen=True):
    """What the plugin says of the students of one seed. Trains nothing; reads what networks answered on the test split.

    Inputs: ``teacher``, and for every NAME of ``students`` the same network trained without it, ``plain-NAME``, and
    distilled from it, ``distilled-NAME``. The rows below are these, ``teacher`` and ``constant`` (always the largest
    class of the test split, no size).

    Leaves, by row, ``size.ROW`` (percent of the teacher), ``test.accuracy.ROW`` (percent), ``test.ds.ROW.ALPHA`` for
    each of ``alphas``, and at ``alpha`` ``test.chance-adjusted.ROW`` and ``test.worst-class.ROW``; of distilled
    students also ``test.dDS.ROW`` (at ``alpha``) and ``test.gap-closed.ROW`` (a share); and of all of these together

    - ``test.winner-size.ALPHA``: size, in percent of the teacher, of the one with the lowest score;
    - ``test.moves`` and ``test.moves-to-smaller``: how often the winner changes from alpha 0 to 1, and how often to a
      smaller student;
    - ``test.opposed.score``: share of pairs that the score at ``alpha`` and the gap closed rank in opposite order;
      ``test.opposed.itself``: share of pairs that the gap closed ranks in opposite order on the two halves of the
      test split; both over the students that all of these rankings have.

    What is unknown leaves no metric; the notes say why, under ``unknown``.
    """

    students: tuple[str, ...]
    alphas: tuple[float, ...]
    alpha: float
    size_unit: Literal["parameters", "nonzero parameters", "bytes", "MACs"] = "parameters"

    def run(self, work: Work) -> Outcome:
        from kdbench_survey_metric import evidence
        from kdbench_survey_metric.ranking import rank

        inputs = {role: work.input(role) for role in work.spec.inputs}
        labels = evidence.labels_of(work.spec.data, inputs["teacher"])
        right = {role: self._right(stage, labels) for role, stage in inputs.items()}
        models = {role: self._measured(role, stage, right[role], labels, work) for role, stage in inputs.items()}
        teacher = models.pop("teacher")
        majority = evidence.majority_of(labels)
        plain = {f"distilled-{name}": models[f"plain-{name}"] for name in self.students}

        outcomes: dict[str, measured.Outcome] = {}
        for alpha in self.alphas:
            rows = rank(models.values(), teacher, alpha=alpha, majority=majority, plain=plain).rows
            outcomes |= {f"test.ds.{_name(row)}.{alpha:g}": row.score for row in rows}
        ranking = rank(models.values(), teacher, alpha=self.alpha, majority=majority, plain=plain)
        metrics = _measures(ranking)
        for row in ranking.rows:
            outcomes[f"test.chance-adjusted.{_name(row)}"] = row.chance_adjusted
            outcomes[f"test.worst-class.{_name(row)}"] = row.worst_class
        for name in self.students:
            row = ranking.row(f"distilled-{name}")
            outcomes |= {f"test.dDS.{row.name}": row.gain, f"test.gap-closed.{row.name}": row.gap_closed}
        known, unknown = _split(outcomes)
        metrics |= known | self._winners(ranking) | self._opposed(ranking, right)
        return Outcome(metrics=metrics, notes={"unknown": unknown, "size unit": self.size_unit})

    def _right(self, stage: Finished, labels: Labels) -> NDArray[np.bool_]:
        from kdbench_survey_metric.evidence import correct

        right = correct(stage, labels)
        assert right is not None, "a training stage leaves its predictions"
        return right

    def _measured(
        self, role: str, stage: Finished, right: NDArray[np.bool_], labels: Labels, work: Work
    ) -> measured.Measured:
        from kdbench_survey_metric import evidence
        from kdbench_survey_metric.measured import Measured

        return Measured(
            name=role,
            size=evidence.size_of(stage, self.size_unit),
            accuracy=evidence.accuracy_of(stage),
            per_class=evidence.by_class(right, labels, work.spec.data.num_classes),
            split=evidence.SPLIT,
        )

    def _winners(self, ranking: Ranking) -> dict[str, float]:
        """Which distilled student wins, by its size in percent of the teacher; of equals the smallest."""
        from kdbench_survey_metric.lines import Line, line, winners, winners_at

        drawn = [line(name, ranking.row(f"distilled-{name}").ratios) for name in self.students]
        lines = {each.name: each for each in drawn if isinstance(each, Line)}

        def size(names: Iterable[str]) -> float:
            return 100.0 * min(lines[name].size_ratio for name in names)

        path = [size(segment.winners) for segment in winners(lines.values())]
        return {
            **{f"test.winner-size.{alpha:g}": size(winners_at(lines.values(), alpha)) for alpha in self.alphas},
            "test.moves": float(len(path) - 1),
            "test.moves-to-smaller": float(sum(after < before for before, after in pairwise(path))),
        }

    def _opposed(self, ranking: Ranking, right: Mapping[str, NDArray[np.bool_]]) -> dict[str, float]:
        """How far two rankings of the distilled students disagree, over the students that all of them have.

        Nothing where no pair can be compared.
        """
        rows = {name: ranking.row(f"distilled-{name}") for name in self.students}
        scores, _ = _split({name: row.score for name, row in rows.items()})
        closed, _ = _split({name: row.gap_closed for name, row in rows.items()})
        left = {name: -value for name, value in closed.items()}  # what is not closed: less is better, as in the score
        even, odd = (self._closed(right, half) for half in (slice(0, None, 2), slice(1, None, 2)))
        # Both shares of the same pairs: a student whose gap one half of the split does not see is in neither.
        common = scores.keys() & left.keys() & even.keys() & odd.keys()
        scores, left, even, odd = ({name: each[name] for name in common} for each in (scores, left, even, odd))
        shares = {"test.opposed.score": opposed_pairs(scores, left), "test.opposed.itself": opposed_pairs(even, odd)}
        return {name: share for name, share in shares.items() if share is not None}

    def _closed(self, right: Mapping[str, NDArray[np.bool_]], half: slice) -> dict[str, float]:
        """The gap closed by each student, as a part of the test split sees it."""
        from kdbench_survey_metric.companions import gap_closed
        from kdbench_survey_metric.measured import Measured

        seen = {role: Measured(name=role, size=None, accuracy=_percent(each[half])) for role, each in right.items()}
        outcomes = {
            name: gap_closed(seen[f"distilled-{name}"], seen[f"plain-{name}"], seen["teacher"])
            for name in self.students
        }
        return _split(outcomes)[0]


def opposed_pairs(first: Mapping[str, float], second: Mapping[str, float]) -> float | None:
    """Share of the pairs in both rankings that the two order the other way round, Kendall's distance; ties are none.

    None where they have no pair in common.
    """
    pairs = list(combinations(sorted(first.keys() & second.keys()), 2))
    opposed = sum((first[a] - first[b]) * (second[a] - second[b]) < 0 for a, b in pairs)
    return opposed / len(pairs) if pairs else None


def _measures(ranking: Ranking) -> dict[str, float]:
    """Size and accuracy of every row, in percent."""
    numbers: dict[str, float] = {}
    for row in ranking.rows:
        if isinstance(row.ratios.size, float):
            numbers[f"size.{_name(row)}"] = 100.0 * row.ratios.size
        if row.accuracy is not None:
            numbers[f"test.accuracy.{_name(row)}"] = row.accuracy.value
    return numbers


def _name(row: Row) -> str:
    return row.name if row.kind == "student" else row.kind


def _percent(right: NDArray[np.bool_]) -> Accuracy:
    from kdbench_survey_metric.measured import Accuracy

    return Accuracy(100.0 * float(right.mean()), "percent")


def _split(outcomes: Mapping[str, measured.Outcome]) -> tuple[dict[str, float], dict[str, str]]:
    """What is known, and why the rest is not."""
    from kdbench_survey_metric.measured import Known

    known = {name: each.value for name, each in outcomes.items() if isinstance(each, Known)}
    return known, {name: each.reason for name, each in outcomes.items() if not isinstance(each, Known)}

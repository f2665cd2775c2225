"""The paired bootstrap over test examples and seeds.

Every draw takes the seeds with replacement and, independently, the test examples with replacement, the same ones for
every seed and for student, teacher and student without a teacher: all of them answered the same examples. Accuracies
are averaged over seeds before anything is computed from them, as in a table of means.

Percentiles of such draws are too close together where seeds are few: drawing S seeds anew from themselves spreads by
(S - 1) / S of the variance that S new trainings would have, and a few draws of a normal law spread as Student's t, not
as the normal law. So the ends of an interval lie further from its estimate than those of the draws, by

    sqrt(S / (S - 1)) t[S - 1] / z

with both quantiles at the interval's level; 1.58 for five seeds at 95 %. One factor serves for examples and seeds
together: it is right where the seeds make the spread, and too wide, never too narrow, where the examples do. With one
seed there is nothing to widen: the interval is that of the examples alone, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdbench.errors import KdbenchError
from kdbench_survey_metric.measured import Unknown

__all__ = ["DRAWS", "Array", "Interval", "Means", "Outcomes", "Sample", "outcomes"]

DRAWS = 2000
FEW_EXAMPLES = 100
FEW_SEEDS = 5
# A ratio that some draws leave undefined has no honest interval; a few among the draws do not move its ends.
_UNDEFINED = 0.01
# Bounds the memory of one block of draws.
_CELLS_AT_ONCE = 4_000_000

Array = NDArray[np.float64]
Means = Mapping[str, Array]


class Outcomes(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """Which test examples were answered correctly; make it with :func:`outcomes`, which checks it.

    Each array is boolean ``[seeds, examples]``; row s is of seed s, column i of the same test example everywhere.
    ``plain`` is the student trained without a teacher, None where there is none.
    """

    student: NDArray[np.bool_]
    teacher: NDArray[np.bool_]
    plain: NDArray[np.bool_] | None = None


class Interval(msgspec.Struct, frozen=True, kw_only=True, tag="interval"):
    """An estimate and its percentile intervals, widened for few seeds as the module says.

    Attributes
    ----------
    estimate : from all examples and seeds.
    se : standard deviation of the draws, not widened.
    low90, high90, low95, high95 : two-sided 90 % and 95 % intervals.
    examples, seeds, draws : what they rest on.
    notes : what weakens them (one seed, few seeds, few examples, draws left out).
    """

    estimate: float
    se: float
    low90: float
    high90: float
    low95: float
    high95: float
    examples: int
    seeds: int
    draws: int
    notes: tuple[str, ...] = ()


def outcomes(
    student: Sequence[ArrayLike], teacher: Sequence[ArrayLike], plain: Sequence[ArrayLike] | None = None
) -> Outcomes:
    """Outcomes from one boolean array ``[examples]`` a seed.

    Raises
    ------
    KdbenchError : there is no seed or no example, the arrays differ in shape, or hold anything but true and false.
    """
    arrays = {"student": student, "teacher": teacher} | ({} if plain is None else {"plain": plain})
    checked = {name: _boolean(name, rows) for name, rows in arrays.items()}
    shape = checked["teacher"].shape
    for name, array in checked.items():
        if array.shape != shape:
            raise KdbenchError(
                f"{name} has {array.shape[0]} seeds of {array.shape[1]} examples, teacher {shape[0]} of {shape[1]}",
                where=f"outcomes of {name}",
                cure="evaluate all of them with the same seeds on the same test examples",
            )
    return Outcomes(**checked)


class Sample:
    """The mean accuracies of several models, from all the data and from every bootstrap draw."""

    def __init__(self, arrays: Mapping[str, NDArray[np.bool_]], draws: int, seed: int) -> None:
        if draws < 1:
            raise KdbenchError(f"draws is {draws}, below 1", where="bootstrap", cure="2000 is usual")
        self.draws = draws
        self.seeds, self.examples = next(iter(arrays.values())).shape
        rng = np.random.default_rng(seed)
        # Examples with the same outcomes in every array are exchangeable, so it is enough to draw how often each
        # pattern of outcomes comes up: the same distribution as drawing examples, at a fraction of the cost.
        patterns, counts = np.unique(np.concatenate(list(arrays.values())), axis=1, return_counts=True)
        ones = np.ones((1, self.seeds), dtype=np.int64)
        self.observed = self._means(arrays, patterns, counts[None], ones)
        seeds = rng.multinomial(self.seeds, np.full(self.seeds, 1 / self.seeds), size=draws)
        block = max(1, _CELLS_AT_ONCE // counts.size)
        parts = [
            self._means(
                arrays, patterns, rng.multinomial(self.examples, counts / self.examples, size=len(chosen)), chosen
            )
            for chosen in np.split(seeds, range(block, draws, block))
        ]
        self.drawn = {name: np.concatenate([part[name] for part in parts]) for name in arrays}

    def _means(
        self,
        names: Mapping[str, object],
        patterns: NDArray[np.bool_],
        times: NDArray[np.int64],
        seeds: NDArray[np.int64],
    ) -> dict[str, Array]:
        """Mean accuracy of every model ``[draws]``, from how often each pattern and each seed was drawn."""
        # Whole numbers up to the one division: draws that hold the same answers then agree to the last bit.
        correct = (times.astype(np.float64) @ patterns.T.astype(np.float64)).reshape(len(times), len(names), self.seeds)
        totals = np.einsum("dms,ds->md", correct, seeds.astype(np.float64)) / (self.seeds * self.examples)
        return dict(zip(names, totals, strict=True))

    def interval(self, statistic: Callable[[Means], Array], undefined: str) -> Interval | Unknown:
        """The interval of a statistic, which is NaN where it is not defined; ``undefined`` says when that is."""
        estimate = float(statistic(self.observed)[0])
        if np.isnan(estimate):
            return Unknown(undefined)
        values = statistic(self.drawn)
        kept = values[~np.isnan(values)]
        lost = 1.0 - kept.size / values.size
        if lost > _UNDEFINED:
            return Unknown(f"in {100 * lost:.0f} % of the bootstrap draws {undefined}: too few examples or seeds")
        low95, high95 = self._ends(kept, estimate, 0.95)
        low90, high90 = self._ends(kept, estimate, 0.90)
        notes = self._notes()
        if lost:
            notes += (f"{values.size - kept.size} of {values.size} draws are left out, because {undefined} in them",)
        return Interval(
            estimate=estimate,
            # Equal values have no spread, whatever their mean rounds to.
            se=float(kept.std(ddof=1)) if np.ptp(kept) > 0 else 0.0,
            low90=low90,
            high90=high90,
            low95=low95,
            high95=high95,
            examples=self.examples,
            seeds=self.seeds,
            draws=kept.size,
            notes=notes,
        )

    def _ends(self, drawn: Array, estimate: float, level: float) -> tuple[float, float]:
        """The percentile interval of the draws, widened about the estimate for the number of seeds."""
        tail = (1.0 - level) / 2
        low, high = np.quantile(drawn, (tail, 1.0 - tail))
        wider = _widening(self.seeds, level)
        return estimate + wider * float(low - estimate), estimate + wider * float(high - estimate)

    def _notes(self) -> tuple[str, ...]:
        notes = []
        if self.seeds == 1:
            notes.append("one seed: the interval says nothing about how another training would end")
        elif self.seeds < FEW_SEEDS:
            wider = _widening(self.seeds, 0.95)
            notes.append(
                f"only {self.seeds} seeds: the 95 % interval is {wider:.1f} times that of the draws, and rough"
            )
        if self.examples < FEW_EXAMPLES:
            notes.append(f"only {self.examples} test example{'s' if self.examples > 1 else ''}: the interval is rough")
        return tuple(notes)


def _widening(seeds: int, level: float) -> float:
    """How much further from the estimate an end lies than that of the draws; 1 with one seed, which has no spread."""
    from scipy import stats

    if seeds == 1:
        return 1.0
    upper = (1.0 + level) / 2
    return float((seeds / (seeds - 1)) ** 0.5 * stats.t.ppf(upper, seeds - 1) / stats.norm.ppf(upper))


def _boolean(name: str, rows: Sequence[ArrayLike]) -> NDArray[np.bool_]:
    where = f"outcomes of {name}"
    arrays = [np.asarray(row) for row in rows]
    if not arrays or any(array.ndim != 1 or array.size == 0 for array in arrays):
        raise KdbenchError(
            f"{name} holds no test example of some seed", where=where, cure="give one array [examples] for every seed"
        )
    if len({array.size for array in arrays}) > 1:
        sizes = ", ".join(str(array.size) for array in arrays)
        raise KdbenchError(
            f"{name} has seeds of {sizes} examples", where=where, cure="evaluate every seed on the same test examples"
        )
    stacked = np.stack(arrays)
    if stacked.dtype != np.bool_ and not np.isin(stacked, (0, 1)).all():
        raise KdbenchError(
            f"{name} holds values other than true and false", where=where, cure="give label == prediction, as booleans"
        )
    stacked = stacked.astype(np.bool_)
    stacked.flags.writeable = False
    return stacked

"""P13 and T12: the bootstrap against a slow loop, against scipy, against the analytic error, and at its limits."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from survey_models import GOLDEN_TEACHER, model, value

from kdbench_survey_metric.companions import gap_closed, score_gain
from kdbench_survey_metric.interval import (
    Interval,
    Outcomes,
    ScoreIntervals,
    difference_interval,
    outcomes,
    score_intervals,
    unpaired_standard_error,
)
from kdbench_survey_metric.score import Accuracy, Unknown, chance_adjusted_score, distillation_score

Bools = NDArray[np.bool_]


def drawn(rng: np.random.Generator, accuracy: float, seeds: int, n: int, *, spread: float = 0.0) -> Bools:
    """Independent answers; every seed's accuracy lies within ``spread`` of the given one."""
    return rng.random((seeds, n)) < accuracy + rng.uniform(-spread, spread, size=(seeds, 1))


def trio(seeds: int, n: int, *, seed: int = 0, spread: float = 0.03) -> Outcomes:
    """Teacher 90 %, distilled student 80 %, plain student 70 %; all three find the same examples hard."""
    rng = np.random.default_rng(seed)
    ease = rng.random(n)
    teacher, student, plain = (
        ease + rng.normal(0, 0.1, (seeds, n)) + rng.uniform(-spread, spread, (seeds, 1)) > bar
        for bar in (0.1, 0.2, 0.3)
    )
    return outcomes(list(student), list(teacher), list(plain))


def got(found: Interval | Unknown) -> Interval:
    assert isinstance(found, Interval), found
    return found


def each(found: ScoreIntervals) -> dict[str, Interval]:
    return {name: got(getattr(found, name)) for name in found.__struct_fields__}


def slow_loop(data: Outcomes, r: float, alpha: float, chance: float, draws: int) -> dict[str, NDArray[np.float64]]:
    """The same bootstrap as it is defined: seeds and examples drawn one by one, every mean taken anew."""
    rng = np.random.default_rng(99)
    assert data.plain is not None
    seeds, n = data.teacher.shape
    values: dict[str, list[float]] = {"score": [], "chance_adjusted": [], "gain": [], "gap_closed": []}
    for _ in range(draws):
        picked = np.ix_(rng.integers(0, seeds, seeds), rng.integers(0, n, n))
        s, t, p = (float(one[picked].mean()) for one in (data.student, data.teacher, data.plain))
        values["score"].append(alpha * r + (1 - alpha) * (1 - s / t))
        adjusted = ((s - chance) / (1 - chance)) / ((t - chance) / (1 - chance))
        values["chance_adjusted"].append(alpha * r + (1 - alpha) * (1 - adjusted))
        values["gain"].append((1 - alpha) * (s - p) / t)
        values["gap_closed"].append((s - p) / (t - p))
    return {name: np.array(column) for name, column in values.items()}


def widening(seeds: int, level: float) -> float:
    """sqrt(S / (S - 1)) t / z, from the quantiles of printed tables."""
    t = {0.90: {4: 2.353}, 0.95: {4: 3.182}}
    z = {0.90: 1.645, 0.95: 1.960}
    return 1.0 if seeds == 1 else (seeds / (seeds - 1)) ** 0.5 * t[level][seeds] / z[level]


@pytest.mark.parametrize(("seeds", "n"), [(1, 400), (4, 300)])
def test_agrees_with_a_plain_loop(seeds: int, n: int) -> None:
    data = trio(seeds, n)
    fast = each(score_intervals(data, size_ratio=0.2, alpha=0.4, chance=0.1, draws=4000))
    for name, values in slow_loop(data, 0.2, 0.4, 0.1, 4000).items():
        interval = fast[name]
        assert interval.se == pytest.approx(values.std(ddof=1), rel=0.06), name
        for level, found in ((0.95, (interval.low95, interval.high95)), (0.90, (interval.low90, interval.high90))):
            wider, tail = widening(seeds, level), (1 - level) / 2
            ends = interval.estimate + wider * (np.quantile(values, (tail, 1 - tail)) - interval.estimate)
            assert found == pytest.approx(tuple(ends), abs=0.25 * wider * interval.se), name


def test_agrees_with_scipys_paired_bootstrap_for_one_seed() -> None:
    data = trio(1, 500)
    reference = scipy.stats.bootstrap(
        (data.student[0], data.teacher[0]),
        lambda s, t, axis=-1: 0.1 + 0.5 * (1 - s.mean(axis=axis) / t.mean(axis=axis)),
        paired=True,
        vectorized=True,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    found = got(score_intervals(data, size_ratio=0.2, alpha=0.5, draws=4000).score)
    assert found.se == pytest.approx(reference.standard_error, rel=0.06)
    ends = reference.confidence_interval
    assert (found.low95, found.high95) == pytest.approx((ends.low, ends.high), abs=0.25 * found.se)


def test_t12_the_noise_of_a_published_comparison() -> None:
    """10,000 test images for each of two models that err independently: se 0.0044, whichever way it is found."""
    student, teacher = 0.6704, GOLDEN_TEACHER / 100
    analytic = unpaired_standard_error(student, teacher, alpha=0.5, student_examples=10_000, teacher_examples=10_000)
    assert analytic == pytest.approx(0.0044, abs=5e-5)
    rng = np.random.default_rng(0)
    data = outcomes(list(drawn(rng, student, 1, 10_000)), list(drawn(rng, teacher, 1, 10_000)))
    found = got(score_intervals(data, size_ratio=0.3536, alpha=0.5, draws=4000).score)
    assert found.se == pytest.approx(analytic, rel=0.06)
    assert found.high95 - found.low95 == pytest.approx(2 * 1.96 * analytic, rel=0.08)
    # Two such pairs differ by noise of about 0.012.
    assert 1.96 * 2**0.5 * analytic == pytest.approx(0.012, abs=5e-4)


def test_the_estimates_are_the_scores_of_the_mean_accuracies() -> None:
    data = trio(3, 200)
    assert data.plain is not None
    found = score_intervals(data, size_ratio=0.2, alpha=0.4, chance=0.1)
    student, teacher, plain = (
        model(name, size, float(array.mean()))
        for name, size, array in (("S", 20, data.student), ("T", 100, data.teacher), ("P", 20, data.plain))
    )
    expected = {
        "score": distillation_score(student, teacher, 0.4),
        "chance_adjusted": chance_adjusted_score(student, teacher, 0.4, Accuracy(0.1, "fraction")),
        "gain": score_gain(student, plain, teacher, 0.4),
        "gap_closed": gap_closed(student, plain, teacher),
    }
    for name, interval in each(found).items():
        assert interval.estimate == pytest.approx(value(expected[name]), abs=1e-12)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(300, 600), st.floats(0, 1))
def test_p13_the_interval_holds_its_estimate(seed: int, seeds: int, n: int, alpha: float) -> None:
    data = trio(seeds, n, seed=seed)
    for interval in each(score_intervals(data, size_ratio=0.2, alpha=alpha, chance=0.1, draws=500, seed=seed)).values():
        assert interval.low95 <= interval.low90 <= interval.estimate <= interval.high90 <= interval.high95
        assert (interval.examples, interval.seeds) == (n, seeds)


@pytest.mark.parametrize("name", ["score", "chance_adjusted", "gain", "gap_closed"])
def test_p13_the_width_shrinks_with_the_root_of_n(name: str) -> None:
    widths = []
    for n in (500, 8000):
        intervals = each(score_intervals(trio(1, n, spread=0.0), size_ratio=0.2, alpha=0.5, chance=0.1))
        widths.append(intervals[name].high95 - intervals[name].low95)
    assert widths[0] / widths[1] == pytest.approx(4.0, rel=0.2)


def test_intervals_cover_what_they_estimate() -> None:
    """Of 90 % intervals from independent test sets, nine in ten hold the true score."""
    rng = np.random.default_rng(5)
    true = 0.5 * 0.2 + 0.5 * (1 - 0.8 / 0.9)
    held = 0
    for _ in range(300):
        data = outcomes(list(drawn(rng, 0.8, 1, 300)), list(drawn(rng, 0.9, 1, 300)))
        found = got(score_intervals(data, size_ratio=0.2, alpha=0.5, draws=400).score)
        held += found.low90 <= true <= found.high90
    assert 0.84 <= held / 300 <= 0.95


def test_intervals_over_five_seeds_cover_what_new_trainings_would_score() -> None:
    """Where the seeds make the spread, as many intervals hold the true score as their level says."""
    rng = np.random.default_rng(11)
    times, n, held = 300, 2000, {90: 0, 95: 0}
    true = 0.5 * 0.2 + 0.5 * (1 - 0.7 / 0.9)
    teacher = [np.arange(n) % 10 > 0] * 5
    for _ in range(times):
        trained = 0.7 + rng.normal(0, 0.04, (5, 1))
        data = outcomes(list(rng.random((5, n)) < trained), teacher)
        found = got(score_intervals(data, size_ratio=0.2, alpha=0.5, draws=400).score)
        held[90] += found.low90 <= true <= found.high90
        held[95] += found.low95 <= true <= found.high95
    for level, count in held.items():
        low, high = scipy.stats.binom.ppf((0.001, 0.999), times, level / 100)
        assert low <= count <= high, (level, count / times)


def test_the_spread_between_seeds_counts() -> None:
    """However many examples there are, trainings that end differently leave the interval wide."""
    steady, shaky = (
        got(score_intervals(trio(6, 4000, spread=spread), size_ratio=0.2, alpha=0.5).score).se for spread in (0.0, 0.1)
    )
    assert shaky > 2 * steady


def test_pairing_narrows_what_models_share() -> None:
    rng = np.random.default_rng(0)
    data = trio(1, 2000)
    alone = outcomes([rng.permutation(data.student[0])], [data.teacher[0]])
    paired, unpaired = (got(score_intervals(one, size_ratio=0.2, alpha=0.5).score).se for one in (data, alone))
    assert paired < 0.9 * unpaired


def test_the_difference_of_two_students() -> None:
    data = trio(3, 500)
    assert data.plain is not None
    plain = outcomes(list(data.plain), list(data.teacher))
    found = got(difference_interval(data, plain, size_ratios=(0.2, 0.2), alpha=0.4))
    # Equal sizes cancel: what is left is minus the gain by distillation, of the same draws.
    gain = got(score_intervals(data, size_ratio=None, alpha=0.4).gain)
    assert found.estimate == pytest.approx(-gain.estimate, abs=1e-12)
    assert found.se == pytest.approx(gain.se, rel=0.08)
    other = got(difference_interval(plain, data, size_ratios=(0.2, 0.2), alpha=0.4))
    assert other.estimate == -found.estimate
    larger = got(difference_interval(data, plain, size_ratios=(0.7, 0.2), alpha=0.4))
    assert larger.estimate == pytest.approx(found.estimate + 0.4 * 0.5)
    assert larger.low95 == pytest.approx(found.low95 + 0.4 * 0.5)
    itself = got(difference_interval(data, data, size_ratios=(0.2, 0.2), alpha=0.4))
    assert (itself.estimate, itself.se, itself.low95, itself.high95) == (0, 0, 0, 0)


def test_the_same_data_give_the_same_interval_in_any_order_of_examples() -> None:
    data = trio(3, 300)
    assert data.plain is not None
    order = np.random.default_rng(0).permutation(300)
    shuffled = outcomes(list(data.student[:, order]), list(data.teacher[:, order]), list(data.plain[:, order]))
    first = score_intervals(data, size_ratio=0.2, alpha=0.5)
    assert score_intervals(shuffled, size_ratio=0.2, alpha=0.5) == first
    assert score_intervals(data, size_ratio=0.2, alpha=0.5, seed=1) != first


def test_draws_in_blocks_are_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score_intervals(trio(2, 200), size_ratio=0.2, alpha=0.5)
    monkeypatch.setattr("kdbench_survey_metric.bootstrap._CELLS_AT_ONCE", 1000)
    assert score_intervals(trio(2, 200), size_ratio=0.2, alpha=0.5) == whole


# ------------------------------------------------------------------------------------------------------- at the limits


@pytest.mark.parametrize(
    ("seeds", "n", "notes"),
    [
        (1, 100, ("one seed: the interval says nothing about how another training would end",)),
        (2, 100, ("only 2 seeds: the 95 % interval is 9.2 times that of the draws, and rough",)),
        (4, 100, ("only 4 seeds: the 95 % interval is 1.9 times that of the draws, and rough",)),
        (5, 100, ()),
        (5, 99, ("only 99 test examples: the interval is rough",)),
    ],
)
def test_few_seeds_and_few_examples_are_said(seeds: int, n: int, notes: tuple[str, ...]) -> None:
    assert got(score_intervals(trio(seeds, n), size_ratio=0.2, alpha=0.5).score).notes == notes


def test_what_is_not_given_is_unknown() -> None:
    data = trio(2, 200)
    without = Outcomes(student=data.student, teacher=data.teacher)
    found = score_intervals(without, size_ratio=None, alpha=0.5, chance=0.1)
    no_size, no_plain = Unknown("the size ratio is unknown"), Unknown("there is no student without a teacher")
    assert (found.score, found.chance_adjusted, found.gain, found.gap_closed) == (no_size, no_size, no_plain, no_plain)
    no_chance = score_intervals(data, size_ratio=0.2, alpha=0.5).chance_adjusted
    assert no_chance == Unknown("the rate of the largest class is unknown")


def test_ratios_without_a_ground_are_unknown() -> None:
    right, wrong = [True] * 200, [False] * 200
    always_wrong = score_intervals(outcomes([right], [wrong], [right]), size_ratio=0.2, alpha=0.5, chance=0.1)
    assert always_wrong.score == always_wrong.gain == Unknown("the teacher is always wrong")
    assert always_wrong.chance_adjusted == Unknown("the teacher is at or below chance")
    assert always_wrong.gap_closed == Unknown("the gap to the teacher is below 1 points")


def test_a_gap_that_half_of_the_draws_do_not_see_has_no_interval() -> None:
    rng = np.random.default_rng(0)
    teacher = [True] * 92 + [False] * 8
    plain = [True] * 90 + [False] * 10
    data = outcomes([rng.permutation(teacher)], [rng.permutation(teacher)], [rng.permutation(plain)])
    found = score_intervals(data, size_ratio=0.2, alpha=0.5).gap_closed
    assert isinstance(found, Unknown)
    assert found.reason.endswith(
        "% of the bootstrap draws the gap to the teacher is below 1 points: too few examples or seeds"
    )


def test_a_few_lost_draws_are_left_out_and_said() -> None:
    teacher, plain = [True] * 95 + [False] * 5, [True] * 88 + [False] * 12
    data = outcomes([teacher], [teacher], [plain])
    found = got(score_intervals(data, size_ratio=0.2, alpha=0.5, draws=4000).gap_closed)
    lost = 4000 - found.draws
    assert 0 < lost < 40
    assert (
        found.notes[-1]
        == f"{lost} of 4000 draws are left out, because the gap to the teacher is below 1 points in them"
    )


def test_one_example_and_perfect_models_have_intervals_without_width() -> None:
    found = got(score_intervals(outcomes([[True]], [[True]]), size_ratio=0.2, alpha=0.5).score)
    assert (found.low95, found.estimate, found.high95, found.se) == (0.1, 0.1, 0.1, 0.0)
    assert found.notes[-1] == "only 1 test example: the interval is rough"
    assert got(score_intervals(outcomes([[1]], [[1]]), size_ratio=0.2, alpha=0.5, draws=1).score).se == 0.0


def test_outcomes_cannot_be_changed_afterwards() -> None:
    source = np.ones(10, dtype=np.bool_)
    data = outcomes([source], [source])
    source[:] = False
    assert data.student.all()
    with pytest.raises(ValueError, match="read-only"):
        data.teacher[0, 0] = False

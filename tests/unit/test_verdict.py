"""Summaries, gains and values: every number against scipy or statsmodels called directly, every degenerate case."""

from __future__ import annotations

import math
from random import Random

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW, ttost_paired

from kdbench.errors import KdbenchError
from kdbench.paper import Comparison
from kdbench.verdict import judge_gain, judge_value, seeds_needed, summarise
from kdbench.verdict.value import value_word

TA, BL = "table1/cnn/TAKD", "table1/cnn/BLKD"
MDISTILLER = dict(enumerate([76.20, 75.80, 75.89, 75.85, 76.15]))  # five published runs against the README's 76.32


def better(left: str = TA, right: str = BL, **fields: object) -> Comparison:
    return Comparison(left=left, right=right, **fields)


def cells(gain: list[float], base: float = 60.0, left: str = TA, right: str = BL) -> dict[str, dict[int, float]]:
    """Two cells whose paired differences are ``gain``, on a base that moves with the seed."""
    wobble = [base + 0.4 * math.sin(3.0 * seed) for seed in range(len(gain))]
    return {left: {s: b + g for s, (b, g) in enumerate(zip(wobble, gain, strict=True))}, right: dict(enumerate(wobble))}


def around(mean: float, step: float, n: int = 5) -> list[float]:
    return [mean + step * (i - (n - 1) / 2) for i in range(n)]


# --- summaries --------------------------------------------------------------------------------------------------------


def test_a_summary_is_the_t_interval_of_scipy() -> None:
    values = list(MDISTILLER.values())
    summary = summarise(values)
    low, high = stats.t.interval(0.95, df=4, loc=np.mean(values), scale=stats.sem(values))
    assert (summary.n, summary.mean, summary.sd) == (5, pytest.approx(75.978), pytest.approx(np.std(values, ddof=1)))
    assert (summary.low, summary.high) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], (0, None, None, None, None)),
        ([61.5], (1, 61.5, None, None, None)),
        ([61.5, math.nan, math.inf], (1, 61.5, None, None, None)),
        ([0.1 + 0.2, 0.3], (2, pytest.approx(0.3), 0.0, None, None)),
    ],
)
def test_a_summary_says_only_what_few_values_allow(values: list[float], expected: tuple[object, ...]) -> None:
    assert msgspec.structs.astuple(summarise(values)) == expected


# --- gains ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("relation", "sign", "floor", "ceiling"),
    [("greater", 1, 0.0, 0.3), ("less", -1, 0.0, 0.3), ("not_worse", 1, -0.3, 0.0)],
)
def test_a_gain_is_the_paired_t_test_of_scipy(relation: str, sign: int, floor: float, ceiling: float) -> None:
    samples = cells([0.4, -0.1, 0.25, 0.05, 0.6])
    test = judge_gain(better(relation=relation), samples, margin=0.3)
    gains = sign * (np.array(list(samples[TA].values())) - np.array(list(samples[BL].values())))
    assert (test.n, test.gain, test.sd) == (5, pytest.approx(gains.mean()), pytest.approx(gains.std(ddof=1)))
    assert test.p_support == pytest.approx(stats.ttest_1samp(gains, floor, alternative="greater").pvalue)
    assert test.p_contradict == pytest.approx(stats.ttest_1samp(gains, ceiling, alternative="less").pvalue)
    interval = stats.ttest_1samp(gains, 0.0).confidence_interval(0.90)
    assert (test.low, test.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_smaller_than_the_margin_is_the_equivalence_test_of_statsmodels() -> None:
    samples = cells(around(0.1, 0.02))
    test = judge_gain(better(), samples, margin=0.3)
    left, right = (np.array(list(samples[name].values())) for name in (TA, BL))
    p, above, below = ttost_paired(left, right, 0.0, 0.3)
    assert (test.p_support, test.p_contradict) == (pytest.approx(above[1]), pytest.approx(below[1]))
    assert p <= 0.05
    assert test.outcome == "smaller than the margin"


@pytest.mark.parametrize(
    ("relation", "gain", "outcome"),
    [
        ("greater", around(0.5, 0.1), "supported"),
        ("greater", around(0.0, 0.05), "contradicted"),
        ("greater", around(-0.5, 0.1), "contradicted"),
        ("greater", around(0.12, 0.02), "smaller than the margin"),
        ("greater", around(0.1, 0.6), "not resolved"),
        ("less", around(-0.5, 0.1), "supported"),
        ("less", around(0.5, 0.1), "contradicted"),
        ("not_worse", around(0.0, 0.05), "supported"),
        ("not_worse", around(-0.5, 0.1), "contradicted"),
        ("not_worse", around(-0.15, 0.02), "smaller than the margin"),
        ("not_worse", around(-0.15, 0.5), "not resolved"),
    ],
)
def test_every_relation_has_every_outcome(relation: str, gain: list[float], outcome: str) -> None:
    assert judge_gain(better(relation=relation), cells(gain), margin=0.3).outcome == outcome


def test_only_seeds_that_both_cells_have_are_paired() -> None:
    samples = {TA: {0: 61.0, 1: 62.5, 2: 70.0, 4: math.nan}, BL: {0: 60.0, 1: 61.0, 3: 10.0, 4: 60.0}}
    test = judge_gain(better(), samples, margin=0.3)
    assert (test.n, test.gain, test.left_mean, test.right_mean) == (2, 1.25, 61.75, 60.5)


def test_a_comparison_brings_its_own_margin() -> None:
    samples = cells(around(0.5, 0.1))
    assert judge_gain(better(margin=2.0), samples, margin=0.3).outcome == "smaller than the margin"
    assert judge_gain(better(margin=0.0), samples, margin=2.0).outcome == "supported"


@pytest.mark.parametrize(
    ("gain", "outcome", "sd"),
    [([], "not tested", None), ([0.7], "not resolved", None), ([0.7] * 4, "not resolved", 0.0)],
)
def test_without_a_spread_nothing_is_tested(gain: list[float], outcome: str, sd: float | None) -> None:
    test = judge_gain(better(), cells(gain), margin=0.3)
    assert (test.n, test.outcome, test.sd) == (len(gain), outcome, sd)
    assert (test.low, test.high, test.p_support, test.p_contradict, test.more_seeds) == (None,) * 5


def test_rounding_is_measured_by_what_was_subtracted() -> None:
    # The gain is a millionth for every seed, but the spacing of floating-point numbers grows with what it is added to.
    base = {0: 0.1, 1: 10.1, 2: 30.3, 3: 70.7}
    samples = {TA: {seed: value + 1e-6 for seed, value in base.items()}, BL: base}
    assert np.ptp([samples[TA][seed] - base[seed] for seed in base]) > 0
    test = judge_gain(better(), samples, margin=0.3)
    assert (test.sd, test.outcome) == (0.0, "not resolved")


@pytest.mark.parametrize("margin", [-0.1, math.nan, math.inf])
def test_a_margin_that_is_no_size_is_refused(margin: float) -> None:
    with pytest.raises(KdbenchError, match="is not a size"):
        judge_gain(better(), cells([0.1, 0.2]), margin=margin)
    with pytest.raises(KdbenchError, match="is not a size"):
        judge_value(TA, MDISTILLER, 76.32, margin=margin)


# --- seeds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("effect", [0.1, 0.3, 0.8, 1.5, 3.0])
def test_the_seeds_needed_have_the_power_and_one_fewer_does_not(effect: float) -> None:
    needed = seeds_needed(1.0, effect)
    assert needed is not None
    power = [TTestPower().power(effect, nobs, 0.05, alternative="larger") for nobs in (needed - 1, needed)]
    assert power[0] < 0.8 <= power[1]


def test_seeds_needed_where_it_cannot_be_said_or_two_suffice() -> None:
    assert [seeds_needed(None, 0.3), seeds_needed(0.0, 0.3), seeds_needed(0.5, 0.0)] == [None, None, None]
    assert [seeds_needed(0.01, 0.3), seeds_needed(1e-9, 0.3)] == [2, 2]


def test_more_seeds_are_those_beyond_the_ones_there_are() -> None:
    test = judge_gain(better(), cells(around(0.1, 0.3)), margin=0.3)
    needed = math.ceil(TTestPower().solve_power(0.3 / test.sd, power=0.8, alpha=0.05, alternative="larger"))
    assert test.outcome == "not resolved"
    assert test.more_seeds == needed - 5 > 0


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("margin", "word"), [(0.75, "reproduced"), (0.5, "inconclusive")])
def test_mdistiller_golden_value(margin: float, word: str) -> None:
    test = judge_value(TA, MDISTILLER, 76.32, margin=margin)
    assert test.word == word
    p, *_ = DescrStatsW(np.array(list(MDISTILLER.values()))).ttost_mean(76.32 - margin, 76.32 + margin)
    assert test.p == pytest.approx(p)
    assert (test.mean, test.low, test.high) == (
        pytest.approx(75.978),
        pytest.approx(-0.51694, abs=1e-5),
        pytest.approx(-0.16706, abs=1e-5),
    )


@pytest.mark.parametrize(
    ("shift", "higher", "word"),
    [
        (2.0, True, "exceeds"), (-2.0, True, "not reproduced"),
        (2.0, False, "not reproduced"), (-2.0, False, "exceeds"),
        (0.7, True, "inconclusive"), (-0.7, True, "inconclusive"), (0.0, True, "reproduced"),
    ],
)  # fmt: skip
def test_a_value_beyond_the_margin_has_a_side(shift: float, higher: bool, word: str) -> None:
    measured = dict(enumerate(around(70.0 + shift, 0.1)))
    assert judge_value(TA, measured, 70.0, margin=0.75, higher_is_better=higher).word == word


@pytest.mark.parametrize(
    ("measured", "margin", "reason"),
    [
        ({}, 0.75, "not measured"),
        ({0: math.nan}, 0.75, "not measured"),
        ({0: 70.0}, 0.75, "one seed"),
        ({0: 70.0, 1: 70.0}, 0.75, "all 2 seeds gave the same value"),
        ({0: 70.0, 1: 70.1}, 0.0, "no value margin"),
    ],
)
def test_a_value_that_cannot_be_tested_says_why(measured: dict[int, float], margin: float, reason: str) -> None:
    test = judge_value(TA, measured, 70.0, margin=margin)
    assert (test.word, test.p, test.low) == ("inconclusive", None, None)
    assert reason in test.reasons[0]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "no reported number"),
        (["reproduced", "reproduced"], "reproduced"),
        (["reproduced", "exceeds"], "exceeds"),
        (["inconclusive", "exceeds"], "inconclusive"),
        (["reproduced", "inconclusive"], "inconclusive"),
        (["exceeds", "not reproduced", "inconclusive"], "not reproduced"),
        (["not comparable", "not comparable"], "not comparable"),
    ],
)
def test_the_value_word_of_a_claim(words: list[str], expected: str) -> None:
    blank = judge_value(TA, MDISTILLER, 76.32, margin=0.75)
    ps = {"not reproduced": 0.001}
    tests = [msgspec.structs.replace(blank, word=word, p_beyond=ps.get(word, 0.9)) for word in words]
    assert value_word(tests) == expected


def test_one_cell_beyond_the_margin_must_hold_for_all_cells_together() -> None:
    blank = judge_value(TA, MDISTILLER, 76.32, margin=0.75)
    barely = msgspec.structs.replace(blank, word="not reproduced", p_beyond=0.03)
    assert value_word([barely]) == "not reproduced"
    assert value_word([barely, blank]) == "inconclusive"


# --- properties -------------------------------------------------------------------------------------------------------

accuracies = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)), min_size=2, max_size=8).map(
    lambda pairs: (
        {7919 * seed**3 % 1009: left / 100 for seed, (left, _) in enumerate(pairs)},
        {7919 * seed**3 % 1009: right / 100 for seed, (_, right) in enumerate(pairs)},
    )
)


@settings(max_examples=60, deadline=None)
@given(accuracies)
def test_swapping_the_cells_mirrors_the_gain(pair: tuple[dict[int, float], dict[int, float]]) -> None:
    samples = {TA: pair[0], BL: pair[1]}
    one, other = (judge_gain(c, samples, margin=0.0) for c in (better(TA, BL), better(BL, TA)))
    less = judge_gain(better(BL, TA, relation="less"), samples, margin=0.0)
    assert other.gain == pytest.approx(-one.gain, abs=1e-12)
    assert (one.n, one.sd) == (other.n, pytest.approx(other.sd))
    assert (one.p_support, one.p_contradict) == (pytest.approx(other.p_contradict), pytest.approx(other.p_support))
    if one.low is not None:
        assert (one.low, one.high) == (pytest.approx(-other.high), pytest.approx(-other.low))
    assert (less.gain, less.low, less.p_support) == (one.gain, one.low, one.p_support)


@settings(max_examples=60, deadline=None)
@given(accuracies, st.integers(-100, 100))
def test_shifting_both_cells_leaves_the_gain(pair: tuple[dict[int, float], dict[int, float]], shift: int) -> None:
    here = judge_gain(better(), {TA: pair[0], BL: pair[1]}, margin=0.3)
    moved = [{seed: value + shift for seed, value in cell.items()} for cell in pair]
    there = judge_gain(better(), {TA: moved[0], BL: moved[1]}, margin=0.3)
    assert there.gain == pytest.approx(here.gain, abs=1e-9)
    assert there.p_support == pytest.approx(here.p_support, abs=1e-6)
    assert there.p_contradict == pytest.approx(here.p_contradict, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(accuracies, st.randoms(use_true_random=False))
def test_the_order_of_the_seeds_does_not_matter(pair: tuple[dict[int, float], dict[int, float]], dice: Random) -> None:
    def shuffled(cell: dict[int, float]) -> dict[int, float]:
        return dict(dice.sample(list(cell.items()), len(cell)))

    straight = judge_gain(better(), {TA: pair[0], BL: pair[1]}, margin=0.3)
    mixed = judge_gain(better(), {BL: shuffled(pair[1]), TA: shuffled(pair[0])}, margin=0.3)
    assert mixed == straight
    straight, mixed = (judge_value(TA, cell, 60.0, margin=0.5) for cell in (pair[0], shuffled(pair[0])))
    assert mixed == straight

"""The relation ``equal``: two one-sided tests for it, two against it, and how often either is wrong."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from kdbench.errors import KdbenchError
from kdbench.paper import Claim, Comparison
from kdbench.verdict import ClaimVerdict, judge, judge_gain, seeds_needed
from kdbench.verdict.gain import GainTest

LEFT, RIGHT = "accuracy/cnn/shuffled", "accuracy/cnn/LS"
EQUAL = Comparison(left=LEFT, right=RIGHT, relation="equal")
MARGIN = 0.5


def cells(gain: list[float]) -> dict[str, dict[int, float]]:
    """Two cells whose paired differences are ``gain``, on a base that moves with the seed."""
    base = [60.0 + 0.4 * math.sin(3.0 * seed) for seed in range(len(gain))]
    return {LEFT: {s: b + g for s, (b, g) in enumerate(zip(base, gain, strict=True))}, RIGHT: dict(enumerate(base))}


def around(mean: float, step: float, n: int = 5) -> list[float]:
    return [mean + step * (i - (n - 1) / 2) for i in range(n)]


def judged(gain: list[float], margin: float = MARGIN, **how: bool) -> GainTest:
    return judge_gain(EQUAL, cells(gain), margin=margin, **how)


def claim(*comparisons: Comparison, **fields: object) -> Claim:
    facts = {
        "id": "C1", "title": "t", "sentence": "s", "source": "Table 1", "certainty": "paper", "gain_margin": MARGIN,
        "alternatives": (comparisons or (EQUAL,),),
    }  # fmt: skip
    return Claim(**{**facts, **fields})


def stated(gain: list[float], **fields: object) -> ClaimVerdict:
    return judge(claim(**fields), cells(gain), {}, scale="toy", seeds=5)


# --- one comparison ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gain", "outcome"),
    [
        (around(0.0, 0.1), "supported"),
        (around(0.2, 0.1), "supported"),
        (around(-0.2, 0.1), "supported"),
        (around(1.5, 0.2), "contradicted"),
        (around(-1.5, 0.2), "contradicted"),
        (around(0.0, 1.0), "not resolved"),
        (around(0.5, 0.1), "not resolved"),
        (around(-0.5, 0.1), "not resolved"),
        ([0.1], "not resolved"),
        ([0.1] * 4, "not resolved"),
    ],
)
def test_equal_is_within_the_margin_either_way(gain: list[float], outcome: str) -> None:
    test = judged(gain)
    assert test.outcome == outcome
    assert judged([-value for value in gain]).outcome == outcome, "there is no side"
    if test.low is not None and test.high is not None:
        assert (outcome == "supported") == (test.low > -MARGIN and test.high < MARGIN)
        assert outcome != "contradicted" or test.low > MARGIN or test.high < -MARGIN


@pytest.mark.parametrize("mean", [0.0, 0.3, -0.45, 0.9, -2.0])
def test_support_is_the_equivalence_test_of_statsmodels(mean: float) -> None:
    test, samples = judged(around(mean, 0.17)), cells(around(mean, 0.17))
    left, right = (np.array(list(samples[name].values())) for name in (LEFT, RIGHT))
    assert test.p_support == pytest.approx(ttost_paired(left, right, -MARGIN, MARGIN)[0])
    assert test.gain == pytest.approx(mean)
    ps = [
        stats.ttest_1samp(left - right, bound, alternative=side).pvalue
        for bound, side in ((-MARGIN, "less"), (MARGIN, "greater"))
    ]
    assert test.p_contradict == pytest.approx(min(1.0, 2 * min(ps)))
    interval = stats.ttest_1samp(left - right, 0.0).confidence_interval(0.90)
    assert (test.low, test.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_beyond_the_margin_is_two_sided() -> None:
    """Either side would contradict, so each has half of the 5 %: a one-sided p between is not enough."""
    gains = around(0.5, 0.1)
    shift = next(s for s in np.linspace(0, 1, 2001) if 0.03 < stats.ttest_1samp(
        np.array(gains) + s, MARGIN, alternative="greater").pvalue < 0.045)  # fmt: skip
    test = judged([value + shift for value in gains])
    assert test.low is not None
    assert test.low > MARGIN
    assert test.outcome == "not resolved"


@pytest.mark.parametrize("exact", [False, True])
def test_nothing_is_equal_to_within_nothing(exact: bool) -> None:
    with pytest.raises(KdbenchError, match="nothing is equal to within 0") as caught:
        judged([0.1, 0.2], margin=0.0, exact=exact)
    assert caught.value.where == f"{LEFT} against {RIGHT}"
    assert "declare the difference that would matter" in str(caught.value.cure)
    own = msgspec.structs.replace(EQUAL, margin=0.0)
    with pytest.raises(KdbenchError, match="nothing is equal to within 0"):
        judge_gain(own, cells([0.1, 0.2]), margin=1.0)
    assert judge_gain(msgspec.structs.replace(EQUAL, margin=0.5), cells([0.1, 0.2]), margin=0.0).n == 2


@pytest.mark.parametrize(
    ("gain", "outcome", "sentence"),
    [
        ([0.3], "supported", "shuffled - LS = +0.30 % (computed): within 0.5 %"),
        ([0.0, 0.0], "supported", "shuffled - LS = +0.00 % (computed): within 0.5 %"),
        ([-0.3, 0.1], "supported", "shuffled - LS = -0.10 % (computed, at most 0.30 apart): within 0.5 %"),
        ([0.1, 0.1, 0.7], "contradicted", "shuffled - LS = +0.30 % (computed, at most 0.70 apart): not within 0.5 %"),
        ([0.1, -0.7], "contradicted", "shuffled - LS = -0.30 % (computed, at most 0.70 apart): not within 0.5 %"),
        ([-0.6], "contradicted", "shuffled - LS = -0.60 % (computed): not within 0.5 %"),
    ],
)
def test_computed_cells_are_equal_where_every_seed_is_within(gain: list[float], outcome: str, sentence: str) -> None:
    verdict = stated(gain, exact=True)
    assert (verdict.gain_word, verdict.sentence) == (outcome, sentence)
    ((test,),) = verdict.tests
    assert (test.p_support, test.p_contradict) == ((0.0, 1.0) if outcome == "supported" else (1.0, 0.0))
    assert (test.low, test.high) == (pytest.approx(min(gain)), pytest.approx(max(gain)))


def test_a_computed_difference_of_just_the_margin_is_not_less_than_it() -> None:
    samples = {LEFT: {0: 1.5}, RIGHT: {0: 1.0}}
    assert judge_gain(EQUAL, samples, margin=0.5, exact=True).outcome == "contradicted"
    assert judge_gain(EQUAL, samples, margin=0.5000001, exact=True).outcome == "supported"


def test_of_several_computed_pairs_the_farthest_apart_is_named() -> None:
    pairs = tuple(Comparison(left=f"target/{n}", right="target/x", relation="equal") for n in "abc")
    samples = {"target/x": {0: 0.0}, "target/a": {0: 0.1}, "target/b": {0: -0.4}, "target/c": {0: 0.3}}
    verdict = judge(claim(*pairs, exact=True, unit=""), samples, {}, scale="toy", seeds=1)
    assert verdict.gain_word == "supported"
    assert verdict.sentence == "Of 3 comparisons the critical one: b - x = -0.40 (computed): within 0.5"
    samples["target/c"] = {0: 0.6}
    verdict = judge(claim(*pairs, exact=True, unit=""), samples, {}, scale="toy", seeds=1)
    assert verdict.gain_word == "contradicted"
    assert "c - x = +0.60 (computed): not within 0.5" in verdict.sentence


# --- sentences --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gain", "reading"),
    [
        (around(0.1, 0.1), "the interval lies within 0.5 % either way"),
        (around(-1.5, 0.2), "the interval lies beyond 0.5 % either way"),
        (around(0.2, 0.4), "the interval reaches beyond 0.5 % either way"),
        (around(0.75, 0.15), "the interval lies beyond 0.5 %, but not at 5 % for both ways together"),
    ],
)
def test_the_sentence_says_where_the_interval_lies(gain: list[float], reading: str) -> None:
    sentence = stated(gain).sentence
    assert sentence.startswith(f"shuffled - LS = {np.mean(gain):+.2f} % (90 % CI ")
    assert reading in sentence


# --- how often it is wrong --------------------------------------------------------------------------------------------

STUDIES = 1000
ALLOWED = stats.binom.ppf(0.999, STUDIES, 0.05) / STUDIES


def words(truth: float, *, seeds: int, noise: float, studies: int = STUDIES) -> dict[str, float]:
    """Share of each word over simulated studies whose paired differences are normal about ``truth``."""
    gains = np.random.default_rng(20240229).normal(truth, noise, (studies, seeds))
    count: dict[str, int] = {}
    for study in gains.tolist():
        samples = {LEFT: dict(enumerate(study)), RIGHT: dict.fromkeys(range(seeds), 0.0)}
        word = judge_gain(EQUAL, samples, margin=MARGIN).outcome
        count[word] = count.get(word, 0) + 1
    return {word: number / studies for word, number in count.items()}


@pytest.mark.parametrize("truth", [MARGIN, -MARGIN])
@pytest.mark.parametrize("noise", [0.1, 0.5])
def test_a_difference_of_just_the_margin_is_seldom_called_equal_or_beyond(truth: float, noise: float) -> None:
    share = words(truth, seeds=5, noise=noise)
    assert share.get("supported", 0.0) <= ALLOWED
    # Half the level is on this side.
    assert share.get("contradicted", 0.0) <= stats.binom.ppf(0.999, STUDIES, 0.025) / STUDIES
    assert "smaller than the margin" not in share


def test_at_the_edge_the_level_is_used_up() -> None:
    share = words(MARGIN, seeds=5, noise=0.1)
    assert share["supported"] >= stats.binom.ppf(0.001, STUDIES, 0.05) / STUDIES
    assert share["contradicted"] >= stats.binom.ppf(0.001, STUDIES, 0.025) / STUDIES


@pytest.mark.parametrize(("noise", "allowed"), [(0.1, 0.0), (0.5, 0.01), (2.0, ALLOWED)])
def test_equal_cells_are_seldom_called_different(noise: float, allowed: float) -> None:
    assert words(0.0, seeds=5, noise=noise).get("contradicted", 0.0) <= allowed


@pytest.mark.parametrize("truth", [2.0, -2.0])
def test_what_differs_is_found(truth: float) -> None:
    assert words(truth, seeds=5, noise=0.4)["contradicted"] > 0.95


@pytest.mark.parametrize("noise", [0.2, 0.4, 1.0])
def test_the_seeds_needed_show_equal_cells_to_be_so(noise: float) -> None:
    """With 80 % power, up to the error of the simulation; and not with many more seeds than that takes."""
    needed = seeds_needed(noise, MARGIN, relation="equal")
    assert needed is not None
    assert words(0.0, seeds=needed, noise=noise)["supported"] >= stats.binom.ppf(0.001, STUDIES, 0.8) / STUDIES
    assert words(0.0, seeds=needed - 1, noise=noise)["supported"] < 0.85


@pytest.mark.parametrize("effect", [0.3, 0.8, 1.5])
def test_each_of_its_two_tests_has_ninety_per_cent(effect: float) -> None:
    needed = seeds_needed(1.0, effect, relation="equal")
    assert needed is not None
    power = [TTestPower().power(effect, nobs, 0.05, alternative="larger") for nobs in (needed - 1, needed)]
    assert power[0] < 0.9 <= power[1]
    plain = seeds_needed(1.0, effect)
    assert plain is not None
    assert needed > plain


def test_seeds_for_equality_where_it_cannot_be_said_or_two_suffice() -> None:
    assert [seeds_needed(sd, 0.3, relation="equal") for sd in (None, 0.0)] == [None, None]
    assert seeds_needed(1e-9, 0.3, relation="equal") == 2


def test_a_claim_that_is_open_says_how_many_more() -> None:
    verdict = stated(around(0.0, 0.5))
    ((test,),) = verdict.tests
    needed = seeds_needed(test.sd, MARGIN, relation="equal")
    assert verdict.gain_word == "not resolved"
    assert verdict.more_seeds == test.more_seeds == (needed or 0) - 5 > 0
    assert verdict.sentence.endswith(f"about {verdict.more_seeds} more seeds would decide")

"""Verdicts on claims: how comparisons combine, every word at both scales, and the sentence that says it."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from kdbench.errors import KdbenchError
from kdbench.paper import Claim, Comparison, ReportedCell
from kdbench.verdict import ClaimVerdict, judge, seeds_needed
from kdbench.verdict.sentence import short_names
from kdbench.verdict.summary import adjusted_minimum

TA, BL, KD, OTHER = "table1/cnn/TAKD", "table1/cnn/BLKD", "table1/cnn/NOKD", "table1/cnn/X"


def claim(*alternatives: tuple[Comparison, ...], **fields: object) -> Claim:
    facts = {
        "id": "C1", "title": "TAKD over BLKD", "sentence": "TAKD beats BLKD.", "source": "Table 1",
        "certainty": "paper", "gain_margin": 0.3, "value_margin": 0.75, "alternatives": alternatives,
    }  # fmt: skip
    return Claim(**{**facts, **fields})


def better(left: str = TA, right: str = BL, **fields: object) -> Comparison:
    return Comparison(left=left, right=right, **fields)


def cells(gain: list[float], base: float = 60.0, left: str = TA, right: str = BL) -> dict[str, dict[int, float]]:
    """Two cells whose paired differences are ``gain``, on a base that moves with the seed."""
    wobble = [base + 0.4 * math.sin(3.0 * seed) for seed in range(len(gain))]
    return {left: {s: b + g for s, (b, g) in enumerate(zip(wobble, gain, strict=True))}, right: dict(enumerate(wobble))}


def around(mean: float, step: float, n: int = 5) -> list[float]:
    return [mean + step * (i - (n - 1) / 2) for i in range(n)]


def reported(**numbers: float | None) -> dict[str, ReportedCell]:
    return {
        f"table1/cnn/{name}": ReportedCell(cell=f"table1/cnn/{name}", value=value, certainty="paper", source="Table 1")
        for name, value in numbers.items()
    }


def run(facts: Claim, samples: dict[str, dict[int, float]], **options: object) -> ClaimVerdict:
    return judge(facts, samples, **{"reported": {}, "scale": "toy", "seeds": 5, **options})


# --- claims -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ps", [[0.04], [0.02, 0.03], [0.3, 0.011, 0.9], [0.6, 0.7, 1.0], [1e-9] * 5])
def test_the_adjusted_minimum_is_holms(ps: list[float]) -> None:
    assert adjusted_minimum(ps) == pytest.approx(multipletests(ps, method="holm")[1].min())


def test_comparisons_and_alternatives_combine_as_declared() -> None:
    both, either = (better(TA, BL), better(TA, KD)), (better(BL, KD),)
    samples = {
        TA: dict(enumerate([61.0, 61.4, 60.9, 61.1])),
        BL: dict(enumerate([60.7, 60.8, 60.9, 60.6])),
        KD: dict(enumerate([60.1, 60.9, 60.5, 60.2])),
    }
    array = {name: np.array(list(values.values())) for name, values in samples.items()}

    def p(left: str, right: str, bound: float, side: str) -> float:
        return float(stats.ttest_1samp(array[left] - array[right], bound, alternative=side).pvalue)

    verdict = run(claim(both, either), samples)
    support = [max(p(TA, BL, 0, "greater"), p(TA, KD, 0, "greater")), p(BL, KD, 0, "greater")]
    assert verdict.p_support == pytest.approx(multipletests(support, method="holm")[1].min())
    against = multipletests([p(TA, BL, 0.3, "less"), p(TA, KD, 0.3, "less")], method="holm")[1].min()
    assert verdict.p_contradict == pytest.approx(max(against, p(BL, KD, 0.3, "less")))
    assert [len(group) for group in verdict.tests] == [2, 1]


@pytest.mark.parametrize(
    ("gain", "toy", "paper"),
    [
        (around(0.5, 0.1), "supported", "reproduced"),
        (around(0.0, 0.05), "contradicted", "not reproduced"),
        (around(0.1, 0.6), "not resolved", "inconclusive"),
        (around(0.12, 0.02), "smaller than the margin", "smaller than the margin"),
        ([], "not tested", "not tested"),
    ],
)
def test_the_words_depend_on_the_scale(gain: list[float], toy: str, paper: str) -> None:
    facts, samples = claim((better(),)), cells(gain)
    small, full = run(facts, samples, scale="toy"), run(facts, samples, scale="paper")
    assert (small.gain_word, full.gain_word) == (toy, paper)
    assert small.gain_phrase == (toy if toy == "not tested" else f"{toy} at this scale")
    assert full.gain_phrase == paper


def test_a_missing_alternative_cannot_support_but_another_can() -> None:
    facts = claim((better(KD, BL), better()), (better(),))
    assert run(facts, cells(around(0.5, 0.1))).gain_word == "supported"
    assert run(claim((better(KD, BL), better())), cells(around(0.5, 0.1))).gain_word == "not resolved"


def test_a_missing_alternative_stops_a_contradiction_and_a_missing_comparison_does_not() -> None:
    samples = cells(around(-1.0, 0.1))
    assert run(claim((better(),), (better(KD, BL),)), samples).gain_word == "not resolved"
    assert run(claim((better(), better(KD, BL))), samples).gain_word == "contradicted"


def test_a_claim_on_small_things_reads_its_values_that_way() -> None:
    samples, numbers = cells(around(-1.0, 0.1)), reported(TAKD=62.0)
    facts = claim((better(relation="less"),))
    assert run(facts, samples, reported=numbers, scale="paper").value_word == "exceeds"
    upside = run(facts, samples, reported=numbers, scale="paper", higher_is_better=True)
    assert upside.value_word == "not reproduced"
    assert run(claim((better(),)), samples, reported=numbers, scale="paper").value_word == "not reproduced"


def test_values_stand_only_beside_numbers_that_were_read() -> None:
    samples = cells(around(0.5, 0.1))
    mean = float(np.mean(list(samples[TA].values())))
    verdict = run(claim((better(),)), samples, reported=reported(TAKD=mean, BLKD=None, OTHER=1.0), scale="paper")
    assert [test.cell for test in verdict.values] == [TA]
    assert verdict.value_word == "reproduced"
    assert run(claim((better(),)), samples, scale="paper").value_word == "no reported number"


def test_a_value_is_judged_where_the_gain_cannot_be() -> None:
    samples = {TA: dict(enumerate(around(60.0, 0.1)))}
    alone = run(claim((better(),)), samples, reported=reported(TAKD=60.0), scale="paper")
    assert (alone.gain_word, alone.value_word) == ("not tested", "reproduced")
    beside = run(claim((better(),)), samples, reported=reported(TAKD=60.0, BLKD=59.0), scale="paper")
    assert (beside.value_word, beside.value_reason) == ("inconclusive", f"{BL}: not measured")
    assert run(claim((better(),)), {}, reported=reported(TAKD=60.0), scale="paper").value_word == "not tested"


def test_toy_numbers_are_never_compared() -> None:
    facts, samples = claim((better(),)), cells(around(0.5, 0.1))
    numbers = reported(TAKD=60.5, BLKD=60.0)
    verdict = run(facts, samples, reported=numbers, not_comparable=["tier laptop", "data mnist1d"])
    assert (verdict.value_word, verdict.value_reason) == ("not comparable", "tier laptop; data mnist1d")
    assert {(test.word, test.p) for test in verdict.values} == {("not comparable", None)}
    assert run(facts, samples, reported=numbers).value_word == "not comparable"


def test_the_share_of_the_level_is_priced_in() -> None:
    samples = cells(around(0.1, 0.3)) | cells(around(0.1, 0.3), left=KD, right=OTHER)
    one = run(claim((better(),)), samples)
    two = run(claim((better(),), (better(KD, OTHER),)), samples)
    sd = two.tests[0][0].sd
    assert (one.more_seeds, two.more_seeds) == (seeds_needed(sd, 0.3) - 5, seeds_needed(sd, 0.3, level=0.025) - 5)
    assert two.more_seeds > one.more_seeds


def test_what_is_wrong_in_the_call_is_refused() -> None:
    with pytest.raises(KdbenchError, match="unknown scale 'big'"):
        run(claim((better(),)), {}, scale="big")
    with pytest.raises(KdbenchError, match="an alternative compares nothing"):
        run(claim((better(),), ()), {})


def test_a_verdict_travels_as_json() -> None:
    numbers = reported(TAKD=60.5, BLKD=60.0)
    verdict = run(claim((better(),), (better(KD, BL),)), cells(around(0.5, 0.1)), reported=numbers, scale="paper")
    assert msgspec.json.decode(msgspec.json.encode(verdict), type=ClaimVerdict) == verdict


def test_more_seeds_are_not_advised_where_there_are_enough() -> None:
    # Five seeds would tell 0.3 from 0 with this spread; six leave it open because the gain lies half way between.
    samples = cells([0.35, -0.05] * 3)
    verdict = run(claim((better(),)), samples)
    assert seeds_needed(verdict.tests[0][0].sd, 0.3) == 5
    assert (verdict.gain_word, verdict.tests[0][0].more_seeds, verdict.more_seeds) == ("not resolved", None, None)
    assert verdict.sentence.endswith("; 6 seeds are enough to tell 0.3 % from 0, so the truth may lie between")


def test_more_seeds_are_counted_for_alternatives_that_can_come_to_hold() -> None:
    samples = cells(around(0.1, 0.3)) | cells(around(0.1, 0.9), left=KD, right=OTHER)
    facts = claim((better(),), (better(KD, OTHER), better(KD, "table1/cnn/none")))
    verdict = run(facts, samples)
    assert verdict.more_seeds == seeds_needed(verdict.tests[0][0].sd, 0.3, level=0.025) - 5


# --- sentences --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gain", "fields", "expected"),
    [
        (
            around(0.1, 0.3), {},
            "TAKD - BLKD = +0.10 % (90 % CI -0.35 to +0.55, n=5): the interval holds both 0 and the 0.3 % that would "
            "matter; about 12 more seeds would decide",
        ),
        (around(0.5, 0.1), {}, "TAKD - BLKD = +0.50 % (90 % CI +0.35 to +0.65, n=5): the interval lies above 0"),
        (
            around(0.0, 0.05), {},
            "TAKD - BLKD = +0.000 % (90 % CI -0.075 to +0.075, n=5): the interval rules out a gain of 0.3 %",
        ),
        (around(-0.5, 0.1), {}, "TAKD - BLKD = -0.50 % (90 % CI -0.65 to -0.35, n=5): the interval lies below 0"),
        (
            around(0.12, 0.02), {},
            "TAKD - BLKD = +0.120 % (90 % CI +0.090 to +0.150, n=5): a real gain, but smaller than the 0.3 % that "
            "would matter",
        ),
        ([0.7], {}, "TAKD - BLKD = +0.70 % (n=1 of 5 seeds): one seed has no spread to test with"),
        (
            [0.7, 0.7, 0.7], {},
            "TAKD - BLKD = +0.70 % (n=3 of 5 seeds): every seed gave the same difference, so there is no spread to "
            "test with",
        ),
        (
            around(0.1, 0.6, 4), {"gain_margin": 0.0, "unit": ""},
            "TAKD - BLKD = +0.10 (90 % CI -0.81 to +1.01, n=4 of 5 seeds): the interval holds 0; no margin is "
            "declared, so it cannot be said how many more seeds would decide",
        ),
        ([], {}, f"no seed finished: {TA}, {BL}"),
        ([], {"alternatives": (), "not_tested": "needs ImageNet"}, "needs ImageNet"),
    ],
)  # fmt: skip
def test_the_sentence_says_it_in_plain_english(gain: list[float], fields: dict[str, object], expected: str) -> None:
    assert run(claim((better(),), **fields), cells(gain)).sentence == expected


def test_the_sentence_names_what_was_not_measured() -> None:
    assert run(claim((better(),)), {}).sentence == f"not measured at this tier: {TA}, {BL}"
    apart = run(claim((better(),)), {TA: {0: 60.0}, BL: {1: 61.0}})
    assert apart.sentence == "no two cells that it compares share a seed"
    partly = run(claim((better(), better(KD, BL))), cells(around(0.5, 0.1)))
    assert partly.sentence.endswith("the interval lies above 0; without a result: NOKD against BLKD")
    assert partly.more_seeds is None


def test_the_sentence_admits_where_one_comparison_is_not_enough() -> None:
    strong, weak = cells([0.1, 0.9, 0.4, 0.2, 0.15]), cells(around(0.1, 0.6), left=KD, right=OTHER)
    verdict = run(claim((better(),), (better(KD, OTHER),)), strong | weak)
    assert verdict.tests[0][0].outcome == "supported"
    assert verdict.gain_word == "not resolved"
    assert f"not enough for the whole claim (p = {2 * verdict.tests[0][0].p_support:.2g})" in verdict.sentence


def test_comparisons_that_would_be_called_alike_are_told_apart() -> None:
    other = cells(around(0.1, 0.6), left="table1/resnet/TAKD", right="table1/resnet/BLKD")
    facts = claim((better(), better("table1/resnet/TAKD", "table1/resnet/BLKD")))
    verdict = run(facts, cells(around(0.5, 0.1)) | other)
    assert "the critical one: resnet/TAKD - resnet/BLKD = +0.10" in verdict.sentence


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (TA, BL, ("TAKD", "BLKD")),
        ("t1/cnn/c10/KD", "t1/resnet/c10/KD", ("cnn", "resnet")),
        ("t1/KD", "t1/KD/extra", ("t1/KD", "t1/KD/extra")),
        ("same", "same", ("same", "same")),
    ],
)
def test_short_names_keep_what_differs(left: str, right: str, expected: tuple[str, str]) -> None:
    assert short_names(left, right) == expected


def test_the_sentence_prefers_an_alternative_without_gaps() -> None:
    samples = cells(around(0.1, 0.6)) | cells(around(0.5, 0.1), left=KD, right=OTHER)
    verdict = run(claim((better(KD, OTHER), better(KD, "table1/cnn/none")), (better(),)), samples)
    assert "the critical one: TAKD - BLKD = +0.10" in verdict.sentence
    assert "without a result: NOKD against none" in verdict.sentence


def test_a_contradiction_is_told_by_the_least_broken_alternative() -> None:
    samples = cells(around(-0.2, 0.1)) | cells(around(-5.0, 0.1), left=KD, right=OTHER)
    verdict = run(claim((better(KD, OTHER),), (better(),)), samples)
    assert verdict.gain_word == "contradicted"
    assert "the critical one: TAKD - BLKD = -0.20" in verdict.sentence


# --- claims without chance --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("relation", "gain", "word", "reading"),
    [
        ("greater", 0.5, "supported", "above 0"),
        ("greater", 0.2, "smaller than the margin", "above 0, but below 0.3"),
        ("greater", 0.0, "contradicted", "not above 0"),
        ("greater", -0.5, "contradicted", "not above 0"),
        ("not_worse", -0.2, "supported", "not below"),
        ("not_worse", 0.1, "supported", "not below"),
        ("not_worse", -0.5, "contradicted", "below"),
    ],
)
@pytest.mark.parametrize("seeds", [1, 3])
def test_computed_numbers_decide_for_themselves(
    relation: str, gain: float, word: str, reading: str, seeds: int
) -> None:
    samples = {TA: dict.fromkeys(range(seeds), 5.0 + gain), BL: dict.fromkeys(range(seeds), 5.0)}
    exact = run(claim((better(relation=relation),), exact=True), samples, scale="paper")
    plain = run(claim((better(relation=relation),)), samples, scale="paper")
    assert plain.gain_word == "inconclusive"  # equal differences are no spread to test with
    assert exact.gain_word == {"supported": "reproduced", "contradicted": "not reproduced"}.get(word, word)
    assert exact.sentence.startswith(f"TAKD - BLKD = {gain:+.2f} % (computed): {reading}")
    assert "seed" not in exact.sentence


def test_a_computed_value_lies_within_its_margin_or_it_does_not() -> None:
    def word(value: float, **fields: object) -> str:
        facts = claim((better(**fields),), exact=True, value_margin=0.5)
        samples = {TA: {0: value}, BL: {0: 1.0}}
        return run(facts, samples, reported=reported(TAKD=70.0), scale="paper").value_word

    assert word(70.5) == "reproduced"
    assert word(69.5) == "reproduced"
    for value in (70.6, 69.4):  # a computed number that is off is wrong, on whichever side
        assert word(value) == word(value, relation="less") == "not reproduced"


@pytest.mark.parametrize(
    ("relation", "words"), [("greater", ("not reproduced", "reproduced")), ("not_worse", ("reproduced", "reproduced"))]
)
def test_without_a_margin_equal_numbers_are_not_greater_and_not_worse(relation: str, words: tuple[str, str]) -> None:
    for gain, word in zip((0.0, 0.1), words, strict=True):
        samples = {TA: {0: 5.0 + gain}, BL: {0: 5.0}}
        facts = claim((better(relation=relation),), exact=True, gain_margin=0.0)
        assert run(facts, samples, scale="paper").gain_word == word


def test_the_least_favourable_seed_decides_a_computed_claim() -> None:
    samples = {TA: {0: 6.0, 1: 6.0, 2: 4.0}, BL: dict.fromkeys(range(3), 5.0)}
    verdict = run(claim((better(),), exact=True), samples, scale="paper")
    assert verdict.gain_word == "not reproduced"
    assert "(computed, at least -1.00): not above 0" in verdict.sentence
    value = run(claim((better(),), exact=True), {TA: {0: 69.0, 1: 71.0}}, reported=reported(TAKD=70.0), scale="paper")
    assert value.value_word == "not reproduced"  # though their mean is the number

"""The 2x2 factorial of finished runs, its intervals and grades; against scipy and by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from orth_runs import DATASET, NONE, PRUNED, SEEDS, TUNED, Cells, equivalence, planted

from kdbench.errors import KdbenchError
from kdbench.paper import Paper
from kdbench.result import Reproduction, RunFile
from kdbench.verdict import judge_gain
from kdbench_orthogonality.interaction import (
    MARGINS,
    Interaction,
    accuracy_interaction,
    grade,
    interactions,
    log_error_interaction,
    log_error_ratio,
)


def read(*cells: Cells, **more: Any) -> list[Interaction]:
    return interactions(Reproduction(planted(*cells, **more), Path()))


def on(scale: str, *cells: Cells, **more: Any) -> Interaction:
    """The one technique that is measured, on one scale."""
    (found,) = [each for each in read(*cells, **more) if each.scale == scale]
    return found


def column(cells: Cells, name: str) -> Any:
    return np.array(cells[name], float)


# --------------------------------------------------------------------------------------------------------- one seed


def test_the_interaction_is_a_difference_of_gains() -> None:
    assert accuracy_interaction(80.0, 77.0, 90.0, 89.0) == 2.0
    assert log_error_interaction(80.0, 77.0, 90.0, 89.0) == pytest.approx(math.log(20 / 23) - math.log(10 / 11))
    assert log_error_ratio(90.0, 80.0) == pytest.approx(-math.log(2)), "half of the errors favours distillation"


@pytest.mark.parametrize("place", range(4))
def test_no_error_is_unknown_and_not_infinite(place: int) -> None:
    table = [80.0, 77.0, 90.0, 89.0]
    table[place] = 100.0
    assert math.isnan(log_error_interaction(*table))
    assert math.isfinite(accuracy_interaction(*table))


# ----------------------------------------------------------------------------------------------------------- grades

WIDE = (-2.0, 2.0)


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        ((-0.1, 0.1), "additive"),
        ((0.1, 0.4), "additive"),  # it is not 0, and still inside
        ((-2.0, 2.0), "undecided"),
        ((-0.4, 0.6), "undecided"),
        ((-0.6, 0.4), "undecided"),
        ((0.6, 1.2), "synergistic"),
        ((-1.2, -0.6), "sub-additive"),
        ((-0.5, 0.4), "undecided"),  # on the margin is not inside
        ((-0.4, 0.5), "undecided"),
        ((0.5, 1.0), "undecided"),  # nor beyond
        ((-1.0, -0.5), "undecided"),
        ((None, None), "undecided"),
        ((None, 0.1), "undecided"),
    ],
)
def test_words_for_the_interaction(interval: tuple[float | None, float | None], word: str) -> None:
    found = grade(*interval, 0.5, *WIDE)
    assert (found.interaction, found.gain) == (word, "undecided")


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        ((0.1, 2.0), "orthogonal (weak)"),
        ((-2.0, -0.1), "conflict"),
        ((-0.1, 2.0), "undecided"),
        ((0.0, 2.0), "undecided"),
        ((-2.0, 0.0), "undecided"),
        ((None, None), "undecided"),
    ],
)
def test_words_for_the_gain(interval: tuple[float | None, float | None], word: str) -> None:
    found = grade(*WIDE, 0.5, *interval)
    assert (found.gain, found.interaction) == (word, "undecided")


@given(st.floats(-5, 5), st.floats(0, 5), st.floats(0.01, 2))
def test_an_interval_wider_than_both_margins_is_never_additive(low: float, width: float, m: float) -> None:
    found = grade(low, low + width, m, *WIDE).interaction
    if width >= 2 * m:
        assert found != "additive"
    if found == "additive":
        assert -m < low <= low + width < m
    mirrored = {"sub-additive": "synergistic", "synergistic": "sub-additive"}
    assert grade(-low - width, -low, m, *WIDE).interaction == mirrored.get(found, found)


@pytest.mark.parametrize("m", [0.0, -0.5, math.nan, math.inf])
def test_a_margin_is_a_positive_number(m: float) -> None:
    with pytest.raises(KdbenchError, match="is not a positive number"):
        grade(-0.1, 0.1, m, 0.1, 0.2)


@pytest.mark.parametrize("ends", [(1.0, -1.0, 0.1, 0.2), (-1.0, 1.0, 0.2, 0.1), (math.nan, 1.0, 0.1, 0.2)])
def test_ends_in_the_wrong_order_are_refused(ends: tuple[float, float, float, float]) -> None:
    with pytest.raises(KdbenchError, match="is no interval"):
        grade(*ends[:2], 0.5, *ends[2:])


# ------------------------------------------------------------------------------------------------------ finished runs


def test_intervals_are_those_of_paired_t_tests() -> None:
    found = on("accuracy", NONE, TUNED, PRUNED)
    under, without = (
        scipy.stats.ttest_rel(column(cells, f"{arm}/KD"), column(cells, f"{arm}/CE"))
        for cells, arm in ((PRUNED, "prune50"), (TUNED, "none+ft"))
    )
    gains = [
        column(cells, f"{arm}/KD") - column(cells, f"{arm}/CE")
        for cells, arm in ((PRUNED, "prune50"), (TUNED, "none+ft"))
    ]
    both = scipy.stats.ttest_rel(*gains)
    for summary, test, mean in (
        (found.under, under, gains[0].mean()),
        (found.without, without, gains[1].mean()),
        (found.interaction, both, (gains[0] - gains[1]).mean()),
    ):
        assert summary.mean == pytest.approx(mean, rel=1e-12)
        assert (summary.low, summary.high) == pytest.approx(tuple(test.confidence_interval(0.95)), rel=1e-9)
        assert summary.n == len(SEEDS)
    assert (found.ce, found.kd) == pytest.approx((93.38, 94.40))
    assert (found.technique, found.control, found.seeds, found.unknown) == ("prune50", "none+ft", SEEDS, "")
    assert (found.grade.gain, found.grade.interaction) == ("orthogonal (weak)", "additive")


def test_the_log_error_scale_is_that_of_ratios_of_errors() -> None:
    found = on("log-error", NONE, TUNED, PRUNED)
    errors = {name: np.log(100 - np.array(values)) for cells in (TUNED, PRUNED) for name, values in cells.items()}
    gains = [errors[f"{arm}/KD"] - errors[f"{arm}/CE"] for arm in ("prune50", "none+ft")]
    assert found.under.mean == pytest.approx(gains[0].mean(), rel=1e-12)
    assert found.without.mean == pytest.approx(gains[1].mean(), rel=1e-12)
    interval = scipy.stats.ttest_rel(*gains).confidence_interval(0.95)
    assert (found.interaction.low, found.interaction.high) == pytest.approx(tuple(interval), rel=1e-9)
    assert found.under.high is not None
    assert found.under.high < 0, "fewer errors with distillation"
    assert found.grade.gain == "orthogonal (weak)"
    assert (found.ce, found.kd) == pytest.approx((93.38, 94.40)), "accuracies stay accuracies"


def shifted(arm: str, kd: float, noise: float = 0.05) -> Cells:
    """An arm with a gain of ``kd`` on average, and no two equal gains."""
    ce = [80.0, 81.0, 79.0, 80.5, 79.5]
    gains = [kd + noise * step for step in (-2, -1, 0, 1, 2)]
    return {f"{arm}/CE": ce, f"{arm}/KD": [c + g for c, g in zip(ce, gains, strict=True)]}


@pytest.mark.parametrize(
    ("kd", "noise", "words"),
    [
        (1.1, 0.05, ("orthogonal (weak)", "additive")),
        (3.0, 0.05, ("orthogonal (weak)", "synergistic")),
        (0.3, 0.05, ("orthogonal (weak)", "sub-additive")),
        (-1.0, 0.05, ("conflict", "sub-additive")),
        (1.0, 5.0, ("undecided", "undecided")),
    ],
)
def test_grades_of_runs_on_the_accuracy_scale(kd: float, noise: float, words: tuple[str, str]) -> None:
    found = on("accuracy", NONE, shifted("mixup", kd, noise))
    assert (found.grade.gain, found.grade.interaction) == words
    assert found.control == "none"


def of_ratio(arm: str, ratio: float) -> Cells:
    """An arm whose errors distillation multiplies by about ``ratio``."""
    ce = [80.0, 81.0, 79.0, 80.5, 79.5]
    kd = [100 - (100 - c) * (ratio + 0.002 * step) for c, step in zip(ce, (-2, 1, 0, -1, 2), strict=True)]
    return {f"{arm}/CE": ce, f"{arm}/KD": kd}


@pytest.mark.parametrize(("ratio", "word"), [(0.78, "additive"), (0.5, "synergistic"), (0.95, "sub-additive")])
def test_on_the_log_scale_fewer_errors_are_synergy(ratio: float, word: str) -> None:
    found = on("log-error", of_ratio("none", 0.8), of_ratio("mixup", ratio))
    assert found.interaction.mean == pytest.approx(math.log(ratio / 0.8), abs=1e-3)
    assert (found.grade.gain, found.grade.interaction) == ("orthogonal (weak)", word)


def test_on_the_log_scale_more_errors_are_a_conflict() -> None:
    found = on("log-error", of_ratio("none", 0.8), of_ratio("mixup", 1.2))
    assert (found.grade.gain, found.grade.interaction) == ("conflict", "sub-additive")


def test_multiplicative_gains_are_sub_additive_on_one_scale_and_additive_on_the_other() -> None:
    """The trap of the ceiling: X halves the errors, and with them the points that distillation gains."""
    errors = [20.0, 22.0, 19.0, 21.0, 20.5]
    ratios = [0.80, 0.81, 0.79, 0.80, 0.805]
    cells = {
        "none/CE": [100 - e for e in errors],
        "none/KD": [100 - e * r for e, r in zip(errors, ratios, strict=True)],
        "mixup/CE": [100 - e / 2 for e in errors],
        "mixup/KD": [100 - e / 2 * (r + 0.001 * (r > 0.8)) for e, r in zip(errors, ratios, strict=True)],
    }
    assert on("accuracy", cells).grade.interaction == "sub-additive"
    assert on("log-error", cells).grade.interaction == "additive"


def test_techniques_come_in_the_order_of_the_run_and_controls_are_none() -> None:
    found = read(NONE, shifted("mixup", 1.0), TUNED, PRUNED, {"teacher/CE": [97.0] * 5})
    assert [(each.technique, each.scale) for each in found] == [
        ("mixup", "accuracy"),
        ("mixup", "log-error"),
        ("prune50", "accuracy"),
        ("prune50", "log-error"),
    ]


def test_seeds_that_miss_an_accuracy_are_left_out_of_everything() -> None:
    missing = {**PRUNED, "prune50/KD": [94.1, None, 94.3, 95.0, 93.9]}
    control = {**TUNED, "none+ft/CE": [94.5, 95.2, 94.8, None, 94.4]}
    found = on("accuracy", NONE, control, missing)
    assert found.seeds == (0, 2, 4)
    assert (found.under.n, found.without.n, found.interaction.n) == (3, 3, 3)
    assert found.interaction.mean == pytest.approx(found.under.mean - found.without.mean)  # type: ignore[operator]
    assert found.ce == pytest.approx((93.0 + 93.4 + 92.9) / 3)


def test_without_its_control_a_technique_has_a_gain_and_no_interaction() -> None:
    found = on("accuracy", NONE, PRUNED)
    assert found.unknown == "'none+ft' was not measured with and without distillation"
    assert found.seeds == SEEDS
    assert (found.interaction.mean, found.without.mean) == (None, None)
    assert (found.grade.gain, found.grade.interaction) == ("orthogonal (weak)", "undecided")


def test_one_seed_decides_nothing() -> None:
    found = on("accuracy", *({k: v[:1] for k, v in cells.items()} for cells in (TUNED, PRUNED)), seeds=(7,))
    assert found.unknown == "one seed says nothing of the spread"
    assert found.interaction.mean == pytest.approx(0.1)
    assert (found.interaction.low, found.grade.gain, found.grade.interaction) == (None, "undecided", "undecided")
    assert found.seeds == (7,)


def test_no_seed_at_all() -> None:
    failed: Cells = {"prune50/CE": [None] * 5, "prune50/KD": [None] * 5}
    found = on("accuracy", TUNED, failed)
    assert found.unknown == "no seed has all four accuracies"
    assert (found.ce, found.kd, found.under.mean, found.seeds) == (None, None, None, ())


def test_equal_differences_are_no_certainty() -> None:
    """Gains that differ by rounding alone: a t interval of them would be a point, and anything but known."""
    found = on("accuracy", shifted("none", 1.0, noise=0.0), shifted("mixup", 1.1, noise=0.0))
    assert found.unknown.startswith("the differences of all seeds are equal")
    assert found.interaction.mean == pytest.approx(0.1)
    assert (found.grade.gain, found.grade.interaction) == ("undecided", "undecided")
    assert found.under.sd == 0


@pytest.mark.parametrize("cell", ["none+ft/KD", "prune50/KD"])
def test_a_student_without_errors_makes_the_log_scale_unknown_and_no_other(cell: str) -> None:
    """Its seed is not left out, which would choose the seeds by their outcome."""
    cells = {**TUNED, **PRUNED}
    perfect = {**cells, cell: [100.0, *cells[cell][1:]]}
    log, plain = on("log-error", perfect), on("accuracy", perfect)
    assert log.unknown == (
        "a student answers the whole test split correctly, so the logarithm of its error is not known"
    )
    assert (log.interaction.mean, log.grade.interaction) == (None, "undecided")
    assert (log.under.mean is None) == (cell == "prune50/KD")
    assert log.seeds == SEEDS
    assert plain.unknown == ""
    assert plain.interaction.mean is not None


# ---------------------------------------------------------------------------------------------------------- margins

CELL = "interaction/{dataset}/prune50/"
CORE = {"prune50": "H2p", "structured33": "H2s", "qat4": "H3"}


def test_the_margin_is_that_of_the_claim_about_the_interaction() -> None:
    """Of a judged claim its cells are filled in, of another they still have a placeholder."""
    judged = equivalence("H2p-additive", f"{CELL}accuracy".format(dataset=DATASET), 0.8)
    other = equivalence("H2p-additive-log", f"{CELL}log-error", 0.3)
    found = read(NONE, TUNED, PRUNED, claims=[judged], others=[other])
    assert [(each.margin, each.margin_from) for each in found] == [(0.8, "H2p-additive"), (0.3, "H2p-additive-log")]


def test_the_facts_of_the_paper_declare_the_margins_of_the_core_techniques() -> None:
    facts = Paper.load("kdbench_orthogonality", study=lambda lab: iter(()))
    arms = [{f"{arm}/{column}": PRUNED[f"prune50/{column}"] for column in ("CE", "KD")} for arm in CORE]
    found = read(TUNED, *arms, others=facts.claims)
    assert {(each.technique, each.scale): each.margin_from for each in found} == {
        (arm, scale): f"{claim}-additive{suffix}"
        for arm, claim in CORE.items()
        for scale, suffix in (("accuracy", ""), ("log-error", "-log"))
    }
    assert {(each.scale, each.margin) for each in found} == set(MARGINS.items())


def test_the_margin_decides_the_grade() -> None:
    found = [
        on("accuracy", NONE, TUNED, PRUNED, claims=[equivalence("H2p-additive", f"{CELL}accuracy", margin)])
        for margin in (0.5, 0.01)
    ]
    assert [each.grade.interaction for each in found] == ["additive", "undecided"]


def test_a_technique_without_a_claim_has_the_margin_of_all() -> None:
    other = equivalence("H2s-additive", "interaction/{dataset}/structured33/accuracy", 0.8)
    found = read(NONE, TUNED, PRUNED, claims=[other])
    assert [(each.margin, each.margin_from) for each in found] == [(MARGINS[each.scale], "") for each in found]
    assert MARGINS == {"accuracy": 0.5, "log-error": 0.1}


def test_what_is_additive_here_is_supported_by_the_claim() -> None:
    """The grade's interval has 95 %, that of the claim's two tests 90 %."""
    values = [g - h for g, h in zip((1.1, 1.1, 0.9, 1.0, 1.0), (1.0, 1.1, 0.9, 1.1, 0.9), strict=True)]
    found = on("accuracy", NONE, TUNED, PRUNED)
    claim = equivalence("H2p-additive", "interaction/x/prune50/accuracy", found.margin)
    samples = {claim.cells()[0]: dict(enumerate(values)), claim.cells()[1]: dict.fromkeys(range(5), 0.0)}
    assert found.interaction.mean == pytest.approx(np.mean(values))
    assert found.grade.interaction == "additive"
    for comparison in claim.alternatives[0]:
        assert judge_gain(comparison, samples, margin=0.0).outcome == "supported"


# ----------------------------------------------------------------------------------------------- what cannot be read


def test_a_run_of_another_paper_is_refused() -> None:
    with pytest.raises(KdbenchError, match="it is a run of 'takd', which measures no interactions") as caught:
        read(NONE, TUNED, PRUNED, paper="takd")
    assert caught.value.where == "run-one"
    assert "name a run of 'orthogonality'" in str(caught.value.cure)


@pytest.mark.parametrize(
    "cells", [(), (NONE, TUNED), (NONE, {"prune50/CE": PRUNED["prune50/CE"]})], ids=["nothing", "controls", "half"]
)
def test_a_run_without_a_technique_is_refused(cells: tuple[Cells, ...]) -> None:
    with pytest.raises(KdbenchError, match="measured no technique with and without distillation") as caught:
        read(*cells)
    assert f"accuracy/{DATASET}/TECHNIQUE/CE" in caught.value.what
    assert "kdbench reproduce orthogonality" in str(caught.value.cure)


def test_other_data_sets_are_not_read() -> None:
    run = planted(NONE, TUNED, PRUNED)
    request = msgspec.structs.replace(run.request, dataset="cifar10")
    with pytest.raises(KdbenchError, match="accuracy/cifar10/TECHNIQUE/CE"):
        interactions(Reproduction(msgspec.structs.replace(run, request=request), Path()))


def own(scale: str, off: float = 0.0) -> Cells:
    tables = zip(
        *(({**TUNED, **PRUNED})[f"{a}/{c}"] for a in ("prune50", "none+ft") for c in ("KD", "CE")), strict=True
    )
    function = accuracy_interaction if scale == "accuracy" else log_error_interaction
    return {f"prune50/{scale}": [function(*table) + off for table in tables]}  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", ["accuracy", "log-error"])
def test_the_interactions_of_the_run_itself_must_agree(scale: str) -> None:
    assert read(NONE, TUNED, PRUNED, interactions=own(scale)) == read(NONE, TUNED, PRUNED)
    with pytest.raises(KdbenchError, match=f"interaction/{DATASET}/prune50/{scale} is .* at seed 0, but") as caught:
        read(NONE, TUNED, PRUNED, interactions=own(scale, off=0.01))
    assert "another version" in str(caught.value.cure)


def test_what_is_read_survives_the_file() -> None:
    """NaN becomes null in JSON: an unknown value of the run's own is no contradiction."""
    cells = {**TUNED, **PRUNED, "prune50/KD": [100.0, *PRUNED["prune50/KD"][1:]]}
    found = [math.nan, *own("log-error")["prune50/log-error"][1:]]
    run = planted(cells, interactions={"prune50/log-error": found})
    again = msgspec.json.decode(msgspec.json.encode(run), type=RunFile)
    assert interactions(Reproduction(again, Path())) == interactions(Reproduction(run, Path()))

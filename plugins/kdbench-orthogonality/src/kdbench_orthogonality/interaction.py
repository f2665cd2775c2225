"""Do the gains of distillation and of another technique X conflict? The 2x2 factorial, its grades, and finished runs.

Per seed, from the four students of one teacher (KD or CE, with X or with its control 0),

    I(X) = [s(KD, X) - s(CE, X)] - [s(KD, 0) - s(CE, 0)]

on two scales. ``accuracy``: s is the test accuracy in percent, and a difference favours distillation above 0.
``log-error``: s is log(100 - accuracy), a difference is log(err_KD / err_CE) and favours distillation below 0; equal
ratios of errors are I = 0. Near the ceiling gains that multiply errors look sub-additive on the first, so both are
reported; the accuracy scale was chosen first.

The control has whatever X brings along besides: a technique that fine-tunes is compared with the same fine-tuning of a
student that nothing was done to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal, get_args

import msgspec

from kdbench.errors import KdbenchError

if TYPE_CHECKING:
    from kdbench.result import Reproduction
    from kdbench.verdict import Summary

__all__ = [
    "CONTROLS",
    "MARGINS",
    "Grade",
    "Interaction",
    "Scale",
    "accuracy_interaction",
    "control_of",
    "grade",
    "interactions",
    "log_error_interaction",
    "log_error_ratio",
]

PAPER = "orthogonality"

Scale = Literal["accuracy", "log-error"]
SCALES: tuple[Scale, ...] = get_args(Scale)

MARGINS: dict[Scale, float] = {"accuracy": 0.5, "log-error": 0.1}
"""m, fixed beforehand: points (half of the pilot's gain of distillation alone, 1.03, rounded), and log error.

It is what a technique has for which the facts of the run declare no margin; where a claim compares its interaction with
0, the claim's own margin counts.
"""

FAVOURS: dict[Scale, int] = {"accuracy": 1, "log-error": -1}
"""The sign of a difference that favours distillation."""

CONTROLS = ("none", "none+ft")
FINE_TUNED = ("prune", "structured", "qat", "int8-qat")
"""Techniques whose names begin so are applied to a trained student, which is then trained further.

``int8-ptq`` is applied to a trained student and no more: its control is the student itself.
"""

GainWord = Literal["orthogonal (weak)", "conflict", "undecided"]
InteractionWord = Literal["additive", "sub-additive", "synergistic", "undecided"]


class Grade(msgspec.Struct, frozen=True):
    """``gain``: of distillation under X, what is known of it; ``interaction``: how it differs from that without X."""

    gain: GainWord
    interaction: InteractionWord


class Interaction(msgspec.Struct, frozen=True, kw_only=True):
    """One technique on one scale.

    Attributes
    ----------
    technique, control : X and 0, as in the names of the cells.
    seeds : those that have all four accuracies (the two under X, where the control is not measured).
    ce, kd : mean accuracy under X over these seeds, percent; None without seeds.
    without, under : s(KD) - s(CE) for 0 and for X, with two-sided 95 % t intervals of the differences paired by seed.
    interaction : I(X), under - without, likewise.
    margin : m; ``margin_from`` is the claim that declares it, empty for the one of all techniques.
    unknown : why an interval is not known, in words; empty where all are.
    """

    technique: str
    control: str
    scale: Scale
    seeds: tuple[int, ...]
    ce: float | None
    kd: float | None
    without: Summary
    under: Summary
    interaction: Summary
    margin: float
    margin_from: str
    grade: Grade
    unknown: str


def control_of(technique: str) -> str:
    """The control of a technique: ``none+ft`` for one that trains a trained student further, else ``none``."""
    return "none+ft" if technique.startswith(FINE_TUNED) else "none"


def accuracy_interaction(kd_x: float, ce_x: float, kd_0: float, ce_0: float) -> float:
    """I(X) of one seed on the accuracy scale, points; from accuracies in percent."""
    return (kd_x - ce_x) - (kd_0 - ce_0)


def log_error_ratio(kd: float, ce: float) -> float:
    """log(err_KD / err_CE) from accuracies in percent; NaN, for unknown, where one of them makes no error."""
    if max(kd, ce) >= 100.0:
        return math.nan
    return math.log(100.0 - kd) - math.log(100.0 - ce)


def log_error_interaction(kd_x: float, ce_x: float, kd_0: float, ce_0: float) -> float:
    """I(X) of one seed on the log-error scale, from accuracies in percent; NaN where one of them makes no error."""
    return log_error_ratio(kd_x, ce_x) - log_error_ratio(kd_0, ce_0)


def grade(low: float | None, high: float | None, m: float, gain_low: float | None, gain_high: float | None) -> Grade:
    """Both words, from 95 % intervals; positive numbers favour distillation.

    A gain under X above 0 is ``orthogonal (weak)``, below 0 ``conflict``. The interaction is ``additive`` where the
    whole interval of I lies inside (-m, m), ``sub-additive`` wholly below -m, ``synergistic`` wholly above m.
    Everything else is ``undecided``: that an interval contains 0 is no evidence of additivity. The claims of the facts
    are tested at 5 % one way, which is a 90 % interval: what is additive here is supported there, but not always the
    other way round.

    Parameters
    ----------
    low, high : interval of I(X); None where it is not known.
    m : the margin, above 0, in the same unit.
    gain_low, gain_high : interval of the gain of distillation under X; None where it is not known.

    Raises
    ------
    KdbenchError : m is not a positive number, or the ends of an interval are in the wrong order.
    """
    if not 0 < m < math.inf:
        raise KdbenchError(f"the margin {m} is not a positive number", where="grade", cure="declare one beforehand")
    gain_word: GainWord = "undecided"
    interaction_word: InteractionWord = "undecided"
    if (gain := _interval(gain_low, gain_high)) is not None:
        gain_word = "orthogonal (weak)" if gain[0] > 0 else "conflict" if gain[1] < 0 else "undecided"
    if (found := _interval(low, high)) is not None:
        if -m < found[0] and found[1] < m:
            interaction_word = "additive"
        elif found[1] < -m:
            interaction_word = "sub-additive"
        elif found[0] > m:
            interaction_word = "synergistic"
    return Grade(gain_word, interaction_word)


def interactions(result: Reproduction) -> list[Interaction]:
    """Every technique that a finished run measured with and without distillation, in the run's order, on both scales.

    It reads the cells ``accuracy/DATASET/TECHNIQUE/CE`` and ``.../KD`` and the margins that the run declared. Where the
    run measured ``interaction/DATASET/TECHNIQUE/SCALE`` too, the two must agree.

    Raises
    ------
    KdbenchError : the run is of another paper, has no such cells, or says something else of an interaction.
    """
    run = result.run
    if run.request.paper != PAPER:
        raise KdbenchError(
            f"it is a run of '{run.request.paper}', which measures no interactions",
            where=run.id,
            cure=f"name a run of '{PAPER}'; 'kdbench runs' lists those in the store",
        )
    samples = result.samples()
    head = f"accuracy/{run.request.dataset}/"
    arms = dict.fromkeys(cell[len(head) :].rpartition("/")[0] for cell in samples if cell.startswith(head))
    both = [arm for arm in arms if all(f"{head}{arm}/{column}" in samples for column in ("CE", "KD"))]
    techniques = [arm for arm in both if arm not in CONTROLS]
    if not techniques:
        raise KdbenchError(
            f"the run measured no technique with and without distillation (cells {head}TECHNIQUE/CE and .../KD)",
            where=run.id,
            cure=f"run 'kdbench reproduce {PAPER}' with the core claims, or with all",
        )
    return [_interaction(result, samples, technique, scale) for technique in techniques for scale in SCALES]


def _interaction(
    result: Reproduction, samples: Mapping[str, Mapping[int, float]], technique: str, scale: Scale
) -> Interaction:
    dataset, control = result.run.request.dataset, control_of(technique)
    corners = [
        _finite(samples.get(f"accuracy/{dataset}/{arm}/{column}", {}))
        for arm in (technique, control)
        for column in ("KD", "CE")
    ]
    has_control = all(f"accuracy/{dataset}/{control}/{column}" in samples for column in ("KD", "CE"))
    used = corners if has_control else corners[:2]
    seeds = tuple(sorted(set.intersection(*(set(corner) for corner in used))))
    kd_x, ce_x, kd_0, ce_0 = ([corner[seed] for seed in seeds if seed in corner] for corner in corners)
    under = _differences(kd_x, ce_x, scale)
    without = _differences(kd_0, ce_0, scale) if has_control else []
    found = [x - zero for x, zero in zip(under, without, strict=True)] if has_control else []
    cell = f"interaction/{dataset}/{technique}/{scale}"
    _check_own(result, cell, samples.get(cell, {}), dict(zip(seeds, found, strict=False)))
    size = _magnitude([*kd_x, *ce_x, *kd_0, *ce_0], scale)
    summaries = [_summary(values, size) for values in (without, under, found)]
    margin, margin_from = _margin(result, cell, scale)
    missing = "" if has_control else f"'{control}' was not measured with and without distillation"
    return Interaction(
        technique=technique,
        control=control,
        scale=scale,
        seeds=seeds,
        ce=sum(ce_x) / len(seeds) if seeds else None,
        kd=sum(kd_x) / len(seeds) if seeds else None,
        without=summaries[0],
        under=summaries[1],
        interaction=summaries[2],
        margin=margin,
        margin_from=margin_from,
        grade=grade(*_signed(summaries[2], scale), margin, *_signed(summaries[1], scale)),
        unknown=missing or _why_unknown(seeds, [*without, *under], summaries),
    )


def _differences(kd: Iterable[float], ce: Iterable[float], scale: Scale) -> list[float]:
    """s(KD) - s(CE), seed by seed."""
    pairs = zip(kd, ce, strict=True)
    return [log_error_ratio(*pair) if scale == "log-error" else pair[0] - pair[1] for pair in pairs]


def _summary(values: list[float], size: float) -> Summary:
    """Mean and interval; of values of which one is not known nothing is: to leave out its seed would choose by outcome.

    ``size`` is the magnitude of what was subtracted, whose rounding is no spread.
    """
    from kdbench.verdict import summarise
    from kdbench.verdict.summary import finite, spread

    known = values if all(math.isfinite(value) for value in values) else []
    found = summarise(known)
    if spread(finite(known), scale=size) == 0:
        return msgspec.structs.replace(found, sd=0.0, low=None, high=None)
    return found


def _why_unknown(seeds: tuple[int, ...], differences: list[float], summaries: list[Summary]) -> str:
    if not seeds:
        return "no seed has all four accuracies"
    if not all(math.isfinite(difference) for difference in differences):
        return "a student answers the whole test split correctly, so the logarithm of its error is not known"
    if len(seeds) == 1:
        return "one seed says nothing of the spread"
    if any(summary.sd == 0 for summary in summaries):
        return "the differences of all seeds are equal, which says nothing of how far the next would lie"
    return ""


def _margin(result: Reproduction, cell: str, scale: Scale) -> tuple[float, str]:
    """m as the run declared it, and the claim that says so: of the first that holds the cell against something."""
    dataset = result.run.request.dataset
    for claim in (*result.run.facts.claims, *result.run.facts.others):
        for comparison in (each for alternative in claim.alternatives for each in alternative):
            # Claims that the run does not judge still have their placeholders.
            cells = [name.replace("{dataset}", dataset) for name in (comparison.left, comparison.right)]
            margin = claim.gain_margin if comparison.margin is None else comparison.margin
            if comparison.relation == "equal" and cell in cells and margin > 0:
                return margin, claim.id
    return MARGINS[scale], ""


def _check_own(result: Reproduction, cell: str, own: Mapping[int, float], found: Mapping[int, float]) -> None:
    for seed, value in own.items():
        if seed in found and math.isfinite(value) and not math.isclose(value, found[seed], rel_tol=0, abs_tol=1e-9):
            raise KdbenchError(
                f"{cell} is {value:g} at seed {seed}, but {found[seed]:g} follows from the run's accuracies",
                where=result.run.id,
                cure="was it made by another version of the plugin? reproduce it again",
            )


def _interval(low: float | None, high: float | None) -> tuple[float, float] | None:
    if low is None or high is None:
        return None
    if not low <= high:
        raise KdbenchError(f"{low} to {high} is no interval", where="grade", cure="give the lower end first")
    return low, high


def _signed(summary: Summary, scale: Scale) -> tuple[float | None, float | None]:
    """The interval's ends, so that positive favours distillation."""
    if summary.low is None or summary.high is None:
        return None, None
    return (summary.low, summary.high) if FAVOURS[scale] > 0 else (-summary.high, -summary.low)


def _finite(values: Mapping[int, float]) -> dict[int, float]:
    return {seed: value for seed, value in values.items() if math.isfinite(value)}


def _magnitude(accuracies: list[float], scale: Scale) -> float:
    if scale == "accuracy":
        return max(map(abs, accuracies), default=0.0)
    return max((abs(math.log(100.0 - each)) for each in accuracies if each < 100.0), default=0.0)

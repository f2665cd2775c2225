"""The verdict on a claim: its comparisons combined, its cells beside the paper's, and one sentence that says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from kdbench.errors import KdbenchError, unknown
from kdbench.paper import Claim, ReportedCell
from kdbench.verdict import sentence
from kdbench.verdict.gain import LEVEL, GainOutcome, GainTest, decide, judge_gain, seeds_needed
from kdbench.verdict.summary import Samples, adjusted_minimum
from kdbench.verdict.value import ValueTest, ValueWord, judge_value, value_word

__all__ = ["ClaimVerdict", "GainWord", "Scale", "judge"]

Scale = Literal["paper", "toy"]
GainWord = Literal[
    "reproduced", "not reproduced", "inconclusive",
    "supported", "contradicted", "not resolved",
    "smaller than the margin", "not tested",
]  # fmt: skip

_AT_PAPER_SCALE: dict[GainOutcome, GainWord] = {
    "supported": "reproduced",
    "contradicted": "not reproduced",
    "not resolved": "inconclusive",
}

Grouped = tuple[tuple[GainTest, ...], ...]


class ClaimVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a run says about one claim.

    Attributes
    ----------
    claim, title : id and title of the claim.
    scale : ``paper`` (tier full) or ``toy`` (any other tier).
    gain_word : at the paper's scale ``reproduced``, ``not reproduced`` or ``inconclusive``; at toy scale
        ``supported``, ``contradicted`` or ``not resolved``. At both ``smaller than the margin`` (the gain is
        significantly above 0 and significantly below what was declared to matter) and ``not tested``.
    value_word, value_reason : the same for the values, and why; see :func:`kdbench.verdict.value.value_word`.
    p_support, p_contradict : p of the whole claim, in [0, 1]; None where no comparison could be tested.
    tests : the comparisons, grouped by alternative as the claim declares them.
    values : one test for each of the claim's cells that the paper reports a number for.
    more_seeds : paired seeds to add to every cell until the claim is likely decided; None where it is decided
        or where more seeds alone cannot be said to decide it.
    sentence : one line of plain English.
    """

    claim: str
    title: str
    scale: Scale
    gain_word: GainWord
    value_word: ValueWord
    value_reason: str
    p_support: float | None
    p_contradict: float | None
    tests: Grouped
    values: tuple[ValueTest, ...]
    more_seeds: int | None
    sentence: str

    @property
    def gain_phrase(self) -> str:
        """``gain_word`` as it is shown: what was tested at toy scale says so."""
        plain = self.scale == "paper" or self.gain_word == "not tested"
        return self.gain_word if plain else f"{self.gain_word} at this scale"


def judge(
    claim: Claim,
    samples: Samples,
    reported: Mapping[str, ReportedCell],
    *,
    scale: Scale,
    not_comparable: Sequence[str] = (),
    seeds: int,
    higher_is_better: bool | None = None,
) -> ClaimVerdict:
    """Give a claim its two verdicts.

    Parameters
    ----------
    claim : the claim, its axes filled in (see :meth:`kdbench.paper.Claim.instances`).
    samples : measured values by cell and seed, in the claim's unit. Cells that were not measured are absent.
    reported : the paper's cells by name.
    scale : ``paper`` for tier full, ``toy`` for any other.
    not_comparable : why no number of this run may stand beside the paper's (tier, protocol, data); empty if it may.
        At toy scale values are never compared, whatever this says.
    seeds : how many seeds were planned for every cell; a comparison with fewer says so in its sentence.
    higher_is_better : direction of the metric. By default a claim all of whose comparisons are ``less`` is about
        something that should be small.

    Raises
    ------
    KdbenchError : a margin is negative, an alternative compares nothing, or the scale has no such name.

    Notes
    -----
    The claim is an OR (alternatives) of ANDs (comparisons), and each way of going wrong is held at 5 %:

    - support: an alternative holds if all its comparisons do, so its p is the largest of theirs (intersection-union
      test; Berger 1982). The claim takes the smallest p of its alternatives, adjusted by Holm's method.
    - contradiction: an alternative fails if any of its comparisons does, so its p is the smallest of theirs, adjusted
      by Holm's method. The claim fails only if every alternative does, so its p is the largest of theirs.

    What could not be tested enters as p = 1: a missing cell can neither support nor contradict, and dropping it would
    loosen the correction after the fact.
    """
    if scale not in ("paper", "toy"):
        raise unknown("scale", scale, ("paper", "toy"))
    if not all(claim.alternatives):
        raise KdbenchError("an alternative compares nothing", where=f"claim {claim.id}", cure="name its two cells")
    if higher_is_better is None:
        relations = {comparison.relation for alternative in claim.alternatives for comparison in alternative}
        higher_is_better = relations != {"less"}
    if scale == "toy" and not not_comparable:
        not_comparable = ("the run is not at the paper's scale",)
    tests = tuple(
        tuple(
            judge_gain(comparison, samples, margin=claim.gain_margin, exact=claim.exact) for comparison in alternative
        )
        for alternative in claim.alternatives
    )
    targets = {cell: reported[cell].value for cell in claim.cells() if cell in reported}
    values = tuple(
        judge_value(
            cell,
            samples.get(cell, {}),
            target,
            margin=claim.value_margin,
            higher_is_better=higher_is_better,
            not_comparable=not_comparable,
            exact=claim.exact,
        )
        for cell, target in targets.items()
        if target is not None
    )
    why = claim.not_tested or sentence.unmeasured(tests, samples)
    p_support, p_contradict = _combine(tests)
    outcome: GainOutcome = "not tested" if why else decide(p_support, p_contradict)
    more_seeds = _more_seeds(tests) if outcome == "not resolved" else None
    word: ValueWord = "not tested" if why and not any(test.n for test in values) else value_word(values)
    if not_comparable:
        word = "not comparable"
    line = why
    if not why:
        ps = (p_support, p_contradict)
        line = sentence.of_claim(outcome, tests, ps, more_seeds, unit=claim.unit, seeds=seeds)
    return ClaimVerdict(
        claim=claim.id,
        title=claim.title,
        scale=scale,
        gain_word=_AT_PAPER_SCALE.get(outcome, outcome) if scale == "paper" else outcome,
        value_word=word,
        value_reason=sentence.of_values(word, values, not_comparable, why, claim.unit),
        p_support=p_support,
        p_contradict=p_contradict,
        tests=tests,
        values=values,
        more_seeds=more_seeds,
        sentence=line,
    )


def _combine(tests: Grouped) -> tuple[float | None, float | None]:
    if all(test.p_support is None for alternative in tests for test in alternative):
        return None, None
    support = [max(_or_one(test.p_support) for test in alternative) for alternative in tests]
    contradict = [adjusted_minimum([_or_one(test.p_contradict) for test in alternative]) for alternative in tests]
    return adjusted_minimum(support), max(contradict)


def _or_one(p: float | None) -> float:
    return 1.0 if p is None else p


def _more_seeds(tests: Grouped) -> int | None:
    # An alternative with a comparison that has no spread cannot come to hold, however many seeds are added to the rest.
    candidates = [test for alternative in tests if all(test.sd for test in alternative) for test in alternative]
    pending = [test for test in candidates if test.outcome == "not resolved"] or candidates
    # Where several comparisons share the 5 %, each must be settled at its share (Bonferroni, the worst case of Holm).
    share = LEVEL / max(len(tests), *(len(alternative) for alternative in tests))
    more = 0
    for test in pending:
        needed = seeds_needed(test.sd, test.margin, level=share, relation=test.relation)
        if needed is None:
            return None
        more = max(more, needed - test.n)
    return more or None

"""Verdicts in plain English, one line each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kdbench.verdict.gain import GainOutcome, GainTest
from kdbench.verdict.summary import Samples
from kdbench.verdict.value import ValueTest, ValueWord

__all__ = ["decimals", "of_claim", "of_gain", "of_values", "short_names", "unmeasured"]

Grouped = Sequence[Sequence[GainTest]]

_LISTED = 3


def short_names(left: str, right: str) -> tuple[str, str]:
    """Two cell names without the parts they share: ``t1/cnn/TAKD``, ``t1/cnn/BLKD`` become ``TAKD``, ``BLKD``."""
    ours, theirs = left.split("/"), right.split("/")
    while ours and theirs and ours[0] == theirs[0]:
        ours, theirs = ours[1:], theirs[1:]
    while ours and theirs and ours[-1] == theirs[-1]:
        ours, theirs = ours[:-1], theirs[:-1]
    return ("/".join(ours), "/".join(theirs)) if ours and theirs else (left, right)


def unmeasured(tests: Grouped, samples: Samples) -> str:
    """Why nothing of the claim could be compared; empty if something could."""
    flat = [test for alternative in tests for test in alternative]
    if any(test.n for test in flat):
        return ""
    cells = dict.fromkeys(cell for test in flat for cell in (test.left, test.right))
    absent = [cell for cell in cells if cell not in samples]
    if absent:
        return f"not measured at this tier: {_listed(absent)}"
    void = [cell for cell in cells if not any(math.isfinite(value) for value in samples[cell].values())]
    return f"no seed finished: {_listed(void)}" if void else "no two cells that it compares share a seed"


def of_claim(
    outcome: GainOutcome,
    tests: Grouped,
    ps: tuple[float | None, float | None],
    more_seeds: int | None,
    *,
    unit: str,
    seeds: int,
) -> str:
    """The claim in one line: the comparison that decides it, and what stands in the way where none does.

    Parameters
    ----------
    outcome, tests, more_seeds : as in :class:`kdbench.verdict.claim.ClaimVerdict`.
    ps : p of the whole claim, for support and for contradiction.
    unit : of the metric, for instance ``%``.
    seeds : how many were planned.
    """
    flat = [test for alternative in tests for test in alternative]
    names = _names(flat)
    chosen = _deciding(outcome, tests)
    test = flat[chosen]
    line = of_gain(test, unit=unit, seeds=seeds, names=names[chosen])
    if len(flat) > 1:
        line = f"Of {len(flat)} comparisons the critical one: {line}"
    missing = [" against ".join(pair) for pair, other in zip(names, flat, strict=True) if other.n == 0]
    if missing:
        line += f"; without a result: {_listed(missing)}"
    else:
        line += _what_the_whole_lacks(outcome, test.outcome, ps)
    if outcome != "not resolved":
        return line
    if more_seeds is not None:
        return f"{line}; about {more_seeds} more seed{'s' if more_seeds > 1 else ''} would decide"
    return line + _why_no_count(test, unit)


def of_gain(test: GainTest, *, unit: str, seeds: int | None = None, names: tuple[str, str] | None = None) -> str:
    """One comparison in one line: the gain, its interval and what the interval says about it.

    Parameters
    ----------
    test : the comparison judged.
    unit : of the metric, for instance ``%``.
    seeds : how many were planned; where fewer pairs could be used, the line says so.
    names : what to call left and right; by default :func:`short_names`.
    """
    left, right = names or short_names(test.left, test.right)
    if test.relation == "less":
        left, right = right, left
    if test.gain is None:
        return f"{left} - {right}: no seed has both"
    digits = decimals(test.sd, test.margin)
    n = f"n={test.n}" if seeds is None or test.n >= seeds else f"n={test.n} of {seeds} seeds"
    head = f"{left} - {right} = {_signed(test.gain, digits)}{_spaced(unit)}"
    if test.exact:
        low, high = test.low or 0.0, test.high or 0.0
        least = "" if low == high else f", at least {_signed(low, digits)}"
        if test.relation == "equal" and least:
            least = f", at most {max(-low, high):.{digits}f} apart"
        return f"{head} (computed{least}): {_exactly(test, unit)}"
    if test.n == 1:
        return f"{head} ({n}): one seed has no spread to test with"
    if test.low is None or test.high is None:
        return f"{head} ({n}): every seed gave the same difference, so there is no spread to test with"
    between = f"90 % CI {_signed(test.low, digits)} to {_signed(test.high, digits)}"
    return f"{head} ({between}, {n}): {_reading(test, unit)}"


def of_values(
    word: ValueWord, tests: Sequence[ValueTest], not_comparable: Sequence[str], why_not_tested: str, unit: str
) -> str:
    """Why the claim's value word is what it is: the cells that decide it, or what stands in the way."""
    if word == "not comparable":
        return "; ".join(not_comparable)
    if word == "no reported number":
        return "no number of the paper itself to compare with: it reports none for these cells, or none was read in it"
    if word == "not tested":
        return why_not_tested or "none of the reported cells was measured"
    # A cell that is off by itself, but not at a p that holds for all cells together, leaves the claim open.
    open_words = {"inconclusive", "not reproduced"} if word == "inconclusive" else {word}
    lines = [_of_value(test, unit) for test in tests if test.word in open_words]
    return _listed(lines, between="; ")


def _of_value(test: ValueTest, unit: str) -> str:
    if test.mean is None:
        return f"{test.cell}: {', '.join(test.reasons)}"
    digits = decimals(None, test.margin)
    pair = f"{test.cell}: {test.mean:.{digits}f} against {test.target:g}{_spaced(unit)}"
    if test.low is None or test.high is None:
        return f"{pair} (n={test.n}, {', '.join(test.reasons)})"
    if test.p is None:
        return f"{pair} (computed; margin {test.margin:g})"
    between = f"90 % CI of the difference {_signed(test.low, digits)} to {_signed(test.high, digits)}"
    return f"{pair} ({between}, margin {test.margin:g}, n={test.n})"


def _deciding(outcome: GainOutcome, tests: Grouped) -> int:
    """Position, in the flat list, of the weakest link of the strongest alternative.

    For a contradiction: of the clearest break in the least broken alternative.
    """
    flat = [test for alternative in tests for test in alternative]
    positions = iter(range(len(flat)))
    groups = [[next(positions) for _ in alternative] for alternative in tests]
    # A whole alternative comes before one with gaps, which cannot come to hold.
    whole = [group for group in groups if all(flat[i].n for i in group)]
    measured = whole or [kept for group in groups if (kept := [i for i in group if flat[i].n])]
    against = {i: _p(test.p_contradict) for i, test in enumerate(flat)}
    support = {i: _p(test.p_support) for i, test in enumerate(flat)}
    if outcome == "contradicted":
        group = max(groups, key=lambda group: len(group) * min(against[i] for i in group))
        return min(group, key=against.__getitem__)
    group = min(measured, key=lambda group: max(support[i] for i in group))
    if outcome == "smaller than the margin":
        return min(group, key=against.__getitem__)
    return max(group, key=lambda i: (support[i], _exposed(flat[i]) if flat[i].exact else 0.0))


def _exposed(test: GainTest) -> float:
    """How near a computed comparison is to failing: the larger, the nearer."""
    low, high = test.low or 0.0, test.high or 0.0
    return max(-low, high) if test.relation == "equal" else -low


def _names(tests: Sequence[GainTest]) -> list[tuple[str, str]]:
    """What to call the two cells of each comparison: short, yet no two comparisons alike."""
    short = [short_names(test.left, test.right) for test in tests]
    if len(set(short)) == len(short):
        return short
    cells = [cell.split("/") for test in tests for cell in (test.left, test.right)]
    shared = next((i for i, parts in enumerate(zip(*cells, strict=False)) if len(set(parts)) > 1), 0)
    return [("/".join(test.left.split("/")[shared:]), "/".join(test.right.split("/")[shared:])) for test in tests]


def _what_the_whole_lacks(whole: GainOutcome, one: GainOutcome, ps: tuple[float | None, float | None]) -> str:
    """Says so where a comparison is significant alone and the claim, with more to answer for, is not."""
    lines = ""
    for words, preposition, p in (
        (("supported", "smaller than the margin"), "for", ps[0]),
        (("contradicted", "smaller than the margin"), "against", ps[1]),
    ):
        if one in words and whole not in words and p is not None:
            lines += f"; not enough {preposition} the whole claim (p = {p:.2g})"
    return lines


def _reading(test: GainTest, unit: str) -> str:
    size = f"{test.margin:g}{_spaced(unit)}"
    if test.relation == "equal":
        within = {"supported": "lies within", "contradicted": "lies beyond"}.get(test.outcome, "reaches beyond")
        low, high = test.low or 0.0, test.high or 0.0
        if test.outcome == "not resolved" and max(low, -high) >= test.margin:
            return f"the interval lies beyond {size}, but not at 5 % for both ways together"
        return f"the interval {within} {size} either way"
    loss = test.relation == "not_worse"
    if test.outcome == "smaller than the margin":
        return f"a real {'loss' if loss else 'gain'}, but smaller than the {size} that would matter"
    if test.outcome == "supported":
        return f"the interval rules out a loss of {size}" if loss else "the interval lies above 0"
    if test.outcome == "contradicted":
        below_zero = test.high is not None and test.high < 0
        return "the interval lies below 0" if below_zero else f"the interval rules out a gain of {size}"
    if test.margin == 0:
        return "the interval holds 0"
    return f"the interval holds both 0 and the {'loss of ' if loss else ''}{size} that would matter"


def _exactly(test: GainTest, unit: str) -> str:
    """What a computed gain says; nothing about it is uncertain."""
    size = f"{test.margin:g}{_spaced(unit)}"
    if test.relation == "equal":
        return f"{'within' if test.outcome == 'supported' else 'not within'} {size}"
    if test.relation == "not_worse":
        return "not below" if test.outcome == "supported" else "below"
    return {"supported": "above 0", "contradicted": "not above 0"}.get(test.outcome, f"above 0, but below {size}")


def _why_no_count(test: GainTest, unit: str) -> str:
    if test.outcome != "not resolved" or not test.sd:
        return ""
    if test.margin == 0:
        return "; no margin is declared, so it cannot be said how many more seeds would decide"
    if test.relation == "equal":
        near = f"{test.margin:g}{_spaced(unit)}"
        return f"; {test.n} seeds are enough to show equal cells to be so, so the truth may lie near {near}"
    return f"; {test.n} seeds are enough to tell {test.margin:g}{_spaced(unit)} from 0, so the truth may lie between"


def _p(p: float | None) -> float:
    return 1.0 if p is None else p


def decimals(sd: float | None, margin: float) -> int:
    """Decimals that show two figures of the spread: accuracies in per cent keep two, small losses get more."""
    sizes = [size for size in (sd, margin) if size]
    return min(8, max(2, 1 - math.floor(math.log10(min(sizes))))) if sizes else 2


def _signed(value: float, digits: int) -> str:
    # Adding 0.0 turns a rounded -0.0 into 0.0, which would print as "-0.00".
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def _spaced(unit: str) -> str:
    return f" {unit}" if unit else ""


def _listed(items: Sequence[str], *, between: str = ", ") -> str:
    shown = list(items[:_LISTED])
    if len(items) > _LISTED:
        shown.append(f"and {len(items) - _LISTED} more")
    return between.join(shown)

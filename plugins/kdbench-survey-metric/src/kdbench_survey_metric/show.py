"""A scored cohort for people and for programs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdbench.cli.options import say
from kdbench_survey_metric.bootstrap import Interval
from kdbench_survey_metric.cohort import Scored
from kdbench_survey_metric.lines import Segment
from kdbench_survey_metric.measured import Known, Outcome, Unknown
from kdbench_survey_metric.ranking import Row

__all__ = ["ends", "plain_data", "show"]

UNKNOWN = "unknown"


def ends(interval: Interval, level: int) -> tuple[float, float]:
    """Both ends of the interval at ``level`` (90 or 95 percent)."""
    return (interval.low95, interval.high95) if level == 95 else (interval.low90, interval.high90)


def show(console: Console, scored: Scored, level: int) -> None:
    """The ranking, who wins at which alpha, and what must be known to believe it."""
    say(
        console,
        ("Ranked", "bold cyan"),
        f": students of '{scored.ranking.teacher}' ({', '.join(scored.origin.source)})",
    )
    console.print(_table(scored, level))
    say(console, (_legend(scored), "dim"))
    console.print()
    say(console, ("Lowest score by alpha", "bold"), f": {_winners(scored.ranking.winners)}")
    say(console, f"  with teacher and constant predictor: {_winners(scored.ranking.winners_of_all)}")
    for note in notes(scored, level):
        say(console, (f"note: {note}", "dim"))


def plain_data(scored: Scored, level: int) -> dict[str, Any]:
    """Everything as plain data for ``--json``; what is unknown says ``"type": "unknown"`` and why."""
    ranking = msgspec.to_builtins(scored.ranking)
    for row in ranking["rows"]:
        row["front"] = _standing(scored, row["name"]) if row["kind"] == "student" else None
        row["intervals"] = msgspec.to_builtins(scored.intervals.get(row["name"]))
        row["behind_first"] = msgspec.to_builtins(scored.behind.get(row["name"]))
    return {
        **msgspec.to_builtins(scored.origin),
        "level": level,
        "majority": msgspec.to_builtins(scored.majority),
        **ranking,
        "crossovers": [segment.high for segment in scored.ranking.winners[:-1]],
        "notes": notes(scored, level),
    }


def notes(scored: Scored, level: int) -> list[str]:
    """Conditions, ties, warnings, unknowns with their reasons, and scores that the data does not tell apart."""
    found = [_conditions(scored)]
    tied = [row.name for row in scored.ranking.rows if row.rank == 1]
    if len(tied) > 1:
        found.append(f"{' and '.join(tied)} tie")
    close = [name for name, behind in scored.behind.items() if isinstance(behind, Interval) and _holds_0(behind, level)]
    if close:
        found.append(f"at {level} % not told apart from {scored.leader}: {', '.join(sorted(close))}")
    found += _together((row.name, warning) for row in scored.ranking.rows for warning in row.warnings)
    found += _together((row.name, reason) for row in scored.ranking.rows for reason in _reasons(row))
    found += _weak_intervals(scored)
    return [*found, *scored.notes]


def _conditions(scored: Scored) -> str:
    origin = scored.origin
    made = [f"size in {origin.size_unit}"]
    if origin.dataset:
        made += [f"{origin.dataset}, split {origin.split}, tier {origin.tier}, protocol {origin.protocol}"]
        made += [f"mean over n = {len(origin.seeds)} seeds" if len(origin.seeds) != 1 else "n = 1 seed"]
    if origin.examples is not None:
        made += [f"{origin.examples:,} test examples"]
    if scored.majority is not None:
        made += [f"the largest class is {scored.majority}"]
    return "; ".join([*made, "a score compares students of this teacher on this data only"])


def _legend(scored: Scored) -> str:
    alpha = scored.ranking.alpha
    return (
        f"DS at alpha {alpha:g}, lower is better; size relative to the teacher's; dDS above 0: distillation helped\n"
        "accuracies are averaged over seeds before ratios are taken; a report's scores are means over seeds"
    )


def _table(scored: Scored, level: int) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("", overflow="fold")  # a name that is cut short would pass for another
    with_intervals = [f"{level} % interval"] if scored.intervals else []
    for column in ("rank", "size", "accuracy", "DS", *with_intervals, "DS-chance", "dDS", "gap closed", "front"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in scored.ranking.rows:
        student, intervals = row.kind == "student", scored.intervals.get(row.name)
        table.add_row(
            Text(f"{row.name} (teacher)" if row.kind == "teacher" else row.name),
            _rank(scored, row),
            _ratio(row.ratios.size),
            UNKNOWN if row.accuracy is None else f"{row.accuracy.value:.{2 if row.accuracy.whole > 1 else 4}f}",
            _number(row.score),
            *([_interval(intervals.score, level) if intervals else ""] if with_intervals else ()),
            _number(row.chance_adjusted),
            _number(row.gain, signed=True) if student else "",
            _number(row.gap_closed, digits=2) if student else "",
            _standing(scored, row.name) if student else "",
        )
    return table


def _rank(scored: Scored, row: Row) -> str:
    """``2``, or ``2=`` for one of several that tie; nothing for rows that are not ranked."""
    if row.rank is None:
        return ""
    return f"{row.rank}=" if sum(other.rank == row.rank for other in scored.ranking.rows) > 1 else str(row.rank)


def _standing(scored: Scored, name: str) -> str:
    """Where a student stands to the front of size and accuracy."""
    front = scored.ranking.front
    if name in front.unknown:
        return UNKNOWN
    if name in front.dominated:
        return "no"
    return "yes, no alpha" if name in front.never_wins else "yes"


def _together(said: Iterable[tuple[str, str]]) -> list[str]:
    """What is said of several rows, once: ``A, B: why``."""
    names: dict[str, list[str]] = {}
    for name, text in said:
        names.setdefault(text, []).append(name)
    return [f"{', '.join(those)}: {text}" for text, those in names.items()]


def _reasons(row: Row) -> list[str]:
    """What of a row is unknown; a score that is stands for all that follow from it."""
    named: dict[str, Outcome] = {"DS-chance": row.chance_adjusted}
    if row.kind == "student":
        named |= {"dDS": row.gain, "gap closed": row.gap_closed}
    if isinstance(row.score, Unknown):
        named = {"DS": row.score}
    names: dict[str, list[str]] = {}
    for name, outcome in named.items():
        if isinstance(outcome, Unknown):
            names.setdefault(
                outcome.reason.replace(f"the accuracy of '{row.name}' without", "its accuracy without"), []
            ).append(name)
    return [f"{' and '.join(those)} unknown: {reason}" for reason, those in names.items()]


def _weak_intervals(scored: Scored) -> list[str]:
    """What weakens the intervals: of all of them once, of one under its name."""
    said = [
        (f"{name}, {what}", note)
        for name, intervals in scored.intervals.items()
        for what, interval in (("DS", intervals.score), ("gap closed", intervals.gap_closed))
        if isinstance(interval, Interval)
        for note in interval.notes
    ]
    shared = {note for name, note in said if name.endswith(", DS")}
    return [
        *dict.fromkeys(note for _, note in said if note in shared),
        *_together(p for p in said if p[1] not in shared),
    ]


def _winners(segments: Iterable[Segment]) -> str:
    """``A up to .0954, B to .2242, C to 1``: at each end both tie."""
    said = [f"{' = '.join(segment.winners)} up to {segment.high:.4f}" for segment in segments]
    return ", ".join(said).replace(" up to 1.0000", " up to 1") or "nobody's score is known"


def _holds_0(interval: Interval, level: int) -> bool:
    low, high = ends(interval, level)
    return low <= 0 <= high


def _interval(found: Interval | Unknown, level: int) -> str:
    if isinstance(found, Unknown):
        return UNKNOWN
    low, high = ends(found, level)
    return f"{low:.3f} to {high:.3f}"


def _number(outcome: Outcome, digits: int = 4, *, signed: bool = False) -> str:
    if not isinstance(outcome, Known):
        return UNKNOWN
    return f"{outcome.value:+.{digits}f}" if signed else f"{outcome.value:.{digits}f}"


def _ratio(ratio: float | Unknown) -> str:
    return UNKNOWN if isinstance(ratio, Unknown) else f"{ratio:.4f}"

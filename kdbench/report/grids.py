"""Tables as plain text cells, the same for the terminal and the dossier.

A cell's name ``table/row.../column`` says where it stands. The paper's numbers and the measured ones never share a
grid, and neither do tiers or protocols: a run has one of each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from kdbench.paper import Claim, ReportedTable
from kdbench.result import Facts, Reproduction
from kdbench.verdict import Summary, summarise
from kdbench.verdict.sentence import decimals

__all__ = [
    "Grid",
    "claim_grids",
    "conditions",
    "data_name",
    "margins",
    "measured_grids",
    "metric_grids",
    "number",
    "reported_grids",
]


class Grid(NamedTuple):
    """Header, rows and what must be known to read them. ``rows`` start with the row's name."""

    title: str
    note: str
    columns: list[str]
    rows: list[list[str]]


def number(value: float | None, digits: int = 2) -> str:
    """A number, or nothing where there is none: a cell that was never read stays blank."""
    return "" if value is None else f"{value:.{digits}f}"


def data_name(result: Reproduction) -> str:
    """The data set's title, which never passes for the official one where it is not."""
    return f"{result.run.data.title} (unofficial data)" if result.run.data.note else result.run.data.title


def conditions(result: Reproduction) -> str:
    """Under what every number of the run was made."""
    run = result.run
    commit = f", commit {run.environment.commit}" if run.environment.commit else ""
    plugin = f", {run.plugin}" if run.plugin else ""
    return (
        f"{data_name(result)}, tier {run.request.tier}, protocol {run.request.protocol}, "
        f"kdbench {run.environment.kdbench}{commit}{plugin}"
    )


def margins(claim: Claim) -> str:
    """What was declared about the claim before the run."""
    value = f"values within {claim.value_margin:g} count as equal" if claim.value_margin else "no value margin"
    metric = f"{claim.metric} ({claim.unit})" if claim.unit else claim.metric
    what = "difference" if {c.relation for one in claim.alternatives for c in one} == {"equal"} else "gain"
    how = "decided by the numbers themselves, on the least favourable seed" if claim.exact else "level 5 %"
    return f"{metric}; the smallest {what} that matters is {claim.gain_margin:g}; {value}; {how}"


def reported_grids(tables: Iterable[ReportedTable]) -> list[Grid]:
    """The paper's own tables, blanks left blank. A table without any number that was read has no rows."""
    grids = []
    for table in tables:
        known = sorted({cell.certainty for cell in table.cells if cell.value is not None})
        # As it was read, to the digit; where certainties differ within a table, every cell but the paper's own says so.
        cells = {
            cell.cell: (cell.printed or number(cell.value))
            + (
                f" [{cell.certainty}]"
                if len(known) > 1 and cell.value is not None and cell.certainty != "paper"
                else ""
            )
            for cell in table.cells
        }
        read = f"{table.metric}, {table.unit}" if table.unit else table.metric
        if not known:
            grids.append(Grid(table.title, f"no number was read ({table.source})", [], []))
            continue
        grids.append(_pivot(table.title, f"{read}; {table.source}; certainty: {', '.join(known)}", cells))
    return grids


def measured_grids(result: Reproduction) -> list[Grid]:
    """What the run measured: mean and standard deviation over seeds.

    Every table that its claims touch, and those of the facts that are always shown.
    """
    run = result.run
    asked = {cell for claim in run.facts.claims for cell in claim.cells()}
    touched = {cell.partition("/")[0] for cell in asked} | {table.id for table in run.facts.tables if table.shown}
    titles = {table.id: table.title for table in run.facts.tables}
    units = {table.id: table.unit for table in run.facts.tables}
    arithmetic = {table.id for table in run.facts.tables if table.arithmetic}
    summaries = result.summaries()
    grids = []
    for table in dict.fromkeys(cell.partition("/")[0] for cell in summaries):
        if table not in touched:
            continue
        digits = _digits(run.facts, table)
        cells = {
            cell: _spread(summary, 1 if table in arithmetic else len(run.request.seeds), digits=digits)
            for cell, summary in summaries.items()
            if cell.partition("/")[0] == table and (table in titles or cell in asked)
        }
        unit = f", {units[table]}" if units.get(table) else ""
        note = f"mean ± sd over n = {len(run.request.seeds)} seeds{unit}; {conditions(result)}"
        if table in arithmetic:
            note = f"computed from printed numbers{unit}: no seeds, no data; kdbench {run.environment.kdbench}"
        grids.append(_pivot(titles.get(table, table), note, cells))
    return grids


def metric_grids(result: Reproduction) -> list[Grid]:
    """What the installed metrics say of the measured networks: one grid, a row a cell, a column a metric."""
    run = result.run
    values: dict[str, dict[str, list[float]]] = {}
    for score in run.scores:
        values.setdefault(score.cell, {}).setdefault(score.metric, []).append(score.value)
    touched = {cell.partition("/")[0] for claim in run.facts.claims for cell in claim.cells()}
    used = [metric for metric in run.metrics if not metric.problem]
    seeds = len(run.request.seeds)
    shown = [cell for cell in values if cell.partition("/")[0] in touched or not touched]
    rows = [
        [
            name,
            *(
                _spread(summarise(values[cell][metric.id]), seeds, digits=3) if metric.id in values[cell] else ""
                for metric in used
            ),
        ]
        for cell, name in zip(shown, _apart(shown), strict=True)
    ]
    if not rows:
        return []
    columns = ["", *(f"{metric.id} ({metric.unit})" if metric.unit else metric.id for metric in used)]
    notes = [f"mean ± sd over n = {seeds} seeds; {conditions(result)}"]
    notes += [f"{m.id}: {m.title}; {m.better} is better; {m.source}; plugin '{m.plugin}'" for m in used]
    return [Grid("metrics of the measured networks", "\n".join(notes), columns, rows)]


def claim_grids(result: Reproduction) -> list[Grid]:
    """Every comparison of every claim, with its statistics."""
    grids = []
    for verdict in result.claim_verdicts():
        rows = []
        for index, alternative in enumerate(verdict.tests):
            for test in alternative:
                digits = decimals(test.sd, test.margin)
                interval = ""
                if test.low is not None and not test.exact:
                    interval = f"{_signed(test.low, digits)} to {_signed(test.high, digits)}"
                rows.append(
                    [
                        f"{test.left} {_SIGN[test.relation]} {test.right}",
                        str(index + 1) if len(verdict.tests) > 1 else "",
                        str(test.n),
                        _signed(test.gain, digits),
                        number(test.sd, digits),
                        interval,
                        "" if test.exact else number(test.p_support, 3),
                        "" if test.exact else number(test.p_contradict, 3),
                        f"{test.margin:g}",
                    ]
                )
        columns = ["comparison", "alternative", "n", "gain", "sd", "90 % CI", "p support", "p contradict", "margin"]
        grids.append(Grid(f"{verdict.claim}: {verdict.title}", verdict.sentence, columns, rows))
    return grids


WIDE = 116  # characters that still fit a terminal; a table with longer rows is turned

_SIGN = {"greater": ">", "less": "<", "not_worse": "not below", "equal": "="}


def _digits(facts: Facts, table: str) -> int:
    """Decimals that a table's small numbers need: those printed, and two figures of the margins that judge it."""
    printed = [
        len(cell.printed.partition(".")[2])
        for one in facts.tables
        if one.id == table
        for cell in one.cells
        if cell.printed
    ]
    margins = [
        margin
        for claim in facts.claims
        if any(cell.partition("/")[0] == table for cell in claim.cells())
        for margin in (claim.gain_margin, claim.value_margin)
    ]
    return max([2, *printed, *(decimals(None, margin) for margin in margins if margin)])


def _signed(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:+.{digits}f}"


def _spread(summary: Summary, seeds: int, *, digits: int = 2) -> str:
    if summary.mean is not None and abs(summary.mean) >= 10:  # of an accuracy in percent two decimals are enough
        digits = 2
    text = number(summary.mean, digits)
    if summary.sd is not None:
        text += f" ± {number(summary.sd, digits)}"
    return text if summary.n == seeds else f"{text} (n = {summary.n})".strip()


def _apart(cells: list[str]) -> list[str]:
    """Names of cells without the parts that all of them have."""
    parts = [cell.split("/") for cell in cells]
    if len(parts) < 2 or len({len(one) for one in parts}) > 1:
        return cells
    kept = [index for index, column in enumerate(zip(*parts, strict=True)) if len(set(column)) > 1]
    return ["/".join(one[index] for index in kept) for one in parts]


def _pivot(title: str, note: str, cells: dict[str, str]) -> Grid:
    columns = list(dict.fromkeys(cell.rpartition("/")[2] for cell in cells))
    rows: dict[str, dict[str, str]] = {}
    for cell, text in cells.items():
        row = " ".join(cell.split("/")[1:-1])
        rows.setdefault(row, {})[cell.rpartition("/")[2]] = text
    widths = [
        max(len(text) for text in (column, *(row.get(column, "") for row in rows.values()))) for column in columns
    ]
    if sum(width + 3 for width in widths) + max(map(len, rows), default=0) > WIDE and len(columns) > len(rows):
        body = [[column, *(row.get(column, "") for row in rows.values())] for column in columns]
        return Grid(title, note, ["", *rows], body)
    return Grid(title, note, ["", *columns], [[name, *(row.get(c, "") for c in columns)] for name, row in rows.items()])

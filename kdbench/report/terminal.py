"""A result on the terminal: the paper's table, the measured one, a verdict per claim, the ledger, where it is kept."""

from __future__ import annotations

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kdbench.figures import drawn
from kdbench.paper import Deviation
from kdbench.report.grids import Grid, conditions, margins, measured_grids, metric_grids, number, reported_grids
from kdbench.result import Reproduction

__all__ = ["COLOURS", "show_deviations", "show_grid", "show_result"]

COLOURS = {
    "reproduced": "green",
    "supported": "green",
    "exceeds": "green",
    "not reproduced": "red",
    "contradicted": "red",
    "smaller than the margin": "yellow",
}

# What the two p values of a claim are about, by the relation it claims.
_NULLS = {
    "greater": ("no gain", "a gain that matters"),
    "not_worse": ("a loss that matters", "no loss"),
    "equal": ("a difference that matters", "none that matters"),
}


def show_result(console: Console, result: Reproduction) -> None:
    """Everything that a run has to say."""
    run = result.run
    console.print()
    console.rule(f"{escape(run.facts.title)} ({escape(run.facts.venue)})", align="left")
    touched = {cell.partition("/")[0] for claim in run.facts.claims for cell in claim.cells()}
    for grid in reported_grids(table for table in run.facts.tables if table.id in touched and table.comparable):
        show_grid(console, grid, "The paper", "magenta")
    for grid in measured_grids(result):
        show_grid(console, grid, "Measured", "cyan")
    for grid in metric_grids(result):
        show_grid(console, grid, "Scores", "cyan")
    for metric in run.metrics:
        if metric.problem:
            said = f"metric '{metric.id}' of plugin '{metric.plugin}' failed: {metric.problem}"
            console.print(f"[red]{escape(said)}[/]", highlight=False)
    _show_verdicts(console, result)
    show_deviations(console, run.facts.deviations, run.request.protocol)
    for failure in run.failures:
        of = f" [dim](plugin '{escape(failure.plugin)}')[/]" if failure.plugin else ""
        console.print(f"[red]failed[/] {escape(failure.label)}: {escape(failure.cause)}{of}")
        if failure.skipped:
            console.print(f"       {failure.skipped} stages that need it were not run")
    if run.status in ("running", "stopped"):
        console.print("[yellow]This run never ended[/]: reproduce again, and it goes on from its finished stages")
    reused = sum(stage.reused for stage in run.stages)
    console.print(
        f"{len(run.stages)} stages, {reused} of them reused, in {run.seconds:.1f} s. "
        f"Run [bold]{escape(run.id)}[/] is kept in"
    )
    console.print(f"{escape(str(result.path))}", soft_wrap=True)
    for figure in drawn(result.path):
        console.print(f"Figure: {escape(str(figure))}", soft_wrap=True)
    console.print(f"Read it again: kdbench report {escape(run.id)}", soft_wrap=True)


def show_grid(console: Console, grid: Grid, who: str, colour: str) -> None:
    """One table under its title, the note below it."""
    console.print(f"[bold {colour}]{who}[/]: {escape(grid.title)}")
    for places in _side_by_side(grid, console.width):
        table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for place in places:
            table.add_column(escape(grid.columns[place]), justify="right" if place else "left", no_wrap=place > 0)
        for row in grid.rows:
            table.add_row(*(escape(row[place]) for place in places))
        console.print(table)
    console.print(f"[dim]{escape(grid.note)}[/]")
    console.print()


def _side_by_side(grid: Grid, width: int) -> list[list[int]]:
    """The columns of a table in as many parts as it takes to cut none of them off; each begins with the rows' names."""
    if not grid.rows:
        return []
    sizes = [max(len(text) for text in column) for column in zip(grid.columns, *grid.rows, strict=True)]
    parts, left = [[0]], width - sizes[0]
    for place, size in enumerate(sizes[1:], start=1):
        if size + 3 > left and len(parts[-1]) > 1:
            parts, left = [*parts, [0]], width - sizes[0]
        parts[-1].append(place)
        left -= size + 3
    return parts


def show_deviations(console: Console, deviations: Iterable[Deviation], protocol: str) -> None:
    """The ledger lines that apply, each with what it does to the number."""
    lines = list(deviations)
    if not lines:
        return
    console.print(f"[bold]Deviations that apply[/] ({len(lines)}; this run reads the recipe as '{protocol}')")
    for line in lines:
        text = f"{line.item}: {line.text(protocol)}"
        console.print(f"  [bold]{escape(line.id)}[/] {escape(text)}", highlight=False)
        console.print(f"    [dim]{escape(line.effect)}[/]", highlight=False)
    console.print()


def _show_verdicts(console: Console, result: Reproduction) -> None:
    console.print(f"[bold]Verdicts[/] [dim]({escape(conditions(result))})[/]")
    console.print(
        f"[dim]protocol {result.run.request.protocol}: {escape(result.run.facts.protocol)}[/]", highlight=False
    )
    declared = {claim.id: claim for claim in result.run.facts.claims}
    for verdict in result.claim_verdicts():
        colour = COLOURS.get(verdict.gain_word, "bold")
        console.print(f"  [bold]{verdict.claim}[/] {escape(verdict.title)}", highlight=False)
        console.print(f"     gain:  [{colour}]{verdict.gain_phrase}[/]. {escape(verdict.sentence)}", highlight=False)
        if not verdict.tests:  # a claim without comparisons: there is nothing more to say
            continue
        colour = COLOURS.get(verdict.value_word, "bold")
        # The full reason is the same for most claims; 'not comparable' always says why.
        console.print(f"     value: [{colour}]{verdict.value_word}[/]: {escape(verdict.value_reason)}", highlight=False)
        evidence = f"declared: {margins(declared[verdict.claim])}"
        if verdict.p_support is not None and not declared[verdict.claim].exact:
            relations = {test.relation for tests in verdict.tests for test in tests}
            nulls = _NULLS.get(next(iter(relations)), _NULLS["greater"]) if len(relations) == 1 else _NULLS["greater"]
            ps = number(verdict.p_support, 3), number(verdict.p_contradict, 3)
            evidence += f"; p = {ps[0]} (H0: {nulls[0]}), {ps[1]} (H0: {nulls[1]})"
        console.print(f"     [dim]{escape(evidence)}[/]", highlight=False)
    console.print()

"""``kdbench show PAPER``"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kdbench.cli.options import console, json_option, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from kdbench.paper import Claim, Paper


@click.command("show")
@click.argument("paper")
@json_option
def command(*, paper: str, as_json: bool) -> None:
    """What PAPER says: citation, claims with margins, reported tables, deviations."""
    import msgspec

    from kdbench.plugins import registry

    facts = registry().paper(paper)
    if as_json:
        print_json(msgspec.to_builtins(msgspec.structs.replace(facts, study=None)))
    else:
        _show(console(), facts)


def _show(out: Console, paper: Paper) -> None:
    from kdbench.report.grids import reported_grids
    from kdbench.report.terminal import show_grid

    out.print(f"[bold]{paper.title}[/]\n{paper.authors}. {paper.venue}. {paper.url}\n", highlight=False)
    out.print(paper.summary + "\n", highlight=False)
    out.print(paper.bibtex, highlight=False, markup=False)
    for grid in reported_grids(paper.tables):
        show_grid(out, grid, "Reported", "magenta")
    out.print("[bold]Protocols[/]")
    for protocol in paper.protocols:
        out.print(f"  [bold]{protocol.id}[/] {protocol.sentence}", highlight=False)
    out.print("\n[bold]Claims[/]")
    for claim in paper.claims:
        _show_claim(out, claim)
    out.print(f"\n[bold]Deviations[/] ({len(paper.deviations)} lines: as written | as released | clean)")
    for line in paper.deviations:
        columns: Any = " | ".join(text or "-" for text in (line.written, line.released, line.clean))
        out.print(f"  [bold]{line.id}[/] {line.item}: {columns}", highlight=False)
        out.print(f"    [dim]{line.effect} ({line.source}; {line.certainty})[/]", highlight=False)


def _show_claim(out: Console, claim: Claim) -> None:
    from kdbench.report.grids import margins

    core = " [green](core)[/]" if claim.core else ""
    out.print(f"  [bold]{claim.id}[/]{core} {claim.title}. {claim.sentence}", highlight=False)
    if claim.not_tested:
        out.print(f"     [dim]not tested: {claim.not_tested} ({claim.source}; {claim.certainty})[/]", highlight=False)
        return
    compared = sum(len(alternative) for alternative in claim.alternatives)
    out.print(
        f"     [dim]{claim.source}; {claim.certainty}; {compared} comparisons of {margins(claim)}. "
        f"{claim.margin_reason}[/]",
        highlight=False,
    )

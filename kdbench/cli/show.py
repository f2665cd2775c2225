"""``kdbench show PAPER``"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kdbench.cli.options import console, json_option, print_json, say

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

    say(out, (paper.title, "bold"), f"\n{paper.authors}. {paper.venue}. {paper.url}\n")
    say(out, paper.summary + "\n")
    say(out, paper.bibtex)
    grids = reported_grids(paper.tables)
    for grid in grids:
        if grid.rows:
            show_grid(out, grid, "Reported", "magenta")
    if unread := [grid.title for grid in grids if not grid.rows]:
        say(out, ("No number was read of", "bold"), f": {'; '.join(unread)}\n")
    if paper.parameter_counts:
        say(out, ("Published parameter counts", "bold"))
        for count in paper.parameter_counts:
            said = f"  {count.network} on {count.dataset}: {count.parameters:,} "
            say(out, said, (f"({count.source}; {count.certainty})", "dim"))
        say(out, "")
    say(out, ("Protocols", "bold"))
    for protocol in paper.protocols:
        say(out, "  ", (protocol.id, "bold"), f" {protocol.sentence}")
    say(out, ("\nClaims", "bold"))
    for claim in paper.claims:
        _show_claim(out, claim)
    say(out, ("\nDeviations", "bold"), f" ({len(paper.deviations)} lines: as written | as released | clean)")
    for line in paper.deviations:
        columns = " | ".join(text or "-" for text in (line.written, line.released, line.clean))
        say(out, "  ", (line.id, "bold"), f" {line.item}: {columns}")
        sources = "; ".join(dict.fromkeys([line.source, line.certainty]))
        say(out, (f"    {line.effect} ({sources})", "dim"))


def _show_claim(out: Console, claim: Claim) -> None:
    from kdbench.report.grids import margins

    core = (" (core)", "green") if claim.core else ""
    say(out, "  ", (claim.id, "bold"), core, f" {claim.title}. {claim.sentence}")
    if claim.not_tested:
        say(out, (f"     not tested: {claim.not_tested} ({claim.source}; {claim.certainty})", "dim"))
        return
    compared = sum(len(alternative) for alternative in claim.alternatives)
    comparisons = "1 comparison" if compared == 1 else f"{compared} comparisons"
    declared = f"{comparisons} of {margins(claim)}. {claim.margin_reason}"
    say(out, (f"     {claim.source}; {claim.certainty}; {declared}", "dim"))
    if claim.note:
        say(out, (f"     note: {claim.note}", "dim"))

"""``kdbench list``"""

from __future__ import annotations

import click

from kdbench.cli.options import json_option, print_json


@click.command("list")
@json_option
def command(*, as_json: bool) -> None:
    """Papers that can be reproduced here."""
    from kdbench.plugins import registry

    found = registry()
    if as_json:
        print_json(
            [
                {
                    "id": paper.id,
                    "title": paper.title,
                    "venue": paper.venue,
                    "year": paper.year,
                    "datasets": paper.datasets,
                    "claims": [claim.id for claim in paper.claims],
                }
                for paper in found.papers.values()
            ]
        )
        return
    for paper in found.papers.values():
        core = ", ".join(claim.id for claim in paper.claims if claim.core)
        click.echo(f"{click.style(paper.id, bold=True)}  {paper.title}")
        click.echo(f"    {paper.authors} ({paper.venue})")
        click.echo(f"    {len(paper.claims)} claims (core: {core}); data sets: {', '.join(paper.datasets)}")
    if not found.papers:
        click.echo("no paper is installed; first-party ones are kdbench-takd and its siblings under plugins/")
    for info in found.problems():
        click.echo(info.complaint, err=True)

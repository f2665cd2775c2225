"""``kdbench runs``"""

from __future__ import annotations

import click

from kdbench.cli.options import console, json_option, open_store, print_json, store_option
from kdbench.errors import KdbenchError


@click.command("runs")
@store_option
@json_option
def command(*, store: str | None, as_json: bool) -> None:
    """Runs in the store, oldest first."""
    from rich.markup import escape

    from kdbench.result import read_run

    opened = open_store(store)
    found, broken = [], []
    for run_id in opened.run_ids():
        try:
            found.append(read_run(opened.runs / run_id))
        except KdbenchError as fault:
            broken.append(fault)
    if as_json:
        print_json([{"id": r.run.id, "status": r.run.status, "request": r.run.request, "path": r.path} for r in found])
    else:
        out = console()
        for result in found:
            run = result.run
            words = ", ".join(f"{v.claim} {v.gain_word}" for v in result.claim_verdicts()) if run.values else ""
            said = f"{run.status}, {run.seconds:.0f} s  {escape(words)}"
            out.print(f"[bold]{escape(run.id)}[/] {said}", highlight=False, soft_wrap=True)
        if not found:
            out.print(f"no run in {opened.root}")
    for error in broken:
        click.echo(f"kdbench: error: {error}", err=True)
    if broken:
        raise click.exceptions.Exit(1)

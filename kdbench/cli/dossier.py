"""``kdbench dossier RUN``"""

from __future__ import annotations

from pathlib import Path

import click

from kdbench.cli.options import open_store, store_option
from kdbench.errors import KdbenchError


@click.command("dossier")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--out", metavar="DIR", help="The dossier's folder.  [default: papers/PAPER]")
@store_option
def command(*, runs: tuple[str, ...], out: str | None, store: str | None) -> None:
    """Write the public page of a reproduction: README.md and the records it is rendered from.

    Each RUN is copied into the dossier, in place of an earlier one of the same tier, data set and protocol. Without a
    RUN, the page is rendered anew from the records that are there.
    """
    from kdbench.report.dossier import add_run, write_dossier
    from kdbench.result import read_run

    opened = open_store(store)
    results = [read_run(opened.run_folder(run)) for run in runs]
    if out is None and not results:
        raise KdbenchError("no run and no folder is named", cure="use kdbench dossier RUN, or --out papers/PAPER")
    folder = Path(out) if out else Path("papers") / results[0].run.request.paper
    for result in results:
        add_run(result, opened, folder)
    click.echo(write_dossier(folder))

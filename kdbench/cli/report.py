"""``kdbench report RUN``"""

from __future__ import annotations

import click

from kdbench.cli.options import console, json_option, open_store, print_json, store_option


@click.command("report")
@click.argument("run")
@store_option
@json_option
@click.option("--statistics", is_flag=True, help="Every comparison of every claim, with its test.")
def command(*, run: str, store: str | None, as_json: bool, statistics: bool) -> None:
    """Show a RUN again (its id, or the beginning of it)."""
    from kdbench.report.grids import claim_grids
    from kdbench.report.terminal import show_grid, show_result
    from kdbench.result import read_run

    result = read_run(open_store(store).run_folder(run))
    if as_json:
        print_json(result.to_dict())
        return
    out = console()
    show_result(out, result)
    if statistics:
        out.print()
        for grid in claim_grids(result):
            show_grid(out, grid, "Statistics", "cyan")

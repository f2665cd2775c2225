"""``kdbench reproduce PAPER``"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from kdbench.cli.options import axes, console, parse_seeds, print_json
from kdbench.errors import KdbenchError

if TYPE_CHECKING:
    from kdbench.api import Prepared

FAILED_STAGES = 3


@click.command("reproduce")
@axes
@click.option("--yes", is_flag=True, help="Do not ask before a full-tier run.")
@click.pass_context
def command(ctx: click.Context, /, *, paper: str, seeds: str | None, as_json: bool, yes: bool, **options: Any) -> int:
    """Train what PAPER trained and judge its claims.

    Finished stages are reused, and a run that was killed goes on where it stopped. Exit status 3: some stages failed.
    """
    from kdbench.api import carry_out, prepare
    from kdbench.report.progress import Downloads, Watch
    from kdbench.report.terminal import show_result

    notes = console(stderr=True)
    request: dict[str, Any] = {"seeds": parse_seeds(seeds), **options}
    if options["tier"] == "full" and not yes:
        _ask(prepare(paper, fetch=False, **request))
    with Downloads(notes) as downloads:
        prepared = prepare(paper, progress=downloads, **request)
    if notes.is_terminal and not as_json:
        _announce(prepared, notes)
    with Watch(notes) as watch:
        result = carry_out(prepared, watch)
    if ctx.find_root().params.get("debug"):
        for failure in result.run.failures:
            click.echo(f"{failure.label}\n{result.traces.get(failure.hash, failure.cause)}", err=True)
    if as_json:
        print_json(result.to_dict())
    else:
        show_result(console(), result)
    return 0 if result.complete else FAILED_STAGES


def _announce(prepared: Prepared, notes: Any) -> None:
    request = prepared.request
    notes.print(
        f"Reproducing [bold]{request.paper}[/]: tier {request.tier}, {prepared.plan.lab.data.title}, protocol "
        f"{request.protocol}, {len(request.seeds)} seeds, {request.workers} workers on {request.device}",
        highlight=False,
    )


def _ask(prepared: Prepared) -> None:
    from kdbench.cli.plan import show_plan

    notes = console(stderr=True)
    show_plan(notes, prepared)
    if not sys.stdin.isatty():
        raise KdbenchError("a full-tier run is not started without a yes", cure="add --yes once the price is right")
    if not click.confirm("Start it?", err=True):
        raise KdbenchError("nothing was started", cure="smaller: --tier laptop, fewer --seeds, or one of --claims")

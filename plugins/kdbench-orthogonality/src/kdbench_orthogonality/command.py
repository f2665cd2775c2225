"""``kdbench interactions RUN``"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kdbench import hookimpl
from kdbench.cli.options import console, json_option, open_store, print_json, say, store_option

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from kdbench.result import Reproduction
    from kdbench.verdict import Summary
    from kdbench_orthogonality.interaction import Interaction, Scale

__all__ = ["command", "kdbench_register_commands"]

UNKNOWN = "unknown"
TITLES: dict[Scale, str] = {
    "accuracy": "accuracy scale: points, above 0 favours distillation",
    "log-error": "log-error scale: log(err KD / err CE), below 0 favours distillation",
}


@click.command("interactions")
@click.argument("run")
@store_option
@json_option
def command(*, run: str, store: str | None, as_json: bool) -> None:
    """Do distillation and other techniques conflict? The 2x2 factorials of a RUN of 'orthogonality'.

    For every technique X: accuracies, the gain of distillation without and under X, and the interaction
    I = gain under X - gain without, each with its 95 % t interval over seeds, and a grade.

    \b
    orthogonal (weak)   the gain under X is above 0         additive      I lies inside -m to m
    conflict            the gain under X is below 0         sub-additive  I lies below -m
    undecided           the interval does not say           synergistic   I lies above m

    m was declared before the run. 'Without X' is the student as it is, or one with the same fine-tuning that X has.
    """
    from kdbench.result import read_run
    from kdbench_orthogonality.interaction import interactions

    result = read_run(open_store(store).run_folder(run))
    found = interactions(result)
    if as_json:
        print_json(_plain_data(result, found))
    else:
        _show(console(), result, found)


@hookimpl
def kdbench_register_commands(cli: click.Group) -> None:
    cli.add_command(command)


def _plain_data(result: Reproduction, found: list[Interaction]) -> dict[str, Any]:
    import msgspec

    request = result.run.request
    axes = {name: getattr(request, name) for name in ("paper", "tier", "dataset", "protocol", "seeds")}
    return {"run": result.run.id, **axes, "level": 95, "interactions": msgspec.to_builtins(found)}


def _show(out: Console, result: Reproduction, found: list[Interaction]) -> None:
    request = result.run.request
    seeds = f"{len(request.seeds)} seeds" if len(request.seeds) > 1 else "1 seed"
    conditions = f"{result.run.data.title}, tier {request.tier}, protocol {request.protocol}, {seeds}"
    say(out, ("Interactions with distillation", "bold cyan"), f" ({conditions}; {result.run.id})")
    for scale, title in TITLES.items():
        rows = [each for each in found if each.scale == scale]
        out.print()
        say(out, (title, "bold"))
        out.print(_table(rows))
    out.print()
    for note in _notes(found, len(request.seeds)):
        say(out, (f"note: {note}", "dim"))


def _table(rows: list[Interaction]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("X", overflow="fold")  # a name that is cut short would pass for another
    for column in ("CE %", "KD %", "gain without X", "gain under X", "I", "m", "n"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("grade", overflow="fold")
    for row in rows:
        table.add_row(
            Text(row.technique),
            *(UNKNOWN if value is None else f"{value:.2f}" for value in (row.ce, row.kd)),
            *(_mean(summary, row.scale) for summary in (row.without, row.under, row.interaction)),
            f"{row.margin:g}",
            str(len(row.seeds)),
            f"{row.grade.gain}, {row.grade.interaction}",
        )
    return table


def _mean(summary: Summary, scale: Scale) -> str:
    """``+1.05 ±0.52``: mean and half of its 95 % interval, which is symmetric."""
    if summary.mean is None:
        return UNKNOWN
    digits = 2 if scale == "accuracy" else 3
    reach = UNKNOWN if summary.low is None or summary.high is None else f"{(summary.high - summary.low) / 2:.{digits}f}"
    return f"{round(summary.mean, digits) + 0.0:+.{digits}f} ±{reach}"  # + 0.0: no -0.00


def _notes(found: list[Interaction], seeds: int) -> list[str]:
    """What must be known to believe the tables: what was compared, which margins, what is unknown and why."""
    controls: dict[str, list[Interaction]] = {}
    unknown: dict[str, list[Interaction]] = {}
    for each in found:
        controls.setdefault(each.control, []).append(each)
        if each.unknown:
            unknown.setdefault(each.unknown, []).append(each)
    claims = ", ".join(dict.fromkeys(each.margin_from for each in found if each.margin_from))
    default = [each for each in found if not each.margin_from]
    few = [each for each in found if 0 < len(each.seeds) < seeds]
    return [
        *(f"without X is '{control}' for {_named(those)}" for control, those in controls.items()),
        "± is half of the 95 % t interval of the differences paired by seed; n: seeds that have all of them",
        *([f"m is declared by the claims {claims}"] if claims else []),
        *([f"m is that of all techniques, as no claim declares another, for {_named(default)}"] if default else []),
        *([f"not all of the run's {seeds} seeds have the accuracies of {_named(few)}"] if few else []),
        *(f"{_named(those)}: {reason}" for reason, those in unknown.items()),
    ]


def _named(those: list[Interaction]) -> str:
    """The techniques, with the scale where it is one of the two alone."""
    scales: dict[str, list[str]] = {}
    for each in those:
        scales.setdefault(each.technique, []).append(each.scale)
    return ", ".join(name if len(of) == len(TITLES) else f"{name} ({of[0]})" for name, of in scales.items())

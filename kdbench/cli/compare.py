"""``kdbench compare RUN RUN``"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kdbench.cli.options import console, json_option, open_store, print_json, store_option
from kdbench.errors import KdbenchError

if TYPE_CHECKING:
    from kdbench.result import Reproduction


@click.command("compare")
@click.argument("first")
@click.argument("second")
@store_option
@json_option
def command(*, first: str, second: str, store: str | None, as_json: bool) -> None:
    """Hold two runs of the same paper, tier, data set and protocol against each other, seed by seed.

    Runs that differ in one of these never share a table: for them, what differs is said instead.
    """
    from kdbench.result import read_run

    opened = open_store(store)
    runs = [read_run(opened.run_folder(name)) for name in (first, second)]
    _refuse(*runs)
    rows = _rows(*runs)
    if as_json:
        print_json({"first": runs[0].run.id, "second": runs[1].run.id, "cells": rows, "differs": _differs(*runs)})
    else:
        _show(runs, rows)


def _refuse(first: Reproduction, second: Reproduction) -> None:
    for axis in ("paper", "tier", "dataset", "protocol"):
        left, right = getattr(first.run.request, axis), getattr(second.run.request, axis)
        if left != right:
            raise KdbenchError(
                f"the runs differ in {axis} ({left} and {right}), so their numbers do not belong in one table",
                cure="read each with 'kdbench report'",
            )
    if first.run.data.fingerprint != second.run.data.fingerprint:
        raise KdbenchError("the runs were made on different data", cure="read each with 'kdbench report'")


def _rows(first: Reproduction, second: Reproduction) -> list[dict[str, Any]]:
    from kdbench.paper import Comparison
    from kdbench.verdict import judge_gain

    left, right = first.samples(), second.samples()
    rows = []
    for cell in left:
        if cell not in right:
            continue
        both = {"second": right[cell], "first": left[cell]}
        test = judge_gain(Comparison(left="second", right="first"), both, margin=0.0)
        shared = [seed for seed in left[cell] if seed in right[cell]]
        equal = sum(left[cell][seed] == right[cell][seed] for seed in shared)
        rows.append(
            {
                "cell": cell,
                "n": test.n,
                "first": test.right_mean,
                "second": test.left_mean,
                "difference": test.gain,
                "low": test.low,
                "high": test.high,
                "equal_bits": equal,
            }
        )
    return rows


def _differs(first: Reproduction, second: Reproduction) -> dict[str, list[Any]]:
    """Fields of request and environment in which the runs differ: the first place to look for a reason."""
    found = {}
    for part in ("request", "environment"):
        left, right = getattr(first.run, part), getattr(second.run, part)
        for name in left.__struct_fields__:
            if getattr(left, name) != getattr(right, name):
                found[name] = [getattr(left, name), getattr(right, name)]
    return found


def _show(runs: list[Reproduction], rows: list[dict[str, Any]]) -> None:
    from kdbench.report.grids import Grid, number
    from kdbench.report.terminal import show_grid

    out = console()
    body = []
    for row in rows:
        low, high = number(row["low"]), number(row["high"])
        body.append(
            [
                row["cell"],
                str(row["n"]),
                number(row["first"]),
                number(row["second"]),
                number(row["difference"]),
                f"{low} to {high}" if low else "",
                f"{row['equal_bits']} of {row['n']}",
            ]
        )
    columns = ["cell", "n", "first", "second", "second - first", "90 % CI", "equal to the bit"]
    note = f"paired by seed; first: {runs[0].run.id}; second: {runs[1].run.id}"
    show_grid(out, Grid("the same cells in two runs", note, columns, body), "Compared", "cyan")
    for name, (left, right) in _differs(*runs).items():
        out.print(f"  {name}: {left} | {right}", highlight=False, markup=False)
    words = {(verdict.claim, verdict.title): verdict.gain_phrase for verdict in runs[1].claim_verdicts()}
    for verdict in runs[0].claim_verdicts():
        other = words.get((verdict.claim, verdict.title), "not asked for")
        out.print(f"  {verdict.claim}: {verdict.gain_phrase} | {other}", highlight=False, markup=False)

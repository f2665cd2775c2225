"""``kdbench score RUN...`` and ``kdbench score --table FILE.csv``"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kdbench import hookimpl
from kdbench.cli.options import console, json_option, open_store, print_json, store_option

if TYPE_CHECKING:
    from kdbench_survey_metric.cohort import Cohort
    from kdbench_survey_metric.measured import AccuracyUnit, SizeUnit

__all__ = ["command", "kdbench_register_commands"]

SIZE_UNITS: dict[str, SizeUnit] = {
    "parameters": "parameters",
    "nonzero": "nonzero parameters",
    "bytes": "bytes",
    "macs": "MACs",
}
LEVELS = ("90", "95")


@click.command("score")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--table", metavar="FILE", help="Score the numbers of a CSV file instead of runs.")
@click.option("--alpha", type=float, default=0.5, show_default=True, metavar="A", help="Weight of the size, 0 to 1.")
@click.option(
    "--size-unit",
    type=click.Choice(list(SIZE_UNITS)),
    default="parameters",
    show_default=True,
    help="What is counted as size; with --table, what its sizes are.",
)
@click.option("--teacher", metavar="NAME", help="Whose students: a cell, label or hash; with --table, a line's name.")
@click.option("--level", type=click.Choice(LEVELS), help="Of the intervals, in percent.  [default: 95]")
@click.option(
    "--accuracy-unit",
    type=click.Choice(["fraction", "percent"]),
    help="Of the accuracies of a --table.  [default: fraction]",
)
@click.option(
    "--majority",
    type=float,
    metavar="RATE",
    help="With --table: accuracy of always answering the largest class.",
)
@store_option
@json_option
def command(
    *,
    runs: tuple[str, ...],
    table: str | None,
    alpha: float,
    size_unit: str,
    teacher: str | None,
    level: str | None,
    accuracy_unit: AccuracyUnit | None,
    majority: float | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Rank students of one teacher by the survey's distillation score, DS.

    DS = alpha size_S/size_T + (1 - alpha) (1 - acc_S/acc_T), lower is better. It compares students under one teacher,
    on one data set and split, and nothing else: several RUNs must have all of these in common. Beside it stand what it
    hides: chance, the same student without a teacher, noise, and the other values of alpha.

    The FILE has the columns name, size, accuracy, and if you like role (teacher, student) and plain, the accuracy of
    the same network without a teacher. An empty field is unknown.
    """
    _check_usage(
        runs, table, {"--level": level, "--store": store}, {"--accuracy-unit": accuracy_unit, "--majority": majority}
    )
    from kdbench_survey_metric.cohort import score
    from kdbench_survey_metric.show import plain_data, show

    unit = SIZE_UNITS[size_unit]
    if table is None:
        cohort = _of_runs(runs, unit, teacher, store)
    else:
        cohort = _of_table(table, unit, accuracy_unit or "fraction", teacher, majority)
    scored = score(cohort, alpha)
    if as_json:
        print_json(plain_data(scored, int(level or 95)))
    else:
        show(console(), scored, int(level or 95))


@hookimpl
def kdbench_register_commands(cli: click.Group) -> None:
    cli.add_command(command)


def _check_usage(
    runs: tuple[str, ...], table: str | None, of_runs: dict[str, object], of_tables: dict[str, object]
) -> None:
    if bool(runs) == (table is not None):
        raise click.UsageError("name runs or a --table; 'kdbench runs' lists those in the store")
    for name, value in (of_runs if table is not None else of_tables).items():
        if value is not None:
            raise click.UsageError(f"{name} is for {'runs' if table is not None else 'a --table'}")


def _of_runs(names: tuple[str, ...], unit: SizeUnit, teacher: str | None, store: str | None) -> Cohort:
    from kdbench.result import read_run
    from kdbench_survey_metric.cohort import of_family
    from kdbench_survey_metric.runs import choose, families, refuse

    opened = open_store(store)
    results = [read_run(folder) for folder in dict.fromkeys(opened.run_folder(name) for name in names)]
    refuse(results)
    family = choose(families(results, opened), [result.run.id for result in results], teacher)
    return of_family(family, results, unit)


def _of_table(
    path: str, unit: SizeUnit, accuracy_unit: AccuracyUnit, teacher: str | None, majority: float | None
) -> Cohort:
    from pathlib import Path

    from kdbench_survey_metric.table import read_table

    return read_table(Path(path), size_unit=unit, accuracy_unit=accuracy_unit, teacher=teacher, majority=majority)

"""Tables of reports: which are shown, how wide they are, what rows are called, what is said of the paper's own."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from toy_paper import toy_paper

from kdbench.environment import environment
from kdbench.metric import MetricUsed, Score
from kdbench.paper import Claim, Comparison, ReportedCell, ReportedTable
from kdbench.report.dossier import render
from kdbench.report.grids import WIDE, Grid, claim_grids, measured_grids, metric_grids, reported_grids
from kdbench.report.terminal import show_result
from kdbench.result import (
    DataUsed,
    Reproduction,
    Request,
    RunFile,
    StageLine,
    Value,
    facts_of,
)

DATA = DataUsed("MNIST-1D", "d" * 64, True, "", {"train": 4_000, "test": 6_000})
OURS = {"metric": "test accuracy", "unit": "%", "source": "ours", "comparable": ()}


def claim(left: str = "a/x/one", right: str = "a/x/two", relation: Any = "greater", **fields: Any) -> Claim:
    facts: dict[str, Any] = {
        "id": "C1", "title": "t", "sentence": "s", "source": "Table 1", "certainty": "paper", "core": True,
        "gain_margin": 0.5, "alternatives": ((Comparison(left=left, right=right, relation=relation),),),
    }  # fmt: skip
    return Claim(**{**facts, **fields})


def table(name: str, **fields: Any) -> ReportedTable:
    return ReportedTable(**{"id": name, "title": f"Title of {name}", **OURS, **fields})


def result(
    cells: dict[str, list[float]], tables: tuple[ReportedTable, ...], *claims: Claim, **fields: Any
) -> Reproduction:
    """A run that measured ``cells``, one value a seed."""
    paper = toy_paper(tables=tables, claims=claims or (claim(),))
    seeds = max(len(values) for values in cells.values())
    request = Request(
        paper="toy", tier="laptop", dataset="mnist1d", protocol="clean", seeds=tuple(range(seeds)), claims="core",
        device="cpu", workers=1, threads=1, executor="local", data_dir=None,
    )  # fmt: skip
    run = RunFile(
        id="toy-run",
        status="finished",
        request=request,
        facts=facts_of(paper, tuple(paper.claims), request),
        data=DATA,
        environment=environment(device="cpu", threads=1, code="0" * 16),
        started="2026-01-01T00:00:00+00:00",
        values=tuple(
            Value(cell, seed, "test.accuracy", value, (f"{cell}{seed}",))
            for cell, values in cells.items()
            for seed, value in enumerate(values)
        ),
        stages=(StageLine("a", "train", 1.0, False),),
        **fields,
    )
    return Reproduction(run, Path("nowhere"))


def named(grids: list[Grid]) -> dict[str, Grid]:
    return {grid.title: grid for grid in grids}


# ------------------------------------------------------------------------------------------------------ shown or not

CELLS = {"a/x/one": [61.0, 62.0], "a/x/two": [60.0, 60.5], "b/x/one": [1.0, 2.0], "c/x/one": [3.0, 4.0]}


def test_a_shown_table_stands_in_reports_though_no_claim_touches_it() -> None:
    tables = (table("a"), table("b", shown=True), table("c"), table("d", shown=True))
    grids = named(measured_grids(result(CELLS, tables)))
    # What was not measured has no table, shown or not.
    assert set(grids) == {"Title of a", "Title of b"}
    assert grids["Title of b"].rows == [["x", "1.50 ± 0.71"]]
    text = render([result(CELLS, tables)])
    assert "**Title of b**" in text
    assert "Title of c" not in text.partition("### Measured")[2]


def test_a_table_is_not_shown_unless_it_says_so() -> None:
    assert not table("b").shown
    assert set(named(measured_grids(result(CELLS, (table("a"), table("b")))))) == {"Title of a"}


# -------------------------------------------------------------------------------------------------------------- width


def wide(columns: int, rows: int, value: float = 61.0) -> Grid:
    cells = {f"a/row{row}/column{column}": [value, value + 1] for row in range(rows) for column in range(columns)}
    (grid,) = measured_grids(result(cells, (table("a"),), claim("a/row0/column0", "a/row0/column1")))
    return grid


def breadth(grid: Grid) -> int:
    """Characters of the widest row, three between columns."""
    lengths = [max(len(row[place]) for row in [grid.columns, *grid.rows]) for place in range(len(grid.columns))]
    return sum(lengths) + 3 * (len(lengths) - 1)


def test_a_table_whose_rows_do_not_fit_is_turned() -> None:
    fits, turned = wide(7, 2), wide(8, 2)
    assert fits.columns == ["", *(f"column{n}" for n in range(7))]
    assert [row[0] for row in fits.rows] == ["row0", "row1"]
    assert breadth(fits) <= WIDE < breadth(fits) + 3 + len("61.50 ± 0.71")
    assert turned.columns == ["", "row0", "row1"]
    assert [row[0] for row in turned.rows] == [f"column{n}" for n in range(8)]
    assert all(row[1:] == ["61.50 ± 0.71"] * 2 for row in turned.rows)
    assert breadth(turned) < WIDE


def test_many_narrow_columns_are_not_turned() -> None:
    cells = tuple(
        ReportedCell(cell=f"r/net/{n}", value=float(n), certainty="paper", source="T", printed=str(n))
        for n in range(12)
    )
    (grid,) = reported_grids((table("r", cells=cells),))
    assert grid.columns == ["", *map(str, range(12))]
    assert grid.rows == [["net", *map(str, range(12))]]


def test_a_table_that_would_only_grow_wider_is_not_turned() -> None:
    assert len(wide(9, 9).columns) == 10
    assert len(wide(9, 12).columns) == 10


# --------------------------------------------------------------------------------------------------------------- names


def metric_rows(*cells: str) -> list[str]:
    used = MetricUsed(id="m", title="M", unit="", better="higher", source="S", plugin="p")
    scores = tuple(Score("m", cell, 0, 0.5) for cell in cells)
    values = {cell: [60.0] for cell in cells}
    grids = metric_grids(result(values, (table("a"),), claim(cells[0], cells[-1]), metrics=(used,), scores=scores))
    return [row[0] for grid in grids for row in grid.rows]


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["a/net/x/noise-20/CE", "a/net/x/noise-20/LS"], ["CE", "LS"]),
        (["a/n1/x/CE", "a/n2/x/LS"], ["n1/CE", "n2/LS"]),
        (["a/x/CE"], ["a/x/CE"]),
        (["a/x/CE", "a/x/noise/LS"], ["a/x/CE", "a/x/noise/LS"]),
    ],
    ids=["one part", "two parts", "one cell", "of several lengths"],
)
def test_measured_networks_are_named_by_what_tells_them_apart(cells: list[str], names: list[str]) -> None:
    assert metric_rows(*cells) == names


# ------------------------------------------------------------------------------------------------------------ equality


@pytest.mark.parametrize(
    ("relations", "nulls"),
    [
        (("greater",), ("no gain", "a gain that matters")),
        (("less",), ("no gain", "a gain that matters")),
        (("not_worse",), ("a loss that matters", "no loss")),
        (("equal",), ("a difference that matters", "none that matters")),
        (("equal", "greater"), ("no gain", "a gain that matters")),
    ],
)
def test_the_terminal_says_what_each_p_is_about(relations: tuple[str, ...], nulls: tuple[str, str]) -> None:
    pair = tuple(Comparison(left="a/x/one", right="a/x/two", relation=relation) for relation in relations)
    cells = {"a/x/one": [61.0, 62.0, 61.4], "a/x/two": [60.0, 60.5, 61.0]}
    console = Console(file=io.StringIO(), width=400, color_system=None)
    show_result(console, result(cells, (table("a"),), claim(alternatives=(pair,))))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    first, second = nulls
    assert f"(H0: {first}), " in text
    assert f"(H0: {second})" in text


def test_statistics_write_equality_as_such() -> None:
    cells = {"a/x/one": [61.0, 62.0], "a/x/two": [60.0, 60.5]}
    (grid,) = claim_grids(result(cells, (table("a"),), claim(relation="equal")))
    assert grid.rows[0][0] == "a/x/one = a/x/two"


# --------------------------------------------------------------------------------------------- the paper's own numbers


def reported(certainty: Any, value: float | None = 70.0, name: str = "paper", **fields: Any) -> ReportedTable:
    cell = ReportedCell(cell=f"{name}/x/one", value=value, certainty=certainty, source="T")
    return table(name, **{"comparable": ("written",), "cells": (cell,), **fields})


HEADING, NONE_OF_IT = "## The paper's numbers\n", "## Reported numbers: none of the paper itself\n"


@pytest.mark.parametrize("certainty", ["paper", "paper?", "code", "author"])
def test_a_dossier_with_one_number_of_the_paper_heads_it_so(certainty: str) -> None:
    text = render([result(CELLS, (table("a"), reported(certainty), reported("third-party", name="others")))])
    assert HEADING in text
    assert NONE_OF_IT not in text
    assert "Blank cells were never read in the paper; none is filled from memory.\n" in text
    assert "Without any number" not in text


@pytest.mark.parametrize("certainty", ["third-party", "third-party??", "derived", "pilot", "project"])
def test_a_dossier_of_other_peoples_numbers_says_that_none_is_the_papers(certainty: str) -> None:
    blank = reported("not found", None, name="table1", title="Table 1")
    text = render([result(CELLS, (table("a"), blank, reported(certainty, name="others")))])
    assert HEADING not in text
    after = text.partition(NONE_OF_IT)[2]
    said = "No number of the paper was read, and none is filled from memory. What follows is other people's."
    assert after.startswith(f"\n{said}\n\nWithout any number: Table 1.\n\n**Title of others**\n")


def test_a_dossier_without_any_number_says_so_and_names_what_was_not_read() -> None:
    blank = (
        reported("not found", None, name="table1", title="Table 1"),
        table("none", title="All figures: NOT FOUND"),
    )
    # Tables of our own stand in no protocol of the paper: measured, always shown, or with claims on them.
    own = (table("a"), table("b"), table("shown", shown=True), table("e"))
    claims = (claim(), claim("e/x/one", "e/x/two", id="C2"))
    text = render([result(CELLS, (*blank, *own), *claims)])
    after = text.partition(NONE_OF_IT)[2]
    said = "No number of the paper was read, and none is filled from memory."
    assert after.startswith(f"\n{said}\n\nWithout any number: Table 1; All figures: NOT FOUND.\n\n## ")


def test_a_table_wider_than_the_terminal_is_shown_in_parts_that_cut_nothing_off() -> None:
    from io import StringIO

    from rich.console import Console

    from kdbench.report.grids import Grid
    from kdbench.report.terminal import show_grid

    columns = ["", *(f"column-{place}" for place in range(9))]
    row = ["row", *(f"{place}.1234 ± 0.5678" for place in range(9))]
    told = StringIO()
    show_grid(Console(file=told, width=60), Grid("wide", "note", columns, [row]), "Measured", "cyan")
    lines = told.getvalue().splitlines()
    assert all(text in told.getvalue() for text in (*columns, *row))
    assert sum(line.startswith("row") for line in lines) == 3
    assert max(map(len, lines)) <= 60

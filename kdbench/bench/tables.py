"""A comparison for people: on the terminal and as Markdown, from the same cells. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kdbench.bench.contender import FLOOR
from kdbench.bench.outcome import CaseResult, Entry, Report

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["as_markdown", "header", "show_case", "show_header", "show_summary"]

_SUMMARY = ("kdbench", "kdbench-inplace")
_EXPENDABLE = ("min", "error", "IQR", "peak", "GB/s", "n", "wall")  # columns, on a narrow terminal
_GAP = 3  # blanks between columns, as rich sets them
_QUIET = 0.2  # cores that others may use before a remark is due


def header(report: Report) -> list[str]:
    """The lines above all tables: what, where, with what, how."""
    machine = report.machine
    here = machine.environment
    lines = [
        f"forward and backward of the distillation loss through autograd, {report.date}",
        f"device {here.device}; {here.processor}, {here.cores} cores, {here.threads} threads",
    ]
    if machine.gpu:
        lines.append(", ".join(f"{name} {value}" for name, value in machine.gpu.items() if name != "name"))
    kernels = f"kdbench's kernels: {here.ops}, CPU instruction set {machine.instruction_set or 'none built'}"
    lines.append(f"{kernels}; torch's: {machine.torch_instruction_set}")
    versions = {"kdbench": here.kdbench, "commit": here.commit, "torch": here.torch, "python": here.python}
    versions |= machine.libraries | {"compiler": machine.compiler}
    lines.append(", ".join(f"{name} {value}" for name, value in versions.items() if value))
    memory = f"huge pages: {machine.huge_pages}; allocator: "
    memory += ", ".join(f"{name}={value}" for name, value in machine.allocator.items()) or "default"
    lines.append(f"{memory}; load average at the start {machine.load:.2f}")
    return [*lines, *report.method]


def title(result: CaseResult) -> str:
    """``128 x 1000 float32, T = 4, alpha = 0.9``."""
    case = result.case
    return f"{case.rows} x {case.classes} {case.dtype}, T = {case.temperature:g}, alpha = {case.alpha:g}"


def columns(result: CaseResult) -> list[str]:
    """What stands above :func:`rows`."""
    names = ["contender", "median", "IQR", "min", "x eager", "x compile", "GB/s", "of floor", "error", "n"]
    return [*names, "wall", "x eager", "peak"] if result.case.device == "cuda" else names


def rows(result: CaseResult) -> Iterator[list[str]]:
    """One row a measured contender."""
    for entry in result.entries:
        if entry.time is None:
            continue
        time = entry.time
        cells = [
            entry.id,
            duration(time.median),
            duration(time.q3 - time.q1),
            duration(time.minimum),
            _ratio(entry.x_eager),
            _ratio(entry.x_compile),
            "" if entry.gb_per_s is None else f"{entry.gb_per_s:.3g}",
            "" if entry.floor_share is None or entry.id == FLOOR else f"{100 * entry.floor_share:.0f} %",
            "" if entry.gradient_error is None else f"{entry.gradient_error:.0e}",
            f"{time.n} x {time.calls}",
        ]
        if result.case.device == "cuda":
            wall = duration(entry.wall.median) if entry.wall else ""
            cells += [wall, _ratio(entry.wall_x_eager), _matrices(entry, result)]
        yield cells


def remarks(result: CaseResult) -> list[str]:
    """Why a contender, or the whole case, has no row or deserves no trust."""
    lines = [result.problem] if result.problem else []
    if result.others is not None and result.others > _QUIET:
        lines.append(
            f"other processes used {result.others:.1f} cores meanwhile: measure again on a machine that is idle"
        )
    return lines + [f"{entry.id}: {entry.status}: {entry.reason}" for entry in result.entries if entry.time is None]


def duration(seconds: float) -> str:
    """Three digits, in us, ms or s."""
    for unit, size in (("us", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * size:
            return f"{_three(seconds / size)} {unit}"
    return f"{_three(seconds)} s"


def _three(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else _three(value)


def _matrices(entry: Entry, result: CaseResult) -> str:
    return "" if entry.peak_bytes is None else f"{entry.peak_bytes / result.case.stream:.2f} NC"


def summary(report: Report) -> tuple[list[str], list[list[str]]]:
    """kdbench in every case, a row each: columns and rows; no rows where it was not measured."""
    body = []
    for result in report.cases:
        own = [result.entry(name) for name in _SUMMARY]
        cells = [f"{result.case.rows} x {result.case.classes}", result.case.dtype]
        for entry in own:
            timed = entry is not None and entry.time is not None
            cells += [duration(entry.time.median) if entry and entry.time else ""]
            cells += [_ratio(entry.x_eager), _ratio(entry.x_compile)] if entry and timed else ["", ""]
        share = own[0].floor_share if own[0] else None
        cells.append("" if share is None else f"{100 * share:.0f} %")
        if any(cells[2:]):
            body.append(cells)
    names = ["N x C", "dtype"]
    for name in _SUMMARY:
        names += [name, "x eager", "x compile"]
    return [*names, "kdbench of floor"], body


def show_header(console: Console, report: Report) -> None:
    """On the terminal, before the first table."""
    for line in header(report):
        console.print(line, style="dim", highlight=False, markup=False)


def show_case(console: Console, result: CaseResult) -> None:
    """One table, and what is not in it."""
    console.print()
    console.print(f"[bold]{title(result)}[/]", highlight=False)
    if any(entry.time for entry in result.entries):
        _show(console, columns(result), list(rows(result)))
    for line in remarks(result):
        console.print(line, highlight=False, markup=False)


def show_summary(console: Console, report: Report) -> None:
    """kdbench against the others in all cases."""
    names, body = summary(report)
    if len(body) > 1:
        console.print()
        console.print("[bold]kdbench in all cases[/]")
        _show(console, names, body)


def _show(console: Console, names: list[str], body: list[list[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    head, *lines = fitting([names, *body], console.width)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, name in enumerate(head):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for cells in lines:
        table.add_row(*map(escape, cells))
    console.print(table)


def fitting(lines: list[list[str]], width: int) -> list[list[str]]:
    """The lines of a table, the first of them its head, without the columns that a narrow terminal has no room for."""
    columns = list(zip(*lines, strict=True))
    for name in _EXPENDABLE:
        if sum(max(map(len, column)) + _GAP for column in columns) - _GAP <= width:
            break
        columns = [column for column in columns if column[0] != name]
    return [list(cells) for cells in zip(*columns, strict=True)]


def as_markdown(report: Report) -> str:
    """The whole report as a part of a page."""
    lines = [f"- {line}" for line in header(report)]
    names, body = summary(report)
    if len(body) > 1:
        lines += ["", *_markdown_table(names, body)]
    for result in report.cases:
        lines += ["", f"### {title(result)}", ""]
        if any(entry.time for entry in result.entries):
            lines += [*_markdown_table(columns(result), list(rows(result))), ""]
        lines += [f"- {line}" for line in remarks(result)]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_table(names: list[str], body: list[list[str]]) -> list[str]:
    rule = ["---", *(["---:"] * (len(names) - 1))]
    return ["| " + " | ".join(cells) + " |" for cells in (names, rule, *body)]

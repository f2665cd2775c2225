"""``kdbench bench kernels``"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdbench.cli.options import console, json_option, print_json
from kdbench.errors import KdbenchError, unknown

if TYPE_CHECKING:
    from kdbench.bench import Case, Contender
    from kdbench.bench.measure import Tell
    from kdbench.bench.outcome import Report

# Classification heads and language models' vocabularies; the last two and half precision are for GPUs.
SHAPES = "128x10,128x100,128x1000,1024x1000,2048x30522,4096x32000"
GPU_SHAPES = f"{SHAPES},8192x128256"
GPU_HALF_SHAPES = "4096x32000,8192x128256"


@click.group("bench")
def command() -> None:
    """Figures of this machine."""


@command.command()
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu or cuda.")
@click.option("--shapes", metavar="NxC,...", help=f"Rows x classes.  [default: {SHAPES}; on a GPU also 8192x128256]")
@click.option(
    "--dtypes",
    metavar="NAMES",
    help="float32, bfloat16, float16, float64.  [default: float32; on a GPU also bfloat16, for the two largest shapes]",
)
@click.option("--contenders", metavar="NAMES", help="Who takes part.  [default: all; plugins may bring their own]")
@click.option("--temperature", type=float, default=4.0, show_default=True, metavar="T", help="Of the loss.")
@click.option(
    "--alpha", type=float, default=0.9, show_default=True, metavar="A", help="Weight of the soft term; 1: KL alone."
)
@click.option("--threads", type=int, metavar="N", help="Torch's threads.  [default: torch's own choice]")
@click.option(
    "--seconds", type=float, default=5.0, show_default=True, metavar="S", help="Of timing a case; at least five rounds."
)
@click.option("--output", metavar="FILE", help="Also keep the JSON document there, case by case.")
@click.option("--from", "source", metavar="FILE", help="Show such a document; measure nothing.")
@click.option("--markdown", is_flag=True, help="Print Markdown instead of tables.")
@json_option
def kernels(*, source: str | None, output: str | None, markdown: bool, as_json: bool, **options: Any) -> None:
    """Time the distillation loss, forward and backward, against torch and others; docs/benchmarks says how.

    Contenders: eager and compiled torch in two forms, Liger-Kernel where it is installed, kdbench, and 'floor', the
    measured copy of as many bytes. Each is first checked against float64; one that is wrong is named and not timed.
    Exit status 1 if one was.
    """
    from kdbench.bench.tables import as_markdown

    if markdown and as_json:
        raise click.UsageError("--json and --markdown are two forms of one output; choose one")
    quiet = as_json or markdown
    report = _read(source) if source else _measure(output=output, quiet=quiet, **options)
    if as_json:
        print_json(report)
    elif markdown:
        click.echo(as_markdown(report), nl=False)
    elif source:
        _show(report)
    if any(entry.status == "wrong" for result in report.cases for entry in result.entries):
        raise click.exceptions.Exit(1)


def _show(report: Report) -> None:
    from kdbench.bench.tables import show_case, show_header, show_summary

    out = console()
    show_header(out, report)
    for result in report.cases:
        show_case(out, result)
    show_summary(out, report)


def _measure(
    *,
    device: str,
    shapes: str | None,
    dtypes: str | None,
    contenders: str | None,
    temperature: float,
    alpha: float,
    threads: int | None,
    seconds: float,
    output: str | None,
    quiet: bool,
) -> Report:
    """Measure case after case; tables appear as they are ready, and what is ready is kept."""
    from kdbench.bench.measure import check_device

    _check_numbers(temperature=temperature, alpha=alpha, threads=threads, seconds=seconds)
    chosen = _contenders(contenders)
    sizes = None if shapes is None else parse_shapes(shapes)
    types = None if dtypes is None else parse_dtypes(dtypes)
    where = check_device(device)
    cases = _cases(sizes, types, device=where, temperature=temperature, alpha=alpha)
    if output is not None:
        _check_writable(Path(output))
    return _run(cases, chosen, threads=threads, seconds=seconds, output=output, quiet=quiet)


def _run(
    cases: list[Case], chosen: list[Contender], *, threads: int | None, seconds: float, output: str | None, quiet: bool
) -> Report:
    from datetime import datetime, timezone

    import torch

    from kdbench.bench.clock import clock_of
    from kdbench.bench.machine import machine
    from kdbench.bench.measure import measure
    from kdbench.bench.outcome import Report
    from kdbench.bench.rounds import METHOD
    from kdbench.bench.tables import show_case, show_header, show_summary

    if threads is not None:
        torch.set_num_threads(threads)
    device = cases[0].device
    report = Report(
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        seconds_per_case=seconds,
        machine=machine(device),
        method=[METHOD, f"clock: {clock_of(device).method}"],
    )
    out = console()
    if not quiet:
        show_header(out, report)
    with _progress(len(cases)) as tell_case:
        for index, case in enumerate(cases):
            result = measure(case, chosen, seconds, tell_case(index, case.label))
            report.cases.append(result)
            report.finished = len(report.cases) == len(cases)
            if output is not None:
                _keep(Path(output), report)
            if not quiet:
                show_case(out, result)
    if not quiet:
        show_summary(out, report)
    return report


@contextmanager
def _progress(cases: int) -> Iterator[Callable[[int, str], Tell]]:
    """A line on the terminal's error stream: the case, what is done with it, and how far all cases are."""
    from rich.progress import BarColumn, Progress, TextColumn

    screen = console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        console=screen,
        transient=True,
        auto_refresh=False,  # a thread that draws would be timed together with the contenders
        disable=not screen.is_terminal,
    )
    drawn = 0.0

    def tell_case(index: int, label: str) -> Tell:
        def tell(doing: str, share: float) -> None:
            nonlocal drawn
            bar.update(task, description=f"{label}, {index + 1} of {cases}: {doing}", completed=index + share)
            if time.monotonic() - drawn > 0.2:
                bar.refresh()
                drawn = time.monotonic()

        return tell

    with bar:
        task = bar.add_task("", total=cases)
        yield tell_case


def parse_shapes(text: str) -> list[tuple[int, int]]:
    """``128x10,1024x1000`` as pairs of rows and classes.

    Raises
    ------
    KdbenchError : it is written otherwise, or a number is not positive.
    """
    found = []
    for part in text.split(","):
        rows, cross, classes = part.strip().lower().partition("x")
        if not (cross and rows.isdecimal() and classes.isdecimal() and int(rows) and int(classes)):
            raise KdbenchError(
                f"--shapes '{part.strip()}' cannot be read", cure="write rows x classes, as in 128x10,1024x1000"
            )
        found.append((int(rows), int(classes)))
    return found


def parse_dtypes(text: str) -> list[str]:
    """``float32,bfloat16`` as names.

    Raises
    ------
    KdbenchError : one of them is unknown.
    """
    from kdbench.bench.contender import DTYPES

    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in DTYPES:
            raise unknown("dtype", name, DTYPES)
    return names


def _cases(shapes: list[tuple[int, int]] | None, dtypes: list[str] | None, *, device: str, **loss: float) -> list[Case]:
    from kdbench.bench import Case

    usual = parse_shapes(SHAPES if device == "cpu" else GPU_SHAPES)
    pairs = [(shape, dtype) for dtype in dtypes or ["float32"] for shape in shapes or usual]
    if dtypes is None and device == "cuda":
        pairs += [(shape, "bfloat16") for shape in shapes or parse_shapes(GPU_HALF_SHAPES)]
    return [Case(rows=rows, classes=classes, dtype=dtype, device=device, **loss) for (rows, classes), dtype in pairs]


def _contenders(names: str | None) -> list[Contender]:
    from kdbench.bench import FLOOR
    from kdbench.plugins import registry

    known = registry()
    if names is None:
        return list(known.contenders.values())
    chosen = [name for name in dict.fromkeys(part.strip() for part in names.split(",")) if name != FLOOR]
    return [known.contender(name) for name in chosen]


def _check_numbers(*, temperature: float, alpha: float, threads: int | None, seconds: float) -> None:
    for good, what, cure in (
        (0 < temperature < float("inf"), f"--temperature is {temperature:g}", "it must be positive"),
        (0 <= alpha <= 1, f"--alpha is {alpha:g}", "it is the weight of the soft term and lies in [0, 1]"),
        (threads is None or threads > 0, f"--threads is {threads}", "it must be positive"),
        (0 < seconds < float("inf"), f"--seconds is {seconds:g}", "it must be positive"),
    ):
        if not good:
            raise KdbenchError(what, cure=cure)


def _check_writable(path: Path) -> None:
    """Say now, and not after an hour, that a file cannot be written."""
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else "lies in a folder that does not exist"
        raise KdbenchError(f"--output '{path}' {what}", cure="name a file in a folder that exists")


def _keep(path: Path, report: Report) -> None:
    import msgspec

    from kdbench.files import atomic_write, disk_errors

    with disk_errors(path, "name another file with --output"):
        atomic_write(path, msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")


def _read(source: str) -> Report:
    import msgspec

    from kdbench.bench.outcome import Report

    try:
        return msgspec.json.decode(Path(source).read_bytes(), type=Report)
    except OSError as error:
        raise KdbenchError(f"--from '{source}' cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise KdbenchError(
            f"--from '{source}' is no document of 'kdbench bench kernels': {error}", cure="write one with --output"
        ) from error

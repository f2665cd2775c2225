"""Options and outputs that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kdbench.errors import KdbenchError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from kdbench.store import Store

__all__ = ["axes", "console", "json_option", "open_store", "parse_seeds", "print_json", "say", "store_option"]

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
store_option = click.option(
    "--store",
    metavar="DIR",
    help="Folder of finished work.  [default: $KDBENCH_STORE or your data folder]",
)


def axes(function: F) -> F:
    """The options that say what is run: of ``reproduce`` and ``plan`` alike."""
    options = (
        click.argument("paper"),
        click.option("--tier", default="laptop", show_default=True, metavar="TIER", help="smoke, laptop or full."),
        click.option("--dataset", metavar="NAME", help="A data set of the paper.  [default: the tier's own]"),
        click.option("--data-dir", metavar="DIR", help="A local copy of the data: an archive or an unpacked folder."),
        click.option(
            "--protocol",
            metavar="NAME",
            help="written, released or clean.  [default: clean, or the first that the paper has]",
        ),
        click.option(
            "--seeds",
            metavar="N|A,B,...",
            help="How many seeds, or which.  [default: the paper's own]",
        ),
        click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu or cuda."),
        click.option("--workers", type=int, metavar="N", help="Stages at a time.  [default: one a core]"),
        click.option("--threads", type=int, default=1, show_default=True, metavar="N", help="Torch threads a worker."),
        click.option(
            "--claims", default="core", show_default=True, metavar="IDS", help="core, all, or ids such as H1,H3."
        ),
        click.option("--executor", default="local", show_default=True, metavar="NAME", help="What runs the stages."),
        store_option,
        json_option,
    )
    for option in reversed(options):
        function = option(function)
    return function


def parse_seeds(text: str | None) -> int | list[int] | None:
    """``5`` is a count; ``0,3,7`` are the seeds themselves.

    Raises
    ------
    KdbenchError : neither.
    """
    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise KdbenchError(f"--seeds '{text}' cannot be read", cure="use a count (5) or seeds (0,1,2)") from None
    return numbers if "," in text else numbers[0]


def open_store(path: str | None) -> Store:
    """The store of ``--store``, or the default one."""
    from pathlib import Path

    from kdbench.store import Store, default_store

    return Store(Path(path) if path else default_store())


def console(*, stderr: bool = False) -> Console:
    """A console; wide enough for tables where the output is not a terminal."""
    from rich.console import Console

    plain = Console(stderr=stderr)
    return plain if plain.is_terminal else Console(stderr=stderr, width=120)


def say(out: Console, *parts: str | tuple[str, str]) -> None:
    """Print parts, each plain or with a style; brackets in them are text, never markup."""
    from rich.text import Text

    out.print(Text.assemble(*parts), highlight=False)


def print_json(data: Any) -> None:
    """One JSON document on standard output."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(data, enc_hook=_plain), indent=2).decode())


def _plain(value: Path) -> str:
    return str(value)

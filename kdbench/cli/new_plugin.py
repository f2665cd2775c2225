"""``kdbench new-plugin NAME``"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdbench.cli.options import console, json_option, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from kdbench.scaffold import NewPlugin

# What each file is for, said beside it; in the order in which their author should look at them.
NOTES = {
    "src/{package}/facts/paper.toml": "1. citation, tables, claims with their margins",
    "src/{package}/facts/table1.csv": "2. the paper's numbers, blank as long as nobody read them",
    "src/{package}/study.py": "3. the method and its recipe",
    "tests/test_study.py": "4. what must be true of the study",
    "pyproject.toml": "5. authors, license, version",
    "src/{package}/__init__.py": "the hook by which kdbench finds the paper",
    "tests/test_conformance.py": "kdbench's own tests, in one line",
    ".github/workflows/tests.yml": "all of it on every push",
}


@click.command("new-plugin")
@click.argument("name")
@click.option("--directory", default=".", metavar="DIR", help="Where the folder kdbench-NAME is made.  [default: here]")
@click.option("--title", metavar="TEXT", help="The paper's title.")
@click.option("--authors", metavar="TEXT", help="Its authors.")
@click.option("--venue", metavar="TEXT", help="Where it was published.")
@click.option("--year", type=int, metavar="N", help="When it was published.")
@click.option("--url", metavar="URL", help="Its address.")
@json_option
def command(*, name: str, directory: str, as_json: bool, **citation: Any) -> None:
    """Write the first version of a plugin for the paper NAME.

    A complete distribution: it installs, passes its own tests and reproduces at tier smoke before you change it. Of
    the paper it holds what the options say and no number; placeholders say that they are some.
    """
    from kdbench.scaffold import describe, render, write

    plugin = describe(name, **citation)
    folder = write(plugin, Path(directory))
    files = list(render(plugin))
    commands = _commands(plugin, folder)
    if as_json:
        print_json(
            {
                "paper": plugin.paper,
                "distribution": plugin.distribution,
                "package": plugin.package,
                "directory": str(folder.absolute()),
                "files": files,
                "edit": [path.format(package=plugin.package) for path, note in NOTES.items() if note[0].isdigit()],
                "next": commands,
            }
        )
        return
    click.echo(f"The plugin of the paper '{plugin.paper}' is in {folder}")
    _show_files(console(), plugin, files)
    click.echo("\nNext:")
    for line in commands:
        click.echo(f"    {line}")
    click.echo("\nThen make it your paper's: edit the numbered files in that order, with pytest after each.")


def _commands(plugin: NewPlugin, folder: Path) -> list[str]:
    return [
        f"cd {shlex.quote(str(folder))}",
        'pip install -e ".[test]"',
        f"kdbench reproduce {plugin.paper} --tier smoke",
        "pytest",
    ]


def _show_files(out: Console, plugin: NewPlugin, files: list[str]) -> None:
    """The files as a tree, each with what it is for."""
    from rich.text import Text
    from rich.tree import Tree

    notes = {path.format(package=plugin.package): note for path, note in NOTES.items()}
    root = Tree(Text(f"{plugin.distribution}/", "bold"), guide_style="dim")
    branches: dict[tuple[str, ...], Tree] = {(): root}
    for path in sorted(files):
        *parts, last = path.split("/")
        for depth in range(1, len(parts) + 1):
            place = tuple(parts[:depth])
            if place not in branches:
                branches[place] = branches[place[:-1]].add(Text(f"{place[-1]}/"))
        label = Text(last)
        if path in notes:
            label.append(" " * max(30 - 4 * len(parts) - len(last), 2))
            label.append(notes[path], "dim")
        branches[tuple(parts)].add(label)
    out.print(root)

"""``kdbench data``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdbench.cli.options import console, json_option, print_json

if TYPE_CHECKING:
    from kdbench.data import DataRef, Dataset

data_dir_option = click.option("--data-dir", metavar="DIR", help="A local copy: an archive or an unpacked folder.")


@click.group("data")
def command() -> None:
    """Data sets: list, fetch, verify, and where they are."""


@command.command("list")
@json_option
def list_(*, as_json: bool) -> None:
    """Known data sets, and whether they are here."""
    from kdbench.data import default_cache
    from kdbench.plugins import registry

    cache = default_cache()
    rows: list[dict[str, Any]] = [
        {
            "id": dataset.id,
            "title": dataset.title,
            "sizes": dataset.sizes,
            "classes": dataset.num_classes,
            "input_shape": dataset.input_shape,
            "state": _state(dataset, cache),
            "citation": dataset.citation,
        }
        for dataset in registry().datasets.values()
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        sizes = ", ".join(f"{count:,} {split}" for split, count in row["sizes"].items())
        click.echo(f"{row['id']}  {row['title']}: {row['classes']} classes, {sizes}; {row['state']}")


@command.command()
@click.argument("name")
@data_dir_option
@json_option
def fetch(*, name: str, data_dir: str | None, as_json: bool) -> None:
    """Make NAME ready and check it: download it, generate it, or read a local copy."""
    _tell(_locate(name, data_dir), as_json)


@command.command()
@click.argument("name")
@data_dir_option
@json_option
def verify(*, name: str, data_dir: str | None, as_json: bool) -> None:
    """Check NAME: read every record and compare checksums. Exit status 1 where it is not the official data."""
    from kdbench.data import load

    ref = _locate(name, data_dir)
    load(ref)
    _tell(ref, as_json)
    if not ref.official:
        raise click.exceptions.Exit(1)


@command.command()
@click.argument("name", required=False)
def where(*, name: str | None) -> None:
    """The folder of data, or where NAME lies in it."""
    from kdbench.data import default_cache
    from kdbench.plugins import registry

    cache = default_cache()
    click.echo(str(cache / registry().dataset(name).id if name else cache))


def _state(dataset: Dataset, cache: Path) -> str:
    if dataset.supplied:
        return "never downloaded: --data-dir names its folder"
    if dataset.embedded:
        return "generated"
    return "here" if dataset.at_hand(cache) else "not fetched"


def _locate(name: str, data_dir: str | None) -> DataRef:
    from kdbench.component import load_object
    from kdbench.data import default_cache
    from kdbench.plugins import registry
    from kdbench.report.progress import Downloads

    dataset = registry().dataset(name)
    with Downloads(console(stderr=True)) as progress:
        ref: DataRef = load_object(dataset.locate)(Path(data_dir) if data_dir else None, default_cache(), progress)
    return ref


def _tell(ref: DataRef, as_json: bool) -> None:
    if as_json:
        print_json(ref)
        return
    sizes = ", ".join(f"{count:,} {split}" for split, count in ref.sizes.items())
    click.echo(f"{ref.title}: {sizes}; {ref.note or 'official'}")
    click.echo(f"fingerprint {ref.fingerprint}")
    click.echo(ref.path)

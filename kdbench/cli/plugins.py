"""``kdbench plugins``"""

from __future__ import annotations

import click

from kdbench.cli.options import json_option, print_json


@click.command("plugins")
@json_option
@click.option("--check", is_flag=True, help="Exit with status 1 if a plugin has a problem.")
@click.pass_context
def command(ctx: click.Context, /, *, as_json: bool, check: bool) -> None:
    """Installed plugins: what each provides, and what is wrong with it."""
    import msgspec

    from kdbench.plugins import registry

    found = registry()
    root = ctx.find_root()
    if isinstance(root.command, click.Group):
        root.command.list_commands(root)  # the last hook is called only now, and may have a problem too
    if as_json:
        print_json(msgspec.to_builtins(found.plugins))
    else:
        for info in found.plugins:
            origin = f"{info.distribution} {info.version}".strip()
            click.echo(f"{click.style(info.name, bold=True)}  {origin} ({info.module})")
            for noun, names in info.provides.items():
                click.echo(f"    {noun}: {', '.join(names)}")
            if info.problem:
                click.echo(f"    problem: {info.problem}")
    if check and found.problems():
        raise click.exceptions.Exit(1)

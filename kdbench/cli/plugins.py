"""``kdbench plugins``"""

from __future__ import annotations

import click

from kdbench.cli.options import json_option, open_store, print_json, store_option


@click.command("plugins")
@store_option
@json_option
@click.option("--check", is_flag=True, help="Also plan every paper's study; exit status 1 if a plugin has a problem.")
@click.pass_context
def command(ctx: click.Context, /, *, store: str | None, as_json: bool, check: bool) -> None:
    """Installed plugins: what each provides, and what is wrong with it.

    A problem is a fault at import or in a hook, a requirement that is not installed, or a stage that failed in the
    last run of a paper. KDBENCH_PLUGINS_ALLOW and KDBENCH_PLUGINS_BLOCK (names with commas between them) choose which
    plugins are loaded.
    """
    import msgspec

    from kdbench.health import examine
    from kdbench.plugins import registry

    root = ctx.find_root()
    if isinstance(root.command, click.Group):
        root.command.list_commands(root)  # the last hook is called only now, and may have a problem too
    found = examine(registry(), open_store(store), studies=check)
    if as_json:
        print_json(msgspec.to_builtins(found))
    else:
        for info in found:
            state = "" if info.state == "loaded" else f"  [{info.state}]"
            origin = f"{info.distribution} {info.version}".strip()
            click.echo(f"{click.style(info.name, bold=True)}  {origin} ({info.module}){state}")
            for noun, names in info.provides.items():
                click.echo(f"    {noun.replace('_', ' ')}: {', '.join(names)}")
            if info.problem:
                click.echo(f"    {click.style('problem', fg='red')}: {info.problem}")
    for note in registry().notes:
        click.echo(f"note: {note}", err=True)
    if check and (any(info.problem for info in found) or registry().notes):
        raise click.exceptions.Exit(1)

"""The command line, one file a command. A command is imported when it is called or listed, torch by none of them."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from typing import Any

import click

from kdbench.errors import KdbenchError, unknown

__all__ = ["cli", "main"]

COMMANDS = (
    "reproduce",
    "plan",
    "list",
    "show",
    "runs",
    "report",
    "compare",
    "dossier",
    "data",
    "plugins",
    "new-plugin",
    "bench",
    "doctor",
)


class _Commands(click.Group):
    """Commands in the order a newcomer meets them, loaded by name, with plugins' own after them."""

    builtin = COMMANDS

    def list_commands(self, ctx: click.Context) -> list[str]:
        self._plugins()
        return [*COMMANDS, *sorted(self.commands)]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in COMMANDS:
            command: click.Command = import_module(f"kdbench.cli.{name.replace('-', '_')}").command
            return command
        self._plugins()
        return self.commands.get(name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None:
            error = unknown("command", args[0], self.list_commands(ctx))
            raise click.UsageError(str(error), ctx)
        return super().resolve_command(ctx, args)

    def _plugins(self) -> None:
        from kdbench.plugins import registry

        if not getattr(self, "asked", False):
            self.asked = True
            registry().register_commands(self)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="kdbench", prog_name="kdbench")
@click.option("--debug", is_flag=True, help="Show tracebacks (may stand anywhere on the line).")
def cli(debug: bool) -> None:
    """Does a knowledge-distillation paper's claim hold when someone else runs it?

    kdbench trains what a paper trains, puts the numbers beside the paper's own table, and gives every claim a verdict
    with its evidence. Begin with: kdbench reproduce takd
    """


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 an error, 2 wrong usage, 3 a run with failed stages, 130 interrupted."""
    # Not list(): once the command of that name is imported, 'list' is its module in this package.
    arguments = [*(sys.argv[1:] if argv is None else argv)]
    debug = "--debug" in arguments
    arguments = [*(["--debug"] if debug else []), *(argument for argument in arguments if argument != "--debug")]
    try:
        status = cli.main(args=arguments, prog_name="kdbench", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _misused(error, debug, "--json" in arguments)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("kdbench: interrupted; finished stages are kept, and the same command goes on from there", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone; nothing more can be said
        sys.exit(1)
    except Exception as error:
        _complain(error, debug, "--json" in arguments)
        sys.exit(1)


def _misused(error: click.ClickException, debug: bool, as_json: bool) -> None:
    message = error.format_message()
    if not isinstance(error, click.UsageError) or "\n" in message:  # without arguments the message is the help
        error.show()
        return
    path = error.ctx.command_path if error.ctx else "kdbench"
    what, _, cure = message.rstrip(".").partition("; ")
    _complain(
        KdbenchError(what, cure=f"{cure}; see '{path} --help'" if cure else f"see '{path} --help'"), debug, as_json
    )


def _complain(error: Exception, debug: bool, as_json: bool) -> None:
    if isinstance(error, KdbenchError):
        text = str(error)
    else:
        text = f"internal error: {type(error).__name__}: {error}; --debug shows where, and it is worth an issue"
    if debug:
        traceback.print_exception(error)
    if as_json:
        import msgspec

        fields = {name: getattr(error, name, None) for name in ("what", "where", "cure")}
        fields["what"] = fields["what"] or text
        click.echo(msgspec.json.encode({"error": fields}).decode())
    click.echo(f"kdbench: error: {text}", err=True)

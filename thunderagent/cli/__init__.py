"""The command line: one group, one file per command, each imported when it is called."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import IO, Any

import click
from attrs import frozen

from thunderagent import __version__

__all__ = ["main"]


@frozen
class _Command:
    """Where a command is, and its line in the list of commands, so that the list needs no import."""

    where: str
    summary: str


_COMMANDS = {
    "serve": _Command("thunderagent.cli.serve:serve", "Run the router in front of vLLM servers."),
    "engine": _Command("thunderagent.cli.engine:engine", "Run an emulated vLLM engine."),
    "simulate": _Command(
        "thunderagent.cli.simulate:simulate", "Simulate policies on agents and engines, without a GPU."
    ),
    "calibrate": _Command("thunderagent.cli.calibrate:calibrate", "Measure a vLLM server for the simulator."),
    "policies": _Command("thunderagent.cli.policies:policies", "List the installed scheduling policies."),
    "programs": _Command("thunderagent.cli.programs:programs", "List or release programs of a running router."),
}


_INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 and the number of SIGINT."""


class _OneLineUsageError(click.UsageError):
    """A usage error told in one line: which command, what was wrong, and where to look."""

    def __init__(self, where: str, error: click.UsageError) -> None:
        super().__init__(" ".join(error.format_message().split()).rstrip("."), error.ctx)
        self.where = where

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line."""
        click.echo(f"{self.where}: {self.message}; see `{self.where} --help`", err=True)


class _LazyGroup(click.Group):
    """Imports a command's module only when it is called: ``--help`` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        known = _COMMANDS.get(cmd_name)
        if known is None:
            return None
        module, _, name = known.where.partition(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.summary) for name, command in _COMMANDS.items()])

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            if type(error).__name__ == "NoArgsIsHelpError":  # the help itself, from click 8.2 on
                raise
            raise _OneLineUsageError("thunderagent", error) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            command = ctx.invoked_subcommand
            known = command in _COMMANDS
            raise _OneLineUsageError(f"thunderagent {command}" if known else "thunderagent", error) from None
        except KeyboardInterrupt:
            line_end = "\n" if sys.stderr.isatty() else ""  # of the line with the terminal's ^C
            click.echo(f"{line_end}{_called(ctx)}: interrupted", err=True)
            raise SystemExit(_INTERRUPTED) from None
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            click.echo(f"{_called(ctx)}: {error.filename or 'output'}: no space left on the device", err=True)
            raise SystemExit(1) from None


def _called(ctx: click.Context) -> str:
    """The command's name; the group's, until the command is known."""
    return " ".join(filter(None, ("thunderagent", ctx.invoked_subcommand)))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="thunderagent")
def _group() -> None:
    """A router between LLM agents and vLLM servers that schedules whole agent runs."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script; ``arguments`` None: those of the process."""
    _group(args=None if arguments is None else list(arguments), prog_name="thunderagent")

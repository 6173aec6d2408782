"""The command line: one group, one file per command, each imported when it is called."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import click

from thunderagent import __version__

__all__ = ["main"]

_COMMANDS = {
    "serve": "thunderagent.cli.serve:serve",
    "engine": "thunderagent.cli.engine:engine",
    "policies": "thunderagent.cli.policies:policies",
    "programs": "thunderagent.cli.programs:programs",
}


class _LazyGroup(click.Group):
    """Imports a command's module only when it is needed: ``--help`` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        where = _COMMANDS.get(cmd_name)
        if where is None:
            return None
        module, _, name = where.partition(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="thunderagent")
def _group() -> None:
    """A router between LLM agents and vLLM servers that schedules whole agent runs."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script; ``arguments`` None: those of the process."""
    _group(args=None if arguments is None else list(arguments), prog_name="thunderagent")

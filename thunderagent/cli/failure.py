"""How a command that cannot do its work ends."""

from __future__ import annotations

from typing import IO, Any

import click

__all__ = ["CommandBroken", "CommandError"]


class CommandError(click.ClickException):
    """What keeps a command from its work: one line on stderr with the command's name, exit status 2."""

    exit_code = 2

    def __init__(self, command: str, message: str) -> None:
        super().__init__(message)
        self.command = command

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the one line."""
        click.echo(f"thunderagent {self.command}: {self.format_message()}", err=True)


class CommandBroken(CommandError):
    """The same where nothing that was given is wrong: exit status 1."""

    exit_code = 1

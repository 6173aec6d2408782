"""``thunderagent policies``: what is installed."""

from __future__ import annotations

import inspect

import click

from thunderagent.errors import ConfigError
from thunderagent.registry import load_policy, policy_entry_points, source_of

__all__ = ["policies"]


@click.command()
def policies() -> None:
    """List the installed scheduling policies."""
    failed = False
    try:
        installed = policy_entry_points()
    except ConfigError as error:
        click.echo(f"thunderagent policies: {error}", err=True)
        raise SystemExit(2) from None
    for name, entry in installed.items():
        try:
            summary = (inspect.getdoc(load_policy(name)) or "").partition("\n")[0]
        except ConfigError as error:
            summary, failed = f"broken: {error}", True
        click.echo(f"{name:<16} {source_of(entry):<16} {summary}")
    raise SystemExit(1 if failed else 0)

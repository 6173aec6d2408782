"""``thunderagent policies``: what is installed."""

from __future__ import annotations

import inspect

import attrs
import click

from thunderagent.config import Settings
from thunderagent.errors import ConfigError
from thunderagent.registry import load_policy, policy_entry_points, source_of

__all__ = ["policies"]

_DEFAULT = attrs.fields(Settings).policy.default


@click.command()
def policies() -> None:
    """List the installed scheduling policies, and which is the default."""
    failed = False
    try:
        installed = policy_entry_points()
    except ConfigError as error:
        click.echo(f"thunderagent policies: {error}", err=True)
        raise SystemExit(2) from None
    for name, entry in installed.items():
        try:
            summary = (inspect.getdoc(load_policy(name)) or "").partition("\n")[0].replace("``", "")
        except ConfigError as error:
            summary, failed = f"broken: {error}", True
        default = " (default)" if name == _DEFAULT else ""
        click.echo(f"{name:<16} {source_of(entry):<16} {summary}{default}")
    raise SystemExit(1 if failed else 0)

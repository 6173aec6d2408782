"""``thunderagent serve``: run the router."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from thunderagent.config import OPTIONS, Option, read_settings
from thunderagent.daemon import run
from thunderagent.errors import ConfigError
from thunderagent.telemetry.logging import configure_logging

__all__ = ["serve"]


def _with_options(command: Any) -> Any:
    """One click option per entry of ``OPTIONS``; values stay text, ``read_settings`` reads them."""
    for option in reversed(OPTIONS):
        command = _click_option(option)(command)
    return command


def _click_option(option: Option) -> Any:
    if option.is_flag:
        both = f"{option.flag}/--no-{option.flag.removeprefix('--')}"
        return click.option(both, option.name, default=None, help=option.help)
    plural = [f"{option.flag}s"] if option.is_repeatable else []
    return click.option(
        option.flag,
        *plural,
        option.name,
        default=None,
        metavar=option.metavar or "VALUE",
        help=option.help,
        multiple=option.is_repeatable,
    )


@click.command(
    epilog="Every option can come from the environment: --max-hold-seconds is THUNDERAGENT_MAX_HOLD_SECONDS."
)
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file with the same settings.")
@_with_options
def serve(config_file: Path | None, **flags: Any) -> None:
    """Run the router in front of vLLM servers, or others that speak the OpenAI API.

    Ctrl-C or SIGTERM lets the running turns finish first; a second one cuts them at once.
    """
    try:
        settings = read_settings(flags, os.environ, config_file)
        configure_logging(settings.log_level, settings.log_format)
        status = run(settings)
    except ConfigError as error:
        click.echo(f"thunderagent serve: {error}", err=True)
        raise SystemExit(2) from None
    raise SystemExit(status)

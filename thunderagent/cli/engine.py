"""``thunderagent engine``: run an emulated vLLM engine."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import click
from aiohttp import web

from thunderagent.cli.failure import CommandError
from thunderagent.emulator.engine import SchedulingPolicy
from thunderagent.emulator.faults import FaultError, parse_fault
from thunderagent.emulator.script import Script, ScriptError, load_script
from thunderagent.emulator.server import RUNNER_OPTIONS, EmulatorConfig, EmulatorConfigError, create_app
from thunderagent.emulator.timing import DEFAULT_PRESET, PRESETS
from thunderagent.errors import listening_failure

__all__ = ["engine"]

BACKLOG = 1024
"""Connections that may wait to be accepted: a burst of programs starts at once."""


class _WholeNumber(click.IntRange):
    """An integer within limits, with one plain sentence for whatever is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        limits = f"of at least {self.min}" if self.max is None else f"from {self.min} to {self.max}"
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"must be a whole number {limits}, got {str(value)!r}", param, ctx)


@click.command("engine")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=_WholeNumber(0, 65535), default=8000, show_default=True, help="Port; 0 takes a free one."
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default=DEFAULT_PRESET.name,
    show_default=True,
    help="Machine and model whose timings are simulated.",
)
@click.option("--speed", type=float, default=1.0, show_default=True, help="Simulated seconds per second.")
@click.option("--kv-tokens", type=_WholeNumber(1), help="Tokens in the KV cache.  [default: the preset's]")
@click.option(
    "--model",
    "models",
    multiple=True,
    default=("emulated",),
    show_default=True,
    help="Served model name; repeatable.",
)
@click.option("--script", "script_path", type=click.Path(), help="JSON file with the answers to conversations.")
@click.option("--max-model-len", type=_WholeNumber(1), help="Most tokens of a prompt and its reply.")
@click.option("--max-num-seqs", type=_WholeNumber(1), help="Most requests in a batch.")
@click.option("--max-num-batched-tokens", type=_WholeNumber(1), help="Most tokens in a batch.")
@click.option("--block-size", type=_WholeNumber(1), default=16, show_default=True, help="Tokens in a KV block.")
@click.option(
    "--scheduling-policy",
    type=click.Choice([policy.value for policy in SchedulingPolicy]),
    default=SchedulingPolicy.FCFS.value,
    show_default=True,
    help="Order of waiting requests.",
)
@click.option("--disable-prefix-caching", is_flag=True, help="Compute every prompt in full.")
@click.option("--no-prompt-tokens-details", is_flag=True, help="Leave cached tokens out of usage.")
@click.option("--fault", "faults", multiple=True, help="KIND[:FIELD=VALUE,...], e.g. status:status=503,requests=2.")
def engine(script_path: str | None, models: tuple[str, ...], faults: tuple[str, ...], **options: Any) -> None:
    """Run an emulated vLLM engine: real batching and prefix caching, simulated timings, no model."""
    try:
        config = EmulatorConfig(
            models=models,
            preset=PRESETS[options["preset"]],
            speed=_speed(options["speed"]),
            kv_tokens=options["kv_tokens"],
            block_size=options["block_size"],
            max_model_len=options["max_model_len"],
            max_num_seqs=options["max_num_seqs"],
            max_num_batched_tokens=options["max_num_batched_tokens"],
            scheduling_policy=SchedulingPolicy(options["scheduling_policy"]),
            prefix_caching=not options["disable_prefix_caching"],
            prompt_tokens_details=not options["no_prompt_tokens_details"],
            script=load_script(script_path) if script_path else Script(),
            faults=tuple(parse_fault(fault) for fault in faults),
        )
        app = create_app(config)
    except (ScriptError, FaultError, EmulatorConfigError) as error:
        raise CommandError("engine", str(error)) from error
    click.echo(_banner(config))
    asyncio.run(_serve(app, options["host"], options["port"]))


def _speed(speed: float) -> float:
    if not 0 < speed < float("inf"):
        raise EmulatorConfigError(f"--speed must be a positive number, got {speed}")
    return speed


def _banner(config: EmulatorConfig) -> str:
    usable = (config.num_gpu_blocks - 1) * config.block_size
    return (
        f"emulated engine: timings are simulated, no model runs. "
        f"preset {config.preset.name}: {config.preset.title}; "
        f"speed {config.speed:g}; KV cache {usable} tokens; max model length {config.model_len}; "
        f"models {', '.join(config.models)}"
    )


async def _serve(app: web.Application, host: str, port: int) -> None:
    """Listen until SIGTERM or SIGINT. Raises CommandError where the address can't be had."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(app, handler_cancellation=True, **RUNNER_OPTIONS)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
        bound = runner.addresses[0][1]
        shown = f"[{host}]" if ":" in host else host
        click.echo(f"emulated engine ready on http://{shown}:{bound} (pid {os.getpid()})")
        await stop.wait()
    except OSError as error:
        raise CommandError("engine", listening_failure(host, port, error)) from error
    finally:
        await runner.cleanup()

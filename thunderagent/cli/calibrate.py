"""``thunderagent calibrate``: measure a live vLLM server, and write what the simulator needs to be like it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import click

from thunderagent.calibration import CalibrationError, Sample, Sizes, fit, measure, predicted_seconds
from thunderagent.cli.failure import CommandError
from thunderagent.cli.outputs import check_output
from thunderagent.emulator.preset_file import PresetError, write_preset
from thunderagent.emulator.timing import Preset, TimingModel
from thunderagent.errors import ConfigError
from thunderagent.upstream.client import normalise_base_url
from thunderagent.upstream.connection import broken_by, system_reason
from thunderagent.upstream.vllm import read_metrics

__all__ = ["calibrate"]


@click.command("calibrate")
@click.option("--backend", required=True, metavar="URL", help="A vLLM server that nobody else uses meanwhile.")
@click.option("--model", help="Its model.  [default: the only one it serves]")
@click.option("--api-key", help="The server's key.")
@click.option(
    "--max-num-batched-tokens",
    "chunk_tokens",
    type=click.IntRange(1),
    default=2048,
    show_default=True,
    help="As the server has it: it does not tell.",
)
@click.option("--max-num-seqs", type=click.IntRange(1), default=256, show_default=True, help="As the server has it.")
@click.option("--name", help="Of the preset.  [default: the model's]")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The preset's file, PATH.json.")
def calibrate(
    backend: str,
    model: str | None,
    api_key: str | None,
    chunk_tokens: int,
    max_num_seqs: int,
    name: str | None,
    output: Path,
) -> None:
    """Measure prompts and answers on a server, and fit the simulator's step times to them.

    Takes a minute or two. The file goes to `thunderagent simulate --preset`.
    """
    try:
        check_output("--output", output, (".json",))
        url = normalise_base_url(backend)
    except (ConfigError, ValueError) as error:
        raise CommandError("calibrate", str(error)) from None
    try:
        model, max_model_len, kv_tokens = asyncio.run(_look(url, model, api_key))
        sizes = Sizes.of(max_model_len, kv_tokens, chunk_tokens)
        samples = asyncio.run(_measure(url, model, sizes, api_key))
        timing = fit(samples)
    except CalibrationError as error:
        raise CommandError("calibrate", str(error)) from None
    except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
        is_told = isinstance(error, aiohttp.ClientConnectorError)  # whose own text has words of ssl for http
        reason = system_reason(error) if is_told else f"{type(error).__name__}: {error}"
        raise CommandError("calibrate", f"{url} could not be asked: {reason}") from None
    for sample in samples:
        click.echo(_line(sample, timing))
    preset = Preset(
        name=name or model.rsplit("/", 1)[-1],
        title=f"simulated, calibrated to a server of {model}",
        timing=timing,
        kv_tokens=kv_tokens,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=chunk_tokens,
    )
    try:
        write_preset(output, preset)
    except PresetError as error:
        raise CommandError("calibrate", f"--output {error}") from None
    click.echo(f"{kv_tokens:,} KV tokens; written to {output}")


def _line(sample: Sample, timing: TimingModel) -> str:
    """What was measured, and what the fit says of it."""
    told = predicted_seconds(timing, sample)
    if sample.decode_sequences:
        context = sample.kv_tokens // sample.decode_sequences
        what = f"{sample.decode_sequences:>3} answers at {context:>6,} tokens, per token"
    else:
        what = f"prompt of {sample.prefill_tokens:>6,} tokens"
    off = 100 * (told / sample.seconds - 1)
    return f"{what:<42} {1000 * sample.seconds:>10.2f} ms, fitted {1000 * told:>10.2f} ms ({off:+.0f} %)"


async def _measure(url: str, model: str, sizes: Sizes, api_key: str | None) -> list[Sample]:
    """As ``measure``, but a server that went away meanwhile raises CalibrationError too."""
    try:
        return await measure(url, model, sizes, api_key)
    except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
        is_refused = isinstance(error, aiohttp.ClientConnectorError)
        reason = system_reason(error) if is_refused else broken_by(error) or "it closed the connection"
        again = "start it and calibrate again"
        raise CalibrationError(f"{url} went away during the measurement ({reason}): {again}") from None


async def _look(url: str, model: str | None, api_key: str | None) -> tuple[str, int, int]:
    """The model's name, its longest context, and the KV cache's size in tokens. Raises CalibrationError."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        async with session.get(f"{url}/v1/models") as answer:
            if answer.status != 200:
                raise CalibrationError(f"{url}/v1/models: status {answer.status}")
            served = {entry["id"]: entry for entry in (await answer.json())["data"]}
        async with session.get(f"{url}/metrics") as answer:
            capacity = read_metrics(await answer.read()).capacity_tokens if answer.status == 200 else None
    if model is None and len(served) == 1:
        model = next(iter(served))
    if model is None or model not in served:
        raise CalibrationError(f"{url} serves {', '.join(served) or 'nothing'}: name one with --model")
    if capacity is None:
        raise CalibrationError(f"{url}/metrics does not tell the size of the KV cache (vllm:cache_config_info)")
    longest = served[model].get("max_model_len") or capacity
    return model, int(longest), capacity

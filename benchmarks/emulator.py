"""How many concurrent streams, and how many chunks per second, can one emulated engine process carry?

Command: ``python benchmarks/emulator.py [--seconds 4] [--streams 50,100,200,400,800] [--prompt-bytes 8000]``

The engine runs in a second process with a fixed step of 20 ms, so that each stream gets 50 chunks per second and
``streams x 50`` is what an ideal engine would send, one write per chunk. The client counts the chunks it receives on
raw sockets, in its own process. ``of ideal`` below 1 means that a process is too slow; connecting counts, so that
long prompts lower it. ``late`` is the time that the engine gave up because it fell behind its schedule; ``engine``
and ``client`` are shares of one core. ``us/chunk`` is the engine's CPU time per chunk: the figure to compare where
other work shares the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import resource
import time
from functools import partial
from multiprocessing.connection import Connection

from aiohttp import web

from thunderagent.emulator.server import RUNNER_OPTIONS, EmulatorConfig, create_app, driver_key
from thunderagent.emulator.timing import Preset, TimingModel

STEP_SECONDS = 0.02


def cpu_seconds() -> float:
    """CPU time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def serve(control: Connection) -> None:
    """Run an engine; answer each message of the parent with CPU and late seconds, end at None."""
    preset = Preset(
        "fixed-step",
        "simulated, 20 ms per step",
        TimingModel(STEP_SECONDS, 0, 0, 0, 0),
        10_000_000,
        100_000,
        4096,
        10**7,
    )
    app = create_app(EmulatorConfig(preset=preset))
    runner = web.AppRunner(app, **RUNNER_OPTIONS)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    control.send(runner.addresses[0][1])
    while await asyncio.to_thread(control.recv) is not None:
        control.send((cpu_seconds(), app[driver_key].late_seconds))
    await runner.cleanup()


def engine_process(control: Connection) -> None:
    """Entry point of the engine's process."""
    asyncio.run(serve(control))


class StreamCounter(asyncio.Protocol):
    """Sends one streamed request and counts its chunks."""

    def __init__(self, request: bytes, counts: list[int], ended: asyncio.Future[None]) -> None:
        self._request = request
        self._counts = counts
        self._ended = ended
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Count events, a piece that was split over two reads only once."""
        self._counts[0] += data.count(b"data: {")
        if b"[DONE]" in data and self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The stream ended."""
        if not self._ended.done():
            self._ended.set_result(None)


def request_bytes(number: int, tokens: int, prompt_bytes: int) -> bytes:
    """A streamed chat request of its own program."""
    content = f"{number} " + "words of a program " * (prompt_bytes // 19)
    body = {
        "model": "emulated",
        "stream": True,
        "max_tokens": tokens,
        "messages": [{"role": "user", "content": content}],
    }
    raw = json.dumps(body).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(raw), raw)


async def load(port: int, streams: int, seconds: float, prompt_bytes: int) -> tuple[float, int]:
    """Run ``streams`` streams at once; wall seconds from the first to the last, chunks."""
    loop = asyncio.get_running_loop()
    counts, tokens = [0], int(seconds / STEP_SECONDS)
    ends: list[asyncio.Future[None]] = [loop.create_future() for _ in range(streams)]
    started = time.perf_counter()
    for number, end in enumerate(ends):
        request = request_bytes(number, tokens, prompt_bytes)
        await loop.create_connection(partial(StreamCounter, request, counts, end), "127.0.0.1", port)
    await asyncio.gather(*ends)
    return time.perf_counter() - started, counts[0]


def measure(streams: int, seconds: float, prompt_bytes: int) -> str:
    """One row of the table."""
    parent, child = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=engine_process, args=(child,))
    process.start()
    port = parent.recv()
    parent.send("cpu")
    engine_before, _ = parent.recv()
    client_before = cpu_seconds()
    elapsed, chunks = asyncio.run(load(port, streams, seconds, prompt_bytes))
    client = cpu_seconds() - client_before
    parent.send("cpu")
    engine_after, late = parent.recv()
    parent.send(None)
    process.join()
    ideal = streams / STEP_SECONDS
    engine = (engine_after - engine_before) / elapsed
    return (
        f"{streams:7} {ideal:10.0f} {chunks / elapsed:10.0f} {chunks / elapsed / ideal:9.2f} "
        f"{engine * elapsed / chunks * 1e6:8.1f} {engine:7.0%} {client / elapsed:7.0%} {late:6.2f}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each stream")
    parser.add_argument("--streams", default="50,100,200,400,800", help="concurrent streams to try")
    parser.add_argument("--prompt-bytes", type=int, default=8000, help="length of each prompt, 4 bytes a token")
    options = parser.parse_args()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit[1], limit[1]))
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(
        f"streams of {options.seconds:g} s at {1 / STEP_SECONDS:g} chunks/s, prompts of {options.prompt_bytes} bytes"
    )
    print("streams  asked ch/s   got ch/s  of ideal us/chunk  engine  client   late")
    for streams in map(int, options.streams.split(",")):
        print(measure(streams, options.seconds, options.prompt_bytes), flush=True)


if __name__ == "__main__":
    main()

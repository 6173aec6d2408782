"""The daemon as a process: it starts, drains on the first signal and cuts what still runs on the second."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import structlog.testing
from router_harness import CHAT, Engine, Stack, chat, until, words

from thunderagent import daemon as daemon_module
from thunderagent.backends import BackendConfig
from thunderagent.config import Settings
from thunderagent.server.state import State
from thunderagent.testing.fake_backend import CHAT_ANSWER, Exchange, FakeBackend

SHUTTING_DOWN = {
    "message": "The router is shutting down; the turn was cut before its end.",
    "type": "ServiceUnavailableError",
    "param": None,
    "code": "shutting_down",
}


class Daemon:
    """``python -m thunderagent serve`` on a free port; its log lines as they come."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self.other: list[str] = []
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.other.append(line.decode())

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Its log lines of an event."""
        return [line for line in self.lines if line["event"] == event]

    async def url(self) -> str:
        """Where it listens, once it does."""
        await until(lambda: self.logged("daemon.started") or self.process.returncode is not None, 15)
        assert self.process.returncode is None, self.other
        return str(self.logged("daemon.started")[0]["url"])

    async def ended(self) -> int:
        """Its exit status."""
        code = await asyncio.wait_for(self.process.wait(), 10)
        await self.reading
        return code


@pytest.fixture
async def serve() -> AsyncIterator[Any]:
    """Starts daemons, and kills what is left of them."""
    daemons: list[Daemon] = []

    async def start(*arguments: str) -> Daemon:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("THUNDERAGENT_")}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "thunderagent", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
        daemons.append(Daemon(process))
        return daemons[-1]

    yield start
    for daemon in daemons:
        if daemon.process.returncode is None:
            daemon.process.kill()
        await daemon.process.wait()
        await daemon.reading


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A client."""
    async with aiohttp.ClientSession() as session:
        yield session


def options(engine: Engine | FakeBackend, *more: str) -> list[str]:
    """Flags of a daemon before the engine."""
    return ["--backends", engine.url, "--host", "127.0.0.1", "--port", "0", "--log-format", "json", *more]


async def test_first_signal_drains(stack: Stack, serve: Any, session: aiohttp.ClientSession) -> None:
    """SIGTERM: the running stream ends whole, the held turn and new ones get a 503, then exit 0."""
    engine = await stack.engine(speed=1.0, kv_tokens=2048)
    daemon = await serve("serve", *options(engine, "--capacity-tokens", "1200", "--log-level", "debug"))
    url = await daemon.url()
    running = await session.post(url + CHAT, json=chat(words(1000), "a", stream=True, max_tokens=30))
    held = asyncio.create_task(session.post(url + CHAT, json=chat(words(1000, "beta"), "b")))
    await until(lambda: daemon.logged("turn.held"))
    daemon.process.send_signal(signal.SIGTERM)
    refused = await held
    assert (refused.status, (await refused.json())["error"]["code"]) == (503, "shutting_down")
    assert refused.headers["Retry-After"] == "5"
    async with session.post(url + CHAT, json=chat()) as late:
        assert (late.status, (await late.json())["error"]["code"]) == (503, "shutting_down")
    async with session.get(url + "/readyz") as answer:
        assert (answer.status, await answer.json()) == (503, {"status": "draining"})
    assert (await running.read()).endswith(b"data: [DONE]\n\n")
    assert await daemon.ended() == 0
    assert daemon.logged("daemon.stopped")
    assert [line["outcome"] for line in daemon.logged("turn.finished")] == ["refused", "completed"]
    assert daemon.other == []


async def test_signal_before_the_first_look_ends_it(stack: Stack, serve: Any) -> None:
    """A backend that does not answer is not waited for, and nothing is left open."""
    fake = await stack.fake()
    fake.pages = dict.fromkeys(("/health", "/v1/models", "/metrics"))
    daemon = await serve("serve", *options(fake))
    await until(lambda: fake.looks, 15)
    daemon.process.send_signal(signal.SIGINT)
    started_at = time.monotonic()
    assert await daemon.ended() == 0
    assert time.monotonic() - started_at < 2
    assert [line["event"] for line in daemon.lines] == ["daemon.stopped"]
    assert daemon.other == []


async def cut_stream(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    """The error in the last event of a stream that must end without its terminating chunk."""
    received = bytearray()

    async def read() -> None:
        while True:
            received.extend(await answer.content.readany())

    with pytest.raises(aiohttp.ClientPayloadError):
        await read()
    answer.close()
    *_, last = bytes(received).strip().split(b"\n\n")
    error: dict[str, Any] = json.loads(last.removeprefix(b"data: "))["error"]
    return error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_second_signal_ends_at_once(
    stack: Stack, serve: Any, session: aiohttp.ClientSession, number: signal.Signals
) -> None:
    """The running stream ends with an error event, its engine request is aborted; the status names the signal."""
    engine = await stack.engine(speed=1.0)
    daemon = await serve(*options(engine, "--drain-seconds", "600"))
    url = await daemon.url()
    running = await session.post(url + CHAT, json=chat(program="p", stream=True, max_tokens=4000))
    await running.content.readany()
    daemon.process.send_signal(number)
    await until(lambda: daemon.logged("daemon.draining"))
    started_at = time.monotonic()
    daemon.process.send_signal(number)
    assert await cut_stream(running) == SHUTTING_DOWN
    assert await daemon.ended() == 128 + number
    assert time.monotonic() - started_at < 2
    assert daemon.logged("daemon.turns_cut")[0]["turns"] == 1
    (line,) = daemon.logged("turn.finished")
    assert (line["outcome"], line["status"], line["error"]) == ("shutdown", 200, "shutting_down")
    assert daemon.other == []


async def test_unscheduled_request_finishes_in_the_drain(
    stack: Stack, serve: Any, session: aiohttp.ClientSession
) -> None:
    """Embeddings and the like are waited for as turns are."""
    answers = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await answers.wait()
        await exchange.send(CHAT_ANSWER)

    fake = await stack.fake(slow)
    daemon = await serve(*options(fake))
    url = await daemon.url()
    running = asyncio.create_task(session.post(url + "/v1/embeddings", json=chat()))
    await until(lambda: fake.exchanges)
    daemon.process.send_signal(signal.SIGTERM)
    await until(lambda: daemon.logged("daemon.draining"))
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(daemon.process.wait(), 0.7)
    answers.set()
    assert (await running).status == 200
    assert await daemon.ended() == 0


async def test_drain_ends_after_its_time(stack: Stack, serve: Any, session: aiohttp.ClientSession) -> None:
    """A turn that does not finish within --drain-seconds is cut off."""
    engine = await stack.engine(speed=1.0)
    daemon = await serve(*options(engine, "--drain-seconds", "0.2"))
    url = await daemon.url()
    running = await session.post(url + CHAT, json=chat(stream=True, max_tokens=4000))
    await running.content.readany()
    daemon.process.send_signal(signal.SIGTERM)
    assert await cut_stream(running) == SHUTTING_DOWN
    assert await daemon.ended() == 0
    assert daemon.logged("daemon.turns_cut")


@pytest.mark.parametrize("begun", [b"", CHAT_ANSWER[:-10]], ids=["nothing", "a part of a whole body"])
async def test_cut_turn_without_answer_gets_503(
    stack: Stack, serve: Any, session: aiohttp.ClientSession, begun: bytes
) -> None:
    """A turn of whose answer nothing was passed on yet is answered by the router."""

    async def silent(exchange: Exchange) -> None:
        await exchange.send(begun)
        await exchange.wait_client_left()

    fake = await stack.fake(silent)
    daemon = await serve(*options(fake, "--drain-seconds", "0.2"))
    url = await daemon.url()
    running = asyncio.create_task(session.post(url + CHAT, json=chat()))
    await until(lambda: fake.exchanges)
    daemon.process.send_signal(signal.SIGTERM)
    refused = await running
    assert (refused.status, (await refused.json())["error"]) == (503, SHUTTING_DOWN)
    assert await daemon.ended() == 0
    (line,) = daemon.logged("turn.finished")
    assert (line["outcome"], line["status"], line["error"]) == ("shutdown", 503, "shutting_down")
    assert daemon.other == []


@pytest.mark.parametrize(
    ("drain_seconds", "draining", "status"),
    [(0.05, [signal.SIGINT], 0), (600.0, [signal.SIGINT, signal.SIGINT], 130)],
    ids=["the drain's time was over", "a second signal ended the drain"],
)
async def test_signal_after_the_drain_leaves_the_status(
    stack: Stack,
    session: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
    drain_seconds: float,
    draining: list[signal.Signals],
    status: int,
) -> None:
    """It has cut nothing. Here it comes just before the turns are cut."""
    received: list[int] = []
    receive, cut_turns = daemon_module._Signals._received, daemon_module._cut_turns

    def note(signals: daemon_module._Signals, number: int) -> None:
        received.append(number)
        receive(signals, number)

    async def send(number: signal.Signals) -> None:
        before = len(received)
        os.kill(os.getpid(), number)
        await until(lambda: len(received) > before)

    async def cut(state: State) -> None:
        await send(signal.SIGTERM)
        await cut_turns(state)

    async def silent(exchange: Exchange) -> None:
        await exchange.wait_client_left()

    monkeypatch.setattr(daemon_module._Signals, "_received", note)
    monkeypatch.setattr(daemon_module, "_cut_turns", cut)
    fake = await stack.fake(silent)
    backends = (BackendConfig(fake.url),)
    settings = Settings(backends=backends, host="127.0.0.1", port=0, drain_seconds=drain_seconds)
    with structlog.testing.capture_logs() as logs:
        serving = asyncio.create_task(daemon_module._serve(settings))
        await until(lambda: any(line["event"] == "daemon.started" for line in logs))
        (url,) = [line["url"] for line in logs if line["event"] == "daemon.started"]
        running = asyncio.create_task(session.post(url + CHAT, json=chat()))
        await until(lambda: fake.exchanges)
        for number in draining:
            await send(number)
        assert await asyncio.wait_for(serving, 10) == status
    assert received == [*draining, signal.SIGTERM]
    assert (await running).status == 503


async def test_client_that_does_not_read_does_not_delay_the_end(
    stack: Stack, serve: Any, session: aiohttp.ClientSession
) -> None:
    """A stream that its client has stopped reading is cut all the same, in bounded time."""

    async def flood(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        while True:
            await exchange.send(b": " + bytes(65536) + b"\n\n")

    fake = await stack.fake(flood)
    daemon = await serve(*options(fake, "--drain-seconds", "600"))
    running = await session.post(await daemon.url() + CHAT, json=chat(stream=True))
    assert running.status == 200
    daemon.process.send_signal(signal.SIGINT)
    await until(lambda: daemon.logged("daemon.draining"))
    started_at = time.monotonic()
    daemon.process.send_signal(signal.SIGINT)
    assert await daemon.ended() == 130
    assert time.monotonic() - started_at < 4
    running.close()
    assert [line["outcome"] for line in daemon.logged("turn.finished")] == ["shutdown"]
    assert daemon.other == []


async def test_idle_daemon_ends_at_once_and_logs_no_secret(
    stack: Stack, serve: Any, session: aiohttp.ClientSession
) -> None:
    """Keys, tokens and prompts are in no log line; a client's open connection does not delay the end."""
    engine = await stack.engine()
    flags = ["--api-token", "sekret-1", "--admin-token", "sekret-2", "--backend-api-key", "sekret-3"]
    daemon = await serve("serve", *options(engine, *flags, "--log-level", "debug"))
    url = await daemon.url()
    headers = {"Authorization": "Bearer sekret-1"}
    async with session.post(url + CHAT, json=chat("sekret-4", "p"), headers=headers) as answer:
        assert answer.status == 200
        await answer.read()
    started_at = time.monotonic()
    daemon.process.send_signal(signal.SIGINT)
    assert await daemon.ended() == 0
    assert time.monotonic() - started_at < 2
    assert daemon.logged("turn.finished")[0]["program"] == "p"
    assert "sekret" not in json.dumps(daemon.lines) + "".join(daemon.other)


async def test_taken_port_is_one_clear_line(stack: Stack, serve: Any) -> None:
    """Exit status 2 and what to do, no traceback; backends that do not answer are not waited for."""
    engine, fake = await stack.engine(), await stack.fake()
    fake.pages = dict.fromkeys(("/health", "/v1/models", "/metrics"))
    daemon = await serve(*options(fake), "--port", str(engine.port))
    assert await daemon.ended() == 2
    assert not fake.looks
    assert daemon.other == [
        f"thunderagent serve: port {engine.port} on 127.0.0.1 is in use; choose another with --port\n"
    ]

"""The router in-process on real sockets, with emulated engines or scripted backends behind it."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import aiohttp
from aiohttp import web
from attrs import define, field

from thunderagent.backends import BackendConfig
from thunderagent.config import Settings
from thunderagent.core.invariants import check
from thunderagent.core.settings import SchedulerSettings
from thunderagent.emulator.server import RUNNER_OPTIONS, EmulatorConfig, driver_key
from thunderagent.emulator.server import create_app as create_engine
from thunderagent.gateway import Gateway
from thunderagent.server.app import create_app
from thunderagent.server.state import STATE, State
from thunderagent.testing.fake_backend import FakeBackend

CHAT = "/v1/chat/completions"
FAST = {"retry_seconds": 0.1}
"""Scheduler settings of a router whose backends come and go within a test."""


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait until the condition holds; AssertionError when it does not in time."""
    deadline_at = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline_at, "the condition did not come true"
        await asyncio.sleep(0.005)


def chat(text: str = "hi", program: str | None = None, **fields: Any) -> dict[str, Any]:
    """A body for chat completions with one user message."""
    body: dict[str, Any] = {"model": "emulated", "messages": [{"role": "user", "content": text}], "max_tokens": 4}
    if program is not None:
        body["program_id"] = program
    return {**body, **fields}


def words(tokens: int, word: str = "word") -> str:
    """Text of about so many tokens of the emulated engine; programs with other words share no prefix."""
    return word * tokens


@define(eq=False)
class Engine:
    """An emulated engine that can be killed, and started again on the same port with an empty cache."""

    config: EmulatorConfig
    port: int = 0
    runner: web.AppRunner | None = None
    app: web.Application | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def running(self) -> int:
        """Requests inside the engine."""
        assert self.app is not None
        engine = self.app[driver_key].engine
        return engine.running + engine.waiting

    async def start(self) -> None:
        self.app = create_engine(self.config)
        self.runner = web.AppRunner(self.app, handler_cancellation=True, **RUNNER_OPTIONS)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self.runner.addresses[0][1]

    async def kill(self) -> None:
        """As a crash: the port closes, every connection is reset."""
        runner, self.runner = self.runner, None
        if runner is None:
            return
        for site in list(runner.sites):
            await site.stop()
        assert runner.server is not None
        for connection in list(runner.server.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()


class RawClient:
    """A client that reads every byte by itself, and can leave at any point."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def head(self) -> str:
        """The answer's header."""
        return (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 5)).decode()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body's chunks as they arrive; ends at the last one, raises IncompleteReadError where it is cut."""
        while size := int(await asyncio.wait_for(self.reader.readuntil(b"\r\n"), 5), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]

    async def rest(self) -> tuple[bytes, bool]:
        """What is left of a chunked body, and whether it ended cleanly."""
        parts: list[bytes] = []
        try:
            async for chunk in self.chunks():
                parts.append(chunk)  # noqa: PERF401 what came before a cut must be kept
        except (asyncio.IncompleteReadError, ConnectionError):
            return b"".join(parts), False
        return b"".join(parts), True

    async def leave(self) -> None:
        """Vanish with a reset."""
        self.writer.transport.abort()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass


@define(eq=False)
class Router:
    """A running router and a client of it."""

    settings: Settings
    app: web.Application
    runner: web.AppRunner
    session: aiohttp.ClientSession
    port: int
    raw_clients: list[RawClient] = field(factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def state(self) -> State:
        return self.app[STATE]

    @property
    def gateway(self) -> Gateway:
        return self.state.gateway

    @property
    def held(self) -> int:
        """Turns that wait."""
        return self.gateway.scheduler.cluster.queue.turn_count

    @property
    def running(self) -> int:
        """Turns on backends."""
        return sum(entry.turn_count for entry in self.gateway.scheduler.cluster.backend_by_id.values())

    async def post(
        self, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """POST an object as JSON, or bytes as they are; the status and the JSON answer."""
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(self.url + path, data=io.BytesIO(payload), headers=headers) as answer:
            return answer.status, await answer.json()

    async def raw(self, body: Mapping[str, Any] | bytes, path: str = CHAT, headers: Sequence[str] = ()) -> RawClient:
        """POST on a connection of its own, and leave the reading to the test."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(payload)}", "Connection: close", *headers]
        writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + payload)
        client = RawClient(reader, writer)
        self.raw_clients.append(client)
        return client

    async def chat(self, text: str = "hi", program: str | None = None, **fields: Any) -> dict[str, Any]:
        """A turn that succeeds; its answer."""
        status, answer = await self.post(CHAT, chat(text, program, **fields))
        assert status == 200, answer
        return answer

    def start_chat(
        self, text: str = "hi", program: str | None = None, **fields: Any
    ) -> asyncio.Task[tuple[int, dict[str, Any]]]:
        """A turn in the background."""
        return asyncio.create_task(self.post(CHAT, chat(text, program, **fields)))

    async def get(self, path: str, **options: Any) -> tuple[int, Any]:
        """The status and the JSON answer."""
        async with self.session.get(self.url + path, **options) as answer:
            return answer.status, await answer.json()

    async def delete(self, path: str, **options: Any) -> tuple[int, Any]:
        """The status and the JSON answer."""
        async with self.session.delete(self.url + path, **options) as answer:
            return answer.status, await answer.json()

    async def programs(self) -> dict[str, Any]:
        """``GET /programs``."""
        status, listed = await self.get("/programs")
        assert status == 200
        assert isinstance(listed, dict)
        return listed

    async def release(self, program: str) -> bool:
        """Release a program; whether it was known."""
        status, answer = await self.post("/programs/release", {"program_id": program})
        assert (status, answer["program_id"]) == (200, program)
        return bool(answer["released"])

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry the labels; 0 without any."""
        async with self.session.get(self.url + "/metrics") as answer:
            page = await answer.text()
        total = 0.0
        for found in re.finditer(rf"^{name}(?:{{(.*)}})? (\S+)$", page, re.MULTILINE):
            shown = dict(re.findall(r'(\w+)="([^"]*)"', found[1] or ""))
            if all(shown.get(label) == value for label, value in labels.items()):
                total += float(found[2])
        return total

    async def close_checked(self) -> None:
        """End it, and require that nothing is left: no turn, no charge, once its programs are released."""
        await self.session.close()
        for client in self.raw_clients:
            await client.leave()
        gateway, cluster = self.gateway, self.gateway.scheduler.cluster
        try:
            await until(lambda: not gateway.tickets)
            check(cluster)
            assert cluster.turn_by_id == {}
            assert cluster.queue.turn_count == 0
            for program in list(cluster.program_by_id):
                gateway.release(program)
            check(cluster)
            left = {entry.id: entry.accounted_tokens for entry in cluster.backend_by_id.values()}
            assert not any(left.values()), left
            assert not any(entry.reserved_tokens for entry in cluster.backend_by_id.values())
            assert cluster.ledger.prefixes == {}
        finally:
            await self.runner.cleanup()


@define(eq=False)
class Stack:
    """Starts engines, fake backends and routers, and ends them all."""

    routers: list[Router] = field(factory=list)
    engines: list[Engine] = field(factory=list)
    fakes: list[FakeBackend] = field(factory=list)

    async def engine(self, **options: Any) -> Engine:
        """An emulated engine, so fast that nothing waits unless a speed is given."""
        engine = Engine(EmulatorConfig(**{"kv_tokens": 8192, "speed": 1e4, **options}))
        await engine.start()
        self.engines.append(engine)
        return engine

    async def fake(self, script: Any = None, **options: Any) -> FakeBackend:
        """A scripted backend that serves the model ``emulated``."""
        given = {} if script is None else {"script": script}
        fake = FakeBackend(**{"models": ("emulated",), **given, **options})
        await fake.start()
        self.fakes.append(fake)
        return fake

    async def router(
        self, *backends: Engine | FakeBackend | BackendConfig, scheduler: Mapping[str, Any] = FAST, **options: Any
    ) -> Router:
        """A router before the backends; failed ones are looked at again quickly."""
        configs = [
            entry if isinstance(entry, BackendConfig) else BackendConfig(entry.url, api_key=options.get("key"))
            for entry in backends
        ]
        options.pop("key", None)
        settings = Settings(
            backends=tuple(configs),
            scheduler=SchedulerSettings(**scheduler),
            **{"metrics_interval_seconds": 0.1, **options},
        )
        app = create_app(settings)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        router = Router(settings, app, runner, session, runner.addresses[0][1])
        self.routers.append(router)
        return router

    async def close(self) -> None:
        """End everything; every router must be left clean, every engine idle."""
        try:
            for router in self.routers:
                await router.close_checked()
            for engine in self.engines:
                if engine.runner is not None:
                    await until(lambda: engine.running == 0)  # noqa: B023
        finally:
            for engine in self.engines:
                await engine.kill()
            for fake in self.fakes:
                await fake.kill()

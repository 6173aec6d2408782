"""Both ends of the relay for tests: a backend that speaks raw bytes, and a front that relays its answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from thunderagent.testing.fake_backend import Exchange
from thunderagent.upstream.client import BackendClient, ForwardFailed
from thunderagent.upstream.headers import request_headers
from thunderagent.upstream.relay import RelayResult, relay
from thunderagent.upstream.usage import Api

FIXTURES = Path(__file__).parent.parent / "fixtures"
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def recorded(name: str, of: str = "vllm") -> bytes:
    """A body recorded from vLLM, or one of another type's, which the README beside it tells the origin of."""
    return (FIXTURES / of / f"{name}.body").read_bytes()


class RawBackend:
    """A server on loopback that hands each request to a script; ``answer`` bytes are the simplest script."""

    def __init__(self, script: bytes | Callable[[Exchange], Awaitable[None]]) -> None:
        self._script = script
        self.exchanges: list[Exchange] = []
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> RawBackend:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        size = 0
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                size = int(value)
        exchange = Exchange(head, await reader.readexactly(size), reader, writer)
        self.exchanges.append(exchange)
        if isinstance(self._script, bytes):
            await exchange.send(self._script)
            return True
        await self._script(exchange)
        return False


class Front:
    """A server that forwards each request to one backend and relays the answer, as the daemon does."""

    def __init__(self, backend_url: str, api: Api = Api.CHAT, **options: Any) -> None:
        self._backend_url = backend_url
        self._api = api
        self._options = options
        self.begin_with: tuple[str, bytes] | None = None
        """Content type and bytes of an answer to begin before the backend is asked."""
        self.results: list[RelayResult | BaseException] = []

    async def __aenter__(self) -> Front:
        self.client = BackendClient(self._backend_url)
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.2)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port: int = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self.client.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        started = None
        if self.begin_with is not None:
            started = web.StreamResponse(headers={"Content-Type": self.begin_with[0]})
            await started.prepare(request)
            await started.write(self.begin_with[1])
        try:
            upstream = await self.client.open(request.method, request.path_qs, body, request_headers(request.headers))
            result = await relay(upstream, request, api=self._api, response=started, **self._options)
        except ForwardFailed as error:
            self.results.append(error)
            return web.Response(status=502, text=str(error))
        except BaseException as error:
            self.results.append(error)
            raise
        self.results.append(result)
        return result.response

    async def post(self, body: bytes = b"{}", path: str = "/v1/chat/completions") -> bytes:
        """Send one request and return every byte of the answer, header and framing included."""
        reader, writer = await self.connect(body, path)
        try:
            return await reader.read(-1)
        finally:
            writer.close()

    async def connect(
        self, body: bytes = b"{}", path: str = "/v1/chat/completions"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send one request and leave the reading to the test."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        return reader, writer

    @property
    def result(self) -> RelayResult:
        """The only result so far."""
        (result,) = self.results
        assert isinstance(result, RelayResult), result
        return result


def parse_answer(raw: bytes) -> tuple[bytes, bytes, bool]:
    """Header, body and whether the body is whole, of one answer's bytes."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                return head, rest, len(rest) == int(value)
        return head, rest, True
    body = b""
    while rest:
        size_text, _, rest = rest.partition(b"\r\n")
        size = int(size_text, 16)
        if size == 0:
            return head, body, rest == b"\r\n"
        body, rest = body + rest[:size], rest[size + 2 :]
    return head, body, False

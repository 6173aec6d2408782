"""A fake vLLM server for tests: it answers the pages that a router looks at, and a script answers the rest.

The script writes raw bytes, so that it can misbehave in any way: break off, stall, answer nonsense.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from attrs import define, field

__all__ = ["CHAT_ANSWER", "LAST_CHUNK", "STREAM_HEAD", "Exchange", "FakeBackend", "Script", "chunked", "json_answer"]

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
_BLOCK_TOKENS = 16


def chunked(*parts: bytes) -> bytes:
    """Parts as HTTP/1.1 chunks, without the last one."""
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts if part)


def json_answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    """A whole JSON answer; ``headers`` are further lines."""
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


CHAT_ANSWER = json_answer(
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"fake","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":10,"completion_tokens":2,"total_tokens":12}}'
)
"""A small whole answer of chat completions, with usage 10 + 2."""


@define(eq=False)
class Exchange:
    """One request, and the connection to answer it on."""

    head: bytes
    body: bytes
    reader: asyncio.StreamReader = field(repr=False)
    writer: asyncio.StreamWriter = field(repr=False)

    @property
    def target(self) -> str:
        """Path and query, as they were sent."""
        return self.head.split(b" ", 2)[1].decode()

    @property
    def headers(self) -> dict[str, str]:
        """The header fields by lower-case name; of a repeated one the last."""
        lines = self.head.decode().split("\r\n")[1:]
        pairs = (line.split(":", 1) for line in lines if ":" in line)
        return {name.lower(): value.strip() for name, value in pairs}

    async def send(self, *parts: bytes) -> None:
        """Write each part as a segment of its own."""
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            await asyncio.sleep(0)

    def reset(self) -> None:
        """Drop the connection with a TCP reset."""
        self.writer.transport.abort()

    async def wait_client_left(self) -> None:
        """Return when the other side closed the connection."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass


Script = Callable[[Exchange], Awaitable[None]]
"""Answers one request. When it returns the connection is closed: what it began and did not end is cut off."""


@define(eq=False)
class FakeBackend:
    """Listens on loopback as an asynchronous context manager.

    ``script``: an answer for all requests, or what handles each. ``models`` and ``capacity_tokens`` are what the
    watched pages say (None: a page without that). ``is_healthy`` may be changed at any time.
    """

    script: bytes | Script = CHAT_ANSWER
    models: Sequence[str] | None = ("fake",)
    capacity_tokens: int | None = None
    is_healthy: bool = True
    port: int = 0
    exchanges: list[Exchange] = field(factory=list)
    """Requests that the script was given; the watched pages are not among them."""
    _server: asyncio.Server | None = None
    _tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = field(factory=dict)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen; on the same port as before where it was started already."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 26)
        self.port = self._server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        """Stop listening and reset all connections, as a crash does."""
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = list(self._tasks)
        for task, writer in list(self._tasks.items()):
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def __aenter__(self) -> FakeBackend:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = writer
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            del self._tasks[task]
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection is kept."""
        head = await reader.readuntil(b"\r\n\r\n")
        exchange = Exchange(head, b"", reader, writer)
        exchange.body = await reader.readexactly(int(exchange.headers.get("content-length", "0")))
        page = self._page(exchange.target)
        if page is not None:
            await exchange.send(page)
            return True
        self.exchanges.append(exchange)
        if isinstance(self.script, bytes):
            await exchange.send(self.script)
            return True
        await self.script(exchange)
        return False

    def _page(self, target: str) -> bytes | None:
        """What the router's watch asks for; None for anything else."""
        if target == "/health":
            return json_answer(b"", "200 OK" if self.is_healthy else "503 Service Unavailable")
        if target == "/v1/models":
            if self.models is None:
                return json_answer(b'{"detail":"Not Found"}', "404 Not Found")
            listed: list[dict[str, Any]] = [{"id": name, "object": "model"} for name in self.models]
            return json_answer(json.dumps({"object": "list", "data": listed}).encode())
        if target == "/metrics":
            return json_answer(self._metrics().encode())
        return None

    def _metrics(self) -> str:
        if self.capacity_tokens is None:
            return ""
        blocks = self.capacity_tokens // _BLOCK_TOKENS + 1
        labels = f'block_size="{_BLOCK_TOKENS}",engine="0",num_gpu_blocks="{blocks}"'
        return f"vllm:cache_config_info{{{labels}}} 1.0\n"

"""A fake inference server for tests: it answers the pages that a router looks at, as vLLM or as a server of another
type, and a script answers the rest.

The script writes raw bytes, so that it can misbehave in any way: break off, stall, answer nonsense.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from attrs import define, field

__all__ = ["CHAT_ANSWER", "LAST_CHUNK", "STREAM_HEAD", "Exchange", "FakeBackend", "Script", "chunked", "json_answer"]

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
_BLOCK_TOKENS = 16
_SKYRL_ENGINE_TOKENS = 200_000
_WATCHED = ("/health", "/health_generate", "/v1/models", "/metrics", "/server_info", "/get_server_info")


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
    watched pages say (None: a page without that). ``type`` is that of ``--backend-type``, and decides which pages
    there are; one of SkyRL has so many engines as 200,000 tokens each give the capacity. ``pages`` are raw answers by
    target instead of its own; None never answers. All may be changed at any time.
    """

    script: bytes | Script = CHAT_ANSWER
    models: Sequence[str] | None = ("fake",)
    capacity_tokens: int | None = None
    is_healthy: bool = True
    type: str = "vllm"
    pages: Mapping[str, bytes | None] = field(factory=dict)
    looks: Counter[str] = field(factory=Counter)
    """How often each watched page was asked for."""
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
        if exchange.target in self.pages or exchange.target in _WATCHED:
            self.looks[exchange.target] += 1
            page = self.pages[exchange.target] if exchange.target in self.pages else self._page(exchange.target)
            if page is None:
                await exchange.wait_client_left()
                return False
            await exchange.send(page)
            return True
        self.exchanges.append(exchange)
        if isinstance(self.script, bytes):
            await exchange.send(self.script)
            return True
        await self.script(exchange)
        return False

    def _page(self, target: str) -> bytes:
        """What the router's watch asks for."""
        if target == ("/v1/models" if self.type == "openai" else "/health") and not self.is_healthy:
            return json_answer(b"", "503 Service Unavailable")
        if target == "/health" and self.type != "openai":
            return json_answer(b"")
        if target == "/v1/models" and self.models is not None:
            listed: list[dict[str, Any]] = [{"id": name, "object": "model"} for name in self.models]
            return json_answer(json.dumps({"object": "list", "data": listed}).encode())
        page = _PAGES.get((self.type, target))
        if page is None:
            return json_answer(b'{"detail":"Not Found"}', "404 Not Found")
        return json_answer(page(self.capacity_tokens).encode())


def _vllm_metrics(capacity_tokens: int | None) -> str:
    if capacity_tokens is None:
        return ""
    blocks = capacity_tokens // _BLOCK_TOKENS + 1
    labels = f'block_size="{_BLOCK_TOKENS}",engine="0",num_gpu_blocks="{blocks}"'
    return f"vllm:cache_config_info{{{labels}}} 1.0\n"


def _sglang_metrics(_: int | None) -> str:
    labels = 'engine_type="unified",model_name="fake",moe_ep_rank="0",pp_rank="0",tp_rank="0"'
    return f"sglang:num_running_reqs{{{labels}}} 0.0\nsglang:token_usage{{{labels}}} 0.0\n"


def _sglang_server_info(capacity_tokens: int | None) -> str:
    capacity = {} if capacity_tokens is None else {"max_total_num_tokens": capacity_tokens}
    return json.dumps({"model_path": "fake", "dp_size": 1, **capacity, "internal_states": [{}]})


def _skyrl_metrics(capacity_tokens: int | None) -> str:
    idle = {"kv_cache_usage_pct": 0.0, "num_running_reqs": 0, "num_waiting_reqs": 0, "num_cumulative_preemption": 0}
    engines = range((capacity_tokens or 0) // _SKYRL_ENGINE_TOKENS)
    return json.dumps({"timestamp": 1.0, "engines": [{"engine_id": number, **idle} for number in engines]})


_PAGES: Mapping[tuple[str, str], Callable[[int | None], str]] = {
    ("vllm", "/metrics"): _vllm_metrics,
    ("sglang", "/metrics"): _sglang_metrics,
    ("sglang", "/server_info"): _sglang_server_info,
    ("skyrl", "/metrics"): _skyrl_metrics,
}

"""What stands around the router in ``benchmarks.overflow``: stub backends, a probe, and the agents."""

from __future__ import annotations

import asyncio
import json
import math
import random
import socket
import time
from functools import partial
from multiprocessing.connection import Connection

from attrs import define, field

from benchmarks.processes import HttpStub, json_answer

__all__ = ["BACKENDS", "MEAN_TOKENS", "Agents", "run_probe", "run_stubs"]

BACKENDS, OFFERED_TURNS_PER_SECOND = 8, 350
BYTES_PER_TOKEN, COMPLETION_TOKENS, BLOCK_TOKENS = 4, 20, 16
START_BYTES, STEP_BYTES = (1000, 2000), 100
MEAN_TOKENS = sum(START_BYTES) / 2 / BYTES_PER_TOKEN + COMPLETION_TOKENS
"""Of a program after its first turn."""
TOOL_SIGMA = 1.0
PROBE_SECONDS = 0.1


# Backends


def _pages(capacity_tokens: int) -> dict[bytes, bytes]:
    labels = f'block_size="{BLOCK_TOKENS}",engine="0",num_gpu_blocks="{capacity_tokens // BLOCK_TOKENS + 1}"'
    return {
        b"/health": json_answer(b""),
        b"/v1/models": json_answer(b'{"object":"list","data":[{"id":"stub","object":"model"}]}'),
        b"/metrics": json_answer(b"vllm:cache_config_info{%s} 1.0\n" % labels.encode()),
    }


def _chat_answer(body_bytes: int) -> bytes:
    prompt_tokens = body_bytes // BYTES_PER_TOKEN
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": COMPLETION_TOKENS,
        "total_tokens": prompt_tokens + COMPLETION_TOKENS,
        "prompt_tokens_details": {"cached_tokens": prompt_tokens * 9 // 10},
    }
    choice = {"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
    answer = {"id": "c", "object": "chat.completion", "model": "stub", "choices": [choice], "usage": usage}
    return json_answer(json.dumps(answer).encode())


class _Stub(HttpStub):
    """A vLLM's pages at once, its answers after 0.2 to 1 s."""

    def __init__(self, pages: dict[bytes, bytes]) -> None:
        super().__init__()
        self._pages = pages

    def answer(self, head: bytes, size_bytes: int) -> None:
        method, target, _ = head.split(b" ", 2)
        if method == b"GET":
            self.transport.write(self._pages[target])
        else:
            delay_seconds = random.uniform(0.2, 1.0)
            asyncio.get_running_loop().call_later(delay_seconds, self._write, _chat_answer(size_bytes))

    def _write(self, answer: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(answer)


async def _serve_stubs(control: Connection, capacity_tokens: int) -> None:
    loop, factory = asyncio.get_running_loop(), partial(_Stub, _pages(capacity_tokens))
    servers = [await loop.create_server(factory, "127.0.0.1", 0, backlog=2048) for _ in range(BACKENDS)]
    control.send([server.sockets[0].getsockname()[1] for server in servers])
    await asyncio.to_thread(control.recv)


def run_stubs(control: Connection, capacity_tokens: int) -> None:
    """Listen on a port per backend, tell the parent the ports, end at its first message."""
    asyncio.run(_serve_stubs(control, capacity_tokens))


# Probe


def run_probe(control: Connection, port: int) -> None:
    """Send the milliseconds of the probes since then at each message of the parent, a failed one as infinite; end at
    None."""
    latencies_ms: list[float] = []
    next_at = time.perf_counter()
    while True:
        if control.poll(max(0.0, next_at - time.perf_counter())):
            if control.recv() is None:
                return
            control.send(latencies_ms)
            latencies_ms = []
            continue
        began_at = time.perf_counter()
        answered = _is_alive(port)
        now = time.perf_counter()
        latencies_ms.append((now - began_at) * 1000 if answered else math.inf)
        next_at = max(next_at + PROBE_SECONDS, now)


def _is_alive(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    except OSError:
        return False


# Agents


@define
class Agents:
    """The closed loop: every agent's turns and tools, until it is cancelled."""

    port: int
    programs: int
    arrival_seconds: float
    turns: int = 0
    errors: list[str] = field(factory=list)

    @property
    def tool_seconds(self) -> float:
        """Mean time in a tool."""
        return self.programs / OFFERED_TURNS_PER_SECOND

    async def run(self, number: int) -> None:
        """One agent."""
        draw = random.Random(number)
        await asyncio.sleep(self.arrival_seconds * number / self.programs)
        task = f"task {number} " * 400
        messages = [
            {"role": "system", "content": "You are an agent."},
            {"role": "user", "content": task[: draw.randint(*START_BYTES)]},
        ]
        while True:
            body = {"model": "stub", "messages": messages, "program_id": f"agent-{number:06d}"}
            try:
                await self._turn(json.dumps(body).encode())
            except (OSError, EOFError) as error:
                self.errors.append(repr(error))
            messages += [{"role": "assistant", "content": "ok"}, {"role": "user", "content": "x" * STEP_BYTES}]
            await asyncio.sleep(draw.lognormvariate(math.log(self.tool_seconds) - TOOL_SIGMA**2 / 2, TOOL_SIGMA))

    async def _turn(self, body: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
            writer.write(head + body)
            answered = await reader.readuntil(b"\r\n\r\n")
            size = int(answered.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            page = await reader.readexactly(size)
        finally:
            writer.close()
        if answered.startswith(b"HTTP/1.1 200 "):
            self.turns += 1
        else:
            self.errors.append(f"{answered[:12].decode()} {page[:200].decode()}")

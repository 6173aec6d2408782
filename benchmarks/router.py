"""What does the router add to a request, by body size?

Command: ``python -m benchmarks.router [--requests 2000] [--sizes 1,50,250] [--smoke]``

A stub backend with a canned answer runs in one process, the router (``thunderagent serve``) in another, the client
in this one: keep-alive connections that send one request after another. Each size is measured straight to the stub
and through the router in the same run; read the columns side by side, absolute times depend on the machine.
``router CPU`` is the router's own CPU time for a request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import statistics
import time
import urllib.request
from multiprocessing.connection import Connection

from benchmarks.processes import HttpStub, cpu_seconds, free_port, json_answer, start_router

CONNECTIONS = 16
_ANSWER_BODY = json.dumps(
    {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "model": "stub",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101},
    }
).encode()
_MODELS_BODY = b'{"object":"list","data":[{"id":"stub","object":"model"}]}'


class _Stub(HttpStub):
    """Answers each request with the same bytes as soon as its body is there."""

    def answer(self, head: bytes, size_bytes: int) -> None:
        self.transport.write(json_answer(_MODELS_BODY if head.startswith(b"GET") else _ANSWER_BODY))


async def _serve_stub(control: Connection) -> None:
    server = await asyncio.get_running_loop().create_server(_Stub, "127.0.0.1", 0)
    control.send(server.sockets[0].getsockname()[1])
    await asyncio.to_thread(control.recv)
    server.close()


def _stub_process(control: Connection) -> None:
    asyncio.run(_serve_stub(control))


async def _client(port: int, bodies: list[bytes], latencies_ms: list[float]) -> None:
    """Send the bodies one after another over one connection; every answer must be a 200."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for body in bodies:
        started = time.perf_counter()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        writer.write(head + body)
        status = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in status.partition(b"\r\n")[0]:
            raise SystemExit(f"not a 200: {status[:200]!r}")
        await reader.readexactly(int(status.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
        latencies_ms.append((time.perf_counter() - started) * 1000)
    writer.close()


def _bodies(connection: int, count: int, size_kb: int) -> list[bytes]:
    """An agent's turns: same beginning, its own program id, messages up to the size."""
    message = {"role": "user", "content": 'x = "words of code"\n' * 40}
    messages = [{"role": "system", "content": "You are an agent."}] + [message] * max(1, size_kb * 1024 // 950)
    body = json.dumps({"model": "stub", "messages": messages, "program_id": f"bench-{size_kb}-{connection}"})
    return [body.encode()] * count


async def _load(port: int, requests: int, size_kb: int) -> tuple[float, list[float]]:
    """Requests per second, and every latency in milliseconds."""
    latencies_ms: list[float] = []
    each = max(1, requests // CONNECTIONS)
    clients = [_client(port, _bodies(number, each, size_kb), latencies_ms) for number in range(CONNECTIONS)]
    started = time.perf_counter()
    await asyncio.gather(*clients)
    return len(latencies_ms) / (time.perf_counter() - started), latencies_ms


def _measure(stub_port: int, port: int, pid: int, requests: int, sizes_kb: list[int]) -> None:
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{CONNECTIONS} connections, {requests} requests each way")
    print("body KB | direct req/s | router req/s | direct p50 ms | router p50 ms | router CPU ms/req")
    for size_kb in sizes_kb:
        asyncio.run(_load(port, CONNECTIONS * 2, size_kb))
        direct_rate, direct_ms = asyncio.run(_load(stub_port, requests, size_kb))
        cpu_before = cpu_seconds(pid)
        rate, routed_ms = asyncio.run(_load(port, requests, size_kb))
        cpu_ms = (cpu_seconds(pid) - cpu_before) * 1000 / len(routed_ms)
        print(
            f"{size_kb:7d} | {direct_rate:12.0f} | {rate:12.0f} | {statistics.median(direct_ms):13.2f} | "
            f"{statistics.median(routed_ms):13.2f} | {cpu_ms:17.3f}"
        )


def main() -> None:
    """Run the benchmark; ``--smoke`` only shows that every request is answered and nothing stays accounted."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--sizes", default="1,50,250", help="KB, separated by commas")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    requests, sizes = (160, "1,50") if options.smoke else (options.requests, options.sizes)
    ours, theirs = multiprocessing.Pipe()
    stub = multiprocessing.get_context("spawn").Process(target=_stub_process, args=(theirs,), daemon=True)
    stub.start()
    stub_port, port = ours.recv(), free_port()
    router = start_router([f"http://127.0.0.1:{stub_port}"], port, "--log-level", "warning")
    try:
        _measure(stub_port, port, router.pid, requests, [int(size) for size in sizes.split(",")])
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/debug/invariants", timeout=5) as page:
            print("invariants:", json.load(page)["violations"] or "hold")
    finally:
        router.terminate()
        router.wait(10)
        ours.send(None)


if __name__ == "__main__":
    main()

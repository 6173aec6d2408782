"""What benchmarks of the daemon share: a router of its own process, and what a process has cost so far."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import IO

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from examples.processes import free_port

__all__ = [
    "HttpStub",
    "cpu_seconds",
    "free_port",
    "json_answer",
    "resident_bytes",
    "router_samples",
    "start_router",
    "stop_router",
    "totals_of",
]

_START_SECONDS = 20.0


def json_answer(body: bytes) -> bytes:
    """A stub's whole answer."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Memory that a process has resident now."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def start_router(
    backends: Sequence[str], port: int, *arguments: str, log: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """``thunderagent serve`` on loopback in front of the backends at these URLs, once it is ready.

    ``log`` takes what it writes; None: this process's stderr does. Raises SystemExit when it does not start.
    """
    command = [sys.executable, "-m", "thunderagent", "serve", "--backends", ",".join(backends)]
    router = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port), *arguments], stderr=log)
    deadline_at = time.monotonic() + _START_SECONDS
    while not _is_ready(port):
        if time.monotonic() > deadline_at or router.poll() is not None:
            router.terminate()
            raise SystemExit("the router did not start")
        time.sleep(0.05)
    return router


def stop_router(router: subprocess.Popen[bytes], seconds: float) -> int | None:
    """SIGTERM, and SIGKILL after ``seconds``; the exit status, None where it had to be killed."""
    router.terminate()
    try:
        return router.wait(seconds)
    except subprocess.TimeoutExpired:
        router.kill()
        return None


def router_samples(url: str) -> list[Sample]:
    """What the router's ``GET /metrics`` says."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return [sample for family in families for sample in family.samples]


def totals_of(samples: Iterable[Sample]) -> defaultdict[str, float]:
    """By name, summed over labels."""
    totals: defaultdict[str, float] = defaultdict(float)
    for sample in samples:
        totals[sample.name] += sample.value
    return totals


class HttpStub(asyncio.Protocol):
    """Reads requests, one after the other, and hands each whole one to ``answer``."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._buffer[:end])
        found = head.lower().partition(b"content-length:")[2]
        size_bytes = int(found.split(b"\r\n", 1)[0]) if found else 0
        if len(self._buffer) < end + 4 + size_bytes:
            return
        del self._buffer[: end + 4 + size_bytes]
        self.answer(head, size_bytes)

    def answer(self, head: bytes, size_bytes: int) -> None:
        """A request with that head, and a body of so many bytes, is to be answered."""
        raise NotImplementedError


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1):
            return True
    except OSError:
        return False

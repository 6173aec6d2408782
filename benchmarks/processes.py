"""What benchmarks of the daemon share: a router of its own process, and what a process has cost so far."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from typing import IO

from examples.processes import free_port

__all__ = ["cpu_seconds", "free_port", "json_answer", "resident_bytes", "start_router"]

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


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1):
            return True
    except OSError:
        return False

"""A stream as ``curl -N`` sees it: bytes arrive as the engine makes them."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from urllib.parse import urlsplit

import pytest
from daemons import Daemon

pytestmark = pytest.mark.e2e

BODY = {
    "model": "emulated",
    "messages": [{"role": "user", "content": "Say something long."}],
    "max_tokens": 40,
    "stream": True,
    "program_id": "wire",
}


def _read(url: str) -> list[tuple[float, bytes]]:
    """Seconds since the request, and bytes, of each read of a raw streamed answer; the last ends it."""
    address, body = urlsplit(url), json.dumps(BODY).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    reads: list[tuple[float, bytes]] = []
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began_at = time.monotonic()
        connection.sendall(head.encode() + body)
        while part := connection.recv(65536):
            reads.append((time.monotonic() - began_at, part))
    return reads


def test_stream_arrives_piece_by_piece_and_ends_with_done(router: Daemon) -> None:
    """The first token is there long before the last, no piece holds many tokens, and the end is the API's."""
    reads = _read(router.url)
    router.post("/programs/release", {"program_id": "wire"})
    whole = b"".join(part for _, part in reads)
    first_at = next(at for at, part in reads if b"data: " in part)
    last_at = next(at for at, part in reads if b"data: [DONE]" in part)
    assert whole.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Type: text/event-stream" in whole
    assert whole.count(b'"content":') >= 40
    assert first_at < last_at / 2, f"first at {first_at:.3f} s, last at {last_at:.3f} s"
    assert max(part.count(b"data: ") for _, part in reads) < 20
    assert len(reads) > 10
    assert whole.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_router_adds_little_to_the_engine_s_own_stream(router: Daemon, engine: Daemon) -> None:
    """The same events as from the engine itself but for ids and times."""

    def events(reads: list[tuple[float, bytes]]) -> list[object]:
        lines = b"".join(part for _, part in reads).partition(b"\r\n\r\n")[2].split(b"\n")
        shown = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
        return [{**event, "id": "", "created": 0} for event in shown]

    through, straight = events(_read(router.url)), events(_read(engine.url))
    router.post("/programs/release", {"program_id": "wire"})
    assert len(through) > 40
    assert through == straight


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_prints_the_stream_to_its_end(router: Daemon) -> None:
    """The command of the README."""
    result = subprocess.run(
        ["curl", "-sSN", "--noproxy", "*", f"{router.url}/v1/chat/completions", "-d", json.dumps(BODY)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    router.post("/programs/release", {"program_id": "wire"})
    lines = result.stdout.splitlines()
    assert (result.returncode, result.stderr) == (0, "")
    assert (lines[-2], lines[0][:7]) == ("data: [DONE]", "data: {")

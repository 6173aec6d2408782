"""``thunderagent serve`` as a process before a backend of each type."""

from __future__ import annotations

import asyncio

import daemons
import pytest

from thunderagent.testing.fake_backend import FakeBackend


def _drive(arguments: list[str], turns: int) -> tuple[dict[str, object], str]:
    """Start a router, send turns of one program, and say what it shows of its only backend, and its log."""
    daemon = daemons.router(arguments[:1], *arguments[1:])
    try:
        daemon.wait_ready()
        for _ in range(turns):
            daemon.chat("hi", program_id="p")
        (backend,) = daemon.get("/backends")["backends"]
    finally:
        assert daemon.stop() == 0
    return backend, daemon.log


@pytest.mark.parametrize(
    ("backend_type", "capacity_tokens"), [("vllm", 4096), ("sglang", 4000), ("skyrl", 400_000), ("openai", None)]
)
async def test_daemon_serves_a_backend_of_each_type(backend_type: str, capacity_tokens: int | None) -> None:
    """The flag reaches the look: turns run, the capacity is what the type tells, and no line warns of anything."""
    async with FakeBackend(type=backend_type, models=("emulated",), capacity_tokens=capacity_tokens) as fake:
        backend, log = await asyncio.to_thread(_drive, [fake.url, "--backend-type", backend_type], 2)
    assert (backend["type"], backend["capacity_tokens"], backend["healthy"]) == (backend_type, capacity_tokens, True)
    assert len(fake.exchanges) == 2
    assert '"level": "warning"' not in log

"""Clients that leave: the engine drops their request at once, and nothing of the turn stays in the router."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from router_harness import RawClient, Router, Stack, chat, until, words
from structlog.testing import capture_logs

from thunderagent.server import inference
from thunderagent.testing.fake_backend import LAST_CHUNK, STREAM_HEAD, Exchange, chunked

CONTENT = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'


async def is_forgotten(router: Router, program: str) -> None:
    """The program has no turn any more, and can be used again."""
    await until(lambda: not router.gateway.tickets)
    shown = (await router.programs())[program]
    assert (shown["status"], shown["turns_running"], shown["turns_held"]) == ("acting", 0, 0)
    await router.chat("again", program)


async def test_client_that_leaves_mid_stream_is_aborted(stack: Stack) -> None:
    """A long stream stops in the engine when its client vanishes."""
    engine = await stack.engine(speed=1.0)
    router = await stack.router(engine)
    client = await router.raw(chat(program="p", stream=True, max_tokens=4000))
    await client.head()
    await anext(client.chunks())
    assert engine.running == 1
    await client.leave()
    await until(lambda: engine.running == 0, 1.0)
    await is_forgotten(router, "p")
    assert await router.metric("thunderagent_turns_total", outcome="client_gone") == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_client_that_leaves_during_prefill_is_aborted(stack: Stack, stream: bool) -> None:
    """Before the first byte, of a stream or a whole answer, leaving is noticed as well."""
    engine = await stack.engine(speed=0.01)
    router = await stack.router(engine)
    client = await router.raw(chat(words(4000), "p", stream=stream))
    await until(lambda: engine.running == 1)
    await client.leave()
    await until(lambda: engine.running == 0, 1.0)
    await until(lambda: not router.gateway.tickets)
    assert (await router.programs())["p"]["turns_running"] == 0


async def test_client_that_leaves_while_held_is_forgotten(stack: Stack) -> None:
    """A turn whose client gave up is not sent when room comes; those behind it are."""
    engine = await stack.engine()
    router = await stack.router(engine, capacity_tokens=1200)
    await router.chat(words(1000), "a")
    client = await router.raw(chat(words(1000, "beta"), "b"))
    await until(lambda: router.held == 1)
    behind = router.start_chat(words(1000, "cees"), "c")
    await until(lambda: router.held == 2)
    await client.leave()
    await until(lambda: router.held == 1)
    await router.release("a")
    assert (await behind)[0] == 200
    assert await router.metric("thunderagent_backend_turns_total") == 2
    await router.release("c")
    await is_forgotten(router, "b")


async def test_client_that_leaves_an_unwatched_request_is_forgotten(stack: Stack) -> None:
    """Leaving amid the body, before the router knows of a turn, leaves nothing."""
    router = await stack.router(await stack.fake())
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(b'POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"program_id":"p",')
    await writer.drain()
    await RawClient(reader, writer).leave()
    assert await router.programs() == {}


async def test_client_that_leaves_as_its_answer_is_written_is_no_fault(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its connection is found closed before the loop tells of it: the turn is accounted, and no traceback logged."""

    async def write_too_late(upstream: Any, request: web.Request, **_: Any) -> None:
        upstream.close()
        assert request.transport is not None
        request.transport.abort()
        raise ConnectionResetError("Cannot write to closing transport")

    monkeypatch.setattr(inference, "relay", write_too_late)
    router = await stack.router(await stack.fake())
    client = await router.raw(chat(program="p"))
    assert await client.reader.read() == b""
    await until(lambda: not router.gateway.tickets)
    assert await router.metric("thunderagent_turns_total", outcome="client_gone") == 1
    assert caplog.records == []


async def test_client_that_sends_again_keeps_its_age(stack: Stack) -> None:
    """After its client's timeout a turn sent again goes before those that came in between."""
    engine = await stack.engine()
    router = await stack.router(
        engine, capacity_tokens=1200, policy="pause-resume", policy_options={"idle_lease_seconds": "0"}
    )
    await router.chat(words(1000), "a")
    first = await router.raw(chat(words(1000, "soon"), "early"))
    await until(lambda: router.held == 1)
    late = router.start_chat(words(1000, "late"), "late")
    await until(lambda: router.held == 2)
    waited_seconds = (await router.programs())["early"]["waiting_seconds"]
    await first.leave()
    await until(lambda: router.held == 1)
    left = (await router.programs())["early"]
    assert (left["scheduling_status"], left["status"], left["waiting_seconds"]) == ("new", "acting", None)
    again = router.start_chat(words(1000, "soon"), "early")
    await until(lambda: router.held == 2)
    assert (await router.programs())["early"]["waiting_seconds"] >= waited_seconds > 0
    await router.release("a")
    assert (await again)[0] == 200
    assert not late.done()
    await router.release("early")
    assert (await late)[0] == 200


async def test_many_clients_that_leave_leave_nothing(stack: Stack) -> None:
    """Fifty vanish at once, some held, some running: counters do not drift."""
    engine = await stack.engine(speed=0.5)
    router = await stack.router(engine, capacity_tokens=2000)
    clients = [await router.raw(chat(words(150), f"p{index}", stream=True, max_tokens=500)) for index in range(50)]
    await until(lambda: router.held + router.running == 50)
    assert router.held > 0
    for client in clients:
        await client.leave()
    await until(lambda: engine.running == 0 and not router.gateway.tickets)
    assert (await router.get("/debug/invariants")) == (200, {"violations": []})
    assert (router.held, router.running) == (0, 0)


@pytest.mark.parametrize(
    ("ending", "outcome", "tokens"),
    [(b"data: [DONE]\n\n", "completed", (5000, 7)), (b"", "client_gone", (0, 0))],
)
@pytest.mark.parametrize("drops_usage", [True, False])
async def test_client_that_closes_before_the_backends_end_is_accounted(
    stack: Stack, ending: bytes, outcome: str, tokens: tuple[int, int], drops_usage: bool
) -> None:
    """With the last event the answer is complete, though the end of the body finds nobody; without it, it is not."""
    is_left = asyncio.Event()
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":5000,"completion_tokens":7,"total_tokens":5007}}\n\n'

    async def linger(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD, chunked(CONTENT * 3, usage, ending))
        await is_left.wait()
        await exchange.send(LAST_CHUNK)

    router = await stack.router(await stack.fake(linger))
    options = {} if drops_usage else {"stream_options": {"include_usage": True}}
    client = await router.raw(chat(program="p", stream=True, **options))
    await client.head()
    last = ending or (CONTENT if drops_usage else usage)
    await asyncio.wait_for(client.reader.readuntil(last), 5)
    await client.leave()
    with capture_logs() as logged:
        await until(lambda: not router.gateway.tickets)
    is_left.set()
    assert await router.metric("thunderagent_turns_total", outcome=outcome) == 1
    counted = [await router.metric(f"thunderagent_{kind}_tokens_total") for kind in ("prompt", "completion")]
    assert tuple(counted) == tokens
    line = next(entry for entry in logged if entry["event"] == "turn.finished")
    assert (line["status"], line["outcome"], line["first_byte_seconds"] is None) == (200, outcome, False)
    if ending:
        assert (await router.programs())["p"]["total_tokens"] == 5007

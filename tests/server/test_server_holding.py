"""Turns that wait: the hold limit in its three ways, keep-alive bytes, and a bounded queue."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import Any

import pytest
from aiohttp import web
from router_harness import CHAT, Engine, Router, Stack, chat, until, words

from thunderagent.core.settings import OnHoldLimit
from thunderagent.testing.fake_backend import STREAM_HEAD, Exchange, chunked, json_answer

LIMIT = 30.0
"""Hold limit in seconds of a scheduler's clock that runs 200 times as fast: 0.15 s."""


async def full_router(stack: Stack, **options: Any) -> tuple[Router, Engine]:
    """A router whose only place is taken by the idle program ``a``, however long it is idle."""
    engine = await stack.engine()
    no_lease = {"idle_lease_seconds": "0"}
    router = await stack.router(
        engine, capacity_tokens=1200, policy="pause-resume", policy_options=no_lease, **options
    )
    await router.chat(words(1000), "a")
    return router, engine


async def limited_router(stack: Stack, on_limit: OnHoldLimit) -> tuple[Router, Engine]:
    """The same with a hold limit that is soon reached."""
    scheduler = {"max_hold_seconds": LIMIT, "on_hold_limit": on_limit}
    return await full_router(stack, clock_speed=200.0, scheduler=scheduler)


async def test_head_displaces_the_program_served_longest(stack: Stack) -> None:
    """By default whoever waited for too long gets the place of an admitted program, without overcommitment."""
    router, engine = await limited_router(stack, OnHoldLimit.HEAD)
    assert (await router.start_chat(words(1000, "beta"), "b"))[0] == 200
    programs = await router.programs()
    assert (programs["a"]["state"], programs["b"]["state"]) == ("paused", "active")
    assert (await router.get("/health"))[1]["per_backend"][engine.url]["accounted_tokens"] <= 1200
    assert await router.metric("thunderagent_pauses_total", reason="hold_limit") == 1
    assert await router.metric("thunderagent_forced_admissions_total") == 0
    assert await router.metric("thunderagent_hold_seconds_sum") > LIMIT / 2


async def test_force_overcommits(stack: Stack) -> None:
    """The published way lets the turn in beside the others."""
    router, engine = await limited_router(stack, OnHoldLimit.FORCE)
    assert (await router.start_chat(words(1000, "beta"), "b"))[0] == 200
    assert await router.metric("thunderagent_forced_admissions_total") == 1
    assert await router.metric("thunderagent_prompt_tokens_total", backend=engine.url) > 2000


async def test_refuse_is_a_503_with_retry_after(stack: Stack) -> None:
    """The client is told to come back; its program keeps its age and is not idle-proof."""
    router, _ = await limited_router(stack, OnHoldLimit.REFUSE)
    async with router.session.post(router.url + CHAT, json=chat(words(1000, "beta"), "b")) as answer:
        error = (await answer.json())["error"]
        assert (answer.status, error["code"], answer.headers["Retry-After"]) == (503, "hold_limit", "5")
    cluster = router.gateway.scheduler.cluster
    since = cluster.program_by_id["b"].waiting_since
    assert since is not None
    assert cluster.now - since >= LIMIT
    assert (await router.programs())["b"]["waiting_seconds"] is None
    assert router.held == 0
    assert await router.metric("thunderagent_refusals_total", code="hold_limit") == 1


async def test_no_limit_holds_on(stack: Stack) -> None:
    """0 means no limit: the turn waits until there is room."""
    router, _ = await full_router(
        stack, clock_speed=20_000.0, scheduler={"max_hold_seconds": 0.0, "program_ttl_seconds": 0.0}
    )
    turn = router.start_chat(words(1000, "beta"), "b")
    await until(lambda: router.held == 1)
    waited_at = router.gateway.clock.now()
    await until(lambda: router.gateway.clock.now() > waited_at + 1900)
    assert router.held == 1
    await router.release("a")
    assert (await turn)[0] == 200


async def test_queue_over_its_limit_refuses(stack: Stack) -> None:
    """The number of waiting turns is bounded; the one over it is told at once."""
    router, _ = await full_router(stack, scheduler={"max_held_turns": 1})
    held = router.start_chat(words(1000, "beta"), "b")
    await until(lambda: router.held == 1)
    status, answer = await router.post(CHAT, chat(words(1000, "cees"), "c"))
    assert (status, answer["error"]["code"]) == (503, "queue_full")
    await router.release("a")
    assert (await held)[0] == 200
    assert set(await router.programs()) == {"b"}


async def test_nothing_is_sent_during_a_hold_by_default(stack: Stack) -> None:
    """The status stays open until the backend answers."""
    router, _ = await full_router(stack)
    client = await router.raw(chat(words(1000, "beta"), "b", stream=True))
    await until(lambda: router.held == 1)
    await router.release("b")
    assert (await client.head()).startswith("HTTP/1.1 409")


async def test_stream_is_kept_alive_by_comments(stack: Stack) -> None:
    """With keep-alive on a held stream gets comments, then its answer on the same connection."""
    router, _ = await full_router(stack, hold_keepalive_seconds=0.02)
    client = await router.raw(chat(words(1000, "beta"), "b", stream=True))
    assert "text/event-stream" in await client.head()
    chunks = client.chunks()
    assert [await anext(chunks) for _ in range(3)] == [b": waiting for a place\n\n"] * 3
    await router.release("a")
    received, is_whole = await client.rest()
    assert is_whole
    assert received.endswith(b"data: [DONE]\n\n")
    assert not received.rpartition(b": waiting for a place\n\n")[2].startswith(b":")


async def test_whole_answer_is_kept_alive_by_white_space(stack: Stack) -> None:
    """White space before JSON is JSON: the client parses the answer as ever."""
    router, _ = await full_router(stack, hold_keepalive_seconds=0.02)
    client = await router.raw(chat(words(1000, "beta"), "b"))
    assert "application/json" in await client.head()
    assert await anext(client.chunks()) == b" "
    await router.release("a")
    received, is_whole = await client.rest()
    assert is_whole
    assert json.loads(received)["usage"]["completion_tokens"] == 4


async def test_turn_that_need_not_wait_is_not_touched_by_keepalive(stack: Stack) -> None:
    """The backend's own status and header are the client's where nothing was held."""
    fake = await stack.fake(json_answer(b'{"error":{}}', "418 I'm a teapot", "X-Own: 1"))
    router = await stack.router(fake, hold_keepalive_seconds=0.2)
    async with router.session.post(router.url + CHAT, json=chat()) as answer:
        assert (answer.status, answer.headers["X-Own"]) == (418, "1")


@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
@pytest.mark.parametrize("stream", [True, False])
async def test_refusal_after_keepalive_is_told_in_the_body(stack: Stack, path: str, stream: bool) -> None:
    """The 200 is out: the error comes as the stream's event, or as the body's object."""
    router, _ = await full_router(stack, hold_keepalive_seconds=0.02)
    client = await router.raw(chat(words(1000, "beta"), "b", stream=stream), path)
    assert (await client.head()).startswith("HTTP/1.1 200")
    await anext(client.chunks())
    await router.release("b")
    received, is_whole = await client.rest()
    assert is_whole
    text = received.replace(b": waiting for a place\n\n", b"").strip()
    if stream:
        event, _, done = text.partition(b"\n\n")
        assert done == (b"data: [DONE]" if path == CHAT else b"")
        assert event.startswith(b"event: error\ndata: ") == (path == "/v1/messages")
        text = event.partition(b"data: ")[2]
    assert json.loads(text)["error"]["code"] == "program_released"


@pytest.mark.parametrize("stream", [True, False])
async def test_backends_error_after_keepalive_is_told_in_the_body(stack: Stack, stream: bool) -> None:
    """What would have been a status is an error object in an answer already begun."""
    fake = await stack.fake(capacity_tokens=1200)
    usage = b'{"choices":[],"usage":{"prompt_tokens":1000,"completion_tokens":1}}'
    fake.script = json_answer(usage)
    router = await stack.router(fake, hold_keepalive_seconds=0.02)
    await router.chat(words(1000), "a")
    fake.script = json_answer(b'{"error":{"message":"no","code":"bad"}}', "400 Bad Request")
    client = await router.raw(chat(words(1000, "beta"), "b", stream=stream))
    await client.head()
    await anext(client.chunks())
    await router.release("a")
    received, is_whole = await client.rest()
    assert is_whole
    assert b'"code":"bad"' in received
    assert await router.metric("thunderagent_turns_total", outcome="backend_rejected") == 1


async def test_client_that_leaves_during_keepalive_is_forgotten(stack: Stack) -> None:
    """Leaving between two keep-alives ends the wait."""
    router, _ = await full_router(stack, hold_keepalive_seconds=0.02)
    client = await router.raw(chat(words(1000, "beta"), "b", stream=True))
    await client.head()
    await client.leave()
    await until(lambda: router.held == 0)


async def test_growing_programs_are_paused_and_resumed(stack: Stack) -> None:
    """Two programs that outgrow the cache take turns, and both end."""

    async def answer(exchange: Exchange) -> None:
        tokens = len(exchange.body) // 4
        usage = b'{"choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":5}}' % tokens
        await exchange.send(STREAM_HEAD, chunked(b"data: " + usage + b"\n\n", b"data: [DONE]\n\n"), b"0\r\n\r\n")

    router = await stack.router(
        await stack.fake(answer, capacity_tokens=2000),
        clock_speed=200.0,
        scheduler={"max_hold_seconds": LIMIT},
    )

    async def program(name: str) -> None:
        for size in (300, 600, 900, 1200):
            async with router.session.post(router.url + CHAT, json=chat(words(size), name, stream=True)) as reply:
                assert reply.status == 200
                assert (await reply.read()).endswith(b"data: [DONE]\n\n")
        await router.release(name)

    await asyncio.gather(program("x"), program("y"))
    assert await router.metric("thunderagent_pauses_total") >= 1
    assert await router.metric("thunderagent_resumes_total") >= 1
    assert await router.programs() == {}


async def test_held_turn_keeps_one_copy_of_its_body(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rewritten body is what is sent; the client's own bytes are let go before the wait."""
    dropped: list[int] = []

    class Body(bytes):
        def __del__(self) -> None:
            dropped.append(len(self))

    engine = await stack.engine()
    router = await stack.router(engine)
    await engine.kill()
    await until(lambda: not router.gateway.scheduler.cluster.backends)
    read_plain = web.BaseRequest.read

    async def read(request: web.BaseRequest) -> bytes:
        request._read_bytes = Body(await read_plain(request))
        return request._read_bytes

    monkeypatch.setattr(web.BaseRequest, "read", read)
    turn = router.start_chat("word" * 1000, "p")
    await until(lambda: router.held == 1)
    gc.collect()
    assert len(dropped) == 1
    await engine.start()
    assert (await turn)[0] == 200

"""Backends that die: before the first byte another one takes the turn, after it the client is told."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from router_harness import CHAT, Stack, chat, until
from structlog.testing import capture_logs

from thunderagent.core.ids import BackendId
from thunderagent.server.state import STATE
from thunderagent.testing.fake_backend import CHAT_ANSWER, STREAM_HEAD, Exchange, chunked

APIS = {
    "/v1/chat/completions": b"data: ",
    "/v1/completions": b"data: ",
    "/v1/responses": b"event: error\ndata: ",
    "/v1/messages": b"event: error\ndata: ",
}


async def hang_up(exchange: Exchange) -> None:
    """Read the request and close."""


@pytest.mark.parametrize("path", APIS)
async def test_engine_killed_mid_stream_is_told_and_cut(stack: Stack, path: str) -> None:
    """The client gets the API's error event and then a cut connection, never a clean end; the program goes on."""
    engine = await stack.engine(speed=1.0)
    router = await stack.router(engine, await stack.engine())
    body = {**chat(program="p", stream=True, max_tokens=2000), "prompt": "hi", "input": "hi"}
    client = await router.raw(body, path)
    await client.head()
    await anext(client.chunks())
    with capture_logs() as logged:
        await engine.kill()
        received, is_whole = await client.rest()
        await until(lambda: not router.gateway.tickets)
    assert not is_whole
    line = next(entry for entry in logged if entry["event"] == "turn.finished")
    assert (line["log_level"], line["outcome"]) == ("warning", "backend_disconnected")
    assert line["error"] == "the backend closed the connection before the answer's end"
    assert b"[DONE]" not in received
    last = received.rstrip(b"\n").split(b"\n\n")[-1]
    assert last.startswith(APIS[path])
    assert b"backend_disconnected" in last
    shown = (await router.programs())["p"]
    assert (shown["status"], shown["turns_running"]) == ("acting", 0)
    assert await router.metric("thunderagent_turns_total", outcome="backend_disconnected") == 1
    await router.chat("again", "p")


async def test_engine_killed_inside_a_whole_answer_is_a_502(stack: Stack) -> None:
    """A whole answer cut short is no answer: the client sees a clean error."""
    engine = await stack.engine()
    router = await stack.router(engine)
    await router.post("/v1/embeddings", chat())
    async with router.session.post(f"{engine.url}/fault", json={"kind": "cut", "requests": 1}) as answer:
        assert answer.status == 200
    status, body = await router.post(CHAT, chat(program="p"))
    assert (status, body["error"]["code"]) == (502, "backend_disconnected")
    assert (await router.programs())["p"]["status"] == "acting"


async def test_engine_killed_before_the_first_byte_is_passed_over(stack: Stack) -> None:
    """A turn that waits for its prefill when the engine dies is answered by the other one."""
    engine, spare = await stack.engine(speed=0.001), await stack.engine()
    router = await stack.router(engine, spare)
    turn = router.start_chat("hi", "p")
    await until(lambda: engine.running == 1)
    await engine.kill()
    assert (await turn)[0] == 200
    assert (await router.programs())["p"]["backend"] == spare.url
    assert await router.metric("thunderagent_forward_failures_total", backend=engine.url) == 1


async def test_refused_connection_is_passed_over(stack: Stack) -> None:
    """A backend where nobody listens costs the client nothing, neither on a new program nor on a known one."""
    engine, spare = await stack.engine(), await stack.engine()
    router = await stack.router(engine, spare, metrics_interval_seconds=60.0)
    await router.chat(program="p")
    home = (await router.programs())["p"]["backend"]
    await (engine if home == engine.url else spare).kill()
    for program in "pq":
        await router.chat("again", program)
    backends = {shown["backend"] for shown in (await router.programs()).values()}
    assert backends == {engine.url, spare.url} - {home}


async def test_all_backends_down_holds_the_turn_until_one_is_back(stack: Stack) -> None:
    """A rolling restart queues turns instead of refusing them."""
    engine = await stack.engine()
    router = await stack.router(engine)
    await router.chat(program="p")
    await engine.kill()
    turns = [router.start_chat("more", program) for program in ("p", "q", None)]
    await until(lambda: not router.gateway.scheduler.cluster.backends and router.held == 3)
    assert (await router.get("/readyz"))[0] == 503
    shown = (await router.get("/health"))[1]["per_backend"][engine.url]
    assert (shown["healthy"], shown["available"], shown["total"]) == (False, False, 0)
    await engine.start()
    assert [(await turn)[0] for turn in turns] == [200] * 3
    assert (await router.get("/readyz"))[0] == 200


async def test_backend_that_never_answered_makes_no_router_ready(stack: Stack) -> None:
    """One failed look does not make it failed, so that turns may go there; but nobody has seen it work."""
    fake = await stack.fake()
    await fake.kill()
    router = await stack.router(fake, metrics_interval_seconds=60.0)
    assert router.gateway.scheduler.cluster.backends
    assert await router.get("/readyz") == (503, {"status": "no backend takes turns"})
    await fake.start()
    for entry in router.app[STATE].pool.watched.values():
        entry.look_now.set()
    await until(lambda: all(entry.observed_at for entry in router.app[STATE].pool.watched.values()))
    assert await router.get("/readyz") == (200, {"status": "ok"})


async def test_one_backend_of_two_that_answers_makes_the_router_ready(stack: Stack) -> None:
    """The first look at the other one failed."""
    gone = await stack.fake()
    await gone.kill()
    router = await stack.router(gone, await stack.fake(), metrics_interval_seconds=60.0)
    assert await router.get("/readyz") == (200, {"status": "ok"})


async def test_router_is_not_ready_before_each_backend_was_looked_at(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the look at one takes longer than the start waits; one that is removed then is waited for no more."""
    monkeypatch.setattr("thunderagent.server.app._FIRST_LOOK_SECONDS", 0.05)
    slow = await stack.fake(pages={"/health": None})
    router = await stack.router(await stack.fake(), slow)
    pool = router.app[STATE].pool
    await until(lambda: any(entry.observed_at for entry in pool.watched.values()))
    assert await router.get("/readyz") == (503, {"status": "backends are not looked at yet"})
    pool.remove(pool.watched[BackendId(slow.url)])
    assert await router.get("/readyz") == (200, {"status": "ok"})


async def test_all_backends_down_is_a_503_at_the_hold_limit(stack: Stack) -> None:
    """The wait for a backend is bounded, too, and says what is missing."""
    engine = await stack.engine()
    router = await stack.router(
        engine, clock_speed=100.0, scheduler={"max_hold_seconds": 60.0, "retry_seconds": 10.0}
    )
    await engine.kill()
    async with router.session.post(router.url + CHAT, json=chat(program="p")) as answer:
        error = (await answer.json())["error"]
        assert (answer.status, error["code"], answer.headers["Retry-After"]) == (503, "no_backend", "5")


async def test_program_of_a_lost_backend_is_unbound_at_once(stack: Stack) -> None:
    """Idle programs do not hold tokens of a dead engine; their next turn goes elsewhere."""
    engine, spare = await stack.engine(), await stack.engine()
    router = await stack.router(engine, spare)
    for index in range(4):
        await router.chat(program=f"p{index}")
    await engine.kill()
    await until(lambda: len(router.gateway.scheduler.cluster.backends) == 1)
    shown = (await router.get("/health"))[1]["per_backend"][engine.url]
    assert (shown["total"], shown["accounted_tokens"]) == (0, 0)
    for index in range(4):
        await router.chat("more", f"p{index}")
    assert {shown["backend"] for shown in (await router.programs()).values()} == {spare.url}


async def test_poison_request_does_not_reach_every_backend(stack: Stack) -> None:
    """A request under which two engines broke is answered 502 and not handed to a third."""
    fakes = [await stack.fake(hang_up) for _ in range(4)]
    router = await stack.router(*fakes)
    status, answer = await router.post(CHAT, chat(program="p"))
    assert (status, answer["error"]["code"]) == (502, "backend_unavailable")
    assert sum(bool(fake.exchanges) for fake in fakes) == 2
    assert (await router.programs())["p"]["turns_running"] == 0
    assert (await router.get("/health"))[1]["per_backend"][fakes[0].url]["healthy"] is True


async def test_nothing_is_sent_twice_after_the_first_byte(stack: Stack) -> None:
    """A stream that broke is not tried elsewhere: the client has seen part of it."""

    async def break_off(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD, chunked(b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'))

    fakes = [await stack.fake(break_off) for _ in range(2)]
    router = await stack.router(*fakes)
    client = await router.raw(chat(stream=True))
    await client.head()
    received, is_whole = await client.rest()
    assert (is_whole, received.count(b'"content":"a"')) == (False, 1)
    assert sum(len(fake.exchanges) for fake in fakes) == 1


async def test_hanging_backend_does_not_hang_others(stack: Stack) -> None:
    """Turns on a backend that answers nothing wait there; the other one serves on, and health stays."""
    release = asyncio.Event()

    async def stall(exchange: Exchange) -> None:
        await release.wait()
        await exchange.send(CHAT_ANSWER)

    stuck, good = await stack.fake(stall), await stack.fake()
    router = await stack.router(stuck, good, policy="round-robin")
    turns = [router.start_chat() for _ in range(6)]
    await until(lambda: sum(turn.done() for turn in turns) == 3)
    assert len(good.exchanges) == 3
    release.set()
    assert [(await turn)[0] for turn in turns] == [200] * 6


async def test_failing_health_check_takes_a_backend_out_and_in(stack: Stack) -> None:
    """Several failed checks in a row, and one good one: counters and programs survive flapping."""
    fakes = [await stack.fake() for _ in range(2)]
    router = await stack.router(*fakes, metrics_interval_seconds=0.02)
    for _ in range(3):
        fakes[0].is_healthy = False
        await until(lambda: len(router.gateway.scheduler.cluster.backends) == 1)
        await router.chat(program="p")
        assert (await router.programs())["p"]["backend"] == fakes[1].url
        fakes[0].is_healthy = True
        await until(lambda: len(router.gateway.scheduler.cluster.backends) == 2)
    assert (await router.get("/debug/invariants"))[1] == {"violations": []}


async def test_faults_of_many_kinds_leave_nothing_behind(stack: Stack) -> None:
    """Engines that refuse, cut, die and answer 500 in turn: every client is answered, the books balance."""
    engines = [await stack.engine() for _ in range(2)]
    router = await stack.router(*engines)
    faults: list[dict[str, Any]] = [
        {"kind": "refuse"},
        {"kind": "status", "status": 500},
        {"kind": "cut", "after_chunks": 2},
        {"kind": "engine_death", "after_chunks": 1},
        {"kind": "no_usage"},
    ]
    for fault in faults:
        async with router.session.post(f"{engines[0].url}/fault", json={**fault, "requests": 4}) as answer:
            assert answer.status == 200

    async def turn(index: int) -> int:
        body = json.dumps(chat("hi", f"p{index % 7}", stream=index % 2 == 0)).encode()
        try:
            async with router.session.post(router.url + CHAT, data=body) as answer:
                await answer.read()
                return answer.status
        except aiohttp.ClientPayloadError:
            return 0  # the stream was cut

    statuses = [await turn(index) for index in range(40)]
    assert statuses.count(200) >= 20
    assert set(statuses) <= {200, 0, 500, 502}
    assert (router.held, router.running) == (0, 0)
    shown = (await router.programs()).values()
    assert {program["status"] for program in shown} == {"acting"}


async def test_removed_backend_leaves_no_series_of_an_unscheduled_request(stack: Stack) -> None:
    """A request that fails after the removal does not bring the label back."""
    is_removed = asyncio.Event()

    async def hang_up(exchange: Exchange) -> None:
        await is_removed.wait()

    fake = await stack.fake(hang_up)
    router = await stack.router(fake)
    request = asyncio.create_task(router.post("/v1/embeddings", chat()))
    await until(lambda: fake.exchanges)
    assert (await router.delete(f"/backends?url={fake.url}"))[0] == 200
    is_removed.set()
    assert (await request)[0] == 502
    async with router.session.get(router.url + "/metrics") as answer:
        assert fake.url not in await answer.text()

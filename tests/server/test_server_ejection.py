"""Backends that look healthy and answer nothing: counted failures, and ejection of those that fail every turn."""

from __future__ import annotations

import asyncio

import pytest
from attrs import define
from router_harness import CHAT, Router, Stack, chat, until
from structlog.testing import capture_logs

from thunderagent.backends import BackendConfig, BackendPool, WatchedBackend, WatchSettings
from thunderagent.core.ids import BackendId
from thunderagent.testing.fake_backend import (
    CHAT_ANSWER,
    STREAM_HEAD,
    Exchange,
    FakeBackend,
    chunked,
    json_answer,
)
from thunderagent.upstream.client import ForwardFailed

BROKEN = json_answer(b'{"error":{"message":"CUDA error"}}', "500 Internal Server Error")
CONTENT = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
REFUSED = ForwardFailed("connect_timeout", sent=False, detail="busy")


@define
class HandClock:
    """Seconds that pass when the test says so."""

    reading: float = 1000.0

    def __call__(self) -> float:
        return self.reading


def entry_of(router: Router, backend: FakeBackend) -> WatchedBackend:
    """What the router knows of a backend."""
    return router.state.pool.watched[BackendId(backend.url)]


def available(router: Router) -> list[str]:
    """The backends that take turns."""
    return [entry.id for entry in router.gateway.scheduler.cluster.backends]


async def looked_at(backend: FakeBackend, router: Router, times: int = 2) -> None:
    """Return when so many further looks have found it healthy; two, for the first may be under way already."""
    entry = entry_of(router, backend)
    for _ in range(times):
        seen_at = entry.observed_at
        await until(lambda: entry.observed_at != seen_at)  # noqa: B023


async def fill(router: Router, failures: int) -> None:
    """Turns of new programs until so many failed; those of none: until both backends have answered one."""
    statuses: list[int] = []
    while statuses.count(500) < failures or len(statuses) < 4:
        statuses.append((await router.post(CHAT, chat()))[0])
        assert len(statuses) < 50


async def test_burst_of_failed_connections_counts_once(stack: Stack) -> None:
    """They happened at one moment, and are not three in a row; the look that follows at once decides further."""
    fake = await stack.fake()
    router = await stack.router(fake, metrics_interval_seconds=60.0)
    pool, entry = router.state.pool, entry_of(router, fake)
    seen_at = entry.observed_at
    for _ in range(10):
        pool.note_failure(entry, REFUSED)
    assert (entry.health.failures, entry.health.is_failed) == (1, False)
    await until(lambda: entry.observed_at != seen_at)
    assert (entry.health.failures, entry.health.is_failed, available(router)) == (0, False, [fake.url])


async def test_failed_connections_with_failed_looks_between_take_a_backend_out(stack: Stack) -> None:
    """A backend where nobody listens is given up after a turn and two looks, or a look less with another turn."""
    fake = await stack.fake()
    router = await stack.router(fake, metrics_interval_seconds=0.05)
    await fake.kill()
    status = router.start_chat(program="p")
    await until(lambda: not available(router))
    await fake.start()
    assert (await status)[0] == 200


async def test_backend_that_fails_every_turn_is_ejected(stack: Stack) -> None:
    """It looks healthy and always emptiest; after five turns new programs go elsewhere, and its own follow."""
    bad, good = await stack.fake(BROKEN), await stack.fake()
    router = await stack.router(bad, good)
    with capture_logs() as logged:
        statuses = [(await router.post(CHAT, chat(program=f"p{index}")))[0] for index in range(20)]
    assert statuses.count(500) == 5
    assert (len(bad.exchanges), available(router)) == (5, [good.url])
    failed = [entry for entry in logged if entry["event"] == "backend.failed"]
    assert [(entry["backend"], entry["error"]) for entry in failed] == [(bad.url, "5 turns in a row failed")]
    for index in range(20):
        await router.chat("again", f"p{index}")
    await looked_at(bad, router)
    shown = {entry["url"]: entry for entry in (await router.get("/backends"))[1]["backends"]}
    assert (shown[bad.url]["healthy"], shown[bad.url]["last_error"]) == (False, "5 turns in a row failed")


async def test_backend_that_breaks_every_stream_is_ejected(stack: Stack) -> None:
    """The status was 200 each time; that the client leaves at the error does not excuse the backend."""

    async def break_off(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD, chunked(CONTENT))

    bad, good = await stack.fake(break_off), await stack.fake()
    router = await stack.router(bad, good, policy="round-robin")
    for _ in range(10):
        client = await router.raw(chat(stream=True))
        await client.reader.read()
    await until(lambda: not router.gateway.tickets)
    assert (len(bad.exchanges), available(router)) == (5, [good.url])


async def test_ejected_backend_comes_back_after_its_time(stack: Stack) -> None:
    """A healthy look is not enough before; each time lasts twice as long, until a turn completes."""
    bad, good = await stack.fake(BROKEN), await stack.fake()
    router = await stack.router(bad, good, metrics_interval_seconds=0.02)
    router.state.pool.now = clock = HandClock()
    for seconds in (10.0, 20.0, 40.0, 80.0, 120.0, 120.0):
        await fill(router, 5)
        assert available(router) == [good.url]
        clock.reading += seconds - 1.0
        await looked_at(bad, router)
        assert available(router) == [good.url]
        clock.reading += 1.0
        await until(lambda: len(available(router)) == 2)
    bad.script = CHAT_ANSWER
    await fill(router, 0)
    bad.script = BROKEN
    await fill(router, 5)
    clock.reading += 10.0
    await until(lambda: len(available(router)) == 2)


async def test_last_backend_is_never_ejected(stack: Stack) -> None:
    """An error is an answer; a turn that is held for want of a backend has none."""
    bad, other = await stack.fake(BROKEN), await stack.fake(models=("other",))
    router = await stack.router(bad, other)
    statuses = [(await router.post(CHAT, chat(program="p")))[0] for _ in range(12)]
    assert statuses == [500] * 12
    assert available(router) == [bad.url, other.url]


@pytest.mark.parametrize("status", ["400 Bad Request", "404 Not Found", "429 Too Many Requests"])
async def test_rejected_turns_do_not_eject(stack: Stack, status: str) -> None:
    """What a client did wrong says nothing of the backend."""
    fakes = [await stack.fake(json_answer(b'{"error":{"message":"no"}}', status)) for _ in range(2)]
    router = await stack.router(*fakes)
    for _ in range(12):
        await router.post(CHAT, chat(program="p"))
    assert len(available(router)) == 2


async def test_clients_that_leave_do_not_eject(stack: Stack) -> None:
    """Their going is no failure of the backend."""
    engines = [await stack.engine(speed=0.01) for _ in range(2)]
    router = await stack.router(*engines, policy="round-robin")
    for index in range(12):
        client = await router.raw(chat(stream=True))
        await until(lambda: engines[index % 2].running == 1)  # noqa: B023
        await client.leave()
        await until(lambda: not router.gateway.tickets)
    assert len(available(router)) == 2


async def test_completed_turn_between_failures_keeps_a_backend(stack: Stack) -> None:
    """One bad request in a few is not the backend's end."""
    answers = iter(([BROKEN] * 4 + [CHAT_ANSWER]) * 4)

    async def sometimes(exchange: Exchange) -> None:
        await exchange.send(next(answers))

    fakes = [await stack.fake(sometimes), await stack.fake()]
    router = await stack.router(*fakes, policy="round-robin")
    statuses = [(await router.post(CHAT, chat()))[0] for _ in range(40)]
    assert (statuses.count(500), len(available(router))) == (16, 2)


async def test_pool_closes_though_a_look_was_just_asked_for(stack: Stack) -> None:
    """What wakes the watching task and what ends it may come in the same round of the loop."""
    fake = await stack.fake()
    pool = BackendPool(WatchSettings(), lambda event: None)
    entry = pool.add(BackendConfig(fake.url))
    await pool.wait_first_looks(5.0)
    await asyncio.sleep(0.05)
    entry.look_now.set()
    await asyncio.wait_for(pool.close(), 5.0)
    assert entry.task is not None
    assert entry.task.done()

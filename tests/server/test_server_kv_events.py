"""The follower on real sockets: both directions, gaps, replays, restarts; and a daemon that follows."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import quote

import pytest
import structlog.testing
import zmq.asyncio
from kv_samples import CLEARED, Publisher, removed, stored
from router_harness import Router, Stack, chat, until

from thunderagent.backends import BackendConfig
from thunderagent.config import Settings
from thunderagent.core.ids import BackendId
from thunderagent.errors import ConfigError
from thunderagent.kv_events import follower as follower_module
from thunderagent.kv_events import following
from thunderagent.kv_events.follower import KvFollower
from thunderagent.kv_events.mirror import CacheMirror, SessionBlocks
from thunderagent.kv_events.sources import read_sources
from thunderagent.server.app import create_app
from thunderagent.testing.fake_backend import CHAT_ANSWER, Exchange, json_answer


class Bench:
    """A publisher and a follower of it, and what that one reported last of each session."""

    def __init__(self) -> None:
        self.context = zmq.asyncio.Context()
        self.told: dict[str, int | None] = {}
        self.publisher = Publisher(self.context)
        self.tasks: list[asyncio.Task[None]] = []

    def report(self, changes: Sequence[SessionBlocks]) -> None:
        self.told.update({change.session: change.prefix_tokens for change in changes})

    def follow(self) -> KvFollower:
        (source,) = read_sources(json.dumps({"0": self.publisher.page()}).encode(), "http://127.0.0.1:8000")
        follower = KvFollower("b", source, self.report, self.context)
        self.tasks.append(asyncio.ensure_future(follower.run()))
        return follower

    async def reach(self, follower: KvFollower) -> None:
        """Send messages about nobody until one arrives: subscriptions take a moment."""

        async def once() -> None:
            while follower.order.last_live < 0:
                await self.publisher.send(removed(999_999))
                await asyncio.sleep(0.02)

        await asyncio.wait_for(once(), 5)

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.publisher.stop()
        self.context.destroy(linger=0)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.close()


async def test_follower_connects_to_an_engine_that_binds(bench: Bench) -> None:
    """``tcp://*:5557``, the usual way."""
    bench.publisher.start()
    follower = bench.follow()
    await bench.reach(follower)
    await bench.publisher.send(stored(1, 2, session="p"))
    await until(lambda: bench.told == {"p": 64})
    await bench.publisher.send(removed(2))
    await until(lambda: bench.told == {"p": 32})
    assert (follower.gaps, follower.unreadable) == (0, 0)


async def test_follower_binds_for_an_engine_that_connects(bench: Bench) -> None:
    """An endpoint that names a host: vLLM connects to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    bench.publisher.binds, bench.publisher.connect_to = False, f"tcp://127.0.0.1:{port}"
    bench.publisher.start()
    follower = bench.follow()
    await bench.reach(follower)
    await bench.publisher.send(stored(1, session="p"))
    await until(lambda: bench.told == {"p": 32})


async def test_endpoint_that_the_engine_bound_itself_is_connected_to(bench: Bench) -> None:
    """``tcp://*:0`` is told as the address that it became: it names a host, but the port is taken."""
    bench.publisher.start()
    bench.publisher.endpoint = bench.publisher.endpoint.replace("*", "127.0.0.1")
    follower = bench.follow()
    await bench.reach(follower)
    await bench.publisher.send(stored(1, session="p"))
    await until(lambda: bench.told == {"p": 32})


async def test_what_was_before_is_replayed_at_the_start(bench: Bench) -> None:
    """The router may start after the engine."""
    bench.publisher.start()
    await bench.publisher.send(stored(1, session="p"))
    await bench.publisher.send(stored(2, parent=1, session="p"))
    bench.follow()
    await until(lambda: bench.told == {"p": 64})


async def test_missed_messages_are_replayed(bench: Bench) -> None:
    """In order, before what came behind them; nothing is given up."""
    bench.publisher.start()
    follower = bench.follow()
    await bench.reach(follower)
    await bench.publisher.send(stored(1, session="p"), lose=True)
    await bench.publisher.send(stored(2, parent=1, session="p"), lose=True)
    await bench.publisher.send(stored(3, parent=2, session="p"))
    await until(lambda: bench.told == {"p": 96})
    assert follower.gaps == 0
    assert bench.publisher.replays == 2


@pytest.mark.parametrize("has_replay", [True, False])
async def test_messages_that_cannot_be_had_again_leave_nothing_known(bench: Bench, has_replay: bool) -> None:
    """The buffer ran over, or there is none: what was known may be wrong. New conversations are known again."""
    bench.publisher.has_replay = has_replay
    bench.publisher.start()
    follower = bench.follow()
    if not has_replay:
        await asyncio.sleep(0.1)
    await bench.reach(follower)
    await bench.publisher.send(stored(1, session="p"))
    await until(lambda: bench.told == {"p": 32})
    await bench.publisher.send(removed(1), lose=True)
    bench.publisher.forget()
    await bench.publisher.send(stored(7, session="q"))
    await until(lambda: bench.told == {"p": None, "q": 32})
    assert follower.gaps == 1
    assert not follower.mirror.is_complete
    await bench.publisher.send(stored(2, parent=1, session="p"))
    await bench.publisher.send(stored(8, parent=7, session="q"))
    await until(lambda: bench.told == {"p": None, "q": 64})


async def test_long_replay_is_taken_whole_while_others_work(bench: Bench) -> None:
    """Ten thousand steps at once, as vLLM keeps them: none is dropped, and the loop is never held for long."""
    bench.publisher.keeps = 10_000
    bench.publisher.start()
    for number in range(10_000):
        await bench.publisher.send(stored(number + 1, parent=number or None, session="p"), lose=True)
    follower, longest_seconds, loop = bench.follow(), 0.0, asyncio.get_running_loop()
    while follower.order.next_sequence < 10_000:
        began_at = loop.time()
        await asyncio.sleep(0.001)
        longest_seconds = max(longest_seconds, loop.time() - began_at)
    await until(lambda: bench.told == {"p": 320_000})
    assert (follower.gaps, follower.mirror.is_complete) == (0, True)
    assert longest_seconds < 0.2


async def test_long_messages_do_not_hold_the_loop(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefills of 16,000 tokens that have queued: other work has its turn after a time, not after a count."""
    monkeypatch.setattr(follower_module, "_SECONDS_IN_A_ROW", 0)
    bench.publisher.start()
    follower = bench.follow()
    await bench.reach(follower)
    for number in range(200):
        blocks = range(1 + 512 * number, 513 + 512 * number)
        await bench.publisher.send(stored(*blocks, session="p"))
    taken = [follower.order.next_sequence]
    while taken[-1] < bench.publisher.sequence:
        await asyncio.sleep(0)
        taken.append(follower.order.next_sequence)
    assert max(after - before for before, after in itertools.pairwise(taken)) == 1


async def test_following_ends_in_the_midst_of_a_replay(bench: Bench) -> None:
    """A cancellation that comes while messages are there already is not swallowed: else shutdown hangs."""
    bench.publisher.keeps = 10_000
    bench.publisher.start()
    for number in range(10_000):
        await bench.publisher.send(removed(number), lose=True)
    follower = bench.follow()
    await until(lambda: follower.order.next_sequence > 100)
    (task,) = bench.tasks
    task.cancel()
    await asyncio.wait((task,), timeout=2)
    assert task.cancelled()
    assert follower.order.next_sequence < 10_000


async def test_engine_that_starts_anew_has_an_empty_cache(bench: Bench) -> None:
    """Its numbers begin again, the first of them lost."""
    bench.publisher.start()
    follower = bench.follow()
    await bench.reach(follower)
    await bench.publisher.send(stored(1, session="p"))
    await until(lambda: bench.told == {"p": 32})
    bench.publisher.restart()
    await bench.publisher.send(stored(1, session="q"), lose=True)
    await bench.publisher.send(stored(2, parent=1, session="q"))
    await until(lambda: bench.told == {"p": 0, "q": 64})


@pytest.mark.parametrize("is_gap", [False, True])
async def test_engine_that_starts_anew_and_is_past_our_number_is_another(bench: Bench, is_gap: bool) -> None:
    """Its first message that arrives has the number that comes next, or a later one: the one before is another."""
    bench.publisher.start()
    follower = bench.follow()
    await bench.reach(follower)
    await bench.publisher.send(stored(1, session="p"))
    await until(lambda: bench.told == {"p": 32})
    taken = bench.publisher.sequence
    bench.publisher.restart()
    if is_gap:  # its time does not matter
        bench.publisher.clock_seconds = 1.0
    await bench.publisher.send(stored(1, session="q"), lose=True)
    for number in range(1, taken + is_gap):
        await bench.publisher.send(removed(1000 + number), lose=True)
    await bench.publisher.send(stored(2, parent=1, session="q"))
    await until(lambda: bench.told == {"p": 0, "q": 64})
    assert (follower.gaps, follower.mirror.is_complete) == (0, True)


async def test_engine_that_starts_anew_and_has_fewer_messages_is_another(bench: Bench) -> None:
    """A replay was ahead of the subscription: the new one's number is between the two."""
    bench.publisher.start()
    follower = bench.follow()
    await bench.reach(follower)
    for number in range(1, 6):
        await bench.publisher.send(stored(number, session="p"), lose=True)
    await follower._replay()
    await until(lambda: bench.told == {"p": 32})
    between = bench.publisher.sequence - 2
    bench.publisher.restart()
    for number in range(between):
        await bench.publisher.send(removed(1000 + number), lose=True)
    await bench.publisher.send(stored(2, session="q"))
    await until(lambda: bench.told == {"p": 0, "q": 32})


async def test_engine_that_was_idle_is_the_same(bench: Bench) -> None:
    """It is asked for one message that is known, and all stays known."""
    bench.publisher.start()
    follower = bench.follow()
    await bench.reach(follower)
    await bench.publisher.send(stored(1, session="p"))
    await until(lambda: bench.told == {"p": 32})
    bench.publisher.clock_seconds += 10.0
    await bench.publisher.send(stored(2, parent=1, session="p"))
    await until(lambda: bench.told == {"p": 64})
    assert (follower.gaps, bench.publisher.replays) == (0, 2)


async def test_idle_engine_that_does_not_answer_stays_known(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """No message is missing. It is asked once, and no more until a replay is answered again."""
    bench.publisher.start()
    follower = bench.follow()
    await bench.reach(follower)
    await bench.publisher.send(stored(1, session="p"))
    await until(lambda: bench.told == {"p": 32})
    monkeypatch.setattr(follower_module, "_REPLAY_SECONDS", 0.1)
    bench.publisher.stop_replays()
    with structlog.testing.capture_logs() as logs:
        for number in (2, 3):
            bench.publisher.clock_seconds += 10.0
            await bench.publisher.send(stored(number, parent=number - 1, session="p"))
        await until(lambda: bench.told == {"p": 96})
    assert follower.gaps == 0
    assert [line["tries"] for line in logs if line["event"] == "kv_events.no_replay"] == [1]


async def test_other_engine_whose_replay_does_not_end_leaves_nothing_known(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last message that was asked for is another: what it stored before is missing."""
    bench.publisher.start()
    follower = bench.follow()
    await bench.reach(follower)
    await bench.publisher.send(stored(1, session="p"))
    await until(lambda: bench.told == {"p": 32})
    monkeypatch.setattr(follower_module, "_REPLAY_SECONDS", 0.5)
    taken, asked = bench.publisher.sequence, bench.publisher.replays
    bench.publisher.restart()
    bench.publisher.unanswered = 3
    for number in range(taken):
        await bench.publisher.send(removed(1000 + number), lose=True)
    await bench.publisher.send(stored(2, session="q"))
    await until(lambda: bench.told == {"p": None, "q": 32})
    assert (bench.publisher.replays - asked, follower.gaps) == (3, 1)
    assert not follower.mirror.is_complete


async def test_replay_that_is_not_answered_is_asked_for_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the first two never comes; the third one has all."""
    monkeypatch.setattr(follower_module, "_REPLAY_SECONDS", 0.5)
    bench.publisher.start()
    bench.publisher.unanswered = 2
    for number in range(1, 5):
        await bench.publisher.send(stored(number, parent=number - 1 or None, session="p"))
    follower = bench.follow()
    await until(lambda: bench.publisher.replays == 3)
    await until(lambda: bench.told == {"p": 128})
    assert follower.gaps == 0


async def test_replay_that_is_never_answered_leaves_nothing_known(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came of it is not all; the log says so."""
    monkeypatch.setattr(follower_module, "_REPLAY_SECONDS", 0.5)
    bench.publisher.start()
    bench.publisher.unanswered = 3
    for number in range(1, 5):
        await bench.publisher.send(stored(number, parent=number - 1 or None, session="p"))
    with structlog.testing.capture_logs() as logs:
        follower = bench.follow()
        await until(lambda: bench.publisher.replays == 3)
        await until(lambda: follower.gaps == 1 and bench.told == {"p": None})
    assert [line["tries"] for line in logs if line["event"] == "kv_events.no_replay"] == [3]


@pytest.mark.parametrize("is_sent_elsewhere", [False, True])
async def test_idle_engine_at_a_taken_address_is_followed_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, is_sent_elsewhere: bool
) -> None:
    """``tcp://*:0``: a replay says that nothing was to come. If it brings something, that went somewhere else."""
    monkeypatch.setattr(follower_module, "_FIRST_MESSAGE_SECONDS", 0.05)
    monkeypatch.setattr(follower_module, "_LATE_SECONDS", 0.05)
    bench.publisher.start()
    bench.publisher.endpoint = bench.publisher.endpoint.replace("*", "127.0.0.1")
    await bench.publisher.send(stored(1, session="p"))
    bench.follow()
    (task,) = bench.tasks
    await until(lambda: bench.publisher.replays > 3)
    if is_sent_elsewhere:
        await bench.publisher.send(stored(2, parent=1, session="p"), lose=True)
        await asyncio.wait((task,), timeout=2)
        assert isinstance(task.exception(), zmq.ZMQError)
    else:
        await bench.publisher.send(stored(2, parent=1, session="p"))
        await until(lambda: bench.told == {"p": 64})
        assert not task.done()


async def test_reset_and_rubbish(bench: Bench) -> None:
    """A cleared cache is known to be empty; a message that cannot be read leaves nothing known, and is counted."""
    bench.publisher.start()
    follower = bench.follow()
    await bench.reach(follower)
    await bench.publisher.send(stored(1, session="p"))
    await bench.publisher.send(CLEARED)
    await until(lambda: bench.told == {"p": 0})
    await bench.publisher.send(stored(2, session="q"))
    await until(lambda: bench.told == {"p": 0, "q": 32})
    await bench.publisher.send_raw(b"rubbish")
    await until(lambda: bench.told == {"p": None, "q": None})
    assert follower.unreadable == 1


async def test_cache_is_not_known_whole_where_the_first_message_is_unreadable(bench: Bench) -> None:
    """What it stored is not known."""
    bench.publisher.start()
    await bench.publisher.send_raw(b"rubbish")
    await bench.publisher.send(stored(1, session="p"))
    follower = bench.follow()
    await until(lambda: bench.told == {"p": 32})
    assert (follower.unreadable, follower.mirror.is_complete) == (1, False)


async def test_report_that_fails_at_the_end_hides_no_cancellation(bench: Bench) -> None:
    """It is logged; the task ends as it was told to."""
    bench.publisher.start()
    follower = bench.follow()

    def fail(changes: Sequence[SessionBlocks]) -> None:
        raise KeyError("a bug")

    await bench.reach(follower)
    follower.report = fail
    (task,) = bench.tasks
    task.cancel()
    with structlog.testing.capture_logs() as logs:
        await asyncio.wait((task,), timeout=2)
    assert task.cancelled()
    assert [line["event"] for line in logs] == ["kv_events.report_failed"]


# A daemon that follows


async def test_follower_that_breaks_is_begun_anew(
    stack: Stack, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in reading events: it is told, and the events are followed again."""
    monkeypatch.setattr(following, "_AGAIN_SECONDS", 0.05)
    publisher = bench.publisher.start()
    await publisher.send(stored(1, session="p"))
    fake = await stack.fake(engine_with(lambda: {"0": publisher.page()}))
    broken = [KeyError("a bug")]
    take = CacheMirror.apply

    def apply(mirror: CacheMirror, events: Any) -> None:
        if broken:
            raise broken.pop()
        take(mirror, events)

    monkeypatch.setattr(CacheMirror, "apply", apply)
    router = await stack.router(fake, kv_events=True)
    assert (await router.post("/v1/chat/completions", chat("hi", "p")))[0] == 200
    await until(lambda: not broken)
    (program,) = router.gateway.scheduler.cluster.program_by_id.values()
    await publisher.send(stored(2, parent=1, session="p"))
    await until(lambda: program.cached)


async def test_program_with_another_script_is_found(stack: Stack, bench: Bench) -> None:
    """Its id goes into the header percent-encoded, and so into the events."""
    publisher = bench.publisher.start()
    fake = await stack.fake(engine_with(lambda: {"0": publisher.page()}))
    router = await stack.router(fake, kv_events=True)
    assert (await router.post("/v1/chat/completions", chat("hi", "агент-1")))[0] == 200
    await publisher.send(stored(1, session=quote("агент-1")))
    (program,) = router.gateway.scheduler.cluster.program_by_id.values()
    await until(lambda: program.cached)


def test_daemon_without_pyzmq_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """An extra; nothing else needs it."""
    for name in [name for name in sys.modules if name.startswith("thunderagent.kv_events")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "zmq", None)
    with pytest.raises(ConfigError, match=r"pip install 'thunderagent\[kv-events\]'"):
        create_app(Settings(backends=(BackendConfig("http://a"),), kv_events=True))


def engine_with(page: Callable[[], Any]) -> Callable[[Exchange], Awaitable[None]]:
    """A backend's script: answers turns, and says where its events are."""

    async def script(exchange: Exchange) -> None:
        body = json_answer(json.dumps(page()).encode()) if exchange.target == "/kv_event_sources" else CHAT_ANSWER
        await exchange.send(body)

    return script


def followers_of(router: Router) -> dict[BackendId, list[KvFollower]]:
    """Of all backends."""
    assert router.state.following is not None
    return router.state.following.followers


async def test_daemon_knows_what_is_cached_of_a_program(stack: Stack, bench: Bench) -> None:
    """From the event to ``GET /programs``, to /metrics, and into the judgement that policies read."""
    publisher = bench.publisher.start()
    fake = await stack.fake(engine_with(lambda: {"0": publisher.page()}))
    router = await stack.router(fake, kv_events=True)
    assert (await router.post("/v1/chat/completions", chat("hi", "p")))[0] == 200
    followers = followers_of(router)
    await until(lambda: followers)
    ((follower,),) = followers.values()
    await bench.reach(follower)
    await publisher.send(stored(1, 2, 3, session="p"), stored(9, session="a stranger"))
    cluster = router.gateway.scheduler.cluster
    (program,) = cluster.program_by_id.values()
    await until(lambda: program.cached)
    assert (await router.programs())["p"]["cached_tokens"] == 96
    assert cluster.resident_ratio(program) == 1.0
    assert await router.metric("thunderagent_engine_cached_tokens", backend=fake.url) == 128
    await publisher.send(removed(3), removed(2), removed(1))
    await until(lambda: cluster.resident_ratio(program) == 0.0)
    assert (await router.programs())["p"]["cached_tokens"] == 0


async def test_backend_that_fails_is_no_longer_known(stack: Stack, bench: Bench) -> None:
    """What is cached there is judged as without events; when it is back, it is followed again."""
    publisher = bench.publisher.start()
    fake = await stack.fake(engine_with(lambda: {"0": publisher.page()}))
    router = await stack.router(fake, kv_events=True)
    assert (await router.post("/v1/chat/completions", chat("hi", "p")))[0] == 200
    await publisher.send(stored(1, session="p"))
    (program,) = router.gateway.scheduler.cluster.program_by_id.values()
    await until(lambda: program.cached)
    followers = followers_of(router)
    await fake.kill()
    await until(lambda: program.cached is None and not followers)
    await fake.start()
    await until(lambda: program.cached, 10)


async def test_backend_without_events_is_told_once_and_works(stack: Stack) -> None:
    """vLLM started without them: the log says what to do, turns go on."""
    fake = await stack.fake(engine_with(dict))
    with structlog.testing.capture_logs() as logs:
        router = await stack.router(fake, kv_events=True)
        assert (await router.post("/v1/chat/completions", chat("hi", "p")))[0] == 200
        await until(lambda: any(line["event"] == "kv_events.none" for line in logs))
    assert (await router.programs())["p"]["cached_tokens"] is None
    (told,) = [line for line in logs if line["event"] == "kv_events.none"]
    assert told["error"] == "it publishes none"
    assert "--kv-events-config.publisher zmq" in told["remedy"]
    assert '"' not in told["remedy"]


async def test_emulated_engine_is_said_to_have_no_events(stack: Stack) -> None:
    """No flag would help there."""
    engine = await stack.engine()
    with structlog.testing.capture_logs() as logs:
        await stack.router(engine, kv_events=True)
        await until(lambda: any(line["event"] == "kv_events.none" for line in logs))
    (told,) = [line for line in logs if line["event"] == "kv_events.none"]
    assert told["error"] == "/kv_event_sources: status 404"
    assert told["remedy"] == "none: emulated engines publish no KV events; a real vLLM does"

"""Backends that come and go at run time, and who may ask for that."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp.test_utils import make_mocked_request
from router_harness import CHAT, FAST, Router, Stack, chat, until

from thunderagent.backends import stop_task
from thunderagent.core.ids import BackendId
from thunderagent.errors import Forbidden
from thunderagent.server.middleware import check_admin


def of(url: str, **query: Any) -> str:
    """The target of DELETE /backends."""
    more = "".join(f"&{name}={value}" for name, value in query.items())
    return f"/backends?url={quote(url, safe='')}{more}"


async def urls(router: Router) -> list[str]:
    """The backends that the router lists."""
    return [entry["url"] for entry in (await router.get("/backends"))[1]["backends"]]


async def test_added_backend_is_looked_at_and_used(stack: Stack) -> None:
    """POST /backends answers when models and capacity are known; held turns of its model go."""
    first, second = await stack.engine(models=("a",)), await stack.engine(models=("b",), kv_tokens=4096)
    router = await stack.router(first)
    assert (await router.post(CHAT, chat(model="b")))[0] == 404
    status, answer = await router.post("/backends", {"url": second.url + "/v1/"})
    assert status == 201
    assert [(entry["url"], entry["models"], entry["capacity_tokens"]) for entry in answer["backends"]] == [
        (first.url, ["a"], 8192),
        (second.url, ["b"], 4096),
    ]
    await router.chat(model="b")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"url": 5},
        {"url": "ftp://x"},
        {"url": "http://u:p@x"},
        {"url": "http://x", "weight": 1},
        {"url": "http://x", "api_key": 5},
        {"url": "http://x", "verify_tls": "no"},
    ],
)
async def test_unusable_backend_is_refused(stack: Stack, body: dict[str, Any]) -> None:
    """What is no backend changes nothing."""
    fake = await stack.fake()
    router = await stack.router(fake)
    assert (await router.post("/backends", body))[0] == 400
    assert (await router.post("/backends", {"url": fake.url}))[0] == 400
    assert await urls(router) == [fake.url]


async def test_removed_backend_drains_first(stack: Stack) -> None:
    """It takes no new turn, its running one finishes, then it is gone, and its metric series with it."""
    engine, spare = await stack.engine(speed=1.0), await stack.engine()
    router = await stack.router(engine)
    running = router.start_chat("hi", "p", max_tokens=20)
    await until(lambda: engine.running == 1)
    await router.post("/backends", {"url": spare.url})
    removal = asyncio.create_task(router.delete(of(engine.url)))
    await until(lambda: engine.url not in {entry.id for entry in router.gateway.scheduler.cluster.backends})
    await router.chat("new", "q")
    assert (await router.programs())["q"]["backend"] == spare.url
    assert not removal.done()
    assert (await running)[0] == 200
    assert await removal == (200, {"url": engine.url, "removed": True, "drained": True})
    assert await urls(router) == [spare.url]
    await router.chat("more", "p")
    assert (await router.programs())["p"]["backend"] == spare.url
    async with router.session.get(router.url + "/metrics") as answer:
        page = await answer.text()
    assert spare.url in page
    assert engine.url not in page


async def test_turns_that_outlast_the_drain_finish(stack: Stack) -> None:
    """Removal does not wait for ever; the answer that still runs arrives whole and brings no metric series back."""
    engine, spare = await stack.engine(speed=1.0), await stack.engine()
    router = await stack.router(engine, spare)
    running = router.start_chat("hi", "p", max_tokens=20)
    await until(lambda: engine.running == 1)
    removed = await router.delete(of(engine.url, drain_seconds=0))
    assert removed == (200, {"url": engine.url, "removed": True, "drained": False})
    assert (await running)[0] == 200
    async with router.session.get(router.url + "/metrics") as answer:
        assert engine.url not in await answer.text()


async def test_removed_backend_can_be_added_again(stack: Stack) -> None:
    """A replaced server begins with empty books, also while a turn of the former one runs."""
    engine = await stack.engine(speed=1.0)
    router = await stack.router(engine, await stack.engine())
    running = router.start_chat("hi", "p", max_tokens=20)
    await until(lambda: engine.running == 1)
    await router.delete(of(engine.url, drain_seconds=0))
    status, answer = await router.post("/backends", {"url": engine.url})
    assert (status, answer["backends"][-1]["accounted_tokens"]) == (201, 0)
    assert (await running)[0] == 200
    assert (await router.get("/debug/invariants"))[1] == {"violations": []}


async def test_removal_unblocks_those_that_wait_for_the_backend(stack: Stack) -> None:
    """A paused program is not stranded on a backend that is gone."""
    full, spare = await stack.fake(capacity_tokens=1200), await stack.fake()
    router = await stack.router(full, scheduler={**FAST, "max_programs": 10})
    turns = [router.start_chat("word" * 800 + name, name) for name in "abc"]
    await until(lambda: router.held + sum(turn.done() for turn in turns) == 3)
    await router.post("/backends", {"url": spare.url})
    await router.delete(of(full.url))
    assert [(await turn)[0] for turn in turns] == [200] * 3


@pytest.mark.parametrize(
    ("query", "status"),
    [("", 400), ("?url=x", 400), ("?url=http://nobody:1", 404), ("?url=http://nobody:1&drain_seconds=x", 400)],
)
async def test_removal_of_nothing_is_told(stack: Stack, query: str, status: int) -> None:
    """A wrong URL removes nothing."""
    router = await stack.router(await stack.fake())
    found, answer = await router.delete("/backends" + query)
    assert (found, set(answer)) == (status, {"error"})


async def test_backend_added_again_survives_the_first_removal(stack: Stack) -> None:
    """A removal that still waits ends with the backend that it was asked for, not with the next one at that URL."""
    engine = await stack.engine(speed=1.0)
    router = await stack.router(engine)
    running = router.start_chat("hi", "p", max_tokens=20)
    await until(lambda: engine.running == 1)
    first = asyncio.create_task(router.delete(of(engine.url)))
    await until(lambda: not router.gateway.scheduler.cluster.backends)
    assert (await router.delete(of(engine.url, drain_seconds=0)))[1]["drained"] is False
    assert (await router.post("/backends", {"url": engine.url}))[0] == 201
    assert await first == (200, {"url": engine.url, "removed": True, "drained": False})
    assert (await running)[0] == 200
    assert await urls(router) == [engine.url]
    await router.chat("more", "p")


async def test_removal_goes_on_when_its_client_leaves(stack: Stack) -> None:
    """Nobody has to ask twice; until it is done the URL cannot be added again, and the answer says why."""
    engine = await stack.engine(speed=1.0)
    router = await stack.router(engine)
    running = router.start_chat("hi", "p", max_tokens=20)
    await until(lambda: engine.running == 1)
    removal = asyncio.create_task(router.delete(of(engine.url)))
    await until(lambda: not router.gateway.scheduler.cluster.backends)
    removal.cancel()
    status, answer = await router.post("/backends", {"url": engine.url})
    assert (status, answer["error"]["param"]) == (400, "url")
    assert "draining" in answer["error"]["message"]
    assert (await running)[0] == 200
    await until(lambda: not router.state.pool.watched)
    assert (await router.post("/backends", {"url": engine.url}))[0] == 201


async def test_removal_under_way_does_not_keep_the_daemon_from_ending(stack: Stack) -> None:
    """Its task ends with the pool."""
    engine = await stack.engine(speed=1.0)
    router = await stack.router(engine)
    client = await router.raw(chat(stream=True, max_tokens=4000))
    await client.head()
    removal = asyncio.create_task(router.delete(of(engine.url, drain_seconds=600)))
    await until(lambda: not router.gateway.scheduler.cluster.backends)
    removal.cancel()
    pool = router.state.pool
    tasks = list(pool._tasks)
    assert [task.get_name() for task in tasks] == [f"remove {engine.url}"]
    await asyncio.wait_for(pool.close(), 1.0)
    assert [task.cancelled() for task in tasks] == [True]


async def test_client_of_a_removed_backend_is_closed_after_its_last_answer(stack: Stack) -> None:
    """Backends that come and go leave no sessions behind."""
    engine = await stack.engine(speed=1.0)
    router = await stack.router(engine, await stack.engine())
    entry = router.state.pool.watched[BackendId(engine.url)]
    running = router.start_chat("hi", "p", max_tokens=20)
    await until(lambda: engine.running == 1)
    await router.delete(of(engine.url, drain_seconds=0))
    assert (entry.is_removed, entry.running, entry.client._session.closed) == (True, 1, False)
    assert (await running)[0] == 200
    await until(lambda: entry.client._session.closed)
    await router.post("/backends", {"url": engine.url})
    idle = router.state.pool.watched[BackendId(engine.url)]
    await router.delete(of(engine.url))
    await until(lambda: idle.client._session.closed)
    await until(lambda: not router.state.pool._retired)


async def test_waiting_for_a_task_to_end_can_be_cancelled() -> None:
    """Who waits is told of its own cancellation, not only of that of the task."""
    is_ended = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await is_ended.wait()

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    stopping = asyncio.create_task(stop_task(task))
    await asyncio.sleep(0)
    stopping.cancel()
    await asyncio.sleep(0)
    is_ended.set()
    await asyncio.wait((stopping,))
    assert stopping.cancelled()
    await asyncio.wait((task,))


ADMIN_CALLS = [
    ("POST", "/backends"),
    ("DELETE", "/backends"),
    ("DELETE", "/programs/p"),
    ("GET", "/debug/journal"),
    ("GET", "/debug/invariants"),
]
CLIENT_CALLS = [("POST", CHAT), ("POST", "/v1/embeddings"), ("POST", "/programs/release"), ("GET", "/programs")]
OPEN_CALLS = [("GET", "/health"), ("GET", "/livez"), ("GET", "/readyz"), ("GET", "/metrics"), ("GET", "/")]


async def status_of(router: Router, method: str, path: str, token: str | None, header: str = "Authorization") -> int:
    """The status of a call with a token."""
    value = f"Bearer {token}" if header == "Authorization" else token
    headers = {} if token is None else {header: str(value)}
    async with router.session.request(method, router.url + path, data=b"{}", headers=headers) as answer:
        if answer.status == 401:
            assert (await answer.json())["error"]["code"] == "invalid_api_key"
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        return answer.status


@pytest.mark.parametrize(("method", "path"), ADMIN_CALLS)
async def test_admin_call_needs_the_admin_token_where_there_is_one(stack: Stack, method: str, path: str) -> None:
    """Loopback is not enough then, and neither is the clients' token."""
    router = await stack.router(await stack.fake(), admin_token="root", api_token="client")
    for token in (None, "client", "wrong", "root2"):
        assert await status_of(router, method, path, token) == 401
    assert await status_of(router, method, path, "root") not in (401, 403)


@pytest.mark.parametrize(("method", "path"), ADMIN_CALLS)
async def test_admin_call_works_from_loopback_without_a_token(stack: Stack, method: str, path: str) -> None:
    """On the router's own machine no token is asked for."""
    router = await stack.router(await stack.fake())
    assert await status_of(router, method, path, None) not in (401, 403)


@pytest.mark.parametrize(
    ("remote", "allowed"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("", False),
    ],
)
async def test_admin_call_from_another_host_is_forbidden(stack: Stack, remote: str, allowed: bool) -> None:
    """Without a token only loopback may change the router, whatever a forwarding header claims."""
    router = await stack.router(await stack.fake())
    request = make_mocked_request(
        "POST", "/backends", headers={"Host": "localhost", "X-Forwarded-For": "127.0.0.1"}, app=router.app
    )
    request = request.clone(remote=remote)
    if allowed:
        check_admin(request)
    else:
        with pytest.raises(Forbidden):
            check_admin(request)


@pytest.mark.parametrize(
    ("host", "listen", "allowed"),
    [
        ("localhost:8300", "0.0.0.0", True),
        ("LocalHost", "0.0.0.0", True),
        ("127.0.0.1:8300", "0.0.0.0", True),
        ("127.9.9.9", "0.0.0.0", True),
        ("[::1]:8300", "0.0.0.0", True),
        ("router.lan:8300", "router.lan", True),
        ("router.lan:8300", "Router.LAN", True),
        ("[fd00::5]:8300", "fd00::5", True),
        ("router.lan:8300", "0.0.0.0", False),
        ("evil.example:8300", "0.0.0.0", False),
        ("localhost.evil.example", "0.0.0.0", False),
        ("evil.example", "", False),
        ("", "", False),
        ("", "0.0.0.0", False),
        ("[::1", "0.0.0.0", False),
    ],
)
async def test_admin_call_by_another_name_is_forbidden(stack: Stack, host: str, listen: str, allowed: bool) -> None:
    """A page whose name was rebound to loopback is of the router's origin for the browser, but not of its name."""
    router = await stack.router(await stack.fake(), host=listen)
    headers = {"Host": host, "Origin": f"http://{host}"} if host else {}
    request = make_mocked_request("POST", "/backends", headers=headers, app=router.app).clone(remote="127.0.0.1")
    if allowed:
        check_admin(request)
    else:
        with pytest.raises(Forbidden):
            check_admin(request)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://["])
async def test_admin_call_of_another_sites_page_is_forbidden(stack: Stack, origin: str) -> None:
    """The browser names the page; a name that cannot be read is another one."""
    router = await stack.router(await stack.fake())
    status, answer = await router.post("/backends", {"url": "http://127.0.0.1:9"}, headers={"Origin": origin})
    assert (status, answer["error"]["code"]) == (403, "admin_only")


@pytest.mark.parametrize(("method", "path"), CLIENT_CALLS)
@pytest.mark.parametrize("header", ["Authorization", "x-api-key"])
async def test_client_call_needs_the_token(stack: Stack, method: str, path: str, header: str) -> None:
    """With --api-token inference and release take one of the router's tokens."""
    router = await stack.router(await stack.fake(), api_token="client", admin_token="root")
    for token in (None, "", "wrong", "clien", "client2"):
        assert await status_of(router, method, path, token, header) == 401
    for token in ("client", "root"):
        assert await status_of(router, method, path, token, header) != 401


@pytest.mark.parametrize(("method", "path"), OPEN_CALLS)
async def test_health_and_metrics_are_open(stack: Stack, method: str, path: str) -> None:
    """Orchestrators and Prometheus have no token."""
    router = await stack.router(await stack.fake(), api_token="client")
    assert await status_of(router, method, path, None) == 200

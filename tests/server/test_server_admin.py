"""Backends that come and go at run time, and who may ask for that."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp.test_utils import make_mocked_request
from router_harness import CHAT, FAST, Router, Stack, chat, until

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
    request = make_mocked_request("POST", "/backends", headers={"X-Forwarded-For": "127.0.0.1"}, app=router.app)
    request = request.clone(remote=remote)
    if allowed:
        check_admin(request)
    else:
        with pytest.raises(Forbidden):
            check_admin(request)


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

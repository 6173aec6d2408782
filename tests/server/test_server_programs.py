"""Programs over HTTP: release in every state, overlapping turns, what is shown of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from router_harness import CHAT, Engine, Router, Stack, chat, until, words

from thunderagent.core import events
from thunderagent.core.ids import BranchId, ProgramId, TurnId
from thunderagent.core.usage import Outcome
from thunderagent.server import admin

FULL = 1000
"""Tokens of a program that leaves no room for another in a router told of 1,200."""


async def full_router(stack: Stack, **options: object) -> tuple[Router, Engine]:
    """A router whose only place is taken by the idle program ``a``, however long it is idle."""
    engine = await stack.engine()
    no_lease = {"idle_lease_seconds": "0"}
    router = await stack.router(
        engine, capacity_tokens=1200, policy="pause-resume", policy_options=no_lease, **options
    )
    await router.chat(words(FULL), "a")
    return router, engine


async def test_turns_add_up_in_programs(stack: Stack) -> None:
    """GET /programs shows what the published router shows, and the exact status beside it."""
    engine = await stack.engine()
    router = await stack.router(engine)
    first = await router.chat(words(100), "p")
    second = await router.chat(words(200), "p")
    assert first["usage"]["total_tokens"] < second["usage"]["total_tokens"]
    status, program = await router.get("/programs/p")
    assert (status, 0 <= program.pop("idle_seconds") < 5) == (200, True)
    assert program == {
        "backend": engine.url,
        "context_len": len('{"model":"emulated","messages":[{"role": "user", "content": ""}],"max_tokens":4}') + 800,
        "total_tokens": first["usage"]["total_tokens"] + second["usage"]["total_tokens"],
        "step_count": 2,
        "status": "acting",
        "state": "active",
        "scheduling_status": "admitted",
        "footprint_tokens": first["usage"]["total_tokens"] + second["usage"]["total_tokens"],
        "resident_ratio": program["resident_ratio"],
        "cached_tokens": None,
        "tool_seconds_p50": None,
        "turns_running": 0,
        "turns_held": 0,
        "conversations": 2,
        "waiting_seconds": None,
    }
    assert 0.9 < program["resident_ratio"] <= 1.0
    (listed,) = (await router.programs()).values()
    assert set(listed) == {*program, "idle_seconds"}


async def test_turn_that_waits_beside_its_program_s_place_counts_as_waiting(stack: Stack) -> None:
    """A sub-agent of another model, whose backend is full: its program has a place, and yet waits."""
    engines = [await stack.engine(models=("a",)), await stack.engine(models=("b",))]
    no_lease = {"idle_lease_seconds": "0"}
    router = await stack.router(*engines, capacity_tokens=1200, policy="pause-resume", policy_options=no_lease)
    await router.chat(words(FULL), "full", model="b")
    await router.chat(program="p", model="a")
    turn = router.start_chat(words(FULL, "beta"), "p", model="b")
    await until(lambda: router.held == 1)
    shown = (await router.programs())["p"]
    assert (shown["scheduling_status"], shown["backend"], shown["turns_held"]) == ("admitted", engines[0].url, 1)
    assert shown["waiting_seconds"] is not None
    await router.release("full")
    assert (await turn)[0] == 200
    assert (await router.programs())["p"]["waiting_seconds"] is None


async def test_idle_seconds_run_on_without_events(stack: Stack) -> None:
    """Idle time is that of now, not of the last event."""
    router = await stack.router(await stack.fake(), policy="affinity", clock_speed=1000.0)
    await router.chat(program="p")
    await asyncio.sleep(0.05)
    assert (await router.programs())["p"]["idle_seconds"] > 40


async def test_release_forgets_the_program_at_once(stack: Stack) -> None:
    """A released program is unknown, its tokens are free, and a later turn of its id begins a new program."""
    router, engine = await full_router(stack)
    assert await router.release("a") is True
    assert await router.programs() == {}
    assert (await router.get("/health"))[1]["per_backend"][engine.url]["accounted_tokens"] == 0
    assert await router.release("a") is False
    await router.chat("again", "a")
    assert (await router.programs())["a"]["step_count"] == 1
    assert await router.metric("thunderagent_releases_total") == 1


async def test_release_lets_the_next_program_in(stack: Stack) -> None:
    """A held turn is forwarded as soon as there is room."""
    router, _ = await full_router(stack)
    turn = router.start_chat(words(FULL, "beta"), "b")
    await until(lambda: router.held == 1)
    shown = (await router.programs())["b"]
    assert (shown["state"], shown["status"], shown["turns_held"], shown["backend"]) == (
        "paused",
        "reasoning",
        1,
        None,
    )
    assert await router.release("a")
    assert (await turn)[0] == 200
    assert await router.metric("thunderagent_holds_total") == 1
    assert await router.metric("thunderagent_hold_seconds_count") == 2


async def test_release_while_held_is_answered_409(stack: Stack) -> None:
    """The client that waits for a released program is told, and nothing of it stays."""
    router, engine = await full_router(stack)
    turn = router.start_chat(words(FULL, "beta"), "b")
    await until(lambda: router.held == 1)
    assert await router.release("b")
    status, answer = await turn
    assert (status, answer["error"]["code"]) == (409, "program_released")
    assert set(await router.programs()) == {"a"}
    assert engine.running == 0
    assert await router.metric("thunderagent_turns_total", outcome="refused") == 1


async def test_release_while_running_lets_the_turn_finish(stack: Stack) -> None:
    """The answer arrives whole; afterwards nothing is accounted."""
    engine = await stack.engine(speed=2.0)
    router = await stack.router(engine)
    turn = router.start_chat("hi", "p", max_tokens=30)
    await until(lambda: engine.running == 1)
    assert await router.release("p")
    assert await router.programs() == {}
    status, answer = await turn
    assert (status, answer["usage"]["completion_tokens"]) == (200, 30)
    assert await router.programs() == {}


async def test_turn_after_release_of_a_running_program_is_a_new_program(stack: Stack) -> None:
    """The id begins afresh while the former program's turn still runs; neither disturbs the other's account."""
    engine = await stack.engine(speed=1.0)
    router = await stack.router(engine)
    old = router.start_chat("old", "p", max_tokens=20)
    await until(lambda: engine.running == 1)
    await router.release("p")
    new = router.start_chat("new", "p", max_tokens=20)
    await until(lambda: engine.running == 2)
    assert [(await old)[0], (await new)[0]] == [200, 200]
    assert (await router.programs())["p"]["step_count"] == 1


async def test_two_turns_of_one_program_run_at_once(stack: Stack) -> None:
    """Overlapping turns of a program are both forwarded and accounted, each on its own."""
    engine = await stack.engine(speed=1.0)
    router = await stack.router(engine, await stack.engine())
    first = router.start_chat("one", "p", max_tokens=20)
    await until(lambda: router.running == 1)
    second = router.start_chat("two", "p", max_tokens=10)
    await until(lambda: router.running == 2)
    program = (await router.programs())["p"]
    assert (program["turns_running"], program["conversations"], program["status"]) == (2, 2, "reasoning")
    assert (await second)[0] == 200
    assert (await router.programs())["p"]["status"] == "reasoning"
    assert (await first)[0] == 200
    program = (await router.programs())["p"]
    assert (program["turns_running"], program["status"], program["step_count"]) == (0, "acting", 2)


async def test_two_held_turns_of_one_program_are_both_served(stack: Stack) -> None:
    """When the program gets its place, all that waited for it goes."""
    router, _ = await full_router(stack)
    turns = [router.start_chat(words(300) + name, "b") for name in "xy"]
    await until(lambda: router.held == 2)
    await router.release("a")
    assert [(await turn)[0] for turn in turns] == [200, 200]


async def test_session_final_header_releases_the_program(stack: Stack) -> None:
    """The last turn of a session is answered, then its program is gone."""
    router = await stack.router(await stack.engine())
    await router.chat(program="p")
    status, _ = await router.post(CHAT, chat(program="p"), headers={"X-Session-Final": "true"})
    assert status == 200
    assert await router.programs() == {}


async def test_one_off_turn_is_held_and_charged_only_while_it_runs(stack: Stack) -> None:
    """Without an id a turn waits for room as any other, and leaves nothing behind."""
    router, engine = await full_router(stack)
    turn = router.start_chat(words(FULL, "beta"))
    await until(lambda: router.held == 1)
    assert set(await router.programs()) == {"a"}
    await router.release("a")
    assert (await turn)[0] == 200
    assert (await router.get("/health"))[1]["per_backend"][engine.url]["accounted_tokens"] == 0


async def test_idle_program_expires(stack: Stack) -> None:
    """Clients forget to release: an idle program is forgotten after its time, and whoever waits gets in."""
    router, _ = await full_router(stack, clock_speed=1000.0, scheduler={"program_ttl_seconds": 300.0})
    turn = router.start_chat(words(FULL, "beta"), "b")
    assert (await turn)[0] == 200
    assert await router.metric("thunderagent_expiries_total") >= 1


async def test_program_with_odd_id_is_shown_and_deleted(stack: Stack) -> None:
    """Ids may hold slashes, spaces and percent signs; in a path they are quoted."""
    router = await stack.router(await stack.fake())
    await router.chat(program="a/b c%2Fé?")
    path = "/programs/a%2Fb%20c%252F%C3%A9%3F"
    assert (await router.get(path))[1]["step_count"] == 1
    assert await router.delete(path) == (200, {"program_id": "a/b c%2Fé?", "released": True})
    status, answer = await router.get(path)
    assert (status, answer["error"]["code"]) == (404, "not_found")


def idle_programs(router: Router, count: int) -> list[str]:
    """As many programs that have taken a turn; their ids."""
    names = [f"idle-{number:04d}" for number in range(count)]
    for number, name in enumerate(names):
        turn = TurnId(-1 - number)  # none of the gateway's own
        router.gateway.handle(events.TurnArrived(turn, ProgramId(name), BranchId("main"), "emulated", 100, ()))
        router.gateway.handle(events.TurnFinished(turn, Outcome.COMPLETED, None, 1))
    return names


@pytest.mark.parametrize("count", [0, 1, 200, 401])
async def test_all_programs_are_listed_in_order(stack: Stack, count: int) -> None:
    """However many slices the list is made in, it is one object with all of them."""
    router = await stack.router(await stack.fake())
    names = idle_programs(router, count)
    listed = await router.programs()
    assert list(listed) == names
    for name in names[:1]:
        shown = (await router.get(f"/programs/{name}"))[1]
        assert {**listed[name], "idle_seconds": None} == {**shown, "idle_seconds": None}


async def test_program_released_while_the_list_is_made_is_left_out(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other requests go on between the slices of a list."""
    router = await stack.router(await stack.fake())
    names = idle_programs(router, 3)
    seen: list[str] = []

    def show(program: Any, state: Any) -> dict[str, str]:
        if not seen:
            asyncio.get_running_loop().call_soon(router.gateway.release, ProgramId(names[2]))
        seen.append(program.id)
        return {"id": program.id}

    monkeypatch.setattr(admin, "program_json", show)
    monkeypatch.setattr(admin, "_SLICE", 2)
    assert await router.programs() == {name: {"id": name} for name in names[:2]}


async def test_limited_list_shows_those_that_wait_first(stack: Stack) -> None:
    """The longest wait comes first, then the program known for longest; nobody is listed twice."""
    router, _ = await full_router(stack)
    turns = []
    for name in "bcd":
        turns.append(router.start_chat(words(FULL, name * 4), name))
        await until(lambda: router.held == len(turns))
    for limit, names in ((0, ""), (1, "b"), (3, "bcd"), (4, "bcda"), (9, "bcda")):
        status, listed = await router.get(f"/programs?limit={limit}")
        assert (status, list(listed)) == (200, list(names))
    for name in "abcd":
        await router.release(name)
    await asyncio.gather(*turns)


@pytest.mark.parametrize("limit", ["", "-1", "1.5", "x", "\N{SUPERSCRIPT TWO}", "9" * 12])
async def test_limit_that_is_no_number_is_refused(stack: Stack, limit: str) -> None:
    """What is wrong is told, with the parameter's name."""
    router = await stack.router(await stack.fake())
    status, answer = await router.get("/programs", params={"limit": limit})
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, "invalid_request", "limit")

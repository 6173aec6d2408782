"""A real vLLM under load: priorities, more programs than its cache holds, a crash and a restart, a dying engine."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx
import pytest
from vllm_servers import CHAT, Router, Server, chat, events_of, until, words

from examples.processes import Children

pytestmark = pytest.mark.vllm

TURNS = 5


def agent(router: Router, name: str, first: int, errors: list[str], retries: int = 0) -> int:
    """A conversation of ``TURNS`` turns that grows by 300 words' tokens; the turns that were answered."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": words(350, first)}]
    answered = 0
    for turn in range(TURNS):
        for attempt in range(retries + 1):
            try:
                answer = router.answer(CHAT, chat("", name, messages=messages, max_tokens=24))
            except (AssertionError, httpx.HTTPError) as error:  # noqa: PERF203
                errors.append(f"{name}: {error!r}"[:300])
                if attempt == retries:
                    return answered
                time.sleep(1.0)
            else:
                break
        answered += 1
        content = answer["choices"][0]["message"]["content"]
        messages += [
            {"role": "assistant", "content": content},
            {"role": "user", "content": words(80, first + 1000 * (turn + 1))},
        ]
        time.sleep(0.2)
    router.answer("/programs/release", {"program_id": name})
    return answered


def run_agents(router: Router, count: int, errors: list[str], retries: int = 0) -> list[int]:
    with ThreadPoolExecutor(count) as pool:
        runs = [pool.submit(agent, router, f"a{n}", 100_000 * n, errors, retries) for n in range(count)]
        return [run.result() for run in runs]


def test_more_programs_than_the_cache_holds_all_get_served(router: Router, server: Server) -> None:
    """Twice what fits: some wait, none fails, the engine never preempts, and most prefixes are found."""
    server.reset_cache()
    before, errors = server.seen(), list[str]()
    assert run_agents(router, 12, errors) == [TURNS] * 12
    assert errors == []
    assert router.metric("thunderagent_holds_total") > 0
    after = server.seen()
    assert after.preemptions == before.preemptions
    hits = (after.prefix_cache_hits or 0) - (before.prefix_cache_hits or 0)
    queries = (after.prefix_cache_queries or 1) - (before.prefix_cache_queries or 0)
    assert hits / queries > 0.5


def test_priority_of_a_turn_is_the_engine_s(router: Router) -> None:
    """Where eight run and eight more wait in the engine, an urgent one is through before those."""
    ended: dict[str, float] = {}

    def run(name: str, **fields: Any) -> None:
        router.answer(CHAT, chat(f"Say {name}", **fields))
        ended[name] = time.monotonic()

    with ThreadPoolExecutor(20) as pool:
        for number in range(16):
            pool.submit(run, f"common-{number}", priority=5, max_tokens=150)
        until(lambda: router.get("/health")["turns_running"] == 16)
        pool.submit(run, "urgent", priority=-5, max_tokens=4)
    assert len(ended) == 17
    assert sum(ended["urgent"] < at for name, at in ended.items() if name != "urgent") >= 8


def test_accounts_agree_with_the_engine_s_kv_events(server: Server) -> None:
    """What the router thinks is resident, against the blocks that the engine says it has, turn after turn."""
    server.reset_cache()
    router = Router.start([server.url], "--kv-events")
    try:
        conversations = {f"a{n}": [{"role": "user", "content": words(350, 100_000 * n)}] for n in range(4)}
        differences = []
        for turn in range(TURNS):
            for name, messages in conversations.items():
                answer = router.answer(CHAT, chat("", name, messages=messages, max_tokens=24))
                text = answer["choices"][0]["message"]["content"]
                messages += [
                    {"role": "assistant", "content": text},
                    {"role": "user", "content": words(80, 1000 * turn)},
                ]
            time.sleep(0.6)
            programs = router.get("/programs")
            cached = sum(program["cached_tokens"] or 0 for program in programs.values())
            accounted = router.backend()["accounted_tokens"]
            differences.append((accounted - cached) / server.kv_tokens)
            assert all(program["resident_ratio"] > 0.9 for program in programs.values()), programs
        told = ", ".join(f"{difference:.4f}" for difference in differences)
        print(f"accounted less cached, of capacity, turn by turn: {told}")  # noqa: T201 seen with -s
        assert max(map(abs, differences)) < 0.05, told
        server.reset_cache()
        router.answer(CHAT, chat("the reset comes with the next step", max_tokens=40))
        until(lambda: all(program["cached_tokens"] == 0 for program in router.get("/programs").values()))
    finally:
        router.close()


def test_server_killed_and_started_again_under_load(children: Children) -> None:
    """What streamed then fails, all else waits for the server to be back; the accounts begin anew."""
    server = Server.start(children, "killed", 16_384)
    with closing(Router.start([server.url])) as router:
        errors: list[str] = []
        answered: list[int] = []
        load = threading.Thread(target=lambda: answered.extend(run_agents(router, 6, errors, retries=3)))
        load.start()
        until(lambda: router.metric("thunderagent_backend_turns_total") >= 6, 60)
        server.kill()
        until(lambda: not router.backend()["available"], 15)
        server.start_again()
        server.wait_ready()
        load.join(180)
        assert not load.is_alive()
        assert answered == [TURNS] * 6
        assert len(errors) <= 6  # at most the turns that ran when it was killed
        assert router.backend()["capacity_tokens"] == 16_384


def test_engine_that_dies_under_a_stream(children: Children) -> None:
    """It says so under a 200 and ends; the client is told, nobody else's turn is lost."""
    server = Server.start(children, "dying", 16_384)
    with closing(Router.start([server.url])) as router:
        # vLLM's CPU engine ends at a seeded request that is prefilled in chunks.
        deadly = chat(words(1800), "deadly", seed=1, temperature=1.0, max_tokens=50)
        try:
            events = events_of(router.stream(CHAT, deadly))
        except httpx.RemoteProtocolError:
            events = [{"error": "cut"}]
        except AssertionError as error:
            events = [{"error": str(error)}]
        assert "error" in events[-1]
        until(lambda: not router.backend()["available"], 20)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(router.answer, CHAT, chat("still there?", "patient"))
            until(lambda: router.get("/health")["turns_held"] == 1)
            server.start_again()
            server.wait_ready()
            assert waiting.result(60)["usage"]["completion_tokens"] == 8

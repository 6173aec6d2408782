"""Backends of each type behind a router: what it shows of them, holds for them and says about them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from router_harness import Router, Stack, chat, until
from structlog.testing import capture_logs

from thunderagent.backends import BackendConfig
from thunderagent.testing.fake_backend import CHAT_ANSWER, Exchange, json_answer


def sglang_answer(details: bytes) -> bytes:
    """A whole answer as SGLang writes it; ``prompt_tokens_details`` is null without --enable-cache-report."""
    return json_answer(
        b'{"id":"1","object":"chat.completion","created":1,"model":"emulated","choices":[{"index":0,"message":'
        b'{"role":"assistant","content":"ok","reasoning_content":null,"tool_calls":null},"logprobs":null,'
        b'"finish_reason":"stop","matched_stop":1}],"usage":{"prompt_tokens":90,"total_tokens":92,'
        b'"completion_tokens":2,"prompt_tokens_details":%s,"reasoning_tokens":0}}' % details
    )


def sglang_metrics(running: int = 0, prompt_tokens: int = 0) -> bytes:
    labels = '{engine_type="unified",model_name="emulated",moe_ep_rank="0",pp_rank="0",tp_rank="0"}'
    lines = [
        f"sglang:num_running_reqs{labels} {running}.0",
        f"sglang:num_queue_reqs{labels} 2.0",
        f"sglang:token_usage{labels} 0.25",
        f"sglang:num_used_tokens{labels} 300.0",
        f"sglang:cache_hit_rate{labels} 0.5",
        f'sglang:prompt_tokens_total{{model_name="emulated"}} {prompt_tokens}.0',
        'sglang:generation_tokens_total{model_name="emulated"} 20.0',
    ]
    return json_answer("\n".join([*lines, ""]).encode())


NOTHING = dict.fromkeys(
    (
        *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "kv_used_tokens"),
        *("prefix_cache_hit_rate", "prefix_cache_queries", "prefix_cache_hits", "prompt_tokens_total"),
        *("generation_tokens_total", "num_preemptions", "requests_completed"),
    )
)


async def shown(router: Router) -> dict[str, Any]:
    """The published JSON of the only backend."""
    page = (await router.get("/metrics", headers={"Accept": "application/json"}))[1]
    (backend,) = page["backends"].values()
    return dict(backend)


def capacity(router: Router) -> int | None:
    """What the scheduler reckons with, for the only backend."""
    (backend,) = router.gateway.scheduler.cluster.backend_by_id.values()
    return backend.capacity_tokens


@pytest.mark.parametrize(
    ("backend_type", "pages", "expected_capacity", "metrics"),
    [
        ("vllm", {}, 1200, NOTHING),
        (
            "sglang",
            {"/metrics": sglang_metrics(1, 100)},
            1200,
            {
                **NOTHING,
                "num_requests_running": 1,
                "num_requests_waiting": 2,
                "kv_cache_usage_perc": 0.25,
                "kv_used_tokens": 300,
                "prefix_cache_hit_rate": 0.5,
                "prompt_tokens_total": 100,
                "generation_tokens_total": 20,
            },
        ),
        (
            "skyrl",
            {
                "/metrics": json_answer(
                    b'{"timestamp": 1, "engines": [{"engine_id": 0, "kv_cache_usage_pct": 5, "num_running_reqs": 2, '
                    b'"num_waiting_reqs": 1, "num_cumulative_preemption": 3}, {"engine_id": 1}]}'
                )
            },
            400_000,
            {
                **NOTHING,
                "num_requests_running": 2,
                "num_requests_waiting": 1,
                "kv_cache_usage_perc": 0.05,
                "num_preemptions": 3,
            },
        ),
        ("openai", {}, None, None),
    ],
)
async def test_turn_runs_and_metrics_show_what_the_type_tells(
    stack: Stack, backend_type: str, pages: Any, expected_capacity: int | None, metrics: dict[str, Any] | None
) -> None:
    """A backend of each type serves turns; what its type does not tell is null."""
    fake = await stack.fake(CHAT_ANSWER, type=backend_type, capacity_tokens=1200, pages=pages)
    router = await stack.router(fake, backend_type=backend_type)
    await router.chat("hi", "p")
    backend = await shown(router)
    assert (backend["type"], backend["cache_config"]["total_tokens_capacity"]) == (backend_type, expected_capacity)
    seen = backend["metrics"]
    if seen is not None:
        seen = {name: value for name, value in seen.items() if name not in ("last_updated", "history_size")}
    assert seen == metrics
    assert fake.looks["/health_generate"] == 0
    assert backend_type != "openai" or set(fake.looks) == {"/v1/models"}


@pytest.mark.parametrize(("backend_type", "held"), [("sglang", 1), ("openai", 0)])
async def test_turns_are_held_by_the_capacity_of_sglang_and_never_without_one(
    stack: Stack, backend_type: str, held: int
) -> None:
    """Two programs of 1,000 tokens on 1,200: the second waits until the first is released."""
    go = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await go.wait()
        await exchange.send(sglang_answer(b"null"))

    fake = await stack.fake(answer, type=backend_type, capacity_tokens=1200)
    router = await stack.router(fake, backend_type=backend_type)
    first = router.start_chat("word" * 1000, "a")
    await until(lambda: router.running == 1)
    second = router.start_chat("other" * 800, "b")
    await until(lambda: router.held + router.running == 2)
    assert router.held == held
    go.set()
    assert (await first)[0] == 200
    await router.release("a")
    assert (await second)[0] == 200


@pytest.mark.parametrize("backend_type", ["sglang", "skyrl", "openai"])
async def test_given_capacity_wins_over_what_the_type_tells(stack: Stack, backend_type: str) -> None:
    """--capacity-tokens is the capacity of every backend, and nothing is said of an unknown one."""
    with capture_logs() as logged:
        fake = await stack.fake(type=backend_type, capacity_tokens=1_000_000)
        router = await stack.router(fake, backend_type=backend_type, capacity_tokens=1200)
        assert capacity(router) == 1200
    assert [line for line in logged if line["event"] == "backend.capacity_unknown"] == []


@pytest.mark.parametrize(("details", "cached"), [(b"null", 0), (b'{"cached_tokens":64}', 64)])
async def test_cached_tokens_of_sglang_are_counted_where_it_reports_them(
    stack: Stack, details: bytes, cached: int
) -> None:
    """With --enable-cache-report its usage has the field that vLLM's has."""
    fake = await stack.fake(sglang_answer(details), type="sglang", capacity_tokens=1200)
    router = await stack.router(fake, backend_type="sglang")
    await router.chat("hi", "p")
    assert await router.metric("thunderagent_prompt_tokens_total") == 90
    assert await router.metric("thunderagent_cached_tokens_total") == cached


async def test_restarted_sglang_brings_its_new_capacity(stack: Stack) -> None:
    """A server that comes back is asked for its capacity again; that of its former process is forgotten."""
    fake = await stack.fake(type="sglang", capacity_tokens=1200)
    router = await stack.router(fake, backend_type="sglang", health_failures=1)
    assert capacity(router) == 1200
    await fake.kill()
    (backend,) = router.gateway.scheduler.cluster.backend_by_id.values()
    await until(lambda: not backend.is_healthy)
    fake.capacity_tokens = 5000
    await fake.start()
    await until(lambda: backend.is_healthy and capacity(router) == 5000)


async def test_sglang_without_server_info_takes_turns(stack: Stack) -> None:
    """A page that hangs delays the look and fails nothing: the capacity is unknown, and told once."""
    with capture_logs() as logged:
        fake = await stack.fake(type="sglang", pages={"/server_info": json_answer(b"", "500 Oops")})
        router = await stack.router(fake, backend_type="sglang", metrics_interval_seconds=0.02)
        await router.chat("hi", "p")
        await until(lambda: fake.looks["/server_info"] > 3)
    assert capacity(router) is None
    unknown = [line for line in logged if line["event"] == "backend.capacity_unknown"]
    assert [line["log_level"] for line in unknown] == ["warning"]
    (listed,) = (await router.get("/backends"))[1]["backends"]
    assert (listed["healthy"], listed["type"], listed["last_error"]) == (True, "sglang", "/server_info: status 500")


async def test_unknown_capacity_of_an_openai_server_is_no_warning(stack: Stack) -> None:
    """Whoever says ``openai`` knows; what follows from it is told once all the same."""
    with capture_logs() as logged:
        fake = await stack.fake(type="openai")
        await stack.router(fake, backend_type="openai", metrics_interval_seconds=0.02)
        await until(lambda: fake.looks["/v1/models"] > 3)
    assert [line["log_level"] for line in logged if line["event"] == "backend.capacity_unknown"] == ["info"]
    assert [line for line in logged if line["log_level"] == "warning"] == []


async def test_openai_server_fails_and_recovers_by_its_models_page(stack: Stack) -> None:
    """It has no other page to be judged by."""
    fake = await stack.fake(type="openai")
    router = await stack.router(fake, backend_type="openai", health_failures=2, metrics_interval_seconds=0.02)
    (backend,) = router.gateway.scheduler.cluster.backend_by_id.values()
    fake.is_healthy = False
    await until(lambda: not backend.is_healthy)
    fake.is_healthy = True
    await until(lambda: backend.is_healthy)


@pytest.mark.parametrize(
    ("said", "real"), [("vllm", "sglang"), ("vllm", "skyrl"), ("sglang", "vllm"), ("skyrl", "vllm")]
)
async def test_wrong_type_is_told_once_with_the_right_one(stack: Stack, said: str, real: str) -> None:
    """Metrics of another type are named with the setting that reads them; turns run meanwhile."""
    with capture_logs() as logged:
        fake = await stack.fake(CHAT_ANSWER, type=real, capacity_tokens=200_000)
        router = await stack.router(fake, backend_type=said, metrics_interval_seconds=0.02)
        await until(lambda: fake.looks["/metrics"] > 3)
        await router.chat("hi", "p")
    warnings = [line for line in logged if line["log_level"] == "warning"]
    assert warnings == [
        {
            "event": "backend.type_doubted",
            "log_level": "warning",
            "backend": fake.url,
            "type": said,
            "looks_like": real,
            "remedy": f"--backend-type {real}, or type = {real!r} for this backend; "
            "its metrics are not read until then",
        }
    ]


async def test_each_backend_may_have_its_own_type(stack: Stack) -> None:
    """In the file and in POST /backends; one that says none has that of the flag."""
    fakes = [await stack.fake(type=name, capacity_tokens=200_000) for name in ("vllm", "sglang", "skyrl", "sglang")]
    first, second, third, fourth = fakes
    router = await stack.router(BackendConfig(first.url, type="vllm"), second, backend_type="sglang")
    assert (await router.post("/backends", {"url": third.url, "type": "skyrl"}))[0] == 201
    status, answer = await router.post("/backends", {"url": fourth.url})
    assert status == 201
    assert [(entry["type"], entry["capacity_tokens"]) for entry in answer["backends"]] == [
        ("vllm", 200_000),
        ("sglang", 200_000),
        ("skyrl", 200_000),
        ("sglang", 200_000),
    ]


@pytest.mark.parametrize("wrong", ["trt", 5, [], ""])
async def test_added_backend_of_unknown_type_is_refused_with_the_types(stack: Stack, wrong: Any) -> None:
    """400, the choices, and nothing is added."""
    router = await stack.router(await stack.fake())
    status, answer = await router.post("/backends", {"url": "http://127.0.0.1:9", "type": wrong})
    assert (status, answer["error"]["param"]) == (400, "type")
    assert answer["error"]["message"] == "type must be one of vllm, sglang, skyrl, openai"
    assert len((await router.get("/backends"))[1]["backends"]) == 1
    assert (await router.post("/v1/chat/completions", chat()))[0] == 200

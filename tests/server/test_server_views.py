"""What operators see: the published JSON and more, Prometheus text, profiles, the inside, the dashboard."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import pytest
from router_harness import CHAT, Router, Stack, chat, until, words

from thunderagent import __version__
from thunderagent.trace import read_trace

HEALTH_PER_BACKEND = {
    "total": 1,
    "reasoning": 0,
    "acting": 1,
    "paused": 0,
    "marked_for_pause": 0,
    "future_paused_tokens": 0,
    "available": True,
    "healthy": True,
    "draining": False,
    "capacity_tokens": 8192,
    "turns_running": 0,
}


async def text_of(router: Router, path: str) -> str:
    """A page as text."""
    async with router.session.get(router.url + path) as answer:
        assert answer.status == 200
        return await answer.text()


async def test_health_has_the_published_fields_and_more(stack: Stack) -> None:
    """Every field, for one program that acts and one that waits."""
    engine = await stack.engine()
    router = await stack.router(engine)
    await router.chat(program="p")
    tokens = (await router.programs())["p"]["footprint_tokens"]
    status, health = await router.get("/health")
    (shown,) = health.pop("per_backend").values()
    assert health.pop("outlook")["pressure"] == round(tokens / 8192, 3)
    expected = {**HEALTH_PER_BACKEND, "accounted_tokens": tokens}
    assert {name: shown[name] for name in expected} == expected
    assert (status, health) == (
        200,
        {
            "status": "ok",
            "version": __version__,
            "policy": "working-set",
            "router_mode": "tr",
            "scheduling_enabled": True,
            "backends": [engine.url],
            "programs_count": 1,
            "reasoning_count": 0,
            "acting_count": 1,
            "paused_count": 0,
            "new_count": 0,
            "turns_held": 0,
            "turns_running": 0,
            "profile_enabled": False,
        },
    )


async def test_health_counts_waiting_and_paused_programs(stack: Stack) -> None:
    """A held program is one that reasons and is not active; its former place counts it as paused."""
    engine = await stack.engine()
    router = await stack.router(engine, capacity_tokens=1200)
    await router.chat(words(1000), "a")
    turn = router.start_chat(words(1000, "beta"), "b")
    await until(lambda: router.held == 1)
    health = (await router.get("/health"))[1]
    counts = {name: health[name] for name in health if name.endswith("_count") or name.startswith("turns_")}
    assert counts == {
        "programs_count": 2,
        "reasoning_count": 1,
        "acting_count": 1,
        "paused_count": 1,
        "new_count": 1,
        "turns_held": 1,
        "turns_running": 0,
    }
    await router.release("a")
    await turn


@pytest.mark.parametrize(
    ("policy", "mode"), [("round-robin", "default"), ("affinity", "default"), ("least-kv", "tr")]
)
async def test_policies_that_never_hold_are_the_published_default_mode(stack: Stack, policy: str, mode: str) -> None:
    """The published words for the policy that runs."""
    router = await stack.router(await stack.fake(), policy=policy)
    health = (await router.get("/health"))[1]
    assert (health["router_mode"], health["scheduling_enabled"]) == (mode, mode == "tr")


async def test_metrics_json_has_the_published_fields(stack: Stack) -> None:
    """Accept: application/json gives the published form, with what the engine says of itself."""
    engine = await stack.engine()
    router = await stack.router(engine, metrics_interval_seconds=0.02)
    await router.chat(words(100), "p")
    tokens = (await router.programs())["p"]["footprint_tokens"]
    seen = router.state.pool.watched
    await until(lambda: any(e.observation and e.observation.completed_requests for e in seen.values()))
    status, page = await router.get("/metrics", headers={"Accept": "application/json"})
    (shown,) = page.pop("backends").values()
    assert (status, page) == (200, {"metrics_enabled": True, "metrics_interval": 0.02})
    metrics = shown.pop("metrics")
    assert shown == {
        "url": engine.url,
        "type": "vllm",
        "healthy": True,
        "monitoring": True,
        "active_program_tokens": tokens,
        "reasoning_program_tokens": 0,
        "acting_program_tokens": shown["acting_program_tokens"],
        "active_program_count": 1,
        "reasoning_program_count": 0,
        "acting_program_count": 1,
        "active_program_tokens_ratio": tokens / 8192,
        "total_program_tokens": tokens,
        "paused_program_count": 0,
        "future_paused_tokens": 0,
        "shared_tokens": tokens - shown["acting_program_tokens"],
        "buffer_per_program": shown["buffer_per_program"],
        "capacity_overflow": 0,
        "cache_config": {"block_size": 16, "num_gpu_blocks": 513, "total_tokens_capacity": 8192},
    }
    assert abs(time.time() - metrics.pop("last_updated")) < 10
    assert metrics == {
        "num_requests_running": 0,
        "num_requests_waiting": 0,
        "kv_cache_usage_perc": 0.0,
        "kv_used_tokens": None,
        "prefix_cache_hit_rate": 0.0,
        "prefix_cache_queries": metrics["prompt_tokens_total"],
        "prefix_cache_hits": 0,
        "prompt_tokens_total": metrics["prompt_tokens_total"],
        "generation_tokens_total": 4,
        "num_preemptions": 0,
        "requests_completed": 1,
        "history_size": 1,
    }
    assert metrics["prompt_tokens_total"] + 4 == tokens


async def test_metrics_json_of_a_silent_backend_has_the_same_fields(stack: Stack) -> None:
    """A backend without metrics keeps the shape: numbers that nobody told are null."""
    fake = await stack.fake()
    router = await stack.router(fake)
    shown = (await router.get("/metrics", headers={"Accept": "application/json"}))[1]["backends"][fake.url]
    assert shown["cache_config"] == {"block_size": None, "num_gpu_blocks": None, "total_tokens_capacity": None}
    assert shown["active_program_tokens_ratio"] is None
    assert set(shown["metrics"] or {"num_requests_running"}) >= {"num_requests_running"}


async def test_metrics_text_has_no_program_ids(stack: Stack) -> None:
    """Every label comes from a small set, whatever the clients send."""
    router = await stack.router(await stack.engine())
    secret = "program-7f3a"
    await router.chat(program=secret)
    await router.post(CHAT, chat(program=secret, model=secret))
    await router.post("/v1/embeddings", {"model": secret})
    await router.get(f"/programs/{secret}")
    page = await text_of(router, "/metrics")
    assert secret not in page
    for name in ("turns_total", "holds_total", "backend_turns_total", "prompt_tokens_total", "cached_tokens_total"):
        assert f"\nthunderagent_{name}" in page
    for name in ("programs", "turns_held", "turns_forwarded", "hold_seconds_bucket", "pauses_total", "resumes_total"):
        assert f"thunderagent_{name}" in page


async def test_metrics_count_what_happened(stack: Stack) -> None:
    """Turns, tokens and programs, from the answers' usage."""
    engine = await stack.engine()
    router = await stack.router(engine)
    first, second = await router.chat(words(100), "p"), await router.chat(words(100), "p")
    prompt_tokens = sum(answer["usage"]["prompt_tokens"] for answer in (first, second))
    cached_tokens = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached_tokens > 0
    assert await router.metric("thunderagent_prompt_tokens_total", backend=engine.url) == prompt_tokens
    assert await router.metric("thunderagent_cached_tokens_total", backend=engine.url) == cached_tokens
    assert await router.metric("thunderagent_completion_tokens_total") == 8
    assert await router.metric("thunderagent_backend_turns_total", backend=engine.url) == 2
    assert await router.metric("thunderagent_turns_total", outcome="completed") == 2
    assert await router.metric("thunderagent_programs", status="admitted") == 1
    assert await router.metric("thunderagent_turns_forwarded") == 0


async def test_profiles_are_off_by_default(stack: Stack) -> None:
    """Asking for them says how to have them."""
    router = await stack.router(await stack.fake())
    await router.chat(program="p")
    for path in ("/profiles", "/profiles/p"):
        status, answer = await router.get(path)
        assert (status, answer["error"]["code"]) == (400, "profiling_off")
        assert "--profile" in answer["error"]["message"]
    assert "profile" not in (await router.programs())["p"]


async def test_profiles_are_kept_and_written(stack: Stack, tmp_path: Path) -> None:
    """Averages per program over HTTP, a row per turn in the CSV, nothing that a spreadsheet would run."""
    router = await stack.router(await stack.engine(), profile=True, profile_dir=str(tmp_path))
    started_at = time.time()
    for _ in range(2):
        await router.chat(words(100), "=p")
    await router.chat("one-off")
    profile = (await router.get("/profiles/%3Dp"))[1]
    assert set(profile) == {
        "step_count",
        "avg_prefill_s",
        "avg_decode_s",
        "avg_pause_s",
        "avg_tool_call_s",
        "avg_kv_hit_rate",
    }
    assert profile["step_count"] == 2
    assert 0 < profile["avg_kv_hit_rate"] < 1
    assert (await router.get("/profiles"))[1] == {"=p": profile}
    assert (await router.programs())["=p"]["profile"] == profile
    status, answer = await router.get("/profiles/unknown")
    assert (status, answer["error"]["code"]) == (404, "not_found")
    with (tmp_path / "step_profiles.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["program_id"], row["step_id"]) for row in rows] == [("'=p", "1"), ("'=p", "2")]
    assert rows[0]["tool_call_s"] == ""
    assert float(rows[1]["tool_call_s"]) >= 0
    assert all(started_at - 1 < float(row["completed_at"]) < time.time() + 1 for row in rows)


async def test_turns_are_recorded_without_prompts(stack: Stack, tmp_path: Path) -> None:
    """A line per turn that was answered, which the simulator reads; nothing of what was said."""
    path = tmp_path / "turns.jsonl"
    router = await stack.router(await stack.engine(), record=str(path))
    for _ in range(2):
        await router.chat(words(100), "p")
    await router.chat("a secret")
    first, second, alone = read_trace(path)
    assert (first.program, second.program, alone.program) == ("p", "p", None)
    assert first.prompt_tokens == second.prompt_tokens > 100
    assert second.cached_tokens > 0
    assert first.tool_seconds is None
    assert (
        0 <= first.arrival <= first.end <= second.arrival == pytest.approx(first.end + second.tool_seconds, abs=0.01)
    )
    assert "secret" not in path.read_text()


async def test_inside_is_shown_on_request(stack: Stack) -> None:
    """The journal tells the last events without prompts; the recount finds no difference."""
    router = await stack.router(await stack.fake())
    await router.chat("a secret prompt", "p")
    status, journal = await router.get("/debug/journal")
    text = json.dumps(journal)
    assert status == 200
    assert "TurnArrived" in text
    assert "TurnFinished" in text
    assert "secret prompt" not in text
    assert await router.get("/debug/invariants") == (200, {"violations": []})


async def test_a_lost_token_shows_in_the_recount(stack: Stack) -> None:
    """What the totals and a recount differ in is a 500 with the differences."""
    router = await stack.router(await stack.fake())
    (backend,) = router.gateway.scheduler.cluster.backend_by_id.values()
    backend.guest_tokens += 7
    status, answer = await router.get("/debug/invariants")
    backend.guest_tokens -= 7
    assert status == 500
    assert "7" in " ".join(answer["violations"])


async def test_liveness_readiness_and_dashboard_answer(stack: Stack) -> None:
    """Orchestrators get short answers, people a page without foreign resources."""
    router = await stack.router(await stack.fake())
    assert await router.get("/livez") == (200, {"status": "ok"})
    assert await router.get("/readyz") == (200, {"status": "ok"})
    page = await text_of(router, "/")
    assert "<html" in page
    assert 'src="http' not in page

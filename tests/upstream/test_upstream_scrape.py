"""The metrics page and the look at a backend."""

from __future__ import annotations

import asyncio
import time

import pytest
from upstream_wire import RawBackend, recorded

from thunderagent.core.usage import Prefills
from thunderagent.testing.fake_backend import Exchange, json_answer
from thunderagent.upstream.client import BackendClient
from thunderagent.upstream.reading import BackendObservation, MetricsUnreadable
from thunderagent.upstream.scrape import Scrape, observe
from thunderagent.upstream.vllm import VllmReader, read_metrics

UNDER_LOAD = BackendObservation(
    capacity_tokens=8192,
    block_size=32,
    num_gpu_blocks=257,
    kv_usage_ratio=0.3515625,
    running=6,
    waiting=0,
    prefix_cache_queries=4235,
    prefix_cache_hits=1536,
    prompt_tokens=4235,
    computed_prompt_tokens=2699,
    prefills=Prefills(27, 809, 0.2899081619998469),
    generation_tokens=1624,
    preemptions=0,
    completed_requests=27,
)


def test_recorded_page_is_read():
    """vLLM's own page under load gives every number; one block of 257 is reserved."""
    assert read_metrics(recorded("get_metrics_load")) == UNDER_LOAD


def test_two_engines_are_summed_and_usage_averaged():
    """Data-parallel engines are one backend."""
    page = recorded("get_metrics_load")
    other = page.replace(b'engine="0"', b'engine="1"').replace(b"0.3515625", b"0.25")
    both = read_metrics(page + other)
    assert (both.capacity_tokens, both.running, both.kv_usage_ratio) == (16384, 12, 0.30078125)
    assert both.prefills == Prefills(54, 1618, 2 * 0.2899081619998469)


@pytest.mark.parametrize("missing", ["time_seconds_count", "time_seconds_sum", "kv_computed_tokens_sum"])
def test_prefills_are_unknown_unless_all_of_them_is_told(missing):
    """Versions of vLLM that count the seconds only say nothing of the rate."""
    page = recorded("get_metrics_load").replace(f"vllm:request_prefill_{missing}".encode(), b"vllm:another")
    found = read_metrics(page)
    assert (found.prefills, found.running) == (None, 6)


def test_unknown_blocks_give_no_capacity():
    """A number that vLLM does not know yet is no capacity; the rest of the page counts."""
    found = read_metrics(recorded("get_metrics_load").replace(b'num_gpu_blocks="257"', b'num_gpu_blocks="None"'))
    assert (found.capacity_tokens, found.running) == (None, 6)


def test_older_names_are_understood():
    """Earlier versions of vLLM call the usage gauge and the cache counters otherwise."""
    page = (
        b"vllm:gpu_cache_usage_perc 0.5\nvllm:gpu_prefix_cache_hits_total 3\nvllm:gpu_prefix_cache_queries_total 4\n"
    )
    assert read_metrics(page) == BackendObservation(kv_usage_ratio=0.5, prefix_cache_hits=3, prefix_cache_queries=4)


@pytest.mark.parametrize(
    "page", [b"", b"# HELP x y\nx 1\n", b"vllm:num_requests_running NaN\n", b"sglang:num_running_reqs 3\n"]
)
def test_page_without_the_names_is_all_unknown(page):
    """A server of another kind, or one that just started, has no numbers and is no error."""
    assert read_metrics(page) == BackendObservation()


@pytest.mark.parametrize(
    "page",
    [b"\xff\xfe", b"vllm:num_requests_running{engine= 3\n", b"vllm:num_requests_running x\n", b"<html></html>"],
)
def test_garbage_is_unreadable(page):
    """A page that is no metrics page is told as such."""
    with pytest.raises(MetricsUnreadable, match="metrics page cannot be read"):
        read_metrics(page)


def backend_with(pages: dict[str, bytes | None]):
    """A backend with these answers per path; None hangs."""

    async def answer(exchange: Exchange) -> None:
        answer_bytes = pages[exchange.head.split(b" ", 2)[1].decode()]
        if answer_bytes is None:
            await exchange.wait_client_left()
        else:
            await exchange.send(answer_bytes)

    return answer


async def look(pages: dict[str, bytes | None]) -> Scrape:
    """One look at such a backend, with short timeouts."""
    async with RawBackend(backend_with(pages)) as backend:
        client = BackendClient(backend.url)
        try:
            return await observe(client, VllmReader(), health_timeout_seconds=0.2, page_timeout_seconds=0.2)
        finally:
            await client.close()


HEALTHY = json_answer(b"")
MODELS = json_answer(recorded("get_v1_models"))
METRICS = json_answer(recorded("get_metrics_load"))
TINY = frozenset({"tiny"})


@pytest.mark.parametrize(
    ("health", "models", "metrics", "expected"),
    [
        (HEALTHY, MODELS, METRICS, Scrape(True, False, TINY, UNDER_LOAD, ())),
        (
            json_answer(b"", "503 Service Unavailable"),
            MODELS,
            METRICS,
            Scrape(False, False, TINY, UNDER_LOAD, ("/health: status 503",)),
        ),
        (
            json_answer(b"", "404 Not Found"),
            MODELS,
            json_answer(b"", "404 Not Found"),
            Scrape(True, False, TINY, None, ("/metrics: status 404",)),
        ),
        (
            json_answer(b"", "404 Not Found"),
            json_answer(b"", "404 Not Found"),
            json_answer(b"", "404 Not Found"),
            Scrape(
                False,
                False,
                None,
                None,
                ("/health: status 404", "/v1/models: status 404", "/metrics: status 404"),
            ),
        ),
        (
            HEALTHY,
            json_answer(b"{}"),
            json_answer(b"\xff"),
            Scrape(
                True,
                False,
                None,
                None,
                (
                    "/v1/models: Object missing required field `data`",
                    "/metrics: metrics page cannot be read: not UTF-8 at byte 0",
                ),
            ),
        ),
        (
            None,
            MODELS,
            None,
            Scrape(
                False,
                True,
                TINY,
                None,
                (
                    "/health: no full answer within 0.2 s",
                    "/metrics: no full answer within 0.2 s",
                ),
            ),
        ),
    ],
    ids=["all well", "unhealthy", "other server", "no engine", "garbage", "hanging"],
)
async def test_each_page_fails_by_itself(health, models, metrics, expected):
    """A look never raises, and what could be read is there."""
    assert await look({"/health": health, "/v1/models": models, "/metrics": metrics}) == expected


async def test_hanging_backend_does_not_delay_another():
    """Two looks at once take the time of the slower, not of both, and the quick one is done at once."""
    async with RawBackend(backend_with(dict.fromkeys(["/health", "/v1/models", "/metrics"]))) as hanging:
        well = {"/health": HEALTHY, "/v1/models": MODELS, "/metrics": METRICS}
        async with RawBackend(backend_with(well)) as quick:
            clients = [BackendClient(hanging.url), BackendClient(quick.url)]
            slow = asyncio.create_task(
                observe(clients[0], VllmReader(), health_timeout_seconds=0.2, page_timeout_seconds=0.2)
            )
            found = await observe(clients[1], VllmReader())
            assert (found.healthy, slow.done()) == (True, False)
            assert (await slow).healthy is False
            for client in clients:
                await client.close()


async def test_dead_backend_is_unhealthy():
    """Nobody listening is the plain case of bad health."""
    client = BackendClient("http://127.0.0.1:1")
    found = await observe(client, VllmReader())
    await client.close()
    assert (found.healthy, found.timed_out, found.models, found.observation) == (False, False, None, None)
    assert found.errors == ("no connection to 127.0.0.1:1: Connection refused",)


def test_recorded_page_is_read_quickly():
    """A page of 831 lines holds the event loop for far less than a fully parsed one (20 ms)."""
    page = recorded("get_metrics_load")
    read_metrics(page)
    started_at = time.perf_counter()
    for _ in range(5):
        read_metrics(page)
    assert (time.perf_counter() - started_at) / 5 < 0.015

"""SkyRL: one HTTP endpoint before several engines, JSON at /metrics, and no word about the size of their caches.

The page, as ThunderAgent's published router reads it: ``{"timestamp": 1.0, "engines": [{"engine_id": 0,
"kv_cache_usage_pct": 5.9, "num_running_reqs": 2, "num_waiting_reqs": 0, "num_cumulative_preemption": 0}]}``.
"""

from __future__ import annotations

from typing import Any

import msgspec

from thunderagent.upstream.prometheus import mean
from thunderagent.upstream.reading import BackendObservation, Fetch, MetricsUnreadable, Reader, Reading, read_page

__all__ = ["ASSUMED_ENGINE_TOKENS", "SkyrlReader", "read_metrics"]

ASSUMED_ENGINE_TOKENS = 200_000
"""KV tokens of an engine, as the published router assumes; ``--capacity-tokens`` says better."""


class SkyrlReader(Reader):
    """SkyRL's endpoint of inference engines."""

    name = "skyrl"

    async def read(self, fetch: Fetch) -> Reading:
        return await read_page(fetch, read_metrics)

    @classmethod
    def recognises(cls, page: bytes) -> bool:
        try:
            read_metrics(page)
        except MetricsUnreadable:
            return False
        return True


def read_metrics(page: bytes) -> BackendObservation:
    """Read the page: requests and preemptions summed over engines, usage averaged.

    Raises:
        MetricsUnreadable: it is not a JSON object with a list of engines.
    """
    try:
        told = msgspec.json.decode(page)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MetricsUnreadable(f"not JSON: {error}") from None
    engines = told.get("engines") if isinstance(told, dict) else None
    if not isinstance(engines, list) or not all(isinstance(engine, dict) for engine in engines):
        raise MetricsUnreadable("no list of engines")
    usage_percent = mean(_numbers(engines, "kv_cache_usage_pct"))
    return BackendObservation(
        capacity_tokens=len(engines) * ASSUMED_ENGINE_TOKENS or None,
        kv_usage_ratio=None if usage_percent is None else usage_percent / 100,
        running=_total(engines, "num_running_reqs"),
        waiting=_total(engines, "num_waiting_reqs"),
        preemptions=_total(engines, "num_cumulative_preemption"),
    )


def _numbers(engines: list[dict[str, Any]], name: str) -> list[float]:
    found = (engine.get(name) for engine in engines)
    return [value for value in found if isinstance(value, (int, float)) and not isinstance(value, bool)]


def _total(engines: list[dict[str, Any]], name: str) -> int | None:
    values = _numbers(engines, name)
    return round(sum(values)) if values else None

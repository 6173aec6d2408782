"""SGLang: Prometheus text at /metrics where it runs with --enable-metrics; the cache's size at /server_info.

As of SGLang 0.5.23: names and labels in ``srt/observability/metrics_collector.py``; ``/server_info`` in
``srt/entrypoints/http_server.py``, its internal states in ``srt/managers/scheduler_components/internal_state.py``.

Health is ``/health``. Unless ``SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION=false``, an idle server generates a token for
it and answers after a second; ``/health_generate``, which always does, is never asked.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import attrs
import msgspec
from prometheus_client.samples import Sample

from thunderagent.upstream.client import FetchedPage, ForwardFailed
from thunderagent.upstream.prometheus import has_lines_of, mean, read_samples, total
from thunderagent.upstream.reading import BackendObservation, Fetch, MetricsUnreadable, Reader, Reading, body_of

__all__ = ["SglangReader", "read_capacity", "read_metrics"]

_RUNNING = "sglang:num_running_reqs"
_WAITING = "sglang:num_queue_reqs"
_USAGE = "sglang:token_usage"
_USED = "sglang:num_used_tokens"
_HIT_RATE = "sglang:cache_hit_rate"
_RETRACTED = "sglang:num_retracted_requests_total"
_PROMPT = "sglang:prompt_tokens_total"
_GENERATION = "sglang:generation_tokens_total"
_FINISHED = "sglang:num_requests_total"
_CAPACITY = "sglang:max_total_num_tokens"
_NAMES = frozenset(
    (_RUNNING, _WAITING, _USAGE, _USED, _HIT_RATE, _RETRACTED, _PROMPT, _GENERATION, _FINISHED, _CAPACITY)
)

_INFO_PATHS = ("/server_info", "/get_server_info")
"""The second is the name in older versions; newer ones write a warning to their log each time it is asked for."""


class SglangReader(Reader):
    """SGLang. Its capacity is asked for until it is known, and anew after a failed look or a restart: that answer
    takes a round through all its schedulers, too much for every look. Where it does not come (it wants the server's
    key, which the metrics do not), that of the metrics counts, which newer versions have."""

    name = "sglang"

    def __init__(self) -> None:
        self._capacity_tokens: int | None = None
        self._is_capacity_current = False
        self._prompt_tokens = 0

    async def read(self, fetch: Fetch) -> Reading:
        errors: list[str] = []
        metrics, _ = await asyncio.gather(fetch("/metrics"), self._learn_capacity(fetch, errors))
        page, seen = _metrics_body(metrics, errors), BackendObservation()
        if page is not None:
            try:
                seen = read_metrics(page)
            except MetricsUnreadable as error:
                errors.append(f"/metrics: {error}")
        self._notice_restart(seen)
        unread_page = page if seen == BackendObservation() else None
        if self._is_capacity_current or seen.capacity_tokens is None:
            seen = attrs.evolve(seen, capacity_tokens=self._capacity_tokens)
        return Reading(None if seen == BackendObservation() else seen, tuple(errors), unread_page)

    def forget(self) -> None:
        self._is_capacity_current = False

    @classmethod
    def recognises(cls, page: bytes) -> bool:
        return has_lines_of(page, b"sglang:")

    async def _learn_capacity(self, fetch: Fetch, errors: list[str]) -> None:
        """Ask for it, unless it is known already; what was known before stays where it is not told now."""
        if self._is_capacity_current:
            return
        for path in _INFO_PATHS:
            answer = await fetch(path)
            if isinstance(answer, FetchedPage) and answer.status == 404 and path != _INFO_PATHS[-1]:
                continue
            page = body_of(path, answer, errors)
            capacity_tokens = None if page is None else read_capacity(page)
            if capacity_tokens is not None:
                self._capacity_tokens, self._is_capacity_current = capacity_tokens, True
            elif page is not None:
                errors.append(f"{path}: names no max_total_num_tokens")
            return

    def _notice_restart(self, seen: BackendObservation) -> None:
        """Counters never fall in one process, but have no sample before its first request; the next look asks for the
        capacity of the new one."""
        if seen == BackendObservation():
            return
        prompt_tokens = seen.prompt_tokens or 0
        if prompt_tokens < self._prompt_tokens:
            self._is_capacity_current = False
        self._prompt_tokens = prompt_tokens


def _metrics_body(page: FetchedPage | ForwardFailed, errors: list[str]) -> bytes | None:
    if isinstance(page, FetchedPage) and page.status == 404:
        errors.append("/metrics: status 404; SGLang has the page with --enable-metrics")
        return None
    return body_of("/metrics", page, errors)


def read_metrics(page: bytes) -> BackendObservation:
    """Read SGLang's metrics page.

    Gauges come from each scheduler: of one data-parallel rank's tensor-parallel ones (there is one unless it runs
    with --enable-metrics-for-all-schedulers) all say the same. With priority scheduling there are further samples
    per priority beside that of all, whose label is empty.

    Raises:
        MetricsUnreadable: the page is not text, or a needed line is malformed.
    """
    samples = read_samples(page, "sglang:", _NAMES)

    def by_rank(name: str) -> list[float]:
        return _by_rank(samples.get(name, ()))

    return BackendObservation(
        capacity_tokens=_sum(by_rank(_CAPACITY)) or None,
        kv_usage_ratio=mean(by_rank(_USAGE)),
        used_tokens=_sum(by_rank(_USED)),
        running=_sum(by_rank(_RUNNING)),
        waiting=_sum(by_rank(_WAITING)),
        prefix_hit_ratio=mean(by_rank(_HIT_RATE)),
        prompt_tokens=total(samples.get(_PROMPT, ())),
        generation_tokens=total(samples.get(_GENERATION, ())),
        preemptions=_sum(by_rank(_RETRACTED)),
        completed_requests=total(samples.get(_FINISHED, ())),
    )


def read_capacity(page: bytes) -> int | None:
    """The KV tokens of all data-parallel ranks, from the JSON of /server_info; None where it does not say.

    ``max_total_num_tokens`` is that of one rank. ``internal_states`` has an entry for each, whose
    ``memory_usage.token_capacity`` is the same number of that rank. The page holds
    API keys and environment variables: none of it is shown.
    """
    try:
        told = msgspec.json.decode(page)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(told, dict):
        return None
    ranks = _count(told.get("dp_size")) or 1
    by_rank = _capacities(told.get("internal_states"))
    of_one = _count(told.get("max_total_num_tokens"))
    if of_one is not None and not len(by_rank) == ranks > 1:
        return of_one * ranks
    return sum(by_rank) or None


def _capacities(states: Any) -> list[int]:
    """The capacity of each internal state; none at all where one does not say: a part would be a wrong sum."""
    if not isinstance(states, list):
        return []
    found = []
    for state in states:
        usage = state.get("memory_usage") if isinstance(state, dict) else None
        tokens = _count(usage.get("token_capacity")) if isinstance(usage, dict) else None
        if tokens is None:
            return []
        found.append(tokens)
    return found


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 1:
        return None
    return int(value)


def _by_rank(samples: Sequence[Sample]) -> list[float]:
    """One finite value of each data-parallel rank."""
    found: dict[str, float] = {}
    for sample in samples:
        if sample.labels.get("priority", "") == "" and math.isfinite(sample.value):
            rank = sample.labels.get("dp_rank", "")
            found[rank] = max(sample.value, found.get(rank, sample.value))
    return list(found.values())


def _sum(values: Sequence[float]) -> int | None:
    return round(sum(values)) if values else None

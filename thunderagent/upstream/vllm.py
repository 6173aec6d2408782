"""vLLM: Prometheus text at /metrics, the cache's size among it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prometheus_client.samples import Sample

from thunderagent.core.usage import Prefills
from thunderagent.upstream.prometheus import Samples, has_lines_of, mean, read_samples, total
from thunderagent.upstream.reading import BackendObservation, Fetch, Reader, Reading, read_page

__all__ = ["VllmReader", "read_metrics"]

_RUNNING = ("vllm:num_requests_running",)
_WAITING = ("vllm:num_requests_waiting",)
_KV_USAGE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
_QUERIES = ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total")
_HITS = ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total")
_PROMPT = ("vllm:prompt_tokens_total",)
_PROMPT_BY_SOURCE = ("vllm:prompt_tokens_by_source_total",)
_GENERATION = ("vllm:generation_tokens_total",)
_PREEMPTIONS = ("vllm:num_preemptions_total",)
_COMPLETED = ("vllm:request_success_total",)
_CACHE_CONFIG = ("vllm:cache_config_info",)
_PREFILL_REQUESTS = ("vllm:request_prefill_time_seconds_count",)
_PREFILL_SECONDS = ("vllm:request_prefill_time_seconds_sum",)
_PREFILL_TOKENS = ("vllm:request_prefill_kv_computed_tokens_sum",)
_NAMES = frozenset(
    _RUNNING + _WAITING + _KV_USAGE + _QUERIES + _HITS + _PROMPT + _PROMPT_BY_SOURCE + _GENERATION
    + _PREEMPTIONS + _COMPLETED + _CACHE_CONFIG + _PREFILL_REQUESTS + _PREFILL_SECONDS + _PREFILL_TOKENS
)  # fmt: skip


class VllmReader(Reader):
    """vLLM, and what answers like it."""

    name = "vllm"

    async def read(self, fetch: Fetch) -> Reading:
        return await read_page(fetch, read_metrics)

    @classmethod
    def recognises(cls, page: bytes) -> bool:
        return has_lines_of(page, b"vllm:")


def read_metrics(page: bytes) -> BackendObservation:
    """Read vLLM's metrics page; an empty page gives an observation of nothing but None.

    Capacity is (num_gpu_blocks - 1) x block_size of each engine, since vLLM reserves one block.

    Raises:
        MetricsUnreadable: the page is not text, or a needed line is malformed.
    """
    samples = read_samples(page, "vllm:", _NAMES)
    cache_configs = _first(samples, _CACHE_CONFIG)
    return BackendObservation(
        capacity_tokens=_capacity(cache_configs),
        block_size=next(iter(_cache_counts(cache_configs, "block_size")), None),
        num_gpu_blocks=sum(_cache_counts(cache_configs, "num_gpu_blocks")) or None,
        kv_usage_ratio=mean(sample.value for sample in _first(samples, _KV_USAGE)),
        running=total(_first(samples, _RUNNING)),
        waiting=total(_first(samples, _WAITING)),
        prefix_cache_queries=total(_first(samples, _QUERIES)),
        prefix_cache_hits=total(_first(samples, _HITS)),
        prompt_tokens=total(_first(samples, _PROMPT)),
        computed_prompt_tokens=total(
            _first(samples, _PROMPT_BY_SOURCE), lambda labels: labels.get("source") == "local_compute"
        ),
        prefills=_prefills(samples),
        generation_tokens=total(_first(samples, _GENERATION)),
        preemptions=total(_first(samples, _PREEMPTIONS)),
        completed_requests=total(
            _first(samples, _COMPLETED), lambda labels: labels.get("finished_reason") in ("stop", "length")
        ),
    )


def _prefills(samples: Samples) -> Prefills | None:
    """None unless all three are told, which vLLM counts at a request's end, all for the same requests; the tokens of
    ``prompt_tokens_by_source`` are counted at its first token, and would not go with the seconds."""
    requests = total(_first(samples, _PREFILL_REQUESTS))
    tokens = total(_first(samples, _PREFILL_TOKENS))
    seconds = [sample.value for sample in _first(samples, _PREFILL_SECONDS) if math.isfinite(sample.value)]
    if requests is None or tokens is None or not seconds:
        return None
    return Prefills(requests, tokens, math.fsum(seconds))


def _first(samples: Samples, names: Sequence[str]) -> Sequence[Sample]:
    """The samples under the newest of a metric's names that the page has."""
    for name in names:
        if name in samples:
            return samples[name]
    return []


def _capacity(samples: Sequence[Sample]) -> int | None:
    """None unless every engine names both numbers: part of a sum would be a wrong capacity.

    Groups of layers with attention of different kinds share the blocks: ``kv_cache_size_tokens``, where it is told,
    knows of them, but not of the block that is reserved.
    """
    by_engine: dict[str | None, int] = {}
    for sample in samples:
        blocks = _positive(sample.labels.get("num_gpu_blocks"))
        size = _positive(sample.labels.get("block_size"))
        if blocks is None or size is None:
            return None
        tokens, told_tokens = (blocks - 1) * size, _positive(sample.labels.get("kv_cache_size_tokens"))
        by_engine[sample.labels.get("engine")] = tokens if told_tokens is None else min(tokens, told_tokens)
    return sum(by_engine.values()) or None


def _positive(text: str | None) -> int | None:
    if text is None or not (text.isascii() and text.isdigit()):
        return None
    return int(text) or None


def _cache_counts(samples: Sequence[Sample], label: str) -> list[int]:
    """A label of the cache configuration as a number, of each engine that has it."""
    counts = (_positive(sample.labels.get(label)) for sample in samples)
    return [count for count in counts if count is not None]

"""A backend's /metrics page, reduced to the few numbers that scheduling and reports use."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from attrs import frozen
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

__all__ = ["BackendObservation", "MetricsUnreadable", "read_metrics"]

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
_NAMES = frozenset(
    _RUNNING + _WAITING + _KV_USAGE + _QUERIES + _HITS + _PROMPT + _PROMPT_BY_SOURCE + _GENERATION
    + _PREEMPTIONS + _COMPLETED + _CACHE_CONFIG
)  # fmt: skip


class MetricsUnreadable(Exception):
    """A metrics page that is not Prometheus text in UTF-8; ``detail`` says where."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return f"metrics page cannot be read: {self.detail}"


@frozen
class BackendObservation:
    """One reading of a backend's metrics; None where the page does not have a number. Counts are since its start.

    Attributes:
        capacity_tokens: usable KV tokens over all engines: (num_gpu_blocks - 1) x block_size each, since vLLM
            reserves one block.
        block_size: tokens per block, of the first engine.
        num_gpu_blocks: over all engines, reserved ones included.
        kv_usage_ratio: 0 to 1, mean over engines; running requests only, what stays cached behind them is not in it.
        computed_prompt_tokens: prompt tokens that were prefilled here, not found in a cache.
        completed_requests: finished with stop or length.
    """

    capacity_tokens: int | None = None
    block_size: int | None = None
    num_gpu_blocks: int | None = None
    kv_usage_ratio: float | None = None
    running: int | None = None
    waiting: int | None = None
    prefix_cache_queries: int | None = None
    prefix_cache_hits: int | None = None
    prompt_tokens: int | None = None
    computed_prompt_tokens: int | None = None
    generation_tokens: int | None = None
    preemptions: int | None = None
    completed_requests: int | None = None


def read_metrics(page: bytes) -> BackendObservation:
    """Read vLLM's metrics page; an empty page gives an observation of nothing but None.

    Only lines of the needed names reach the parser: a whole page of 880 lines would hold the event loop for 20 ms,
    the needed ones for less than 1 ms.

    Raises:
        MetricsUnreadable: the page is not text, or a needed line is malformed.
    """
    try:
        text = page.decode()
    except UnicodeDecodeError as error:
        raise MetricsUnreadable(f"not UTF-8 at byte {error.start}") from error
    samples = _parse(_needed_lines(text))
    if not samples and text.lstrip().startswith("<"):
        raise MetricsUnreadable("it is HTML or XML")
    cache_configs = _first(samples, _CACHE_CONFIG)
    return BackendObservation(
        capacity_tokens=_capacity(cache_configs),
        block_size=next(iter(_cache_counts(cache_configs, "block_size")), None),
        num_gpu_blocks=sum(_cache_counts(cache_configs, "num_gpu_blocks")) or None,
        kv_usage_ratio=_mean(_first(samples, _KV_USAGE)),
        running=_total(_first(samples, _RUNNING)),
        waiting=_total(_first(samples, _WAITING)),
        prefix_cache_queries=_total(_first(samples, _QUERIES)),
        prefix_cache_hits=_total(_first(samples, _HITS)),
        prompt_tokens=_total(_first(samples, _PROMPT)),
        computed_prompt_tokens=_total(
            _first(samples, _PROMPT_BY_SOURCE), lambda labels: labels.get("source") == "local_compute"
        ),
        generation_tokens=_total(_first(samples, _GENERATION)),
        preemptions=_total(_first(samples, _PREEMPTIONS)),
        completed_requests=_total(
            _first(samples, _COMPLETED), lambda labels: labels.get("finished_reason") in ("stop", "length")
        ),
    )


def _needed_lines(text: str) -> Iterable[str]:
    for line in text.split("\n"):
        if line.startswith("vllm:") and line.split("{", 1)[0].split(" ", 1)[0] in _NAMES:
            yield line


def _parse(lines: Iterable[str]) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {}
    page = "\n".join(lines)
    if not page:
        return samples
    try:
        for family in text_string_to_metric_families(page + "\n"):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append(sample)
    except (ValueError, KeyError, IndexError) as error:
        raise MetricsUnreadable(str(error) or type(error).__name__) from error
    return samples


def _first(samples: dict[str, list[Sample]], names: Sequence[str]) -> list[Sample]:
    """The samples under the newest of a metric's names that the page has."""
    for name in names:
        if name in samples:
            return samples[name]
    return []


def _total(samples: list[Sample], chosen: Callable[[dict[str, str]], bool] = lambda _labels: True) -> int | None:
    values = [sample.value for sample in samples if chosen(sample.labels) and math.isfinite(sample.value)]
    return round(sum(values)) if values else None


def _mean(samples: list[Sample]) -> float | None:
    values = [sample.value for sample in samples if math.isfinite(sample.value)]
    return sum(values) / len(values) if values else None


def _capacity(samples: list[Sample]) -> int | None:
    """None unless every engine names both numbers: part of a sum would be a wrong capacity."""
    by_engine: dict[str | None, int] = {}
    for sample in samples:
        blocks = _positive(sample.labels.get("num_gpu_blocks"))
        size = _positive(sample.labels.get("block_size"))
        if blocks is None or size is None:
            return None
        by_engine[sample.labels.get("engine")] = (blocks - 1) * size
    return sum(by_engine.values()) or None


def _positive(text: str | None) -> int | None:
    if text is None or not (text.isascii() and text.isdigit()):
        return None
    return int(text) or None


def _cache_counts(samples: list[Sample], label: str) -> list[int]:
    """A label of the cache configuration as a number, of each engine that has it."""
    counts = (_positive(sample.labels.get(label)) for sample in samples)
    return [count for count in counts if count is not None]

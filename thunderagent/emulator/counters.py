"""What an engine counts, and its rendering as vLLM's ``/metrics``."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from thunderagent.emulator.engine import Engine

__all__ = ["EngineCounters", "Histogram", "render_metrics"]

_FIRST_TOKEN_SECONDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
_BETWEEN_TOKENS_SECONDS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_REQUEST_SECONDS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
_REQUEST_TOKENS = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))
_STEP_TOKENS = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)
_FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")


class Histogram:
    """A Prometheus histogram: ``counts[i]`` observations at most ``bounds[i]``, the rest above the last bound."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count ``value`` ``times`` times. O(log bounds)."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


@attrs.define(eq=False)
class EngineCounters:
    """Counters of one engine since its start; seconds are on the driver's clock.

    Prompt tokens are counted when a request's first token comes out, once, as vLLM does: the recomputation after a
    preemption does not appear in them.
    """

    prompt_tokens_computed: int = 0
    prompt_tokens_cached: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    success: dict[str, int] = attrs.field(factory=lambda: dict.fromkeys(_FINISH_REASONS, 0))
    first_token_seconds: Histogram = attrs.field(factory=partial(Histogram, _FIRST_TOKEN_SECONDS))
    between_tokens_seconds: Histogram = attrs.field(factory=partial(Histogram, _BETWEEN_TOKENS_SECONDS))
    prefill_seconds: Histogram = attrs.field(factory=partial(Histogram, _REQUEST_SECONDS))
    queue_seconds: Histogram = attrs.field(factory=partial(Histogram, _REQUEST_SECONDS))
    request_seconds: Histogram = attrs.field(factory=partial(Histogram, _REQUEST_SECONDS))
    request_prompt_tokens: Histogram = attrs.field(factory=partial(Histogram, _REQUEST_TOKENS))
    request_computed_tokens: Histogram = attrs.field(factory=partial(Histogram, _REQUEST_TOKENS))
    request_generation_tokens: Histogram = attrs.field(factory=partial(Histogram, _REQUEST_TOKENS))
    step_tokens: Histogram = attrs.field(factory=partial(Histogram, _STEP_TOKENS))

    def step_finished(self, scheduled_tokens: int, generated_tokens: int) -> None:
        """Count one step of the engine."""
        self.steps += 1
        self.generation_tokens += generated_tokens
        self.step_tokens.observe(scheduled_tokens)

    def first_token(self, prompt_tokens: int, cached_tokens: int, seconds: float) -> None:
        """Count a request's first token, ``seconds`` after its arrival."""
        self.prompt_tokens_computed += prompt_tokens - cached_tokens
        self.prompt_tokens_cached += cached_tokens
        self.first_token_seconds.observe(seconds)

    def next_tokens(self, tokens: int, seconds: float) -> None:
        """Count ``tokens`` further tokens that took ``seconds`` together."""
        self.between_tokens_seconds.observe(seconds / tokens, tokens)

    def finished(
        self,
        reason: str,
        prompt_tokens: int,
        cached_tokens: int,
        generated_tokens: int,
        queued_seconds: float,
        prefill_seconds: float,
        seconds: float,
    ) -> None:
        """Count a request that ended by itself; ``prefill_seconds``: from its first step to its first token."""
        self.success[reason] += 1
        self.request_prompt_tokens.observe(prompt_tokens)
        self.request_computed_tokens.observe(prompt_tokens - cached_tokens)
        self.request_generation_tokens.observe(generated_tokens)
        self.queue_seconds.observe(queued_seconds)
        self.prefill_seconds.observe(prefill_seconds)
        self.request_seconds.observe(seconds)


def render_metrics(engine: Engine, model_name: str) -> str:
    """The engine's state as Prometheus text under vLLM's names, labelled with engine 0 and ``model_name``."""
    return "\n".join(_lines(engine, _escape(model_name))) + "\n"


def _escape(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _lines(engine: Engine, model: str) -> Iterator[str]:
    counters, cache = engine.counters, engine.cache
    computed, cached = counters.prompt_tokens_computed, counters.prompt_tokens_cached
    yield from _gauge("num_requests_running", "Requests in model execution batches.", model, engine.running)
    yield from _gauge("num_requests_waiting", "Requests waiting to be processed.", model, engine.waiting)
    yield from _gauge("kv_cache_usage_perc", "KV cache used by running requests.", model, cache.usage_ratio)
    queries, hits = cache.counters.queries_tokens, cache.counters.hits_tokens
    yield from _counter("prefix_cache_queries", "Tokens looked up in the prefix cache.", model, queries)
    yield from _counter("prefix_cache_hits", "Tokens found in the prefix cache.", model, hits)
    yield from _counter("num_preemptions", "Preemptions of running requests.", model, counters.preemptions)
    yield from _counter("prompt_tokens", "Prompt tokens processed.", model, computed + cached)
    sources = {"local_compute": computed, "local_cache_hit": cached, "external_kv_transfer": 0}
    yield from _family("prompt_tokens_by_source_total", "counter", "Prompt tokens by source.")
    for source, tokens in sources.items():
        yield _sample("prompt_tokens_by_source_total", model, tokens, f',source="{source}"')
    yield from _counter("prompt_tokens_cached", "Prompt tokens found in the prefix cache.", model, cached)
    yield from _counter("generation_tokens", "Tokens generated.", model, counters.generation_tokens)
    yield from _family("request_success_total", "counter", "Requests that ended, by reason.")
    for reason, count in counters.success.items():
        value = float(count)
        yield f'vllm:request_success_total{{engine="0",finished_reason="{reason}",model_name="{model}"}} {value}'
    histograms = {
        "request_prompt_tokens": counters.request_prompt_tokens,
        "request_prefill_kv_computed_tokens": counters.request_computed_tokens,
        "request_generation_tokens": counters.request_generation_tokens,
        "iteration_tokens_total": counters.step_tokens,
        "time_to_first_token_seconds": counters.first_token_seconds,
        "inter_token_latency_seconds": counters.between_tokens_seconds,
        "e2e_request_latency_seconds": counters.request_seconds,
        "request_queue_time_seconds": counters.queue_seconds,
        "request_prefill_time_seconds": counters.prefill_seconds,
    }
    for name, histogram in histograms.items():
        yield from _family(name, "histogram", "Seconds are simulated." if "seconds" in name else "Tokens.")
        yield from _histogram_samples(name, model, histogram)
    yield from _family("cache_config_info", "gauge", "The KV cache's configuration.")
    yield (
        f'vllm:cache_config_info{{block_size="{cache.block_size}",cache_dtype="auto",'
        f'enable_prefix_caching="{cache.prefix_caching}",engine="0",'
        f'kv_cache_size_tokens="{engine.settings.num_gpu_blocks * cache.block_size}",'
        f'num_gpu_blocks="{engine.settings.num_gpu_blocks}"}} 1.0'
    )


def _family(name: str, kind: str, help_text: str) -> Iterator[str]:
    yield f"# HELP vllm:{name} {help_text}"
    yield f"# TYPE vllm:{name} {kind}"


def _sample(name: str, model: str, value: float, more_labels: str = "") -> str:
    return f'vllm:{name}{{engine="0",model_name="{model}"{more_labels}}} {float(value)}'


def _gauge(name: str, help_text: str, model: str, value: float) -> Iterator[str]:
    yield from _family(name, "gauge", help_text)
    yield _sample(name, model, value)


def _counter(name: str, help_text: str, model: str, value: float) -> Iterator[str]:
    yield from _family(f"{name}_total", "counter", help_text)
    yield _sample(f"{name}_total", model, value)


def _histogram_samples(name: str, model: str, histogram: Histogram) -> Iterator[str]:
    total = 0
    for bound, count in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
        total += count
        labels = f'engine="0",le="{bound}",model_name="{model}"'
        yield f"vllm:{name}_bucket{{{labels}}} {float(total)}"
    yield _sample(f"{name}_count", model, total)
    yield _sample(f"{name}_sum", model, histogram.sum)

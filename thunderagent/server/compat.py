"""The JSON of ``/health``, ``/programs`` and ``/metrics`` as the published router answers it, with more fields."""

from __future__ import annotations

from typing import Any

import attrs

from thunderagent import __version__
from thunderagent.core.backend import Backend
from thunderagent.core.program import Program, Standing, Status
from thunderagent.server.state import State

__all__ = ["health_json", "metrics_json", "per_backend_json", "program_json"]

_STATES = {Status.ADMITTED: "active", Status.YIELDING: "active", Status.PAUSED: "paused", Status.NEW: "paused"}
_NEVER_HOLDING = ("round-robin", "affinity")
"""Built-in policies that only place: what the published router calls its mode ``default``."""


def program_json(program: Program, state: State) -> dict[str, Any]:
    """One program; ``state`` is the published word, ``scheduling_status`` the exact one.

    ``waiting_seconds`` is how long the one of its held turns waits that waits longest, be it beside its place. Of one
    whose client left while its turn was held it is None: nothing of it waits, though its age in the queue is kept for
    a while for the turn sent again.
    """
    cluster, now = state.gateway.scheduler.cluster, state.gateway.clock.now()
    shown: dict[str, Any] = {
        "backend": None if program.place is None else program.place.id,
        "context_len": program.context_bytes,
        "total_tokens": program.total_tokens,
        "step_count": program.turns_finished,
        "status": "reasoning" if program.forwarded or program.held else "acting",
        "state": _STATES[program.status],
        "scheduling_status": program.status.value,
        "footprint_tokens": cluster.footprint_tokens(program),
        "resident_ratio": round(cluster.resident_ratio(program), 3),
        "cached_tokens": _cached_tokens(program),
        "tool_seconds_p50": _tool_seconds(program),
        "turns_running": len(program.forwarded),
        "turns_held": len(program.held),
        "conversations": len(program.branches),
        "waiting_seconds": _since(now, _waiting_since(program)),
        "idle_seconds": _since(now, program.idle_since if program.is_idle else None),
    }
    if state.profiler is not None:
        shown["profile"] = state.profiler.profile(program.id)
    return shown


def health_json(state: State) -> dict[str, Any]:
    """Counts of programs, overall and by backend, and what waits are to be expected."""
    cluster = state.gateway.scheduler.cluster
    program_count, acting_count = cluster.program_count, len(cluster.idle)
    placed_count = sum(backend.program_count for backend in cluster.backend_by_id.values())
    policy = state.settings.policy
    is_scheduling = policy not in _NEVER_HOLDING
    return {
        "status": "draining" if state.gateway.is_draining else "ok",
        "version": __version__,
        "policy": policy,
        "router_mode": "tr" if is_scheduling else "default",
        "scheduling_enabled": is_scheduling,
        "backends": list(cluster.backend_by_id),
        "programs_count": program_count,
        "reasoning_count": program_count - acting_count,
        "acting_count": acting_count,
        "paused_count": program_count - placed_count,
        "new_count": program_count - placed_count - len(cluster.paused_by_id),
        "turns_held": cluster.queue.turn_count,
        "turns_running": sum(backend.turn_count for backend in cluster.backend_by_id.values()),
        "per_backend": per_backend_json(state),
        "outlook": _outlook_json(state),
        "profile_enabled": state.profiler is not None,
    }


def per_backend_json(state: State) -> dict[str, Any]:
    """Counts of programs and tokens of each backend."""
    return {
        backend.id: _backend_health(backend) for backend in state.gateway.scheduler.cluster.backend_by_id.values()
    }


def _outlook_json(state: State) -> dict[str, Any]:
    found = state.gateway.outlook()
    shown = {
        name: round(value, 3) if isinstance(value, float) else value for name, value in attrs.asdict(found).items()
    }
    return {**shown, "max_hold_seconds": state.settings.scheduler.max_hold_seconds, "keeps_limit": found.keeps_limit}


def _backend_health(backend: Backend) -> dict[str, Any]:
    reasoning = backend.count(Standing.REASONING) + backend.count(Standing.YIELDING)
    return {
        "total": backend.program_count + backend.paused_count,
        "reasoning": reasoning,
        "acting": backend.count(Standing.ACTING),
        "paused": backend.paused_count,
        "marked_for_pause": backend.count(Standing.YIELDING),
        "future_paused_tokens": backend.yielding_tokens,
        "available": backend.is_available,
        "healthy": backend.is_healthy,
        "draining": backend.is_draining,
        "capacity_tokens": backend.capacity_tokens,
        "accounted_tokens": backend.accounted_tokens,
        "reasoning_tokens": backend.reasoning_tokens,
        "acting_tokens": backend.acting_tokens,
        "yielding_tokens": backend.yielding_tokens,
        "guest_tokens": backend.guest_tokens,
        "shared_tokens": backend.shared_tokens,
        "reserved_tokens": backend.reserved_tokens,
        "turns_running": backend.turn_count,
    }


def metrics_json(state: State) -> dict[str, Any]:
    """The published form of ``GET /metrics``."""
    cluster = state.gateway.scheduler.cluster
    return {
        "metrics_enabled": True,
        "metrics_interval": state.settings.metrics_interval_seconds,
        "backends": {backend.id: _backend_metrics(state, backend) for backend in cluster.backend_by_id.values()},
    }


def _backend_metrics(state: State, backend: Backend) -> dict[str, Any]:
    reasoning_tokens = backend.reasoning_tokens + backend.yielding_tokens + backend.guest_tokens
    active_tokens, capacity_tokens = backend.accounted_tokens, backend.capacity_tokens
    entry = state.pool.watched.get(backend.id)
    overflow_tokens = 0 if capacity_tokens is None else max(0, active_tokens - capacity_tokens)
    return {
        "url": backend.id,
        "type": None if entry is None else entry.reader.name,
        "healthy": backend.is_healthy,
        "monitoring": entry is not None,
        "active_program_tokens": active_tokens,
        "reasoning_program_tokens": reasoning_tokens,
        "acting_program_tokens": backend.acting_tokens,
        "active_program_count": backend.program_count,
        "reasoning_program_count": backend.count(Standing.REASONING) + backend.count(Standing.YIELDING),
        "acting_program_count": backend.count(Standing.ACTING),
        "active_program_tokens_ratio": None if not capacity_tokens else active_tokens / capacity_tokens,
        "total_program_tokens": active_tokens + backend.paused_tokens,
        "paused_program_count": backend.paused_count,
        "future_paused_tokens": backend.yielding_tokens,
        "shared_tokens": backend.shared_tokens,
        "buffer_per_program": state.gateway.scheduler.policy.buffer_tokens,
        "capacity_overflow": overflow_tokens,
        "cache_config": _cache_config(entry, capacity_tokens),
        "metrics": _engine_metrics(entry),
    }


def _cache_config(entry: Any, capacity_tokens: int | None) -> dict[str, Any]:
    seen = None if entry is None else entry.observation
    return {
        "block_size": getattr(seen, "block_size", None),
        "num_gpu_blocks": getattr(seen, "num_gpu_blocks", None),
        "total_tokens_capacity": capacity_tokens,
    }


def _engine_metrics(entry: Any) -> dict[str, Any] | None:
    seen = None if entry is None else entry.observation
    if seen is None:
        return None
    queries, hits = seen.prefix_cache_queries, seen.prefix_cache_hits
    return {
        "num_requests_running": seen.running,
        "num_requests_waiting": seen.waiting,
        "kv_cache_usage_perc": seen.kv_usage_ratio,
        "kv_used_tokens": seen.used_tokens,
        "prefix_cache_hit_rate": hits / queries if hits is not None and queries else seen.prefix_hit_ratio,
        "prefix_cache_queries": queries,
        "prefix_cache_hits": hits,
        "prompt_tokens_total": seen.prompt_tokens,
        "generation_tokens_total": seen.generation_tokens,
        "num_preemptions": seen.preemptions,
        "requests_completed": seen.completed_requests,
        "last_updated": entry.observed_at,
        "history_size": 1,
    }


def _cached_tokens(program: Program) -> int | None:
    """The prefix that the engine's KV events say is cached at its place, or at its last one; None: not known."""
    backend = program.place or program.last_place
    cached = None if backend is None else program.cached_on(backend)
    return None if cached is None else cached.prefix_tokens


def _waiting_since(program: Program) -> float | None:
    """Since when the oldest of its held turns waits; None where it holds none. O(held turns).

    Its age in the queue counts for those that go with it: a turn sent again has waited since it was first sent.
    """
    readings = [turn.waiting_since for turn in program.held.values()]
    if any(not turn.waits_alone for turn in program.held.values()):
        readings.append(program.waiting_since)
    return min((reading for reading in readings if reading is not None), default=None)


def _tool_seconds(program: Program) -> float | None:
    seconds = None if program.tool_times is None else program.tool_times.quantile_seconds(0.5)
    return None if seconds is None else round(seconds, 3)


def _since(now: float, at: float | None) -> float | None:
    return None if at is None else round(max(0.0, now - at), 3)

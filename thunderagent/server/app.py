"""Builds the aiohttp application of a daemon from its settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from thunderagent.backends import BackendPool, WatchSettings, stop_task
from thunderagent.clock import Clock, MonotonicClock, ScaledClock
from thunderagent.config import Settings
from thunderagent.core.scheduler import Scheduler
from thunderagent.gateway import Gateway
from thunderagent.registry import make_policy
from thunderagent.server.admin import routes
from thunderagent.server.hold_watch import HoldLimitWatch
from thunderagent.server.inference import APIS, handle_turn
from thunderagent.server.kv_events import follow_kv_events
from thunderagent.server.middleware import middlewares
from thunderagent.server.state import STATE, State
from thunderagent.server.unscheduled import UNSCHEDULED_PATHS, handle_unscheduled, list_models, show_model
from thunderagent.telemetry.metrics import Metrics
from thunderagent.telemetry.profile import Profiler
from thunderagent.telemetry.recording import Recorder

__all__ = ["create_app"]

_FIRST_LOOK_SECONDS = 10.0
"""How long the start may wait for the backends to be looked at: the first turns then find models and capacity."""


def create_app(settings: Settings, clock: Clock | None = None) -> web.Application:
    """The application; run it with ``handler_cancellation=True``, so that a client's leaving ends its turn.

    Raises:
        ConfigError: the policy is unknown, or does not take its options.
    """
    if clock is None:
        clock = MonotonicClock() if settings.clock_speed == 1 else ScaledClock(settings.clock_speed)
    scheduler = Scheduler(make_policy(settings.policy, settings.policy_options), settings.scheduler)
    metrics = Metrics(scheduler.cluster, settings.scheduler)
    gateway = Gateway(scheduler, clock, metrics)
    watch = WatchSettings(
        interval_seconds=settings.metrics_interval_seconds,
        failed_interval_seconds=min(1.0, settings.metrics_interval_seconds),
        failures=settings.health_failures,
        capacity_tokens=settings.capacity_tokens,
        backend_type=settings.backend_type,
    )
    profiler = Profiler(Path(settings.profile_dir)) if settings.profile else None
    pool = BackendPool(watch, gateway.handle, gateway.can_spare)
    app = web.Application(middlewares=middlewares, client_max_size=settings.max_body_bytes)
    recorder = Recorder(Path(settings.record)) if settings.record else None
    app[STATE] = State(settings, gateway, pool, metrics, profiler, recorder)
    if settings.kv_events:
        follow_kv_events(app[STATE])
    app.cleanup_ctx.extend((_writing, _watching, _foreseeing))
    app.add_routes([web.post(path, handle_turn) for path in APIS])
    app.add_routes([web.post(path, handle_unscheduled) for path in UNSCHEDULED_PATHS])
    app.add_routes([web.get("/v1/models", list_models), web.get("/v1/models/{model:.+}", show_model)])
    app.add_routes(routes())
    return app


async def _writing(app: web.Application) -> AsyncIterator[None]:
    writers = [writer for writer in (app[STATE].profiler, app[STATE].recorder) if writer is not None]
    try:
        for writer in writers:
            writer.open()
        yield
    finally:
        for writer in writers:
            writer.close()


async def _watching(app: web.Application) -> AsyncIterator[None]:
    state = app[STATE]
    try:
        state.configured = tuple(state.pool.add(config) for config in state.settings.backends)
        await state.pool.wait_first_looks(_FIRST_LOOK_SECONDS)
        state.is_started = True
        yield
    finally:
        state.is_started = False
        try:
            await state.pool.close()
            if state.following is not None:
                state.following.close()
        finally:
            state.gateway.stop()  # last: what the watching tasks tell arms its timer


async def _foreseeing(app: web.Application) -> AsyncIterator[None]:
    gateway = app[STATE].gateway
    if gateway.scheduler.settings.max_hold_seconds <= 0:
        yield
        return
    task = asyncio.create_task(HoldLimitWatch(gateway).run(), name="watch the hold limit")
    yield
    await stop_task(task)

"""What the request handlers share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiohttp import web
from attrs import define, field

from thunderagent.backends import BackendPool, WatchedBackend
from thunderagent.config import Settings
from thunderagent.gateway import Gateway
from thunderagent.telemetry.metrics import Metrics
from thunderagent.telemetry.profile import Profiler
from thunderagent.telemetry.recording import Recorder

if TYPE_CHECKING:
    from thunderagent.kv_events.following import KvFollowing

__all__ = ["STATE", "State", "state_of"]


@define(eq=False, repr=False)
class State:
    """One daemon's parts. ``is_started``: turns are taken; ``/readyz`` says whether backends are there for them."""

    settings: Settings
    gateway: Gateway
    pool: BackendPool
    metrics: Metrics
    profiler: Profiler | None
    recorder: Recorder | None = None
    """With ``--record``."""
    following: KvFollowing | None = None
    """With ``--kv-events``."""
    is_started: bool = False
    configured: tuple[WatchedBackend, ...] = ()
    """The backends of the settings, as they are watched from the start."""
    unscheduled_count: int = 0
    """Requests under way that are routed but not scheduled."""
    turn_tasks: set[asyncio.Task[Any]] = field(factory=set)
    """Handlers of the scheduled turns under way."""
    is_stopping: bool = False
    """The drain is over: what is cancelled now is cut by the shutdown, not by its client."""


STATE: web.AppKey[State] = web.AppKey("state", State)


def state_of(request: web.Request) -> State:
    """The daemon that serves this request."""
    return request.app[STATE]

"""The configured backends: a client each, and a task each that watches its health, models and capacity."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable

import structlog
from attrs import define, field, frozen

from thunderagent.core import events
from thunderagent.core.events import Event
from thunderagent.core.ids import BackendId
from thunderagent.upstream.client import BackendClient, ForwardFailed, normalise_base_url
from thunderagent.upstream.prometheus import BackendObservation
from thunderagent.upstream.scrape import Scrape, observe

__all__ = ["BackendConfig", "BackendPool", "WatchSettings", "WatchedBackend"]

_log = structlog.get_logger("thunderagent.backends")


@frozen
class BackendConfig:
    """One backend as configured. ``url`` has neither a trailing slash nor ``/v1``."""

    url: str = field(converter=normalise_base_url)
    api_key: str | None = field(default=None, repr=False)
    verify_tls: bool = True
    ca_file: str | None = None

    @property
    def id(self) -> BackendId:
        return BackendId(self.url)


@frozen
class WatchSettings:
    """How backends are watched; wall seconds."""

    interval_seconds: float = 5.0
    failed_interval_seconds: float = 1.0
    """Between looks at a backend that fails."""
    failures: int = 3
    """So many failed looks or connections in a row make a backend failed; slowness alone never does."""
    capacity_tokens: int | None = None
    """Used instead of what the backend says."""


@define(eq=False)
class WatchedBackend:
    """A backend's client and what is known of it beyond the scheduler's needs."""

    config: BackendConfig
    client: BackendClient
    failures: int = 0
    is_failed: bool = False
    observation: BackendObservation | None = None
    last_error: str | None = None
    observed_at: float | None = None
    """Unix time of the last look that found it healthy."""
    is_capacity_unknown: bool = False
    """It was looked at and did not say; told once."""
    look_now: asyncio.Event = field(factory=asyncio.Event)
    first_look: asyncio.Event = field(factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


@define(eq=False)
class BackendPool:
    """Owns the clients and the watching tasks; tells the scheduler through ``send``."""

    settings: WatchSettings
    send: Callable[[Event], None]
    watched: dict[BackendId, WatchedBackend] = field(factory=dict)
    _retired: list[WatchedBackend] = field(factory=list)
    """Removed ones; an answer may still be read from them, and an idle client holds no connection for long."""

    def add(self, config: BackendConfig) -> WatchedBackend:
        """Add a backend and begin to watch it. Inside a running loop; the id must be new."""
        entry = WatchedBackend(config, BackendClient(config.url, config.api_key, ssl=_ssl(config)))
        self.watched[config.id] = entry
        self.send(events.BackendAdded(config.id, None, self.settings.capacity_tokens))
        entry.task = asyncio.create_task(self._watch(entry), name=f"watch {config.id}")
        return entry

    async def remove(self, backend: BackendId) -> None:
        """Stop watching and forget a backend; answers still being read from it go on."""
        entry = self.watched.pop(backend)
        self._retired.append(entry)
        if entry.task is not None:
            entry.task.cancel()
        # Told before anything is awaited: the same URL may be added again meanwhile.
        self.send(events.BackendRemoved(backend))
        await _stop(entry.task)

    async def wait_first_looks(self, timeout_seconds: float) -> None:
        """Wait until each backend was looked at once, or the time is over."""
        looks = [asyncio.ensure_future(entry.first_look.wait()) for entry in self.watched.values()]
        if looks:
            _, pending = await asyncio.wait(looks, timeout=timeout_seconds)
            for look in pending:
                look.cancel()

    async def close(self) -> None:
        """End all watching and close all connections."""
        for entry in self.watched.values():
            await _stop(entry.task)
        for entry in (*self.watched.values(), *self._retired):
            await entry.client.close()

    def note_answer(self, backend: BackendId) -> None:
        """A turn was answered: failures before it were not in a row."""
        entry = self.watched.get(backend)
        if entry is not None and not entry.is_failed:
            entry.failures = 0

    def note_failure(self, backend: BackendId, error: ForwardFailed) -> None:
        """A turn got no answer. A connection that was not made counts; after anything else, look at once."""
        entry = self.watched.get(backend)
        if entry is None:
            return
        if not error.sent:
            self._count_failure(entry, str(error))
        entry.look_now.set()

    async def _watch(self, entry: WatchedBackend) -> None:
        while True:
            entry.look_now.clear()
            try:
                self._take(entry, await observe(entry.client))
            except asyncio.CancelledError:
                raise
            except Exception:  # a bug in reading a page must not end the watch
                _log.exception("backend.look_failed", backend=entry.config.id)
            if entry.observed_at is None and not entry.first_look.is_set():
                _log.warning("backend.not_reached", backend=entry.config.id, error=entry.last_error)
            entry.first_look.set()
            settings = self.settings
            failing = entry.is_failed or entry.failures > 0
            pause_seconds = settings.failed_interval_seconds if failing else settings.interval_seconds
            if not failing:
                await _sleep_unless(entry.look_now, pause_seconds)
            else:
                await asyncio.sleep(pause_seconds)

    def _take(self, entry: WatchedBackend, scrape: Scrape) -> None:
        """Turn one look into events."""
        if not scrape.healthy:
            if not scrape.timed_out:
                self._count_failure(entry, "; ".join(scrape.errors) or "not healthy")
            else:
                entry.last_error = "; ".join(scrape.errors)
            return
        entry.failures, entry.observation = 0, scrape.observation
        entry.last_error = "; ".join(scrape.errors) or None
        entry.observed_at = time.time()
        seen = scrape.observation
        capacity_tokens = self.settings.capacity_tokens
        if capacity_tokens is None and seen is not None:
            capacity_tokens = seen.capacity_tokens
        if seen is not None or scrape.models is not None:
            self.send(
                events.BackendObserved(
                    entry.config.id,
                    None if scrape.models is None else tuple(sorted(scrape.models)),
                    capacity_tokens,
                    None if seen is None else seen.kv_usage_ratio,
                    None if seen is None else _whole(seen.running),
                    None if seen is None else _whole(seen.waiting),
                )
            )
        if capacity_tokens is None and not entry.is_capacity_unknown:
            entry.is_capacity_unknown = True
            remedy = "--capacity-tokens; nothing is held for it until then"
            _log.warning("backend.capacity_unknown", backend=entry.config.id, remedy=remedy)
        if entry.is_failed:
            entry.is_failed = False
            _log.info("backend.recovered", backend=entry.config.id)
            self.send(events.BackendRecovered(entry.config.id))

    def _count_failure(self, entry: WatchedBackend, error: str) -> None:
        entry.failures += 1
        entry.last_error = error
        if entry.failures >= self.settings.failures and not entry.is_failed:
            entry.is_failed = True
            _log.warning("backend.failed", backend=entry.config.id, error=error)
            self.send(events.BackendFailed(entry.config.id, error))


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)


def _ssl(config: BackendConfig) -> ssl.SSLContext | bool:
    if not config.verify_tls:
        return False
    return ssl.create_default_context(cafile=config.ca_file) if config.ca_file else True


async def _sleep_unless(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except asyncio.TimeoutError:
        pass


async def _stop(task: asyncio.Task[None] | None) -> None:
    if task is None:
        return
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        pass

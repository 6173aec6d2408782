"""The configured backends: a client each, and a task each that watches its health, models and capacity."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import structlog
from attrs import define, field, frozen

from thunderagent.core import events
from thunderagent.core.events import Event
from thunderagent.core.ids import BackendId
from thunderagent.core.usage import Outcome, Prefills
from thunderagent.health import FAILED_LOOK_SECONDS, FAILURES, LOOK_SECONDS, Health
from thunderagent.upstream.client import BackendClient, ForwardFailed, normalise_base_url
from thunderagent.upstream.readers import READERS
from thunderagent.upstream.reading import BackendObservation, Reader
from thunderagent.upstream.scrape import Scrape, observe

__all__ = ["BACKEND_TYPES", "BackendConfig", "BackendPool", "WatchSettings", "WatchedBackend", "stop_task"]

_log = structlog.get_logger("thunderagent.backends")
_T = TypeVar("_T")

BACKEND_TYPES = tuple(READERS)
"""What a backend may be said to be: it decides which of its pages are looked at, and how they are read."""

_FAULTS = (Outcome.BACKEND_ERROR, Outcome.BACKEND_DISCONNECTED)


def _check_type(_: Any, __: Any, name: str | None) -> None:
    if name is not None and name not in BACKEND_TYPES:
        raise ValueError(f"type must be one of {', '.join(BACKEND_TYPES)}, got {name!r}")


@frozen
class BackendConfig:
    """One backend as configured. ``url`` has neither a trailing slash nor ``/v1``."""

    url: str = field(converter=normalise_base_url)
    api_key: str | None = field(default=None, repr=False)
    verify_tls: bool = True
    ca_file: str | None = None
    type: str | None = field(default=None, validator=_check_type)
    """One of ``BACKEND_TYPES``. None: that of ``WatchSettings``."""

    @property
    def id(self) -> BackendId:
        return BackendId(self.url)


@frozen
class WatchSettings:
    """How backends are watched; wall seconds. See ``health.py``."""

    interval_seconds: float = LOOK_SECONDS
    failed_interval_seconds: float = FAILED_LOOK_SECONDS
    failures: int = FAILURES
    capacity_tokens: int | None = None
    """Used instead of what the backend says."""
    backend_type: str = "vllm"
    """Of backends that do not say theirs."""


@define(eq=False)
class WatchedBackend:
    """A backend's client and what is known of it beyond the scheduler's needs."""

    config: BackendConfig
    client: BackendClient
    reader: Reader
    health: Health
    """By the pool's clock."""
    running: int = 0
    """Requests that use the client; the client of a removed backend is closed after the last one."""
    is_removed: bool = False
    observation: BackendObservation | None = None
    prefills: Prefills | None = None
    """As counted at the last look; None after a failed one: another process may count by the next."""
    last_error: str | None = None
    observed_at: float | None = None
    """Unix time of the last look that found it healthy."""
    is_capacity_unknown: bool = False
    """It was looked at and did not say; told once."""
    is_type_doubted: bool = False
    """Its metrics are those of another type; told once."""
    look_now: asyncio.Event = field(factory=asyncio.Event)
    first_look: asyncio.Event = field(factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    follow_task: asyncio.Task[None] | None = None
    """While it is healthy and something follows it."""


@define(eq=False)
class BackendPool:
    """Owns the clients and the watching tasks; tells the scheduler through ``send``.

    ``can_spare`` says whether the other backends can take over for one; asked before a backend that looks healthy
    is taken out. ``follow`` is run once for each backend while it is healthy, and cancelled when it fails or is
    removed.
    """

    settings: WatchSettings
    send: Callable[[Event], None]
    can_spare: Callable[[BackendId], bool] = lambda backend: False
    now: Callable[[], float] = time.monotonic
    follow: Callable[[WatchedBackend], Coroutine[Any, Any, None]] | None = None
    watched: dict[BackendId, WatchedBackend] = field(factory=dict)
    _retired: set[WatchedBackend] = field(factory=set)
    """Removed ones whose client is not closed yet: an answer is still read from it."""
    _tasks: set[asyncio.Task[Any]] = field(factory=set)

    def add(self, config: BackendConfig) -> WatchedBackend:
        """Add a backend and begin to watch it. Inside a running loop; the id must be new."""
        reader = READERS[config.type or self.settings.backend_type]()
        client = BackendClient(config.url, config.api_key, ssl=_ssl(config))
        entry = WatchedBackend(config, client, reader, Health(self.settings.failures))
        self.watched[config.id] = entry
        self.send(events.BackendAdded(config.id, None, self.settings.capacity_tokens))
        entry.task = asyncio.create_task(self._watch(entry), name=f"watch {config.id}")
        return entry

    def remove(self, entry: WatchedBackend) -> bool:
        """Stop watching and forget a backend; answers still being read from it go on.

        Returns False where this very entry was removed before, whatever has its URL now.
        """
        if self.watched.get(entry.config.id) is not entry:
            return False
        del self.watched[entry.config.id]
        entry.is_removed = True
        self._retired.add(entry)
        if entry.task is not None:
            entry.task.cancel()
        _stop_following(entry)
        self.send(events.BackendRemoved(entry.config.id))
        if entry.running == 0:
            self.own(self._close_retired(entry), f"close {entry.config.id}")
        return True

    def own(self, work: Coroutine[Any, Any, _T], name: str) -> asyncio.Task[_T]:
        """Run work that must not end with the request that began it; ``close`` cancels what is left of it."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def use(self, backend: BackendId) -> WatchedBackend | None:
        """Begin a request to a backend; None for one that was removed. Each is ended with ``leave``."""
        entry = self.watched.get(backend)
        if entry is not None:
            entry.running += 1
        return entry

    def leave(self, entry: WatchedBackend) -> None:
        """A request to the backend is over, its answer read or closed."""
        entry.running -= 1
        if entry.is_removed and entry.running == 0:
            self.own(self._close_retired(entry), f"close {entry.config.id}")

    async def wait_first_looks(self, timeout_seconds: float) -> None:
        """Wait until each backend was looked at once, or the time is over."""
        await _wait_for_all([entry.first_look for entry in self.watched.values()], timeout_seconds)

    async def close(self) -> None:
        """End all watching and close all connections."""
        entries = (*self.watched.values(), *self._retired)
        for entry in entries:
            _stop_following(entry)
        for task in (*self._tasks, *(entry.task for entry in entries)):
            await stop_task(task)
        for entry in entries:
            await entry.client.close()
        self._retired.clear()

    def note_answer(self, entry: WatchedBackend) -> None:
        """A turn's answer began."""
        entry.health.answer_began()

    def note_failure(self, entry: WatchedBackend, error: ForwardFailed) -> None:
        """A turn got no answer: look at once."""
        if entry.is_removed:
            return
        if not error.sent:
            entry.last_error = str(error)
            if entry.health.connection_failed():
                self._fail(entry, str(error))
        entry.look_now.set()

    def note_outcome(self, entry: WatchedBackend, outcome: Outcome) -> None:
        """A turn that was answered is over. What its client did wrong, or that it left, says nothing."""
        if outcome is Outcome.COMPLETED:
            entry.health.turn_completed()
        elif outcome in _FAULTS and not entry.is_removed:
            in_a_row = entry.health.failed_turns + 1
            if entry.health.turn_failed(self.now(), lambda: self.can_spare(entry.config.id)):
                self._fail(entry, f"{in_a_row} turns in a row failed")

    async def _close_retired(self, entry: WatchedBackend) -> None:
        await stop_task(entry.task)
        await entry.client.close()
        self._retired.discard(entry)

    async def _watch(self, entry: WatchedBackend) -> None:
        while True:
            entry.look_now.clear()
            try:
                self._take(entry, await observe(entry.client, entry.reader))
            except Exception:  # a bug in reading a page must not end the watch
                _log.exception("backend.look_failed", backend=entry.config.id)
                entry.health.look(None, self.now())
            if entry.observed_at is None and not entry.first_look.is_set():
                _log.warning("backend.not_reached", backend=entry.config.id, error=entry.last_error)
            entry.first_look.set()
            if entry.health.is_failing:
                await asyncio.sleep(self.settings.failed_interval_seconds)
            else:
                await _wait_for_all([entry.look_now], self.settings.interval_seconds)

    def _take(self, entry: WatchedBackend, scrape: Scrape) -> None:
        """Turn one look into events."""
        if not scrape.healthy:
            entry.last_error = "; ".join(scrape.errors) or "not healthy"
            entry.prefills = None
            if entry.health.look(None if scrape.timed_out else False, self.now()):
                self._fail(entry, entry.last_error)
            return
        entry.observation = scrape.observation
        if not entry.health.is_ejected(self.now()):
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
                    None if seen is None else seen.running,
                    None if seen is None else seen.waiting,
                    _prefills_since(entry, seen),
                )
            )
        if scrape.looks_like is not None:
            _doubt_type(entry, scrape.looks_like)
        elif capacity_tokens is None and not entry.is_capacity_unknown:
            entry.is_capacity_unknown = True
            remedy = "--capacity-tokens; nothing is held for it until then"
            say = _log.warning if entry.reader.tells_capacity else _log.info
            say("backend.capacity_unknown", backend=entry.config.id, remedy=remedy)
        if entry.health.look(True, self.now()):
            _log.info("backend.recovered", backend=entry.config.id)
            self.send(events.BackendRecovered(entry.config.id))
        if self.follow is not None and entry.follow_task is None and not entry.health.is_failed:
            entry.follow_task = self.own(self.follow(entry), f"follow {entry.config.id}")

    def _fail(self, entry: WatchedBackend, error: str) -> None:
        entry.last_error = error
        _stop_following(entry)
        _log.warning("backend.failed", backend=entry.config.id, error=error)
        self.send(events.BackendFailed(entry.config.id, error))


def _prefills_since(entry: WatchedBackend, seen: BackendObservation | None) -> Prefills | None:
    """What the backend counted since it was looked at before; from now on, since now."""
    if seen is None or seen.prefills is None:
        return None
    before, entry.prefills = entry.prefills, seen.prefills
    return None if before is None else seen.prefills.since(before)


def _stop_following(entry: WatchedBackend) -> None:
    if entry.follow_task is not None:
        entry.follow_task.cancel()
        entry.follow_task = None


def _doubt_type(entry: WatchedBackend, seen: str) -> None:
    if not entry.is_type_doubted:
        entry.is_type_doubted = True
        remedy = f"--backend-type {seen}, or type = {seen!r} for this backend; its metrics are not read until then"
        of = {"backend": entry.config.id, "type": entry.reader.name, "looks_like": seen}
        _log.warning("backend.type_doubted", **of, remedy=remedy)


def _ssl(config: BackendConfig) -> ssl.SSLContext | bool:
    if not config.verify_tls:
        return False
    return ssl.create_default_context(cafile=config.ca_file) if config.ca_file else True


async def _wait_for_all(events: Sequence[asyncio.Event], seconds: float) -> None:
    """Until all of them are set, or the time is over."""
    # Not asyncio.wait_for: before Python 3.12 it may swallow a cancellation.
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        if waiting:
            await asyncio.wait(waiting, timeout=seconds)
    finally:
        for each in waiting:
            each.cancel()


async def stop_task(task: asyncio.Task[Any] | None) -> None:
    """Cancel a task and wait until it ended; raises what it raised, and CancelledError only for the caller's own."""
    if task is None:
        return
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.result()

"""Runs an emulated engine in real time: the only owner of its state under asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from thunderagent.emulator.engine import Engine, EngineRequest, TokenOutput

__all__ = ["ClientLeft", "EngineDriver", "TokenStream"]

MAX_LAG_SECONDS = 0.25
"""How far behind its schedule the driver may fall and still catch up; beyond, the lost time is given up."""

SLICE_SECONDS = 0.001
"""How long steps may run one after the other before connections get a turn."""

DISCONNECT_POLL_SECONDS = 0.05
"""How often open requests are checked for clients that left: within the 0.1 s that vLLM takes."""


class ClientLeft(Exception):
    """The client closed its connection; the engine has dropped the request."""


class TokenStream:
    """The tokens of one request as they come; read by one task."""

    def __init__(self, request: EngineRequest, connected: Callable[[], bool], *, whole: bool) -> None:
        self.request = request
        self.connected = connected
        self.generated = 0
        self.cached_tokens = 0
        self.finished = False
        self.lost = False
        self._whole = whole
        self._waiter: asyncio.Future[None] | None = None

    async def more(self, seen: int) -> int:
        """Wait until there are more than ``seen`` tokens (all of them, for a stream read ``whole``); the count.

        Raises ClientLeft.
        """
        while not self.finished and not self.lost and (self._whole or self.generated <= seen):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self.lost:
            raise ClientLeft
        return self.generated

    def take(self, output: TokenOutput) -> None:
        """Add a step's tokens (called by the driver)."""
        self.generated += output.tokens
        self.cached_tokens = output.cached_tokens
        self.finished = output.finish_reason is not None
        if self.finished or not self._whole:
            self.wake()

    def wake(self) -> None:
        """Let the reader look again (called by the driver)."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class EngineDriver:
    """Steps ``engine`` on a schedule in which an engine second lasts ``1 / speed`` seconds.

    The schedule is absolute: each step ends its duration after the one before, however late the loop's timer (about
    1 ms) fires, so that short steps come in bunches and do not add up to a drift. Time lost by more than
    ``MAX_LAG_SECONDS`` is given up and shown in ``late_seconds``: the process is too slow for the speed asked.
    """

    def __init__(self, engine: Engine, speed: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        if not 0 < speed < float("inf"):
            raise ValueError(f"speed must be a positive number, got {speed}")
        self.engine = engine
        self.speed = speed
        self.late_seconds = 0.0
        self._clock = clock
        self._streams: dict[str, TokenStream] = {}
        self._work = asyncio.Event()

    def submit(self, request: EngineRequest, connected: Callable[[], bool], *, whole: bool) -> TokenStream:
        """Add a request to the engine. Raises ValueError as ``Engine.add`` does."""
        self.engine.add(request, self._engine_now())
        stream = TokenStream(request, connected, whole=whole)
        self._streams[request.id] = stream
        self._work.set()
        return stream

    def abort(self, stream: TokenStream) -> None:
        """Drop a request if the engine still works on it; its blocks are free at once."""
        if self._streams.pop(stream.request.id, None) is not None:
            self.engine.abort(stream.request.id)

    async def run(self) -> None:
        """Step the engine until cancelled."""
        clock = self._clock
        due_at = slice_at = clock()
        while True:
            if self.engine.idle:
                self._work.clear()
                await self._work.wait()
                due_at = slice_at = clock()
            duration = self.engine.begin_step(self._engine_now())
            if duration is None:
                continue
            due_at += duration / self.speed
            now = clock()
            if due_at > now:
                await asyncio.sleep(due_at - now)
                slice_at = clock()
            elif now - slice_at > SLICE_SECONDS:
                await asyncio.sleep(0)
                slice_at = clock()
            self._deliver(self.engine.end_step(self._engine_now()).outputs)
            lag = clock() - due_at
            if lag > MAX_LAG_SECONDS:
                self.late_seconds += lag
                due_at += lag

    def _deliver(self, outputs: Iterable[TokenOutput]) -> None:
        streams = self._streams
        for output in outputs:
            stream = streams.get(output.request_id)
            if stream is None:
                continue
            if output.finish_reason is not None:
                del streams[output.request_id]
            stream.take(output)

    async def watch_clients(self) -> None:
        """Abort the requests of clients that left, until cancelled. O(open requests) every 50 ms."""
        while True:
            await asyncio.sleep(DISCONNECT_POLL_SECONDS)
            gone = [stream for stream in self._streams.values() if not stream.connected()]
            for stream in gone:
                self.abort(stream)
                stream.lost = True
                stream.wake()

    def _engine_now(self) -> float:
        return self._clock() * self.speed

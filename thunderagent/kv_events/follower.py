"""Subscribes to one engine's KV events and keeps a mirror of its cache. Needs pyzmq (the extra ``kv-events``)."""

from __future__ import annotations

import asyncio
import errno
import sys
from collections.abc import Callable, Sequence

import structlog
import zmq
import zmq.asyncio
from attrs import define, field

from thunderagent.kv_events.messages import Unreadable, read_batch
from thunderagent.kv_events.mirror import CacheMirror, SessionBlocks
from thunderagent.kv_events.order import EventOrder, Verdict
from thunderagent.kv_events.sources import Source

__all__ = ["KvFollower"]

_log = structlog.get_logger("thunderagent.kv_events")

_REPLAY_SECONDS = 5.0
_REPLAY_TRIES = 3
_REPORT_SECONDS = 0.2
"""Changes are told at most so often."""
_REPORTED_SESSIONS = 256
"""At most so many in one go, the rest after other work of the loop."""
_QUEUED_MESSAGES = 100_000
"""As many as vLLM queues for us; beyond that messages are dropped, and replayed."""
_END = -1
_MESSAGES_IN_A_ROW = 50
"""After so many the loop's other work has a turn: messages that are queued are received without waiting."""
_FIRST_MESSAGE_SECONDS = 60.0
"""How long nothing may come over an address that was to be bound and was taken."""


@define(eq=False)
class KvFollower:
    """One engine's publisher (one data-parallel rank). ``report`` gets what changed, at most five times a second."""

    backend: str
    source: Source
    report: Callable[[Sequence[SessionBlocks]], None]
    context: zmq.asyncio.Context
    mirror: CacheMirror = field(factory=CacheMirror)
    gaps: int = 0
    """Times that messages were missed and could not be had again: what was known was given up."""
    unreadable: int = 0
    order: EventOrder = field(factory=EventOrder)
    _report_due: asyncio.TimerHandle | None = None
    _received: int = 0

    async def run(self) -> None:
        """Follow until cancelled. What was told is unknown again then.

        Raises:
            zmq.ZMQError: an address cannot be used, or is somebody else's and nothing comes over it.
        """
        socket, is_in_doubt = self._subscribe()
        try:
            await self._replay(is_first=True)
            if is_in_doubt and not await socket.poll(1000 * _FIRST_MESSAGE_SECONDS):
                raise zmq.ZMQError(errno.EADDRINUSE, f"{self.source.events.endpoint} is taken, and silent")
            while True:
                frames = await self._receive(socket)
                if len(frames) != 3 or len(frames[1]) != 8 or frames[0] != self.source.topic.encode():
                    continue
                await self._take_live(int.from_bytes(frames[1], "big", signed=True), frames[2])
        finally:
            socket.close(linger=0)
            if self._report_due is not None:
                self._report_due.cancel()
            self.mirror.forget()
            self.report(self.mirror.take_changes(sys.maxsize))

    async def _receive(self, socket: zmq.asyncio.Socket, timeout_seconds: float | None = None) -> list[bytes]:
        """The next message.

        Raises:
            asyncio.TimeoutError: none came in time.
        """
        self._received += 1
        if self._received % _MESSAGES_IN_A_ROW == 0:
            await asyncio.sleep(0)
        # Not wait_for: up to Python 3.11 it swallows a cancellation that comes when the message is there already.
        if timeout_seconds is not None and not await socket.poll(1000 * timeout_seconds):
            raise asyncio.TimeoutError
        frames: list[bytes] = await socket.recv_multipart()
        return frames

    def _subscribe(self) -> tuple[zmq.asyncio.Socket, bool]:
        """The socket, and whether its address was to be bound and was taken: by vLLM itself (``tcp://*:0``), or by
        another router."""
        socket = self.context.socket(zmq.SUB)
        socket.setsockopt(zmq.IPV6, 1)
        socket.setsockopt(zmq.RCVHWM, _QUEUED_MESSAGES)
        socket.setsockopt_string(zmq.SUBSCRIBE, self.source.topic)
        address = self.source.events
        how = "connect"
        if address.may_bind:
            try:
                socket.bind(address.endpoint)
                how = "bind"
            except zmq.ZMQError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.ENODEV):
                    socket.close(linger=0)
                    raise
        if how == "connect":
            socket.connect(address.endpoint)
        _log.info(
            "kv_events.following",
            backend=self.backend,
            rank=self.source.rank,
            how=how,
            endpoint=address.endpoint,
            replay=self.source.replay,
        )
        return socket, address.may_bind and how == "connect"

    async def _take_live(self, sequence: int, payload: bytes) -> None:
        is_first = self.order.last_live < 0 and self.order.next_sequence == 0
        verdict = self.order.judge(sequence)
        if verdict is Verdict.RESTARTED:
            _log.warning("kv_events.engine_restarted", backend=self.backend, rank=self.source.rank)
            self.mirror.clear()
            verdict = self.order.compare(sequence)
        if verdict is Verdict.MISSED:
            await self._replay(is_first=False)
            verdict = self.order.compare(sequence)
            if verdict is Verdict.MISSED:
                if is_first:
                    self.order.taken(sequence - 1)  # what was before us is not missed, only not known
                else:
                    self._give_up(sequence)
                verdict = Verdict.TAKE
        if verdict is Verdict.TAKE:
            self._apply(sequence, payload)

    def _apply(self, sequence: int, payload: bytes) -> None:
        try:
            self.mirror.apply(read_batch(payload))
        except Unreadable as error:
            self.unreadable += 1
            self.mirror.forget()
            if self.unreadable == 1:
                _log.warning("kv_events.unreadable", backend=self.backend, error=str(error))
        if sequence == 0:
            self.mirror.is_complete = True
        self.order.taken(sequence)
        if self._report_due is None:
            self._report_due = asyncio.get_running_loop().call_later(_REPORT_SECONDS, self._tell)

    def _give_up(self, sequence: int) -> None:
        """What lies before ``sequence`` cannot be had: what is cached is unknown, but for what comes now."""
        self.gaps += 1
        _log.warning(
            "kv_events.missed",
            backend=self.backend,
            rank=self.source.rank,
            first=self.order.next_sequence,
            next=sequence,
            remedy="" if self.source.replay else "set replay_endpoint in --kv-events-config",
        )
        self.mirror.forget()
        self.order.taken(sequence - 1)

    async def _replay(self, *, is_first: bool) -> None:
        """Ask for what is missing. What the publisher has forgotten counts as missed, but not what was before us."""
        if self.source.replay is None:
            return
        socket = self.context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IPV6, 1)
        socket.setsockopt(zmq.RCVHWM, 0)  # vLLM sends its whole buffer at once, and drops what is not taken
        try:
            socket.connect(self.source.replay)
            for _ in range(_REPLAY_TRIES):
                asked_from = self.order.next_sequence
                await socket.send_multipart([b"", asked_from.to_bytes(8, "big")])
                if await self._take_replayed(socket, is_first=is_first):
                    return
                is_first = is_first and self.order.next_sequence == asked_from
        except asyncio.TimeoutError:
            _log.warning("kv_events.no_replay", backend=self.backend, replay=self.source.replay)
        finally:
            socket.close(linger=0)

    async def _take_replayed(self, socket: zmq.asyncio.Socket, *, is_first: bool) -> bool:
        """Take what is sent; False where messages in the midst of it were dropped, so that it is to be asked again.

        Raises:
            asyncio.TimeoutError: nothing came for a while.
        """
        is_whole, is_at_start = True, True
        while True:
            frames = await self._receive(socket, _REPLAY_SECONDS)
            if len(frames) < 2:
                continue
            sequence = int.from_bytes(frames[-2], "big", signed=True)
            if sequence == _END:
                return is_whole
            if sequence > self.order.next_sequence and is_at_start:
                # The publisher has forgotten what was before.
                if is_first:
                    self.order.taken(sequence - 1)
                else:
                    self._give_up(sequence)
            is_at_start = is_at_start and sequence < self.order.next_sequence
            if sequence == self.order.next_sequence:
                self._apply(sequence, frames[-1])
                is_at_start = False
            elif sequence > self.order.next_sequence:
                is_whole = False

    def _tell(self) -> None:
        self._report_due = None
        changes = self.mirror.take_changes(_REPORTED_SESSIONS)
        if changes:
            self.report(changes)
        if len(changes) == _REPORTED_SESSIONS:
            self._report_due = asyncio.get_running_loop().call_later(0, self._tell)

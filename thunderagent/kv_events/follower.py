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

from thunderagent.kv_events.messages import Unreadable, read_batch, sent_at
from thunderagent.kv_events.mirror import CacheMirror, SessionBlocks
from thunderagent.kv_events.order import EventOrder, Verdict
from thunderagent.kv_events.sources import Source

__all__ = ["KvFollower"]

_log = structlog.get_logger("thunderagent.kv_events")

_REPLAY_SECONDS = 5.0
_REPLAY_TRIES = 3
_RESTART_SECONDS = 2.0
"""Faster no vLLM is there again: importing it takes longer."""
_REPORT_SECONDS = 0.2
"""Changes are told at most so often."""
_REPORTED_SESSIONS = 256
"""At most so many in one go, the rest after other work of the loop."""
_QUEUED_MESSAGES = 100_000
"""As many as vLLM queues for us; beyond that messages are dropped, and replayed."""
_END = -1
_SECONDS_IN_A_ROW = 0.005
"""After so long the loop's other work has a turn: messages that are queued are received without waiting."""
_FIRST_MESSAGE_SECONDS = 60.0
"""How long nothing may come over an address that was to be bound and was taken, before that is looked into."""
_LATE_SECONDS = 1.0
"""How long a message may take that a replay brought already."""


@define(eq=False)
class KvFollower:
    """One engine's publisher (one data-parallel rank). ``report`` gets what changed, at most five times a second.

    An engine that began anew is told by a number that was there before. Where its numbers are past ours, the last
    message that was taken is asked for again, and is another: in each replay, so after a gap, and where a message
    was made more than 2 s after the one before. Not noticed, until one of these comes: a new engine while it is
    silent; one that answers no replay, with the very number that comes next; one whose clock is behind the former's
    by as long as its start took; without a replay endpoint, one whose first message that arrives has the very number
    that comes next (any later one is a gap, and nothing is known then).
    """

    backend: str
    source: Source
    report: Callable[[Sequence[SessionBlocks]], None]
    context: zmq.asyncio.Context
    mirror: CacheMirror = field(factory=CacheMirror)
    gaps: int = 0
    """Times that messages were missed and could not be had again: what was known was given up."""
    unreadable: int = 0
    order: EventOrder = field(factory=EventOrder)
    _last_payload: bytes = b""
    """Of the last message that was taken, number ``order.next_sequence - 1``."""
    _is_fresh: bool = True
    """Nothing was taken so far: what was before us is not missed, only not known."""
    _is_replay_answered: bool = False
    """The last one was."""
    _replayed: int = 0
    """Messages that came of replays, ends among them."""
    _report_due: asyncio.TimerHandle | None = None
    _turn_since: float = 0.0
    """When other work of the loop had its last turn."""

    async def run(self) -> None:
        """Follow until cancelled. What was told is unknown again then.

        Raises:
            zmq.ZMQError: an address cannot be used, or is somebody else's and nothing comes over it.
        """
        socket, is_in_doubt = self._subscribe()
        try:
            if not await self._replay() and not self._is_fresh:
                self._give_up(self.order.next_sequence)
            if is_in_doubt:
                await self._wait_for_first(socket)
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
            try:
                self.report(self.mirror.take_changes(sys.maxsize))
            except Exception:  # what ended the following is to be told, above all that it was cancelled
                _log.exception("kv_events.report_failed", backend=self.backend)

    async def _wait_for_first(self, socket: zmq.asyncio.Socket) -> None:
        """Wait until a message comes over the subscription; an engine that is idle has a replay bring nothing either.

        Raises:
            zmq.ZMQError: the engine cannot be asked, or its messages go somewhere else.
        """
        while not await socket.poll(1000 * _FIRST_MESSAGE_SECONDS):
            known_to = self.order.next_sequence
            is_idle = await self._replay() and self.order.next_sequence == known_to
            if not is_idle and not await socket.poll(1000 * _LATE_SECONDS):
                raise zmq.ZMQError(errno.EADDRINUSE, f"{self.source.events.endpoint} is taken, and silent")

    async def _receive(self, socket: zmq.asyncio.Socket, timeout_seconds: float | None = None) -> list[bytes]:
        """The next message. One is taken at a go, in 2 ms where it stores 8,000 tokens.

        Raises:
            asyncio.TimeoutError: none came in time.
        """
        loop = asyncio.get_running_loop()
        if loop.time() - self._turn_since > _SECONDS_IN_A_ROW:
            await asyncio.sleep(0)
            self._turn_since = loop.time()
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
        verdict = self.order.judge(sequence)
        if verdict is Verdict.RESTARTED:
            self._begin_anew()
            verdict = self.order.compare(sequence)
        if verdict is Verdict.MISSED or self._may_be_another_engine(payload):
            await self._replay()
            # One that was not whole does no harm where no message is missing now: the engine said nothing against
            # being the one before. Another one's messages are missing from 0 on.
            verdict = self.order.compare(sequence)
            if verdict is Verdict.MISSED:
                self._give_up(sequence)
                verdict = Verdict.TAKE
        if verdict is Verdict.TAKE:
            self._apply(sequence, payload)

    def _may_be_another_engine(self, payload: bytes) -> bool:
        """Whether there was time for a start since the last message; False too where nobody can be asked."""
        if not self._is_replay_answered or self.order.next_sequence == 0:
            return False
        before, now = sent_at(self._last_payload), sent_at(payload)
        return before is not None and now is not None and now - before > _RESTART_SECONDS

    def _begin_anew(self) -> None:
        """The engine is another one than before: its cache was empty when it began."""
        _log.warning("kv_events.engine_restarted", backend=self.backend, rank=self.source.rank)
        self.order.begin_anew()
        self.mirror.clear()
        self._tell_soon()

    def _apply(self, sequence: int, payload: bytes) -> None:
        try:
            self.mirror.apply(read_batch(payload))
            if sequence == 0:
                self.mirror.is_complete = True
        except Unreadable as error:
            self.unreadable += 1
            self.mirror.forget()
            if self.unreadable == 1:
                _log.warning("kv_events.unreadable", backend=self.backend, error=str(error))
        self.order.taken(sequence)
        self._last_payload, self._is_fresh = payload, False
        self._tell_soon()

    def _give_up(self, sequence: int) -> None:
        """What lies before ``sequence`` cannot be had: what is cached is unknown, but for what comes now."""
        if self._is_fresh:
            self.order.taken(sequence - 1)
            return
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
        self._tell_soon()

    async def _replay(self) -> bool:
        """Ask for what is missing, up to three times; whether all came that the publisher still has.

        Where nothing came of a try it is the last one: nobody is there. What the publisher has forgotten is given up.
        """
        if self.source.replay is None:
            return False
        tries = 0
        while tries < _REPLAY_TRIES:
            tries += 1
            replayed = self._replayed
            socket = self.context.socket(zmq.DEALER)
            socket.setsockopt(zmq.IPV6, 1)
            socket.setsockopt(zmq.RCVHWM, 0)  # vLLM sends its whole buffer at once, and drops what is not taken
            try:
                socket.connect(self.source.replay)
                await socket.send_multipart([b"", max(0, self.order.next_sequence - 1).to_bytes(8, "big")])
                if await self._take_replayed(socket):
                    self._is_replay_answered = True
                    return True
            except asyncio.TimeoutError:
                if self._replayed == replayed:
                    break
            finally:
                socket.close(linger=0)
        self._is_replay_answered = False
        _log.warning("kv_events.no_replay", backend=self.backend, replay=self.source.replay, tries=tries)
        return False

    async def _take_replayed(self, socket: zmq.asyncio.Socket) -> bool:
        """Take what is sent, from the last message that was taken on. False: it is to be asked for again, as messages
        in the midst of it were dropped, or that one is another engine's.

        Raises:
            asyncio.TimeoutError: nothing came for a while.
        """
        is_whole, is_at_start = True, True
        while True:
            frames = await self._receive(socket, _REPLAY_SECONDS)
            if len(frames) < 2:
                continue
            self._replayed += 1
            sequence, payload = int.from_bytes(frames[-2], "big", signed=True), frames[-1]
            last = self.order.next_sequence - 1
            if (
                is_at_start
                and last >= 0
                and (sequence == _END or (sequence == last and payload != self._last_payload))
            ):
                self._begin_anew()  # one that took a message has it still, or later ones
                return False
            if sequence == _END:
                return is_whole
            if is_at_start and sequence > max(last, 0):
                self._give_up(sequence)  # the publisher has forgotten what was before
            is_at_start = is_at_start and sequence < last
            if sequence == self.order.next_sequence:
                self._apply(sequence, payload)
            elif sequence > self.order.next_sequence:
                is_whole = False

    def _tell_soon(self) -> None:
        if self._report_due is None:
            self._report_due = asyncio.get_running_loop().call_later(_REPORT_SECONDS, self._tell)

    def _tell(self) -> None:
        self._report_due = None
        changes = self.mirror.take_changes(_REPORTED_SESSIONS)
        if changes:
            self.report(changes)
        if len(changes) == _REPORTED_SESSIONS:
            self._report_due = asyncio.get_running_loop().call_later(0, self._tell)

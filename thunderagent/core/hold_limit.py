"""The hold limit: a turn that waited for too long gets its place without overcommitting the cache.

Room is reserved for it on one backend, which policies see as taken. The admitted program that was served for
longest since its admission makes room at its next turn boundary, and another one if that is not enough.
When the tokens are free the turn is forwarded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from attrs import define, field

from thunderagent.core.backend import Backend
from thunderagent.core.cluster import Cluster
from thunderagent.core.commands import PauseReason
from thunderagent.core.ids import BackendId
from thunderagent.core.placement import Placement
from thunderagent.core.program import Program, Standing
from thunderagent.core.queue import Waiter
from thunderagent.core.turn import Turn

__all__ = ["Reservations", "roomiest", "roomiest_for"]


def roomiest(backends: Sequence[Backend]) -> Backend:
    """The backend with the most free tokens; one of unknown capacity counts as roomier, by what it accounts."""

    def room(backend: Backend) -> tuple[bool, int]:
        free_tokens = backend.free_tokens
        if free_tokens is None:
            return (True, -backend.accounted_tokens)
        return (False, free_tokens)

    return max(backends, key=room)


def roomiest_for(turn: Turn) -> Backend:
    """The roomiest eligible backend whose whole cache could hold the turn, if any could; else the roomiest."""
    eligible = turn.eligible_backends
    return roomiest([backend for backend in eligible if turn.could_hold(backend)] or eligible)


@define(eq=False, repr=False)
class _Reservation:
    waiter: Waiter
    backend: Backend
    tokens: int

    @property
    def turn(self) -> Turn | None:
        """The waiter's first turn that can run on the backend; None once there is none."""
        turns = self.waiter.turns.values()
        return next((turn for turn in turns if self.backend in turn.eligible_backends), None)


@define(eq=False, repr=False)
class Reservations:
    """Waiters that reached the hold limit, in that order, each with its reserved room."""

    cluster: Cluster
    placement: Placement
    _reservations: list[_Reservation] = field(factory=list)

    def __len__(self) -> int:
        return len(self._reservations)

    def reserve(self, waiter: Waiter, turn: Turn) -> None:
        """Reserve room for a turn of the waiter that a backend is there for, where the least must be displaced."""
        backend = roomiest_for(turn)
        tokens = self.cluster.added_tokens(turn, backend)
        if backend.capacity_tokens is not None:
            tokens = min(tokens, backend.capacity_tokens)
        backend.reserved_tokens += tokens
        waiter.is_urgent = True
        self._reservations.append(_Reservation(waiter, backend, tokens))

    def cancel(self, waiter: Waiter) -> None:
        """Give the room back: the waiter was served, or is gone."""
        for reservation in [entry for entry in self._reservations if entry.waiter is waiter]:
            reservation.backend.reserved_tokens -= reservation.tokens
            self._reservations.remove(reservation)
        waiter.is_urgent = False

    def cancel_stale(self) -> list[Waiter]:
        """Give up the room on backends that were lost or no longer serve the waiter's turns; returns the waiters."""
        waiters = [entry.waiter for entry in self._reservations if entry.turn is None]
        for waiter in waiters:
            self.cancel(waiter)
        return waiters

    def ready(self) -> tuple[Waiter, Turn, Backend] | None:
        """The first waiter whose room is free by now, if any; displaces programs for those that lack room.

        On one backend the order is kept: room made for who came first is not taken by who needs less.
        """
        ahead_tokens: Counter[BackendId] = Counter()
        for reservation in self._reservations:
            turn, backend = reservation.turn, reservation.backend
            if turn is None:
                continue
            if not self._has_room(reservation, ahead_tokens[backend.id]):
                self._displace(backend)
            if self._has_room(reservation, ahead_tokens[backend.id]):
                return reservation.waiter, turn, backend
            ahead_tokens[backend.id] += reservation.tokens
        return None

    @staticmethod
    def _has_room(reservation: _Reservation, ahead_tokens: int) -> bool:
        backend = reservation.backend
        if backend.capacity_tokens is None or backend.accounted_tokens == 0:
            return True
        return backend.accounted_tokens + ahead_tokens + reservation.tokens <= backend.capacity_tokens

    def _displace(self, backend: Backend) -> None:
        """Have as many programs yield as the reserved tokens need, those served for longest first."""
        while True:
            free_tokens = backend.free_tokens
            if free_tokens is None or free_tokens + backend.yielding_tokens >= 0:
                return
            victim = self._served_for_longest(backend)
            if victim is None:
                return
            self.placement.yield_place(victim, PauseReason.HOLD_LIMIT)

    @staticmethod
    def _served_for_longest(backend: Backend) -> Program | None:
        candidates = [*backend.placed[Standing.REASONING], *backend.placed[Standing.ACTING]]
        return max(candidates, key=lambda program: (program.service_seconds, -program.sequence), default=None)

"""The hold limit: a turn that waited for too long gets its place without overcommitting the cache.

Room is reserved for it on one backend, which policies see as taken. The admitted program that was served for
longest since its admission makes room at its next turn boundary, and another one if that is not enough.
When the tokens are free the turn is forwarded.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop
from itertools import islice

from attrs import define, field

from thunderagent.core.backend import Backend
from thunderagent.core.cluster import Cluster
from thunderagent.core.commands import PauseReason
from thunderagent.core.placement import Placement
from thunderagent.core.policy import roomiest
from thunderagent.core.program import Program, Standing
from thunderagent.core.queue import Waiter
from thunderagent.core.turn import Turn
from thunderagent.core.unfinished import STEPS_PER_EVENT

__all__ = ["Reservations", "roomiest_for"]

_LOOK_AT = 16
"""Waiters with room reserved elsewhere that a backend with room to spare is offered to."""


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
        return next((turn for turn in turns if turn.may_run_on(self.backend)), None)

    def resize(self, tokens: int) -> None:
        if tokens != self.tokens:
            self.backend.reserve(tokens - self.tokens)
            self.tokens = tokens


@define(eq=False, repr=False)
class Reservations:
    """Waiters that reached the hold limit, each with its room on one backend; per backend in that order.

    Only the first of each backend is looked at: room made for who came first is not taken by who needs less.
    """

    cluster: Cluster
    placement: Placement
    victims_left: int = STEPS_PER_EVENT
    """Programs that the event at hand may still have yield; where that is 0 some more may be needed."""
    by_waiter: dict[Waiter, _Reservation] = field(factory=dict)
    """Empty nearly always: then there is nothing to be done for those that reached the limit."""
    _by_backend: dict[Backend, dict[Waiter, _Reservation]] = field(factory=dict)

    def reserve(self, waiter: Waiter, turn: Turn) -> None:
        """Reserve room for a turn of the waiter that a backend is there for, where the least must be displaced."""
        self._reserve_on(waiter, turn, roomiest_for(turn))
        self.cluster.queue.set_urgent(waiter, True)

    def _reserve_on(self, waiter: Waiter, turn: Turn, backend: Backend) -> None:
        reservation = _Reservation(waiter, backend, self._needed_tokens(turn, backend))
        backend.reserve(reservation.tokens)  # it has changed even where nothing is needed: the turn may go at once
        self.by_waiter[waiter] = reservation
        self._by_backend.setdefault(backend, {})[waiter] = reservation

    def _needed_tokens(self, turn: Turn, backend: Backend) -> int:
        tokens = self.cluster.added_tokens(turn, backend)
        return tokens if backend.capacity_tokens is None else min(tokens, backend.capacity_tokens)

    def _drop(self, reservation: _Reservation) -> None:
        reservation.resize(0)
        del self.by_waiter[reservation.waiter]
        of_backend = self._by_backend[reservation.backend]
        del of_backend[reservation.waiter]
        if not of_backend:
            del self._by_backend[reservation.backend]

    def cancel(self, waiter: Waiter) -> None:
        """Give the room back: the waiter was served, or is gone."""
        reservation = self.by_waiter.get(waiter)
        if reservation is not None:
            self._drop(reservation)
            self.cluster.queue.set_urgent(waiter, False)

    def cancel_stale(self, program: Program | None = None) -> list[Waiter]:
        """Give up the room on backends that were lost or no longer serve the waiter's turns; returns the waiters.

        Where backends changed all of them are looked at, else the program's that an event was about. O(those).
        """
        waiter = None if program is None else self.cluster.queue.of_program(program)
        looked_at = self.by_waiter if program is None else () if waiter is None else (waiter,)
        waiters = [entry for entry in looked_at if entry in self.by_waiter and self.by_waiter[entry].turn is None]
        for entry in waiters:
            self.cancel(entry)
        return waiters

    def ready(self, backends: Iterable[Backend]) -> tuple[Waiter, Turn, Backend] | None:
        """A waiter whose room is free by now, if any; displaces programs for those that lack room.

        ``backends``: where something changed. O(those).
        """
        for backend in backends:
            of_backend = self._by_backend.get(backend)
            if of_backend is None:
                found = self._ready_elsewhere(backend)
                if found is not None:
                    return found
                continue
            reservation = next(iter(of_backend.values()))
            turn = reservation.turn
            if turn is None:
                continue
            reservation.resize(self._needed_tokens(turn, backend))
            if not self._has_room(backend, reservation.tokens):
                self._displace(backend)
            if self._has_room(backend, reservation.tokens):
                return reservation.waiter, turn, backend
        return None

    def _ready_elsewhere(self, backend: Backend) -> tuple[Waiter, Turn, Backend] | None:
        """Who may go to a backend on which nothing is reserved instead of where room is made: one of the first."""
        if not backend.is_available:
            return None
        for waiter, reservation in islice(self.by_waiter.items(), _LOOK_AT):
            turn = next((turn for turn in waiter.turns.values() if turn.may_run_on(backend)), None)
            if turn is not None and self._has_room(backend, self._needed_tokens(turn, backend)):
                self._drop(reservation)
                self._reserve_on(waiter, turn, backend)
                return waiter, turn, backend
        return None

    def backends(self) -> list[Backend]:
        """Those with reservations."""
        return list(self._by_backend)

    @staticmethod
    def _has_room(backend: Backend, tokens: int) -> bool:
        if backend.capacity_tokens is None or backend.accounted_tokens == 0:
            return True
        return backend.accounted_tokens + tokens <= backend.capacity_tokens

    def _displace(self, backend: Backend) -> None:
        """Have as many programs yield as the reserved tokens need, those served for longest first.

        O(programs placed there), once; a bounded number of them for one event.
        """
        if self.victims_left <= 0 or not self._lacks_room(backend):
            return
        placed = [*backend.longest_first(Standing.REASONING), *backend.longest_first(Standing.ACTING)]
        victims = [(-program.service_seconds, program.sequence, program) for program in placed]
        heapify(victims)
        while victims and self.victims_left > 0 and self._lacks_room(backend):
            self.victims_left -= 1
            self.placement.yield_place(heappop(victims)[2], PauseReason.HOLD_LIMIT)

    @staticmethod
    def _lacks_room(backend: Backend) -> bool:
        """Whether what is reserved will not be free when those that are to leave have left."""
        free_tokens = backend.free_tokens
        return free_tokens is not None and free_tokens + backend.yielding_tokens < 0

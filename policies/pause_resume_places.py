"""Where ``pause-resume`` lets a turn in: the backends it may go to for the sake of its prefix, and where it fits."""

from __future__ import annotations

import math
from collections.abc import Container
from itertools import islice

from attrs import define, field

from policies.origins import origin_of
from policies.pause_resume_backlogs import Backlogs
from policies.pause_resume_rooms import Rooms
from policies.pause_resume_settings import Settings
from thunderagent.policy import (
    BackendId,
    BackendView,
    ClusterView,
    DemandView,
    ProgramId,
    TurnId,
    TurnView,
    WaiterView,
)

__all__ = ["Places", "asks", "key_of"]

_LOOK_AT = 64
"""Backends, the roomiest first, on which a guest is tried, and of which one without a backlog is looked for."""


def asks(waiter: WaiterView) -> bool:
    """Whether it asks for a place: not so for turns that wait at their program's place, in lines of their own."""
    return waiter.turn.place is None


def key_of(waiter: WaiterView) -> ProgramId | TurnId:
    """Who it is: a program, or a turn that waits alone."""
    return waiter.turn.id if waiter.program is None else waiter.program.id


@define(eq=False)
class Places:
    """Finds a backend for a turn whose program has none."""

    settings: Settings
    rooms: Rooms
    backlogs: Backlogs = field(factory=Backlogs)

    def find(
        self, turn: TurnView, since: float, cluster: ClusterView, taken: Container[BackendId] = ()
    ) -> BackendView | None:
        """Where the turn, which has waited since then, may be let in now; not on backends ``taken`` by others.
        Among several the one with the least left to prefill, then the roomiest. O(log backends), as a rule."""
        demand = cluster.demand(turn)
        bound = self.bound_to(turn, since, cluster)
        if bound is not None:
            return bound if bound.id not in taken and self.fits(turn, demand, bound) else None
        origin = self._origin(turn, cluster)
        if origin is not None and origin.id not in taken and self.fits(turn, demand, origin):
            return origin
        candidates = self.rooms.roomiest_first(cluster, 0.0 if demand.charged else demand.bare_tokens)
        if self.is_guest(turn):
            candidates = islice(self.rooms.roomiest_first(cluster), _LOOK_AT)
        if self.settings.resume_on == "tightest":
            candidates = iter(sorted(candidates, key=self.rooms.of))
        found, least_seconds = None, math.inf
        for looked_at, backend in enumerate(candidates):
            if found is not None and looked_at >= _LOOK_AT:
                break
            if backend.id in taken or not turn.may_run_on(backend) or not self.fits(turn, demand, backend):
                continue
            seconds = self._backlog_seconds(backend, cluster)
            if seconds <= 0.0:
                return backend
            if seconds < least_seconds:
                found, least_seconds = backend, seconds
        return found

    def let_in(self, turn: TurnView, backend: BackendView, cluster: ClusterView) -> None:
        """The turn goes there; its room is counted by ``rooms``."""
        if self.settings.pace_prefills:
            added_tokens = self.rooms.added_tokens(cluster.demand(turn), backend)
            self.backlogs.add(turn, backend, cluster, added_tokens)

    def to_wait_seconds(self, turn: TurnView, backend: BackendView, cluster: ClusterView) -> float:
        """How long a turn for which there is room should wait for prompts of others to be computed there."""
        return 0.0 if self.is_guest(turn) else self._backlog_seconds(backend, cluster)

    def _backlog_seconds(self, backend: BackendView, cluster: ClusterView) -> float:
        return self.backlogs.seconds(backend, cluster.now) if self.settings.pace_prefills else 0.0

    def bound_to(self, turn: TurnView, since: float, cluster: ClusterView) -> BackendView | None:
        """The only backend that the turn may go to, for the sake of the prefix there."""
        settings, origin, program = self.settings, self._origin(turn, cluster), turn.program
        if origin is None or program is None or settings.resume_on == "prefer-origin" or turn.waits_alone:
            return None
        if 0 < settings.move_after_seconds <= cluster.now - since:
            return None
        if settings.resume_on == "resident" and cluster.resident_ratio(program) < settings.resident_ratio:
            return None
        return origin if could_hold(origin, turn) else None

    def could_use(self, waiter: WaiterView, backend: BackendView, cluster: ClusterView) -> bool:
        """Whether more room on the backend would be of use to the waiter."""
        bound = self.bound_to(waiter.turn, waiter.since, cluster)
        is_open = waiter.turn.may_run_on(backend) if bound is None else backend.id == bound.id
        return is_open and could_hold(backend, waiter.turn)

    def _origin(self, turn: TurnView, cluster: ClusterView) -> BackendView | None:
        """The backend to be preferred for the sake of the prefix."""
        return None if self.settings.resume_on in ("roomiest", "tightest") else origin_of(turn, cluster)

    def fits(self, turn: TurnView, demand: DemandView, backend: BackendView) -> bool:
        """Whether there is room for the turn on the backend. O(1)."""
        if not could_hold(backend, turn):
            return False
        tokens = self.rooms.added_tokens(demand, backend)
        return self.rooms.fits(backend, tokens) or (self.is_guest(turn) and self.rooms.fits_guest(backend, tokens))

    def is_guest(self, turn: TurnView) -> bool:
        """Whether it may go before programs that wait, by its size: one without a place, no larger than the part of
        the cache that such turns may take."""
        ratio = self.settings.guest_ratio
        return ratio > 0 and turn.waits_alone and turn.prompt_tokens <= ratio * self.rooms.largest_tokens


def could_hold(backend: BackendView, turn: TurnView) -> bool:
    """Whether the turn would fit if it had the backend for itself."""
    return backend.capacity_tokens is None or turn.prompt_tokens <= backend.capacity_tokens

"""Whom ``pause-resume`` takes the place away: where the cache is outgrown, and for the sake of those who wait."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from itertools import chain, islice

from attrs import define, field

from policies.pause_resume_places import Places, asks, key_of
from policies.pause_resume_ranks import rank
from policies.pause_resume_rooms import Rooms
from policies.pause_resume_settings import Settings
from thunderagent.policy import (
    BackendId,
    BackendView,
    ClusterView,
    Decision,
    Pause,
    ProgramId,
    ProgramView,
    Standing,
    Status,
    TurnId,
    WaiterView,
    Yield,
)

__all__ = ["Pauses"]

_LOOK_AT = 256
"""Programs of a backend, and waiters of a line, that are looked at when a quantum ends."""


@define(eq=False)
class Pauses:
    """Decides on pauses, and counts them in ``rooms`` at once."""

    settings: Settings
    rooms: Rooms
    places: Places
    _leaving: set[ProgramId] = field(factory=set)
    """Programs that the batch of decisions at hand sends off."""
    _rotating: tuple[ProgramId | TurnId, BackendId] | None = field(init=False, default=None)
    """The waiter for which programs at the end of their quantum make room, and where."""

    def begin(self) -> None:
        """A new batch of decisions."""
        self._leaving.clear()

    def sends_off(self, program: ProgramView) -> bool:
        """Whether this batch does."""
        return program.id in self._leaving

    # Where the cache is outgrown

    def outgrown(self, cluster: ClusterView, backends: Sequence[BackendView]) -> Iterator[Decision]:
        """Acting programs at once, then reasoning ones at their boundary (eq. 11); never the last of a backend."""
        settings, rooms, now = self.settings, self.rooms, cluster.now
        for backend in backends:
            excess_tokens = rooms.excess(backend, now)
            left = rooms.left(backend) - backend.count(Standing.YIELDING)
            for standing in (Standing.ACTING, Standing.REASONING):
                for program in self._in_order(backend, standing):
                    if excess_tokens <= 0 or left <= 1:
                        break
                    weight_tokens = rooms.weight(program, standing, now, decayed=settings.pause_decay)
                    excess_tokens -= weight_tokens + settings.buffer_tokens
                    left -= 1
                    if standing is Standing.ACTING:
                        yield self._pause(program, backend, now)
                    else:
                        self._leaving.add(program.id)
                        yield Yield(program.id)

    def _in_order(self, backend: BackendView, standing: Standing) -> Iterator[ProgramView]:
        order = self.settings.pause_order
        if order == "smallest":
            return backend.smallest_first(standing)
        if order == "largest":
            return backend.largest_first(standing)
        return iter(sorted(backend.smallest_first(standing), key=lambda program: -program.sequence))

    def _pause(self, program: ProgramView, backend: BackendView, now: float) -> Pause:
        self._leaving.add(program.id)
        self.rooms.leave(backend, program, now)
        return Pause(program.id)

    # For a waiter, at the end of a quantum

    def end_quantum(self, cluster: ClusterView) -> Iterator[Decision]:
        """The program whose turn just ended makes room if it had its quantum and somebody waits for that room.

        Others there that had theirs leave with it where one is not enough, and none leaves where all are not: then it
        would be for nothing. One backend makes room for one waiter.
        """
        program = cluster.changed_program
        if program is None or program.place is None or not self._may_rotate(program, cluster.now):
            return
        place = program.place
        waiter = self._waiter_for(place, cluster)
        if waiter is None or not self._goes_before(waiter, program, cluster.now):
            return
        if self._is_helped(waiter, cluster):
            return
        leaving = self._enough(waiter, place, program, cluster)
        if leaving:
            self._rotating = (key_of(waiter), place.id)
        for victim in leaving:
            if victim.turn_count:
                self._leaving.add(victim.id)
                yield Yield(victim.id)
            else:
                yield self._pause(victim, place, cluster.now)

    def _may_rotate(self, program: ProgramView, now: float) -> bool:
        is_leaving = program.status is not Status.ADMITTED or program.id in self._leaving
        return not is_leaving and self._had_its_quantum(program, now)

    def _goes_before(self, waiter: WaiterView, program: ProgramView, now: float) -> bool:
        """Whether the waiter would be let in before the program if that asked now: otherwise it would come back at
        once."""
        asks_as = rank(self.settings, program, now, program.need_tokens)
        return waiter.program is None or (
            rank(self.settings, waiter.program, waiter.since, waiter.need_tokens) <= asks_as
        )

    def _enough(
        self, waiter: WaiterView, place: BackendView, program: ProgramView, cluster: ClusterView
    ) -> list[ProgramView]:
        """The program, and as many that had their quantum there as it takes, acting ones first; none where all of
        them are not enough, or those that leave already are."""
        rooms, settings, now = self.rooms, self.settings, cluster.now
        missing_tokens = rooms.added_tokens(cluster.demand(waiter.turn), place) - self._coming_tokens(place)
        if missing_tokens <= 0:
            return []
        there = chain(place.longest_first(Standing.ACTING), place.longest_first(Standing.REASONING))
        others = (
            other
            for other in islice(there, _LOOK_AT)
            if other.id != program.id and self._may_rotate(other, now) and self._goes_before(waiter, other, now)
        )
        leaving: list[ProgramView] = []
        for victim in chain((program,), others):
            leaving.append(victim)
            standing = Standing.REASONING if victim.turn_count else Standing.ACTING
            weight_tokens = rooms.weight(victim, standing, now, decayed=settings.resume_decay)
            missing_tokens -= weight_tokens + settings.buffer_tokens
            if missing_tokens <= 0:
                return leaving
        left = rooms.left(place) - place.count(Standing.YIELDING) - len(leaving)
        leaves_it_empty = left == 0 and place.guest_tokens == 0 and place.reserved_tokens == 0
        return leaving if leaves_it_empty else []

    def _coming_tokens(self, place: BackendView) -> float:
        """Room there once those that yield have left."""
        return (
            self.rooms.of(place)
            + place.yielding_tokens
            + self.settings.buffer_tokens * place.count(Standing.YIELDING)
        )

    def _had_its_quantum(self, program: ProgramView, now: float) -> bool:
        settings = self.settings
        is_over = 0 < settings.quantum_turns <= program.turns_served
        if settings.rotation_ratio and program.place is not None and program.admitted_at is not None:
            quantum_seconds = program.place.expected_refill_seconds / settings.rotation_ratio
            is_over = is_over or now - program.admitted_at >= quantum_seconds
        return is_over or 0 < settings.quantum_seconds <= program.service_seconds

    def _waiter_for(self, place: BackendView, cluster: ClusterView) -> WaiterView | None:
        """The first who waits for room that the place could give, and who would get it: those who wait for one
        backend's sake bar nobody elsewhere, others bar all behind them."""
        for line in cluster.waiting_lines():
            if not asks(line[0]) or self.places.is_guest(line[0].turn):
                continue
            taken: set[BackendId] = set()
            for waiter in islice(line, _LOOK_AT):
                if self.places.could_use(waiter, place, cluster):
                    found = self.places.find(waiter.turn, waiter.since, cluster, taken)
                    if found is None:
                        return waiter
                    if found.id == place.id or self.places.to_wait_seconds(waiter.turn, found, cluster) <= 0.0:
                        break
                    taken.add(found.id)
                    continue
                bound = self.places.bound_to(waiter.turn, waiter.since, cluster)
                if bound is None or len(taken) >= len(cluster.backends):
                    break
                taken.add(bound.id)
        return None

    def _is_helped(self, waiter: WaiterView, cluster: ClusterView) -> bool:
        """Whether those that leave where room was last made for the waiter leave enough."""
        if self._rotating is None or self._rotating[0] != key_of(waiter):
            return False
        place = cluster.backend(self._rotating[1])
        if place is None or not self.places.could_use(waiter, place, cluster):
            return False
        if place.program_count == place.count(Standing.YIELDING) and place.guest_tokens == 0:
            return True
        return self.rooms.added_tokens(cluster.demand(waiter.turn), place) <= self._coming_tokens(place)

    # For a waiter, of programs that are idle for long

    def reclaim(
        self, waiter: WaiterView, cluster: ClusterView, backends: Sequence[BackendView], taken: Container[BackendId]
    ) -> Iterator[Decision]:
        """Pause programs whose idle lease is over, on the first backend where that makes room for the waiter.

        Clients that never release would otherwise hold everybody until their programs expire.
        """
        if not self.settings.reclaims:
            return
        demand = cluster.demand(waiter.turn)
        for backend in sorted(backends, key=self.rooms.of, reverse=True):
            if backend.id in taken or not self.places.could_use(waiter, backend, cluster):
                continue
            if self.places.to_wait_seconds(waiter.turn, backend, cluster) > 0.0:
                continue  # it would not be let in there now
            victims = self._reclaimable(backend, self.rooms.added_tokens(demand, backend), cluster)
            for program in victims:
                yield self._pause(program, backend, cluster.now)
            if victims:
                return

    def _reclaimable(self, backend: BackendView, tokens: int, cluster: ClusterView) -> list[ProgramView]:
        """Idle programs past their lease that together make room for so many tokens, or leave the backend empty for
        one that would not fit beside others; none if they do neither."""
        rooms, settings, victims, now = self.rooms, self.settings, list[ProgramView](), cluster.now
        lease_seconds = cluster.keep_seconds(backend) if settings.learned_lease else settings.idle_lease_seconds
        missing_tokens = tokens - rooms.of(backend)
        for program in backend.longest_idle_first():
            if now - program.acting_since < lease_seconds or missing_tokens <= 0:
                break
            if program.is_idle and program.id not in self._leaving:
                victims.append(program)
                weight_tokens = rooms.weight(program, Standing.ACTING, now, decayed=settings.resume_decay)
                missing_tokens -= weight_tokens + settings.buffer_tokens
        is_free = backend.turn_count == 0 and backend.reserved_tokens == 0
        leaves_it_empty = is_free and rooms.left(backend) == len(victims)
        return victims if missing_tokens <= 0 or leaves_it_empty else []

"""``pause-resume``: ThunderAgent's scheduling (arXiv 2602.13692, section 4), reacting to events.

As many programs are admitted as the KV cache holds, the rest wait. When the admitted ones outgrow the cache, some
are paused at a turn boundary; when there is room again, waiting ones are resumed. ``preset=paper`` is the published
algorithm: everything on a 5 s tick, smallest programs first, a resumed program on any backend.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Container, Iterator, Mapping, Sequence
from heapq import merge
from itertools import islice
from typing import ClassVar

from attrs import define, field

from policies.pause_resume_rooms import Rooms
from policies.pause_resume_settings import PRESETS, Settings, settings_from
from thunderagent.policy import (
    Admit,
    AdmitTurn,
    BackendId,
    BackendView,
    ClusterView,
    Decision,
    DemandView,
    OnHoldLimit,
    Pause,
    Policy,
    ProgramId,
    ProgramView,
    Standing,
    Status,
    Trigger,
    TurnId,
    TurnView,
    WaiterView,
    Yield,
)

__all__ = ["PRESETS", "PauseResume", "Settings"]

_LOOK_PAST = 64
"""Backends that waiters may keep to themselves before those behind them are looked at no more."""

_NEW = 2.0**40
"""Added to the published rank of programs in their first turn: more than any number of tokens."""


@define(eq=False)
class PauseResume(Policy):
    """Admits as many programs as the KV cache holds, pauses and resumes at turn boundaries.

    The module's docstring says how; the options are in ``Settings``.
    """

    name: ClassVar[str] = "pause-resume"
    settings: Settings = field(factory=Settings)
    tick_seconds: float | None = field(init=False)
    buffer_tokens: int = field(init=False)
    on_hold_limit: OnHoldLimit = field(init=False)
    _rooms: Rooms = field(init=False)
    _leaving: set[ProgramId] = field(factory=set)
    """Programs that the batch of decisions at hand pauses."""
    _stuck: dict[tuple[TurnId, int], int] = field(factory=dict)
    """The first of each line that fits nowhere, with its need: the least room that could help it."""
    _rotating: tuple[ProgramId | TurnId, BackendId] | None = field(init=False, default=None)
    """The waiter for which programs at the end of their quantum make room, and where."""

    def __attrs_post_init__(self) -> None:
        self.tick_seconds = self.settings.tick_seconds
        self.buffer_tokens = self.settings.buffer_tokens
        self.on_hold_limit = OnHoldLimit.FORCE if self.settings.forced_resume else OnHoldLimit.HEAD
        self._rooms = Rooms(self.settings)

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> PauseResume:
        """See ``Settings``; ``preset`` is one of default and paper."""
        return cls(settings_from(cls.name, options))

    # One turn

    def admit(self, turn: TurnView, cluster: ClusterView) -> BackendId | None:
        """A program's place; a newcomer's only if nobody waits and it fits. O(log backends), as a rule.

        A paused program's turn goes back to where its prefix lies, or waits for the tick (published).
        """
        program, settings = turn.program, self.settings
        if turn.place is not None:
            is_bounded = program is not None and 0 < settings.turns_per_program <= program.turn_count
            return None if is_bounded else turn.place.id
        is_paused = program is not None and program.status is Status.PAUSED
        is_late = bool(cluster.line_of(turn)) and not turn.waits_alone
        if is_late or (is_paused and not settings.react):
            return None
        self._rooms.refresh(cluster)
        since = cluster.now if program is None or program.waiting_since is None else program.waiting_since
        chosen = self._find(turn, since, cluster)
        return None if chosen is None else chosen.id

    def rank(self, waiter: WaiterView) -> float:
        """By ``resume_order``; turns without a program, which stand in a line of their own, by age."""
        program, settings = waiter.program, self.settings
        if settings.resume_order == "oldest" or program is None:
            return waiter.since
        if settings.resume_order == "first-come":
            return float(program.sequence)
        if settings.resume_order == "published":
            return waiter.need_tokens + (0.0 if program.turns_finished else _NEW)
        if settings.ageing_seconds > 0:
            # need x 2^(-waited / ageing), in an order that does not change while time passes
            return math.log2(max(1, waiter.need_tokens)) + waiter.since / settings.ageing_seconds
        return float(waiter.need_tokens)

    # All of them

    def rebalance(self, cluster: ClusterView, trigger: Trigger) -> Iterator[Decision]:
        """Pause where the cache is outgrown, resume where there is room."""
        settings = self.settings
        self._leaving.clear()
        is_full = trigger in (Trigger.TICK, Trigger.BACKENDS_CHANGED)
        if is_full:
            self._rooms.rebuild(cluster)
        else:
            self._rooms.refresh(cluster)
        yield from self._free_turns(cluster, is_full)
        if not settings.react and trigger is not Trigger.TICK:
            return
        backends = cluster.backends if is_full else cluster.changed_backends
        if settings.resume_order == "published":
            yield from self._resume_published(cluster)
            yield from self._pause(cluster, backends)
            return
        yield from self._pause(cluster, backends)
        if cluster.waiting_count:
            yield from self._end_quantum(cluster, trigger)
            yield from self._resume(cluster, backends, is_full=is_full)

    def _free_turns(self, cluster: ClusterView, is_full: bool) -> Iterator[Decision]:
        """Forward turns that waited for others of their program, up to ``turns_per_program``."""
        bound = self.settings.turns_per_program
        if bound == 0:
            return
        programs = {waiter.program for line in cluster.waiting_lines() for waiter in line} if is_full else set()
        for program in (*programs, cluster.changed_program):
            if program is None or program.status is not Status.ADMITTED or program.place is None:
                continue
            free = bound - program.turn_count
            for turn in program.held_turns():
                if free <= 0:
                    break
                if turn.place is not None and turn.may_run_on(turn.place):
                    free -= 1
                    yield AdmitTurn(turn.id, turn.place.id)

    # Pausing

    def _pause(self, cluster: ClusterView, backends: Sequence[BackendView]) -> Iterator[Decision]:
        """Acting programs at once, then reasoning ones at their boundary (eq. 11)."""
        settings, rooms, now = self.settings, self._rooms, cluster.now
        for backend in backends:
            excess_tokens = rooms.excess(backend, now)
            if excess_tokens <= 0:
                continue
            left = rooms.left(backend) - backend.count(Standing.YIELDING)
            for standing in (Standing.ACTING, Standing.REASONING):
                for program in self._in_pause_order(backend, standing):
                    if excess_tokens <= 0 or left <= 1:
                        break
                    if standing is Standing.ACTING:
                        self._leaving.add(program.id)
                        rooms.leave(backend, program, now)
                        yield Pause(program.id)
                    else:
                        yield Yield(program.id)
                    weight_tokens = rooms.weight(program, standing, now, decayed=settings.pause_decay)
                    excess_tokens -= weight_tokens + settings.buffer_tokens
                    left -= 1

    def _in_pause_order(self, backend: BackendView, standing: Standing) -> Iterator[ProgramView]:
        order = self.settings.pause_order
        if order == "smallest":
            return backend.smallest_first(standing)
        if order == "largest":
            return backend.largest_first(standing)
        return iter(sorted(backend.smallest_first(standing), key=lambda program: -program.sequence))

    def _end_quantum(self, cluster: ClusterView, trigger: Trigger) -> Iterator[Decision]:
        """The program whose turn just ended makes room if it had its quantum and somebody waits for that room.

        One backend makes room for one waiter: on all of them, many programs would leave for one that comes.
        """
        program, settings = cluster.changed_program, self.settings
        if program is None or program.place is None or trigger is not Trigger.TURN_FINISHED:
            return
        is_over = 0 < settings.quantum_turns <= program.turns_served
        is_over = is_over or 0 < settings.quantum_seconds <= program.service_seconds
        if not is_over or program.status is not Status.ADMITTED:
            return
        place = program.place
        waiter = next(
            (line[0] for line in cluster.waiting_lines() if _asks(line[0]) and line[0].turn.may_run_on(place)), None
        )
        if waiter is None or self._find(waiter.turn, waiter.since, cluster) is not None:
            return
        key = waiter.turn.id if waiter.program is None else waiter.program.id
        if self._rotating is not None and self._rotating[0] == key:
            other = cluster.backend(self._rotating[1])
            if other is not None and other is not place and waiter.turn.may_run_on(other) and other.program_count:
                return
        self._rotating = (key, place.id)
        if program.turn_count:
            yield Yield(program.id)
        else:
            self._leaving.add(program.id)
            self._rooms.leave(place, program, cluster.now)
            yield Pause(program.id)

    # Resuming

    def _resume(self, cluster: ClusterView, backends: Sequence[BackendView], *, is_full: bool) -> Iterator[Decision]:
        """Each line in its order, up to the first who fits nowhere.

        Who waits for the one backend with its prefix stops those behind it there only. The first of a line that
        fitted nowhere is looked at again where accounts changed, everywhere only on ticks.
        """
        stuck, self._stuck = self._stuck, {}
        for line in cluster.waiting_lines():
            first = line[0]
            if not _asks(first):
                continue
            key = (first.turn.id, first.need_tokens)
            least_tokens = stuck.get(key)
            if least_tokens is not None and not is_full and not self._rooms.any_has(backends, least_tokens):
                self._stuck[key] = least_tokens
                continue
            yield from self._resume_line(line, cluster, backends)

    def _resume_line(
        self, line: Sequence[WaiterView], cluster: ClusterView, backends: Sequence[BackendView]
    ) -> Iterator[Decision]:
        taken: set[BackendId] = set()
        for waiter in line:
            if len(taken) > _LOOK_PAST:
                break
            chosen = self._find(waiter.turn, waiter.since, cluster, taken)
            if chosen is None:
                victims = list(self._reclaim(waiter, cluster, backends, taken))
                if victims:
                    yield from victims
                    chosen = self._find(waiter.turn, waiter.since, cluster, taken)
            if chosen is None:
                bound = self._bound_to(waiter.turn, waiter.since, cluster)
                if bound is not None:
                    taken.add(bound.id)
                    continue
                if not taken:
                    demand = cluster.demand(waiter.turn)
                    self._stuck[waiter.turn.id, waiter.need_tokens] = 0 if demand.charged else demand.bare_tokens
                break
            self._rooms.take(chosen, cluster.added_tokens(waiter.turn, chosen))
            program = waiter.program
            yield AdmitTurn(waiter.turn.id, chosen.id) if program is None else Admit(program.id, chosen.id)

    def _find(
        self, turn: TurnView, since: float, cluster: ClusterView, taken: Container[BackendId] = ()
    ) -> BackendView | None:
        """Where the turn, whose program has no place, may be let in now; not on backends ``taken`` by others."""
        demand = cluster.demand(turn)
        bound = self._bound_to(turn, since, cluster)
        if bound is not None:
            return bound if bound.id not in taken and self._fits(turn, demand, bound) else None
        origin = self._origin(turn, cluster)
        if origin is not None and origin.id not in taken and self._fits(turn, demand, origin):
            return origin
        fitting = (
            backend
            for backend in self._rooms.roomiest_first(cluster, 0.0 if demand.charged else demand.bare_tokens)
            if backend.id not in taken and turn.may_run_on(backend) and self._fits(turn, demand, backend)
        )
        if self.settings.resume_on == "tightest":
            return min(fitting, key=self._rooms.of, default=None)
        return next(fitting, None)

    def _origin(self, turn: TurnView, cluster: ClusterView) -> BackendView | None:
        """The backend to be preferred for the sake of the prefix."""
        program = turn.program
        if program is None or program.origin is None or self.settings.resume_on in ("roomiest", "tightest"):
            return None
        origin = cluster.backend(program.origin)
        return origin if origin is not None and turn.may_run_on(origin) else None

    def _bound_to(self, turn: TurnView, since: float, cluster: ClusterView) -> BackendView | None:
        """The only backend that the turn may go to, for the sake of the prefix there."""
        settings, origin, program = self.settings, self._origin(turn, cluster), turn.program
        if origin is None or program is None or settings.resume_on == "prefer-origin" or turn.waits_alone:
            return None
        if 0 < settings.move_after_seconds <= cluster.now - since:
            return None
        if settings.resume_on == "resident" and cluster.resident_ratio(program) < settings.resident_ratio:
            return None
        return origin if turn.prompt_tokens <= (origin.capacity_tokens or turn.prompt_tokens) else None

    def _fits(self, turn: TurnView, demand: DemandView, backend: BackendView) -> bool:
        if backend.capacity_tokens is not None and turn.prompt_tokens > backend.capacity_tokens:
            return False
        return self._rooms.fits(backend, demand.added_tokens(backend))

    def _reclaim(
        self, waiter: WaiterView, cluster: ClusterView, backends: Sequence[BackendView], taken: Container[BackendId]
    ) -> Iterator[Decision]:
        """Pause programs whose idle lease is over, on the first backend where that makes room for the waiter.

        Clients that never release would otherwise hold everybody until their programs expire.
        """
        if self.settings.idle_lease_seconds <= 0:
            return
        bound = self._bound_to(waiter.turn, waiter.since, cluster)
        demand = cluster.demand(waiter.turn)
        for backend in sorted(backends, key=self._rooms.of, reverse=True):
            is_open = waiter.turn.may_run_on(backend) if bound is None else backend.id == bound.id
            if not is_open or backend.id in taken:
                continue
            victims = self._reclaimable(backend, demand.added_tokens(backend), cluster.now)
            for program in victims:
                self._leaving.add(program.id)
                self._rooms.leave(backend, program, cluster.now)
                yield Pause(program.id)
            if victims:
                return

    def _reclaimable(self, backend: BackendView, tokens: int, now: float) -> list[ProgramView]:
        """Idle programs past their lease that together make room for so many tokens, or leave the backend empty for
        one that would not fit beside others; none if they do neither."""
        rooms, settings, victims = self._rooms, self.settings, list[ProgramView]()
        missing_tokens = tokens - rooms.of(backend)
        for program in backend.longest_idle_first():
            if now - program.acting_since < settings.idle_lease_seconds or missing_tokens <= 0:
                break
            if program.is_idle and program.id not in self._leaving:
                victims.append(program)
                weight_tokens = rooms.weight(program, Standing.ACTING, now, decayed=settings.resume_decay)
                missing_tokens -= weight_tokens + settings.buffer_tokens
        leaves_it_empty = backend.turn_count == 0 and rooms.left(backend) == len(victims)
        return victims if missing_tokens <= 0 or leaves_it_empty else []

    # The published resume

    def _resume_published(self, cluster: ClusterView) -> Iterator[Decision]:
        """Pick by score (eq. 10) what fits all rooms together, place the largest first where the most room is.

        Within a class the tokens ascend, so that the first who does not fit ends it.
        """
        rooms, buffer_tokens = self._rooms, self.settings.buffer_tokens
        total_tokens = rooms.total()
        picked: list[WaiterView | ProgramView] = []
        for candidates in self._published_classes(cluster):
            for candidate in candidates:
                cost_tokens = candidate.need_tokens + buffer_tokens
                if cost_tokens > total_tokens and (picked or not rooms.has_empty()):
                    break
                total_tokens -= cost_tokens
                picked.append(candidate)
        picked.sort(key=lambda candidate: -candidate.need_tokens)
        for candidate in picked:
            turn = getattr(candidate, "turn", None)
            open_backends = rooms.roomiest_first(cluster)
            chosen = next((entry for entry in open_backends if turn is None or turn.may_run_on(entry)), None)
            if chosen is None or not rooms.fits(chosen, candidate.need_tokens):
                continue
            rooms.take(chosen, candidate.need_tokens)
            program = candidate if turn is None else candidate.program
            yield AdmitTurn(turn.id, chosen.id) if program is None else Admit(program.id, chosen.id)

    def _published_classes(self, cluster: ClusterView) -> Iterator[Iterator[WaiterView | ProgramView]]:
        """Waiting after more than one step, waiting in the first, and paused while the agent is in a tool."""
        lines = [line for line in cluster.waiting_lines() if _asks(line[0])]
        programs = [line for line in lines if line[0].program is not None]
        starts = [bisect_left(line, _NEW, key=self.rank) for line in programs]
        known = [islice(line, start) for line, start in zip(programs, starts, strict=True)]
        new = [(line[i] for i in range(start, len(line))) for line, start in zip(programs, starts, strict=True)]
        yield merge(*known, key=self.rank)
        yield merge(*new, key=self.rank)
        yield from (iter(line) for line in lines if line[0].program is None)
        yield cluster.paused_idle_smallest_first()


def _asks(waiter: WaiterView) -> bool:
    """Whether it asks for a place: not so for turns that wait at their program's place, in lines of their own."""
    return waiter.turn.place is None

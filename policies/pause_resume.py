"""``pause-resume``: ThunderAgent's scheduling (arXiv 2602.13692, section 4), reacting to events.

As many programs are admitted as the KV cache holds, the rest wait. When the admitted ones outgrow the cache, some
are paused at a turn boundary; when there is room again, waiting ones are resumed. ``preset=paper`` is the published
algorithm: everything on a 5 s tick, smallest programs first, a resumed program on any backend.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import islice
from typing import ClassVar

from attrs import define, field, frozen

from policies.pause_resume_pauses import Pauses
from policies.pause_resume_places import Places, asks, key_of
from policies.pause_resume_published import resume_published
from policies.pause_resume_ranks import BEHIND, rank
from policies.pause_resume_rooms import Rooms
from policies.pause_resume_settings import PRESETS, Settings, settings_from
from thunderagent.policy import (
    Admit,
    AdmitTurn,
    BackendId,
    BackendView,
    ClusterView,
    Decision,
    OnHoldLimit,
    Policy,
    ProgramId,
    ProgramView,
    Status,
    Trigger,
    TurnId,
    TurnView,
    WaiterView,
)

__all__ = ["PRESETS", "PauseResume", "Settings"]

_LOOK_PAST = 64
"""Backends that waiters may keep to themselves before those behind them are looked at no more."""

_LOOK_PAST_PACED = 8
"""Waiters of a line that may wait for prompts to be computed before those behind them are looked at no more."""

_EVERYWHERE = (Trigger.TICK, Trigger.BACKENDS_CHANGED)
"""Triggers for which all backends are looked at; for others those are that changed."""

_LOOK_AT, _LOOK_AT_ON_TICKS = 32, 1_024
"""Waiters of a line that are looked at for an event, at its head and again further back; on ticks."""


@frozen
class _Stuck:
    """Why the first of a line is let in nowhere."""

    least_tokens: float
    """The least room that could help the line."""
    computed_at: float
    """When the first of the prompts is computed that it waits for; infinite where it waits for room."""
    awaited: Set[BackendId]
    """Where they are computed."""


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
    wake_at: float | None = field(init=False, default=None)
    _rooms: Rooms = field(init=False)
    _places: Places = field(init=False)
    _pauses: Pauses = field(init=False)
    _stuck: dict[tuple[TurnId, int], _Stuck] = field(factory=dict)
    """By the first of each line that is let in nowhere, and its need."""
    _ended: dict[tuple[str | None, bool], tuple[int, frozenset[BackendId]]] = field(factory=dict)
    """Where in a line (its model, whether of turns alone) the last look ended, and the backends that were kept."""

    def __attrs_post_init__(self) -> None:
        self.tick_seconds = self.settings.tick_seconds
        self.buffer_tokens = self.settings.buffer_tokens
        self.on_hold_limit = OnHoldLimit.FORCE if self.settings.forced_resume else OnHoldLimit.HEAD
        self._rooms = Rooms(self.settings)
        self._places = Places(self.settings, self._rooms)
        self._pauses = Pauses(self.settings, self._rooms, self._places)

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
        line = cluster.line_of(turn)
        is_late = bool(line) and (not self._places.is_guest(turn) or self._places.is_guest(line[0].turn))
        if is_late or (is_paused and not settings.react):
            return None
        self._rooms.refresh(cluster, cluster.changed_backends)
        since = cluster.now if program is None or program.waiting_since is None else program.waiting_since
        chosen = self._places.find(turn, since, cluster)
        if chosen is None:
            return None
        if self._is_awaited(chosen) and self._places.to_wait_seconds(turn, chosen, cluster) > 0.0:
            return None  # of another line somebody waits there: newcomers would have it wait for ever
        self._places.let_in(turn, chosen, cluster)
        return chosen.id

    def placed(self, turn: TurnView, backend: BackendView, cluster: ClusterView) -> None:
        """Its prompt is to be computed as well."""
        self._places.let_in(turn, backend, cluster)

    def rank(self, waiter: WaiterView) -> float:
        """By ``resume_order``; turns without a program, which stand in a line of their own, by age, and those that
        wait for room as programs do behind those that need not."""
        if waiter.program is None:
            return waiter.since if self._places.is_guest(waiter.turn) else waiter.since + BEHIND
        return rank(self.settings, waiter.program, waiter.since, waiter.need_tokens)

    def keep_seconds(self, backend: BackendView, cluster: ClusterView) -> float:
        """With ``learned_lease`` as long as conversations are worth their room."""
        return cluster.keep_seconds(backend) if self.settings.learned_lease else math.inf

    # All of them

    def rebalance(self, cluster: ClusterView, trigger: Trigger) -> Iterator[Decision]:
        """Pause where the cache is outgrown, resume where there is room."""
        settings, rooms = self.settings, self._rooms
        self._pauses.begin()
        is_full = trigger in _EVERYWHERE
        backends = cluster.backends if is_full else cluster.changed_backends
        outgrown = rooms.rebuild(cluster) if is_full else rooms.refresh(cluster, backends)
        if is_full:
            self._places.backlogs.forget_done(cluster)
        self.wake_at = None
        if not cluster.waiting_count:
            self._stuck.clear()
        is_time, is_published = settings.react or trigger is Trigger.TICK, settings.resume_order == "published"
        picked: set[ProgramId | TurnId] = set()
        for decision in resume_published(cluster, rooms) if is_time and is_published else ():
            picked.add(decision.program if isinstance(decision, Admit) else decision.turn)
            yield decision
        if is_time and outgrown:
            yield from self._pauses.outgrown(cluster, outgrown)
        if cluster.waiting_count:
            if trigger is Trigger.TURN_FINISHED and settings.rotates:
                yield from self._pauses.end_quantum(cluster)
            if is_time and (not is_published or settings.reclaims):
                yield from self._resume(cluster, backends, picked, trigger)
        if settings.turns_per_program and (is_full or _holds_turns(cluster.changed_program)):
            yield from self._free_turns(cluster, is_full)

    def _free_turns(self, cluster: ClusterView, is_full: bool) -> Iterator[Decision]:
        """Forward turns that waited for others of their program, up to ``turns_per_program``; not of those that
        leave."""
        programs = [] if cluster.changed_program is None else [cluster.changed_program]
        for line in cluster.waiting_lines() if is_full else ():
            if line[0].turn.place is not None:
                programs += [waiter.program for waiter in line if waiter.program is not None]
        for program in programs:
            if program.status is not Status.ADMITTED or program.place is None or self._pauses.sends_off(program):
                continue
            free = self.settings.turns_per_program - program.turn_count
            for turn in program.held_turns():
                if free <= 0:
                    break
                if turn.place is not None and turn.may_run_on(turn.place):
                    free -= 1
                    yield AdmitTurn(turn.id, turn.place.id)

    # Resuming

    def _is_awaited(self, backend: BackendView) -> bool:
        """Whether somebody waits for prompts to be computed there. O(lines)."""
        return any(backend.id in stuck.awaited for stuck in self._stuck.values())

    def _resume(
        self,
        cluster: ClusterView,
        backends: Sequence[BackendView],
        picked: Set[ProgramId | TurnId],
        trigger: Trigger,
    ) -> Iterator[Decision]:
        """Each line in its order, but for who was ``picked`` already, up to the first who fits nowhere.

        Who waits for the one backend with its prefix, or until prompts are computed on the one chosen for it, stops
        those behind it there only. The first of a line that fitted nowhere is looked at again where accounts changed,
        everywhere only on ticks.
        """
        settings, is_full = self.settings, trigger in _EVERYWHERE
        stuck, self._stuck = self._stuck, {}
        for line in cluster.waiting_lines():
            first = line[0]
            if not asks(first):
                continue
            key = (first.turn.id, first.need_tokens)
            known = stuck.get(key)
            if known is not None and not is_full and not self._is_helped(first, cluster, backends, trigger, known):
                self._stuck[key] = known
                continue
            yield from self._resume_line(line, cluster, backends, picked, is_full=is_full)
        if settings.pace_prefills and settings.react:
            for known in self._stuck.values():
                if known.awaited and (self.wake_at is None or known.computed_at < self.wake_at):
                    self.wake_at = known.computed_at

    def _is_helped(
        self,
        first: WaiterView,
        cluster: ClusterView,
        changed: Sequence[BackendView],
        trigger: Trigger,
        stuck: _Stuck,
    ) -> bool:
        """Whether who was let in nowhere may go to a backend that changed, or has waited for a prompt long enough; or
        somebody came behind it who may go elsewhere meanwhile."""
        turn, places = first.turn, self._places
        if stuck.awaited:
            if trigger is Trigger.TURN_HELD or cluster.now >= stuck.computed_at:
                return True
            changed = [backend for backend in changed if places.to_wait_seconds(turn, backend, cluster) <= 0.0]
        if not places.is_guest(turn):
            return self._rooms.any_has(changed, stuck.least_tokens)
        demand = cluster.demand(turn)
        return any(turn.may_run_on(backend) and places.fits(turn, demand, backend) for backend in changed)

    def _resume_line(
        self,
        line: Sequence[WaiterView],
        cluster: ClusterView,
        backends: Sequence[BackendView],
        picked: Set[ProgramId | TurnId],
        *,
        is_full: bool,
    ) -> Iterator[Decision]:
        places, kept, taken = self._places, set[BackendId](), set[BackendId]()
        most_taken = min(_LOOK_PAST, len(line[0].turn.eligible_backends))
        stuck: tuple[TurnId, int] | None = None
        least_tokens, computed_at, awaited = math.inf, math.inf, set[BackendId]()
        for waiter in self._in_reach(line, kept, taken, is_full=is_full):
            if len(taken) >= most_taken or len(awaited) >= _LOOK_PAST_PACED:
                break
            turn = waiter.turn
            if picked and key_of(waiter) in picked:
                continue
            bound = places.bound_to(turn, waiter.since, cluster)
            if bound is not None and bound.id in taken:
                continue
            chosen = places.find(turn, waiter.since, cluster, taken)
            if chosen is None and (victims := list(self._pauses.reclaim(waiter, cluster, backends, taken))):
                yield from victims
                chosen = places.find(turn, waiter.since, cluster, taken)
            to_wait_seconds = 0.0 if chosen is None else places.to_wait_seconds(turn, chosen, cluster)
            if chosen is not None and to_wait_seconds <= 0.0:
                yield self._let_in(waiter, chosen, cluster)
                continue
            demand = cluster.demand(turn)
            least_tokens = min(least_tokens, 0 if demand.charged else demand.bare_tokens)
            if chosen is not None:
                computed_at = min(computed_at, cluster.now + to_wait_seconds)
                stuck = stuck or (turn.id, waiter.need_tokens)
                awaited.add(chosen.id)
                taken.add(chosen.id)
            elif bound is not None:
                kept.add(bound.id)
                taken.add(bound.id)
            else:
                if not taken:
                    stuck = (turn.id, waiter.need_tokens)
                break
        if stuck is not None:
            self._stuck[stuck] = _Stuck(least_tokens, computed_at, awaited)

    def _let_in(self, waiter: WaiterView, backend: BackendView, cluster: ClusterView) -> Decision:
        turn, program, rooms = waiter.turn, waiter.program, self._rooms
        self._places.let_in(turn, backend, cluster)
        rooms.take(backend, rooms.added_tokens(cluster.demand(turn), backend), is_guest=turn.waits_alone)
        return AdmitTurn(turn.id, backend.id) if program is None else Admit(program.id, backend.id)

    def _in_reach(
        self, line: Sequence[WaiterView], kept: set[BackendId], taken: set[BackendId], *, is_full: bool
    ) -> Iterator[WaiterView]:
        """The head of a line, then some from where the last look ended, with the backends that were ``kept`` by those
        before, which are among those ``taken``.

        Thousands may wait for one backend's sake: so no event looks at all of them, and nobody behind them is
        forgotten. Who reads no further than somebody bars the next one to begin behind the head again.
        """
        yield from islice(line, _LOOK_AT)
        key = (line[0].turn.model, line[0].program is None)
        start, passed = self._ended.pop(key, (_LOOK_AT, frozenset[BackendId]()))
        kept |= passed
        taken |= passed
        end = start + (_LOOK_AT_ON_TICKS if is_full else _LOOK_AT)
        yield from (line[index] for index in range(start, min(end, len(line))))
        if end < len(line):
            self._ended[key] = (end, frozenset(kept))


def _holds_turns(program: ProgramView | None) -> bool:
    return program is not None and next(program.held_turns(), None) is not None

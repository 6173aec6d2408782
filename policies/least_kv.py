"""``least-kv``: the backend with the most free KV tokens that fits the turn, sticky while it fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from attrs import define, field

from policies.least_kv_growth import Growth
from policies.least_kv_room import Options, Room
from policies.options import read_options
from thunderagent.policy import (
    AdmitTurn,
    BackendId,
    BackendView,
    ClusterView,
    Decision,
    Policy,
    Reconsider,
    Trigger,
    TurnId,
    TurnView,
    WaiterView,
)

__all__ = ["LeastKv"]


@define(eq=False)
class LeastKv(Policy):
    """Capacity-aware placement by turn.

    A turn goes to its program's place while its growth fits there, else to the roomiest backend that fits the
    whole program and keeps a reserve. Where none fits it is held, oldest first; ``overflow=true`` never holds.
    Idle programs make room for who waits: at once where no turn runs, elsewhere when their lease is over.
    """

    name: ClassVar[str] = "least-kv"
    tick_seconds = 1.0
    _options: Options = field(factory=Options)
    _room: Room = field(init=False)
    _growth: Growth = field(factory=Growth)
    _stuck: set[tuple[TurnId, int]] = field(factory=set)
    """The first of each line, with its need, that fitted on no backend: looked at again where accounts change."""

    def __attrs_post_init__(self) -> None:
        self._room = Room(self._options)

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> LeastKv:
        """See ``Options``."""
        return cls(read_options(cls.name, Options(), options))

    # One turn

    def admit(self, turn: TurnView, cluster: ClusterView) -> BackendId | None:
        """The place if it fits, else the roomiest that fits, else hold. O(backends).

        A program that moves passes those who wait for a place: it frees about what it takes.
        """
        place, room = turn.place, self._room
        if place is not None and cluster.fits(turn, place):
            return place.id
        if self._options.overflow or place is not None or not _is_late(turn, cluster):
            chosen = room.roomiest(turn, cluster, self._growth.without(turn.eligible_backends))
            if chosen is not None:
                return chosen.id
        if self._options.overflow:
            return room.least_overcommitted(turn, cluster).id
        if place is not None:
            self._growth.add(turn)
        return None

    # Those who wait

    def rebalance(self, cluster: ClusterView, trigger: Trigger) -> Sequence[Decision]:
        """Let in who fits by now, and pause idle programs for who does not.

        O(lines x changed backends), all backends on ticks and for each new first of a line.
        """
        if not cluster.waiting_count:
            self._growth.clear()
            self._stuck.clear()
            return ()
        is_full = trigger is Trigger.TICK or trigger is Trigger.BACKENDS_CHANGED
        if is_full:
            self._growth.rebuild(cluster)
            self._stuck.clear()
        backends = cluster.backends if is_full else _changed(cluster)
        decisions: list[Decision] = []
        used: set[BackendId] = set()
        for backend in backends:
            growing = list(self._let_grow(backend, cluster)) if self._growth.waits_at(backend) else []
            if growing:
                used.add(backend.id)
                decisions += growing
        return (*decisions, *self._let_in(cluster, backends, used, is_full=is_full))

    def _let_grow(self, backend: BackendView, cluster: ClusterView) -> Iterator[Decision]:
        """Forward turns that wait at their place, in their order, up to the first that does not fit.

        If that is the very first, idle programs make room for it.
        """
        free_tokens, taken_tokens, is_first = backend.free_tokens, 0, True
        for turn in self._growth.turns(backend, cluster):
            needed_tokens = cluster.added_tokens(turn, backend)
            if free_tokens is None or taken_tokens + needed_tokens <= free_tokens:
                taken_tokens, is_first = taken_tokens + needed_tokens, False
                yield AdmitTurn(turn.id, backend.id)
                continue
            made = self._room.make(turn, (backend,), cluster) if is_first else None
            if made is not None:
                yield from made[1]
                yield AdmitTurn(turn.id, backend.id)
            return

    def _let_in(
        self, cluster: ClusterView, changed: Sequence[BackendView], used: set[BackendId], *, is_full: bool
    ) -> Iterator[Decision]:
        """Have the lines offered again if the first of one fits somewhere, or idle programs made room for it.

        Who waits at its place was looked at everywhere when it was held.
        """
        stuck, self._stuck = self._stuck, set()
        is_helped = False
        for line in cluster.waiting_lines():
            first = _first(line)
            if first is None:
                continue
            turn, key = first.turn, (first.turn.id, first.need_tokens)
            backends = turn.eligible_backends
            if key in stuck or (turn.place is not None and not is_full):
                backends = [backend for backend in changed if turn.may_run_on(backend)]
            backends = self._growth.without(backends)
            if self._room.roomiest(turn, cluster, backends) is not None:
                is_helped = True
                continue
            unused = (backend for backend in backends if backend.id not in used)
            made = self._room.make(turn, unused, cluster) if turn.place is None else None
            if made is None:
                self._stuck.add(key)
                continue
            is_helped = True
            used.add(made[0].id)
            yield from made[1]
        if is_helped:
            yield Reconsider()


def _is_late(turn: TurnView, cluster: ClusterView) -> bool:
    """Whether somebody in the line that the turn stands in, or would join, asked before it or at the same time."""
    first, program = _first(cluster.line_of(turn)), turn.program
    if first is None or first.turn.id == turn.id:
        return False
    if program is None or turn.waits_alone:
        return True
    since = program.waiting_since
    return since is None or first.since <= since


def _first(line: Sequence[WaiterView]) -> WaiterView | None:
    """The first in the line who has a backend to go to: some have tried all of theirs just now."""
    return next((waiter for waiter in line if waiter.turn.eligible_backends), None)


def _changed(cluster: ClusterView) -> Sequence[BackendView]:
    """Backends whose accounts changed, and the place of the program that the event is about."""
    changed, program = cluster.changed_backends, cluster.changed_program
    if program is None or program.place is None or program.place in changed:
        return changed
    return (*changed, program.place)

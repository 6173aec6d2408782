"""``least-kv``: the backend with the most free KV tokens that fits the turn, sticky while it fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from attrs import define, field, frozen

from policies.options import read_options
from thunderagent.policy import (
    BackendId,
    BackendView,
    ClusterView,
    Decision,
    Pause,
    Policy,
    Reconsider,
    Trigger,
    TurnView,
    roomiest,
)

__all__ = ["LeastKv"]


@frozen
class _Options:
    overflow: bool = False


@define(eq=False)
class LeastKv(Policy):
    """Capacity-aware placement by turn.

    A turn goes to its program's place while its growth fits there, else to the roomiest backend that fits the
    whole program. Where none fits it is held, oldest first; ``overflow=true`` sends it to the roomiest instead.
    Idle programs keep their tokens accounted, but they cannot stop everybody: where turns wait for a backend on
    which none runs, the programs idle there for longest are paused until the oldest one fits.
    """

    name: ClassVar[str] = "least-kv"
    _options: _Options = field(factory=_Options)

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> LeastKv:
        """``overflow`` (false): never hold."""
        return cls(read_options(cls.name, _Options(), options))

    def admit(self, turn: TurnView, cluster: ClusterView) -> BackendId | None:
        """The place if it fits, else the roomiest that fits, else hold. O(backends)."""
        place = turn.place
        if place is not None and cluster.fits(turn, place):
            return place.id
        fitting = [backend for backend in turn.eligible_backends if cluster.fits(turn, backend)]
        if fitting:
            return roomiest(fitting).id
        if self._options.overflow:
            return roomiest(turn.eligible_backends).id
        return None

    def rebalance(self, cluster: ClusterView, trigger: Trigger) -> Sequence[Decision]:
        """Offer held turns again, after pausing idle programs where nothing runs any more."""
        if not cluster.waiting_count:
            return ()
        decisions: list[Decision] = []
        quiet = {backend.id for backend in cluster.backends if backend.turn_count == 0}
        for line in cluster.waiting_lines() if quiet else ():
            turn = line[0].turn
            if any(cluster.fits(turn, backend) for backend in turn.eligible_backends):
                continue
            chosen = next((backend for backend in turn.eligible_backends if backend.id in quiet), None)
            if chosen is not None:
                quiet.discard(chosen.id)
                decisions += self._make_room(turn, chosen, cluster)
        return (*decisions, Reconsider())

    @staticmethod
    def _make_room(turn: TurnView, backend: BackendView, cluster: ClusterView) -> list[Decision]:
        free_tokens = backend.free_tokens
        assert free_tokens is not None  # unknown capacity fits all
        needed_tokens, paused = cluster.added_tokens(turn, backend), list[Decision]()
        for program in backend.longest_idle_first():
            if free_tokens >= needed_tokens:
                break
            if program is not turn.program:
                paused.append(Pause(program.id))
                free_tokens += program.own_tokens
        return paused

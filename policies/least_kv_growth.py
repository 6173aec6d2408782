"""Programs of ``least-kv`` that outgrew their place and wait there, by place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import define, field

from thunderagent.policy import BackendId, BackendView, ClusterView, ProgramId, Status, TurnView

__all__ = ["Growth"]


@define(eq=False)
class Growth:
    """A line per backend, in the order in which they began to wait; what left it unnoticed is dropped in passing."""

    _programs: dict[BackendId, dict[ProgramId, None]] = field(factory=dict)

    def add(self, turn: TurnView) -> None:
        """A turn is held at its place."""
        assert turn.place is not None
        assert turn.program is not None
        self._programs.setdefault(turn.place.id, {})[turn.program.id] = None

    def clear(self) -> None:
        """Nobody waits any more."""
        self._programs.clear()

    def rebuild(self, cluster: ClusterView) -> None:
        """Read it anew from the cluster's lines. O(programs that wait at their place)."""
        self._programs.clear()
        for line in cluster.waiting_lines():
            for waiter in line if line[0].turn.place is not None else ():
                self.add(waiter.turn)

    def waits_at(self, backend: BackendView) -> bool:
        """Whether somebody waits there."""
        return backend.id in self._programs

    def without(self, backends: Sequence[BackendView]) -> Sequence[BackendView]:
        """Those of the backends at which nobody waits: a newcomer there would take the room for growth."""
        taken = self._programs
        return [backend for backend in backends if backend.id not in taken] if taken else backends

    def turns(self, backend: BackendView, cluster: ClusterView) -> Iterator[TurnView]:
        """The turns that wait there, each to be let in before the next is asked for: they are struck off."""
        names = self._programs.get(backend.id, {})
        for name in list(names):
            program = cluster.program(name)
            if program is not None and program.status is Status.ADMITTED:
                yield from (turn for turn in program.held_turns() if _waits(turn, backend))
            del names[name]
        self._programs.pop(backend.id, None)


def _waits(turn: TurnView, backend: BackendView) -> bool:
    return turn.place is backend and turn.may_run_on(backend)

"""``affinity``: a program stays on one backend; new ones go to the emptiest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from attrs import define

from policies.origins import origin_of
from thunderagent.policy import BackendId, BackendView, ClusterView, Policy, TurnView

__all__ = ["Affinity"]


@define(eq=False)
class Affinity(Policy):
    """Sticky placement without admission control; never holds.

    New programs, one-off turns and programs whose backend was lost go to the emptiest eligible backend, one by one:
    each counts for the next. Turns for a model that their program's place does not serve go where their conversation
    last ran. A program that has a place keeps it, also when a backend joins or comes back.
    """

    name: ClassVar[str] = "affinity"

    def admit(self, turn: TurnView, cluster: ClusterView) -> BackendId:
        """The program's place, else where the conversation last ran, else the emptiest backend. O(backends)."""
        home = turn.place or origin_of(turn, cluster)
        if home is not None:
            return home.id
        return _emptiest(turn.eligible_backends).id


def _emptiest(backends: Sequence[BackendView]) -> BackendView:
    """The backend with the smallest part of its capacity accounted, so that one twice as large takes twice as much.

    Where the capacity of one of them is unknown: the one with the fewest accounted tokens. Among equals the one with
    the fewest running turns, then with the fewest programs, then the first.
    """
    if all(backend.capacity_tokens for backend in backends):
        return min(backends, key=lambda backend: (_taken_ratio(backend), backend.turn_count, backend.program_count))
    return min(backends, key=lambda backend: (backend.accounted_tokens, backend.turn_count, backend.program_count))


def _taken_ratio(backend: BackendView) -> float:
    return backend.accounted_tokens / (backend.capacity_tokens or 1)

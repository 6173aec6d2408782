"""``affinity``: a program stays on one backend; new ones go where the fewest tokens are accounted."""

from __future__ import annotations

from typing import ClassVar

from attrs import define

from thunderagent.policy import BackendId, ClusterView, Policy, TurnView

__all__ = ["Affinity"]


@define(eq=False)
class Affinity(Policy):
    """Sticky placement without admission control; never holds.

    A program whose backend is lost goes to the eligible one with the fewest accounted tokens. One-off turns and
    new programs do so as well.
    """

    name: ClassVar[str] = "affinity"

    def admit(self, turn: TurnView, cluster: ClusterView) -> BackendId:
        """The program's place, else the backend with the fewest accounted tokens. O(backends)."""
        if turn.place is not None:
            return turn.place.id
        return min(turn.eligible_backends, key=lambda backend: (backend.accounted_tokens, backend.turn_count)).id

"""``round-robin``: each turn to the next backend, with no idea of programs. The baseline."""

from __future__ import annotations

from typing import ClassVar

from attrs import define

from thunderagent.policy import BackendId, ClusterView, Policy, TurnView

__all__ = ["RoundRobin"]


@define(eq=False)
class RoundRobin(Policy):
    """Takes the backends in turn; never holds. What a plain load balancer does to agents."""

    name: ClassVar[str] = "round-robin"
    _turns: int = 0

    def admit(self, turn: TurnView, cluster: ClusterView) -> BackendId:
        """The next backend. O(1)."""
        backends = turn.eligible_backends
        chosen = backends[self._turns % len(backends)]
        self._turns += 1
        return chosen.id

"""Where a turn's conversation last ran: what is left of it there need not be computed again."""

from __future__ import annotations

from thunderagent.policy import BackendView, ClusterView, TurnView

__all__ = ["origin_of"]


def origin_of(turn: TurnView, cluster: ClusterView) -> BackendView | None:
    """That backend, if the turn may run there; also for one that runs beside its program's place, whose program's
    origin is another. None where it never ran, or that cache was lost."""
    return None if turn.origin is None else cluster.backend(turn.origin)

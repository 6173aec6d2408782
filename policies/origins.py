"""Where a turn's conversation last ran: what is left of it there need not be computed again."""

from __future__ import annotations

from thunderagent.policy import BackendId, BackendView, ClusterView, TurnView

__all__ = ["origin_of"]


def origin_of(turn: TurnView, cluster: ClusterView) -> BackendView | None:
    """That backend, if the turn may run there; also for one that runs beside its program's place, whose program's
    origin is another. None where it never ran, or that cache was lost."""
    name: BackendId | None = getattr(turn, "origin", None)  # not in every version of the views
    origin = None if name is None else cluster.backend(name)
    return origin if origin is not None and turn.may_run_on(origin) else None

"""Which events can happen at all, judged before anything changes."""

from __future__ import annotations

from thunderagent.core import events
from thunderagent.core.cluster import Cluster
from thunderagent.core.events import Event
from thunderagent.core.turn import TurnStatus

__all__ = ["illegality"]

_OF_RUNNING_TURNS = (events.TurnProgressed, events.TurnFinished, events.ForwardFailed)


def illegality(event: Event, cluster: Cluster) -> str | None:
    """Why the event cannot have happened to this cluster; None where it can."""
    if isinstance(event, _OF_RUNNING_TURNS):
        turn = cluster.turn_by_id.get(event.turn)
        is_forwarded = turn is not None and turn.status is TurnStatus.FORWARDED
        return None if is_forwarded else "the turn is not forwarded"
    if isinstance(event, events.TurnArrived):
        return "a turn with that id is there already" if event.turn in cluster.turn_by_id else None
    if isinstance(event, events.TurnAbandoned):
        return None if event.turn in cluster.turn_by_id else "the turn is not known"
    if isinstance(event, events.BackendAdded):
        return "the backend is there already" if event.backend in cluster.backend_by_id else None
    if isinstance(event, (events.ProgramReleased, events.Tick)):
        return None
    return None if event.backend in cluster.backend_by_id else "the backend is not known"

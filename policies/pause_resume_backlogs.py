"""What each backend still has to prefill of those that ``pause-resume`` let in there."""

from __future__ import annotations

from attrs import define, field

from thunderagent.policy import BackendId, BackendView, ClusterView, TurnView

__all__ = ["Backlogs"]


@define(eq=False)
class Backlogs:
    """Until when each backend is busy with it, by the rate that it was seen to have.

    Engines compute one prompt after the other. Where several are let in at once, all but the first wait in the
    engine, and so does every small request that comes meanwhile; one at a time, the engine does as much and nobody
    else waits.
    """

    _until: dict[BackendId, float] = field(factory=dict)

    def add(self, turn: TurnView, backend: BackendView, cluster: ClusterView) -> None:
        """The turn goes there now: what it probably lacks in the cache is computed after what was let in before."""
        refill_seconds, capacity_tokens = backend.refill_seconds, backend.capacity_tokens
        if refill_seconds is None or not capacity_tokens:
            return
        share, program = turn.prompt_tokens / capacity_tokens, turn.program
        if program is not None and turn.origin == backend.id:
            share *= 1.0 - cluster.resident_ratio(program)
        begins_at = max(cluster.now, self._until.get(backend.id, 0.0))
        self._until[backend.id] = begins_at + share * refill_seconds

    def seconds(self, backend: BackendView, now: float) -> float:
        """That it will take; 0 also while the rate is unknown. O(1)."""
        return max(0.0, self._until.get(backend.id, 0.0) - now)

    def forget_done(self, now: float) -> None:
        """Drop what is over. O(backends)."""
        self._until = {backend: until for backend, until in self._until.items() if until > now}

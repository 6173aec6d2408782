"""What each backend still has to prefill of those that ``pause-resume`` let in there."""

from __future__ import annotations

from attrs import define, field

from thunderagent.policy import BackendId, BackendView, ClusterView, TurnView

__all__ = ["Backlogs"]


@define(eq=False)
class Backlogs:
    """By the rate that each backend was seen to have.

    Engines compute one prompt after the other. Where several are let in at once, all but the first wait in the
    engine, and so does every small request that comes meanwhile; one at a time, the engine does as much and nobody
    else waits.
    """

    _left: dict[BackendId, tuple[float, float]] = field(factory=dict)
    """Ratio of its capacity that was left to prefill, and when; no end, as the rate may be learned better since."""

    def add(self, turn: TurnView, backend: BackendView, cluster: ClusterView) -> None:
        """The turn goes there now: what it probably lacks in the cache is computed after what was let in before."""
        refill_seconds, capacity_tokens = backend.refill_seconds, backend.capacity_tokens
        if refill_seconds is None or not capacity_tokens:
            return
        ratio, program = turn.prompt_tokens / capacity_tokens, turn.program
        if program is not None and turn.origin == backend.id:
            ratio *= 1.0 - cluster.resident_ratio(program)
        left_ratio = self.seconds(backend, cluster.now) / refill_seconds
        self._left[backend.id] = (left_ratio + ratio, cluster.now)

    def seconds(self, backend: BackendView, now: float) -> float:
        """That it will take; 0 where no turn runs, but those let in just now, and while the rate is unknown. O(1)."""
        left = self._left.get(backend.id)
        if left is None:
            return 0.0
        ratio, since = left
        if since < now and not backend.turn_count:
            return 0.0
        return max(0.0, ratio * (backend.refill_seconds or 0.0) - (now - since))

    def forget_done(self, cluster: ClusterView) -> None:
        """Drop what is over, and backends that are gone. O(backends)."""
        left, now = self._left, cluster.now
        self._left = {
            backend.id: left[backend.id]
            for backend in cluster.backends
            if backend.id in left and self.seconds(backend, now) > 0.0
        }

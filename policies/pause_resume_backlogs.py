"""What each backend still has to prefill of the programs that ``pause-resume`` let in."""

from __future__ import annotations

from attrs import define, field, frozen

from thunderagent.policy import BackendId, BackendView, ClusterView, ProgramView, TurnView

__all__ = ["Backlogs"]


_LEAST_SECONDS = 0.001
"""Less is nothing to wait for, and may be left of what is over by rounding."""


@frozen
class _Prompts:
    """Those of a backend, of which the last one let in is computed last."""

    program: ProgramView
    """That one's."""
    ratio: float
    """Of the backend's capacity, all together; not in seconds, as the rate may be learned better."""
    since: float

    def left_seconds(self, backend: BackendView, now: float) -> float:
        is_over = self.program.place is not backend or not self.program.turn_count
        if is_over and self.since < now:
            return 0.0
        seconds = self.ratio * (backend.refill_seconds or 0.0) - (now - self.since)
        return seconds if seconds > _LEAST_SECONDS else 0.0


@define(eq=False)
class Backlogs:
    """By the rate that each backend was seen to have, and until the last turn let in is over at the latest.

    Engines compute one prompt after the other. Where several are let in at once, all but the first wait in the
    engine, and so does every small request that comes meanwhile; one at a time, the engine does as much and nobody
    else waits.
    """

    _prompts: dict[BackendId, _Prompts] = field(factory=dict)

    def add(self, turn: TurnView, backend: BackendView, cluster: ClusterView, added_tokens: int) -> None:
        """The turn gives its program its place there now, which adds so much to the account; one that waits alone
        counts for nothing. What of it is still cached there is not computed again."""
        program, capacity_tokens, now = turn.program, backend.capacity_tokens, cluster.now
        if program is None or turn.waits_alone or backend.refill_seconds is None or not capacity_tokens:
            return
        ratio = min(turn.prompt_tokens, added_tokens) / capacity_tokens
        if turn.origin == backend.id:
            ratio *= 1.0 - cluster.resident_ratio(program)
        left_ratio = self.seconds(backend, now) / backend.refill_seconds
        self._prompts[backend.id] = _Prompts(program, left_ratio + ratio, now)

    def seconds(self, backend: BackendView, now: float) -> float:
        """Until the last of them is probably computed; 0 while the rate is unknown. O(1)."""
        prompts = self._prompts.get(backend.id)
        return 0.0 if prompts is None else prompts.left_seconds(backend, now)

    def forget_done(self, cluster: ClusterView) -> None:
        """Drop what is over, and backends that are gone. O(backends)."""
        prompts, now = self._prompts, cluster.now
        if prompts:
            self._prompts = {
                backend.id: prompts[backend.id]
                for backend in cluster.backends
                if backend.id in prompts and prompts[backend.id].left_seconds(backend, now) > 0.0
            }

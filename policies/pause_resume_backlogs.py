"""What each backend still has to prefill of the programs that ``pause-resume`` let in."""

from __future__ import annotations

from collections import deque

from attrs import define, field, frozen

from thunderagent.policy import BackendId, BackendView, ClusterView, TurnView

__all__ = ["Backlogs"]

_LEAST_SECONDS = 0.001
"""Less is nothing to wait for, and may be left of what is over by rounding."""

_MOST = 64
"""So many prompts of a backend are remembered, the last let in."""


@frozen
class _Prompt:
    turn: TurnView
    let_in_at: float
    tokens: float
    """To be computed; not seconds, as the rate may be learned better."""


@define(eq=False)
class Backlogs:
    """By the rate that each backend was seen to have, and by which turns were answered.

    Engines compute one prompt after the other. Where several are let in at once, all but the first wait in the
    engine, and so does every small request that comes meanwhile; one at a time, the engine does as much and nobody
    else waits.
    """

    _prompts: dict[BackendId, deque[_Prompt]] = field(factory=dict)
    """In the order in which they were let in and are computed."""

    def add(self, turn: TurnView, backend: BackendView, cluster: ClusterView, added_tokens: int) -> None:
        """The turn gives its program its place there now, which adds so much to the account, for those of its turns
        that are held as well. One that waits alone counts for nothing, nor does what is still cached there."""
        program, now = turn.program, cluster.now
        if program is None or turn.waits_alone or backend.refill_seconds is None:
            return
        lost_ratio = 1.0 - cluster.resident_ratio(program) if turn.origin == backend.id else 1.0
        prompts = self._prompts.get(backend.id)
        if prompts is None or not self.seconds(backend, now):
            prompts = self._prompts[backend.id] = deque(maxlen=_MOST)
        held = (other for other in program.held_turns() if other.id != turn.id and not other.waits_alone)
        for each in (turn, *held):
            tokens = min(each.prompt_tokens, added_tokens)
            added_tokens -= tokens
            prompts.append(_Prompt(each, now, tokens * lost_ratio))

    def seconds(self, backend: BackendView, now: float) -> float:
        """Until the last of them is probably computed; 0 while the rate is unknown. O(1): few are remembered."""
        prompts, capacity_tokens = self._prompts.get(backend.id), backend.capacity_tokens
        if not prompts or not capacity_tokens:
            return 0.0
        seconds_per_token = (backend.refill_seconds or 0.0) / capacity_tokens
        computed_at = 0.0
        for prompt in prompts:
            turn = prompt.turn
            is_answered = turn.answered_by is backend
            if is_answered or turn.backend is backend or (turn.backend is None and prompt.let_in_at == now):
                computed_at = max(computed_at, prompt.let_in_at) + prompt.tokens * seconds_per_token
                if is_answered:  # it was computed by then, and so were those before it
                    computed_at = min(computed_at, turn.answered_at)
        seconds = computed_at - now
        return seconds if seconds > _LEAST_SECONDS else 0.0

    def forget_done(self, cluster: ClusterView) -> None:
        """Drop what is over, and backends that are gone. O(backends)."""
        if self._prompts:
            self._prompts = {
                backend.id: self._prompts[backend.id]
                for backend in cluster.backends
                if self.seconds(backend, cluster.now) > 0.0
            }

"""What each backend still has to prefill of the programs that ``pause-resume`` let in."""

from __future__ import annotations

from collections import deque

from attrs import define, field, frozen

from thunderagent.policy import BackendId, BackendView, ClusterView, TurnView

__all__ = ["Backlogs"]

_LEAST_SECONDS = 0.001
"""Less is nothing to wait for, and may be left of what is over by rounding."""

_LAST = 8
"""So many of those let in last are remembered: where one was given up, the one before it is waited for."""


@frozen
class _Prompt:
    turn: TurnView
    let_in_at: float
    end_tokens: float
    """To be computed until it is, from ``_Prompts.since`` on; not in seconds, as the rate may be learned better."""


@define(eq=False)
class _Prompts:
    """Those of a backend, which computes them in the order in which they were let in, without a pause."""

    since: float
    last: deque[_Prompt] = field(factory=lambda: deque(maxlen=_LAST))

    def end_tokens(self, backend: BackendView, now: float) -> float:
        """Until the last one is computed that runs and has no answer yet, nor has one after it; 0: there is none."""
        for prompt in reversed(self.last):
            turn = prompt.turn
            if turn.output_tokens:
                break
            if turn.backend is backend or (turn.backend is None and prompt.let_in_at == now):
                return prompt.end_tokens
        return 0.0

    def left_seconds(self, backend: BackendView, now: float) -> float:
        end_tokens, capacity_tokens = self.end_tokens(backend, now), backend.capacity_tokens
        if not end_tokens or not capacity_tokens:
            return 0.0
        seconds = end_tokens / capacity_tokens * (backend.refill_seconds or 0.0) - (now - self.since)
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
        program, now = turn.program, cluster.now
        if program is None or turn.waits_alone or backend.refill_seconds is None:
            return
        tokens: float = min(turn.prompt_tokens, added_tokens)
        if turn.origin == backend.id:
            tokens *= 1.0 - cluster.resident_ratio(program)
        prompts = self._prompts.get(backend.id)
        if prompts is None or not prompts.left_seconds(backend, now):
            prompts = self._prompts[backend.id] = _Prompts(now)
        prompts.last.append(_Prompt(turn, now, prompts.end_tokens(backend, now) + tokens))

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

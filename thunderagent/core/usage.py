"""What a finished turn reports: how it ended and how many tokens it took; and what a backend counts of many."""

from __future__ import annotations

from enum import Enum

from attrs import frozen

__all__ = ["Outcome", "Prefills", "Usage"]


class Outcome(Enum):
    """How a forwarded turn ended."""

    COMPLETED = "completed"
    BACKEND_REJECTED = "backend_rejected"
    BACKEND_ERROR = "backend_error"
    BACKEND_DISCONNECTED = "backend_disconnected"
    """The answer broke off before its end."""
    CLIENT_GONE = "client_gone"
    SHUTDOWN = "shutdown"


@frozen
class Usage:
    """Token counts that a backend reported for one turn.

    ``cached_tokens`` counts the prompt tokens found in the prefix cache; None where the backend does not say.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None


@frozen
class Prefills:
    """What a backend counted of the prompts of requests that ended.

    ``computed_tokens``: of the prompts, what was not found in a cache. ``seconds``: from the first step of each to
    its first token, summed, by the backend's clock; waits before that are not in it.
    """

    requests: int
    computed_tokens: int
    seconds: float

    def since(self, before: Prefills) -> Prefills | None:
        """What came since the counts were ``before``; None where nothing did, or one fell: it began anew."""
        requests = self.requests - before.requests
        computed_tokens = self.computed_tokens - before.computed_tokens
        seconds = self.seconds - before.seconds
        if requests <= 0 or computed_tokens < 0 or seconds < 0.0:
            return None
        return Prefills(requests, computed_tokens, seconds)

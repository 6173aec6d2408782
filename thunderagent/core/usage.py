"""What a finished turn reports: how it ended and how many tokens it took."""

from __future__ import annotations

from enum import Enum

from attrs import frozen

__all__ = ["Outcome", "Usage"]


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

"""How many tokens a body holds, before the engine has said so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define

from thunderagent.core.usage import Usage

if TYPE_CHECKING:
    from thunderagent.core.backend import Backend

__all__ = ["History", "Ratio", "is_credible"]

INITIAL_BYTES_PER_TOKEN = 4.0
"""Before the first sample. JSON of English text and code has 3.5 to 5; the lower end holds back more."""

_TEXT_BYTES_PER_TOKEN = (1.0, 12.0)
"""What text can have. A body with an image in it has hundreds of bytes per token and says nothing of others."""

SAMPLE_WEIGHT = 0.2
"""Weight of a new sample in the global ratio (the published scheduler's value)."""


def is_credible(usage: Usage, capacity_tokens: int | None) -> bool:
    """Whether a turn can have taken what its backend reports: a prompt, and no more than the cache holds.

    A false figure would be kept until the next turn, and hold everybody else off that backend.
    """
    if usage.prompt_tokens <= 0 or usage.completion_tokens < 0:
        return False
    return capacity_tokens is None or usage.prompt_tokens + usage.completion_tokens <= capacity_tokens


@define(eq=False)
class Ratio:
    """Bytes of body per prompt token over all programs: the first sample, then a moving mean."""

    bytes_per_token: float = INITIAL_BYTES_PER_TOKEN
    samples: int = 0

    def learn(self, body_bytes: int, prompt_tokens: int) -> None:
        """Take one finished turn into account; a turn without prompt tokens says nothing."""
        if prompt_tokens <= 0 or body_bytes <= 0:
            return
        sample = body_bytes / prompt_tokens
        if not _TEXT_BYTES_PER_TOKEN[0] <= sample <= _TEXT_BYTES_PER_TOKEN[1]:
            return
        if self.samples == 0:
            self.bytes_per_token = sample
        else:
            self.bytes_per_token += SAMPLE_WEIGHT * (sample - self.bytes_per_token)
        self.samples += 1

    def tokens(self, size_bytes: int) -> int:
        """Tokens in ``size_bytes`` of body, at least 1."""
        return max(1, round(size_bytes / self.bytes_per_token))


@define(eq=False, weakref_slot=False)
class History:
    """What the last finished turn of a branch said: exact tokens for the bytes that it had, and where they lie."""

    body_bytes: int = 0
    prompt_tokens: int = 0
    backend: Backend | None = None
    """Where that turn ran; None before the first."""
    cache_life: int = 0
    """Which life of that backend's cache it was."""
    mark_tokens: int = 0
    """Reading of the backend's turnover when it ended."""

    def learn(self, body_bytes: int, usage: Usage) -> None:
        """Remember a finished turn's exact size."""
        if usage.prompt_tokens > 0 and body_bytes > 0:
            self.body_bytes = body_bytes
            self.prompt_tokens = usage.prompt_tokens

    def lies_on(self, backend: Backend) -> bool:
        """Whether the last finished turn ran on the backend, and in the same life of its cache."""
        return self.backend is backend and self.cache_life == backend.cache_life

    def leave(self, backend: Backend) -> None:
        """A turn ended on the backend, which has its tokens in the cache now."""
        self.backend, self.cache_life = backend, backend.cache_life
        self.mark_tokens = backend.residency.turnover_tokens

    def cached_tokens(self, backend: Backend, body_bytes: int) -> int:
        """Tokens of a body that the backend's cache would have if nothing was evicted; 0 where it never had them.

        Its last prompt: an answer may be told to the model in other tokens than it came in. A body that is
        shorter than the last one was rewritten (compaction), and says nothing.
        """
        return self.prompt_tokens if body_bytes >= self.body_bytes and self.lies_on(backend) else 0

    def prompt_tokens_of(self, body_bytes: int, ratio: Ratio) -> int:
        """Tokens of a new body: what was there before exactly, and the new bytes by this branch's own ratio.

        The assistant's message is among the new bytes. A shorter body (compaction) is estimated afresh.
        """
        if self.prompt_tokens == 0:
            return ratio.tokens(body_bytes)
        own_bytes_per_token = self.body_bytes / self.prompt_tokens
        if body_bytes < self.body_bytes:
            return max(1, round(body_bytes / own_bytes_per_token))
        return self.prompt_tokens + round((body_bytes - self.body_bytes) / own_bytes_per_token)

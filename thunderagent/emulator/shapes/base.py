"""What every reply shape does, and the usage that it may carry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import attrs

from thunderagent.emulator.reply import Reply
from thunderagent.emulator.requests import ParsedRequest

__all__ = ["FINGERPRINT", "ReplyShape", "Usage"]

FINGERPRINT = "vllm-0.32.0-emulated"


@attrs.frozen
class Usage:
    """Token counts of a finished request; ``details`` False leaves the cached tokens out, as vLLM does by default."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    created_cache_tokens: int
    details: bool = True

    def counts(self) -> dict[str, Any]:
        """The three sums under OpenAI's names."""
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": total,
            "completion_tokens": self.completion_tokens,
        }


class ReplyShape(ABC):
    """Renders one reply: ``opening``, ``token`` for each token and ``closing`` when streamed, else ``whole``.

    The bytes of a stream are made of JSON rendered once per request; a token costs the encoding of its text.
    ``usage`` None: a reply without usage.
    """

    id_prefix: ClassVar[str] = "chatcmpl-"

    def __init__(self, request: ParsedRequest, reply: Reply, request_id: str, created: int) -> None:
        self.request = request
        self.reply = reply
        self.id = self.id_prefix + request_id
        self.key = request_id
        self.created = created
        self.last = reply.tokens - 1

    @abstractmethod
    def opening(self, prompt_tokens: int) -> bytes:
        """Events before the first token's."""

    @abstractmethod
    def token(self, index: int, prompt_tokens: int) -> bytes:
        """Events of token ``index``; empty for a token that shows nothing."""

    @abstractmethod
    def closing(self, usage: Usage | None) -> bytes:
        """Events after the last token's."""

    @abstractmethod
    def whole(self, usage: Usage | None) -> bytes:
        """The body of a reply that is not streamed."""

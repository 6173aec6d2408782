"""``/v1/messages``, Anthropic's API as vLLM serves it."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from thunderagent.emulator.engine import FinishReason
from thunderagent.emulator.shapes.base import Usage
from thunderagent.emulator.shapes.blocks import BlockShape

__all__ = ["MessagesShape"]

_encode = msgspec.json.encode


class MessagesShape(BlockShape):
    """``/v1/messages``, Anthropic's API."""

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        return b"event: %s\ndata: %s\n\n" % (kind.encode(), _encode({"type": kind, **fields}))

    def opening(self, prompt_tokens: int) -> bytes:
        """``message_start``."""
        message: dict[str, Any] = {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self.request.model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": prompt_tokens, "output_tokens": 0},
        }
        return self._event("message_start", {"message": message})

    def _begin(self, block: int, position: int) -> bytes:
        content: dict[str, Any] = {"type": "text", "text": ""}
        if block >= 0:
            name = self.reply.tool_calls[block].name
            content = {"type": "tool_use", "id": self._call_id(block), "name": name, "input": {}}
        return self._event("content_block_start", {"content_block": content, "index": position})

    def _fill(self, block: int, position: int, text: str) -> bytes:
        delta = {"type": "text_delta", "text": text}
        if block >= 0:
            delta = {"type": "input_json_delta", "partial_json": text}
        return self._event("content_block_delta", {"delta": delta, "index": position})

    def _end(self, block: int, position: int) -> bytes:
        return self._event("content_block_stop", {"index": position})

    def _call_id(self, block: int) -> str:
        return f"chatcmpl-tool-{self.key[-16:]}{block}"

    @property
    def _stop_reason(self) -> str:
        if self.reply.finish_reason is FinishReason.LENGTH:
            return "max_tokens"
        return "tool_use" if self.reply.tool_calls else "end_turn"

    def _usage(self, usage: Usage) -> dict[str, int]:
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "output_tokens": usage.completion_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
        }

    def closing(self, usage: Usage | None) -> bytes:
        """``message_delta`` with the usage, and ``message_stop``."""
        fields: dict[str, Any] = {"delta": {"stop_reason": self._stop_reason, "stop_sequence": None}}
        if usage is not None:
            fields["usage"] = self._usage(usage)
        return self._close_block() + self._event("message_delta", fields) + self._event("message_stop", {})

    def whole(self, usage: Usage | None) -> bytes:
        """A ``message`` object."""
        content: list[dict[str, Any]] = []
        if self.reply.content:
            content.append({"type": "text", "text": self.reply.content})
        for index, call in enumerate(self.reply.tool_calls):
            given = _decoded(call.arguments)
            content.append({"type": "tool_use", "id": self._call_id(index), "name": call.name, "input": given})
        fields: dict[str, Any] = {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "content": content,
            "model": self.request.model,
            "stop_reason": self._stop_reason,
        }
        if usage is not None:
            fields["usage"] = self._usage(usage)
        return _encode(fields)


def _decoded(arguments: str) -> Any:
    """Arguments as an object; those of a call that was cut at the token limit are not JSON and come out empty."""
    try:
        return json.loads(arguments)
    except json.JSONDecodeError:
        return {}

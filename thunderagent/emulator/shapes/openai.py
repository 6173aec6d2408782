"""Chat and plain completions: one chunk per token, the usage in an event of its own."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import msgspec

from thunderagent.emulator.engine import FinishReason
from thunderagent.emulator.reply import Delta, Reply
from thunderagent.emulator.requests import ParsedRequest
from thunderagent.emulator.shapes.base import FINGERPRINT, ReplyShape, Usage

__all__ = ["ChatShape", "CompletionShape"]

_text = json.JSONEncoder(ensure_ascii=False).encode
_encode = msgspec.json.encode


class _OpenAIShape(ReplyShape):
    """What chat and plain completions share: one chunk per token, usage in an event of its own."""

    chunk_object: ClassVar[str]
    finish_reason: str

    def __init__(self, request: ParsedRequest, reply: Reply, request_id: str, created: int) -> None:
        super().__init__(request, reply, request_id, created)
        head = {"id": self.id, "object": self.chunk_object, "created": created, "model": request.model}
        self._head = b"data: " + _encode(head)[:-1] + b',"choices":['
        self._fingerprint = _encode({"system_fingerprint": FINGERPRINT})[1:-1]

    def _running_usage(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        if not self.request.continuous_usage:
            return b""
        total = prompt_tokens + completion_tokens
        return (
            f',"usage":{{"prompt_tokens":{prompt_tokens},"total_tokens":{total},'
            f'"completion_tokens":{completion_tokens},"completion_tokens_details":null}}'
        ).encode()

    def _usage_details(self, usage: Usage) -> dict[str, Any]:
        raise NotImplementedError

    def closing(self, usage: Usage | None) -> bytes:
        """The usage event, where it was asked for, and ``[DONE]``."""
        done = b"data: [DONE]\n\n"
        if usage is None or not self.request.include_usage:
            return done
        fields = usage.counts()
        if usage.details:
            fields["prompt_tokens_details"] = self._usage_details(usage)
        return b"".join(
            (self._head, b'],"usage":', _encode(fields), b",", self._fingerprint, b"}\n\n", done),
        )


class ChatShape(_OpenAIShape):
    """``/v1/chat/completions``."""

    chunk_object = "chat.completion.chunk"

    def __init__(self, request: ParsedRequest, reply: Reply, request_id: str, created: int) -> None:
        super().__init__(request, reply, request_id, created)
        called = bool(reply.tool_calls) and reply.finish_reason is FinishReason.STOP
        self.finish_reason = "tool_calls" if called else reply.finish_reason.value
        self._delta = self._head + b'{"index":0,"delta":'
        self._content = self._delta + b'{"content":'
        self._arguments = self._delta + b'{"content":null,"tool_calls":[{"index":'

    def opening(self, prompt_tokens: int) -> bytes:
        """The chunk that names the role."""
        usage = self._running_usage(prompt_tokens, 0)
        delta = b'{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
        return b"".join((self._delta, delta, usage, b',"prompt_token_ids":null,"prompt_text":null}\n\n'))

    def token(self, index: int, prompt_tokens: int) -> bytes:
        """A chunk per delta; the last token's also says why the reply ended."""
        deltas = self.reply.deltas[index]
        usage = self._running_usage(prompt_tokens, index + 1)
        between = b',"logprobs":null,"finish_reason":null,"token_ids":null}]' + usage + b"}\n\n"
        if index != self.last:
            return b"".join([self._chunk(delta) + between for delta in deltas])
        start = b"".join([self._chunk(delta) + between for delta in deltas[:-1]])
        if deltas:
            end = self._chunk(deltas[-1])
        else:
            end = self._delta + b"{}" if self.finish_reason == "tool_calls" else self._content + b'""}'
        reason = f',"logprobs":null,"finish_reason":"{self.finish_reason}","stop_reason":null,"token_ids":null}}]'
        fingerprint = b"" if self.request.include_usage else b"," + self._fingerprint
        return b"".join((start, end, reason.encode(), usage, fingerprint, b"}\n\n"))

    def _chunk(self, delta: Delta) -> bytes:
        """A chunk up to the end of its delta object."""
        if delta.call is None:
            return self._content + _text(delta.text).encode() + b"}"
        if delta.opens:
            function = {"name": self.reply.tool_calls[delta.call].name}
            call = {"id": self._call_id(delta.call), "type": "function", "index": delta.call, "function": function}
            return self._delta + _encode({"content": None, "tool_calls": [call]})
        text = _text(delta.text).encode()
        return self._arguments + b'%d,"function":{"arguments":' % delta.call + text + b"}}]}"

    def _call_id(self, index: int) -> str:
        return f"chatcmpl-tool-{self.key[-16:]}{index}"

    def _usage_details(self, usage: Usage) -> dict[str, Any]:
        return {"cached_tokens": usage.cached_tokens, "created_cache_tokens": usage.created_cache_tokens}

    def whole(self, usage: Usage | None) -> bytes:
        """A ``chat.completion`` object."""
        calls = [
            {
                "id": self._call_id(index),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for index, call in enumerate(self.reply.tool_calls)
        ]
        message = {
            "role": "assistant",
            "content": self.reply.content or (None if calls else ""),
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            **({"tool_calls": calls} if calls else {}),
            "reasoning": None,
        }
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": self.finish_reason,
            "stop_reason": None,
            "token_ids": None,
            "routed_experts": None,
        }
        return _encode(
            {
                **_whole_head(self, "chat.completion", choice, usage, created_tokens=True),
                "prompt_logprobs": None,
                "prompt_token_ids": None,
                "prompt_text": None,
                "kv_transfer_params": None,
                "ec_transfer_params": None,
                "metrics": None,
            }
        )


def _whole_head(
    shape: ReplyShape, kind: str, choice: dict[str, Any], usage: Usage | None, *, created_tokens: bool
) -> dict[str, Any]:
    counts: dict[str, Any] | None = None
    if usage is not None:
        details = {
            "cached_tokens": usage.cached_tokens,
            "created_cache_tokens": usage.created_cache_tokens if created_tokens else None,
            "multimodal_tokens": None,
        }
        counts = {
            **usage.counts(),
            "prompt_tokens_details": details if usage.details else None,
            "completion_tokens_details": None,
        }
    return {
        "id": shape.id,
        "object": kind,
        "created": shape.created,
        "model": shape.request.model,
        "choices": [choice],
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": counts,
    }


class CompletionShape(_OpenAIShape):
    """``/v1/completions``."""

    id_prefix = "cmpl-"
    chunk_object = "text_completion"

    def __init__(self, request: ParsedRequest, reply: Reply, request_id: str, created: int) -> None:
        super().__init__(request, reply, request_id, created)
        self.finish_reason = reply.finish_reason.value
        self._piece = self._head + b'{"index":0,"text":'

    def opening(self, prompt_tokens: int) -> bytes:
        """Nothing: the first chunk is the first token's."""
        return b""

    def token(self, index: int, prompt_tokens: int) -> bytes:
        """One chunk."""
        text = "".join(delta.text for delta in self.reply.deltas[index])
        reason = f'"{self.finish_reason}"' if index == self.last else "null"
        tail = f',"logprobs":null,"finish_reason":{reason},"stop_reason":null,'
        tail += '"prompt_token_ids":null,"token_ids":null}]'
        usage = self._running_usage(prompt_tokens, index + 1)
        fingerprint = b"," + self._fingerprint if index == self.last and not self.request.include_usage else b""
        return b"".join((self._piece, _text(text).encode(), tail.encode(), usage, fingerprint, b"}\n\n"))

    def _usage_details(self, usage: Usage) -> dict[str, Any]:
        return {"cached_tokens": usage.cached_tokens}

    def whole(self, usage: Usage | None) -> bytes:
        """A ``text_completion`` object."""
        choice = {
            "index": 0,
            "text": self.reply.content,
            "logprobs": None,
            "finish_reason": self.finish_reason,
            "stop_reason": None,
            "token_ids": None,
            "prompt_logprobs": None,
            "prompt_token_ids": None,
            "routed_experts": None,
        }
        head = _whole_head(self, "text_completion", choice, usage, created_tokens=False)
        return _encode({**head, "kv_transfer_params": None, "ec_transfer_params": None, "metrics": None})

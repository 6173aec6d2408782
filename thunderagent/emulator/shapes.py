"""How replies look on the wire: the JSON and the server-sent events of the four APIs, as vLLM 0.32 writes them."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import attrs
import msgspec

from thunderagent.emulator.engine import FinishReason
from thunderagent.emulator.reply import Delta, Reply
from thunderagent.emulator.requests import Api, ParsedRequest

__all__ = ["FINGERPRINT", "ReplyShape", "Usage", "shape_for"]

FINGERPRINT = "vllm-0.32.0-emulated"

_text = json.JSONEncoder(ensure_ascii=False).encode
_encode = msgspec.json.encode


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


def shape_for(request: ParsedRequest, reply: Reply, request_id: str, created: int) -> ReplyShape:
    """The shape for a request's API."""
    shapes: dict[Api, type[ReplyShape]] = {
        Api.CHAT: ChatShape,
        Api.COMPLETIONS: CompletionShape,
        Api.RESPONSES: ResponsesShape,
        Api.MESSAGES: MessagesShape,
    }
    return shapes[request.api](request, reply, request_id, created)


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


class _BlockShape(ReplyShape):
    """What the responses and messages APIs share: the reply as a row of blocks, each opened, filled and closed."""

    def __init__(self, request: ParsedRequest, reply: Reply, request_id: str, created: int) -> None:
        super().__init__(request, reply, request_id, created)
        self._open: int | None = None
        """The block under way: -1 the text, else a tool call."""
        self._blocks = 0

    @abstractmethod
    def _begin(self, block: int, position: int) -> bytes: ...

    @abstractmethod
    def _fill(self, block: int, position: int, text: str) -> bytes: ...

    @abstractmethod
    def _end(self, block: int, position: int) -> bytes: ...

    def token(self, index: int, prompt_tokens: int) -> bytes:
        """Events of a token's deltas, with those that close a block and open the next."""
        parts: list[bytes] = []
        for delta in self.reply.deltas[index]:
            block = -1 if delta.call is None else delta.call
            if self._open != block:
                parts += (self._close_block(), self._begin(block, self._blocks))
                self._open = block
            if delta.text:
                parts.append(self._fill(block, self._blocks, delta.text))
        return b"".join(parts)

    def _close_block(self) -> bytes:
        if self._open is None:
            return b""
        ended = self._end(self._open, self._blocks)
        self._open = None
        self._blocks += 1
        return ended


class MessagesShape(_BlockShape):
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
        return self._close_block() + self._event("message_delta", fields) + self._event("message_stop", {}) + b"\n"

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


class ResponsesShape(_BlockShape):
    """``/v1/responses``."""

    id_prefix = "resp_"

    def __init__(self, request: ParsedRequest, reply: Reply, request_id: str, created: int) -> None:
        super().__init__(request, reply, request_id, created)
        self._events = 0
        self._finished_items: list[dict[str, Any]] = []

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        fields = {**fields, "sequence_number": self._events, "type": kind}
        self._events += 1
        # vLLM's events of this API have their keys in alphabetical order.
        return b"event: %s\ndata: %s\n\n" % (kind.encode(), _encode(dict(sorted(fields.items()))))

    def opening(self, prompt_tokens: int) -> bytes:
        """``response.created`` and ``response.in_progress``."""
        response = self._response("in_progress", [], None)
        created = self._event("response.created", {"response": response})
        return created + self._event("response.in_progress", {"response": response})

    def _item(self, block: int, *, finished: bool) -> dict[str, Any]:
        status = "completed" if finished else "in_progress"
        if block >= 0:
            call = self.reply.tool_calls[block]
            return {
                "arguments": call.arguments if finished else "",
                "call_id": f"call_{self.key[-16:]}{block}",
                "name": call.name,
                "type": "function_call",
                "id": self._item_id(block),
                "status": status,
            }
        content: list[dict[str, Any]] = [
            {"annotations": [], "text": self.reply.content, "type": "output_text", "logprobs": None}
        ]
        return {
            "id": self._item_id(block),
            "content": content if finished else [],
            "role": "assistant",
            "status": status,
            "type": "message",
            "phase": None,
        }

    def _item_id(self, block: int) -> str:
        return f"msg_{self.key}" if block < 0 else f"fc_{self.key[-16:]}{block}"

    def _begin(self, block: int, position: int) -> bytes:
        item = {"item": self._item(block, finished=False), "output_index": position}
        added = self._event("response.output_item.added", item)
        if block >= 0:
            return added
        part = {"annotations": [], "text": "", "type": "output_text", "logprobs": []}
        fields = {"content_index": 0, "item_id": self._item_id(block), "output_index": position, "part": part}
        return added + self._event("response.content_part.added", fields)

    def _fill(self, block: int, position: int, text: str) -> bytes:
        if block >= 0:
            fields: dict[str, Any] = {"delta": text, "item_id": self._item_id(block), "output_index": position}
            return self._event("response.function_call_arguments.delta", fields)
        fields = {"content_index": 0, "delta": text, "item_id": self._item_id(block), "logprobs": []}
        return self._event("response.output_text.delta", {**fields, "output_index": position})

    def _end(self, block: int, position: int) -> bytes:
        item = self._item(block, finished=True)
        self._finished_items.append(item)
        done = {"item": item, "output_index": position}
        if block >= 0:
            arguments = self.reply.tool_calls[block].arguments
            fields = {"arguments": arguments, "item_id": self._item_id(block), "output_index": position}
            ended = self._event("response.function_call_arguments.done", fields)
            return ended + self._event("response.output_item.done", done)
        where = {"content_index": 0, "item_id": self._item_id(block)}
        text = {**where, "logprobs": [], "output_index": position, "text": self.reply.content}
        part = {**where, "output_index": position, "part": item["content"][0]}
        return b"".join(
            (
                self._event("response.output_text.done", text),
                self._event("response.content_part.done", part),
                self._event("response.output_item.done", done),
            )
        )

    def closing(self, usage: Usage | None) -> bytes:
        """``response.completed`` with the whole response."""
        ended = self._close_block()
        response = self._response(self._status, self._finished_items, usage)
        return ended + self._event("response.completed", {"response": response})

    @property
    def _status(self) -> str:
        return "incomplete" if self.reply.finish_reason is FinishReason.LENGTH else "completed"

    def whole(self, usage: Usage | None) -> bytes:
        """A ``response`` object."""
        blocks = [-1] if self.reply.content else []
        output = [self._item(block, finished=True) for block in (*blocks, *range(len(self.reply.tool_calls)))]
        return _encode(self._response(self._status, output, usage))

    def _response(self, status: str, output: list[dict[str, Any]], usage: Usage | None) -> dict[str, Any]:
        body = self.request.body
        return {
            "id": self.id,
            "created_at": self.created,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.get("instructions"),
            "metadata": body.get("metadata"),
            "model": self.request.model,
            "object": "response",
            "output": output,
            "parallel_tool_calls": True,
            "temperature": body.get("temperature", 1.0),
            "tool_choice": "auto" if body.get("tools") else "none",
            "tools": body.get("tools") or [],
            "top_p": 1.0,
            "background": False,
            "max_output_tokens": self.request.max_tokens,
            "max_tool_calls": None,
            "previous_response_id": None,
            "prompt": None,
            "reasoning": None,
            "service_tier": "auto",
            "status": status,
            "text": None,
            "top_logprobs": None,
            "truncation": "disabled",
            "usage": None if usage is None else self._usage(usage),
            "user": body.get("user"),
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "input_messages": None,
            "output_messages": None,
        }

    def _usage(self, usage: Usage) -> dict[str, Any]:
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": usage.cached_tokens,
                "cache_write_tokens": 0,
                "input_tokens_per_turn": [],
                "cached_tokens_per_turn": [],
            },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {
                "reasoning_tokens": 0,
                "tool_output_tokens": 0,
                "output_tokens_per_turn": [],
                "tool_output_tokens_per_turn": [],
            },
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }

"""``/v1/responses``."""

from __future__ import annotations

from typing import Any

import msgspec

from thunderagent.emulator.engine import FinishReason
from thunderagent.emulator.reply import Reply
from thunderagent.emulator.requests import ParsedRequest
from thunderagent.emulator.shapes.base import Usage
from thunderagent.emulator.shapes.blocks import BlockShape

__all__ = ["ResponsesShape"]

_encode = msgspec.json.encode


class ResponsesShape(BlockShape):
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

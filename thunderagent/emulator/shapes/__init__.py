"""How replies look on the wire: the JSON and the server-sent events of the four APIs, as vLLM 0.32 writes them."""

from __future__ import annotations

from thunderagent.emulator.reply import Reply
from thunderagent.emulator.requests import Api, ParsedRequest
from thunderagent.emulator.shapes.base import FINGERPRINT, ReplyShape, Usage
from thunderagent.emulator.shapes.messages import MessagesShape
from thunderagent.emulator.shapes.openai import ChatShape, CompletionShape
from thunderagent.emulator.shapes.responses import ResponsesShape

__all__ = ["FINGERPRINT", "ReplyShape", "Usage", "shape_for"]


def shape_for(request: ParsedRequest, reply: Reply, request_id: str, created: int) -> ReplyShape:
    """The shape for a request's API."""
    shapes: dict[Api, type[ReplyShape]] = {
        Api.CHAT: ChatShape,
        Api.COMPLETIONS: CompletionShape,
        Api.RESPONSES: ResponsesShape,
        Api.MESSAGES: MessagesShape,
    }
    return shapes[request.api](request, reply, request_id, created)

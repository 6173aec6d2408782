"""Reads the bodies of inference requests: validation as vLLM's, and the prompt that they amount to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

import attrs
import msgspec

from thunderagent.emulator.tokens import Message, ToolCall, render_prompt, token_bytes

__all__ = ["Api", "ApiError", "ParsedRequest", "decode_body", "parse_request", "read_messages"]


class Api(Enum):
    """The inference APIs."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    RESPONSES = "/v1/responses"
    MESSAGES = "/v1/messages"


class ApiError(Exception):
    """An error answered to the client, in vLLM's words: HTTP ``status``, ``kind`` (its ``type``) and ``param``."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param

    def body(self, api: Api | None = None) -> bytes:
        """The error as JSON, in the shape of the API asked."""
        if api is Api.MESSAGES:
            return msgspec.json.encode({"type": "error", "error": {"type": self.kind, "message": self.message}})
        fields = {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        return msgspec.json.encode({"error": fields})


@attrs.frozen
class ParsedRequest:
    """What a request asks for, whatever its API.

    ``max_tokens`` None: no limit but the model's length. ``messages`` is empty for plain completions.
    """

    api: Api
    model: str
    prompt: bytes
    messages: tuple[Message, ...]
    max_tokens: int | None
    stream: bool
    include_usage: bool
    continuous_usage: bool
    ignore_eos: bool
    priority: int
    request_id: str | None
    body: Mapping[str, Any]


def decode_body(raw: bytes) -> dict[str, Any]:
    """The JSON object of a request. Raises ApiError (400) for anything else."""
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        try:
            value = json.loads(raw)
        except json.JSONDecodeError as error:
            detail = {"type": "json_invalid", "loc": f"body.{error.pos}", "msg": "JSON decode error"}
            raise _invalid({**detail, "input": "<dict of 0 items>", "ctx": {"error": error.msg}}) from error
        except ValueError as error:
            raise ApiError(400, "There was an error parsing the body", "Bad Request") from error
    if not isinstance(value, dict):
        detail = {"type": "model_attributes_type", "loc": "body", "msg": "Input should be a valid dictionary"}
        raise _invalid(detail)
    return value


def parse_request(api: Api, body: dict[str, Any]) -> ParsedRequest:
    """Validate a body and render its prompt; unknown fields are ignored. Raises ApiError (400)."""
    messages: tuple[Message, ...] = ()
    if api is Api.COMPLETIONS:
        prompt = _plain_prompt(body)
    else:
        messages, tools = read_messages(api, body)
        prompt = render_prompt(messages, tools)
    temperature = body.get("temperature")
    if isinstance(temperature, (int, float)) and temperature < 0:
        message = f"temperature must be non-negative, got {float(temperature)}."
        raise ApiError(400, _with_parameter(message, "temperature", float(temperature)), param="temperature")
    options = body.get("stream_options")
    if not isinstance(options, dict):
        options = {}
    request_id = body.get("request_id")
    return ParsedRequest(
        api=api,
        model=str(body.get("model") or ""),
        prompt=prompt,
        messages=messages,
        max_tokens=_max_tokens(api, body),
        stream=bool(body.get("stream")),
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("include_usage") and options.get("continuous_usage_stats")),
        ignore_eos=bool(body.get("ignore_eos")),
        priority=_integer(body, "priority") or 0,
        request_id=request_id if isinstance(request_id, str) else None,
        body=body,
    )


def _max_tokens(api: Api, body: dict[str, Any]) -> int | None:
    names = {
        Api.CHAT: ("max_completion_tokens", "max_tokens"),
        Api.COMPLETIONS: ("max_tokens",),
        Api.RESPONSES: ("max_output_tokens",),
        Api.MESSAGES: ("max_tokens",),
    }[api]
    for name in names:
        tokens = _integer(body, name)
        if tokens is None:
            continue
        if tokens < 1:
            message = f"{name} must be at least 1, got {tokens}."
            raise ApiError(400, _with_parameter(message, name, tokens), param=name)
        return tokens
    if api is Api.MESSAGES:
        raise _missing("max_tokens", body)
    # The plain completions API ends after 16 tokens unless told otherwise, here as at OpenAI.
    return 16 if api is Api.COMPLETIONS else None


def _integer(body: dict[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        message = "Input should be a valid integer"
        if isinstance(value, str):
            message += ", unable to parse string as an integer"
        raise _invalid({"type": "int_parsing", "loc": f"body.{name}", "msg": message, "input": value})
    return value


def _plain_prompt(body: dict[str, Any]) -> bytes:
    prompt = body.get("prompt")
    if prompt is None:
        raise _missing("prompt", body)
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt.encode("utf-8", "replace") or b"\0"
    if isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt):
        try:
            return token_bytes(prompt)
        except OverflowError as error:
            raise ApiError(400, "token id out of range", param="prompt") from error
    raise ApiError(400, "the emulated engine takes one prompt: a text or a list of token ids", param="prompt")


def read_messages(api: Api, body: dict[str, Any]) -> tuple[tuple[Message, ...], object]:
    """The conversation in a body and its tools. Raises ApiError (400)."""
    field = "input" if api is Api.RESPONSES else "messages"
    items = body.get(field)
    if items is None:
        raise _missing(field, body)
    if api is Api.RESPONSES and isinstance(items, str):
        items = [{"role": "user", "content": items}]
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise _invalid({"type": "list_type", "loc": f"body.{field}", "msg": "Input should be a valid list"})
    if not items:
        raise ApiError(400, f"{field} must not be empty", param=field)
    readers = {Api.CHAT: _chat_messages, Api.RESPONSES: _response_items, Api.MESSAGES: _anthropic_messages}
    system = body.get("instructions") if api is Api.RESPONSES else body.get("system") if api is Api.MESSAGES else None
    first = (Message("system", _text(system)),) if system else ()
    return (*first, *readers[api](items)), body.get("tools")


def _text(content: Any) -> str:
    """The text of a content field: a string, or parts of which those with a text count."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return ""


def _chat_messages(items: list[dict[str, Any]]) -> Iterator[Message]:
    for item in items:
        calls = item.get("tool_calls")
        functions = [call.get("function") for call in calls if isinstance(call, dict)] if calls else []
        yield Message(
            str(item.get("role", "user")),
            _text(item.get("content")),
            tuple(_call(one.get("name"), one.get("arguments")) for one in functions if isinstance(one, dict)),
        )


def _call(name: Any, arguments: Any) -> ToolCall:
    return ToolCall(str(name), arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))


def _response_items(items: list[dict[str, Any]]) -> Iterator[Message]:
    """Items of the responses API; an answer's text and calls are one assistant message, as the model wrote them."""
    answer: Message | None = None
    for item in items:
        message = _response_item(item)
        if message is None:
            continue
        if message.role == "assistant":
            answer = message if answer is None else _joined(answer, message)
            continue
        if answer is not None:
            yield answer
            answer = None
        yield message
    if answer is not None:
        yield answer


def _response_item(item: dict[str, Any]) -> Message | None:
    match item.get("type", "message"):
        case "message":
            return Message(str(item.get("role", "user")), _text(item.get("content")))
        case "function_call":
            return Message("assistant", "", (_call(item.get("name"), item.get("arguments")),))
        case "function_call_output":
            return Message("tool", _text(item.get("output")))
        case _:
            return None


def _joined(first: Message, second: Message) -> Message:
    return Message("assistant", first.content + second.content, first.tool_calls + second.tool_calls)


def _anthropic_messages(items: list[dict[str, Any]]) -> Iterator[Message]:
    for item in items:
        role, content = str(item.get("role", "user")), item.get("content")
        blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
        for block in blocks:
            if block.get("type") == "tool_result":
                yield Message("tool", _text(block.get("content")))
        calls = tuple(_call(one.get("name"), one.get("input")) for one in blocks if one.get("type") == "tool_use")
        text = _text(content)
        if text or calls or not blocks:
            yield Message(role, text, calls)


def _with_parameter(message: str, name: str, value: object) -> str:
    return f"{message} (parameter={name}, value={value})"


def _missing(field: str, body: dict[str, Any]) -> ApiError:
    detail = {
        "type": "missing",
        "loc": f"body.{field}",
        "msg": "Field required",
        "input": f"<dict of {len(body)} items>",
    }
    return _invalid(detail)


def _invalid(detail: dict[str, Any]) -> ApiError:
    return ApiError(400, f"1 validation error:\n  {detail}", "Bad Request", detail["loc"])
